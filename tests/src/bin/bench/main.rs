//! The bench: our mesh beside direct TCP, a plaintext relay and a peer, row by row, in one run.
//!
//! Conditions, each for a reason that was measured: reno in the namespaces (BBR paces veth and hides the proxies), and all
//! again with the host's own; 64 remembered ends (TIME_WAIT fills the ports); local ports from 32768, because the daemon
//! takes those below for connections in the name of clients; nodes pinned to a CPU each for the latency of one connection;
//! rows beside foreign load dropped and said so.
#![forbid(unsafe_code)]

mod load_rows;
mod machine;
mod memory;
mod names;
mod rig;
mod sample;
mod table;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Parser;
use testbed::binaries;

use crate::load_rows::{ALL, Load, is_wanted};
use crate::rig::{Congestion, Rig};
use crate::sample::{Row, Sample};

/// Measures the mesh beside direct TCP, a plaintext relay and a peer. Needs root, and a machine that does nothing else.
#[derive(Parser)]
struct Cli {
    /// Also writes the rows to a file, as a JSON list.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also measures this binary in place of our daemon; it is started with the same environment.
    #[arg(long, value_name = "PATH")]
    peer: Option<PathBuf>,
    /// How many undisturbed runs a value is the median of.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of a run.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Rows to measure; all if none is named.
    rows: Vec<String>,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    load_rows::check(&cli.rows)?;
    binaries::require(&["ip", "iperf3", "taskset"])?;
    let mut rows = Vec::new();
    if ALL.iter().any(|load| is_wanted(&cli.rows, load.name))
        || is_wanted(&cli.rows, "memory")
        || is_wanted(&cli.rows, "fair")
    {
        rows.extend(measure(&cli, Congestion::Reno, "reno")?);
        let host = host_congestion_control()?;
        if host != "reno" {
            rows.extend(measure(&cli, Congestion::Host, &host)?);
        }
    }
    for (name, count) in [("workloads-10000", 10_000), ("workloads-100000", 100_000)] {
        if is_wanted(&cli.rows, name) {
            let mut found = memory::with_workloads(count)?;
            if let Some(peer) = &cli.peer {
                let of_peer = memory::peer_with_workloads(count, peer);
                found.extend(memory::or_why_not("peer", name, of_peer));
            }
            println!("{}", table::render(&found));
            rows.extend(found);
        }
    }
    if is_wanted(&cli.rows, "dns") {
        let found = names::measure(cli.rounds, cli.seconds)?;
        println!("{}", table::render(&found));
        rows.extend(found);
    }
    if let Some(path) = &cli.json {
        let text = serde_json::to_string_pretty(&rows)?;
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// All rows wanted, under one congestion control; memory only under reno, since it does not depend on it.
fn measure(cli: &Cli, congestion: Congestion, name: &str) -> Result<Vec<Row>> {
    let mut rig = Rig::build(congestion, cli.peer.as_deref())?;
    println!("congestion control {name}, median of {} runs of {} s", cli.rounds, cli.seconds);
    let (load, iperf3) = rig.check_against_iperf3(cli.seconds)?;
    println!("the load tool moves {load:.0} MB/s directly, iperf3 {iperf3:.0} MB/s\n");
    let mut rows = Vec::new();
    for load in ALL.iter().filter(|load| is_wanted(&cli.rows, load.name)) {
        rows.extend(measure_load(cli, &rig, load, name));
    }
    if congestion == Congestion::Reno && is_wanted(&cli.rows, "fair") {
        rows.extend(measure_fairness(cli, &rig, name)?);
    }
    if congestion == Congestion::Reno && is_wanted(&cli.rows, "memory") {
        for (path, cluster) in &mut rig.clusters {
            let found = memory::at_rest_and_idle(path, cluster);
            rows.extend(memory::or_why_not(path, "memory", found));
        }
    }
    println!("{}", table::render(&rows));
    Ok(rows)
}

/// One load through every lane, round by round. A lane that lacks quiet runs gets as many rounds again, then it stays so.
fn measure_load(cli: &Cli, rig: &Rig, load: &Load, congestion_control: &str) -> Vec<Row> {
    let mut samples: Vec<Vec<Sample>> = rig.lanes.iter().map(|_| Vec::new()).collect();
    let mut failures: Vec<Option<String>> = rig.lanes.iter().map(|_| None).collect();
    for _ in 0..2 * cli.rounds {
        for (at, lane) in rig.lanes.iter().enumerate() {
            let quiet = samples[at].iter().filter(|sample| !sample.is_disturbed()).count();
            if quiet >= cli.rounds || failures[at].is_some() {
                continue;
            }
            match lane.measure(load, cli.seconds) {
                Ok(sample) => samples[at].push(sample),
                Err(error) => failures[at] = Some(format!("{error:#}")),
            }
        }
    }
    let lanes = rig.lanes.iter().zip(samples).zip(failures);
    lanes
        .map(|((lane, samples), failure)| {
            let row = Row::of(lane.name, load, congestion_control, &samples);
            Row { note: failure.or(row.note.clone()), ..row }
        })
        .collect()
}

/// What one pod gets, alone and while another floods the same path.
fn measure_fairness(cli: &Cli, rig: &Rig, congestion_control: &str) -> Result<Vec<Row>> {
    let [alone, flooded] = load_rows::FAIR;
    let mut rows = Vec::new();
    for lane in &rig.lanes {
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for _ in 0..cli.rounds {
            let Some(sample) = lane.measure_flooded(flooded, cli.seconds)? else { break };
            with.push(sample);
            without.push(lane.measure(alone, cli.seconds)?);
        }
        if !with.is_empty() {
            rows.push(Row::of(lane.name, alone, congestion_control, &without));
            rows.push(Row::of(lane.name, flooded, congestion_control, &with));
        }
    }
    Ok(rows)
}

fn host_congestion_control() -> Result<String> {
    let name = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control");
    Ok(name.context("reading the host's congestion control")?.trim().to_owned())
}
