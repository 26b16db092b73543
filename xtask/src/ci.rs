//! What must pass before a change lands, besides the tests.
//!
//! In: the tree. Out: the first check that fails.

use std::{path::PathBuf, process::Command};

use anyhow::{Result, bail};

use crate::{
    EbpfOptions, Offline,
    command::{line, run},
    ebpf,
    place::Place,
    tidy,
};

/// Format, lints, tidy, documentation, dependencies.
pub(crate) fn check(place: &Place, offline: Offline) -> Result<()> {
    let kernel_programs = ["--manifest-path", "ebpf/Cargo.toml"];
    run(cargo(place).args(["fmt", "--all", "--check"]))?;
    run(cargo(place).args(["fmt", "--check"]).args(kernel_programs))?;
    tidy::check(place)?;
    ebpf::build(place, EbpfOptions { offline, log: false })?;
    run(cargo(place).args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    let mut doc = cargo(place);
    run(doc.args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    deny(place, offline, &["bans", "licenses", "sources"])
}

/// Known vulnerabilities in dependencies. Apart from [`check`]: the database cannot be reached from everywhere.
pub(crate) fn advisories(place: &Place, offline: Offline) -> Result<()> {
    deny(place, offline, &["advisories"])
}

fn deny(place: &Place, offline: Offline, checks: &[&str]) -> Result<()> {
    let program = cargo_deny(place, offline)?;
    run(Command::new(program).current_dir(&place.root).arg("check").args(checks))
}

fn cargo_deny(place: &Place, offline: Offline) -> Result<PathBuf> {
    const NAME: &str = "cargo-deny";
    if let Some(program) = place.program(NAME) {
        return Ok(program);
    }
    let mut install = Command::new(&place.cargo);
    install.args(["install", NAME, "--locked", "--root"]).arg(&place.tools);
    if offline.offline {
        bail!("{NAME} is missing; run:\n    {}", line(&install));
    }
    eprintln!("building {NAME} into {} (some minutes)", place.tools.display());
    run(&mut install)?;
    Ok(place.tools.join("bin").join(NAME))
}

fn cargo(place: &Place) -> Command {
    let mut cargo = Command::new(&place.cargo);
    cargo.current_dir(&place.root).env("CARGO_TARGET_DIR", &place.target);
    cargo
}
