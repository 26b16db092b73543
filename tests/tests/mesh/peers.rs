//! Peers of the tunnel port that are wrong, broken or hostile: refused with a reason, and nobody else notices.

use testbed::binaries;
use testbed::manifests::{authorization_policy, from_principal};

use crate::certificates::{Files, Signer, Validity, issue};
use crate::shop::Answer::{Refused, Served};
use crate::shop::Shop;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

/// What the peer tool says when the stranger runs `job` against the tunnel port of `shop/cart`.
fn peer(shop: &Shop, job: &str, files: Option<&Files>, rest: &[&str]) -> Vec<String> {
    let tool = binaries::ours("peer").unwrap().display().to_string();
    let to = format!("{}:15008", shop.pod("shop/cart").ip4());
    let mut words = vec![tool, job.to_owned(), "--to".to_owned(), to];
    if let Some(Files { certificate, key }) = files {
        words.extend(["--certificate".to_owned(), certificate.display().to_string()]);
        words.extend(["--key".to_owned(), key.display().to_string()]);
    }
    words.extend(rest.iter().map(|word| (*word).to_owned()));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    shop.pod("street/stranger").ask(&words).unwrap().lines().map(str::to_owned).collect()
}

fn certificate(shop: &Shop, name: &str, identity: Option<&str>, when: Validity) -> Files {
    let data = shop.cluster.control().unwrap().data();
    issue(&shop.cluster.plan().dir(), name, Signer::Mesh(&data), identity, when)
}

/// The daemon has counted `reason`, has not panicked, and serves everyone else.
fn check_calm(shop: &Shop, reason: &str) {
    let daemon = shop.cluster.daemon("b").unwrap();
    let label = format!("reason=\"{reason}\"");
    let count = daemon.metric("aquifer_failures_total", &[&label]).unwrap();
    assert!(count >= 1.0, "no {label} in\n{}", daemon.metrics().unwrap());
    assert!(!daemon.log().unwrap().contains("panicked"));
    shop.attempt("shop/web", &format!("{}:7000", shop.pod("shop/cart").ip4())).unwrap();
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
        let said = peer(&shop, "ask", files.as_ref(), &[&connect]);
        assert!(said.len() == 1 && said[0].starts_with("refused: "), "{name}: {said:?}");
        eprintln!("row: {name}: {said:?}");
        check_calm(&shop, reason);
    }
}

#[test]
fn a_tunnel_leads_to_this_pods_application_and_nowhere_else() {
    let Some(shop) = Shop::open() else { return };
    let files = certificate(&shop, "good", Some(WEB), Validity::Current);
    let (cart, near) = (shop.pod("shop/cart").ip4(), shop.pod("shop/near").ip4());
    let rows = [
        (format!("CONNECT {cart}:7000"), "200"),
        (format!("CONNECT {near}:7000"), "400"),
        ("CONNECT 127.0.0.1:7000".to_owned(), "400"),
        (format!("CONNECT {cart}"), "400"),
        (format!("CONNECT {cart}:0"), "400"),
        (format!("CONNECT {cart}:99999"), "400"),
        ("CONNECT no.such.host:7000".to_owned(), "503"),
        (format!("CONNECT {cart}:15008"), "503"),
        (format!("CONNECT {cart}:15006"), "503"),
        (format!("CONNECT {cart}:9"), "503"),
        (format!("GET {cart}:7000"), "400"),
        (format!("CONNECT {cart}:7001"), "200"),
    ];
    let requests: Vec<&str> = rows.iter().map(|(request, _)| request.as_str()).collect();
    let found = peer(&shop, "ask", Some(&files), &requests);
    let expected: Vec<&str> = rows.iter().map(|(_, status)| *status).collect();
    let table: Vec<_> = requests.iter().zip(&found).collect();
    assert_eq!(found, expected, "{table:?}");
    for reason in ["connect_authority", "connect_not_this_pod", "connect_method", "own_port"] {
        check_calm(&shop, reason);
    }
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
    let said = peer(&shop, "garbage", None, &[]);
    assert!(
        said[0].starts_with("closed after 0 s") || said[0].starts_with("cut off after 0 s"),
        "{said:?}"
    );
    check_calm(&shop, "tls_failed");

    let said = peer(&shop, "stall", None, &[]);
    assert!(
        said[0].contains(" after 1") || said[0].contains(" after 9"),
        "ten seconds are allowed: {said:?}"
    );
    check_calm(&shop, "tls_timeout");

    let files = certificate(&shop, "flood", Some(WEB), Validity::Current);
    let authority = format!("{}:7000", shop.pod("shop/cart").ip4());
    let said = peer(&shop, "flood", Some(&files), &["--authority", &authority]);
    // The limit that the daemon announces, and the one stream that h2 lets wait for its turn.
    assert!(["held back after 200", "held back after 201"].contains(&said[0].as_str()), "{said:?}");
    shop.attempt("shop/web", &authority).unwrap();
}
