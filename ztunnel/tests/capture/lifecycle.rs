//! Daemons that come, go and are replaced; pods that leave; uninstalling.

use std::{fs, io::ErrorKind, os::fd::AsFd};

use ztunnel::capture::{
    Capture, CaptureConfig, CaptureError, DaemonAway, EnrolledPod, Missing, Scope, uninstall,
};

use crate::bed::{Bed, accept, close, connected, idle};

const NOWHERE: &str = "203.0.113.7:80";

/// Nothing of ours in the pod: rules, routes, sysctls.
fn assert_clean(bed: &Bed) {
    for family in ["-4", "-6"] {
        let rules = bed.pod.ip(&format!("{family} rule show"));
        assert!(!rules.contains("0x111"), "{rules}");
        let routes = bed.pod.ip(&format!("{family} route show table all"));
        assert!(!routes.contains("table 100"), "{routes}");
    }
    for path in ["ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect"] {
        assert_eq!(bed.pod.sysctl(path), "0", "{path}");
    }
}

fn expected(bed: &Bed) -> EnrolledPod {
    EnrolledPod { netns_cookie: bed.pod.netns.cookie(), ips: vec![bed.pod.ip4, bed.pod.ip6] }
}

fn enrolled(capture: &Capture) -> Vec<EnrolledPod> {
    let mut pods = capture.enrolled();
    pods.iter_mut().for_each(|pod| pod.ips.sort());
    pods
}

#[test]
fn a_new_daemon_takes_over_while_the_old_one_drains() {
    let Some(bed) = Bed::new() else { return };
    let old = bed.open();
    let old_daemon = bed.pod.daemon(2);
    old.enrol(&bed.pod.capture(DaemonAway::Refuse), &old_daemon).unwrap();
    let early = bed.pod.connect(NOWHERE).unwrap();

    let new = bed.open();
    assert_eq!(enrolled(&new), [expected(&bed)]);
    let new_daemon = bed.pod.daemon(1);
    new.enrol(&bed.pod.capture(DaemonAway::Refuse), &new_daemon).unwrap();
    for _ in 0..20 {
        let client = bed.pod.connect(NOWHERE).unwrap();
        let accepted = accept(&new_daemon.outbound[0]);
        let original = new.original_destination(accepted.as_fd()).unwrap();
        assert_eq!(original, Some(NOWHERE.parse().unwrap()));
        connected(&client, &accepted);
        connected(&bed.outside.connect("10.77.0.2:80").unwrap(), &accept(&new_daemon.plaintext[0]));
    }
    // What came before the change is still the old daemon's.
    let waiting = old_daemon.outbound.iter().position(|listener| !idle(listener));
    assert!(waiting.is_some());
    close((early, old, old_daemon));
    bed.pod.connect(NOWHERE).unwrap();
    accept(&new_daemon.outbound[0]);
}

#[test]
fn pins_outlive_the_daemon_and_refuse_until_the_next_one_comes() {
    let Some(bed) = Bed::new() else { return };
    let first = bed.open();
    let daemon = bed.pod.daemon(1);
    first.enrol(&bed.pod.capture(DaemonAway::Refuse), &daemon).unwrap();
    close((first, daemon));
    let refused = |why: &str| {
        let error = bed.pod.connect(NOWHERE).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{why}");
    };
    refused("the daemon is gone");
    let second = bed.open();
    refused("the pod is not enrolled again yet");
    let daemon = bed.pod.daemon(1);
    second.enrol(&bed.pod.capture(DaemonAway::Refuse), &daemon).unwrap();
    connected(&bed.pod.connect(NOWHERE).unwrap(), &accept(&daemon.outbound[0]));
}

#[test]
fn a_withdrawn_pod_connects_as_ever_and_keeps_nothing() {
    let Some(bed) = Bed::new() else { return };
    let capture = bed.open();
    let daemon = bed.pod.daemon(2);
    capture.enrol(&bed.pod.capture(DaemonAway::Refuse), &daemon).unwrap();
    assert!(bed.pod.ip("-6 rule show").contains("0x111"));
    capture.withdraw(bed.pod.netns.cookie()).unwrap();

    let (inside, outside) = (bed.pod.listen(8080), bed.outside.listen(8080));
    connected(&bed.pod.connect("[fd77::9]:8080").unwrap(), &accept(&outside));
    connected(&bed.outside.connect("10.77.0.2:8080").unwrap(), &accept(&inside));
    assert_clean(&bed);
    assert_eq!(capture.enrolled(), []);
    let pins = fs::read_dir(bed.pin_directory()).unwrap().flatten();
    let of_pods = pins.filter(|pin| pin.file_name().to_string_lossy().starts_with("pod_"));
    assert_eq!(of_pods.count(), 0);

    capture.withdraw(bed.pod.netns.cookie()).unwrap();
}

#[test]
fn reconciling_withdraws_what_an_earlier_daemon_left_behind() {
    let Some(bed) = Bed::new() else { return };
    let first = bed.open();
    let (daemon, others) = (bed.pod.daemon(1), bed.other.daemon(1));
    first.enrol(&bed.pod.capture(DaemonAway::Refuse), &daemon).unwrap();
    first.enrol(&bed.other.capture(DaemonAway::Refuse), &others).unwrap();
    close((first, daemon));

    let second = bed.open();
    let withdrawn = second.reconcile(&[bed.other.netns.cookie()]).unwrap();
    assert_eq!(withdrawn.len(), 1);
    assert_eq!(withdrawn[0].netns_cookie, bed.pod.netns.cookie());
    assert_clean(&bed);
    let outside = bed.outside.listen(8080);
    connected(&bed.pod.connect("10.77.0.9:8080").unwrap(), &accept(&outside));
    connected(&bed.other.connect(NOWHERE).unwrap(), &accept(&others.outbound[0]));
}

#[test]
fn an_address_reused_by_another_pod_stays_with_it() {
    let Some(bed) = Bed::new() else { return };
    let capture = bed.open();
    let (before, after) = (bed.pod.daemon(1), bed.other.daemon(1));
    let mut first = bed.pod.capture(DaemonAway::Refuse);
    first.ips = vec![bed.other.ip4];
    capture.enrol(&first, &before).unwrap();
    capture.enrol(&bed.other.capture(DaemonAway::Refuse), &after).unwrap();
    capture.withdraw(bed.pod.netns.cookie()).unwrap();
    connected(&bed.outside.connect("10.77.0.3:80").unwrap(), &accept(&after.plaintext[0]));
    connected(&bed.other.connect(NOWHERE).unwrap(), &accept(&after.outbound[0]));
}

#[test]
fn uninstalling_leaves_nothing_behind() {
    let Some(bed) = Bed::new() else { return };
    let capture = bed.open();
    let daemon = bed.pod.daemon(1);
    capture.enrol(&bed.pod.capture(DaemonAway::Refuse), &daemon).unwrap();
    close((capture, daemon));
    uninstall(&bed.config.pin_dir).unwrap();

    assert!(!bed.config.pin_dir.join("aquifer").exists());
    assert_clean(&bed);
    let outside = bed.outside.listen(8080);
    connected(&bed.pod.connect("10.77.0.9:8080").unwrap(), &accept(&outside));
    uninstall(&bed.config.pin_dir).unwrap();
}

#[test]
fn a_machine_that_cannot_capture_is_told_everything_that_is_missing() {
    let Some(bed) = Bed::new() else { return };
    let config = CaptureConfig {
        pin_dir: "/proc".into(),
        cgroup: "/tmp".into(),
        ..CaptureConfig::default()
    };
    match Capture::open(&config).err() {
        Some(CaptureError::Unsupported { missing }) => {
            assert!(matches!(missing[..], [Missing::Bpffs { .. }, Missing::Cgroup { .. }]));
        }
        other => panic!("{other:?}"),
    }
    drop(bed);
}

#[test]
fn a_pod_without_addresses_or_listeners_is_refused() {
    let Some(bed) = Bed::new() else { return };
    let capture = bed.open();
    let mut pod = bed.pod.capture(DaemonAway::Refuse);
    pod.ips.clear();
    let mut daemon = bed.pod.daemon(1);
    assert!(matches!(capture.enrol(&pod, &daemon), Err(CaptureError::NoAddress)));
    daemon.hbone.clear();
    let error = capture.enrol(&bed.pod.capture(DaemonAway::Refuse), &daemon).unwrap_err();
    assert!(matches!(error, CaptureError::Listeners { outbound: 1, plaintext: 1, hbone: 0 }));
    assert_eq!(capture.enrolled(), []);
}

#[test]
fn a_hosts_daemon_is_known_by_its_process_only_while_it_listens() {
    let Some(bed) = Bed::new() else { return };
    let (capture, daemon) = (bed.open(), bed.pod.daemon(1));
    let mut host = bed.pod.capture(DaemonAway::Refuse);
    host.scope = Scope::Host;
    capture.enrol(&host, &daemon).unwrap();
    let outside = bed.outside.listen(8080);
    connected(&bed.pod.connect("10.77.0.9:8080").unwrap(), &accept(&daemon.outbound[0]));

    bed.pod.netns.enter(|| capture.show_daemon()).unwrap().unwrap();
    for at in ["10.77.0.9:8080", "[fd77::9]:8080"] {
        connected(&bed.pod.connect(at).unwrap(), &accept(&outside));
    }
    close(daemon);
    let refused = bed.pod.connect("10.77.0.9:8080").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
    // The next one listens before it shows itself.
    let next = bed.pod.daemon(1);
    capture.enrol(&host, &next).unwrap();
    connected(&bed.pod.connect("10.77.0.9:8080").unwrap(), &accept(&outside));
}
