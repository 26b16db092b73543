//! Which names a queried name may stand for.
//!
//! In: the name and the pod's search domains. Out: the names to look up, in order. Whether there is anything by these
//! names is of no interest here.

use super::{ResolvConf, resolv_conf::MAX_NAME};

/// Names looked up for one query at most. Ordinary configurations make fewer than twenty; a pod may write its own file, in
/// which each domain ends in the next.
const MOST: usize = 64;

/// A name to look up.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Candidate {
    /// The whole name.
    pub(super) host: String,
    /// The name without the search domain that the pod's resolver had put behind it, if it had.
    pub(super) stripped: Option<String>,
}

/// The names that `name` may stand for: itself, itself below the search domains; then the same for what is left of it
/// without each search domain that it ends in.
///
/// A resolver puts search domains behind names with fewer dots than `ndots` only, so that only those are completed here,
/// and only to what the pod's own resolver could have made of them. What is too long for a name is none.
pub(super) fn candidates(
    name: &str,
    namespace: &str,
    cluster_domain: &str,
    conf: &ResolvConf,
) -> Vec<Candidate> {
    let kubernetes = Kubernetes::new(namespace, cluster_domain);
    let mut all: Vec<Candidate> = Vec::new();
    // Whether there is room for more.
    let mut add = |host: String, stripped: Option<&str>| {
        if host.len() <= MAX_NAME && !all.iter().any(|known| known.host == host) {
            all.push(Candidate { host, stripped: stripped.map(str::to_owned) });
        }
        all.len() < MOST
    };
    add(name.to_owned(), None);
    kubernetes.completed(name, conf).all(|host| add(host, None));
    for domain in &conf.search {
        let left = name.strip_suffix(&**domain).and_then(|left| left.strip_suffix('.'));
        let Some(left) = left.filter(|left| !left.is_empty() && is_relative(left, conf)) else {
            continue;
        };
        let has_room = add(left.to_owned(), Some(left))
            && kubernetes.completed(left, conf).all(|host| add(host, Some(left)));
        if !has_room {
            break;
        }
    }
    all
}

fn is_relative(name: &str, conf: &ResolvConf) -> bool {
    name.matches('.').count() < usize::from(conf.ndots)
}

/// The search domains that Kubernetes gives to pods.
struct Kubernetes {
    namespace: String,
    services: String,
    cluster: String,
}

impl Kubernetes {
    fn new(namespace: &str, cluster_domain: &str) -> Self {
        Self {
            namespace: format!("{namespace}.svc.{cluster_domain}"),
            services: format!("svc.{cluster_domain}"),
            cluster: cluster_domain.to_owned(),
        }
    }

    /// The name below those of the pod's search domains that can make a service's name of it, the likeliest first; then
    /// below those that are not Kubernetes'.
    fn completed<'a>(
        &'a self,
        name: &'a str,
        conf: &'a ResolvConf,
    ) -> impl Iterator<Item = String> + 'a {
        let labels = if is_relative(name, conf) { name.split('.').count() } else { usize::MAX };
        let (namespace, services, cluster) = (&self.namespace, &self.services, &self.cluster);
        let likely = match (labels, name.ends_with(".svc")) {
            (1, _) => [Some(namespace), None],
            (2, _) => [Some(services), Some(namespace)],
            (3, true) => [Some(cluster), Some(services)],
            (3, false) => [Some(services), None],
            (4, true) => [Some(cluster), None],
            _ => [None; 2],
        };
        let searched = |domain: &&str| conf.search.iter().any(|search| **search == **domain);
        let own = [namespace, services, cluster];
        let others = conf
            .search
            .iter()
            .filter(move |search| labels != usize::MAX && own.iter().all(|own| **own != ***search));
        likely
            .into_iter()
            .flatten()
            .map(String::as_str)
            .filter(searched)
            .chain(others.map(|domain| &**domain))
            .map(move |domain| format!("{name}.{domain}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `name -> stripped` for each candidate.
    fn check(conf: &ResolvConf, name: &str, expected: &str) {
        let found = candidates(name, "shop", "cluster.local", conf).into_iter().map(|candidate| {
            match candidate.stripped {
                Some(stripped) => format!("{} <- {stripped}", candidate.host),
                None => candidate.host,
            }
        });
        assert_eq!(found.collect::<Vec<_>>().join(" | "), expected, "{name}");
    }

    fn kubernetes() -> ResolvConf {
        ResolvConf::of_kubernetes("shop", "cluster.local")
    }

    // node-proxy.md §8: the expansions by label count.
    #[test]
    fn names_are_completed_by_their_number_of_labels() {
        for (name, expected) in [
            ("cart", "cart | cart.shop.svc.cluster.local"),
            (
                "cart.data",
                "cart.data | cart.data.svc.cluster.local | cart.data.shop.svc.cluster.local",
            ),
            (
                "cart.data.svc",
                "cart.data.svc | cart.data.svc.cluster.local | cart.data.svc.svc.cluster.local",
            ),
            ("pod.cart.data", "pod.cart.data | pod.cart.data.svc.cluster.local"),
            ("pod.cart.data.svc", "pod.cart.data.svc | pod.cart.data.svc.cluster.local"),
            ("www.example.com.de", "www.example.com.de"),
            ("a.b.c.d.e", "a.b.c.d.e"),
        ] {
            check(&kubernetes(), name, expected);
        }
    }

    #[test]
    fn each_search_domain_at_the_end_is_taken_off() {
        check(
            &kubernetes(),
            "www.example.com.shop.svc.cluster.local",
            "www.example.com.shop.svc.cluster.local | www.example.com <- www.example.com \
             | www.example.com.svc.cluster.local <- www.example.com \
             | www.example.com.shop <- www.example.com.shop \
             | www.example.com.shop.svc <- www.example.com.shop.svc",
        );
        check(
            &kubernetes(),
            "cart.cluster.local",
            "cart.cluster.local | cart.cluster.local.svc.cluster.local \
             | cart <- cart | cart.shop.svc.cluster.local <- cart",
        );
        // A domain alone is no name with a domain behind it.
        check(
            &kubernetes(),
            "svc.cluster.local",
            "svc.cluster.local | svc.cluster.local.svc.cluster.local \
             | svc <- svc | svc.shop.svc.cluster.local <- svc",
        );
    }

    // §11.11: the pod's own search list and `ndots`.
    #[test]
    fn a_pods_own_search_domains_count_and_no_others() {
        let corp = ResolvConf::parse("search corp.example\noptions ndots:5\n");
        check(&corp, "cart", "cart | cart.corp.example");
        check(
            &corp,
            "db.corp.example",
            "db.corp.example | db.corp.example.corp.example | db <- db",
        );
        check(
            &corp,
            "cart.shop.svc.cluster.local",
            "cart.shop.svc.cluster.local | cart.shop.svc.cluster.local.corp.example",
        );
        check(&ResolvConf::parse(""), "cart.shop", "cart.shop");
    }

    #[test]
    fn a_name_with_as_many_dots_as_ndots_is_taken_as_it_is() {
        let mut conf = kubernetes();
        conf.ndots = 1;
        check(&conf, "cart.data", "cart.data");
        check(&conf, "cart", "cart | cart.shop.svc.cluster.local");
        check(&conf, "www.example.com.svc.cluster.local", "www.example.com.svc.cluster.local");
    }
    #[test]
    fn candidates_are_names_and_few() {
        // Each domain ends in the next, and each is put behind what is left without each.
        let below =
            |count: i32| -> Vec<String> { (1..=count).rev().map(|n| format!("d{n}")).collect() };
        let domains: Vec<String> = (1..=32).map(|count| below(count).join(".")).collect();
        let conf = ResolvConf::parse(&format!("search {}\noptions ndots:15\n", domains.join(" ")));
        let name = format!("cart.{}", below(13).join("."));
        assert_eq!(candidates(&name, "shop", "cluster.local", &conf).len(), MOST);
        let long = vec!["abcdefghi"; 15].join(".");
        let longest = "b".repeat(MAX_NAME);
        let conf = ResolvConf::parse(&format!("search {long}.de {longest}\noptions ndots:15\n"));
        check(&conf, "cart", &format!("cart | cart.{long}.de"));
        check(&conf, &long, &long);
        check(&conf, &"c".repeat(MAX_NAME + 1), "");
    }
}
