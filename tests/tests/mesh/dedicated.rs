//! A host without Kubernetes: its own processes are captured by a daemon that runs among them (`PROXY_MODE=dedicated`).

use testbed::daemon::DaemonConfig;
use testbed::manifests::{authorization_policy, from_principal, peer_authentication};
use testbed::{Builder, Daemon, Pod, PodSpec, Process};

use crate::shop::Answer::{Refused, Served};
use crate::shop::{Shop, description};

/// The shop, and a host `shop/vm`: a namespace with a node name of its own, whose processes are not a pod.
pub(crate) struct Hosted {
    pub(crate) shop: Shop,
    pub(crate) vm: Daemon,
}

impl Hosted {
    fn open() -> Option<Hosted> {
        Hosted::of(description(), |_| Vec::new())
    }

    /// As [`Hosted::open`], with more settings; `prepare` sees the host before its daemon starts.
    pub(crate) fn of(
        description: Builder,
        prepare: impl FnOnce(&Shop) -> Vec<(&'static str, String)>,
    ) -> Option<Hosted> {
        let mut shop = Shop::of(description.nodes(&["vm"]).pod(PodSpec::new("shop/vm", "vm")))?;
        // The testbed's own daemon of that node stands outside of the host.
        let node = shop.cluster.daemon_mut("vm").unwrap();
        node.stop().unwrap();
        node.uninstall().unwrap();
        let more = prepare(&shop).into_iter().map(|(key, value)| (key.to_owned(), value.into()));
        let (plan, control) = (shop.cluster.plan(), shop.cluster.control().unwrap());
        let place = shop.pod("shop/vm").place().clone();
        let config = DaemonConfig {
            binary: testbed::binaries::ours("ztunnel").unwrap(),
            node_name: "node-vm".to_owned(),
            control_url: control.url(),
            root_certificate: control.root_certificate(),
            token: control.node_token("node-vm").unwrap(),
            pin_dir: plan.dir().join("bpffs/host"),
            state_dir: plan.dir().join("host"),
            variables: [
                ("PROXY_MODE".to_owned(), "dedicated".into()),
                ("PROXY_WORKLOAD_INFO".to_owned(), "shop/vm/vm".into()),
            ]
            .into_iter()
            .chain(more)
            .collect(),
        };
        let vm = Daemon::start(config, place).unwrap();
        shop.serve("shop/vm");
        Some(Hosted { shop, vm })
    }

    pub(crate) fn to(&self, path: &str) -> String {
        format!("{}:7000", self.shop.pod(path).ip4())
    }

    /// A server of one greeting on a port of the host.
    fn greeting(&self, port: u16) -> Process {
        let listen = format!("TCP6-LISTEN:{port},fork,reuseaddr");
        let words = ["socat", &listen, "SYSTEM:echo hello"];
        let mut server = self.shop.pod("shop/vm").spawn("greeting", &words).unwrap();
        server.wait_listening(port).unwrap();
        server
    }

    fn vm(&self) -> &Pod {
        self.shop.pod("shop/vm")
    }

    /// The addresses that this server gives the host for service `shop/cart`, asked in datagrams.
    fn asks(&self, server: &str) -> String {
        let at = format!("@{server}");
        let name = "cart.shop.svc.cluster.local";
        let words = ["dig", "+short", "+tries=1", "+timeout=5", "+ignore", &at, name];
        let output = self.vm().run(&words).unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Waits until the mesh answers the host's queries to a server that nobody is.
    fn until_answered(&self, server: &str) {
        let expected = self.shop.cluster.service("shop/cart").unwrap().0.to_string();
        let answered = || self.asks(server) == expected;
        testbed::wait::wait_until("an answer of the mesh", crate::shop::IN_FORCE, answered)
            .unwrap();
    }

    fn hears_greeting(&self, from: &str, port: u16) -> bool {
        let to = format!("TCP4:{}:{port},connect-timeout=3", self.shop.pod("shop/vm").ip4());
        let output = self.shop.pod(from).run(&["socat", "-u", &to, "STDOUT"]).unwrap();
        output.stdout == b"hello\n"
    }
}

#[test]
fn a_hosts_processes_and_pods_of_the_mesh_reach_each_other_in_tunnels() {
    let Some(hosted) = Hosted::open() else { return };
    let shop = &hosted.shop;
    let (vm, cart) = (shop.pod("shop/vm"), shop.pod("shop/cart"));
    shop.expect(&hosted.to("shop/cart"), &[("shop/vm", Served)]);
    shop.expect(&hosted.to("shop/vm"), &[("shop/cart", Served), ("data/batch", Served)]);
    let filter = format!("host {} and host {}", vm.ip4(), cart.ip4());
    let tcpdump = shop.cluster.tcpdump("host", &filter).unwrap();
    shop.attempt("shop/vm", &hosted.to("shop/cart")).unwrap();
    shop.attempt("shop/cart", &hosted.to("shop/vm")).unwrap();
    assert_eq!(tcpdump.stop().unwrap().tcp_ports().unwrap(), [15008].into());
    // IPv6 as well, and to itself without the daemon.
    shop.attempt("shop/vm", &format!("[{}]:7000", cart.ip6())).unwrap();
    shop.attempt("shop/vm", "127.0.0.1:7000").unwrap();
    shop.attempt("shop/vm", &hosted.to("shop/vm")).unwrap();
}

#[test]
fn a_host_has_the_identity_of_its_workload_on_both_sides() {
    let Some(hosted) = Hosted::open() else { return };
    let shop = &hosted.shop;
    let callers =
        authorization_policy("shop/callers", "ALLOW", "cart", &from_principal("shop", "vm"));
    let guests =
        authorization_policy("shop/guests", "ALLOW", "vm", &from_principal("data", "batch"));
    shop.cluster.apply("policy.yaml", &(callers + &guests)).unwrap();
    shop.expect(&hosted.to("shop/cart"), &[("shop/vm", Served), ("shop/web", Refused)]);
    shop.expect(&hosted.to("shop/vm"), &[("data/batch", Served), ("shop/web", Refused)]);
}

#[test]
fn what_is_excluded_and_the_daemons_own_connections_are_not_captured() {
    let Some(mut hosted) = Hosted::open() else { return };
    let (_ssh, _other) = (hosted.greeting(22), hosted.greeting(2222));
    hosted.shop.cluster.apply("strict.yaml", &peer_authentication("shop", "STRICT")).unwrap();
    let to = hosted.to("shop/vm");
    hosted.shop.expect(&to, &[("street/stranger", Refused), ("shop/cart", Served)]);
    assert!(hosted.hears_greeting("street/stranger", 22));
    assert!(!hosted.hears_greeting("street/stranger", 2222));
    // Its connections to a new control plane are made while the host is captured.
    hosted.shop.cluster.control_mut().unwrap().restart().unwrap();
    hosted.shop.cluster.delete("strict.yaml").unwrap();
    hosted.shop.expect(&to, &[("street/stranger", Served)]);

    hosted.vm.kill().unwrap();
    hosted.shop.expect(&to, &[("street/stranger", Refused), ("shop/cart", Refused)]);
    hosted.shop.expect(&hosted.to("shop/cart"), &[("shop/vm", Refused)]);
    hosted.shop.attempt("shop/vm", "127.0.0.1:7000").unwrap();
    assert!(hosted.hears_greeting("street/stranger", 22));
    hosted.vm.restart().unwrap();
    hosted.shop.expect(&hosted.to("shop/cart"), &[("shop/vm", Served)]);
}

#[test]
fn a_host_is_captured_at_an_address_that_it_gets_later() {
    let Some(hosted) = Hosted::open() else { return };
    let shop = &hosted.shop;
    let vm = shop.pod("shop/vm");
    let late = shop.cluster.plan().pod_ip4(3, 77).to_string();
    vm.ask(&["ip", "addr", "add", &format!("{late}/32"), "dev", "eth0"]).unwrap();
    // Unknown, it is refused; known, it is captured: the greeting comes through the plaintext listener.
    let log = || hosted.vm.log().unwrap().contains("the host's addresses have changed");
    testbed::wait::wait_until("the new address", crate::shop::IN_FORCE, log).unwrap();
    shop.expect(&format!("{late}:7000"), &[("street/stranger", Served)]);
}

#[test]
fn a_host_whose_ipv6_is_link_local_alone_is_captured() {
    let prepare = |shop: &Shop| {
        let flush = ["ip", "-6", "addr", "flush", "dev", "eth0", "scope", "global"];
        shop.pod("shop/vm").ask(&flush).unwrap();
        Vec::new()
    };
    let Some(hosted) = Hosted::of(description(), prepare) else { return };
    let shop = &hosted.shop;
    let callers =
        authorization_policy("shop/callers", "ALLOW", "cart", &from_principal("shop", "vm"));
    shop.cluster.apply("policy.yaml", &callers).unwrap();
    shop.expect(&hosted.to("shop/cart"), &[("shop/vm", Served), ("shop/web", Refused)]);
    hosted.until_answered("192.0.2.53");

    // An address of the family that comes later, and one that takes the place of the first.
    let (vm, late) = (hosted.vm(), shop.cluster.plan().pod_ip4(3, 77));
    vm.ask(&["ip", "addr", "add", &format!("{}/128", vm.ip6()), "dev", "eth0", "nodad"]).unwrap();
    hosted.until_answered("2001:db8::53");
    let first = format!(
        "ip addr add {late}/32 dev eth0 && ip route replace $(ip route show default) src {late}"
    );
    vm.ask(&["sh", "-c", &first]).unwrap();
    let known = || hosted.vm.log().unwrap().contains(&format!("ips=[{late}"));
    testbed::wait::wait_until("the new address", crate::shop::IN_FORCE, known).unwrap();
    hosted.until_answered("192.0.2.53");
    hosted.until_answered("2001:db8::53");
}

#[test]
fn a_hosts_queries_to_excluded_servers_go_there() {
    let outside = description().pod(PodSpec::new("street/dns", "b"));
    let exclude = |shop: &Shop| {
        let server = format!("{}/32", shop.pod("street/dns").ip4());
        vec![("AQUIFER_EXCLUDE_OUTBOUND_CIDRS", server)]
    };
    let Some(hosted) = Hosted::of(outside, exclude) else { return };
    let street = hosted.shop.pod("street/dns");
    let _server = street.dnsmasq(&["--address=/cluster.local/192.0.2.7"]).unwrap();
    hosted.until_answered("192.0.2.53");
    assert_eq!(hosted.asks(&street.ip4().to_string()), "192.0.2.7");
}
