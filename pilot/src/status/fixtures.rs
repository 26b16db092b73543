//! Compares the statuses we give with those that a real istiod wrote.

use std::{collections::HashSet, fs, path::PathBuf};

use serde_json::Value;

use super::all;
use crate::{
    compile::MeshConfig,
    manifests::{Folder, Kind},
};

/// Kinds of which every status is compared. istiod makes the GatewayClasses itself: a folder has none.
const KINDS: [Kind; 8] = [
    Kind::Gateway,
    Kind::HttpRoute,
    Kind::GrpcRoute,
    Kind::TcpRoute,
    Kind::TlsRoute,
    Kind::Service,
    Kind::ServiceEntry,
    Kind::AuthorizationPolicy,
];

/// ServiceEntries whose `exportTo` we honour: istiod's status says that everybody sees them.
const EXPORTED: [&str; 2] = ["private/only-here", "private/nowhere"];

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures/istiod")
}

/// The objects of a folder have no generation, and the order of conditions means nothing.
fn comparable(mut status: Value) -> Value {
    fn walk(value: &mut Value) {
        match value {
            Value::Object(members) => {
                members.remove("observedGeneration");
                if let Some(Value::Array(conditions)) = members.get_mut("conditions") {
                    conditions.sort_by_key(|condition| condition["type"].to_string());
                }
                members.values_mut().for_each(walk);
            }
            Value::Array(values) => values.iter_mut().for_each(walk),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    walk(&mut status);
    status
}

#[test]
fn istiod_writes_the_same_statuses_of_gateways_and_routes() {
    let mut compared = 0;
    for case in fs::read_dir(fixtures()).unwrap() {
        let path = case.unwrap().path();
        if !path.join("status.json").exists() {
            continue;
        }
        let recorded = fs::read_to_string(path.join("status.json")).unwrap();
        let recorded: Value = serde_json::from_str(&recorded).unwrap();
        let mut folder = Folder::new(path.clone());
        folder.refresh(&HashSet::new()).unwrap();
        let (manifests, _) = folder.load("istio-system");
        let (config, _) = MeshConfig::default().with_settings_of(&manifests);
        let ours = all(&manifests, &config);
        for kind in KINDS {
            let recorded = recorded.get(kind.name()).and_then(Value::as_object);
            let recorded = recorded.cloned().unwrap_or_default();
            let of_kind = ours.iter().filter(|((of, ..), _)| *of == kind);
            let mut of_kind: serde_json::Map<String, Value> = of_kind
                .map(|((_, namespace, name), status)| {
                    (format!("{namespace}/{name}"), status.clone())
                })
                .collect();
            for (name, expected) in recorded {
                let found = of_kind.remove(&name).map(comparable);
                if kind == Kind::ServiceEntry && EXPORTED.contains(&name.as_str()) {
                    assert_ne!(found, Some(comparable(expected)), "{name}");
                    continue;
                }
                let title = format!("{} {} {name}", path.display(), kind.name());
                assert_eq!(found, Some(comparable(expected)), "{title}");
                compared += 1;
            }
            assert!(of_kind.is_empty(), "{} {of_kind:?}", path.display());
        }
    }
    assert!(compared > 20, "{compared}");
}
