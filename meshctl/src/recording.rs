//! What a control plane sent to its clients, as files.
//!
//! In: a folder. Out: for each client and resource type the responses in order, and what they amount to. For a client `C`
//! and type `T`, `C.T.pb` has the responses, each after its length as a varint; `C.T.json` has the resources by name, and
//! is read where there is no `.pb`, so that it can be written by hand; `C.churn.json` is a log of requests and responses.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    hash::Hasher,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use prost::Message;
use proto::{
    discovery::{DeltaDiscoveryResponse, Resource},
    google::Any,
};
use serde_json::{Map, Value};
use twox_hash::XxHash64;

use pilot::proto_json;

/// The types in recordings, in the order in which a client subscribes: the word in file names, and the type URL.
pub(crate) const TYPES: [(&str, &str); 8] = [
    ("address", proto::ADDRESS_TYPE),
    ("authorization", proto::AUTHORIZATION_TYPE),
    ("cds", "type.googleapis.com/envoy.config.cluster.v3.Cluster"),
    ("eds", "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"),
    ("lds", "type.googleapis.com/envoy.config.listener.v3.Listener"),
    ("ecds", "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"),
    ("nds", "type.googleapis.com/istio.networking.nds.v1.NameTable"),
    ("workload", "type.googleapis.com/istio.workload.Workload"),
];

/// The word for a type in file names and messages: the URL itself if it has none.
pub(crate) fn word(type_url: &str) -> &str {
    TYPES.iter().find(|(_, url)| *url == type_url).map_or(type_url, |(word, _)| word)
}

/// Everything in a folder, by client.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Recordings {
    clients: BTreeMap<String, Recording>,
}

/// What one client was sent, by type URL.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Recording {
    /// In order of arrival. A type with an empty list was asked for and not answered.
    pub(crate) responses: BTreeMap<String, Vec<DeltaDiscoveryResponse>>,
}

/// Which files of a folder count.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Source {
    /// The responses to a subscription.
    Resources,
    /// The logs.
    Churn,
}

impl Recordings {
    /// Reads a folder.
    ///
    /// # Errors
    /// If a file cannot be read or says what cannot be; it is named.
    pub(crate) fn read(folder: &Path, source: Source) -> Result<Self> {
        let mut recordings = Self::default();
        let entries =
            fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
        let paths: BTreeSet<PathBuf> =
            entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
        for path in &paths {
            recordings.take(path, source).with_context(|| format!("reading {}", path.display()))?;
        }
        ensure!(!recordings.clients.is_empty(), "{} has no recording", folder.display());
        Ok(recordings)
    }

    fn take(&mut self, path: &Path, source: Source) -> Result<()> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let mut parts = name.rsplitn(3, '.');
        let (Some(form), Some(word), Some(client)) = (parts.next(), parts.next(), parts.next())
        else {
            return Ok(());
        };
        let responses = match (source, form, word) {
            (Source::Churn, "json", "churn") => log(&fs::read(path)?)?,
            (Source::Resources, "pb" | "json", word) => {
                let Some((_, url)) = TYPES.iter().find(|(known, _)| *known == word) else {
                    return Ok(());
                };
                let responses = match form {
                    "pb" => delimited(&fs::read(path)?)?,
                    _ if path.with_extension("pb").exists() => return Ok(()),
                    _ => written(url, &fs::read(path)?)?,
                };
                let recorded = self.clients.entry(client.to_owned()).or_default();
                recorded.responses.entry((*url).to_owned()).or_default();
                responses
            }
            _ => return Ok(()),
        };
        let recorded = self.clients.entry(client.to_owned()).or_default();
        for response in responses {
            recorded.responses.entry(response.type_url.clone()).or_default().push(response);
        }
        Ok(())
    }

    /// The recording for the client with this node id: that of the same name, or the only one there is.
    ///
    /// A ztunnel's is called `ztunnel`, a waypoint's as its Gateway, by which its pods' names begin.
    pub(crate) fn of(&self, node_id: &str) -> Option<(&str, &Recording)> {
        let mut fields = node_id.split('~');
        let (kind, pod) = (fields.next()?, fields.nth(1).unwrap_or_default());
        let pod = pod.split('.').next().unwrap_or_default();
        let is_meant = |client: &str| match kind {
            "ztunnel" => client == "ztunnel",
            _ => pod
                .strip_prefix(client)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('-')),
        };
        let meant = self.clients.iter().filter(|(client, _)| is_meant(client));
        let only = self.clients.iter().next().filter(|_| self.clients.len() == 1);
        let (client, recording) = meant.max_by_key(|(client, _)| client.len()).or(only)?;
        Some((client, recording))
    }

    /// Leaves only the recording of one client.
    ///
    /// # Errors
    /// If there is none; those that are there are named.
    pub(crate) fn only(mut self, client: &str) -> Result<Self> {
        let names: Vec<&str> = self.clients.keys().map(String::as_str).collect();
        let names = names.join(", ");
        self.clients.retain(|name, _| name == client);
        ensure!(!self.clients.is_empty(), "no recording is called {client}, there are: {names}");
        Ok(self)
    }
}

impl Recording {
    /// What the responses of a type amount to: the resources by name.
    pub(crate) fn resources(&self, type_url: &str) -> BTreeMap<&str, &Resource> {
        let mut resources = BTreeMap::new();
        for response in self.responses.get(type_url).into_iter().flatten() {
            for resource in &response.resources {
                resources.insert(resource.name.as_str(), resource);
            }
            for name in &response.removed_resources {
                resources.remove(name.as_str());
            }
        }
        resources
    }

    /// Takes out what differs from one run to another: nonces are numbered through in the order of types, and resources
    /// of a response sorted by name.
    pub(crate) fn normalise(&mut self) {
        let mut number = 0;
        for (_, url) in TYPES {
            for response in self.responses.get_mut(url).into_iter().flatten() {
                number += 1;
                response.nonce = format!("nonce-{number}");
                response.system_version_info.clear();
                response.resources.sort_by(|a, b| a.name.cmp(&b.name));
                response.removed_resources.sort();
            }
        }
    }

    /// Writes the files of `client` into a folder that exists.
    ///
    /// # Errors
    /// If a file cannot be written, or a resource is of a type that cannot be written as JSON.
    pub(crate) fn write(&self, folder: &Path, client: &str) -> Result<()> {
        for (url, responses) in &self.responses {
            let word = word(url);
            let encoded: Vec<u8> =
                responses.iter().flat_map(Message::encode_length_delimited_to_vec).collect();
            let mut by_name = Map::new();
            for (name, resource) in self.resources(url) {
                let any = resource.resource.as_ref().with_context(|| format!("{name} is empty"))?;
                let any = Any { type_url: any.type_url.clone(), value: any.value.clone() };
                by_name
                    .insert(name.to_owned(), proto_json::from_any(&any).context(name.to_owned())?);
            }
            let mut text = serde_json::to_string_pretty(&Value::Object(by_name))?;
            text.push('\n');
            for (form, bytes) in [("pb", encoded), ("json", text.into_bytes())] {
                let path = folder.join(format!("{client}.{word}.{form}"));
                fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
            }
        }
        Ok(())
    }
}

fn delimited(mut bytes: &[u8]) -> Result<Vec<DeltaDiscoveryResponse>> {
    let mut responses = Vec::new();
    while !bytes.is_empty() {
        let number = responses.len() + 1;
        let response = DeltaDiscoveryResponse::decode_length_delimited(&mut bytes);
        responses.push(response.with_context(|| format!("response {number}"))?);
    }
    Ok(responses)
}

/// Resources by name, as one response.
fn written(type_url: &str, bytes: &[u8]) -> Result<Vec<DeltaDiscoveryResponse>> {
    let by_name: BTreeMap<String, Value> = serde_json::from_slice(bytes)?;
    let mut resources = Vec::new();
    for (name, value) in by_name {
        let any = proto_json::to_any(&value).with_context(|| name.clone())?;
        if any.type_url != type_url {
            bail!("{name} is a {}, the file is for {type_url}", any.type_url);
        }
        resources.push(resource(name, any));
    }
    let type_url = type_url.to_owned();
    Ok(vec![DeltaDiscoveryResponse { type_url, resources, ..Default::default() }])
}

/// A resource with the version that istiod gives it: of its content, and none for policies.
fn resource(name: String, any: Any) -> Resource {
    let mut hasher = XxHash64::with_seed(0);
    hasher.write(&any.value);
    let is_hashed = any.type_url != proto::AUTHORIZATION_TYPE;
    let version = if is_hashed { format!("{:x}", hasher.finish()) } else { String::new() };
    Resource { name, version, resource: Some(any), ..Default::default() }
}

/// The responses of a log's first stream.
fn log(bytes: &[u8]) -> Result<Vec<DeltaDiscoveryResponse>> {
    let entries: Vec<Value> = serde_json::from_slice(bytes)?;
    let is_end = |entry: &&Value| entry["dir"] == "error";
    let stream = entries.iter().take_while(|entry| !is_end(entry)).enumerate();
    stream
        .filter(|(_, entry)| entry["dir"] == "response")
        .map(|(number, entry)| {
            proto_json::typed("envoy.service.discovery.v3.DeltaDiscoveryResponse", &entry["msg"])
                .with_context(|| format!("entry {number}"))
        })
        .collect()
}

#[cfg(test)]
#[path = "recording_tests.rs"]
mod tests;
