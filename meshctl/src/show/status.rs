//! How pilot, its clients and the daemons are.

use std::collections::BTreeMap;

use super::seconds;
use crate::{
    answers::{Client, ClientType, Dump, Published, Syncz, XdsType},
    table::Table,
};

const TYPES: [&str; 2] = ["Address", "Authorization"];

/// What pilot publishes, and who has it.
pub(crate) fn pilot(url: &str, syncz: &Syncz) -> String {
    let mut text = format!("pilot {url}\n");
    match &syncz.published {
        Some(published) => {
            let types = published.types.iter();
            let types =
                types.map(|(name, one)| format!("{} {name} ({})", one.resources, one.version));
            let types = types.collect::<Vec<_>>().join(", ");
            let (generation, time) = (published.generation, seconds(&published.time));
            text += &format!("  published  {types}, generation {generation} of {time}\n");
        }
        None => text += "  published  nothing yet\n",
    }
    let config = &syncz.config;
    let stale = if config.errors > 0 || config.unreadable.is_some() {
        ": what is wrong keeps its last good form"
    } else {
        ""
    };
    text +=
        &format!("  manifests  {} errors, {} warnings{stale}\n", config.errors, config.warnings);
    if let Some(reason) = &config.unreadable {
        text += &format!("  unreadable {reason}\n");
    }
    text.push('\n');
    text += &clients(syncz);
    text
}

fn clients(syncz: &Syncz) -> String {
    let mut table =
        Table::new(&["NODE", "CLIENT", "SINCE", "ADDRESS", "AUTHORIZATION", "LAST ACK"]);
    let mut refusals = String::new();
    for client in &syncz.clients {
        let [address, authorization] =
            TYPES.map(|of| standing(client.types.get(of), of, syncz.published.as_ref()));
        table.row([
            client.node.clone(),
            client.id.clone(),
            seconds(&client.connected_since),
            address,
            authorization,
            seconds(last_ack(client)),
        ]);
        for (of, status) in &client.types {
            if let Some(nack) = &status.nack {
                refusals += &format!(
                    "{} refused {of} {} at {}: {} {}\n",
                    client.node,
                    nack.version,
                    seconds(&nack.time),
                    nack.resources.join(", "),
                    nack.message
                );
            }
        }
    }
    table.render() + &refusals
}

/// How far a client is with one type.
fn standing(status: Option<&ClientType>, of: &str, published: Option<&Published>) -> String {
    let Some(sent) = status.and_then(|status| status.sent.as_ref()) else {
        return "not sent".to_owned();
    };
    let status = status.expect("it has a sent version: checked above");
    let newest = published.and_then(|published| published.types.get(of));
    if status.nack.as_ref().is_some_and(|nack| nack.version == sent.version) {
        "refused".to_owned()
    } else if status.acked.as_ref().is_none_or(|acked| acked.version != sent.version) {
        "sent, not answered".to_owned()
    } else if newest.is_some_and(|newest| newest.version != sent.version) {
        "behind".to_owned()
    } else {
        "synced".to_owned()
    }
}

fn last_ack(client: &Client) -> &str {
    let acks = client.types.values().filter_map(|status| status.acked.as_ref());
    acks.map(|acked| acked.time.as_str()).max().unwrap_or_default()
}

/// How each daemon is.
pub(crate) fn daemons(daemons: &[(&str, Dump)]) -> String {
    let headings = ["DAEMON", "VERSION", "XDS", "ADDRESS", "AUTHORIZATION", "PODS", "CERTIFICATES"];
    let mut table = Table::new(&headings);
    let mut notes = String::new();
    for (url, dump) in daemons {
        let xds = dump.xds.as_ref();
        table.row([
            (*url).to_owned(),
            dump.version.version.clone(),
            xds.map_or("unknown", |xds| if xds.connected { "connected" } else { "away" })
                .to_owned(),
            xds.map(|xds| held(&xds.address)).unwrap_or_default(),
            xds.map(|xds| held(&xds.authorization)).unwrap_or_default(),
            counted(dump.workload_state.values().map(|pod| pod.state.as_str())),
            counted(
                dump.certificates.iter().map(|one| one.state.split(':').next().unwrap_or_default()),
            ),
        ]);
        if let Some(xds) = xds {
            if !xds.connected && !xds.last_error.is_empty() {
                notes += &format!("{url}: no control plane: {}\n", xds.last_error);
            }
            for (of, status) in [("Address", &xds.address), ("Authorization", &xds.authorization)] {
                if let Some(time) = &status.last_nack {
                    let time = seconds(time);
                    notes +=
                        &format!("{url}: refused {of} at {time}: {}\n", status.last_nack_message);
                }
            }
        }
        for certificate in
            dump.certificates.iter().filter(|one| one.state.starts_with("Unavailable"))
        {
            notes += &format!("{url}: {}: {}\n", certificate.identity, certificate.state);
        }
    }
    table.render() + &notes
}

fn held(of: &XdsType) -> String {
    match &of.last_ack {
        Some(time) => format!("{} at {}", of.resources, seconds(time)),
        None => of.resources.to_string(),
    }
}

/// `3 Up, 1 Pending`.
fn counted<'a>(states: impl Iterator<Item = &'a str>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for state in states {
        *counts.entry(state).or_default() += 1;
    }
    let counts = counts.iter().map(|(state, count)| format!("{count} {state}"));
    counts.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[test]
    fn clients_are_synced_behind_waiting_or_refusing() {
        let time = "2026-11-20T22:33:16.5Z";
        let at = |version: &str| json!({"version": version, "time": time});
        let syncz = json!({
            "published": {"generation": 3, "time": time, "types": {
                "Address": {"version": "a3", "resources": 35}, "Authorization": {"version": "p1", "resources": 2}}},
            "config": {"errors": 1, "warnings": 0},
            "clients": [
                {"node": "node-a", "id": "z~1", "connectedSince": time, "types": {
                    "Address": {"sent": at("a3"), "acked": at("a3"), "nack": null},
                    "Authorization": {"sent": at("p1"), "acked": null, "nack": null}}},
                {"node": "node-b", "id": "z~2", "connectedSince": time, "types": {
                    "Address": {"sent": at("a2"), "acked": at("a2"), "nack": null},
                    "Authorization": {"sent": at("p1"), "acked": at("p0"),
                        "nack": {"version": "p1", "time": time, "resources": ["shop/p"], "message": "shop/p: bad"}}}},
                {"node": "node-c", "id": "z~3", "connectedSince": time, "types": {}},
            ],
        });
        let expected = "\
pilot http://p
  published  35 Address (a3), 2 Authorization (p1), generation 3 of 2026-11-20T22:33:16Z
  manifests  1 errors, 0 warnings: what is wrong keeps its last good form

NODE    CLIENT  SINCE                 ADDRESS   AUTHORIZATION       LAST ACK
node-a  z~1     2026-11-20T22:33:16Z  synced    sent, not answered  2026-11-20T22:33:16Z
node-b  z~2     2026-11-20T22:33:16Z  behind    refused             2026-11-20T22:33:16Z
node-c  z~3     2026-11-20T22:33:16Z  not sent  not sent            -
node-b refused Authorization p1 at 2026-11-20T22:33:16Z: shop/p shop/p: bad
";
        assert_eq!(pilot("http://p", &Syncz::deserialize(&syncz).unwrap()), expected);
    }

    #[test]
    fn a_daemon_shows_what_it_holds_and_what_is_wrong() {
        let dump = json!({
            "version": {"version": "0.1.0"},
            "xds": {"connected": false, "lastError": "connection refused",
                "address": {"resources": 35, "lastAck": "2026-11-20T22:33:16Z"},
                "authorization": {"resources": 2, "lastNack": "2026-11-20T22:33:16Z", "lastNackMessage": "x: bad"}},
            "certificates": [
                {"identity": "spiffe://a/ns/b/sa/c", "state": "Available"},
                {"identity": "spiffe://a/ns/b/sa/d", "state": "Unavailable: denied: no pod"}],
            "workloadState": {"u1": {"state": "Up"}, "u2": {"state": "Up"}, "u3": {"state": "Pending"}},
        });
        let expected = "\
DAEMON    VERSION  XDS   ADDRESS                     AUTHORIZATION  PODS             CERTIFICATES
http://d  0.1.0    away  35 at 2026-11-20T22:33:16Z  2              1 Pending, 2 Up  1 Available, 1 Unavailable
http://d: no control plane: connection refused
http://d: refused Authorization at 2026-11-20T22:33:16Z: x: bad
http://d: spiffe://a/ns/b/sa/d: Unavailable: denied: no pod
";
        assert_eq!(daemons(&[("http://d", Dump::deserialize(&dump).unwrap())]), expected);
    }
}
