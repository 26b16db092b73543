//! Finds what selects a pod by its labels.
//!
//! In: selectors, each of one namespace or of all. Out: those that match a pod, without trying each: a namespace may
//! have thousands of services and a hundred thousand pods.

use std::collections::HashMap;

use twox_hash::XxHash64;

use crate::manifests::Labels;

/// Selectors, indexed by one of their labels.
#[derive(Debug)]
pub(crate) struct Selectors<T> {
    /// By the hash of the namespace and that label: whatever else has the same hash does not match.
    by_label: HashMap<u64, Vec<One<T>>>,
}

#[derive(Debug)]
struct One<T> {
    namespace: Box<str>,
    labels: Labels,
    value: T,
}

/// In place of a namespace: the selector counts in all.
pub(crate) const EVERYWHERE: &str = "";

impl<T> Default for Selectors<T> {
    fn default() -> Self {
        Self { by_label: HashMap::new() }
    }
}

impl<T> Selectors<T> {
    /// Indexes `(namespace, labels, value)`; a selector without labels matches nothing.
    pub(crate) fn new<'a>(selectors: impl IntoIterator<Item = (&'a str, &'a Labels, T)>) -> Self {
        let mut all = Self::default();
        for (namespace, labels, value) in selectors {
            // Any label would do; the last is as often a telling one (`app` < `version`).
            if let Some((key, text)) = labels.iter().next_back() {
                let one = One { namespace: namespace.into(), labels: labels.clone(), value };
                all.by_label.entry(hash(namespace, key, text)).or_default().push(one);
            }
        }
        all
    }

    /// The values of the selectors that match a pod.
    pub(crate) fn matching<'a>(
        &'a self,
        namespace: &str,
        pod: &Labels,
    ) -> impl Iterator<Item = &'a T> {
        [namespace, EVERYWHERE].into_iter().flat_map(move |scope| {
            let candidates = pod
                .iter()
                .filter_map(move |(key, value)| self.by_label.get(&hash(scope, key, value)));
            candidates
                .flatten()
                .filter(move |one| *one.namespace == *scope && is_subset(&one.labels, pod))
                .map(|one| &one.value)
        })
    }
}

fn hash(namespace: &str, key: &str, value: &str) -> u64 {
    let mut bytes = Vec::with_capacity(namespace.len() + key.len() + value.len() + 2);
    for part in [namespace, "\0", key, "\0", value] {
        bytes.extend_from_slice(part.as_bytes());
    }
    XxHash64::oneshot(0, &bytes)
}

/// Whether an object with these labels is selected.
pub(crate) fn is_subset(wanted: &Labels, labels: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Labels {
        let pairs = text.split(' ').filter_map(|pair| pair.split_once('='));
        pairs.map(|(key, value)| (key.into(), value.into())).collect()
    }

    #[test]
    fn every_label_of_a_selector_must_match_in_its_namespace() {
        let one = labels("app=web");
        let two = labels("app=web version=v1");
        let none = labels("");
        let selectors = Selectors::new([
            ("shop", &one, "one"),
            ("shop", &two, "two"),
            ("data", &one, "other"),
            (EVERYWHERE, &one, "root"),
            ("shop", &none, "none"),
        ]);
        for (namespace, pod, expected) in [
            ("shop", "app=web version=v1", vec!["one", "two", "root"]),
            ("shop", "app=web version=v2", vec!["one", "root"]),
            ("data", "app=web", vec!["other", "root"]),
            ("shop", "version=v1", vec![]),
        ] {
            let pod = labels(pod);
            assert_eq!(selectors.matching(namespace, &pod).copied().collect::<Vec<_>>(), expected);
        }
    }
}
