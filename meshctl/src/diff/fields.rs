//! Which fields of a message differ.
//!
//! In: two messages as JSON. Out: the fields by their paths, with both values. Elements of lists that have names are
//! known by them, others by their place.

use std::{collections::BTreeMap, fmt};

use serde_json::{Value, json};

/// A value longer than this is cut for people.
const LONGEST: usize = 100;

/// A field that differs.
#[derive(Debug, PartialEq)]
pub(crate) struct Field {
    path: String,
    before: Option<Value>,
    after: Option<Value>,
}

impl Field {
    /// For programs.
    pub(crate) fn json(&self) -> Value {
        json!({ "path": self.path, "before": self.before, "after": self.after })
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |value: &Option<Value>| match value {
            None => "nothing".to_owned(),
            Some(value) => {
                let text = value.to_string();
                match text.char_indices().nth(LONGEST) {
                    Some((end, _)) => format!("{}…", &text[..end]),
                    None => text,
                }
            }
        };
        write!(f, "{}: {} -> {}", self.path, text(&self.before), text(&self.after))
    }
}

/// All fields that differ, in the order of their paths in the message.
pub(crate) fn changed(before: &Value, after: &Value) -> Vec<Field> {
    let mut fields = Vec::new();
    add(&mut fields, "", Some(before), Some(after));
    fields
}

fn add(fields: &mut Vec<Field>, path: &str, before: Option<&Value>, after: Option<&Value>) {
    if before == after {
        return;
    }
    let parts = match (before, after) {
        (Some(Value::Object(before)), Some(Value::Object(after))) => {
            let member = |name: &String| {
                let dot = if path.is_empty() { "" } else { "." };
                (format!("{path}{dot}{name}"), before.get(name), after.get(name))
            };
            let more = after.keys().filter(|name| !before.contains_key(*name));
            before.keys().chain(more).map(member).collect()
        }
        (Some(Value::Array(before)), Some(Value::Array(after))) => elements(path, before, after),
        _ => None.into_iter().collect::<Vec<_>>(),
    };
    if parts.is_empty() {
        let (path, before, after) = (path.to_owned(), before.cloned(), after.cloned());
        return fields.push(Field { path, before, after });
    }
    for (path, before, after) in parts {
        add(fields, &path, before, after);
    }
}

type Part<'a> = (String, Option<&'a Value>, Option<&'a Value>);

/// The elements of two lists side by side; none if they can only be compared whole.
fn elements<'a>(path: &str, before: &'a [Value], after: &'a [Value]) -> Vec<Part<'a>> {
    if let (Some(before), Some(after)) = (by_name(before), by_name(after)) {
        let element = |name: &&str| {
            (format!("{path}[{name}]"), before.get(*name).copied(), after.get(*name).copied())
        };
        let more = after.keys().filter(|name| !before.contains_key(*name));
        return before.keys().chain(more).map(element).collect();
    }
    if before.len() != after.len() {
        return Vec::new();
    }
    let pairs = before.iter().zip(after).enumerate();
    pairs.map(|(i, (before, after))| (format!("{path}[{i}]"), Some(before), Some(after))).collect()
}

/// Elements by their names, if each has one of its own.
fn by_name(of: &[Value]) -> Option<BTreeMap<&str, &Value>> {
    let mut named = BTreeMap::new();
    for element in of {
        if named.insert(element.get("name")?.as_str()?, element).is_some() {
            return None;
        }
    }
    (!named.is_empty()).then_some(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_fields_that_differ_are_named() {
        for (before, after, expected) in [
            (json!({"a": {"b": 1, "c": 2}}), json!({"a": {"b": 1, "c": 3}}), vec!["a.c: 2 -> 3"]),
            (json!({"a": 1}), json!({"b": 2}), vec!["a: 1 -> nothing", "b: nothing -> 2"]),
            (json!({"a": [1, 2]}), json!({"a": [1, 3]}), vec!["a[1]: 2 -> 3"]),
            (json!({"a": [1, 2]}), json!({"a": [1]}), vec!["a: [1,2] -> [1]"]),
            (
                json!({"f": [{"name": "x", "v": 1}, {"name": "y"}]}),
                json!({"f": [{"name": "z"}, {"name": "x", "v": 2}]}),
                vec![
                    "f[x].v: 1 -> 2",
                    r#"f[y]: {"name":"y"} -> nothing"#,
                    r#"f[z]: nothing -> {"name":"z"}"#,
                ],
            ),
            (
                json!({"f": [{"name": "x"}, {"name": "x"}]}),
                json!({"f": []}),
                vec![r#"f: [{"name":"x"},{"name":"x"}] -> []"#],
            ),
            (json!(1), json!(1), vec![]),
        ] {
            let fields: Vec<_> = changed(&before, &after).iter().map(ToString::to_string).collect();
            assert_eq!(fields, expected, "{before} {after}");
        }
    }
}
