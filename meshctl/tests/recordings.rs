//! `meshctl replay` and `meshctl record` undo each other, shown on what a real istiod sent.

#![expect(clippy::unwrap_used, reason = "a test that cannot set up its scene has failed")]

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
};

use serde_json::Value;

const MESHCTL: &str = env!("CARGO_BIN_EXE_meshctl");

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures/istiod").join(name)
}

/// A replay that is killed when it is dropped.
struct Replay {
    child: Child,
    output: BufReader<ChildStdout>,
    url: String,
}

impl Replay {
    fn start(folder: &Path, options: &[&str]) -> Self {
        let mut child = Command::new(MESHCTL)
            .arg("replay")
            .arg(folder)
            .args(["--listen", "127.0.0.1:0"])
            .args(options)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").expect("the first line");
        let url = format!("http://{address}");
        Self { child, output, url }
    }

    fn recorder(&self, client: &str, folder: &Path, quiet: &str) -> Child {
        let mut command = Command::new(MESHCTL);
        command.args(["record", "--from", &self.url, "--as", client, "--quiet", quiet]).arg(folder);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn record(&self, client: &str, folder: &Path) {
        let status = self.recorder(client, folder, "0.5s").wait().unwrap();
        assert!(status.success(), "{status}");
    }

    /// Waits until it says this of the only client.
    fn wait_for(&mut self, event: &str) {
        let id = "ztunnel~1.1.1.1~ztunnel-node-a.istio-system~istio-system.svc.cluster.local";
        let wanted = format!("{id}: {event}");
        let mut lines = self.output.by_ref().lines();
        assert!(lines.any(|line| line.unwrap() == wanted), "it ended without saying {wanted}");
    }

    fn end(mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        // It has ended already where the test waited for it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn check_inverse(name: &str, clients: &[(&str, &str)]) {
    let folder = tempfile::tempdir().unwrap();
    let replay = Replay::start(&case(name), &[]);
    for (client, prefix) in clients {
        replay.record(client, folder.path());
        let expected = fs::read_dir(case(name)).unwrap().map(|entry| entry.unwrap().path());
        let mut compared = 0;
        for path in expected {
            let file = path.file_name().unwrap().to_str().unwrap();
            if !file.starts_with(&format!("{prefix}.")) || file.ends_with(".churn.json") {
                continue;
            }
            compared += 1;
            let recorded = fs::read(folder.path().join(file)).unwrap_or_default();
            assert!(recorded == fs::read(&path).unwrap(), "{name}/{file} differs");
        }
        assert!(compared >= 4, "{name} has {compared} files for {prefix}");
    }
}

#[test]
fn a_recording_of_a_replayed_ztunnel_is_what_was_replayed() {
    for name in ["01-basic", "02-l4-policy", "04-external", "11-multinetwork"] {
        check_inverse(name, &[("ztunnel/node-a", "ztunnel")]);
    }
}

#[test]
fn a_recording_of_a_replayed_waypoint_is_what_was_replayed() {
    check_inverse(
        "05-waypoint-simple",
        &[
            ("waypoint/orders/waypoint", "waypoint"),
            ("waypoint/shared/shared-wp", "shared-wp"),
            ("waypoint/edge/wl-waypoint", "wl-waypoint"),
            ("ztunnel/node-a", "ztunnel"),
        ],
    );
    check_inverse("12-extensions", &[("waypoint/app/waypoint", "waypoint")]);
}

#[test]
fn a_client_that_acknowledges_everything_ends_the_replay_with_success() {
    let folder = tempfile::tempdir().unwrap();
    let mut replay = Replay::start(&case("02-l4-policy"), &["--until-acked"]);
    let mut recorder = replay.recorder("ztunnel/node-a", folder.path(), "5s");
    replay.wait_for("address: subscribed to 0 names, 0 held");
    assert!(replay.end().success());
    assert!(!recorder.wait().unwrap().success(), "a stream that breaks off is no recording");
}

#[test]
fn a_log_is_played_response_by_response() {
    let folder = tempfile::tempdir().unwrap();
    let replay = Replay::start(&case("01-basic"), &["--churn"]);
    replay.record("ztunnel/node-a", folder.path());
    let text = fs::read_to_string(folder.path().join("ztunnel.address.json")).unwrap();
    let resources: Value = serde_json::from_str(&text).unwrap();
    assert!(resources.get("shop/empty.shop.svc.cluster.local").is_none(), "it was deleted");
    assert_eq!(resources.as_object().unwrap().len(), 34);
}

#[test]
fn resources_written_by_hand_are_played_and_their_changes_follow() {
    let folder = tempfile::tempdir().unwrap();
    let recorded = tempfile::tempdir().unwrap();
    let file = folder.path().join("ztunnel.address.json");
    let text = fs::read_to_string(case("01-basic").join("ztunnel.address.json")).unwrap();
    fs::write(&file, &text).unwrap();
    let mut replay = Replay::start(folder.path(), &[]);
    let mut recorder = replay.recorder("ztunnel/node-a", recorded.path(), "2s");
    replay.wait_for("address: ACK nonce-1");

    let mut resources: Value = serde_json::from_str(&text).unwrap();
    resources["data/redis.data.svc.cluster.local"]["service"]["name"] = "changed".into();
    resources.as_object_mut().unwrap().remove("Kubernetes//Pod/data/redis-1").unwrap();
    let changed = serde_json::to_string_pretty(&resources).unwrap() + "\n";
    fs::write(folder.path().join("next"), &changed).unwrap();
    fs::rename(folder.path().join("next"), &file).unwrap();
    replay.wait_for("address: ACK nonce-3");
    assert!(recorder.wait().unwrap().success());
    let written = recorded.path().join("ztunnel.address.json");
    assert_eq!(fs::read_to_string(&written).unwrap(), changed);
}

#[test]
fn a_folder_without_recordings_and_a_broken_file_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let said = |folder: &Path| {
        let output = Command::new(MESHCTL).arg("replay").arg(folder).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(said(folder.path()).contains("has no recording"));
    fs::write(
        folder.path().join("ztunnel.address.json"),
        r#"{"a": {"@type": "type.googleapis.com/istio.workload.Address", "worklaod": {}}}"#,
    )
    .unwrap();
    let text = said(folder.path());
    assert!(text.contains("ztunnel.address.json: a: ") && text.contains("worklaod"), "{text}");
}
