//! The node daemon: `ztunnel` serves; `ztunnel uninstall` takes away what it left in the kernel.

use std::{collections::BTreeMap, num::NonZeroUsize, process::ExitCode};

use anyhow::Context;
use clap::{Parser, Subcommand};
use mesh::telemetry::{LogConfig, LogFormat, start_log};
use ztunnel::{
    capture,
    config::Config,
    daemon,
    proxy_config::{MESH_FILE, layered},
};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The mesh's node daemon. Settings come from the environment; the README lists them.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve pods (the default).
    Proxy {
        /// Accepted as Istio's manifests pass it, and not used.
        #[arg(hide = true)]
        role: Option<String>,
    },
    /// Release all pods and take away every program and map that daemons have pinned.
    Uninstall,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command.unwrap_or(Command::Proxy { role: None })) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ztunnel: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    let environment = layered(std::env::vars().collect(), mesh_file()?.as_deref())?;
    let config = read(&environment)?;
    match command {
        Command::Uninstall => {
            capture::uninstall(&config.capture.pin_dir)?;
            println!("nothing is captured any more below {}", config.capture.pin_dir.display());
            Ok(())
        }
        Command::Proxy { .. } => {
            let default = LogConfig::default();
            let log = start_log(&LogConfig {
                format: match environment.get("LOG_FORMAT").map(String::as_str) {
                    Some("json") => LogFormat::Json,
                    Some(_) | None => LogFormat::Plain,
                },
                filter: environment.get("RUST_LOG").cloned().unwrap_or(default.filter),
            })?;
            raise_descriptor_limit();
            let result = daemon::run(&config, log.clone());
            log.flush();
            result
        }
    }
}

/// The mesh's settings, where they are mounted.
fn mesh_file() -> anyhow::Result<Option<String>> {
    match std::fs::read_to_string(MESH_FILE) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(MESH_FILE),
    }
}

fn read(environment: &BTreeMap<String, String>) -> anyhow::Result<Config> {
    let host_name =
        std::fs::read_to_string("/proc/sys/kernel/hostname").context("reading the host's name")?;
    let cpus = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    Config::read(environment, host_name.trim(), cpus).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("bad settings:\n  {}", lines.join("\n  "))
    })
}

/// Every connection needs two descriptors; the usual soft limit of 1024 is for programs that use select().
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
