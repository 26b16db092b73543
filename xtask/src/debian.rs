//! Packages of Debian.
//!
//! In: names of packages. Out: they are installed, or the exact command that would install them.

use std::{path::Path, process::Command};

use anyhow::{Result, bail};

use crate::{
    Offline,
    command::{ask, line, run},
    place::Place,
};

/// Whether packages can be installed by apt here, by whoever may.
pub(crate) fn is_here() -> bool {
    Path::new("/usr/bin/apt-get").is_file()
}

/// Installs what is missing and says so. On other systems the packages' programs are expected to be there.
///
/// # Errors
/// Something is missing and may not be installed; the message has the command.
pub(crate) fn ensure(place: &Place, packages: &[&str], offline: Offline) -> Result<()> {
    if !is_here() {
        return Ok(());
    }
    let missing: Vec<_> =
        packages.iter().copied().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut install = install(&missing);
    if offline.offline || !place.is_root {
        bail!("packages are missing; as root, run:\n    apt-get update && {}", line(&install));
    }
    eprintln!("installing from Debian: {}", missing.join(" "));
    run(Command::new("apt-get").args(["update", "-q"]))?;
    run(install.env("DEBIAN_FRONTEND", "noninteractive"))
}

/// The command that installs packages.
pub(crate) fn install(packages: &[&str]) -> Command {
    let mut install = Command::new("apt-get");
    install.args(["install", "-y", "-q", "--no-install-recommends"]).args(packages);
    install
}

fn is_installed(package: &str) -> bool {
    let query = ask(Command::new("dpkg-query").args(["-W", "-f", "${Status}", package]));
    query.is_ok_and(|status| status.ends_with(" installed"))
}
