//! The definitions of Istio's kinds that pilot prints, on an API server.

use std::{fs, path::Path, process::Command};

use serde_json::Value;

use crate::server::{Server, documents};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/fixtures/istiod");

fn definitions() -> Vec<Value> {
    let output = Command::new(env!("CARGO_BIN_EXE_pilot")).arg("crds").output().unwrap();
    assert!(output.status.success());
    documents(&String::from_utf8(output.stdout).unwrap())
}

/// What the server adds to every object.
fn without_additions(mut object: Value) -> Value {
    let metadata = object["metadata"].as_object_mut().unwrap();
    for key in ["creationTimestamp", "generation", "managedFields", "resourceVersion", "uid"] {
        metadata.remove(key);
    }
    // Written through its own subresource.
    object.as_object_mut().unwrap().remove("status");
    object
}

#[tokio::test]
async fn every_definition_is_taken_and_every_object_of_the_recordings_is_stored_as_it_is() {
    let Some(server) = Server::start().await else { return };
    let definitions = definitions();
    assert_eq!(definitions.len(), 15);
    for definition in &definitions {
        server.apply(definition.clone()).await;
    }
    for definition in &definitions {
        let name = definition["metadata"]["name"].as_str().unwrap();
        let stored = server.established(name).await;
        let conditions = stored["status"]["conditions"].to_string();
        assert!(!conditions.contains("NonStructuralSchema"), "{name}: {conditions}");
    }
    let mut stored = 0;
    for case in fs::read_dir(FIXTURES).unwrap() {
        let path = case.unwrap().path().join("input.yaml");
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for object in documents(&text) {
            let version = object["apiVersion"].as_str().unwrap_or_default().to_owned();
            if !version.contains(".istio.io/") {
                continue;
            }
            let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
            let (namespace, name) = (text("namespace"), text("name"));
            server.create_namespace(&namespace).await;
            server.apply_when_served(object.clone()).await;
            let kind = object["kind"].as_str().unwrap().to_owned();
            let found = server.get(&version, &kind, &namespace, &name).await;
            let title = format!("{}: {kind} {namespace}/{name}", path.display());
            assert_eq!(without_additions(found), without_additions(object), "{title}");
            stored += 1;
            let api = server.api_of(&version, &kind, &namespace);
            api.delete(&name, &Default::default()).await.unwrap();
        }
    }
    assert!(stored > 100 || !Path::new(FIXTURES).exists(), "{stored}");
}
