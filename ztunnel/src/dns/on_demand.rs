//! What has to be asked of the control plane before a name can be answered, where the node does not have everything.
//!
//! In: the names that a query may stand for. Out: the keys of the services that they may be. Which of them counts is decided
//! once the control plane has answered.

use std::sync::Arc;

use mesh::xds::{Key, Lookup, OnDemand};

use super::{Client, DnsSection, candidates::candidates};

/// Has the store know what a name may stand for; `asker` is the client's uid. Whether the control plane has said so in time: if not, the name is neither
/// known nor unknown.
pub(super) async fn ask(
    on_demand: &OnDemand,
    settings: &DnsSection,
    client: &Client<'_>,
    asker: &Arc<str>,
    name: &str,
) -> bool {
    for key in keys(settings, client, name) {
        if !on_demand.touch(&key) && on_demand.want(asker, &key).await == Lookup::Unanswered {
            return false;
        }
    }
    true
}

/// The services that a name may be, or be a pod of. A host name of another kind is asked for in the client's own namespace:
/// which others have it cannot be asked.
fn keys(settings: &DnsSection, client: &Client<'_>, name: &str) -> Vec<Key> {
    let domain = &settings.cluster_domain;
    let names = candidates(name, client.namespace, domain, client.resolv_conf);
    let mut keys = Vec::new();
    for candidate in names {
        let host = candidate.host;
        let below = host.strip_suffix(&**domain).and_then(|below| below.strip_suffix(".svc."));
        let key = match below.map(|below| below.split('.').rev().collect::<Vec<_>>()).as_deref() {
            Some([namespace, service, ..]) => Key::Host {
                namespace: (*namespace).into(),
                hostname: format!("{service}.{namespace}.svc.{domain}").into(),
            },
            Some(_) => continue,
            None => Key::Host { namespace: client.namespace.into(), hostname: host.into() },
        };
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::dns::ResolvConf;

    fn check(name: &str, expected: &[&str]) {
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
        let found: Vec<String> =
            keys(&settings, &client, name).iter().map(ToString::to_string).collect();
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
