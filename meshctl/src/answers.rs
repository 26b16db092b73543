//! What daemons and pilot answer, as far as tables show it.
//!
//! Fields that are missing take their defaults: Istio's daemons leave out what has its default, and lack what is ours.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// `/config_dump` of a daemon.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Dump {
    pub version: Version,
    pub xds: Option<Xds>,
    pub certificates: Vec<Certificate>,
    pub workload_state: BTreeMap<String, PodState>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Version {
    pub version: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Xds {
    pub connected: bool,
    pub last_error: String,
    pub address: XdsType,
    pub authorization: XdsType,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct XdsType {
    pub resources: usize,
    pub last_ack: Option<String>,
    pub last_nack: Option<String>,
    pub last_nack_message: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Certificate {
    pub identity: String,
    pub state: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PodState {
    pub state: String,
    pub info: PodName,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PodName {
    pub namespace: String,
    pub name: String,
}

/// A workload of `/config_dump`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Workload {
    pub namespace: String,
    pub name: String,
    pub workload_ips: Vec<String>,
    pub node: String,
    pub protocol: String,
    pub service_account: String,
    pub status: String,
    pub authorization_policies: Vec<String>,
}

/// A policy of `/config_dump`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Policy {
    pub namespace: String,
    pub name: String,
    pub scope: String,
    pub action: String,
    /// Rules of clauses of matches.
    pub rules: Vec<Vec<Vec<BTreeMap<String, Value>>>>,
    pub dry_run: bool,
}

/// A connection of `/connections`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct OpenConnection {
    pub pod: String,
    pub direction: String,
    pub source: String,
    pub original_destination: String,
    pub actual_destination: String,
    pub protocol: String,
    pub peer: Option<String>,
    pub age_seconds: u64,
}

/// `/explain`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Explanation {
    pub from: String,
    pub to: String,
    pub outcome: Outcome,
    pub reason: Option<String>,
    pub summary: String,
    pub source: Option<Party>,
    pub hop: Option<Hop>,
    pub policy: Option<Verdict>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Outcome {
    Allowed,
    Denied,
    NoRoute,
    Forwarded,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Party {
    pub uid: String,
    pub identity: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Hop {
    pub kind: String,
    pub dial: Option<String>,
    pub host: Option<String>,
    pub authority: Option<String>,
    pub expect: Vec<String>,
    pub workload: Option<Party>,
    pub service: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Verdict {
    pub policy: Option<String>,
    pub rule: Option<usize>,
    pub dry_run: Vec<String>,
}

/// `/debug/clients` of pilot.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Syncz {
    pub published: Option<Published>,
    pub config: Config,
    pub clients: Vec<Client>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Published {
    pub generation: u64,
    pub time: String,
    pub types: BTreeMap<String, PublishedType>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PublishedType {
    pub version: String,
    pub resources: usize,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Config {
    pub unreadable: Option<String>,
    pub errors: usize,
    pub warnings: usize,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Client {
    pub id: String,
    pub node: String,
    pub connected_since: String,
    pub types: BTreeMap<String, ClientType>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ClientType {
    pub sent: Option<Exchange>,
    pub acked: Option<Exchange>,
    pub nack: Option<Nack>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Exchange {
    pub version: String,
    pub time: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Nack {
    pub version: String,
    pub time: String,
    pub resources: Vec<String>,
    pub message: String,
}
