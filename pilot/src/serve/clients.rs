//! Who is connected, and what each has: for people, and for `meshctl status`.
//!
//! In: what happens on the streams. Out: lists that serialize, one of them as istiod's. Decides nothing.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use metrics::{counter, gauge, histogram};
use proto::envoy::envoy::config::core::v3::Node;
use serde::Serialize;
use serde_json::{Map, Value};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tracing::{debug, info, warn};

use super::{
    ads::text,
    session::{Event, Push},
    types::Type,
    view::View,
};

/// Every connected client.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    all: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    clients: BTreeMap<u64, Client>,
}

/// One stream.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Client {
    #[serde(flatten)]
    who: Identification,
    connected_since: String,
    types: BTreeMap<&'static str, TypeStatus>,
    /// What it was sent last.
    #[serde(skip)]
    view: Option<Arc<View>>,
}

/// How far a client is with one type.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct TypeStatus {
    sent: Option<Sent>,
    acked: Option<Acked>,
    /// The last refusal, if any.
    nack: Option<Nack>,
}

#[derive(Clone, Debug, Serialize)]
struct Sent {
    version: String,
    nonce: String,
    time: String,
    resources: usize,
    removed: usize,
}

#[derive(Clone, Debug, Serialize)]
struct Acked {
    version: String,
    nonce: String,
    time: String,
}

#[derive(Clone, Debug, Serialize)]
struct Nack {
    version: String,
    time: String,
    resources: Vec<String>,
    message: String,
}

/// Who a stream says it is.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Identification {
    /// `node.id`.
    pub id: String,
    /// The node it proved to be on, or says it is.
    pub node: String,
    pub address: Option<SocketAddr>,
    /// Whether it showed a node's token.
    pub authenticated: bool,
    /// The cluster it says it is in.
    pub cluster_id: String,
    /// The version of Istio that it says it is of.
    pub istio_version: String,
}

impl Identification {
    /// Takes what the first request says.
    pub(crate) fn describe(&mut self, node: &Node) {
        self.id.clone_from(&node.id);
        self.cluster_id = text(node, "CLUSTER_ID");
        self.istio_version = text(node, "ISTIO_VERSION");
    }

    /// The kind of proxy, as its id begins.
    fn kind(&self) -> &str {
        self.id.split('~').next().filter(|kind| kind.len() < self.id.len()).unwrap_or_default()
    }

    /// `pod.namespace`, if its id says so.
    fn proxy(&self) -> &str {
        self.id.split('~').nth(2).unwrap_or(&self.id)
    }
}

/// One stream's place in the list; leaving is dropping it.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    clients: &'a Clients,
    key: u64,
    node: String,
    id: String,
}

impl Clients {
    /// Adds a stream that has identified itself.
    pub(crate) fn enter(&self, who: Identification) -> Entry<'_> {
        info!(node = who.node, id = who.id, address = ?who.address, "xds client connected");
        let (node, id) = (who.node.clone(), who.id.clone());
        let mut inner = self.lock();
        inner.next += 1;
        let key = inner.next;
        let client = Client {
            who,
            connected_since: timestamp(SystemTime::now()),
            types: BTreeMap::new(),
            view: None,
        };
        inner.clients.insert(key, client);
        gauge!("pilot_xds").set(u32::try_from(inner.clients.len()).unwrap_or(u32::MAX));
        drop(inner);
        Entry { clients: self, key, node, id }
    }

    /// Everybody, in the order they came.
    pub(crate) fn list(&self) -> Vec<Client> {
        self.lock().clients.values().cloned().collect()
    }

    /// The newest stream of a proxy, which is called by its whole id or by `pod.namespace`.
    pub(crate) fn find(&self, proxy: &str) -> Option<Client> {
        let inner = self.lock();
        let mut clients = inner.clients.values().rev();
        clients.find(|client| client.who.id == proxy || client.who.proxy() == proxy).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while holding it; and if it did, a list for people is still a list.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    /// What it was sent last, if anything.
    pub(crate) fn view(&self) -> Option<&Arc<View>> {
        self.view.as_ref()
    }

    /// Its standing by istiod's names: of each type the nonce that was sent last and the one that was taken last.
    pub(crate) fn sync_status(&self) -> Value {
        let mut status = Map::new();
        let mut put = |key: String, value: &str| {
            if !value.is_empty() {
                status.insert(key, value.into());
            }
        };
        put("cluster_id".into(), &self.who.cluster_id);
        put("proxy".into(), self.who.proxy());
        put("proxy_type".into(), self.who.kind());
        put("istio_version".into(), &self.who.istio_version);
        for of in Type::ALL {
            let Some(standing) = self.types.get(of.name()) else { continue };
            let name = istiod_name(of);
            if let Some(sent) = &standing.sent {
                put(format!("{name}_sent"), &sent.nonce);
            }
            if let Some(acked) = &standing.acked {
                put(format!("{name}_acked"), &acked.nonce);
            }
        }
        Value::Object(status)
    }
}

/// What istiod's page calls a type; the rest in the same manner.
fn istiod_name(of: Type) -> &'static str {
    match of {
        Type::Cluster => "cluster",
        Type::Endpoint => "endpoint",
        Type::Secret => "secret",
        Type::Extension => "extensionconfig",
        Type::Listener => "listener",
        Type::Route => "route",
        Type::Authorization => "authorization",
        Type::Address => "address",
        Type::Workload => "workload",
        Type::NameTable => "nametable",
        Type::ProxyConfig => "proxyconfig",
    }
}

impl Entry<'_> {
    /// Records what is being sent.
    pub(crate) fn sent(&self, push: &Push, view: Option<&Arc<View>>) {
        let (resources, removed) = (push.resources.len(), push.removed.len());
        counter!("pilot_xds_pushes", "type" => push.of.name()).increment(1);
        if let Some(took) = push.written.and_then(|written| written.elapsed().ok()) {
            histogram!("pilot_proxy_convergence_time").record(took);
        }
        debug!(
            node = self.node,
            id = self.id,
            r#type = push.of.name(),
            resources,
            removed,
            "pushed"
        );
        let mut inner = self.clients.lock();
        let Some(client) = inner.clients.get_mut(&self.key) else { return };
        client.view = view.cloned();
        client.types.entry(push.of.name()).or_default().sent = Some(Sent {
            version: push.version.clone(),
            nonce: push.nonce.clone(),
            time: timestamp(SystemTime::now()),
            resources,
            removed,
        });
    }

    /// Records what a request meant.
    pub(crate) fn event(&self, event: Event) {
        match event {
            Event::Subscribed(_) | Event::Stale => {}
            Event::Acked(of) => self.update(of, |status| {
                status.acked = status.sent.as_ref().map(|sent| Acked {
                    version: sent.version.clone(),
                    nonce: sent.nonce.clone(),
                    time: timestamp(SystemTime::now()),
                });
            }),
            Event::Nacked { of, names, message } => {
                counter!("pilot_total_xds_rejects", "type" => of.name()).increment(1);
                warn!(node = self.node, id = self.id, r#type = of.name(), resources = ?names, message, "refused by client");
                self.update(of, |status| {
                    let version = status.sent.as_ref().map(|sent| sent.version.clone());
                    let version = version.unwrap_or_default();
                    let time = timestamp(SystemTime::now());
                    status.nack = Some(Nack { version, time, resources: names, message });
                });
            }
        }
    }

    fn update(&self, of: Type, change: impl FnOnce(&mut TypeStatus)) {
        if let Some(client) = self.clients.lock().clients.get_mut(&self.key) {
            change(client.types.entry(of.name()).or_default());
        }
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let mut inner = self.clients.lock();
        inner.clients.remove(&self.key);
        gauge!("pilot_xds").set(u32::try_from(inner.clients.len()).unwrap_or(u32::MAX));
        drop(inner);
        info!(node = self.node, id = self.id, "xds client gone");
    }
}

/// RFC 3339.
pub(crate) fn timestamp(at: SystemTime) -> String {
    OffsetDateTime::from(at).format(&Rfc3339).unwrap_or_default()
}
