//! `meshctl explain config`: which objects made what a client is sent.
//!
//! In: a folder and a client. Out: each resource, and each part of one, with the objects it comes from and what each has to
//! do with it. The compiler itself says so.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Args;
use pilot::{
    compile::{self, MeshConfig, Origin},
    offline::Audience,
    settings::Mesh,
};
use serde_json::{Value, json};

use crate::{Output, input::Input};

/// What is explained.
#[derive(Args)]
pub(crate) struct Arguments {
    /// A folder of manifests.
    folder: PathBuf,
    /// `ztunnel`, or `waypoint/NAMESPACE/NAME` of a Gateway.
    #[arg(long = "for", value_name = "CLIENT")]
    client: Audience,
    /// Only resources of this type: address, authorization, listener, cluster or endpoint.
    #[arg(long = "type", value_name = "TYPE")]
    of: Option<String>,
    /// Only those whose name, or part, has this text.
    text: Option<String>,
    #[command(flatten)]
    mesh: Mesh,
}

/// Prints what is asked for. Fails with 1 if there is no such resource.
pub(crate) fn run(arguments: &Arguments, output: Output) -> anyhow::Result<ExitCode> {
    let base: MeshConfig = arguments.mesh.clone().into();
    let input = Input::of_folder(&arguments.folder, &base)?;
    let origins = match &arguments.client {
        Audience::Ztunnel => compile::of_daemons(&input.manifests, &input.config),
        Audience::Waypoint { namespace, name } => {
            compile::waypoint::origins_of_gateway(&input.manifests, &input.config, namespace, name)
                .with_context(|| {
                    format!(
                        "there is no Gateway {namespace}/{name} that is a waypoint and has a pod"
                    )
                })?
        }
    };
    let wanted = |origin: &&Origin| {
        let text = arguments.text.as_deref().unwrap_or_default();
        arguments.of.as_ref().is_none_or(|of| of == origin.of)
            && (origin.name.contains(text) || origin.part.contains(text))
    };
    let origins: Vec<_> = origins.iter().filter(wanted).collect();
    match output {
        Output::Table => print!("{}", for_people(&origins)),
        Output::Json => {
            let all: Value = origins.iter().map(|origin| as_json(origin)).collect();
            println!("{all:#}");
        }
    }
    Ok(if origins.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn for_people(origins: &[&Origin]) -> String {
    let mut text = String::new();
    for origin in origins {
        text += &format!("{} {}", origin.of, origin.name);
        if !origin.part.is_empty() {
            text += &format!(", {}", origin.part);
        }
        text += "\n";
        for source in &origin.sources {
            let slash = if source.namespace.is_empty() { "" } else { "/" };
            text += &format!(
                "    {} {}{slash}{} {}: {}\n",
                source.kind, source.namespace, source.name, source.role, source.place
            );
        }
    }
    text
}

fn as_json(origin: &Origin) -> Value {
    let sources = origin.sources.iter().map(|source| {
        json!({
            "kind": source.kind,
            "namespace": &*source.namespace,
            "name": &*source.name,
            "place": source.place.to_string(),
            "role": source.role,
        })
    });
    json!({
        "type": origin.of,
        "name": origin.name,
        "part": origin.part,
        "sources": sources.collect::<Value>(),
    })
}
