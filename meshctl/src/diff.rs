//! `meshctl diff`: what clients would be sent otherwise, if a folder were applied.
//!
//! In: a folder, and what it is compared with: another folder, or a running pilot's debug port. Out: for the daemons and for
//! each waypoint the resources that would be there, be gone or be changed, with the fields that are. Folders are compiled by
//! pilot's own code; of a running pilot, what its clients have is asked.

mod fields;
mod running;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::Args;
use pilot::{
    compile::MeshConfig,
    manifests::{Manifests, Meta, Severity},
    offline::{self, Audience},
    settings::Mesh,
};
use serde_json::{Value, json};

use crate::{Output, input::Input};
use fields::{Field, changed};

/// What is compared.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The folder that might be applied.
    folder: PathBuf,
    /// A folder of what is applied, or `http://ADDRESS` of a pilot's debug port; without it, that of `--pilot`.
    #[arg(long, value_name = "FOLDER|URL")]
    against: Option<String>,
    #[command(flatten)]
    mesh: Mesh,
}

/// Resources by type and name.
type Sent = BTreeMap<(&'static str, String), Value>;

/// What becomes of one resource.
#[derive(Debug, PartialEq)]
enum Change {
    Added,
    Removed,
    Changed(Vec<Field>),
}

/// One resource of one client that changes.
#[derive(Debug, PartialEq)]
struct Difference {
    client: String,
    of: &'static str,
    name: String,
    change: Change,
}

/// Prints what would change. Fails with 1 if anything would.
pub(crate) async fn run(
    arguments: &Arguments,
    pilot: &str,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let base: MeshConfig = arguments.mesh.clone().into();
    let read = |folder: &Path| {
        let input = Input::of_folder(folder, &base)?;
        warn(&input);
        anyhow::Ok(input)
    };
    let folder = read(&arguments.folder)?;
    let mut after = all(&folder)?;
    let against = arguments.against.as_deref().unwrap_or(pilot);
    let before = if against.starts_with("http://") {
        let before = running::all(against, &folder.manifests).await?;
        // Of clients that are not connected nothing is known.
        for client in after.keys().filter(|client| !before.contains_key(*client)) {
            eprintln!("meshctl: {client} is not connected to {against}, and not compared");
        }
        after.retain(|client, _| before.contains_key(client));
        before
    } else {
        all(&read(Path::new(against)).context("what is applied")?)?
    };
    let differences = compare(&before, &after);
    match output {
        Output::Table => print!("{}", for_people(&differences)),
        Output::Json => {
            let all: Value = differences.iter().map(Difference::json).collect();
            println!("{all:#}");
        }
    }
    Ok(if differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is refused is not applied, and not compared.
fn warn(input: &Input) {
    for problem in input.problems.iter().filter(|one| one.severity == Severity::Error) {
        eprintln!("meshctl: {problem}");
    }
}

/// What every client would be sent.
fn all(input: &Input) -> anyhow::Result<BTreeMap<String, Sent>> {
    let waypoints = waypoints(&input.manifests).into_iter().map(|(client, _)| client);
    let clients = std::iter::once(Audience::Ztunnel).chain(waypoints);
    let mut all = BTreeMap::new();
    for client in clients {
        let resources = offline::resources(&input.manifests, &input.config, &client)?;
        let mut sent = Sent::new();
        for (of, resources) in resources {
            // A waypoint takes the resources of daemons as well, the same ones.
            let shared = matches!(of, offline::Type::Address | offline::Type::Authorization);
            if client == Audience::Ztunnel || !shared {
                sent.extend(resources.into_iter().map(|(name, value)| ((of.name(), name), value)));
            }
        }
        all.insert(client.to_string(), sent);
    }
    Ok(all)
}

/// The waypoints that have a pod, with the first one: others are sent nothing.
fn waypoints(manifests: &Manifests) -> Vec<(Audience, &Meta)> {
    const OF: &str = "gateway.networking.k8s.io/gateway-name";
    let gateways = manifests.gateways.iter().filter(|gateway| {
        let class = gateway.spec.gateway_class_name.as_str();
        matches!(class, "istio-waypoint" | "istio-east-west")
    });
    let with_pod = gateways.filter_map(|gateway| {
        let Meta { namespace, name, .. } = &gateway.meta;
        let mut pods = manifests.pods.iter().map(|pod| &pod.meta);
        let pod = pods.find(|pod| {
            pod.namespace == *namespace && pod.labels.get(OF).is_some_and(|of| **of == **name)
        })?;
        let (namespace, name) = (namespace.to_string(), name.to_string());
        Some((Audience::Waypoint { namespace, name }, pod))
    });
    with_pod.collect()
}

fn compare(before: &BTreeMap<String, Sent>, after: &BTreeMap<String, Sent>) -> Vec<Difference> {
    let nothing = Sent::new();
    let clients: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let mut differences = Vec::new();
    for client in clients {
        let before = before.get(client).unwrap_or(&nothing);
        let after = after.get(client).unwrap_or(&nothing);
        let keys: BTreeSet<_> = before.keys().chain(after.keys()).collect();
        for key in keys {
            let change = match (before.get(key), after.get(key)) {
                (None, Some(_)) => Change::Added,
                (Some(_), None) => Change::Removed,
                (Some(before), Some(after)) if before != after => {
                    Change::Changed(changed(before, after))
                }
                (Some(_), Some(_)) | (None, None) => continue,
            };
            let (client, name) = (client.clone(), key.1.clone());
            differences.push(Difference { client, of: key.0, name, change });
        }
    }
    differences
}

fn for_people(differences: &[Difference]) -> String {
    let mut text = String::new();
    let mut client = "";
    for one in differences {
        if one.client != client {
            text += &format!("{}\n", one.client);
            client = &one.client;
        }
        let sign = match one.change {
            Change::Added => '+',
            Change::Removed => '-',
            Change::Changed(_) => '~',
        };
        text += &format!("  {sign} {} {}\n", one.of, one.name);
        if let Change::Changed(fields) = &one.change {
            for field in fields {
                text += &format!("      {field}\n");
            }
        }
    }
    text
}

impl Difference {
    fn json(&self) -> Value {
        let (change, fields) = match &self.change {
            Change::Added => ("added", Vec::new()),
            Change::Removed => ("removed", Vec::new()),
            Change::Changed(fields) => ("changed", fields.iter().map(Field::json).collect()),
        };
        json!({
            "client": self.client, "type": self.of, "name": self.name, "change": change, "fields": fields,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(resources: &[(&'static str, &str, Value)]) -> BTreeMap<String, Sent> {
        let resources = resources.iter();
        let sent = resources.map(|(of, name, value)| ((*of, (*name).to_owned()), value.clone()));
        BTreeMap::from([("ztunnel".to_owned(), sent.collect())])
    }

    #[test]
    fn what_is_on_one_side_only_is_added_or_removed() {
        let before = sent(&[("address", "a", json!({})), ("address", "b", json!({"x": 1}))]);
        let after = sent(&[("address", "b", json!({"x": 2})), ("authorization", "a", json!({}))]);
        let expected = "\
ztunnel
  - address a
  ~ address b
      x: 1 -> 2
  + authorization a
";
        assert_eq!(for_people(&compare(&before, &after)), expected);
        assert_eq!(compare(&before, &before), []);
    }
}
