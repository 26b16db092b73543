//! Peers of the tunnel port that are wrong, broken or hostile: refused with a reason, and nobody else notices.

use anyhow::ensure;
use testbed::manifests::{authorization_policy, from_principal};
use testbed::{binaries, wait_for};

use crate::certificates::{Files, Signer, Validity, issue};
use crate::shop::Answer::{Refused, Served};
use crate::shop::{IN_FORCE, Shop};

pub(crate) const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

/// The words that run `job` of the peer tool against the tunnel port of `shop/cart`.
pub(crate) fn words(shop: &Shop, job: &str, files: Option<&Files>, rest: &[&str]) -> Vec<String> {
    let tool = binaries::ours("peer").unwrap().display().to_string();
    let to = format!("{}:15008", shop.pod("shop/cart").ip4());
    let mut words = vec![tool, job.to_owned(), "--to".to_owned(), to];
    if let Some(Files { certificate, key }) = files {
        words.extend(["--certificate".to_owned(), certificate.display().to_string()]);
        words.extend(["--key".to_owned(), key.display().to_string()]);
    }
    words.extend(rest.iter().map(|word| (*word).to_owned()));
    words
}

/// What the peer tool says when the stranger runs `job` against the tunnel port of `shop/cart`.
pub(crate) fn peer(shop: &Shop, job: &str, files: Option<&Files>, rest: &[&str]) -> Vec<String> {
    let words = words(shop, job, files, rest);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    shop.pod("street/stranger").ask(&words).unwrap().lines().map(str::to_owned).collect()
}

pub(crate) fn certificate(
    shop: &Shop,
    name: &str,
    identity: Option<&str>,
    when: Validity,
) -> Files {
    let data = shop.cluster.control().unwrap().data();
    issue(&shop.cluster.plan().dir(), name, Signer::Mesh(&data), identity, when)
}

/// Does `act`: the daemon then has counted each of `failures` so many times more, has not panicked, and serves everyone else.
pub(crate) fn counted<T>(shop: &Shop, failures: &[(&str, f64)], act: impl FnOnce() -> T) -> T {
    let daemon = shop.cluster.daemon("b").unwrap();
    let count = |reason: &str| {
        let label = format!("reason=\"{reason}\"");
        daemon.metric("aquifer_failures_total", &[&label]).unwrap()
    };
    let counts = || failures.iter().map(|(reason, _)| (*reason, count(reason)));
    let before: Vec<_> = counts().collect();
    let result = act();
    wait_for("the failures to be counted", IN_FORCE, || {
        let found: Vec<_> =
            counts().zip(&before).map(|((reason, now), (_, then))| (reason, now - then)).collect();
        ensure!(found == failures, "{found:?} and not {failures:?} in\n{}", daemon.metrics()?);
        Ok(())
    })
    .unwrap();
    assert!(!daemon.log().unwrap().contains("panicked"));
    shop.attempt("shop/web", &format!("{}:7000", shop.pod("shop/cart").ip4())).unwrap();
    result
}

#[test]
fn a_peer_without_a_good_certificate_gets_no_tunnel() {
    let Some(shop) = Shop::open() else { return };
    let folder = shop.cluster.plan().dir();
    let connect = format!("CONNECT {}:7000", shop.pod("shop/cart").ip4());
    let rows = [
        ("none", None, "no_peer_certificate"),
        (
            "expired",
            Some(certificate(&shop, "expired", Some(WEB), Validity::Expired)),
            "certificate_expired",
        ),
        (
            "early",
            Some(certificate(&shop, "early", Some(WEB), Validity::NotYet)),
            "certificate_expired",
        ),
        (
            "unknown root",
            Some(issue(&folder, "unknown", Signer::Stranger, Some(WEB), Validity::Current)),
            "certificate_untrusted",
        ),
        (
            "other trust domain",
            Some(certificate(
                &shop,
                "other",
                Some("spiffe://elsewhere/ns/shop/sa/web"),
                Validity::Current,
            )),
            "trust_domain_untrusted",
        ),
        (
            "no name",
            Some(certificate(&shop, "nameless", None, Validity::Current)),
            "certificate_invalid",
        ),
    ];
    for (name, files, reason) in rows {
        eprintln!("row: {name}");
        let said =
            counted(&shop, &[(reason, 1.0)], || peer(&shop, "ask", files.as_ref(), &[&connect]));
        assert!(said.len() == 1 && said[0].starts_with("refused: "), "{name}: {said:?}");
    }
}

#[test]
fn a_tunnel_leads_to_this_pods_application_and_nowhere_else() {
    let Some(shop) = Shop::open() else { return };
    let files = certificate(&shop, "good", Some(WEB), Validity::Current);
    let (cart, near) = (shop.pod("shop/cart").ip4(), shop.pod("shop/near").ip4());
    let rows = [
        (format!("CONNECT {cart}:7000"), "200", None),
        (format!("CONNECT {near}:7000"), "400", Some("connect_not_this_pod")),
        ("CONNECT 127.0.0.1:7000".to_owned(), "400", Some("connect_not_this_pod")),
        (format!("CONNECT {cart}"), "400", Some("connect_authority")),
        (format!("CONNECT {cart}:0"), "400", Some("connect_authority")),
        (format!("CONNECT {cart}:99999"), "400", Some("connect_authority")),
        ("CONNECT no.such.host:7000".to_owned(), "503", Some("connect_unknown_host")),
        (format!("CONNECT {cart}:15008"), "503", Some("own_port")),
        (format!("CONNECT {cart}:15006"), "503", Some("own_port")),
        (format!("CONNECT {cart}:9"), "503", Some("dial_refused")),
        (format!("GET {cart}:7000"), "400", Some("connect_method")),
        (format!("CONNECT {cart}:7001"), "200", None),
    ];
    let requests: Vec<&str> = rows.iter().map(|(request, ..)| request.as_str()).collect();
    let mut failures: Vec<(&str, f64)> = Vec::new();
    for reason in rows.iter().filter_map(|(.., reason)| *reason) {
        match failures.last_mut() {
            Some((last, count)) if *last == reason => *count += 1.0,
            Some(_) | None => failures.push((reason, 1.0)),
        }
    }
    let found = counted(&shop, &failures, || peer(&shop, "ask", Some(&files), &requests));
    let expected: Vec<&str> = rows.iter().map(|(_, status, _)| *status).collect();
    let table: Vec<_> = requests.iter().zip(&found).collect();
    assert_eq!(found, expected, "{table:?}");
}

#[test]
fn policy_sees_the_identity_of_the_certificate_and_not_the_address() {
    let Some(shop) = Shop::open() else { return };
    let cart = shop.pod("shop/cart").ip4();
    let yaml =
        authorization_policy("shop/callers", "ALLOW", "cart", &from_principal("shop", "web"));
    shop.cluster.apply("policy.yaml", &yaml).unwrap();
    shop.expect(&format!("{cart}:7000"), &[("shop/web", Served), ("street/stranger", Refused)]);
    let connect = format!("CONNECT {cart}:7000");
    for (name, status) in [("web", "200"), ("near", "401")] {
        let identity = format!("spiffe://cluster.local/ns/shop/sa/{name}");
        let files = certificate(&shop, name, Some(&identity), Validity::Current);
        assert_eq!(peer(&shop, "ask", Some(&files), &[&connect]), [status], "{name}");
    }
}

#[test]
fn garbage_silence_and_floods_end_without_harm() {
    let Some(shop) = Shop::open() else { return };
    let said = counted(&shop, &[("tls_failed", 1.0)], || peer(&shop, "garbage", None, &[]));
    assert_eq!(seconds(&said), 0, "{said:?}");

    let said = counted(&shop, &[("tls_timeout", 1.0)], || peer(&shop, "stall", None, &[]));
    assert!((9..=15).contains(&seconds(&said)), "ten seconds are allowed: {said:?}");

    let files = certificate(&shop, "flood", Some(WEB), Validity::Current);
    let authority = format!("{}:7000", shop.pod("shop/cart").ip4());
    let daemon = shop.cluster.daemon("b").unwrap();
    let streams = |metric| daemon.metric(metric, &["reporter=\"destination\""]).unwrap();
    let (opened, closed) =
        ("istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total");
    let before = (streams(opened), streams(closed));
    let said = peer(&shop, "flood", Some(&files), &["--authority", &authority]);
    // The daemon announces 200. A peer may begin more before it has read that; those are refused, and never opened.
    let held_back: u32 = said[0].rsplit(' ').next().and_then(|count| count.parse().ok()).unwrap();
    assert!((200..400).contains(&held_back), "{said:?}");
    wait_for("the end of all streams", IN_FORCE, || {
        let found = (streams(opened) - before.0, streams(closed) - before.1);
        ensure!(found == (200.0, 200.0), "opened and closed: {found:?}");
        Ok(())
    })
    .unwrap();
    counted(&shop, &[], || ());
}

/// The number in `closed after 10 s` and `cut off after 10 s: reset`.
fn seconds(said: &[String]) -> u64 {
    let number = said[0].split_once(" after ").and_then(|(_, rest)| rest.split_once(" s"));
    number
        .and_then(|(number, _)| number.parse().ok())
        .unwrap_or_else(|| panic!("it does not say how long: {said:?}"))
}
