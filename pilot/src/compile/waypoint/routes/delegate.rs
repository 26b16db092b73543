//! Rules that a VirtualService leaves to another.
//!
//! In: all VirtualServices. Out: the rules of one, each that delegates replaced by those it delegates to, which may only
//! narrow it. A rule that cannot be resolved is left out, and requests for it find no route.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use crate::manifests::{
    Meta, Object,
    networking::{HttpMatch, HttpRule, StringMatch, VirtualService},
};

/// VirtualServices without hosts, by namespace and name.
#[derive(Debug, Default)]
pub(super) struct Delegates<'a> {
    all: HashMap<(&'a str, &'a str), &'a Object<VirtualService>>,
}

impl<'a> Delegates<'a> {
    pub(super) fn of(all: &'a [Arc<Object<VirtualService>>]) -> Self {
        let without_hosts = all.iter().filter(|object| object.spec.hosts.is_empty());
        Self {
            all: without_hosts
                .map(|object| ((&*object.meta.namespace, &*object.meta.name), &**object))
                .collect(),
        }
    }

    /// The rules of a VirtualService that has hosts, and the object that each comes from.
    pub(super) fn resolve(
        &self,
        meta: &'a Meta,
        spec: &'a VirtualService,
    ) -> (Cow<'a, [HttpRule]>, Vec<&'a Meta>) {
        if spec.http.iter().all(|rule| rule.delegate.is_none()) {
            return (Cow::Borrowed(&spec.http), vec![meta; spec.http.len()]);
        }
        let rules = spec.http.iter().flat_map(|rule| self.resolve_rule(meta, rule));
        let (rules, origins): (Vec<_>, _) = rules.unzip();
        (Cow::Owned(rules), origins)
    }

    fn resolve_rule(&self, meta: &'a Meta, root: &HttpRule) -> Vec<(HttpRule, &'a Meta)> {
        let Some(delegate) = &root.delegate else { return vec![(root.clone(), meta)] };
        let namespace = match delegate.namespace.as_str() {
            "" => &meta.namespace,
            namespace => namespace,
        };
        let found = self.all.get(&(namespace, delegate.name.as_str()));
        let Some(found) = found.filter(|found| is_visible(found, &meta.namespace)) else {
            return Vec::new();
        };
        let leaves = found.spec.http.iter().filter(|leaf| leaf.delegate.is_none());
        leaves.filter_map(|leaf| Some((merge(root, leaf)?, &found.meta))).collect()
    }
}

fn is_visible(delegate: &Object<VirtualService>, namespace: &str) -> bool {
    let Object { meta, spec } = delegate;
    spec.export_to.is_empty()
        || spec
            .export_to
            .iter()
            .any(|to| to == "*" || to == namespace || (to == "." && *meta.namespace == *namespace))
}

/// What the delegate leaves open, the root says.
fn merge(root: &HttpRule, leaf: &HttpRule) -> Option<HttpRule> {
    let mut merged = leaf.clone();
    merged.name = joined(&root.name, &leaf.name);
    merged.r#match = merge_matches(&root.r#match, &leaf.r#match)?;
    inherit(&mut merged.rewrite, &root.rewrite);
    inherit(&mut merged.direct_response, &root.direct_response);
    inherit(&mut merged.timeout, &root.timeout);
    inherit(&mut merged.retries, &root.retries);
    inherit(&mut merged.fault, &root.fault);
    inherit(&mut merged.mirror, &root.mirror);
    inherit(&mut merged.mirror_percent, &root.mirror_percent);
    inherit(&mut merged.mirror_percentage, &root.mirror_percentage);
    inherit(&mut merged.cors_policy, &root.cors_policy);
    inherit(&mut merged.headers, &root.headers);
    if merged.mirrors.is_empty() {
        merged.mirrors.clone_from(&root.mirrors);
    }
    Some(merged)
}

fn inherit<T: Clone>(leaf: &mut Option<T>, root: &Option<T>) {
    if leaf.is_none() {
        leaf.clone_from(root);
    }
}

fn joined(root: &str, leaf: &str) -> String {
    match (root, leaf) {
        ("", name) | (name, "") => name.to_owned(),
        (root, leaf) => format!("{root}-{leaf}"),
    }
}

/// Each of the delegate's matches must lie within one of the root's.
fn merge_matches(root: &[HttpMatch], leaf: &[HttpMatch]) -> Option<Vec<HttpMatch>> {
    if root.is_empty() || leaf.is_empty() {
        return Some([root, leaf].concat());
    }
    let mut all = Vec::new();
    for leaf in leaf {
        let before = all.len();
        all.extend(root.iter().filter(|root| contains(root, leaf)).map(|root| narrow(root, leaf)));
        if all.len() == before {
            return None;
        }
    }
    Some(all)
}

fn narrow(root: &HttpMatch, leaf: &HttpMatch) -> HttpMatch {
    let mut merged = leaf.clone();
    merged.name = joined(&root.name, &leaf.name);
    inherit(&mut merged.uri, &root.uri);
    inherit(&mut merged.scheme, &root.scheme);
    inherit(&mut merged.method, &root.method);
    inherit(&mut merged.authority, &root.authority);
    inherit(&mut merged.port, &root.port);
    for (leaf, root) in [
        (&mut merged.headers, &root.headers),
        (&mut merged.without_headers, &root.without_headers),
        (&mut merged.query_params, &root.query_params),
    ] {
        for (name, value) in root {
            leaf.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }
    for (name, value) in &root.source_labels {
        merged.source_labels.entry(name.clone()).or_insert_with(|| value.clone());
    }
    if merged.gateways.is_empty() {
        merged.gateways.clone_from(&root.gateways);
    }
    if merged.source_namespace.is_empty() {
        merged.source_namespace.clone_from(&root.source_namespace);
    }
    if merged.stat_prefix.is_empty() {
        merged.stat_prefix.clone_from(&root.stat_prefix);
    }
    merged
}

fn contains(root: &HttpMatch, leaf: &HttpMatch) -> bool {
    let text = |root: &Option<StringMatch>, leaf: &Option<StringMatch>| {
        root.as_ref().zip(leaf.as_ref()).is_none_or(|(root, leaf)| is_within(leaf, root))
    };
    let either_empty = |root: &str, leaf: &str| root.is_empty() || leaf.is_empty() || root == leaf;
    let labels = leaf.source_labels.iter();
    let mut labels =
        labels.filter_map(|(name, value)| Some((root.source_labels.get(name)?, value)));
    text(&root.uri, &leaf.uri)
        && text(&root.scheme, &leaf.scheme)
        && text(&root.method, &leaf.method)
        && text(&root.authority, &leaf.authority)
        && all_within(&leaf.headers, &root.headers)
        && all_within(&leaf.without_headers, &root.without_headers)
        && all_within(&leaf.query_params, &root.query_params)
        && root.ignore_uri_case == leaf.ignore_uri_case
        && root.port.zip(leaf.port).is_none_or(|(root, leaf)| root == leaf)
        && either_empty(&root.source_namespace, &leaf.source_namespace)
        && labels.all(|(root, leaf)| root == leaf)
        && (root.gateways.is_empty()
            || leaf.gateways.iter().all(|gateway| root.gateways.contains(gateway)))
}

fn all_within(leaf: &BTreeMap<String, StringMatch>, root: &BTreeMap<String, StringMatch>) -> bool {
    let mut both = leaf.iter().filter_map(|(name, leaf)| Some((leaf, root.get(name)?)));
    both.all(|(leaf, root)| is_within(leaf, root))
}

/// Whether what `leaf` matches, `root` matches as well. Of regular expressions that is not known.
fn is_within(leaf: &StringMatch, root: &StringMatch) -> bool {
    if root.regex.is_some() || leaf.regex.is_some() {
        let open = |value: &StringMatch| *value == StringMatch::default();
        return open(root) || open(leaf);
    }
    match (&root.exact, &root.prefix) {
        (Some(exact), _) => leaf.prefix.is_none() && leaf.exact.as_ref() == Some(exact),
        (None, Some(prefix)) => {
            let value = leaf.prefix.as_ref().or(leaf.exact.as_ref());
            value.is_none_or(|value| value.starts_with(prefix.as_str()))
        }
        (None, None) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> StringMatch {
        let (kind, text) = text.split_once(':').unwrap();
        let only = |name| (kind == name).then(|| text.to_owned());
        StringMatch { exact: only("exact"), prefix: only("prefix"), regex: only("regex") }
    }

    #[test]
    fn a_delegate_only_narrows() {
        for (root, leaf, expected) in [
            ("prefix:/a", "prefix:/a/b", true),
            ("prefix:/a", "exact:/ab", true),
            ("prefix:/a", "prefix:/b", false),
            ("exact:/a", "exact:/a", true),
            ("exact:/a", "exact:/b", false),
            ("exact:/a", "prefix:/a", false),
            ("regex:/a.*", "exact:/ab", false),
            ("prefix:/a", "regex:/a.*", false),
        ] {
            assert_eq!(is_within(&value(leaf), &value(root)), expected, "{leaf} in {root}");
        }
    }

    #[test]
    fn a_rule_that_widens_its_root_is_left_out_and_others_inherit() {
        let matching = |text: &str| HttpMatch { uri: Some(value(text)), ..Default::default() };
        let rule = |name: &str, uri: &str| HttpRule {
            name: name.into(),
            r#match: vec![matching(uri)],
            ..Default::default()
        };
        let root = HttpRule { mirror_percent: Some(7), ..rule("root", "prefix:/a") };
        assert_eq!(merge(&root, &rule("leaf", "prefix:/b")), None);
        let merged = merge(&root, &rule("leaf", "exact:/a/b")).unwrap();
        assert_eq!((merged.name.as_str(), merged.mirror_percent), ("root-leaf", Some(7)));
        assert_eq!(merged.r#match, [matching("exact:/a/b")]);
        let open = HttpRule::default();
        assert_eq!(merge(&root, &open).unwrap().r#match, root.r#match);
    }
}
