//! What a tunnel's `baggage` says of the workload at its other end.
//!
//! In: the lines of the header. Out: a [`Party`]. The peer writes what it likes: nothing is believed here, and nothing but
//! telemetry may use it.

use std::sync::Arc;

use super::Party;

/// No name of Kubernetes is longer (RFC 1123), and a label must not be as long as a peer likes.
const MAX_VALUE_BYTES: usize = 253;

/// Reads the lines of `baggage`. What is not understood, empty or too long is as if it were not there; of a field that
/// comes again the last counts.
pub fn read_baggage<'a>(lines: impl IntoIterator<Item = &'a str>) -> Party {
    let mut party = Party::default();
    let fields = lines.into_iter().flat_map(|line| line.split(','));
    for (key, value) in fields.filter_map(|field| field.split_once('=')) {
        // What follows a second `=` or a `;` (a property, W3C Baggage §3.3.1) is no part of the value.
        let value = value.split(['=', ';']).next().unwrap_or_default().trim();
        let place = match key.trim() {
            "k8s.cluster.name" => &mut party.cluster,
            "k8s.namespace.name" => &mut party.namespace,
            "k8s.deployment.name" | "k8s.cronjob.name" | "k8s.pod.name" | "k8s.job.name" => {
                &mut party.workload
            }
            "service.name" => &mut party.canonical_name,
            "service.version" => &mut party.canonical_revision,
            "cloud.region" => &mut party.region,
            "cloud.availability_zone" => &mut party.zone,
            _ => continue,
        };
        let fits = (1..=MAX_VALUE_BYTES).contains(&value.len());
        *place = fits.then(|| Arc::from(value));
    }
    party
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn any_text_is_read_and_no_label_is_empty_or_longer_than_any_name(
            lines in proptest::collection::vec("[a-z.=,; ]{0,30}|(service.name=\\PC{0,300},?){1,3}", 0..4),
        ) {
            let party = read_baggage(lines.iter().map(String::as_str));
            proptest::prop_assert!(party.principal.is_none());
            for value in [party.canonical_name, party.workload].into_iter().flatten() {
                proptest::prop_assert!((1..=MAX_VALUE_BYTES).contains(&value.len()), "{value}");
            }
        }
    }

    #[test]
    fn each_key_fills_its_field_from_whichever_line() {
        let lines = [
            "k8s.cluster.name=c,k8s.namespace.name=n,k8s.deployment.name=d",
            "service.name=s,service.version=v,cloud.region=r,cloud.availability_zone=z",
        ];
        let text = |value: &str| Some(value.into());
        let expected = Party {
            workload: text("d"),
            namespace: text("n"),
            canonical_name: text("s"),
            canonical_revision: text("v"),
            cluster: text("c"),
            region: text("r"),
            zone: text("z"),
            principal: None,
        };
        assert_eq!(read_baggage(lines), expected);
    }

    #[test]
    fn any_kind_of_workload_names_the_workload() {
        for kind in ["deployment", "cronjob", "pod", "job"] {
            let party = read_baggage([format!("k8s.{kind}.name=w").as_str()]);
            assert_eq!(party.workload.as_deref(), Some("w"), "{kind}");
        }
    }

    #[test]
    fn what_is_empty_unknown_or_too_long_is_not_there() {
        let long = format!("service.name={}", "x".repeat(MAX_VALUE_BYTES + 1));
        for odd in
            ["", ",", "=", "service.name", "service.name=", "other=x", "Service.Name=x", &long]
        {
            assert_eq!(read_baggage([odd]), Party::default(), "{odd}");
        }
    }

    #[test]
    fn spaces_properties_and_further_parts_are_no_part_of_a_value() {
        for odd in ["service.name = web ", "service.name=web;p=1", "service.name=web=x"] {
            assert_eq!(read_baggage([odd]).canonical_name.as_deref(), Some("web"), "{odd}");
        }
    }
}
