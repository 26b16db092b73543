//! Finds the programs that the testbed runs.
//!
//! In: a name. Out: its path: in the folder that `AQUIFER_BIN_DIR` names, else in the one cargo built this process into.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

/// The path of one of our own binaries.
///
/// # Errors
/// If it has not been built; the message says how.
pub fn ours(name: &str) -> Result<PathBuf> {
    let folder = folder()?;
    let path = folder.join(name);
    ensure!(
        path.is_file(),
        "{name} is not in {}: build it with `cargo build -p {}`",
        folder.display(),
        package(name)
    );
    Ok(path)
}

/// The path of Envoy: among the tools of `cargo xtask`, else in `PATH`.
///
/// # Errors
/// If it is not installed; the message says how.
pub fn envoy() -> Result<PathBuf> {
    let tools = env::var_os("AQUIFER_TOOLS").unwrap_or_else(|| "/var/cache/aquifer/tools".into());
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = [Path::new(&tools).join("bin")].into_iter().chain(env::split_paths(&path));
    let mut programs = folders.map(|folder| folder.join("envoy"));
    programs
        .find(|program| program.is_file())
        .context("Envoy is not installed: `cargo xtask envoy` installs it")
}

/// Checks that the programs of the system are installed.
///
/// # Errors
/// Names every one that is missing.
pub fn require(programs: &[&str]) -> Result<()> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> =
        env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), "/sbin".into()]).collect();
    let is_missing = |program: &&&str| !folders.iter().any(|folder| folder.join(program).is_file());
    let missing: Vec<&str> = programs.iter().filter(is_missing).copied().collect();
    if missing.is_empty() {
        return Ok(());
    }
    bail!("not installed: {} (Debian: apt-get install {})", missing.join(", "), packages(&missing))
}

/// The folder cargo puts binaries into: this process's own, or for a test the one above `deps`.
fn folder() -> Result<PathBuf> {
    if let Some(folder) = env::var_os("AQUIFER_BIN_DIR") {
        return Ok(folder.into());
    }
    let this = env::current_exe().context("finding this program's own file")?;
    let folder = this.parent().context("this program's file has no folder")?;
    let is_deps = folder.file_name().is_some_and(|name| name == "deps");
    let folder = if is_deps { folder.parent().unwrap_or(folder) } else { folder };
    Ok(Path::new(folder).to_owned())
}

fn package(name: &str) -> &str {
    match name {
        "load" | "relay" | "peer" | "demo" | "bench" => "testbed",
        other => other,
    }
}

fn packages(programs: &[&str]) -> String {
    let package = |program: &&str| match *program {
        "ip" => "iproute2".to_owned(),
        "nginx" => "nginx-light".to_owned(),
        "redis-cli" => "redis-tools".to_owned(),
        "nsenter" | "taskset" => "util-linux".to_owned(),
        "sysctl" => "procps".to_owned(),
        other => other.to_owned(),
    };
    programs.iter().map(package).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_missing_program_is_named_with_its_package() {
        require(&["sh"]).unwrap();
        assert_eq!(
            require(&["sh", "no-such-a", "no-such-b"]).unwrap_err().to_string(),
            "not installed: no-such-a, no-such-b (Debian: apt-get install no-such-a no-such-b)"
        );
        assert_eq!(packages(&["ip", "curl"]), "iproute2 curl");
    }
}
