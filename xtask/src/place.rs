//! Where things are: sources, build products, tools.
//!
//! In: this process's surroundings, read once. Out: paths.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// Where the jobs work.
pub(crate) struct Place {
    /// The root of the workspace.
    pub(crate) root: PathBuf,
    /// Cargo's target directory.
    pub(crate) target: PathBuf,
    /// Where tools are installed that the jobs need: `$AQUIFER_TOOLS`, else `/var/cache/aquifer/tools` for root and
    /// `tools` in the target directory for others.
    pub(crate) tools: PathBuf,
    /// The cargo that runs this job.
    pub(crate) cargo: PathBuf,
    /// Whether this is root.
    pub(crate) is_root: bool,
}

impl Place {
    pub(crate) fn find() -> Result<Self> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = manifest.parent().context("xtask lies in the workspace")?.to_owned();
        let this = env::current_exe().context("finding this program's own file")?;
        // Cargo marks the target directory, however deep below it this program is.
        let target = this.ancestors().find(|path| path.join("CACHEDIR.TAG").is_file());
        let target = target.map_or_else(|| root.join("target"), Path::to_owned);
        let is_root = is_root();
        let tools = match env::var_os("AQUIFER_TOOLS") {
            Some(tools) => tools.into(),
            None if is_root => "/var/cache/aquifer/tools".into(),
            None => target.join("tools"),
        };
        let cargo = env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from);
        Ok(Self { root, target, tools, cargo, is_root })
    }

    /// Finds a program in `PATH`, else among the tools.
    pub(crate) fn program(&self, name: &str) -> Option<PathBuf> {
        let path = env::var_os("PATH").unwrap_or_default();
        let folders = env::split_paths(&path).chain([self.tools.join("bin")]);
        folders.map(|folder| folder.join(name)).find(|program| program.is_file())
    }
}

fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    // Real, effective, saved, file system.
    ids.and_then(|ids| ids.split_whitespace().nth(1)) == Some("0")
}
