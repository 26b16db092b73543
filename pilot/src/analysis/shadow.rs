//! Whether one match takes every request that another takes.
//!
//! In: two matches of VirtualServices. Out: yes, or no or not known: patterns are compared as texts, and a regular
//! expression covers only its own text, unless it is `.*`.

use std::collections::BTreeMap;

use crate::manifests::networking::{HttpMatch, StringMatch};

/// Whether everything that `later` takes is taken by `earlier`. None takes everything.
pub(super) fn covers(earlier: Option<&HttpMatch>, later: Option<&HttpMatch>) -> bool {
    let all = HttpMatch::default();
    let (earlier, later) = (earlier.unwrap_or(&all), later.unwrap_or(&all));
    let both = [
        (&earlier.scheme, &later.scheme),
        (&earlier.method, &later.method),
        (&earlier.authority, &later.authority),
    ];
    path_covers(earlier, later)
        && both.into_iter().all(|(wide, narrow)| value_covers(wide.as_ref(), narrow.as_ref()))
        && map_covers(&earlier.headers, &later.headers)
        && map_covers(&earlier.query_params, &later.query_params)
        && earlier
            .without_headers
            .iter()
            .all(|one| later.without_headers.get_key_value(one.0) == Some(one))
        && (earlier.port.is_none() || earlier.port == later.port)
        && earlier.source_labels.is_empty()
        && (earlier.source_namespace.is_empty()
            || earlier.source_namespace == later.source_namespace)
        && (earlier.gateways.is_empty() || earlier.gateways == later.gateways)
}

fn path_covers(earlier: &HttpMatch, later: &HttpMatch) -> bool {
    let (Some(wide), Some(narrow)) = (&earlier.uri, &later.uri) else {
        return earlier.uri.as_ref().is_none_or(is_any_path);
    };
    if is_any_path(wide) {
        return true;
    }
    if earlier.ignore_uri_case {
        // The wide one takes more than its text says.
        return value_covers(Some(&lower(wide)), Some(&lower(narrow)));
    }
    !later.ignore_uri_case && value_covers(Some(wide), Some(narrow))
}

fn lower(of: &StringMatch) -> StringMatch {
    let lower = |text: &Option<String>| text.as_ref().map(|text| text.to_lowercase());
    StringMatch { exact: lower(&of.exact), prefix: lower(&of.prefix), regex: of.regex.clone() }
}

fn is_any_path(of: &StringMatch) -> bool {
    of.prefix.as_deref() == Some("/") || of.regex.as_deref() == Some(".*")
}

/// Nothing that is narrow takes what is absent.
fn value_covers(wide: Option<&StringMatch>, narrow: Option<&StringMatch>) -> bool {
    let Some(wide) = wide else { return true };
    let Some(narrow) = narrow else { return false };
    if wide == narrow || is_presence(wide) {
        return true;
    }
    let Some(prefix) = &wide.prefix else { return false };
    let text = narrow.exact.as_ref().or(narrow.prefix.as_ref());
    text.is_some_and(|text| text.starts_with(prefix))
}

fn is_presence(of: &StringMatch) -> bool {
    *of == StringMatch::default() || of.regex.as_deref() == Some("*")
}

fn map_covers(
    wide: &BTreeMap<String, StringMatch>,
    narrow: &BTreeMap<String, StringMatch>,
) -> bool {
    wide.iter().all(|(name, value)| value_covers(Some(value), narrow.get(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<HttpMatch> {
        (!text.is_empty()).then(|| serde_yaml_ng::from_str(text).unwrap())
    }

    #[test]
    fn a_match_covers_what_is_narrower() {
        for (wide, narrow, expected) in [
            ("", "uri: {exact: /a}", true),
            ("uri: {exact: /a}", "", false),
            ("uri: {prefix: /}", "", true),
            ("uri: {prefix: /a}", "uri: {prefix: /ab}", true),
            ("uri: {prefix: /a}", "uri: {exact: /a/b}", true),
            ("uri: {prefix: /a/}", "uri: {exact: /a}", false),
            ("uri: {exact: /a}", "uri: {prefix: /a}", false),
            ("uri: {prefix: /a}", "uri: {regex: /a.*}", false),
            ("uri: {regex: .*}", "uri: {regex: /a.*}", true),
            ("uri: {prefix: /A}, ignoreUriCase: true", "uri: {exact: /ab}", true),
            ("uri: {prefix: /a}", "uri: {exact: /ab}, ignoreUriCase: true", false),
            ("headers: {x: {exact: y}}", "headers: {x: {exact: y}, z: {}}", true),
            ("headers: {x: {exact: y}, z: {}}", "headers: {x: {exact: y}}", false),
            ("headers: {x: {}}", "headers: {x: {exact: y}}", true),
            ("method: {exact: GET}", "uri: {prefix: /a}", false),
            ("withoutHeaders: {x: {}}", "uri: {prefix: /a}", false),
            ("port: 80", "port: 81", false),
            ("port: 80", "port: 80, uri: {prefix: /a}", true),
            ("sourceLabels: {a: b}", "sourceLabels: {a: b}", false),
        ] {
            let (one, other) = (format!("{{{wide}}}"), format!("{{{narrow}}}"));
            let one = if wide.is_empty() { None } else { read(&one) };
            let other = if narrow.is_empty() { None } else { read(&other) };
            assert_eq!(covers(one.as_ref(), other.as_ref()), expected, "{wide} | {narrow}");
        }
    }
}
