//! A type's schema in the form that an API server takes ("structural").
//!
//! In: what `schemars` says of a type. Out: the same without references, alternatives and defaults: each value has one
//! type, an object that is stored is what the user wrote, and what is not known to us is not stored.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value, json};

/// What stays of a schema as it is.
const KEPT: [&str; 5] = ["description", "type", "minimum", "maximum", "required"];

/// The schema of a type.
pub(super) fn of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| settings.inline_subschemas = true);
    let schema = settings.into_generator().into_root_schema_for::<T>();
    structural(&schema.to_value())
}

fn anything() -> Value {
    json!({ "x-kubernetes-preserve-unknown-fields": true })
}

fn structural(schema: &Value) -> Value {
    let Some(fields) = schema.as_object() else { return anything() };
    if let Some(one) = alternative(fields) {
        return one;
    }
    let mut out = Map::new();
    for key in KEPT {
        if let Some(value) = fields.get(key) {
            out.insert(key.to_owned(), value.clone());
        }
    }
    if let Some(Value::Array(types)) = fields.get("type") {
        let one = types.iter().find(|of| of.as_str() != Some("null"));
        out.insert("type".to_owned(), one.cloned().unwrap_or_default());
    }
    if let Some(Value::Array(values)) = fields.get("enum") {
        let values: Vec<_> = values.iter().filter(|value| !value.is_null()).cloned().collect();
        out.insert("enum".to_owned(), values.into());
    }
    if let Some(value) = fields.get("const") {
        out.insert("enum".to_owned(), json!([value]));
    }
    if let Some(Value::Object(properties)) = fields.get("properties") {
        let properties = properties.iter().map(|(name, value)| (name.clone(), structural(value)));
        out.insert("properties".to_owned(), Value::Object(properties.collect()));
    }
    if let Some(items) = fields.get("items") {
        out.insert("items".to_owned(), structural(items));
    }
    // Maps by number have patterns of their keys.
    let patterns = fields.get("patternProperties").and_then(Value::as_object);
    let values = patterns.and_then(|patterns| patterns.values().next());
    let values = values.or_else(|| fields.get("additionalProperties"));
    if let Some(values) = values.filter(|values| values.as_bool() != Some(false)) {
        out.insert("additionalProperties".to_owned(), structural(values));
    }
    if out.contains_key("enum") && !out.contains_key("type") {
        out.insert("type".to_owned(), "string".into());
    }
    if out.contains_key("type") {
        return Value::Object(out);
    }
    let mut any = anything();
    if let Some(description) = out.remove("description") {
        any["description"] = description;
    }
    any
}

/// Of several forms the one that is not null; of words all.
fn alternative(fields: &Map<String, Value>) -> Option<Value> {
    let forms = ["oneOf", "anyOf", "allOf"].iter().find_map(|key| fields.get(*key)?.as_array())?;
    let is_null = |form: &&Value| {
        form["type"].as_str() == Some("null")
            || form["enum"].as_array().is_some_and(|values| values.iter().all(Value::is_null))
            || form.get("const").is_some_and(Value::is_null)
    };
    let forms: Vec<_> = forms.iter().filter(|form| !is_null(form)).map(structural).collect();
    let mut one = match &*forms {
        [one] => one.clone(),
        words if words.iter().all(|word| word.get("enum").is_some()) => {
            let words = words.iter().filter_map(|word| word["enum"].as_array()).flatten();
            json!({ "type": "string", "enum": words.collect::<Vec<_>>() })
        }
        _ => anything(),
    };
    if let Some(description) = fields.get("description") {
        one["description"] = description.clone();
    }
    Some(one)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifests::{AuthorizationPolicy, PeerAuthentication, networking::VirtualService};

    fn at<'a>(schema: &'a Value, path: &str) -> &'a Value {
        schema.pointer(path).unwrap_or_else(|| panic!("{path} in {schema:#}"))
    }

    #[test]
    fn every_value_has_one_type() {
        fn check(schema: &Value, path: &str) {
            let of = schema.get("type").is_some_and(Value::is_string);
            let any = schema.get("x-kubernetes-preserve-unknown-fields").is_some();
            assert!(of || any, "{path}: {schema}");
            for key in ["$ref", "oneOf", "anyOf", "default", "nullable", "const"] {
                assert!(schema.get(key).is_none(), "{path} has {key}");
            }
            for (name, value) in schema["properties"].as_object().into_iter().flatten() {
                check(value, &format!("{path}.{name}"));
            }
            for key in ["items", "additionalProperties"] {
                if let Some(inner) = schema.get(key) {
                    check(inner, &format!("{path}[]"));
                }
            }
        }
        for definition in super::super::all() {
            let name = definition["metadata"]["name"].as_str().unwrap();
            for version in definition["spec"]["versions"].as_array().unwrap() {
                check(&version["schema"]["openAPIV3Schema"], name);
            }
        }
    }

    #[test]
    fn words_lists_and_maps_are_what_they_were() {
        let policy = of::<AuthorizationPolicy>();
        let action = at(&policy, "/properties/action/enum");
        assert_eq!(*action, json!(["ALLOW", "DENY", "AUDIT", "CUSTOM"]));
        let selector = at(&policy, "/properties/selector/properties/matchLabels");
        assert_eq!(selector["additionalProperties"]["type"], "string");
        let principals =
            "/properties/rules/items/properties/from/items/properties/source/properties/principals";
        assert_eq!(at(&policy, principals)["items"]["type"], "string");
        let by_port = of::<PeerAuthentication>();
        let by_port =
            at(&by_port, "/properties/portLevelMtls/additionalProperties/properties/mode");
        assert_eq!(by_port["type"], "string");
        let timeout = of::<VirtualService>();
        let timeout = at(&timeout, "/properties/http/items/properties/timeout");
        assert_eq!(timeout["type"], "string");
    }
}
