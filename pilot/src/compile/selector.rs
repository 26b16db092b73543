//! Finds what selects a pod by its labels.
//!
//! In: selectors, each of one namespace or of all. Out: those that match a pod, without trying each: a namespace may
//! have thousands of services and a hundred thousand pods.

use std::collections::HashMap;

use crate::manifests::Labels;

/// Selectors, indexed by one of their labels.
#[derive(Debug)]
pub(crate) struct Selectors<'a, T> {
    by_label: HashMap<Key<'a>, Vec<(&'a Labels, T)>>,
}

/// Namespace, and a label's key and value.
type Key<'a> = (&'a str, &'a str, &'a str);

/// In place of a namespace: the selector counts in all.
pub(crate) const EVERYWHERE: &str = "";

impl<'a, T: Copy> Selectors<'a, T> {
    /// Indexes `(namespace, labels, value)`; a selector without labels matches nothing.
    pub(crate) fn new(selectors: impl IntoIterator<Item = (&'a str, &'a Labels, T)>) -> Self {
        let mut by_label: HashMap<_, Vec<_>> = HashMap::new();
        for (namespace, labels, value) in selectors {
            // Any label would do; the last is as often a telling one (`app` < `version`).
            if let Some((key, text)) = labels.iter().next_back() {
                by_label
                    .entry((namespace, key.as_str(), text.as_str()))
                    .or_default()
                    .push((labels, value));
            }
        }
        Self { by_label }
    }

    /// The values of the selectors that match a pod.
    pub(crate) fn matching<'b>(
        &'b self,
        namespace: &'b str,
        pod: &'b Labels,
    ) -> impl Iterator<Item = T> + 'b {
        [namespace, EVERYWHERE].into_iter().flat_map(move |scope| {
            let candidates = pod.iter().filter_map(move |(key, value)| {
                self.by_label.get(&(scope, key.as_str(), value.as_str()))
            });
            candidates
                .flatten()
                .filter(|(labels, _)| is_subset(labels, pod))
                .map(|(_, value)| *value)
        })
    }
}

fn is_subset(wanted: &Labels, pod: &Labels) -> bool {
    wanted.iter().all(|(key, value)| pod.get(key) == Some(value))
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
            assert_eq!(selectors.matching(namespace, &pod).collect::<Vec<_>>(), expected);
        }
    }
}
