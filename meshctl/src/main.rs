//! `meshctl`: what the mesh does, and why, from the command line.
//!
//! Asks daemons and pilot by HTTP and prints their answers as tables or as JSON. Decides nothing itself: `explain` is
//! answered by the daemon, with the code and the state that decide real connections.

#![forbid(unsafe_code)]

mod analyze;
mod answers;
mod ask;
mod diff;
mod input;
mod origins;
mod proxies;
mod record;
mod recording;
mod replay;
mod show;
mod table;

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use answers::{Dump, Explanation, OpenConnection, Outcome, Syncz};

/// A command that got no answer, or a bad one. What was asked and refused is 1.
const FAILED: u8 = 2;

/// Shows what the mesh does, and why.
///
/// Exits with 0 if all is well or allowed, 1 if `explain` finds a connection refused, `analyze` an error or `diff` a
/// difference, 2 if there is no answer.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Where a node's daemon is administered; `status` takes several.
    #[arg(long, global = true, default_value = "http://127.0.0.1:15000")]
    daemon: Vec<String>,
    /// Where pilot is looked at.
    #[arg(long, global = true, default_value = "http://127.0.0.1:15014")]
    pilot: String,
    /// How answers are printed.
    #[arg(long, short, global = true, default_value = "table")]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Who is connected to pilot, what each has, and how the daemons are.
    Status,
    /// The workloads that a daemon knows.
    Workloads {
        /// Those of one namespace.
        #[arg(long, short)]
        namespace: Option<String>,
        /// Those on one node.
        #[arg(long)]
        node: Option<String>,
    },
    /// The policies that a daemon enforces.
    Policies {
        /// Those of one namespace.
        #[arg(long, short)]
        namespace: Option<String>,
    },
    /// The open connections of a daemon's pods.
    Connections,
    /// What would happen to a connection and which policy decides it, or which objects made what a client is sent.
    Explain(Explain),
    /// Every client of pilot, and which types it has taken, as `istioctl proxy-status` shows it.
    ProxyStatus,
    /// What pilot has sent to one client.
    Config(proxies::Arguments),
    /// Looks for what is valid and yet not what was meant, in a folder or on an API server.
    Analyze(analyze::Arguments),
    /// What clients would be sent otherwise, if a folder were applied.
    Diff(diff::Arguments),
    /// Plays recorded xDS to whoever subscribes.
    Replay(replay::Arguments),
    /// Records what a control plane sends to one of its clients.
    Record(record::Arguments),
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Explain {
    #[command(subcommand)]
    of: Option<Explained>,
    /// Who connects: NAMESPACE/POD, or `outside` or `outside/ADDRESS` for somebody without identity.
    #[arg(long, required = true)]
    from: Option<String>,
    /// To where: ADDRESS:PORT, of a pod or a service.
    #[arg(long, required = true)]
    to: Option<String>,
}

#[derive(Subcommand)]
enum Explained {
    /// Which objects made what a client is sent.
    Config(origins::Arguments),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("meshctl: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

async fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    match &cli.command {
        Command::Status => return status(cli).await,
        Command::Explain(Explain { of: Some(Explained::Config(arguments)), .. }) => {
            return origins::run(arguments, cli.output);
        }
        Command::Explain(Explain { of: None, from, to }) => {
            let (from, to) = (from.as_deref(), to.as_deref());
            return explain(cli, from.unwrap_or_default(), to.unwrap_or_default()).await;
        }
        Command::ProxyStatus => proxies::status(&cli.pilot, cli.output).await?,
        Command::Config(arguments) => proxies::config(&cli.pilot, arguments, cli.output).await?,
        Command::Analyze(arguments) => return analyze::run(arguments, cli.output).await,
        Command::Diff(arguments) => return diff::run(arguments, &cli.pilot, cli.output).await,
        Command::Replay(arguments) => return replay::run(arguments).await,
        Command::Record(arguments) => return record::run(arguments).await,
        Command::Workloads { namespace, node } => {
            let dump = one_daemon(cli, "/config_dump").await?;
            let wanted = |entry: &Value| {
                is(entry, "namespace", namespace.as_deref()) && is(entry, "node", node.as_deref())
            };
            let listed = entries(&dump, "workloads", wanted);
            print(cli, &listed, |workloads: Vec<_>| show::workloads(&workloads))?;
        }
        Command::Policies { namespace } => {
            let dump = one_daemon(cli, "/config_dump").await?;
            let wanted = |entry: &Value| is(entry, "namespace", namespace.as_deref());
            let listed = entries(&dump, "policies", wanted);
            print(cli, &listed, |policies: Vec<_>| show::policies(&policies))?;
        }
        Command::Connections => connections(cli).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn connections(cli: &Cli) -> anyhow::Result<()> {
    let answer = one_daemon(cli, "/connections").await?;
    match cli.output {
        Output::Table => {
            // Connections name their pods by uid, which means nothing to people.
            let dump: Dump = read(&one_daemon(cli, "/config_dump").await?)?;
            let open: Vec<OpenConnection> = read(&answer)?;
            print!("{}", show::connections(&open, &dump.workload_state));
        }
        Output::Json => println!("{answer:#}"),
    }
    Ok(())
}

async fn explain(cli: &Cli, from: &str, to: &str) -> anyhow::Result<ExitCode> {
    let question = format!("/explain?from={}&to={}", ask::escaped(from), ask::escaped(to));
    let answer = one_daemon(cli, &question).await?;
    let explanation: Explanation = read(&answer)?;
    print(cli, &answer, |explanation: Explanation| show::explanation(&explanation))?;
    Ok(match explanation.outcome {
        Outcome::Allowed | Outcome::Forwarded => ExitCode::SUCCESS,
        Outcome::Denied | Outcome::NoRoute => ExitCode::FAILURE,
    })
}

/// Shows what answers, and says what does not.
async fn status(cli: &Cli) -> anyhow::Result<ExitCode> {
    let mut failures = Vec::new();
    let pilot = ask::get(&cli.pilot, "/debug/clients").await;
    let pilot = pilot.map_err(|error| failures.push(format!("{error:#}"))).ok();
    let mut daemons = Vec::new();
    for url in &cli.daemon {
        match ask::get(url, "/config_dump").await {
            Ok(dump) => daemons.push((url.as_str(), dump)),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    match cli.output {
        Output::Table => {
            if let Some(syncz) = &pilot {
                print!("{}", show::pilot(&cli.pilot, &read::<Syncz>(syncz)?));
            }
            let dumps = daemons.iter().map(|(url, dump)| anyhow::Ok((*url, read::<Dump>(dump)?)));
            let dumps = dumps.collect::<Result<Vec<_>, _>>()?;
            if pilot.is_some() && !dumps.is_empty() {
                println!();
            }
            if !dumps.is_empty() {
                print!("{}", show::daemons(&dumps));
            }
        }
        Output::Json => {
            let kept = ["version", "xds", "certificates", "workloadState", "capture"];
            let daemons = daemons.iter().map(|(url, dump)| {
                let fields = kept.iter().map(|key| ((*key).to_owned(), dump[*key].clone()));
                json!({ "url": url, "state": fields.collect::<serde_json::Map<_, _>>() })
            });
            let daemons: Vec<_> = daemons.collect();
            println!("{:#}", json!({ "pilot": pilot, "daemons": daemons }));
        }
    }
    for failure in &failures {
        eprintln!("meshctl: {failure}");
    }
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

async fn one_daemon(cli: &Cli, path: &str) -> anyhow::Result<Value> {
    match cli.daemon.as_slice() {
        [one] => ask::get(one, path).await,
        several => bail!("only status asks several daemons, {} are given", several.len()),
    }
}

/// The entries of one list of a dump.
fn entries(dump: &Value, list: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let all = dump[list].as_array().into_iter().flatten();
    all.filter(|entry| wanted(entry)).cloned().collect()
}

fn is(entry: &Value, field: &str, wanted: Option<&str>) -> bool {
    wanted.is_none_or(|wanted| entry[field] == wanted)
}

fn print<T: DeserializeOwned>(
    cli: &Cli,
    answer: &Value,
    table: impl FnOnce(T) -> String,
) -> anyhow::Result<()> {
    match cli.output {
        Output::Table => print!("{}", table(read(answer)?)),
        Output::Json => println!("{answer:#}"),
    }
    Ok(())
}

fn read<T: DeserializeOwned>(answer: &Value) -> anyhow::Result<T> {
    T::deserialize(answer).context("the answer is not what this version of meshctl understands")
}
