//! What the daemon is told about a pod, as JSON: in the registry's files and on its socket.

use std::{net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// A pod of this node.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodRecord {
    /// Kubernetes' pod UID, or any name that no other pod of the node has.
    pub uid: PodUid,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's service account.
    #[serde(default = "default_account")]
    pub service_account: String,
    /// File of the pod's network namespace, such as `/run/netns/web` or `/proc/1234/ns/net`.
    pub netns: PathBuf,
    /// The pod's addresses, at most one of each family. Empty: the ones its default routes use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpAddr>,
    /// How its traffic is captured.
    #[serde(default)]
    pub capture: CaptureOptions,
}

/// How a pod's traffic is captured.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CaptureOptions {
    /// What happens to connections while no daemon runs.
    #[serde(default)]
    pub without_daemon: WithoutDaemon,
    /// Whose address the pod's applications see on connections out of the mesh.
    #[serde(default)]
    pub source_address: SourceAddress,
    /// What happens to DNS queries.
    #[serde(default, skip_serializing_if = "DnsCapture::is_default")]
    pub dns: DnsCapture,
    /// File of the pod's resolver configuration, resolv.conf(5), as the daemon sees it. Without it, that of a process in
    /// the pod's network namespace is looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolv_conf: Option<PathBuf>,
}

/// What happens to a pod's DNS queries.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum DnsCapture {
    /// What the daemon's setting says.
    #[default]
    Default,
    /// They are captured.
    Capture,
    /// They go to the server that is asked.
    Pass,
}

impl DnsCapture {
    fn is_default(&self) -> bool {
        *self == Self::Default
    }
}

/// What happens to a pod's connections while no daemon runs.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum WithoutDaemon {
    /// They are refused.
    #[default]
    Refuse,
    /// They go through in the clear.
    Pass,
}

/// Whose address an application sees as the source of a connection out of the mesh.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum SourceAddress {
    /// The client's.
    #[default]
    Client,
    /// The pod's own.
    Pod,
}

/// The name of a pod in the registry: a file name, so neither empty nor a path.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct PodUid(Box<str>);

/// Why a text is no [`PodUid`].
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("uid {uid:?} must have 1 to 200 letters, digits, `-`, `_` or `.`, and not begin with `.`")]
pub struct BadUid {
    uid: String,
}

impl PodUid {
    /// Checks a uid.
    ///
    /// # Errors
    /// [`BadUid`] if it could not name a file.
    pub fn parse(uid: &str) -> Result<Self, BadUid> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if uid.is_empty() || uid.len() > 200 || uid.starts_with('.') || !uid.chars().all(allowed) {
            return Err(BadUid { uid: uid.into() });
        }
        Ok(Self(uid.into()))
    }

    /// The uid as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for PodUid {
    type Error = BadUid;

    fn try_from(uid: String) -> Result<Self, Self::Error> {
        Self::parse(&uid)
    }
}

impl From<PodUid> for String {
    fn from(uid: PodUid) -> Self {
        uid.0.into()
    }
}

impl std::fmt::Display for PodUid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

fn default_account() -> String {
    "default".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str, expected: &str) {
        let found = match serde_json::from_str::<PodRecord>(json) {
            Ok(record) => serde_json::to_string(&record).unwrap(),
            Err(error) => error.to_string(),
        };
        assert!(found.starts_with(expected), "{json}\n found    {found}\n expected {expected}");
    }

    #[test]
    fn a_record_needs_uid_namespace_name_and_netns() {
        check(
            r#"{"uid":"a-1","namespace":"shop","name":"web","netns":"/run/netns/web"}"#,
            r#"{"uid":"a-1","namespace":"shop","name":"web","serviceAccount":"default","netns":"/run/netns/web","capture":{"withoutDaemon":"refuse","sourceAddress":"client"}}"#,
        );
        check(r#"{"uid":"a-1","namespace":"shop","name":"web"}"#, "missing field `netns`");
    }

    #[test]
    fn unknown_fields_and_values_are_refused() {
        check(r#"{"uid":"a","nameSpace":"shop"}"#, "unknown field `nameSpace`");
        let open = r#"{"uid":"a","namespace":"s","name":"w","netns":"/n","capture":{"withoutDaemon":"open"}}"#;
        check(open, "unknown variant `open`, expected `refuse` or `pass`");
    }

    #[test]
    fn a_uid_cannot_leave_the_folder() {
        for uid in ["", "../etc/passwd", ".hidden", "a/b", "a b"] {
            assert!(PodUid::parse(uid).is_err(), "{uid}");
        }
    }
}
