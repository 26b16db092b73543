//! Builds the object of the kernel programs.
//!
//! In: the sources in `ebpf/`. Out: `ebpf/ztunnel.bpf.o` in the target directory, where ztunnel's build script finds
//! it, and a stamp of what it was built from.

mod linker;
mod toolchain;

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{EbpfOptions, command::run, place::Place};
use toolchain::Toolchain;

/// One object serves all little-endian machines: no program depends on the architecture.
const TARGET: &str = "bpfel-unknown-none";

/// Builds the object, unless it was built from the same sources by the same tools.
///
/// # Errors
/// No compiler fits and none may be installed, or the build fails.
pub(crate) fn build(place: &Place, options: EbpfOptions) -> Result<()> {
    let toolchain = Toolchain::choose(place, options.offline)?;
    let linker = linker::find_or_build(place, &toolchain, options.offline)?;
    let folder = place.target.join("ebpf");
    let (object, stamp_file) = (folder.join("ztunnel.bpf.o"), folder.join("ztunnel.bpf.stamp"));
    let stamp = format!(
        "{}{}\nlog: {}\nsources: {:016x}\n",
        toolchain.version(),
        linker.version(),
        options.log,
        sources(&place.root.join("ebpf"))?
    );
    if object.is_file() && fs::read_to_string(&stamp_file).is_ok_and(|built| built == stamp) {
        return Ok(());
    }

    let mut cargo = toolchain.cargo();
    cargo
        .current_dir(place.root.join("ebpf"))
        .args(["build", "--locked", "--release", "--target", TARGET, "-Zbuild-std=core"])
        .arg("--target-dir")
        .arg(&folder)
        .env("PATH", linker.path()?)
        // Map and function types (BTF) are made from debug information. The encoded form wins over others that a
        // parent cargo may have set.
        .env("CARGO_ENCODED_RUSTFLAGS", "-Cdebuginfo=2\x1f-Clink-arg=--btf");
    if options.log {
        cargo.args(["--features", "log"]);
    }
    if options.offline.offline {
        cargo.arg("--offline");
    }
    run(&mut cargo)?;
    let built = folder.join(TARGET).join("release/ebpf");
    fs::copy(&built, &object).with_context(|| format!("copying {}", built.display()))?;
    fs::write(&stamp_file, stamp).with_context(|| format!("writing {}", stamp_file.display()))?;
    eprintln!("kernel programs: {}", object.display());
    Ok(())
}

/// A hash over names and contents of the sources.
fn sources(folder: &Path) -> Result<u64> {
    let mut files = Vec::new();
    list(folder, &mut files)?;
    files.sort();
    let mut hasher = DefaultHasher::new();
    for file in files {
        file.strip_prefix(folder)?.hash(&mut hasher);
        fs::read(&file).with_context(|| format!("reading {}", file.display()))?.hash(&mut hasher);
    }
    Ok(hasher.finish())
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                list(&path, files)?;
            }
        } else {
            files.push(path);
        }
    }
    Ok(())
}
