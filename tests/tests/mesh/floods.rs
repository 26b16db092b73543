//! Peers that flood the tunnel port, starve it or fall silent: they lose their own tunnels, with a reason that is counted,
//! at a bounded price in memory, while a connection of others goes on.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use testbed::{Daemon, Process, wait_for};

use crate::certificates::{Files, Validity};
use crate::peers::{WEB, certificate, counted, peer, words};
use crate::shop::{IN_FORCE, Shop};

/// What peers may cost while they do their worst.
const BOUND: u64 = 64 << 20;

/// A peer that answers no ping is given up after thirty seconds.
const SILENCE: Duration = Duration::from_secs(60);

/// The shop, a certificate that is good, and a connection of two others that must not notice.
struct Flooded {
    shop: Shop,
    files: Files,
    held: Process,
}

impl Flooded {
    fn open(name: &str) -> Option<Self> {
        let shop = Shop::open()?;
        let files = certificate(&shop, name, Some(WEB), Validity::Current);
        let held = shop.hold("data/batch", &format!("{}:7000", shop.pod("shop/cart").ip4()));
        let flooded = Self { shop, files, held };
        flooded.until_more_is_sent();
        Some(flooded)
    }

    fn daemon(&self) -> &Daemon {
        self.shop.cluster.daemon("b").unwrap()
    }

    fn authority(&self, port: u16) -> String {
        format!("{}:{port}", self.shop.pod("shop/cart").ip4())
    }

    /// Waits until the connection of others has moved on.
    fn until_more_is_sent(&self) {
        let labels = ["reporter=\"destination\"", "source_workload=\"batch\""];
        let sent = || self.daemon().metric("istio_tcp_sent_bytes_total", &labels).unwrap();
        let before = sent();
        wait_for("the connection to go on", IN_FORCE, || {
            ensure!(sent() > before, "it stands still");
            Ok(())
        })
        .unwrap();
    }

    /// Does `act`, in which the daemon must need no more than [`BOUND`] beside what it had.
    fn bounded<T>(&mut self, name: &str, act: impl FnOnce(&Self) -> T) -> T {
        let pid = self.daemon().process().unwrap().pid();
        // The peak begins anew: proc_pid_clear_refs(5).
        fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
        let before = peak(pid).unwrap();
        let result = act(self);
        // The kernel's counts are of whole batches of pages: the peak may seem to be less than what was there.
        let needed = peak(pid).unwrap().saturating_sub(before);
        eprintln!("{name}: {} KiB beside {} KiB", needed >> 10, before >> 10);
        assert!(needed < BOUND, "{name}: {needed} bytes");
        self.until_more_is_sent();
        self.held.check_running().unwrap();
        result
    }

    fn failures(&self, reason: &str) -> f64 {
        let label = format!("reason=\"{reason}\"");
        self.daemon().metric("aquifer_failures_total", &[&label]).unwrap()
    }

    /// Has `peers` do it until they are killed.
    fn abuse(&self, what: &str, port: u16, peers: usize) -> Process {
        let (authority, peers) = (self.authority(port), peers.to_string());
        let rest = [what, "--authority", &authority, "--peers", &peers];
        let words = words(&self.shop, "abuse", Some(&self.files), &rest);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.shop.pod("street/stranger").spawn(what, &words).unwrap()
    }

    /// Streams of the peers that are open.
    fn open_streams(&self) -> f64 {
        let labels = [
            "reporter=\"destination\"",
            "source_principal=\"spiffe://cluster.local/ns/shop/sa/web\"",
        ];
        let count = |name| self.daemon().metric(name, &labels).unwrap();
        count("istio_tcp_connections_opened_total") - count("istio_tcp_connections_closed_total")
    }

    /// Waits until so many peers are given up, and nothing of theirs is open.
    fn until_given_up(&self, peers: f64) {
        wait_for("the peers to be given up", SILENCE, || {
            let found = (self.failures("peer_stalled"), self.open_streams());
            ensure!(found == (peers, 0.0), "given up and open: {found:?}");
            Ok(())
        })
        .unwrap();
    }
}

/// The most that a process has had resident.
fn peak(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: u64 = line.context("VmHWM")?.trim().trim_end_matches(" kB").parse()?;
    Ok(kib << 10)
}

#[test]
fn floods_end_the_tunnels_of_those_who_send_them() {
    let Some(mut flooded) = Flooded::open("flood") else { return };
    const PEERS: usize = 8;
    for what in ["settings", "pings", "rapid-reset", "headers", "continuation"] {
        let said = flooded.bounded(what, |flooded| {
            let (authority, peers) = (flooded.authority(7000), PEERS.to_string());
            let rest = [what, "--authority", &authority, "--peers", &peers];
            counted(&flooded.shop, &[("peer_misbehaved", PEERS as f64)], || {
                peer(&flooded.shop, "abuse", Some(&flooded.files), &rest)
            })
        });
        let ended = |line: &String| line.split_once(" ended: ").map(|(count, _)| count.to_owned());
        let counts: Vec<usize> =
            said.iter().filter_map(ended).map(|count| count.parse().unwrap()).collect();
        assert_eq!(counts.iter().sum::<usize>(), PEERS, "{what}: {said:?}");
    }
}

#[test]
fn handshakes_that_drip_end_at_their_deadline_and_hold_nobody_up() {
    let Some(mut flooded) = Flooded::open("drip") else { return };
    const PEERS: usize = 500;
    flooded.bounded("drip", |flooded| {
        let mut drip = flooded.abuse("drip", 7000, PEERS);
        let opened = flooded.authority(15008);
        wait_for("the peers", IN_FORCE, || {
            let listed = ["ss", "-Htn", "state", "established", "dst", &opened];
            let count = flooded.shop.pod("street/stranger").ask(&listed)?.lines().count();
            ensure!(count == PEERS, "{count}");
            Ok(())
        })
        .unwrap();
        // Another one's handshake is done meanwhile.
        flooded.shop.attempt("shop/near", &flooded.authority(7000)).unwrap();
        drip.check_running().unwrap();
        wait_for("the deadline", SILENCE, || {
            let found = flooded.failures("tls_timeout");
            ensure!(found == PEERS as f64, "{found}");
            Ok(())
        })
        .unwrap();
        wait_for("their ends", IN_FORCE, || {
            ensure!(drip.check_running().is_err(), "it runs");
            let said = drip.log()?;
            ensure!(said.trim() == format!("{PEERS} ended"), "{said}");
            Ok(())
        })
        .unwrap();
    });
}

#[test]
fn peers_that_read_nothing_cost_a_bounded_buffer_and_are_given_up() {
    let Some(mut flooded) = Flooded::open("unread") else { return };
    flooded.bounded("unread", |flooded| {
        let mut unread = flooded.abuse("unread", 7002, 20);
        wait_for("their streams", IN_FORCE, || {
            let open = flooded.open_streams();
            ensure!(open == 20.0, "{open}");
            Ok(())
        })
        .unwrap();
        flooded.until_given_up(20.0);
        unread.check_running().unwrap();
    });
}

#[test]
fn peers_that_vanish_without_a_word_are_given_up() {
    let Some(mut flooded) = Flooded::open("vanish") else { return };
    flooded.bounded("hold", |flooded| {
        let mut hold = flooded.abuse("hold", 7000, 50);
        wait_for("their streams", IN_FORCE, || {
            let open = flooded.open_streams();
            ensure!(open == 50.0, "{open}");
            Ok(())
        })
        .unwrap();
        hold.check_running().unwrap();
        let down = ["ip", "link", "set", "eth0", "down"];
        flooded.shop.pod("street/stranger").ask(&down).unwrap();
        flooded.until_given_up(50.0);
    });
}
