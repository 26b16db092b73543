//! The limits on VirtualServices that their schema does not state.
//!
//! In: a VirtualService. Out: problems. In one that passes, every rule does one thing, and no proxy refuses it.

use std::collections::{BTreeMap, HashSet};

use super::{
    document::Report,
    http_check::{duration_fault, header_name_fault, percent_fault, regex_fault},
    http_names::{claim, is_claim},
    http_rule_check,
    networking::{Destination, HttpMatch, HttpRule, RouteDestination, StringMatch, VirtualService},
};
use crate::manifests::Duration;

pub(super) fn virtual_service(of: &VirtualService, report: &mut Report<'_>) {
    hosts(of, report);
    if of.http.is_empty() && of.tls.is_empty() && of.tcp.is_empty() {
        report.error("spec", "has no rules: none of http, tls and tcp");
    }
    for (i, rule) in of.http.iter().enumerate() {
        let field = format!("spec.http[{i}]");
        http_rule(rule, &field, report);
        if of.hosts.is_empty() && rule.delegate.is_some() {
            report.error(&format!("{field}.delegate"), "one without hosts cannot delegate further");
        }
    }
    for (i, rule) in of.tls.iter().enumerate() {
        let field = format!("spec.tls[{i}]");
        if rule.r#match.is_empty() {
            report.error(&format!("{field}.match"), "missing: needs sniHosts");
        }
        for (j, one) in rule.r#match.iter().enumerate() {
            let field = format!("{field}.match[{j}]");
            if one.sni_hosts.is_empty() {
                report.error(&format!("{field}.sniHosts"), "missing");
            }
            port(one.port, &format!("{field}.port"), report);
            subnets(&one.destination_subnets, &format!("{field}.destinationSubnets"), report);
        }
        connections(&rule.route, &format!("{field}.route"), report);
    }
    for (i, rule) in of.tcp.iter().enumerate() {
        let field = format!("spec.tcp[{i}]");
        for (j, one) in rule.r#match.iter().enumerate() {
            let field = format!("{field}.match[{j}]");
            port(one.port, &format!("{field}.port"), report);
            subnets(&one.destination_subnets, &format!("{field}.destinationSubnets"), report);
        }
        connections(&rule.route, &format!("{field}.route"), report);
    }
}

fn hosts(of: &VirtualService, report: &mut Report<'_>) {
    if of.hosts.is_empty() {
        if !of.gateways.is_empty() {
            report.error("spec.gateways", "one without hosts is only for others to delegate to");
        }
        if !of.tls.is_empty() || !of.tcp.is_empty() {
            report.error("spec.hosts", "missing: only http rules can be delegated");
        }
    }
    let for_mesh = of.gateways.is_empty() || of.gateways.iter().any(|name| name == "mesh");
    let mut seen = HashSet::new();
    for (i, host) in of.hosts.iter().enumerate() {
        let field = format!("spec.hosts[{i}]");
        if host.is_empty() {
            report.error(&field, "empty");
        } else if host == "*" && for_mesh {
            report.error(&field, "`*` is for gateways only, and this one is for the mesh");
        } else if host.rfind('*').is_some_and(|at| at > 0) {
            report.error(&field, format!("`{host}`: `*` can stand at the beginning only"));
        }
        if !seen.insert(host) {
            report.error(&field, format!("`{host}` stands there twice"));
        }
    }
}

fn http_rule(rule: &HttpRule, field: &str, report: &mut Report<'_>) {
    let actions = [
        ("route", !rule.route.is_empty()),
        ("redirect", rule.redirect.is_some()),
        ("directResponse", rule.direct_response.is_some()),
        ("delegate", rule.delegate.is_some()),
    ];
    let set: Vec<_> = actions.iter().filter(|(_, set)| *set).map(|(name, _)| *name).collect();
    match set.as_slice() {
        [_] => {}
        [] => report.error(field, "does nothing: set route, redirect, directResponse or delegate"),
        several => report.error(field, format!("only one of {} can be set", several.join(", "))),
    }
    for (i, one) in rule.r#match.iter().enumerate() {
        http_match(one, &format!("{field}.match[{i}]"), report);
    }
    let weights = rule.route.iter().map(|route| route.weight);
    check_weights(weights, &format!("{field}.route"), report);
    for (i, route) in rule.route.iter().enumerate() {
        let field = format!("{field}.route[{i}]");
        destination(&route.destination, &format!("{field}.destination"), report);
        http_rule_check::headers(route.headers.as_ref(), &format!("{field}.headers"), report);
    }
    http_rule_check::http_rule(rule, field, report);
    if let Some(to) = &rule.mirror {
        destination(to, &format!("{field}.mirror"), report);
    }
    for (i, mirror) in rule.mirrors.iter().enumerate() {
        let field = format!("{field}.mirrors[{i}]");
        destination(&mirror.destination, &format!("{field}.destination"), report);
        let percentage = mirror.percentage.and_then(|percentage| percent_fault(percentage.value));
        fault(percentage, &format!("{field}.percentage"), report);
    }
}

fn http_match(of: &HttpMatch, field: &str, report: &mut Report<'_>) {
    for (name, value) in [
        ("uri", &of.uri),
        ("scheme", &of.scheme),
        ("method", &of.method),
        ("authority", &of.authority),
    ] {
        if let Some(value) = value {
            let field = format!("{field}.{name}");
            string_match(value, &field, report);
            if *value == StringMatch::default() {
                report.error(&field, "empty: needs exact, prefix or regex");
            }
        }
    }
    for (name, values) in [("headers", &of.headers), ("withoutHeaders", &of.without_headers)] {
        header_matches(values, &format!("{field}.{name}"), report);
    }
    for (name, value) in &of.query_params {
        let field = format!("{field}.queryParams");
        if name.is_empty() {
            report.error(&field, "a parameter without a name");
        }
        string_match(value, &field, report);
    }
    port(of.port, &format!("{field}.port"), report);
    if !of.source_labels.is_empty() && of.gateways.is_empty() {
        let reason = "a waypoint does not know the labels of a source: the match has no effect";
        report.warning(&format!("{field}.sourceLabels"), reason);
    }
}

fn header_matches(values: &BTreeMap<String, StringMatch>, field: &str, report: &mut Report<'_>) {
    for (name, value) in values {
        if is_claim(name) {
            if claim(name).is_none() {
                report.error(field, format!("`{name}` names no claim"));
            }
        } else {
            fault(header_name_fault(name.trim_start_matches(':')), field, report);
        }
        string_match(value, field, report);
    }
}

pub(super) fn string_match(of: &StringMatch, field: &str, report: &mut Report<'_>) {
    let set = [&of.exact, &of.prefix, &of.regex];
    if set.iter().filter(|value| value.is_some()).count() > 1 {
        report.error(field, "only one of exact, prefix and regex can be set");
    }
    if let Some(text) = of.regex.as_deref().filter(|text| *text != "*") {
        fault(regex_fault(text), &format!("{field}.regex"), report);
    }
}

fn destination(of: &Destination, field: &str, report: &mut Report<'_>) {
    if of.host.is_empty() {
        report.error(&format!("{field}.host"), "missing");
    } else if of.host.contains('*') && of.host != "*" && !of.host.starts_with("*.") {
        report.error(&format!("{field}.host"), format!("`{}` is no host name", of.host));
    }
    port(of.port.as_ref().map(|port| port.number), &format!("{field}.port.number"), report);
}

fn connections(routes: &[RouteDestination], field: &str, report: &mut Report<'_>) {
    if routes.is_empty() {
        report.error(field, "missing");
    }
    check_weights(routes.iter().map(|route| route.weight), field, report);
    for (i, route) in routes.iter().enumerate() {
        destination(&route.destination, &format!("{field}[{i}].destination"), report);
    }
}

fn check_weights(weights: impl Iterator<Item = i32>, field: &str, report: &mut Report<'_>) {
    let weights: Vec<i64> = weights.map(i64::from).collect();
    for (i, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight < 0) {
        report.error(&format!("{field}[{i}].weight"), format!("{weight} is negative"));
    }
    let sum: i64 = weights.iter().filter(|weight| **weight > 0).sum();
    if weights.len() > 1 && sum == 0 {
        report.error(field, "no destination has a weight");
    }
    if sum > i64::from(u32::MAX) {
        report
            .error(field, format!("the weights add up to {sum}, at most {} is allowed", u32::MAX));
    }
}

fn port(number: Option<u32>, field: &str, report: &mut Report<'_>) {
    if let Some(number) = number.filter(|number| !(1..=65535).contains(number)) {
        report.error(field, format!("{number} is no port (1 to 65535)"));
    }
}

fn subnets(blocks: &[String], field: &str, report: &mut Report<'_>) {
    for (i, block) in blocks.iter().enumerate() {
        if super::attribute::block(block).is_none() {
            let reason = format!("`{block}` is neither an IP address nor a CIDR block");
            report.error(&format!("{field}[{i}]"), reason);
        }
    }
}

pub(super) fn fault(found: Option<String>, field: &str, report: &mut Report<'_>) {
    if let Some(reason) = found {
        report.error(field, reason);
    }
}

pub(super) fn limit(of: Option<Duration>, field: &str, report: &mut Report<'_>) {
    fault(of.and_then(duration_fault), field, report);
}
