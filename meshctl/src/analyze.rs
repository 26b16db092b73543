//! `meshctl analyze`: what is valid and yet not what was meant.
//!
//! In: a folder of manifests, or an API server. Out: findings with their codes, for people with what helps.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use pilot::{
    analysis::{Finding, Severity, analyze, with_problems},
    compile::MeshConfig,
    settings::Mesh,
};
use serde_json::Value;

use crate::{Output, input::Input};

/// What is looked at.
#[derive(Args)]
pub(crate) struct Arguments {
    /// A folder of manifests.
    #[arg(required_unless_present = "cluster", conflicts_with = "cluster")]
    folder: Option<PathBuf>,
    /// What an API server has, in place of a folder.
    #[arg(long)]
    cluster: bool,
    /// How to reach the API server; else $KUBECONFIG or the pod's service account says.
    #[arg(long, requires = "cluster")]
    kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    mesh: Mesh,
}

/// Prints what is found. Fails if there is an error among it.
pub(crate) async fn run(arguments: &Arguments, output: Output) -> anyhow::Result<ExitCode> {
    let base: MeshConfig = arguments.mesh.clone().into();
    let input = match &arguments.folder {
        Some(folder) => Input::of_folder(folder, &base)?,
        None => Input::of_cluster(arguments.kubeconfig.as_ref(), &base).await?,
    };
    let findings = with_problems(analyze(&input.manifests, &input.config), &input.problems);
    match output {
        Output::Table => print!("{}", for_people(&findings)),
        Output::Json => {
            let all: Value = findings.iter().map(Finding::json).collect();
            println!("{all:#}");
        }
    }
    let is_bad = findings.iter().any(|finding| finding.code.severity() == Severity::Error);
    Ok(if is_bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn for_people(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        text += &format!("{finding}\n    {}\n", finding.code.remedy());
    }
    let count = |severity| findings.iter().filter(|one| one.code.severity() == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    text + &format!("{errors} errors, {warnings} warnings, {} notes\n", count(Severity::Note))
}
