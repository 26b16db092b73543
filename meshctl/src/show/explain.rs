//! Why a connection is carried or refused.

use crate::answers::{Explanation, Hop, Outcome};

/// The verdict first, then how it came about.
pub(crate) fn explanation(explanation: &Explanation) -> String {
    let verdict = match explanation.outcome {
        Outcome::Allowed => "✓ allowed",
        Outcome::Forwarded => "✓ forwarded",
        Outcome::Denied => "✗ denied",
        Outcome::NoRoute => "✗ no route",
    };
    let mut lines = vec![
        format!("{verdict}: {} -> {}", explanation.from, explanation.to),
        line("because", &explanation.summary),
    ];
    if let Some(reason) = &explanation.reason {
        lines.push(line("reason", reason));
    }
    if let Some(source) = &explanation.source {
        let identity = source.identity.as_deref().unwrap_or("no identity");
        lines.push(line("source", &format!("{} ({identity})", source.uid)));
    }
    if let Some(hop) = &explanation.hop {
        lines.extend(hop_lines(hop));
    }
    if let Some(policy) = &explanation.policy {
        if let Some(name) = &policy.policy {
            let rule = policy.rule.map(|rule| format!(", rule {rule}")).unwrap_or_default();
            lines.push(line("policy", &format!("{name}{rule}")));
        }
        lines.extend(policy.dry_run.iter().map(|verdict| line("dry run", verdict)));
    }
    lines.join("\n") + "\n"
}

fn hop_lines(hop: &Hop) -> Vec<String> {
    let how = match hop.kind.as_str() {
        "direct" => "in a tunnel to the destination's node",
        "waypoint" => "in a tunnel to a waypoint",
        "across" => "in two tunnels, one inside the other, through another network's gateway",
        "plain" => "in the clear: the destination is not in the mesh",
        "passthrough" => "in the clear: the destination is unknown to the mesh",
        other => other,
    };
    let optional = [
        ("service", &hop.service),
        ("resolve", &hop.host),
        ("dial", &hop.dial),
        ("authority", &hop.authority),
    ];
    let mut lines = vec![line("path", how)];
    for (name, value) in optional {
        lines.extend(value.as_ref().map(|value| line(name, value)));
    }
    lines.extend(hop.workload.as_ref().map(|workload| line("workload", &workload.uid)));
    if !hop.expect.is_empty() {
        lines.push(line("expect", &hop.expect.join(" or ")));
    }
    lines
}

fn line(name: &str, value: &str) -> String {
    format!("  {name:<10} {value}")
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::{Value, json};

    use super::*;

    fn check(answer: &Value, expected: &str) {
        let answer = Explanation::deserialize(answer).unwrap();
        assert_eq!(explanation(&answer), expected);
    }

    #[test]
    fn a_refusal_names_the_policy_and_the_way() {
        check(
            &json!({
                "from": "shop/web", "to": "10.1.0.2:80", "outcome": "denied",
                "reason": "policy_denied", "summary": "denied by policy shop/cart",
                "source": {"uid": "k//Pod/shop/web", "identity": "spiffe://cluster.local/ns/shop/sa/web"},
                "hop": {"kind": "direct", "dial": "10.0.0.2:15008", "authority": "10.0.0.2:8080",
                        "expect": ["spiffe://cluster.local/ns/shop/sa/cart"],
                        "service": "shop/cart.shop.svc.cluster.local",
                        "workload": {"uid": "k//Pod/shop/cart"}},
                "policy": {"allowed": false, "sentence": "s", "policy": "shop/cart", "rule": 2,
                           "dryRun": ["shop/try would deny"]},
            }),
            "\
✗ denied: shop/web -> 10.1.0.2:80
  because    denied by policy shop/cart
  reason     policy_denied
  source     k//Pod/shop/web (spiffe://cluster.local/ns/shop/sa/web)
  path       in a tunnel to the destination's node
  service    shop/cart.shop.svc.cluster.local
  dial       10.0.0.2:15008
  authority  10.0.0.2:8080
  workload   k//Pod/shop/cart
  expect     spiffe://cluster.local/ns/shop/sa/cart
  policy     shop/cart, rule 2
  dry run    shop/try would deny
",
        );
    }

    #[test]
    fn what_is_unknown_is_left_out() {
        check(
            &json!({"from": "outside", "to": "1.2.3.4:5", "outcome": "forwarded", "summary": "s"}),
            "✓ forwarded: outside -> 1.2.3.4:5\n  because    s\n",
        );
    }
}
