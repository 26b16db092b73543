//! Applications that ask for connections by SOCKS5 instead of dialing themselves.

use std::net::Ipv4Addr;

use anyhow::ensure;
use testbed::wait_for;

use crate::shop::{IN_FORCE, Shop, description};

/// What `shop/web` gets that asks for port 7100 of `ip`, in hexadecimal.
fn asked(shop: &Shop, ip: Ipv4Addr) -> anyhow::Result<String> {
    let target: String = ip.octets().iter().map(|byte| format!("\\{byte:03o}")).collect();
    // Version, no authentication; CONNECT to an IPv4 address; the port.
    let request = format!("printf '\\005\\001\\000\\005\\001\\000\\001{target}\\033\\274'");
    let dial = "timeout 10 socat -t 5 - TCP:127.0.0.1:15080";
    let command = format!("{request} | {dial} | od -An -v -tx1 | tr -d ' \\n'");
    shop.pod("shop/web").ask(&["sh", "-c", &command])
}

#[test]
fn what_is_asked_for_by_socks_goes_the_way_of_what_is_dialed() {
    let Some(shop) = Shop::of(description().variable("UNSTABLE_ENABLE_SOCKS5", "true")) else {
        return;
    };
    let cart = shop.pod("shop/cart");
    let words = ["socat", "TCP-LISTEN:7100,fork,reuseaddr", "SYSTEM:echo hello"];
    let mut server = cart.spawn("greeter", &words).unwrap();
    server.wait_listening(7100).unwrap();
    // The method, success, then the application's own bytes.
    let hello = format!("0500{}{}", "05000001000000000000", "68656c6c6f0a");
    wait_for("the answer", IN_FORCE, || {
        let found = asked(&shop, cart.ip4())?;
        ensure!(found.trim() == hello, "found {found:?}");
        Ok(())
    })
    .unwrap();
    // The log tells of the pod, whose loopback address the application dialed.
    let authority = format!("dst.hbone_addr={}:7100 ", cart.ip4());
    let source = format!("src.addr={}:", shop.pod("shop/web").ip4());
    wait_for("the tunnel in the log", IN_FORCE, || {
        let log = shop.cluster.daemon("a")?.log()?;
        let mut lines = log.lines().filter(|line| line.contains(&authority));
        ensure!(lines.any(|line| line.contains(&source)), "{log}");
        Ok(())
    })
    .unwrap();
    // Whoever would reach the port itself is refused, by tunnel too.
    let failures = |reason| {
        let label = format!("reason=\"{reason}\"");
        shop.cluster.daemon("b").unwrap().metric("aquifer_failures_total", &[&label]).unwrap()
    };
    let before = failures("own_port");
    assert!(shop.attempt("shop/web", &format!("{}:15080", cart.ip4())).is_err());
    wait_for("the refusal", IN_FORCE, || {
        ensure!(failures("own_port") > before, "none");
        Ok(())
    })
    .unwrap();
}
