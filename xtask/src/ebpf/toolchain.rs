//! Chooses the compiler of the kernel programs.
//!
//! In: what is installed. Out: a rustc that has its own library sources, and its cargo. No BPF target is shipped
//! precompiled, so `core` is built from these sources.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    Offline,
    command::{ask, line, run},
    debian,
    place::Place,
};

/// The rustup toolchain taken where Debian has none.
const RUSTUP_TOOLCHAIN: &str = "1.95.0";

/// Debian 12's compiler, its sources, and what linking bpf-linker takes.
const DEBIAN_PACKAGES: [&str; 6] =
    ["rustc-web", "cargo-web", "rust-web-src", "gcc", "libc6-dev", "ca-certificates"];

/// What a parent cargo or rustup may have set for its own compiler.
const INHERITED: [&str; 8] = [
    "RUSTUP_TOOLCHAIN",
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "LD_LIBRARY_PATH",
];

/// A compiler that can build `core`.
pub(super) struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
    /// `rustc -vV`.
    version: String,
    sysroot: PathBuf,
}

impl Toolchain {
    /// Takes the first that fits, else installs one.
    pub(super) fn choose(place: &Place, offline: Offline) -> Result<Self> {
        if let Some(by_hand) = by_hand() {
            return by_hand;
        }
        if let Some(found) = debians().or_else(rustups) {
            return Ok(found);
        }
        install(place, offline)?;
        debians().or_else(rustups).context("the compiler installed has no library sources")
    }

    /// Asks the compiler for its version and sysroot, and checks that its library sources are there.
    fn new(cargo: &Path, rustc: &Path) -> Result<Self> {
        let asked = |arguments: &[&str]| ask(clean(&mut Command::new(rustc)).args(arguments));
        let version = asked(&["-vV"])?;
        let sysroot = PathBuf::from(asked(&["--print", "sysroot"])?.trim());
        let sources = sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs");
        ensure!(
            sources.is_file(),
            "{} has no library sources at {}",
            rustc.display(),
            sources.display()
        );
        Ok(Self { cargo: cargo.to_owned(), rustc: rustc.to_owned(), version, sysroot })
    }

    /// The compiler's version, in several lines.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// The compiler's root.
    pub(super) fn sysroot(&self) -> &Path {
        &self.sysroot
    }

    /// The major version of the compiler's LLVM.
    pub(super) fn llvm(&self) -> Result<u32> {
        let line = self.version.lines().find_map(|line| line.strip_prefix("LLVM version: "));
        let major = line.and_then(|version| version.split('.').next()?.parse().ok());
        major.with_context(|| format!("{} does not name its LLVM", self.rustc.display()))
    }

    /// A cargo that uses this compiler and no other, by absolute paths: rustup's shims would pick their own.
    pub(super) fn cargo(&self) -> Command {
        let mut cargo = Command::new(&self.cargo);
        clean(&mut cargo).env("RUSTC", &self.rustc).env("RUSTC_BOOTSTRAP", "1");
        cargo
    }
}

fn clean(command: &mut Command) -> &mut Command {
    for name in INHERITED {
        command.env_remove(name);
    }
    command
}

/// `$EBPF_CARGO` and `$EBPF_RUSTC`.
fn by_hand() -> Option<Result<Toolchain>> {
    let (cargo, rustc) = (env::var_os("EBPF_CARGO"), env::var_os("EBPF_RUSTC"));
    if cargo.is_none() && rustc.is_none() {
        return None;
    }
    let or = |path: Option<_>, name: &str| path.map_or_else(|| name.into(), PathBuf::from);
    let toolchain = Toolchain::new(&or(cargo, "cargo"), &or(rustc, "rustc"));
    Some(toolchain.context("using $EBPF_CARGO and $EBPF_RUSTC"))
}

fn debians() -> Option<Toolchain> {
    let (cargo, rustc) = (Path::new("/usr/bin/cargo"), Path::new("/usr/bin/rustc"));
    if !cargo.is_file() || !rustc.is_file() {
        return None;
    }
    Toolchain::new(cargo, rustc).ok()
}

fn rustups() -> Option<Toolchain> {
    let which = |name: &str| {
        let mut rustup = Command::new("rustup");
        clean(&mut rustup).args(["which", "--toolchain", RUSTUP_TOOLCHAIN, name]);
        ask(&mut rustup).ok().map(|path| PathBuf::from(path.trim()))
    };
    Toolchain::new(&which("cargo")?, &which("rustc")?).ok()
}

fn install(place: &Place, offline: Offline) -> Result<()> {
    let mut rustup = Command::new("rustup");
    rustup
        .args(["toolchain", "install", RUSTUP_TOOLCHAIN, "--profile", "minimal"])
        .args(["--component", "rust-src"]);
    let has_rustup = ask(Command::new("rustup").arg("--version")).is_ok();
    if debian::is_here() && place.is_root && !offline.offline {
        return debian::ensure(place, &DEBIAN_PACKAGES, offline);
    }
    if has_rustup && !offline.offline {
        eprintln!("installing with rustup: {RUSTUP_TOOLCHAIN} and its library sources");
        return run(&mut rustup);
    }
    let mut ways = Vec::new();
    if debian::is_here() {
        let apt = line(&debian::install(&DEBIAN_PACKAGES));
        ways.push(format!("as root: apt-get update && {apt}"));
    }
    if has_rustup {
        ways.push(line(&rustup));
    }
    if ways.is_empty() {
        ways.push(format!("install rustup (https://rustup.rs), then: {}", line(&rustup)));
    }
    bail!(
        "no compiler with library sources for the kernel programs; run one of:\n    {}",
        ways.join("\n    ")
    )
}
