//! Describes every message that a client of the control plane may be sent.
//!
//! In: Envoy's `.proto` files, which the crate `envoy-types` carries, and ours. Out: an encoded `FileDescriptorSet`.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use protox::file::{
    ChainFileResolver, File, FileResolver, GoogleFileResolver, IncludeFileResolver,
};

/// Folders of `envoy-types` that imports are relative to.
const ROOTS: [&str; 8] = [
    "data-plane-api",
    "xds",
    "googleapis",
    "protoc-gen-validate",
    "cel-spec/proto",
    "client_model",
    "opentelemetry-proto",
    "ratelimit",
];
/// Folders whose messages are in demand; what they import comes along.
const WANTED: [&str; 6] = [
    "data-plane-api/envoy/config",
    "data-plane-api/envoy/extensions",
    "data-plane-api/envoy/service/discovery",
    "data-plane-api/envoy/type",
    "xds/xds/type",
    "xds/udpa",
];

/// References that `protox` takes for ones to another package, and what is meant: file or folder, part, whole. A type
/// stands after a space; imports and options write such names otherwise.
const AMBIGUOUS: [(&str, &str, &str); 9] = [
    (
        "envoy/extensions/clusters",
        " common.dynamic_forward_proxy",
        " .envoy.extensions.common.dynamic_forward_proxy",
    ),
    ("envoy/extensions", " config.", " .envoy.config."),
    ("envoy/extensions", " type.", " .envoy.type."),
    ("envoy/extensions", " data.", " .envoy.data."),
    ("envoy/extensions/filters", " common.async_files", " .envoy.extensions.common.async_files"),
    ("envoy/extensions/filters", " common.aws", " .envoy.extensions.common.aws"),
    ("envoy/extensions/filters", " common.ratelimit", " .envoy.extensions.common.ratelimit"),
    ("envoy/extensions/filters", " common.tap", " .envoy.extensions.common.tap"),
    (
        "envoy/extensions/filters",
        " common.dynamic_forward_proxy",
        " .envoy.extensions.common.dynamic_forward_proxy",
    ),
];
/// Field names that istiod's copy of a file has: JSON is written with its words.
const CALLED_OTHERWISE: [(&str, &str, &str); 2] = [
    ("authorization.proto", "rules = 5", "groups = 5"),
    ("authorization.proto", "clauses = 1", "rules = 1"),
];

/// The encoded `FileDescriptorSet`.
pub(crate) fn all() -> Result<Vec<u8>, Box<dyn Error>> {
    let envoy = envoy_sources()?;
    let mut files = Vec::new();
    for wanted in WANTED {
        proto_files(&envoy.join(wanted), &mut files)?;
    }
    proto_files(Path::new("proto"), &mut files)?;
    files.sort();
    let mut sources = ChainFileResolver::new();
    sources.add(Rewritten { folder: envoy.join(ROOTS[0]), rewrites: &AMBIGUOUS });
    for root in ROOTS {
        sources.add(IncludeFileResolver::new(envoy.join(root)));
    }
    sources.add(Rewritten { folder: "proto".into(), rewrites: &CALLED_OTHERWISE });
    sources.add(GoogleFileResolver::new());
    let mut compiler = protox::Compiler::with_file_resolver(sources);
    compiler.include_imports(true).open_files(files)?;
    Ok(compiler.encode_file_descriptor_set())
}

/// Opens files with some of their text replaced.
struct Rewritten {
    folder: PathBuf,
    rewrites: &'static [(&'static str, &'static str, &'static str)],
}

impl FileResolver for Rewritten {
    fn resolve_path(&self, path: &Path) -> Option<String> {
        Some(path.strip_prefix(&self.folder).ok()?.to_str()?.to_owned())
    }

    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        let Ok(mut source) = fs::read_to_string(self.folder.join(name)) else {
            return Err(protox::Error::file_not_found(name));
        };
        for (_, found, wanted) in self.rewrites.iter().filter(|(path, ..)| name.starts_with(path)) {
            source = source.replace(found, wanted);
        }
        File::from_source(name, &source)
    }
}

/// Where cargo has unpacked `envoy-types`: only it knows.
fn envoy_sources() -> Result<PathBuf, Box<dyn Error>> {
    let cargo = env::var_os("CARGO").ok_or("cargo sets CARGO")?;
    // Only what this host builds with was fetched: of other platforms' packages nothing is known offline.
    let host = env::var_os("HOST").ok_or("cargo sets HOST")?;
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--offline", "--locked"])
        .arg("--filter-platform")
        .arg(host)
        .output()?;
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata lists packages")?;
    let manifest = packages
        .iter()
        .find(|package| package["name"] == "envoy-types")
        .and_then(|package| package["manifest_path"].as_str())
        .ok_or("envoy-types is among the dependencies")?;
    Ok(Path::new(manifest).with_file_name("proto"))
}

fn proto_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            proto_files(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    Ok(())
}
