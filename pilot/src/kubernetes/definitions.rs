//! Which kinds an API server has, beyond those that every one has.
//!
//! In: a CustomResourceDefinition. Out: the served kind that it defines, and where its objects are. No I/O.

use kube::core::{ApiResource, GroupVersionKind};
use serde_json::Value;

use crate::manifests::Kind;

/// The kinds that every API server has.
pub(super) fn builtin() -> impl Iterator<Item = (Kind, ApiResource)> {
    let all = Kind::ALL.iter().copied().filter(|kind| kind.is_builtin());
    all.map(|kind| {
        let version = kind.versions()[0].rsplit('/').next().unwrap_or_default();
        let plural = match kind.name() {
            name if name.ends_with('y') => format!("{}ies", &name[..name.len() - 1]),
            name => format!("{name}s"),
        };
        (kind, resource(kind, version, &plural.to_lowercase()))
    })
}

/// What a definition defines, if that is served by us, and by the server by now.
pub(super) fn defined(definition: &Value) -> Option<(Kind, ApiResource)> {
    let kind = kind_of(definition).filter(|_| is_established(definition))?;
    let versions = definition.pointer("/spec/versions")?.as_array()?;
    let served = |name: &str| {
        versions.iter().any(|version| {
            version["name"].as_str() == Some(name) && version["served"].as_bool() == Some(true)
        })
    };
    let ours = kind.versions().iter().filter_map(|version| version.rsplit('/').next());
    let version = ours.into_iter().find(|version| served(version))?;
    let plural = definition.pointer("/spec/names/plural")?.as_str()?;
    Some((kind, resource(kind, version, plural)))
}

/// The kind that it defines, whether or not the server has it by now.
pub(super) fn kind_of(definition: &Value) -> Option<Kind> {
    let text = |path: &str| definition.pointer(path).and_then(Value::as_str);
    let kind = Kind::named(text("/spec/group")?, text("/spec/names/kind")?);
    kind.filter(|kind| !kind.is_builtin())
}

fn is_established(definition: &Value) -> bool {
    let conditions = definition.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().any(|condition| {
        condition["type"].as_str() == Some("Established")
            && condition["status"].as_str() == Some("True")
    })
}

/// Where the definitions themselves are.
pub(super) fn definitions() -> ApiResource {
    let of = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    ApiResource::from_gvk_with_plural(&of, "customresourcedefinitions")
}

fn resource(kind: Kind, version: &str, plural: &str) -> ApiResource {
    let of = GroupVersionKind::gvk(kind.group(), version, kind.name());
    ApiResource::from_gvk_with_plural(&of, plural)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn definition(kind: &str, versions: &[(&str, bool)], established: &str) -> Value {
        let versions: Vec<_> =
            versions.iter().map(|(name, served)| json!({"name": name, "served": served})).collect();
        json!({
            "spec": {
                "group": "networking.istio.io",
                "names": {"kind": kind, "plural": "entries"},
                "versions": versions,
            },
            "status": {"conditions": [{"type": "Established", "status": established}]},
        })
    }

    #[test]
    fn the_newest_version_that_both_serve_is_watched() {
        let all = [("v1alpha3", true), ("v1beta1", true), ("v1", true)];
        for (served, expected) in [
            (&all[..], Some("v1")),
            (&all[..2], Some("v1beta1")),
            (&[("v1", false), ("v1alpha3", true)], Some("v1alpha3")),
            (&[("v9", true)], None),
        ] {
            let found = defined(&definition("ServiceEntry", served, "True"));
            let found = found.map(|(kind, resource)| {
                assert_eq!((kind, &*resource.plural), (Kind::ServiceEntry, "entries"));
                resource.version
            });
            assert_eq!(found.as_deref(), expected, "{served:?}");
        }
    }

    #[test]
    fn what_is_not_served_is_passed_over() {
        assert!(defined(&definition("Other", &[("v1", true)], "True")).is_none());
        assert!(defined(&definition("ServiceEntry", &[("v1", true)], "False")).is_none());
        assert!(defined(&json!({})).is_none());
    }

    #[test]
    fn the_kinds_of_every_server_are_where_it_has_them() {
        let plurals: Vec<_> = builtin().map(|(_, resource)| resource.plural).collect();
        let expected = [
            "namespaces",
            "nodes",
            "pods",
            "services",
            "serviceaccounts",
            "configmaps",
            "secrets",
            "endpointslices",
        ];
        assert_eq!(plurals, expected);
    }
}
