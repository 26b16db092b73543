//! A host whose certificate is in files: they are followed, and bad ones leave the last good one in force.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use testbed::manifests::{authorization_policy, from_principal};
use testbed::wait_for;

use crate::certificates::{Files, Signer, Validity, issue};
use crate::dedicated::Hosted;
use crate::shop::Answer::{Refused, Served};
use crate::shop::{IN_FORCE, Shop, description};

const VM: &str = "spiffe://cluster.local/ns/shop/sa/vm";

/// What the daemon says when it does not take the files.
const REFUSED: &str = "the files hold no usable identity; what was in force of them stays";

fn issued(shop: &Shop, name: &str, when: Validity) -> Files {
    let data = shop.cluster.control().unwrap().data();
    issue(&shop.cluster.plan().dir(), name, Signer::Mesh(&data), Some(VM), when)
}

struct Followed {
    hosted: Hosted,
    certificate: PathBuf,
    key: PathBuf,
}

impl Followed {
    fn open() -> Option<Self> {
        let mut paths = None;
        let hosted = Hosted::of(description(), |shop| {
            let Files { certificate, key } = issued(shop, "vm", Validity::Current);
            let roots = shop.cluster.control().unwrap().root_certificate();
            let variables = vec![
                ("AQUIFER_CERT_FILE", certificate.display().to_string()),
                ("AQUIFER_KEY_FILE", key.display().to_string()),
                ("AQUIFER_ROOTS_FILE", roots.display().to_string()),
            ];
            paths = Some((certificate, key));
            variables
        })?;
        let (certificate, key) = paths?;
        Some(Self { hosted, certificate, key })
    }

    /// Serial number of the certificate in force.
    fn serial(&self) -> Result<String> {
        let dump = self.hosted.vm.config_dump()?;
        let held = dump["certificates"].as_array().context("certificates")?;
        let own: Vec<_> = held.iter().filter(|one| one["identity"] == VM).collect();
        ensure!(own.len() == 1 && own[0]["state"] == "Available", "{held:?}");
        Ok(own[0]["certChain"][0]["serialNumber"].as_str().context("its number")?.to_owned())
    }

    fn refusals(&self) -> usize {
        self.hosted.vm.log().unwrap().matches(REFUSED).count()
    }

    /// Puts other files in their place.
    fn put(&self, certificate: &[u8], key: &[u8]) {
        for (path, content) in [(&self.certificate, certificate), (&self.key, key)] {
            let next = path.with_extension("next");
            fs::write(&next, content).unwrap();
            fs::rename(&next, path).unwrap();
        }
    }

    fn put_files(&self, files: &Files) {
        self.put(&fs::read(&files.certificate).unwrap(), &fs::read(&files.key).unwrap());
    }
}

#[test]
fn a_hosts_identity_in_files_is_its_identity_on_both_sides() {
    let Some(followed) = Followed::open() else { return };
    let (hosted, shop) = (&followed.hosted, &followed.hosted.shop);
    let callers =
        authorization_policy("shop/callers", "ALLOW", "cart", &from_principal("shop", "vm"));
    shop.cluster.apply("policy.yaml", &callers).unwrap();
    shop.expect(&hosted.to("shop/cart"), &[("shop/vm", Served), ("shop/web", Refused)]);
    // What dials it expects the name in its certificate.
    shop.expect(&hosted.to("shop/vm"), &[("shop/web", Served), ("data/batch", Served)]);
    let log = shop.cluster.control().unwrap().place().logs.join("pilot.log");
    let log = fs::read_to_string(log).unwrap();
    let asked = log.lines().filter(|line| line.contains("certificate issued"));
    let of_host = asked.filter(|line| line.contains(VM)).count();
    assert_eq!(of_host, 1, "by the daemon that was there before, and not by the host's: {log}");
}

#[test]
fn changed_files_are_taken_and_bad_ones_leave_the_last_good_one_in_force() {
    let Some(followed) = Followed::open() else { return };
    let (hosted, shop) = (&followed.hosted, &followed.hosted.shop);
    shop.expect(&hosted.to("shop/cart"), &[("shop/vm", Served)]);
    let mut held = shop.hold("shop/vm", &hosted.to("shop/cart"));
    let mut serial = followed.serial().unwrap();

    let good = |name| issued(shop, name, Validity::Current);
    let read = |path: &PathBuf| fs::read(path).unwrap();
    let (one, two) = (good("one"), good("two"));
    let expired = issued(shop, "expired", Validity::Expired);
    let stranger = issue(
        &shop.cluster.plan().dir(),
        "stranger",
        Signer::Stranger,
        Some(VM),
        Validity::Current,
    );
    let cut = read(&one.certificate)[..200].to_vec();
    // Each has a client that has no tunnel to the host yet: the handshake shows what is in force.
    let rows = [
        ("no PEM", b"certificate".to_vec(), read(&one.key), "shop/web"),
        ("cut off", cut, read(&one.key), "shop/near"),
        ("another's key", read(&one.certificate), read(&two.key), "shop/cart"),
        ("expired", read(&expired.certificate), read(&expired.key), "data/batch"),
        ("unknown root", read(&stranger.certificate), read(&stranger.key), "shop/web"),
    ];
    for (name, certificate, key, client) in rows {
        let before = followed.refusals();
        followed.put(&certificate, &key);
        wait_for(name, IN_FORCE, || {
            ensure!(followed.refusals() > before, "{}", hosted.vm.log()?);
            Ok(())
        })
        .unwrap();
        assert_eq!(followed.serial().unwrap(), serial, "{name}");
        shop.attempt(client, &hosted.to("shop/vm")).unwrap();
        shop.attempt("shop/vm", &hosted.to("shop/cart")).unwrap();
        let fresh = good("fresh");
        followed.put_files(&fresh);
        let former = std::mem::take(&mut serial);
        serial = wait_for("the good files", IN_FORCE, || {
            let found = followed.serial()?;
            ensure!(found != former, "{former} is in force");
            Ok(found)
        })
        .unwrap();
    }
    held.check_running().unwrap();
    // Gone is not good either.
    let before = followed.refusals();
    fs::remove_file(&followed.certificate).unwrap();
    wait_for("the missing file", IN_FORCE, || {
        ensure!(followed.refusals() > before, "{}", hosted.vm.log()?);
        Ok(())
    })
    .unwrap();
    assert_eq!(followed.serial().unwrap(), serial);
    shop.attempt("shop/vm", &hosted.to("shop/cart")).unwrap();
}
