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
fn dns() {
    run("dns", targets::dns);
}

#[test]
fn zds() {
    run("zds", targets::zds);
}

#[test]
fn pod_record() {
    run("pod_record", targets::pod_record);
}

#[test]
fn proxy_config() {
    run("proxy_config", targets::proxy_config);
}

#[test]
fn resolv_conf() {
    run("resolv_conf", targets::resolv_conf);
}

#[test]
fn settings() {
    run("settings", targets::settings);
}
