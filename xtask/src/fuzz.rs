//! Fuzzes the readers of foreign bytes, by libFuzzer and without a nightly compiler.
//!
//! In: the crates `mesh/fuzz` and `ztunnel/fuzz`, their corpora, how long. Out: what each target ran and reached; the
//! inputs that broke a property, as files. What is found that is new stays in the target directory and is where the
//! next run begins; the corpora of the tree are read only. A stable compiler has the pass that counts coverage, and
//! the rest is flags.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    EbpfOptions, Offline,
    command::{ask, line, run},
    debian, ebpf,
    place::Place,
};

/// The crates of targets, below the root.
const CRATES: [&str; 2] = ["mesh/fuzz", "ztunnel/fuzz"];

/// Edges are counted in tables that libFuzzer reads, and it is told what is compared.
const INSTRUMENTATION: [&str; 7] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg",
    "fuzzing",
];

/// An input that takes longer is a finding.
const SLOWEST: Duration = Duration::from_secs(10);

/// What needs more memory is a finding.
const MEMORY_MIB: u32 = 2048;

/// One program that is fuzzed.
struct Target {
    /// Its crate, below the root.
    krate: &'static str,
    name: String,
}

/// What a run of a target said.
struct Outcome {
    /// libFuzzer's own words of inputs run and edges reached.
    told: String,
    /// Inputs that broke a property, or were too slow or too big.
    findings: Vec<PathBuf>,
}

/// Builds all targets and runs `name`, or each, for `time`.
///
/// # Errors
/// There is no such target, a target cannot be built, or something was found.
pub(crate) fn fuzz(place: &Place, name: Option<&str>, time: Duration) -> Result<()> {
    let targets = chosen(targets(&place.root)?, name)?;
    debian::ensure(place, &["g++"], Offline::default())?;
    let host = host(place)?;
    for krate in CRATES.iter().filter(|krate| targets.iter().any(|target| target.krate == **krate))
    {
        build(place, krate, &host)?;
    }
    let mut table = String::new();
    let mut found = Vec::new();
    for target in &targets {
        let outcome = run_target(place, target, &host, time)?;
        table += &format!("{:24}{}\n", target.name, outcome.told);
        found.extend(outcome.findings);
    }
    print!("{table}");
    let found: Vec<_> = found.iter().map(|path| format!("\n    {}", path.display())).collect();
    ensure!(found.is_empty(), "inputs that break a property:{}", found.concat());
    Ok(())
}

/// Every target of every crate, by name.
fn targets(root: &Path) -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    for krate in CRATES {
        let folder = root.join(krate).join("fuzz_targets");
        let files = fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()));
        for file in files? {
            let path = file?.path();
            let name = path.file_stem().context("a target has a name")?.to_string_lossy();
            targets.push(Target { krate, name: name.into_owned() });
        }
    }
    targets.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(targets)
}

fn chosen(targets: Vec<Target>, name: Option<&str>) -> Result<Vec<Target>> {
    let Some(name) = name else { return Ok(targets) };
    let names: Vec<_> = targets.iter().map(|target| target.name.clone()).collect();
    let chosen: Vec<_> = targets.into_iter().filter(|target| target.name == name).collect();
    if chosen.is_empty() {
        bail!("no target {name}; there are {}", names.join(", "));
    }
    Ok(chosen)
}

/// The triple of this machine. Named to cargo, it keeps the flags from build scripts and procedural macros.
fn host(place: &Place) -> Result<String> {
    let said = ask(Command::new(&place.cargo).arg("-vV"))?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("cargo -vV names the host")?.to_owned())
}

fn build(place: &Place, krate: &str, host: &str) -> Result<()> {
    let mut build = Command::new(&place.cargo);
    build
        .current_dir(place.root.join(krate))
        .args(["build", "--release", "--target", host])
        .env("CARGO_TARGET_DIR", folder(place))
        .env("CARGO_ENCODED_RUSTFLAGS", INSTRUMENTATION.join("\x1f"));
    if krate == "ztunnel/fuzz" {
        ebpf::build(place, EbpfOptions::default())?;
        build.env("AQUIFER_BPF_OBJECT", place.target.join("ebpf/ztunnel.bpf.o"));
    }
    run(&mut build)
}

fn folder(place: &Place) -> PathBuf {
    place.target.join("fuzz")
}

/// Runs one target; its words are in a log, since they are many.
fn run_target(place: &Place, target: &Target, host: &str, time: Duration) -> Result<Outcome> {
    let folder = folder(place);
    let of_target = |kind: &str| -> Result<PathBuf> {
        let path = folder.join(kind).join(&target.name);
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(path)
    };
    let (grown, artifacts) = (of_target("corpus")?, of_target("findings")?);
    let log = of_target("logs")?.join("log");
    let known = files(&artifacts)?;
    let mut command = Command::new(folder.join(host).join("release").join(&target.name));
    command
        .arg(&grown)
        .arg(place.root.join(target.krate).join("corpus").join(&target.name))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(format!("-max_total_time={}", time.as_secs()))
        .arg(format!("-timeout={}", SLOWEST.as_secs()))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"));
    let words = line(&command);
    eprintln!("$ {words} 2> {}", log.display());
    let to = || File::create(&log).with_context(|| format!("making {}", log.display()));
    let status = command.stderr(to()?).status().with_context(|| format!("starting {words}"))?;
    let said = fs::read(&log).with_context(|| format!("reading {}", log.display()))?;
    let told = told(&String::from_utf8_lossy(&said));
    let mut findings = files(&artifacts)?;
    findings.retain(|path| !known.contains(path));
    // Slow inputs are kept too, and are no failures: a loaded machine makes some.
    findings.retain(|path| !named(path, "slow-unit-"));
    let is_explained = status.success() || !findings.is_empty();
    ensure!(is_explained, "{words}: {status}; see {}", log.display());
    Ok(Outcome { told, findings })
}

fn named(path: &Path, prefix: &str) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// The last line in which libFuzzer counts: `#inputs EVENT cov: edges ft: features …`.
fn told(log: &str) -> String {
    let counted = log.lines().rev().find(|line| line.starts_with('#') && line.contains("cov:"));
    counted.map_or_else(
        || "ran no input".to_owned(),
        |line| line.split_whitespace().collect::<Vec<_>>().join(" "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_count_is_told() {
        let log = "INFO: Seed: 1\n#2\tINITED cov: 9 ft: 10\n#731\tDONE   cov: 93 ft: 226 exec/s: 3\nDone\n";
        assert_eq!(told(log), "#731 DONE cov: 93 ft: 226 exec/s: 3");
        assert_eq!(told("==1== ERROR\n"), "ran no input");
    }

    #[test]
    fn an_unknown_target_is_refused_with_those_that_there_are() {
        let all = || ["dns", "zds"].map(|name| Target { krate: CRATES[1], name: name.to_owned() });
        assert_eq!(chosen(all().into(), Some("zds")).unwrap().len(), 1);
        assert_eq!(chosen(all().into(), None).unwrap().len(), 2);
        let error = chosen(all().into(), Some("dsn")).err().unwrap();
        assert_eq!(error.to_string(), "no target dsn; there are dns, zds");
    }

    #[test]
    fn each_target_has_a_corpus_and_is_among_its_crates_programs() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for target in targets(root).unwrap() {
            let krate = root.join(target.krate);
            let corpus = krate.join("corpus").join(&target.name);
            assert!(!files(&corpus).unwrap().is_empty(), "{}", corpus.display());
            let manifest = fs::read_to_string(krate.join("Cargo.toml")).unwrap();
            assert!(manifest.contains(&format!("name = \"{}\"", target.name)), "{}", target.name);
        }
    }
}
