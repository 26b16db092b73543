//! Checks the rules of the tree that no compiler checks.
//!
//! In: the sources and ARCHITECTURE.md. Out: every place that breaks a rule, with the rule.

mod arrows;
mod files;

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{command::ask, place::Place};

/// A source file, by its path from the root.
struct Source {
    path: PathBuf,
    text: String,
}

/// Prints what breaks a rule.
///
/// # Errors
/// Something does.
pub(crate) fn check(place: &Place) -> Result<()> {
    let mut sources = Vec::new();
    let mut git = Command::new("git");
    git.current_dir(&place.root);
    // What git would add counts as well.
    git.args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs", "*Cargo.toml"]);
    for path in ask(&mut git)?.lines().map(PathBuf::from) {
        match fs::read_to_string(place.root.join(&path)) {
            Ok(text) => sources.push(Source { path, text }),
            // Deleted and not committed yet.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }
    let architecture = fs::read_to_string(place.root.join("ARCHITECTURE.md"))
        .context("reading ARCHITECTURE.md, which lists the arrows between crates")?;
    let mut broken = files::check(&sources);
    broken.extend(arrows::check(&architecture, &sources)?);
    for line in &broken {
        eprintln!("tidy: {line}");
    }
    if !broken.is_empty() {
        bail!("{} rules broken", broken.len());
    }
    eprintln!("tidy: {} files", sources.len());
    Ok(())
}
