//! How much memory the daemon takes, ours or a peer: at rest, for each idle connection, and with many workloads known.
//!
//! In: a cluster, or a number of workloads. Out: rows like those of the loads, with bytes for values.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use testbed::load::Report;
use testbed::wait::{PATIENCE, wait_for};
use testbed::{Builder, Cluster, Daemon, PodSpec, binaries};

use crate::sample::Row;

const CONNECTIONS: u32 = 1000;
/// Memory that has not shrunk for this long has settled.
const SETTLED: Duration = Duration::from_secs(3);

/// Fresh daemons at rest, and the same with idle connections through both.
pub(crate) fn at_rest_and_idle(path: &str, cluster: &mut Cluster) -> Result<Vec<Row>> {
    for node in ["a", "b"] {
        cluster.daemon_mut(node)?.restart()?;
    }
    let server = format!("{}:7000", cluster.pod("mesh/server")?.ip4());
    let client = cluster.pod("mesh/client")?;
    let at_rest = resident(cluster)?;
    // Certificates, tunnels and the allocator's first pages belong to no one connection.
    client.load("rr", &server, &["--connections=16", "--seconds=0.2"])?;
    let before = resident(cluster)?;
    let tool = binaries::ours("load")?.display().to_string();
    let count = CONNECTIONS.to_string();
    let mut command =
        client.place().command(&[&tool, "idle", "--to", &server, "--connections", &count]);
    let mut held = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the idle crowd")?;
    let mut line = String::new();
    BufReader::new(held.stdout.take().context("standard output was piped above")?)
        .read_line(&mut line)?;
    let report: Report =
        serde_json::from_str(&line).with_context(|| format!("reading the report {line:?}"))?;
    ensure!(
        report.errors == 0,
        "{} of {CONNECTIONS} connections failed: {:?}",
        report.errors,
        report.first_error
    );
    let after = resident(cluster)?;
    drop(held.stdin.take());
    ensure!(held.wait()?.success(), "idle connections were lost");
    let each = |at: usize| (after[at] - before[at]) / f64::from(CONNECTIONS);
    Ok(vec![
        row(path, "daemon at rest", at_rest[0].max(at_rest[1]) / 1e6, "MB"),
        row(path, "idle connection, outbound side", each(0), "bytes"),
        row(path, "idle connection, inbound side", each(1), "bytes"),
    ])
}

/// A fresh daemon of ours that knows `count` workloads.
pub(crate) fn with_workloads(count: u32) -> Result<Vec<Row>> {
    let cluster = description(count).start()?;
    let memory = knowing("mesh", &cluster, count)?;
    let applied = one_change(&cluster, count)?;
    let changed = row("mesh", &format!("one changed among {count}"), applied * 1e6, "us");
    Ok(vec![memory, changed])
}

/// As [`with_workloads`], of a peer; how long one change takes is told by our daemon's metric alone.
pub(crate) fn peer_with_workloads(count: u32, binary: &Path) -> Result<Vec<Row>> {
    let cluster = description(count).daemon(binary.to_owned()).start()?;
    Ok(vec![knowing("peer", &cluster, count)?])
}

fn description(count: u32) -> Builder {
    Cluster::builder()
        .nodes(&["a"])
        .ambient("mesh")
        .pod(PodSpec::new("mesh/client", "a"))
        .manifest("many.yaml", &many(count))
        .manifest("one.yaml", &pod(count, "first"))
}

fn knowing(path: &str, cluster: &Cluster, count: u32) -> Result<Row> {
    let daemon = cluster.daemon("a")?;
    wait_for("all workloads to be known", PATIENCE, || {
        let known = daemon.config_dump()?["workloads"].as_array().map_or(0, Vec::len);
        ensure!(known >= count as usize, "the daemon knows {known} workloads of {count}");
        Ok(())
    })?;
    Ok(row(path, &format!("{count} workloads"), resident_of(daemon)? / 1e6, "MB"))
}

/// Seconds the daemon takes to decode one changed workload and to put it in force.
fn one_change(cluster: &Cluster, count: u32) -> Result<f64> {
    let daemon = cluster.daemon("a")?;
    let url = "url=\"type.googleapis.com/istio.workload.Address\"";
    let applied = || -> Result<(f64, f64)> {
        let metric = |name| daemon.metric(name, &[url]);
        // Two pages: what is in the count of the first is in the sum of the second.
        let count = metric("aquifer_xds_apply_seconds_count")?;
        Ok((metric("aquifer_xds_apply_seconds_sum")?, count))
    };
    let before = applied()?;
    cluster.apply("one.yaml", &pod(count, "changed"))?;
    let after = wait_for("the changed workload", PATIENCE, || {
        let now = applied()?;
        ensure!(now.1 > before.1, "nothing was applied yet");
        Ok(now)
    })?;
    Ok((after.0 - before.0) / (after.1 - before.1))
}

fn resident(cluster: &Cluster) -> Result<[f64; 2]> {
    Ok([resident_of(cluster.daemon("a")?)?, resident_of(cluster.daemon("b")?)?])
}

/// What the daemon holds once its allocator has given back what was only needed for a moment: the least that is seen
/// until nothing less is seen for a while.
#[expect(clippy::cast_precision_loss, reason = "memory stays far below 2^52 bytes")]
fn resident_of(daemon: &Daemon) -> Result<f64> {
    let process = daemon.process()?;
    let mut least = (u64::MAX, Instant::now());
    wait_for("memory to settle", PATIENCE, || {
        let resident = process.usage()?.resident_bytes;
        if resident < least.0 {
            least = (resident, Instant::now());
        }
        ensure!(least.1.elapsed() > SETTLED, "it still shrinks");
        Ok(least.0 as f64)
    })
}

/// The rows of `path`, or one that says why there are none: a daemon that lacks something must not cost the others' rows.
pub(crate) fn or_why_not(path: &str, load: &str, found: Result<Vec<Row>>) -> Vec<Row> {
    found.unwrap_or_else(|error| {
        let (path, load) = (path.to_owned(), load.to_owned());
        vec![Row { path, load, note: Some(format!("{error:#}")), ..Row::default() }]
    })
}

fn row(path: &str, load: &str, value: f64, unit: &str) -> Row {
    let (path, load) = (path.to_owned(), load.to_owned());
    Row { path, load, value: Some(value), unit: unit.to_owned(), runs: 1, ..Row::default() }
}

/// As many pods, in deployments of ten, each with a service account of its own.
fn many(count: u32) -> String {
    let mut yaml = String::from(
        "---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: many\n  labels:\n    istio.io/dataplane-mode: ambient\n",
    );
    for at in 0..count {
        yaml.push_str(&pod(at, "first"));
    }
    yaml
}

/// One of many pods, in the given version.
fn pod(at: u32, version: &str) -> String {
    let app = at / 10;
    let (high, middle, low) = (at >> 16, (at >> 8) & 255, at & 255);
    format!(
        "\
---
apiVersion: v1
kind: Pod
metadata:
  name: app-{app}-{at}
  namespace: many
  uid: 00000000-0000-4000-8001-{at:012x}
  labels:
    app: app-{app}
    version: {version}
spec:
  nodeName: node-z
  serviceAccountName: app-{app}
  containers:
  - name: main
    image: testbed
status:
  phase: Running
  hostIP: 10.250.0.1
  podIP: 100.{high}.{middle}.{low}
  podIPs:
  - ip: 100.{high}.{middle}.{low}
  conditions:
  - type: Ready
    status: \"True\"
"
    )
}
