//! The limits on what policies are attached to, and on RequestAuthentications and Telemetry, that their schema does not
//! state.
//!
//! In: such a resource. Out: problems. A target that can never be anything would leave a policy without effect: that is
//! an error, because nobody would notice.

use super::{
    TargetRef,
    document::Report,
    security::{JwtRule, RequestAuthentication, Selector},
    telemetry::Telemetry,
};

/// How many targets one resource may have.
const MOST_TARGETS: usize = 16;

/// Checks what a resource is attached to.
pub(super) fn attachment(
    selector: Option<&Selector>,
    target: Option<&TargetRef>,
    targets: &[TargetRef],
    report: &mut Report<'_>,
) {
    if target.is_some() && !targets.is_empty() {
        report.error("spec.targetRef", "only one of targetRef and targetRefs can be set");
    }
    if selector.is_some() && (target.is_some() || !targets.is_empty()) {
        report.error("spec.selector", "only one of selector and targetRefs can be set");
    }
    if targets.len() > MOST_TARGETS {
        let reason = format!("{} targets, at most {MOST_TARGETS} are allowed", targets.len());
        report.error("spec.targetRefs", reason);
    }
    if let Some(target) = target {
        check_target(target, "spec.targetRef", report);
    }
    for (i, target) in targets.iter().enumerate() {
        check_target(target, &format!("spec.targetRefs[{i}]"), report);
    }
}

fn check_target(target: &TargetRef, field: &str, report: &mut Report<'_>) {
    let group = target.group.as_deref().unwrap_or_default();
    let known = matches!(
        (group, target.kind.as_str()),
        ("" | "core", "Service")
            | ("networking.istio.io", "ServiceEntry")
            | ("gateway.networking.k8s.io", "Gateway" | "GatewayClass")
    );
    if !known {
        let slash = if group.is_empty() { "" } else { "/" };
        let reason = format!("nothing is attached to a {group}{slash}{}", target.kind);
        report.error(&format!("{field}.kind"), reason);
    }
    if target.name.is_empty() {
        report.error(&format!("{field}.name"), "missing");
    }
    if target.namespace.as_ref().is_some_and(|namespace| !namespace.is_empty()) {
        let reason = "a target is always in the namespace of what names it: leave it out";
        report.error(&format!("{field}.namespace"), reason);
    }
}

pub(super) fn request_authentication(policy: &RequestAuthentication, report: &mut Report<'_>) {
    attachment(policy.selector.as_ref(), policy.target_ref.as_ref(), &policy.target_refs, report);
    for (i, rule) in policy.jwt_rules.iter().enumerate() {
        check_rule(rule, &format!("spec.jwtRules[{i}]"), report);
    }
}

fn check_rule(rule: &JwtRule, field: &str, report: &mut Report<'_>) {
    if rule.issuer.is_empty() {
        report.error(&format!("{field}.issuer"), "missing");
    }
    if let Some(i) = rule.audiences.iter().position(String::is_empty) {
        report.error(&format!("{field}.audiences[{i}]"), "empty");
    }
    if !rule.jwks.is_empty() {
        if let Err(reason) = crate::jwks::check(&rule.jwks) {
            report.error(&format!("{field}.jwks"), format!("no set of keys: {reason}"));
        }
    } else if rule.jwks_uri.is_empty() {
        check_uri(&rule.issuer, &format!("{field}.issuer"), report);
    } else {
        check_uri(&rule.jwks_uri, &format!("{field}.jwksUri"), report);
    }
    for (i, header) in rule.from_headers.iter().enumerate() {
        check_header(&header.name, &format!("{field}.fromHeaders[{i}].name"), report);
    }
    for (name, values) in [("fromParams", &rule.from_params), ("fromCookies", &rule.from_cookies)] {
        if let Some(i) = values.iter().position(String::is_empty) {
            report.error(&format!("{field}.{name}[{i}]"), "empty");
        }
    }
    if !rule.output_payload_to_header.is_empty() {
        let field = format!("{field}.outputPayloadToHeader");
        check_header(&rule.output_payload_to_header, &field, report);
    }
    for (i, claim) in rule.output_claim_to_headers.iter().enumerate() {
        let field = format!("{field}.outputClaimToHeaders[{i}]");
        check_header(&claim.header, &format!("{field}.header"), report);
        if claim.claim.is_empty() {
            report.error(&format!("{field}.claim"), "missing");
        }
    }
}

/// Keys that are not given are fetched from there.
fn check_uri(uri: &str, field: &str, report: &mut Report<'_>) {
    let parsed = uri.parse::<http::Uri>().ok();
    let fetched = parsed.is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()
    });
    if !fetched {
        report.error(field, format!("`{uri}` is no http or https address to have keys from"));
    }
}

fn check_header(name: &str, field: &str, report: &mut Report<'_>) {
    if name.parse::<http::HeaderName>().is_err() {
        report.error(field, format!("`{name}` is no name of a header"));
    }
}

pub(super) fn telemetry(telemetry: &Telemetry, report: &mut Report<'_>) {
    let Telemetry { selector, target_ref, target_refs, tracing, metrics, access_logging } =
        telemetry;
    attachment(selector.as_ref(), target_ref.as_ref(), target_refs, report);
    for (i, entry) in tracing.iter().enumerate() {
        let field = format!("spec.tracing[{i}]");
        if entry.providers.len() > 1 {
            report.error(&format!("{field}.providers"), "one provider at most");
        }
        if entry.random_sampling_percentage.is_some_and(|share| !(0.0..=100.0).contains(&share)) {
            report.error(&format!("{field}.randomSamplingPercentage"), "between 0 and 100");
        }
        for (name, tag) in &entry.custom_tags {
            let said = [
                tag.literal.is_some(),
                tag.environment.is_some(),
                tag.header.is_some(),
                tag.formatter.is_some(),
            ];
            if said.iter().filter(|said| **said).count() != 1 {
                let reason = "one of literal, environment, header and formatter";
                report.error(&format!("{field}.customTags.{name}"), reason);
            }
        }
    }
    let providers = tracing.iter().map(|entry| ("tracing", &entry.providers));
    let providers = providers.chain(metrics.iter().map(|entry| ("metrics", &entry.providers)));
    let logging = access_logging.iter().map(|entry| ("accessLogging", &entry.providers));
    for (list, providers) in providers.chain(logging) {
        if providers.iter().any(|provider| provider.name.is_empty()) {
            report.error(&format!("spec.{list}"), "a provider without a name");
        }
    }
}
