//! Every build, lint and test job of the project: `cargo xtask JOB`.
//!
//! In: the command line. Out: processes run, each announced by its command line; files in the target and tools
//! directories. What a job needs and does not find, it installs and says so.
#![forbid(unsafe_code)]

mod ci;
mod command;
mod debian;
mod ebpf;
mod envoy;
mod fuzz;
mod kube_apiserver;
mod place;
mod run;
mod tidy;

use std::{ffi::OsString, num::NonZeroU32, time::Duration};

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use place::Place;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Every build, lint and test job of the project")]
struct Cli {
    #[command(subcommand)]
    job: Job,
}

#[derive(Subcommand)]
enum Job {
    /// Builds the kernel programs that ztunnel embeds; does nothing when nothing has changed.
    ///
    /// Takes the first compiler that fits: $EBPF_CARGO and $EBPF_RUSTC; Debian's rustc-web; the pinned rustup
    /// toolchain with its library sources. Installs what is missing: on Debian as root with apt, else with rustup.
    Ebpf(EbpfOptions),
    /// Shows a two-node mesh at work (root). Arguments are the demo's, such as --keep and --down.
    Demo(PassedOn),
    /// Runs all tests, those that need a kernel included if run as root. Arguments are cargo test's.
    Test(PassedOn),
    /// Measures the mesh against direct TCP and a plaintext relay (root). Arguments are the bench's.
    Bench(PassedOn),
    /// Installs a stock Envoy among the tools, which some tests run; `test` does it too.
    Envoy,
    /// Builds an API server of Kubernetes among the tools, which pilot's tests run; `test` does it too. Installs the
    /// compiler that it needs.
    KubeApiserver,
    /// Fuzzes the readers of foreign bytes with libFuzzer: one target, or each. Installs `g++` on Debian as root.
    Fuzz(FuzzOptions),
    /// Checks the rules of the tree: arrows between crates, sizes and names of files, where unsafe may be.
    Tidy,
    /// Runs everything that must pass before a change lands, except the tests.
    Ci(Offline),
    /// Checks dependencies against the advisory database, which is fetched.
    Advisories(Offline),
}

/// Options of `cargo xtask ebpf`.
#[derive(Args, Clone, Copy, Default)]
struct EbpfOptions {
    #[command(flatten)]
    offline: Offline,
    /// Logs every decision of the programs through aya-log. For development only.
    #[arg(long)]
    log: bool,
}

/// Whether a job may fetch and install.
#[derive(Args, Clone, Copy, Default)]
struct Offline {
    /// Fetches and installs nothing: prints the commands that would, and stops.
    #[arg(long)]
    offline: bool,
}

/// Options of `cargo xtask fuzz`.
#[derive(Args)]
struct FuzzOptions {
    /// How long each target runs.
    #[arg(long, default_value = "60")]
    seconds: NonZeroU32,
    /// The target. Without one, every target runs, one after the other.
    target: Option<String>,
}

#[derive(Args)]
struct PassedOn {
    /// Passed on as they are.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

fn main() -> Result<()> {
    let place = Place::find()?;
    match Cli::parse().job {
        Job::Ebpf(options) => ebpf::build(&place, options),
        Job::Demo(passed_on) => run::demo(&place, &passed_on.arguments),
        Job::Test(passed_on) => run::test(&place, &passed_on.arguments),
        Job::Bench(passed_on) => run::bench(&place, &passed_on.arguments),
        Job::Envoy => envoy::ensure(&place),
        Job::KubeApiserver => kube_apiserver::ensure(&place),
        Job::Fuzz(FuzzOptions { seconds, target }) => {
            let time = Duration::from_secs(seconds.get().into());
            fuzz::fuzz(&place, target.as_deref(), time)
        }
        Job::Tidy => tidy::check(&place),
        Job::Ci(offline) => ci::check(&place, offline),
        Job::Advisories(offline) => ci::advisories(&place, offline),
    }
}
