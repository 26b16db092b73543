//! Finds or builds bpf-linker, which makes one object of the compiler's bitcode.
//!
//! In: the compiler. Out: a linker whose LLVM is at least the compiler's: an older one cannot read its bitcode.

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::toolchain::Toolchain;
use crate::{
    Offline,
    command::{ask, line, run},
    debian,
    place::Place,
};

const NAME: &str = "bpf-linker";
/// The version that is built where none is found.
const VERSION: &str = "0.13.0";
/// The LLVMs that this version can be built with.
const LLVMS: [u32; 3] = [21, 22, 23];

/// A linker that works.
pub(super) struct Linker {
    program: PathBuf,
    version: String,
}

impl Linker {
    /// `bpf-linker --version`.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// `$PATH` with the linker first: cargo looks for it there and nowhere else.
    pub(super) fn path(&self) -> Result<OsString> {
        let folder = self.program.parent().context("the linker has a folder")?.to_owned();
        let path = env::var_os("PATH").unwrap_or_default();
        Ok(env::join_paths([folder].into_iter().chain(env::split_paths(&path)))?)
    }
}

/// Takes the linker in `PATH` or among the tools, else builds one among the tools.
pub(super) fn find_or_build(
    place: &Place,
    toolchain: &Toolchain,
    offline: Offline,
) -> Result<Linker> {
    let llvm = toolchain.llvm()?;
    let of_tools = place.tools.join("bin").join(NAME);
    let candidates = place.program(NAME).into_iter().chain([of_tools.clone()]);
    if let Some(linker) =
        candidates.filter(|path| path.is_file()).find_map(|path| check(&path, llvm))
    {
        return Ok(linker);
    }
    build(place, toolchain, llvm, offline)?;
    check(&of_tools, llvm).with_context(|| format!("{} does not work", of_tools.display()))
}

/// Whether the linker runs (its LLVM library may be gone) and can read the compiler's bitcode.
fn check(program: &Path, llvm: u32) -> Option<Linker> {
    let version = ask(Command::new(program).arg("--version")).ok()?.trim().to_owned();
    // A static one does not tell its LLVM: the link itself will.
    let linked = llvm_library(program).ok().and_then(|path| major(&path));
    if linked.is_some_and(|linked| linked < llvm) {
        return None;
    }
    Some(Linker { program: program.to_owned(), version })
}

/// Builds the linker against the very LLVM library that the compiler uses.
fn build(place: &Place, toolchain: &Toolchain, llvm: u32, offline: Offline) -> Result<()> {
    ensure!(
        LLVMS.contains(&llvm),
        "{NAME} {VERSION} knows LLVM {LLVMS:?}, the compiler has {llvm}"
    );
    let library = llvm_library(&toolchain.sysroot().join("bin/rustc"))?;
    let prefix = place.tools.join("llvm");
    let mut install = toolchain.cargo();
    install
        .env("LLVM_PREFIX", &prefix)
        .args(["install", NAME, "--version", VERSION, "--locked", "--no-default-features"])
        .args(["--features", &format!("llvm-{llvm}"), "--force", "--root"])
        .arg(&place.tools);
    let links = [PathBuf::from("libLLVM.so"), library.file_name().unwrap_or_default().into()];
    if offline.offline {
        let library = library.display();
        let folder = prefix.join("lib");
        let link = |name: &PathBuf| format!("ln -sf {library} {}", folder.join(name).display());
        let links = links.iter().map(link).collect::<Vec<_>>().join(" && ");
        bail!(
            "{NAME} is missing; run:\n    mkdir -p {} && {links} &&\n    {}",
            folder.display(),
            line(&install)
        );
    }
    debian::ensure(place, &["gcc", "libc6-dev"], offline)?;
    let folder = prefix.join("lib");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    // The plain name is for linking, the other one, which carries the version, for running.
    for name in links {
        let link = folder.join(name);
        if link.symlink_metadata().is_ok() {
            fs::remove_file(&link).with_context(|| format!("removing {}", link.display()))?;
        }
        symlink(&library, &link).with_context(|| format!("making {}", link.display()))?;
    }
    eprintln!("building {NAME} {VERSION} into {} (some minutes)", place.tools.display());
    run(&mut install)
}

/// The LLVM library that a program is linked to: right on Debian and with rustup, without guessing.
fn llvm_library(program: &Path) -> Result<PathBuf> {
    let libraries = ask(Command::new("ldd").arg(program))?;
    let line = libraries.lines().find(|line| line.contains("libLLVM"));
    let path = line.and_then(|line| line.split("=> ").nth(1)?.split(" (").next());
    path.map(PathBuf::from).with_context(|| format!("{} links no libLLVM", program.display()))
}

/// The major version in the library's name: `libLLVM.so.22.1`, `libLLVM.so.22.1-rust-1.95.0-stable`, `libLLVM-14.so`.
fn major(library: &Path) -> Option<u32> {
    let name = library.file_name()?.to_str()?;
    let number = name.split(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty())?;
    number.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_version_is_read_from_every_form_of_the_name() {
        for (name, version) in [
            ("/lib/x86_64-linux-gnu/libLLVM.so.22.1", Some(22)),
            ("libLLVM.so.22.1-rust-1.95.0-stable", Some(22)),
            ("libLLVM-14.so.1", Some(14)),
            ("libLLVM.so", None),
        ] {
            assert_eq!(major(Path::new(name)), version, "{name}");
        }
    }
}
