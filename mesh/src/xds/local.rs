//! Workloads, services and policies from a file or a text of the configuration, beside or instead of a server's.
//!
//! In: YAML in the form of the daemon's dump (so that a dump can be given back), or JSON, which is YAML too. Out: updates of the
//! store. A file is read again when it changes; one that cannot be read or says what cannot be is named, with the resource
//! and the field, and changes nothing.

mod schema;

use std::{
    collections::HashSet, convert::Infallible, fs, io, os::unix::fs::MetadataExt, path::PathBuf,
    sync::Arc, time::Duration,
};

use metrics::counter;
use tokio::time::sleep;
use tracing::{error, info};

use self::schema::Document;
use crate::store::{DecodeError, Store, Update};

/// A changed file is noticed within this time.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Where local configuration is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LocalSource {
    /// A file, followed for as long as the daemon runs.
    File(PathBuf),
    /// The text itself.
    Inline(String),
}

/// Why local configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The file cannot be read.
    #[error("reading {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is no YAML, or not of the form expected.
    #[error("{origin}: {field}: {source}")]
    Form {
        /// The file, or the setting.
        origin: String,
        /// The field, from the outside in.
        field: String,
        /// What is wrong, with line and column.
        source: serde_yaml_ng::Error,
    },
    /// It describes what cannot be.
    #[error("{origin}: {resource}: {source}")]
    Content {
        /// The file, or the setting.
        origin: String,
        /// The resource, such as `workloads[3] (uid)`.
        resource: String,
        /// The field, and what is wrong with it.
        source: DecodeError,
    },
    /// It describes one thing twice.
    #[error("{origin}: {resource} is there twice")]
    Twice {
        /// The file, or the setting.
        origin: String,
        /// The resource's name.
        resource: String,
    },
}

/// Local configuration that is in force.
#[derive(Debug)]
pub struct Local {
    source: LocalSource,
    store: Arc<Store>,
    /// What is in the store because of it.
    held: HashSet<Name>,
    /// The file as it was before it was read last.
    seen: Option<FileState>,
}

/// What takes a resource out of the store.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum Name {
    Address(String),
    Policy(String),
}

/// Reads local configuration.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn parse(text: &str, origin: &str) -> Result<Vec<Update>, LocalError> {
    let document: Document = serde_path_to_error::deserialize(
        serde_yaml_ng::Deserializer::from_str(text),
    )
    .map_err(|error| LocalError::Form {
        origin: origin.to_owned(),
        field: error.path().to_string(),
        source: error.into_inner(),
    })?;
    let updates = document.updates().map_err(|(resource, source)| LocalError::Content {
        origin: origin.to_owned(),
        resource,
        source,
    })?;
    let mut names = HashSet::new();
    for update in &updates {
        if let Some(name) = Name::of(update)
            && !names.insert(name.clone())
        {
            let (Name::Address(resource) | Name::Policy(resource)) = name;
            return Err(LocalError::Twice { origin: origin.to_owned(), resource });
        }
    }
    Ok(updates)
}

impl LocalSource {
    fn state(&self) -> Option<FileState> {
        let Self::File(path) = self else { return None };
        let metadata = fs::metadata(path).ok()?;
        Some(FileState {
            inode: metadata.ino(),
            bytes: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    fn read(&self) -> Result<Vec<Update>, LocalError> {
        match self {
            Self::Inline(text) => parse(text, "LOCAL_XDS"),
            Self::File(path) => {
                let text = fs::read_to_string(path);
                let text =
                    text.map_err(|source| LocalError::Read { path: path.clone(), source })?;
                parse(&text, &path.display().to_string())
            }
        }
    }
}

impl Local {
    /// Puts local configuration in force.
    ///
    /// # Errors
    /// What is wrong with it; then the store is as it was.
    pub fn start(source: LocalSource, store: Arc<Store>) -> Result<Self, LocalError> {
        // Before the file is read: what replaces it from here on is a change.
        let seen = source.state();
        let mut local = Self { source, store, held: HashSet::new(), seen };
        local.reload()?;
        Ok(local)
    }

    /// Follows a file's changes for as long as it is polled. What was read last stays in force while the file is wrong.
    pub async fn follow(mut self) -> Infallible {
        let LocalSource::File(path) = self.source.clone() else {
            return std::future::pending().await;
        };
        loop {
            sleep(LOOK_INTERVAL).await;
            let found = self.source.state();
            if found == self.seen {
                continue;
            }
            self.seen = found;
            match self.reload() {
                Ok(()) => {
                    info!(path = %path.display(), resources = self.held.len(), "local configuration read")
                }
                Err(error) => {
                    counter!("aquifer_local_config_errors_total").increment(1);
                    let reason = std::error::Error::source(&error).map(ToString::to_string);
                    error!(%error, reason, "local configuration is wrong; the last one stays in force");
                }
            }
        }
    }

    fn reload(&mut self) -> Result<(), LocalError> {
        let updates = self.source.read()?;
        let named: HashSet<Name> = updates.iter().filter_map(Name::of).collect();
        let removals: Vec<Update> = self.held.difference(&named).map(Name::removal).collect();
        self.store.apply(updates.into_iter().chain(removals));
        self.held = named;
        Ok(())
    }
}

impl Name {
    fn of(update: &Update) -> Option<Self> {
        match update {
            Update::Workload(workload) => Some(Self::Address((*workload.uid).to_owned())),
            Update::Service(service) => Some(Self::Address((*service.key).to_owned())),
            Update::Policy(policy) => Some(Self::Policy((*policy.key).to_owned())),
            Update::RemoveAddress(_) | Update::RejectPolicy(_) | Update::RemovePolicy(_) => None,
        }
    }

    fn removal(&self) -> Update {
        match self {
            Self::Address(name) => Update::RemoveAddress(name.clone()),
            Self::Policy(name) => Update::RemovePolicy(name.clone()),
        }
    }
}

/// What tells that a file changed.
#[derive(Debug, Eq, PartialEq)]
struct FileState {
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds of the last change of content, name or rights.
    changed: (i64, i64),
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const SHOP: &str = r#"
workloads:
- uid: Kubernetes//Pod/shop/web-1
  name: web-1
  namespace: shop
  workloadIps: [10.0.0.1, "fd00::1"]
  protocol: HBONE
  node: node-a
  status: Unhealthy
  locality: { region: eu }
  authorizationPolicies: [shop/front]
  waypoint: { destination: shop/wp.shop.svc.cluster.local, hboneMtlsPort: 15008 }
  networkGateway: { destination: n2/10.9.9.9 }
  services:
    shop/web.shop.svc.cluster.local: { 80: 8080 }
- uid: other
  workloadIps: [10.0.0.2]
  networkMode: HostNetwork
  services: [shop/web.shop.svc.cluster.local]
services:
- name: web
  namespace: shop
  hostname: web.shop.svc.cluster.local
  vips: [/10.1.0.1, n2/10.1.0.2]
  cidrVips: [{ network: "", cidr: 10.2.0.0/16 }]
  ports: { 80: 8080, 81: 0 }
  loadBalancer: { routingPreferences: [Region, Zone], mode: Failover, healthPolicy: AllowAll }
  ipFamilies: IPv4
  visibility: Namespace
policies:
- name: front
  namespace: shop
  scope: WorkloadSelector
  action: Deny
  rules:
  - - - principals: [{ Exact: cluster.local/ns/shop/sa/a }, { Presence: [] }]
        notSourceIps: [10.0.0.0/8]
        destinationPorts: [80]
        serviceAccounts: [{ namespace: shop, serviceAccount: a }]
"#;

    fn store(text: &str) -> Arc<Store> {
        let store = Store::new();
        Local::start(LocalSource::Inline(text.into()), store.clone()).unwrap();
        store
    }

    #[test]
    fn a_document_in_the_form_of_the_dump_is_taken() {
        let snapshot = store(SHOP).load();
        let web = snapshot.workload("Kubernetes//Pod/shop/web-1").unwrap();
        assert_eq!(web.addresses.len(), 2);
        assert_eq!(web.identity().unwrap().as_str(), "spiffe://cluster.local/ns/shop/sa/default");
        assert_eq!(format!("{:?} {:?}", web.tunnel_protocol, web.health), "Hbone Unhealthy");
        let gateways = [&web.waypoint, &web.network_gateway].map(|one| one.as_ref().unwrap());
        let gateways = gateways.map(|one| format!("{}:{}", one.target, one.hbone_port));
        assert_eq!(gateways, ["shop/wp.shop.svc.cluster.local:15008", "n2/10.9.9.9:15008"]);
        let service = snapshot.service("shop/web.shop.svc.cluster.local").unwrap();
        assert_eq!(service.addresses.len(), 3);
        assert_eq!(snapshot.endpoints(service).unwrap().len(), 2);
        let other = snapshot.workload("other").unwrap();
        let target = other.membership(&service.key).unwrap().target_port(80).unwrap();
        assert_eq!(target.get(), 8080, "the service says where its ports are");
        let policy = snapshot.policies().get("shop/front").unwrap();
        assert_eq!(policy.rules[0].clauses[0].matches[0].principals.any_of.len(), 2);
    }

    fn check_refused(text: &str, expected: &str) {
        let error = parse(text, "LOCAL_XDS").unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }

    #[test]
    fn what_is_wrong_is_named_by_resource_and_field() {
        check_refused("workloads: 5", "LOCAL_XDS: workloads: ");
        check_refused("workloads: [{ uidd: x }]", "LOCAL_XDS: workloads[0].uidd: ");
        check_refused("workloads: [{ uid: '' }]", "workloads[0] (): uid: is empty");
        check_refused("workloads: [{ uid: a, workloadIps: [x] }]", "workloads[0].workloadIps[0]: ");
        check_refused("workloads: [{ uid: a, protocol: QUIC }]", "workloads[0].protocol: ");
        check_refused(
            "workloads: [{ uid: a, waypoint: { destination: nowhere } }]",
            "workloads[0].waypoint.destination: ",
        );
        check_refused("services: [{ vips: [10.0.0.1] }]", "services[0].vips[0]: ");
        check_refused("services: [{ namespace: a }]", "services[0] (a/): hostname: is empty");
        check_refused("policies: [{ action: Log }]", "policies[0].action: ");
        check_refused("workloads: [{ uid: a }, { uid: a }]", "LOCAL_XDS: a is there twice");
        check_refused(": :", "LOCAL_XDS: ");
    }

    #[test]
    fn a_missing_file_is_named() {
        let source = LocalSource::File("/nonexistent/local.yaml".into());
        let error = Local::start(source, Store::new()).unwrap_err();
        assert_eq!(error.to_string(), "reading /nonexistent/local.yaml");
    }

    #[tokio::test]
    async fn a_changed_file_is_read_again_and_a_wrong_one_changes_nothing() {
        const LIMIT: Duration = Duration::from_secs(20);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("local.yaml");
        let write = |text: &str| {
            fs::write(folder.path().join("next"), text).unwrap();
            fs::rename(folder.path().join("next"), &path).unwrap();
        };
        write("workloads: [{ uid: a }, { uid: b }]");
        let store = Store::new();
        let local = Local::start(LocalSource::File(path.clone()), store.clone()).unwrap();
        let mut applied = store.subscribe();
        let following = tokio::spawn(async { match local.follow().await {} });
        let has = |uid: &str| store.load().workload(uid).is_some();
        assert!(has("a") && has("b"));

        write("workloads: [{ uid: a }, { uid: '' }]");
        write("workloads: [{ uid: b }, { uid: long enough for another size }]");
        timeout(LIMIT, applied.changed()).await.unwrap().unwrap();
        assert!(!has("a") && has("b"));
        let before = store.load().generation();
        write(
            "workloads: [{ uid: '' }, { uid: longer than the document before it, by some letters }]",
        );
        tokio::time::sleep(LOOK_INTERVAL * 4).await;
        assert_eq!(store.load().generation(), before, "what cannot be is not applied");
        assert!(has("b"));
        following.abort();
    }
}
