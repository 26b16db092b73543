//! What has to be asked of the control plane before a name can be answered, where the node does not have everything.
//!
//! In: the names that a query may stand for. Out: the keys of the services that they may be, asked for in the order in
//! which they count: what comes behind the one that the mesh has is of no interest.

use std::sync::Arc;

use mesh::{
    store::Store,
    xds::{Key, Lookup, OnDemand},
};

use super::{
    Client, DnsSection,
    answer::decides,
    candidates::{Candidate, candidates},
};

/// Has the store know what a name stands for; `asker` is the client's uid. Whether the control plane has said so in time:
/// if not, the name is neither known nor unknown.
pub(super) async fn ask(
    on_demand: &OnDemand,
    store: &Store,
    settings: &DnsSection,
    client: &Client<'_>,
    asker: &Arc<str>,
    name: &str,
) -> bool {
    let names = candidates(name, client.namespace, &settings.cluster_domain, client.resolv_conf);
    let mut asked = Vec::new();
    for candidate in &names {
        if let Some(key) = key(settings, client, candidate).filter(|key| !asked.contains(key)) {
            if !on_demand.touch(&key) && on_demand.want(asker, &key).await == Lookup::Unanswered {
                return false;
            }
            asked.push(key);
        }
        if decides(&store.load(), settings, client, candidate) {
            return true;
        }
    }
    true
}

/// The service that a name may be, or be a pod of. A host name of another kind is asked for in the client's own namespace:
/// which others have it cannot be asked.
fn key(settings: &DnsSection, client: &Client<'_>, candidate: &Candidate) -> Option<Key> {
    let domain = &settings.cluster_domain;
    let host = candidate.host.as_str();
    let below = host.strip_suffix(&**domain).and_then(|below| below.strip_suffix(".svc."));
    match below.map(|below| below.split('.').rev().collect::<Vec<_>>()).as_deref() {
        Some([namespace, service, ..]) => Some(Key::Host {
            namespace: (*namespace).into(),
            hostname: format!("{service}.{namespace}.svc.{domain}").into(),
        }),
        Some(_) => None,
        None => Some(Key::Host { namespace: client.namespace.into(), hostname: host.into() }),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::dns::ResolvConf;

    fn check(name: &str, expected: &[&str]) {
        let host = name.to_owned();
        let settings = DnsSection {
            capture: true,
            port: 15053,
            cluster_domain: "cluster.local".into(),
            preferred_namespace: None,
            ipv6: true,
            time_to_live: Duration::from_secs(30),
        };
        let resolv_conf = ResolvConf::default();
        let client = Client { namespace: "shop", network: "", resolv_conf: &resolv_conf };
        let found = key(&settings, &client, &Candidate { host, stripped: None });
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_services_name_says_its_namespace() {
        check("cart.data.svc.cluster.local", &["data/cart.data.svc.cluster.local"]);
    }

    #[test]
    fn a_pods_name_is_one_of_its_service() {
        check("redis-0.redis.data.svc.cluster.local", &["data/redis.data.svc.cluster.local"]);
    }

    #[test]
    fn another_host_is_asked_for_in_the_clients_namespace() {
        check("api.example.com", &["shop/api.example.com"]);
    }

    #[test]
    fn a_name_of_the_domain_itself_is_not_asked_for() {
        check("web.svc.cluster.local", &[]);
    }
}
