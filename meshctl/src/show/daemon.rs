//! What one daemon knows and does.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    answers::{OpenConnection, PodState, Policy, Workload},
    table::Table,
};

/// Workloads, by namespace and name.
pub(crate) fn workloads(workloads: &[Workload]) -> String {
    let mut sorted: Vec<_> = workloads.iter().collect();
    sorted.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    let headings =
        ["NAMESPACE", "NAME", "ADDRESSES", "NODE", "PROTOCOL", "ACCOUNT", "STATUS", "POLICIES"];
    let mut table = Table::new(&headings);
    for workload in sorted {
        table.row([
            workload.namespace.clone(),
            workload.name.clone(),
            workload.workload_ips.join(","),
            workload.node.clone(),
            workload.protocol.clone(),
            workload.service_account.clone(),
            workload.status.clone(),
            workload.authorization_policies.join(","),
        ]);
    }
    table.render()
}

/// Policies, by namespace and name, with their rules below each other.
pub(crate) fn policies(policies: &[Policy]) -> String {
    let mut sorted: Vec<_> = policies.iter().collect();
    sorted.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    let mut table = Table::new(&["NAMESPACE", "NAME", "SCOPE", "ACTION", "RULES"]);
    for policy in sorted {
        let action = if policy.dry_run { " (dry run)" } else { "" };
        let action = format!("{}{action}", policy.action);
        let mut rules = policy.rules.iter().map(|rule| rule_text(rule));
        let first = rules.next().unwrap_or_else(|| "never matches".to_owned());
        table.row([
            policy.namespace.clone(),
            policy.name.clone(),
            policy.scope.clone(),
            action,
            first,
        ]);
        for rule in rules {
            let nothing = || " ".to_owned();
            table.row([nothing(), nothing(), nothing(), nothing(), format!("or {rule}")]);
        }
    }
    table.render()
}

type Matches = serde_json::Map<String, Value>;

fn rule_text(clauses: &[Vec<BTreeMap<String, Value>>]) -> String {
    if clauses.is_empty() {
        return "everything".to_owned();
    }
    let clauses = clauses.iter().map(|matches| {
        let matches: Vec<_> = matches
            .iter()
            .map(|fields| match_text(&fields.clone().into_iter().collect::<Matches>()))
            .collect();
        if matches.len() == 1 { matches.concat() } else { format!("({})", matches.join(" or ")) }
    });
    clauses.collect::<Vec<_>>().join(" and ")
}

fn match_text(fields: &Matches) -> String {
    if fields.is_empty() {
        return "nothing".to_owned();
    }
    let fields = fields.iter().map(|(name, values)| {
        let values = values.as_array().into_iter().flatten().map(value_text);
        format!("{name}={}", values.collect::<Vec<_>>().join("|"))
    });
    fields.collect::<Vec<_>>().join(" ")
}

/// A port, a network, a service account, or a text with what of it must be equal.
fn value_text(value: &Value) -> String {
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    if let Some(exact) = text("Exact") {
        exact.to_owned()
    } else if let Some(prefix) = text("Prefix") {
        format!("{prefix}*")
    } else if let Some(suffix) = text("Suffix") {
        format!("*{suffix}")
    } else if value.get("Presence").is_some() {
        "*".to_owned()
    } else if let (Some(namespace), Some(account)) = (text("namespace"), text("serviceAccount")) {
        format!("{namespace}/{account}")
    } else if let Some(plain) = value.as_str() {
        plain.to_owned()
    } else {
        value.to_string()
    }
}

/// Open connections, by pod.
pub(crate) fn connections(
    connections: &[OpenConnection],
    pods: &BTreeMap<String, PodState>,
) -> String {
    // A pod that left a moment ago has connections and no name.
    let name = |uid: &String| match pods.get(uid) {
        Some(pod) => format!("{}/{}", pod.info.namespace, pod.info.name),
        None => uid.clone(),
    };
    let mut sorted: Vec<_> = connections.iter().collect();
    sorted
        .sort_by(|a, b| (&a.pod, &a.direction, &a.source).cmp(&(&b.pod, &b.direction, &b.source)));
    let headings =
        ["POD", "DIRECTION", "SOURCE", "DESTINATION", "DIALED", "PROTOCOL", "PEER", "AGE"];
    let mut table = Table::new(&headings);
    for connection in sorted {
        table.row([
            name(&connection.pod),
            connection.direction.clone(),
            connection.source.clone(),
            connection.original_destination.clone(),
            connection.actual_destination.clone(),
            connection.protocol.clone(),
            connection.peer.clone().unwrap_or_default(),
            age(connection.age_seconds),
        ]);
    }
    table.render()
}

fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600.. => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[test]
    fn workloads_are_sorted_and_aligned() {
        let dump = json!([
            {"namespace": "shop", "name": "web", "workloadIps": ["10.0.0.1", "fd00::1"], "node": "node-a",
             "protocol": "HBONE", "serviceAccount": "web", "status": "Healthy",
             "authorizationPolicies": ["shop/web"]},
            {"namespace": "data", "name": "redis", "workloadIps": ["10.0.0.2"], "protocol": "TCP",
             "serviceAccount": "default", "status": "Unhealthy"},
        ]);
        let expected = "\
NAMESPACE  NAME   ADDRESSES         NODE    PROTOCOL  ACCOUNT  STATUS     POLICIES
data       redis  10.0.0.2          -       TCP       default  Unhealthy  -
shop       web    10.0.0.1,fd00::1  node-a  HBONE     web      Healthy    shop/web
";
        assert_eq!(workloads(&Vec::deserialize(&dump).unwrap()), expected);
    }

    #[test]
    fn a_policy_reads_as_its_rules_say() {
        let dump = json!([
            {"namespace": "shop", "name": "web", "scope": "WorkloadSelector", "action": "Allow", "rules": [
                [[{"destinationPorts": [80, 81]}],
                 [{"principals": [{"Exact": "cluster.local/ns/shop/sa/a"}, {"Prefix": "x/"}]}, {"sourceIps": ["10.0.0.0/8"]}]],
                [[{"serviceAccounts": [{"namespace": "shop", "serviceAccount": "b"}], "notNamespaces": [{"Presence": []}]}]],
            ]},
            {"namespace": "shop", "name": "all", "scope": "Namespace", "action": "Deny", "rules": [[]], "dryRun": true},
            {"namespace": "shop", "name": "none", "scope": "Namespace", "action": "Allow", "rules": []},
            {"namespace": "shop", "name": "only-l7", "scope": "Namespace", "action": "Deny", "rules": [[[{}]]]},
        ]);
        let expected = "\
NAMESPACE  NAME     SCOPE             ACTION          RULES
shop       all      Namespace         Deny (dry run)  everything
shop       none     Namespace         Allow           never matches
shop       only-l7  Namespace         Deny            nothing
shop       web      WorkloadSelector  Allow           destinationPorts=80|81 and (principals=cluster.local/ns/shop/sa/a|x/* or sourceIps=10.0.0.0/8)
                                                      or notNamespaces=* serviceAccounts=shop/b
";
        assert_eq!(policies(&Vec::deserialize(&dump).unwrap()), expected);
    }

    #[test]
    fn connections_show_who_and_how_long() {
        let list = json!([
            {"pod": "u1", "direction": "outbound", "source": "10.0.0.1:4000", "originalDestination": "10.1.0.2:80",
             "actualDestination": "10.0.0.2:15008", "protocol": "HBONE", "ageSeconds": 75,
             "peer": "spiffe://cluster.local/ns/shop/sa/cart"},
            {"pod": "u2", "direction": "inbound", "source": "10.0.0.9:4000", "originalDestination": "10.0.0.1:80",
             "actualDestination": "10.0.0.1:80", "protocol": "TCP", "ageSeconds": 7500},
        ]);
        let pods = json!({"u1": {"state": "Up", "info": {"namespace": "shop", "name": "web"}}});
        let pods = BTreeMap::deserialize(&pods).unwrap();
        let expected = "\
POD       DIRECTION  SOURCE         DESTINATION  DIALED          PROTOCOL  PEER                                    AGE
shop/web  outbound   10.0.0.1:4000  10.1.0.2:80  10.0.0.2:15008  HBONE     spiffe://cluster.local/ns/shop/sa/cart  1m15s
u2        inbound    10.0.0.9:4000  10.0.0.1:80  10.0.0.1:80     TCP       -                                       2h5m
";
        assert_eq!(connections(&Vec::deserialize(&list).unwrap(), &pods), expected);
    }
}
