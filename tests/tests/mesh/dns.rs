//! Names: what pods are told by the mesh, and what by the server behind it.
//!
//! The server is dnsmasq in `street/dns`, outside of the mesh. It knows names of `outside.test`, and that there is nothing
//! below `cluster.local`: whatever is answered there, the mesh has answered.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use testbed::{Builder, Cluster, PodSpec, Process, wait_for};

use crate::{
    privilege,
    shop::{IN_FORCE, description},
};

const WEB: &str = "shop/web";

/// A cluster whose pods ask by name.
struct Names {
    cluster: Cluster,
    server: Process,
    _programs: Vec<Process>,
}

impl Names {
    fn open() -> Option<Names> {
        Names::of(names())
    }

    fn of(description: Builder) -> Option<Names> {
        if !privilege::granted() {
            return None;
        }
        let cluster = description.start().unwrap();
        let text = "x".repeat(250);
        let big = format!("--txt-record=big.outside.test,{text},{text},{text},{text}");
        let records = [
            "--local=/cluster.local/",
            "--local=/outside.test/",
            "--host-record=www.outside.test,192.0.2.7,2001:db8::7",
            "--cname=alias.outside.test,www.outside.test",
            &big,
        ];
        let server = cluster.pod("street/dns").unwrap().dnsmasq(&records).unwrap();
        let programs = vec![cluster.pod("shop/cart").unwrap().nginx("the cart").unwrap()];
        let names = Names { cluster, server, _programs: programs };
        // The pod's own record may come a moment after its capture.
        names.until("web.shop.svc.cluster.local", |found| found.is_empty());
        Some(names)
    }

    fn run(&self, words: &[&str]) -> Result<String> {
        self.cluster.pod(WEB)?.ask(words)
    }

    /// What `dig` says of a name in `shop/web`.
    fn dig(&self, arguments: &[&str]) -> String {
        let fixed = ["dig", "+tries=1", "+timeout=9", "+nosearch"];
        self.run(&[&fixed, arguments].concat()).unwrap()
    }

    /// The records that `dig` gets, in order.
    fn records(&self, arguments: &[&str]) -> Vec<String> {
        let said = self.dig(&[&["+short"], arguments].concat());
        let mut records: Vec<String> = said.lines().map(str::to_owned).collect();
        records.sort();
        records
    }

    /// Waits until the mesh tells the address of a service that was just made.
    fn until(&self, name: &str, expected: impl Fn(&[String]) -> bool) {
        wait_for(&format!("the records of {name}"), IN_FORCE, || {
            let found = self.records(&[name]);
            ensure!(expected(&found), "found {found:?}");
            Ok(())
        })
        .unwrap();
    }

    fn service(&self, path: &str) -> [String; 2] {
        let (ip4, ip6) = self.cluster.service(path).unwrap();
        [ip4.to_string(), ip6.to_string()]
    }

    /// Status and flags of an answer.
    fn header(&self, arguments: &[&str]) -> (String, String) {
        let said = self.dig(arguments);
        let after = |mark: &str, end: char| {
            let (_, rest) = said.split_once(mark).with_context(|| said.clone()).unwrap();
            rest.split(end).next().unwrap_or_default().trim().to_owned()
        };
        (after("status: ", ','), after(";; flags:", ';'))
    }
}

fn names() -> Builder {
    description()
        .pod(PodSpec::new("street/dns", "b"))
        .pod(PodSpec::new("data/db-0", "a").label("tier", "db"))
        .pod(PodSpec::new("data/db-1", "b").label("tier", "db"))
        .manifest("db.yaml", &service("data/db", "tier: db", "None"))
        .manifest("page.yaml", &service("shop/page", "app: cart", "10.250.0.2"))
        .dns_server("street/dns")
}

fn service(path: &str, selector: &str, cluster_ip: &str) -> String {
    let (namespace, name) = path.split_once('/').unwrap();
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\n\
         spec:\n  selector:\n    {selector}\n  clusterIP: {cluster_ip}\n  ports:\n  - port: 80\n"
    )
}

#[test]
fn services_are_found_by_each_form_of_their_names() {
    let Some(names) = Names::open() else { return };
    let [ip4, ip6] = names.service("shop/cart");
    for name in ["cart.shop.svc.cluster.local", "cart.shop.svc", "cart.shop", "cart"] {
        assert_eq!(names.records(&[name, "A"]), std::slice::from_ref(&ip4), "{name}");
        assert_eq!(names.records(&[name, "AAAA"]), std::slice::from_ref(&ip6), "{name}");
        assert_eq!(names.records(&["+tcp", name, "A"]), std::slice::from_ref(&ip4), "{name}");
        // By the C library, with the pod's search domains.
        let found = names.run(&["getent", "ahosts", name]).unwrap();
        assert!(found.contains(&ip4) && found.contains(&ip6), "{name}: {found}");
    }
    for name in ["page.shop.svc.cluster.local", "page.shop", "page"] {
        let page = names.run(&["curl", "-sS", "--max-time", "10", &format!("http://{name}/")]);
        assert_eq!(page.unwrap(), "the cart", "{name}");
    }
    let (status, flags) = names.header(&["cart.shop.svc.cluster.local"]);
    assert_eq!((&*status, &*flags), ("NOERROR", "qr aa rd ra"));
}

#[test]
fn headless_services_and_their_pods_have_names() {
    let Some(names) = Names::open() else { return };
    let ip4 = |path: &str| names.cluster.pod(path).unwrap().ip4().to_string();
    let mut both = [ip4("data/db-0"), ip4("data/db-1")];
    both.sort();
    assert_eq!(names.records(&["db.data.svc.cluster.local"]), both);
    assert_eq!(names.records(&["db.data"]), both);
    for pod in ["db-0", "db-1"] {
        let name = format!("{pod}.db.data.svc.cluster.local");
        assert_eq!(names.records(&[&name]), [ip4(&format!("data/{pod}"))]);
    }
    assert_eq!(names.header(&["db-7.db.data.svc.cluster.local"]).0, "NXDOMAIN");
}

#[test]
fn what_the_mesh_does_not_know_is_answered_by_the_server_that_was_asked() {
    let Some(names) = Names::open() else { return };
    assert_eq!(names.records(&["www.outside.test", "A"]), ["192.0.2.7"]);
    assert_eq!(names.records(&["www.outside.test", "AAAA"]), ["2001:db8::7"]);
    assert_eq!(names.records(&["+tcp", "www.outside.test", "A"]), ["192.0.2.7"]);
    assert_eq!(names.records(&["alias.outside.test"]), ["192.0.2.7", "www.outside.test."]);
    let (status, flags) = names.header(&["absent.outside.test"]);
    assert_eq!((&*status, &*flags), ("NXDOMAIN", "qr rd ra"));
    assert_eq!(names.header(&["www.elsewhere.test"]).0, "REFUSED");
    // Other types of names of the mesh are the server's matter.
    assert_eq!(names.header(&["cart.shop.svc.cluster.local", "SRV"]).0, "NXDOMAIN");
    let found = names.run(&["getent", "hosts", "www.outside.test"]).unwrap();
    assert!(found.starts_with("2001:db8::7"), "{found}");
    // The answer seems to come from the server, and it has come from there.
    let server = names.cluster.pod("street/dns").unwrap().ip4();
    assert!(names.dig(&["www.outside.test"]).contains(&format!("SERVER: {server}#53")));
    assert!(names.server.log().unwrap().contains(&format!(
        "query[A] www.outside.test from {}",
        names.cluster.pod(WEB).unwrap().ip4()
    )));
}

#[test]
fn a_known_name_without_such_an_address_is_no_error() {
    let ipv4 = service("shop/old", "app: cart", "10.250.0.1");
    let Some(names) = Names::of(names().manifest("old.yaml", &ipv4)) else { return };
    names.until("old.shop.svc.cluster.local", |found| found == ["10.250.0.1"]);
    let (status, flags) = names.header(&["old.shop.svc.cluster.local", "AAAA"]);
    assert_eq!((&*status, &*flags), ("NOERROR", "qr aa rd ra"));
}

#[test]
fn answers_too_long_for_a_datagram_come_by_connection() {
    let Some(names) = Names::open() else { return };
    let (_, flags) = names.header(&["+ignore", "+noedns", "big.outside.test", "TXT"]);
    assert!(flags.contains("tc"), "{flags}");
    let whole = names.dig(&["+noedns", "big.outside.test", "TXT"]);
    assert!(whole.contains("Truncated, retrying in TCP mode"), "{whole}");
    assert_eq!(whole.matches(&"x".repeat(250)).count(), 4);
}

#[test]
fn without_its_server_a_pod_is_told_so_and_still_knows_the_mesh() {
    let Some(mut names) = Names::open() else { return };
    names.server.kill().unwrap();
    for arguments in [&["www.outside.test"][..], &["+tcp", "www.outside.test"]] {
        let asked = Instant::now();
        assert_eq!(names.header(arguments).0, "SERVFAIL");
        assert!(asked.elapsed() < Duration::from_secs(5));
    }
    assert_eq!(names.records(&["cart.shop"]), [names.service("shop/cart")[0].clone()]);
    let metrics = names.cluster.daemon("a").unwrap().metrics().unwrap();
    let failed = metrics.lines().find(|line| {
        line.starts_with("istio_dns_upstream_failures_total") && line.contains("\"tcp\"")
    });
    let expected = "{request_query_type=\"a\",request_protocol=\"tcp\",\
                    source_canonical_service=\"web\",source_canonical_revision=\"latest\"} 1";
    assert_eq!(failed, Some(&*format!("istio_dns_upstream_failures_total{expected}")));
}

#[test]
fn each_query_is_counted_and_told_at_level_debug() {
    let Some(names) = Names::of(names().variable("RUST_LOG", "info,dns=debug")) else { return };
    let daemon = names.cluster.daemon("a").unwrap();
    let requests = |protocol: &str, kind: &str| {
        let labels = [
            format!("request_query_type=\"{kind}\""),
            format!("request_protocol=\"{protocol}\""),
            "source_canonical_service=\"web\"".to_owned(),
        ];
        let labels = labels.each_ref().map(String::as_str);
        daemon.metric("istio_dns_requests_total", &labels).unwrap()
    };
    let before = (requests("udp", "a"), requests("tcp", "aaaa"));
    names.records(&["cart.shop", "A"]);
    names.records(&["+tcp", "www.outside.test", "AAAA"]);
    assert_eq!((requests("udp", "a"), requests("tcp", "aaaa")), (before.0 + 1.0, before.1 + 1.0));
    let of_web = "src.workload=\"web\" src.namespace=\"shop\"";
    for line in [
        format!(
            "debug\tdns\tquery\t{of_web} query=\"a\" domain=\"cart.shop.\" result=\"mesh\" endpoints=1"
        ),
        format!(
            "debug\tdns\tquery\t{of_web} query=\"aaaa\" domain=\"www.outside.test.\" result=\"forwarded\""
        ),
    ] {
        wait_for("the query in the log", IN_FORCE, || {
            let log = daemon.log()?;
            ensure!(log.contains(&line), "no {line} in {log}");
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn a_connection_that_asks_nothing_is_closed_after_five_seconds() {
    let Some(names) = Names::open() else { return };
    let server = names.cluster.pod("street/dns").unwrap().ip4();
    let began = Instant::now();
    // Reads to the end of the connection, and sends nothing.
    names.run(&["timeout", "20", "socat", "-u", &format!("TCP:{server}:53"), "-"]).unwrap();
    let lasted = began.elapsed();
    assert!((5..10).contains(&lasted.as_secs()), "{lasted:?}");
}

#[test]
fn a_pods_own_search_domains_and_ndots_are_honoured() {
    let Some(mut names) = Names::of(names().pod(PodSpec::new("shop/late", "a"))) else { return };
    let path = "shop/late";
    let spec = names.cluster.pod(path).unwrap().spec().clone();
    names.cluster.remove_pod(path).unwrap();
    let server = names.cluster.pod("street/dns").unwrap().ip4();
    let late = names.cluster.add_pod(spec).unwrap();
    // Registered anew, so that the daemon reads it at once.
    late.set_resolv_conf(&format!(
        "nameserver {server}\nsearch data.svc.cluster.local\noptions ndots:1\n"
    ))
    .unwrap();
    let daemon = names.cluster.daemon("a").unwrap();
    daemon.unregister(&late).unwrap();
    daemon.register(&late).unwrap();
    let dig = |name: &str| late.ask(&["dig", "+short", "+nosearch", name]);
    wait_for("the pod's own search domains", IN_FORCE, || {
        // No name of this pod's: it does not search its own namespace.
        let found = dig("cart")?;
        ensure!(found.is_empty(), "found {found}");
        Ok(())
    })
    .unwrap();
    assert_eq!(dig("cart.shop").unwrap(), "", "it has as many dots as ndots");
    assert_eq!(dig("db").unwrap().lines().count(), 2, "it is below the pod's own search domain");
    let full = dig("cart.shop.svc.cluster.local").unwrap();
    assert_eq!(full.trim(), names.service("shop/cart")[0]);
}

#[test]
fn pods_outside_the_mesh_and_pods_that_opted_out_ask_as_ever() {
    let Some(names) = Names::of(names().variable("ISTIO_META_DNS_CAPTURE", "false")) else {
        return;
    };
    for path in [WEB, "street/stranger"] {
        let pod = names.cluster.pod(path).unwrap();
        let said = pod.ask(&["dig", "cart.shop.svc.cluster.local"]).unwrap();
        assert!(said.contains("NXDOMAIN"), "{path}: {said}");
    }
}
