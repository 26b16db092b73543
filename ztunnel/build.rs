//! Finds the kernel programs' object, which `cargo xtask ebpf` has built, for the daemon to embed.
//!
//! In: `AQUIFER_BPF_OBJECT`, else `ebpf/ztunnel.bpf.o` in the target directory. Out: a copy in `OUT_DIR`. Builds
//! nothing: the object needs another compiler, another target and other flags.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::exit,
};

const OBJECT: &str = "ztunnel.bpf.o";

fn main() {
    println!("cargo::rerun-if-env-changed=AQUIFER_BPF_OBJECT");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let object = match env::var_os("AQUIFER_BPF_OBJECT") {
        Some(path) => PathBuf::from(path),
        None => target_directory(&out).join("ebpf").join(OBJECT),
    };
    println!("cargo::rerun-if-changed={}", object.display());
    if let Err(error) = fs::copy(&object, out.join(OBJECT)) {
        println!(
            "cargo::error=no kernel programs at {} ({error}): run `cargo xtask ebpf`",
            object.display()
        );
        exit(1);
    }
}

/// Cargo marks the target directory, however deep below it `OUT_DIR` is.
fn target_directory(out: &Path) -> &Path {
    out.ancestors().find(|path| path.join("CACHEDIR.TAG").is_file()).unwrap_or(out)
}
