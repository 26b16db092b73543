//! A pod's resolver configuration, resolv.conf(5).
//!
//! In: the file's text. Out: servers, search domains and options, read as the C library reads them: what it would pass
//! over is passed over, limits included. Which file is a pod's is found elsewhere.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// The C library looks at no more servers.
const MAX_NAMESERVERS: usize = 3;
/// Search domains looked at: Kubernetes' own limit.
const MAX_SEARCH: usize = 32;
/// Bytes of a name (RFC 1035 §2.3.4) as text: nothing can be below a longer domain.
pub(super) const MAX_NAME: usize = 253;

/// What a pod's resolver was told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ResolvConf {
    /// Whom it asks, in order.
    pub nameservers: Vec<SocketAddr>,
    /// What it puts behind names, in order; lower case, without a dot at either end.
    pub search: Vec<Box<str>>,
    /// Names with fewer dots are searched for before they are taken as they are. 0 to 15, default 1.
    pub ndots: u8,
    /// How long it waits for one server. 1 to 30 s.
    pub timeout: Option<Duration>,
    /// How often it asks each server. 1 to 5, default 2.
    pub attempts: u32,
}

impl Default for ResolvConf {
    fn default() -> Self {
        Self { nameservers: Vec::new(), search: Vec::new(), ndots: 1, timeout: None, attempts: 2 }
    }
}

impl ResolvConf {
    /// Reads the text of a file.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") if conf.nameservers.len() < MAX_NAMESERVERS => {
                    let ip = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                    conf.nameservers.extend(ip.map(|ip| SocketAddr::new(ip, 53)));
                }
                // The last one counts.
                Some("search") => conf.search = words.filter_map(domain).take(MAX_SEARCH).collect(),
                Some("domain") => conf.search = words.take(1).filter_map(domain).collect(),
                Some("options") => words.for_each(|word| conf.option(word)),
                Some(_) | None => {}
            }
        }
        conf
    }

    /// What Kubernetes writes for a pod with its usual policy; without servers.
    pub fn of_kubernetes(namespace: &str, cluster_domain: &str) -> Self {
        let search = [
            format!("{namespace}.svc.{cluster_domain}"),
            format!("svc.{cluster_domain}"),
            cluster_domain.to_owned(),
        ];
        Self { search: search.map(Into::into).into(), ndots: 5, ..Self::default() }
    }

    fn option(&mut self, word: &str) {
        let Some((name, value)) = word.split_once(':') else { return };
        let Ok(value) = value.parse::<u32>() else { return };
        match name {
            "ndots" => self.ndots = value.min(15) as u8,
            "timeout" => self.timeout = Some(Duration::from_secs(value.clamp(1, 30).into())),
            "attempts" => self.attempts = value.clamp(1, 5),
            _ => {}
        }
    }
}

/// A search domain; the root is none, and neither is what no name can end in.
fn domain(word: &str) -> Option<Box<str>> {
    let domain = word.trim_matches('.');
    let is_one = (1..=MAX_NAME).contains(&domain.len());
    is_one.then(|| domain.to_ascii_lowercase().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_file_is_read_as_the_c_library_reads_it() {
        let conf = ResolvConf::parse(
            "# written by the kubelet\n\
             search shop.svc.cluster.local svc.cluster.local. Cluster.Local\n\
             nameserver 10.96.0.10\nnameserver fd00::a\nnameserver nonsense\n\
             nameserver fe80::1%eth0\nnameserver 10.0.0.3\nnameserver 10.0.0.4\n\
             options ndots:5 timeout:3 attempts:9 edns0 ndots:x\n",
        );
        let servers: Vec<String> = conf.nameservers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.96.0.10:53", "[fd00::a]:53", "10.0.0.3:53"]);
        assert_eq!(
            conf.search,
            ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"].map(Into::into)
        );
        assert_eq!((conf.ndots, conf.timeout, conf.attempts), (5, Some(Duration::from_secs(3)), 5));
    }

    #[test]
    fn the_last_search_list_counts_and_a_domain_is_one() {
        assert_eq!(ResolvConf::parse("search a b\ndomain c d\n").search, ["c".into()]);
        assert_eq!(ResolvConf::parse("domain c\nsearch .\n").search, []);
    }

    #[test]
    fn a_domain_longer_than_a_name_is_passed_over() {
        let labels = |count: usize| vec!["a"; count].join(".");
        let (longest, longer) = (labels(127), labels(128));
        let conf = ResolvConf::parse(&format!("search {longer} {longest} {}\n", labels(30_000)));
        assert_eq!((longest.len(), conf.search), (MAX_NAME, vec![longest.into()]));
        assert_eq!(ResolvConf::parse(&format!("domain {longer}\n")).search, []);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_within_the_limits(text in "(search|domain|nameserver|options|[ \n.:a-z0-9])*") {
            let conf = ResolvConf::parse(&text);
            proptest::prop_assert!(conf.nameservers.len() <= 3 && conf.ndots <= 15);
            proptest::prop_assert!(conf.search.iter().all(|domain| !domain.starts_with('.') && !domain.ends_with('.')));
        }
    }
}
