//! The demo: a mesh of two nodes in one machine, told step by step. Ends with success only if every claim held.
#![forbid(unsafe_code)]

mod cast;
mod enforcement;
mod outage;
mod story;
mod traffic;
mod waypoint;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::Parser;
use testbed::{binaries, claim, teardown};

use crate::cast::Cast;
use crate::story::Story;

/// Shows a two-node ambient mesh that captures, encrypts, authorizes and refuses. Needs root.
#[derive(Parser)]
struct Cli {
    /// Leaves the cluster up and prints commands to try.
    #[arg(long, conflicts_with = "down")]
    keep: bool,
    /// Removes what `--keep` left up, and ends.
    #[arg(long)]
    down: bool,
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    if cli.down {
        for plan in claim::kept()? {
            teardown::remove(plan)?;
            println!("removed {}", plan.dir().display());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let programs =
        ["nginx", "redis-server", "redis-cli", "iperf3", "socat", "curl", "tcpdump", "ip"];
    binaries::require(&programs)?;
    let start = Instant::now();
    let mut story = Story::new();
    story.chapter("A cluster of network namespaces");
    let mut cast = Cast::assemble().context("building the cluster")?;
    introduce(&story, &cast, start);
    traffic::tell(&mut story, &cast)?;
    enforcement::tell(&mut story, &cast)?;
    let waypoint = waypoint::tell(&mut story, &cast)?;
    outage::tell(&mut story, &mut cast)?;
    if cli.keep {
        let all_held = story.end(start.elapsed());
        suggest(&story, &cast)?;
        cast.keep()?;
        std::mem::forget(waypoint);
        return Ok(code(all_held));
    }
    outage::tell_the_end(&mut story, cast)?;
    Ok(code(story.end(start.elapsed())))
}

fn code(all_held: bool) -> ExitCode {
    if all_held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn introduce(story: &Story, cast: &Cast, start: Instant) {
    story.say("Every pod is a namespace with its own eth0; each node has a daemon (ztunnel); one pilot reads a folder of YAML.");
    for pod in cast.cluster.pods() {
        let spec = pod.spec();
        let side = if spec.namespace == "street" { "outside the mesh" } else { "in the mesh" };
        story.say(&format!(
            "{:<16} node-{}  {:<11} {:<16} {side}",
            spec.path(),
            spec.node,
            pod.ip4().to_string(),
            pod.ip6().to_string()
        ));
    }
    story.say(&format!("Manifests: {}", cast.cluster.manifest_dir().display()));
    story.say(&format!("Up after {:.1} s.", start.elapsed().as_secs_f64()));
}

/// What to try in a cluster that stays.
fn suggest(story: &Story, cast: &Cast) -> Result<()> {
    let meshctl = binaries::ours("meshctl")?.display().to_string();
    let node = cast.cluster.daemon("b")?.place();
    let cart = format!("{}:80", cast.pod("shop/cart")?.ip4());
    story.say("The cluster stays up. To try:");
    story.say(&cast.shown("shop/web", &["curl", "-sS", &format!("http://{cart}/")]));
    story.say(&node.shown(&[&meshctl, "workloads"]));
    story.say(&node.shown(&[&meshctl, "explain", "--from", "shop/web", "--to", &cart]));
    story.say(&format!("# edit the files in {}", cast.cluster.manifest_dir().display()));
    story.say("cargo xtask demo --down    (removes it)");
    Ok(())
}
