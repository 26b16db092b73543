//! The pages of `docs/`: every example is applied to the mesh of `mesh.yaml`, and every claim beside it is checked.
//!
//! Below an example stand comments: `sent: CLIENT TYPE NAME: TEXT` (the resource's JSON has that text; without one, it is
//! there), `not sent: …`, and `finds: CODES`, which are all that the analysis finds.

#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    path::PathBuf,
};

use pilot::{
    analysis::{analyze, with_problems},
    compile::MeshConfig,
    manifests::{Folder, Kind},
    offline::{self, Audience, Type},
};
use serde_json::Value;

fn docs() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

struct Example {
    page: String,
    yaml: String,
    claims: Vec<String>,
}

/// The examples of a page with the claims below each.
fn examples(page: &str, text: &str) -> Vec<Example> {
    let mut parts = text.split("```yaml\n");
    parts.next();
    let example = |part: &str| {
        let (yaml, after) = part.split_once("\n```").unwrap();
        let claims = after.lines().filter_map(|line| {
            line.strip_prefix("<!-- ").map(|line| line.strip_suffix(" -->").unwrap().to_owned())
        });
        Example { page: page.to_owned(), yaml: format!("{yaml}\n"), claims: claims.collect() }
    };
    parts.map(example).collect()
}

/// Kind, group, namespace and name of a document.
fn identity(document: &str) -> Vec<String> {
    let value: serde_yaml_ng::Value = serde_yaml_ng::from_str(document).unwrap();
    let text = |value: &serde_yaml_ng::Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &value["metadata"];
    let parts = [&value["kind"], &value["apiVersion"], &metadata["namespace"], &metadata["name"]];
    parts.into_iter().map(text).collect()
}

/// The mesh with the example's objects, which stand in place of those of the same name.
fn with_mesh(yaml: &str) -> String {
    let own: Vec<_> = yaml.split("\n---\n").map(identity).collect();
    let mesh = fs::read_to_string(docs().join("mesh.yaml")).unwrap();
    let kept = mesh.split("\n---\n").filter(|document| !own.contains(&identity(document)));
    let mut all: Vec<_> = kept.collect();
    all.push(yaml);
    all.join("\n---\n")
}

type Sent = BTreeMap<Type, offline::Resources>;

/// What clients are sent, by their names, and the codes of what is found.
fn apply(yaml: &str) -> (BTreeMap<String, Sent>, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("all.yaml"), yaml).unwrap();
    let mut folder = Folder::new(dir.path());
    folder.refresh(&HashSet::new()).unwrap();
    let (manifests, mut problems) = folder.load("istio-system");
    let (config, of_config) = MeshConfig::default().with_settings_of(&manifests);
    problems.extend(of_config);
    let found = with_problems(analyze(&manifests, &config), &problems);
    let found = found.iter().map(ToString::to_string).collect();
    let waypoints = manifests.gateways.iter();
    let waypoints = waypoints.map(|one| Audience::Waypoint {
        namespace: one.meta.namespace.to_string(),
        name: one.meta.name.to_string(),
    });
    let clients = std::iter::once(Audience::Ztunnel).chain(waypoints);
    let sent = clients.filter_map(|client| {
        let sent = offline::resources(&manifests, &config, &client);
        // A waypoint without pod is sent nothing.
        let without_pod = client != Audience::Ztunnel && sent.is_err();
        (!without_pod).then(|| (client.to_string(), sent.unwrap()))
    });
    (sent.collect(), found)
}

fn check(example: &Example) {
    let (sent, found) = apply(&with_mesh(&example.yaml));
    let place = format!("{}: {}", example.page, example.yaml.lines().nth(1).unwrap());
    let mut expected = Vec::new();
    for claim in &example.claims {
        let (what, rest) = claim.split_once(": ").unwrap();
        match what {
            "finds" => expected.extend(rest.split(' ')),
            "sent" => assert!(is_sent(&sent, rest), "{place}: {claim}: {}", show(&sent, rest)),
            "not sent" => assert!(!is_sent(&sent, rest), "{place}: {claim}"),
            other => panic!("{place}: {other}"),
        }
    }
    let codes: Vec<_> = found.iter().map(|line| line.split(' ').nth(2).unwrap()).collect();
    let codes: Vec<_> = codes.iter().map(|code| code.trim_end_matches(':')).collect();
    assert_eq!(codes, expected, "{place}: {found:#?}");
    assert!(!example.claims.is_empty(), "{place}: nothing is claimed");
}

/// The resource that a claim names, and the text.
fn claimed<'a, 'b>(
    sent: &'a BTreeMap<String, Sent>,
    claim: &'b str,
) -> (Option<&'a Value>, Option<&'b str>) {
    let mut parts = claim.splitn(3, ' ');
    let (client, of, rest) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
    let (name, text) = match rest.split_once(": ") {
        Some((name, text)) => (name, Some(text)),
        None => (rest, None),
    };
    let by_type = sent.get(client).unwrap_or_else(|| panic!("no client {client}"));
    let (_, resources) = by_type.iter().find(|(one, _)| one.name() == of).unwrap();
    (resources.get(name), text)
}

fn is_sent(sent: &BTreeMap<String, Sent>, claim: &str) -> bool {
    let (resource, text) = claimed(sent, claim);
    resource.is_some_and(|resource| text.is_none_or(|text| resource.to_string().contains(text)))
}

fn show(sent: &BTreeMap<String, Sent>, claim: &str) -> String {
    match claimed(sent, claim).0 {
        Some(resource) => resource.to_string(),
        None => "there is none".to_owned(),
    }
}

fn pages() -> Vec<(String, String)> {
    let files = fs::read_dir(docs()).unwrap().map(|entry| entry.unwrap().path());
    let pages = files.filter(|path| path.extension().is_some_and(|kind| kind == "md"));
    let mut pages: Vec<_> = pages
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, fs::read_to_string(path).unwrap())
        })
        .collect();
    pages.sort();
    pages
}

#[test]
fn the_mesh_of_the_examples_is_as_it_should_be() {
    let (sent, found) = apply(&fs::read_to_string(docs().join("mesh.yaml")).unwrap());
    assert_eq!(found, Vec::<String>::new());
    assert!(sent.contains_key("waypoint/shop/waypoint"));
}

#[test]
fn every_example_compiles_to_what_is_said_beside_it() {
    for (page, text) in pages() {
        let examples = examples(&page, &text);
        let is_table = matches!(page.as_str(), "README.md" | "codes.md");
        assert_eq!(examples.is_empty(), is_table, "{page}");
        examples.iter().for_each(check);
    }
}

#[test]
fn every_kind_has_its_page() {
    let text = fs::read_to_string(docs().join("README.md")).unwrap();
    let mut listed = BTreeSet::new();
    for line in text.lines().filter(|line| line.contains(".md)")) {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let [_, kind, group, page, _] = cells.as_slice() else { continue };
        let (_, file) = page.split_once("](").unwrap();
        let file = file.trim_end_matches(')');
        let page = fs::read_to_string(docs().join(file)).unwrap();
        assert!(page.contains(kind), "{file} says nothing of {kind}");
        listed.insert(((*kind).to_owned(), (*group).to_owned()));
    }
    let served = Kind::ALL.iter().map(|kind| {
        let group = kind.versions()[0].rsplit_once('/').map_or("", |(group, _)| group);
        (kind.name().to_owned(), group.to_owned())
    });
    assert_eq!(listed, served.collect());
}

#[test]
fn links_between_pages_lead_somewhere() {
    for (page, text) in pages() {
        for link in text.split("](").skip(1) {
            let target = link.split(')').next().unwrap();
            assert!(docs().join(target).is_file(), "{page}: {target}");
        }
    }
}
