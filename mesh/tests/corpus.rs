//! Runs each file of the fuzz targets' corpora as an ordinary test.

use std::{fs, path::Path};

#[path = "../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "public for the fuzz targets, which are another crate")]
mod targets;

fn run(target: &str, function: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let entries = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("a readable folder").path());
    let mut count = 0;
    for path in entries {
        function(&fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())));
        count += 1;
    }
    assert!(count > 0, "{} is empty", folder.display());
}

#[test]
fn spiffe() {
    run("spiffe", targets::spiffe);
}

#[test]
fn authority() {
    run("authority", targets::authority);
}

#[test]
fn address_decode() {
    run("address_decode", targets::address_decode);
}

#[test]
fn authorization_decode() {
    run("authorization_decode", targets::authorization_decode);
}

#[test]
fn policy_match() {
    run("policy_match", targets::policy_match);
}

#[test]
fn baggage() {
    run("baggage", targets::baggage);
}

#[test]
fn proxy_v2() {
    run("proxy_v2", targets::proxy_v2);
}

#[test]
fn xds_response() {
    run("xds_response", targets::xds_response);
}

#[test]
fn local_xds() {
    run("local_xds", targets::local_xds);
}

#[test]
fn crl() {
    run("crl", targets::crl);
}

#[test]
fn peer_chain() {
    run("peer_chain", targets::peer_chain);
}
