//! Builds and runs: demo, tests, bench.
//!
//! In: arguments to pass on. Out: what the program run says.

use std::{env, ffi::OsString, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{
    EbpfOptions, Offline, command::run, debian, ebpf, envoy, kube_apiserver, place::Place,
};

/// The programs that run in the testbed's pods, and what builds its network.
const PACKAGES: [&str; 11] = [
    "nginx-light",
    "redis-server",
    "redis-tools",
    "iperf3",
    "socat",
    "curl",
    "dnsmasq-base",
    "bind9-dnsutils",
    "tcpdump",
    "iproute2",
    "procps",
];

/// How the binaries are built.
#[derive(Clone, Copy)]
enum Profile {
    Debug,
    Release,
}

/// Shows the mesh at work.
pub(crate) fn demo(place: &Place, arguments: &[OsString]) -> Result<()> {
    if place.is_root {
        // Without it the demo leaves its waypoint out, and says so.
        install(place, "Envoy", envoy::ensure)?;
    }
    in_testbed(place, "demo", Profile::Debug, arguments)
}

/// Benches of single crates: how the names of their rows begin, the package, the bench.
const BENCHES: [(&str, &str, &str); 2] =
    [("decide-", "ztunnel", "decisions"), ("pilot-", "pilot", "mesh")];

/// Measures the daemon's decisions and the control plane by themselves, then the mesh. Rows named `decide-…` are
/// decisions, those named `pilot-…` the control plane's.
pub(crate) fn bench(place: &Place, arguments: &[OsString]) -> Result<()> {
    let of = |argument: &OsString, prefix: &str| argument.to_string_lossy().starts_with(prefix);
    let of_any = |argument: &&OsString| BENCHES.iter().any(|(prefix, ..)| of(argument, prefix));
    let (named, others): (Vec<_>, Vec<_>) = arguments.iter().partition(of_any);
    let asks_help =
        others.iter().any(|argument| ["--help", "-h"].contains(&&*argument.to_string_lossy()));
    let all = named.is_empty() && !names_rows(&others) && !asks_help;
    for (prefix, package, bench) in BENCHES {
        let rows: Vec<_> = named.iter().filter(|argument| of(argument, prefix)).collect();
        if all || !rows.is_empty() {
            let bench = ["bench", "--package", package, "--bench", bench, "--"];
            run(cargo(place).args(bench).args(rows))?;
        }
    }
    if named.is_empty() || names_rows(&others) {
        let others: Vec<OsString> = others.into_iter().cloned().collect();
        in_testbed(place, "bench", Profile::Release, &others)?;
    }
    Ok(())
}

/// Whether one of the bench's arguments is a row, and not an option or its value.
fn names_rows(arguments: &[&OsString]) -> bool {
    let mut before = None;
    arguments.iter().any(|argument| {
        let argument = argument.to_string_lossy();
        let is_option = |text: &str| text.starts_with('-');
        let is_value = before
            .as_deref()
            .is_some_and(|before: &str| is_option(before) && !before.contains('='));
        let is_row = !is_option(&argument) && !is_value;
        before = Some(argument.into_owned());
        is_row
    })
}

/// Runs the tests of all crates. The binaries come first: end-to-end tests run them.
pub(crate) fn test(place: &Place, arguments: &[OsString]) -> Result<()> {
    ebpf::build(place, EbpfOptions::default())?;
    if place.is_root {
        debian::ensure(place, &PACKAGES, Offline::default())?;
        install(place, "Envoy", envoy::ensure)?;
    } else {
        eprintln!("not root: tests that need a kernel are skipped");
    }
    install(place, "the API server of Kubernetes", kube_apiserver::ensure)?;
    run(cargo(place).args(["build", "--workspace", "--bins"]))?;
    let mut test = cargo(place);
    // Where the tests look for both.
    test.env("AQUIFER_TOOLS", &place.tools);
    run(test.args(["test", "--workspace"]).args(arguments))
}

/// What the tests run besides our own programs comes from indexes that cannot be reached from everywhere: the tests that
/// need it say that they are skipped, except where CI promises that all can run.
fn install(place: &Place, what: &str, ensure: fn(&Place) -> Result<()>) -> Result<()> {
    let installed = ensure(place);
    if env::var_os("CI").is_some_and(|ci| ci == "true") {
        return installed.with_context(|| format!("CI must run the tests that need {what}"));
    }
    if let Err(error) = installed {
        eprintln!("{what} is not installed, tests that need it are skipped: {error:#}");
    }
    Ok(())
}

fn in_testbed(
    place: &Place,
    program: &str,
    profile: Profile,
    arguments: &[OsString],
) -> Result<()> {
    if !place.is_root {
        bail!("namespaces and kernel programs need root: sudo cargo xtask {program}");
    }
    ebpf::build(place, EbpfOptions::default())?;
    debian::ensure(place, &PACKAGES, Offline::default())?;
    let mut build = cargo(place);
    build.args(["build", "--workspace", "--bins"]);
    let folder = match profile {
        Profile::Debug => "debug",
        Profile::Release => {
            build.arg("--release");
            "release"
        }
    };
    run(&mut build)?;
    let mut program = Command::new(place.target.join(folder).join(program));
    run(program.env("AQUIFER_TOOLS", &place.tools).args(arguments))
}

fn cargo(place: &Place) -> Command {
    let mut cargo = Command::new(&place.cargo);
    // The same directory that this program was built into, so that nothing is built twice.
    cargo.current_dir(&place.root).env("CARGO_TARGET_DIR", &place.target);
    cargo
}
