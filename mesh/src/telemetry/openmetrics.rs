//! Turns Prometheus' text format into OpenMetrics'.
//!
//! In: the text that the recorder renders. Out: the same samples as OpenMetrics 1.0 wants them: a counter's family without
//! `_total` and its samples with it, no empty lines, quotes in a description escaped, `# EOF` at the end.

/// OpenMetrics' text of what `prometheus` says in Prometheus' text format 0.0.4.
pub(super) fn openmetrics(prometheus: &str) -> String {
    let mut out = String::with_capacity(prometheus.len() + 64);
    let mut help = None;
    // The counter whose samples lack the ending.
    let mut unfinished: Option<&str> = None;
    for line in prometheus.lines().filter(|line| !line.is_empty()) {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ');
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|typed| typed.split_once(' '))
        {
            let is_counter = kind == "counter";
            let family =
                if is_counter { name.strip_suffix("_total").unwrap_or(name) } else { name };
            unfinished = (is_counter && family.len() == name.len()).then_some(name);
            push(&mut out, &["# TYPE ", family, " ", kind]);
            if let Some((_, text)) = help.take().filter(|(described, _)| *described == name) {
                push(&mut out, &["# HELP ", family, " ", &text.replace('"', "\\\"")]);
            }
        } else {
            match unfinished.and_then(|name| Some((name, line.strip_prefix(name)?))) {
                Some((name, rest)) => push(&mut out, &[name, "_total", rest]),
                None => push(&mut out, &[line]),
            }
        }
    }
    out.push_str("# EOF\n");
    out
}

fn push(out: &mut String, words: &[&str]) {
    for word in words {
        out.push_str(word);
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counters_family_loses_total_and_its_samples_keep_it() {
        let prometheus = "\
# HELP istio_xds_message_total xDS \"responses\" received
# TYPE istio_xds_message_total counter
istio_xds_message_total{url=\"a\"} 3

# TYPE bare counter
bare{url=\"a\"} 1

# HELP istio_build The component
# TYPE istio_build gauge
istio_build{tag=\"x_total\"} 1

# TYPE took_seconds histogram
took_seconds_bucket{le=\"+Inf\"} 1
took_seconds_sum 0.5
took_seconds_count 1
";
        let expected = "\
# TYPE istio_xds_message counter
# HELP istio_xds_message xDS \\\"responses\\\" received
istio_xds_message_total{url=\"a\"} 3
# TYPE bare counter
bare_total{url=\"a\"} 1
# TYPE istio_build gauge
# HELP istio_build The component
istio_build{tag=\"x_total\"} 1
# TYPE took_seconds histogram
took_seconds_bucket{le=\"+Inf\"} 1
took_seconds_sum 0.5
took_seconds_count 1
# EOF
";
        assert_eq!(openmetrics(prometheus), expected);
    }

    #[test]
    fn no_metrics_are_still_a_whole_text() {
        assert_eq!(openmetrics(""), "# EOF\n");
    }
}
