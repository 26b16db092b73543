//! Compiles the `.proto` files without `protoc`.
//!
//! With the feature `descriptors` also describes every message of Envoy's API, ours and the two of Istio's proxy that
//! its configuration carries, for programs that read and write messages they were not built for.

use std::{env, error::Error, path::PathBuf};

#[cfg(feature = "descriptors")]
mod descriptors;

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["workload.proto", "authorization.proto", "citadel.proto", "zds.proto"];
    println!("cargo::rerun-if-changed=proto");
    let compiled = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    #[cfg(feature = "descriptors")]
    std::fs::write(out.join("descriptors.bin"), descriptors::all()?)?;
    tonic_prost_build::configure().btree_map(".").out_dir(out).compile_fds(compiled)?;
    Ok(())
}
