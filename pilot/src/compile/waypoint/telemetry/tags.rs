//! What a trace is told of a request.
//!
//! In: the proxy, and the tags that a Telemetry asks for. Out: tags sorted by name.

use proto::envoy::envoy::r#type::{
    metadata::v3::{
        MetadataKey, MetadataKind,
        metadata_key::{PathSegment, path_segment},
        metadata_kind,
    },
    tracing::v3::{
        CustomTag,
        custom_tag::{Environment, Header, Literal, Metadata, Type},
    },
};

use crate::{compile::waypoint::Context, manifests::telemetry};

/// What Istio's proxy knows of a peer, with the name of the tag's end.
const PEER_FIELDS: [(&str, &str); 9] = [
    ("app", "app"),
    ("app_version", "version"),
    ("canonical_revision", "revision"),
    ("canonical_service", "service"),
    ("cluster_id", "cluster"),
    ("instance_name", "name"),
    ("namespace", "namespace"),
    ("workload", "workload"),
    ("workload_type", "type"),
];

fn tag(name: impl Into<String>, what: Type) -> CustomTag {
    CustomTag { tag: name.into(), r#type: Some(what) }
}

/// Tags that every span has: of the policies under trial, of the proxy itself, and of both peers.
pub(super) fn standard(context: &Context<'_>) -> Vec<CustomTag> {
    let mut tags = Vec::new();
    for (action, end, key) in [
        ("allow", "name", "effective_policy_id"),
        ("allow", "result", "engine_result"),
        ("deny", "name", "effective_policy_id"),
        ("deny", "result", "engine_result"),
    ] {
        let key = format!("istio_dry_run_{action}_shadow_{key}");
        let name = format!("istio.authorization.dry_run.{action}_policy.{end}");
        tags.push(tag(name, Type::Metadata(of_rbac(key))));
    }
    let client = context.client;
    let label = |name: &str| client.labels.get(name).cloned().unwrap_or_default();
    for (name, value) in [
        ("istio.canonical_revision", label("service.istio.io/canonical-revision")),
        ("istio.canonical_service", label("service.istio.io/canonical-name")),
        ("istio.cluster_id", client.cluster_id.clone()),
        ("istio.mesh_id", context.config.trust_domain.clone()),
        ("istio.namespace", client.namespace.clone()),
    ] {
        if !value.is_empty() {
            tags.push(tag(name, Type::Literal(Literal { value })));
        }
    }
    for (side, object) in [("destination", "upstream_peer_obj"), ("source", "downstream_peer_obj")]
    {
        for (name, field) in PEER_FIELDS {
            let value = format!("%FILTER_STATE({object}:FIELD:{field})%");
            tags.push(tag(format!("istio.{side}_{name}"), Type::Value(value)));
        }
    }
    tags
}

fn of_rbac(key: String) -> Metadata {
    let path = PathSegment { segment: Some(path_segment::Segment::Key(key)) };
    Metadata {
        kind: Some(MetadataKind {
            kind: Some(metadata_kind::Kind::Request(metadata_kind::Request {})),
        }),
        metadata_key: Some(MetadataKey {
            key: "envoy.filters.http.rbac".to_owned(),
            path: vec![path],
        }),
        default_value: String::new(),
    }
}

/// A tag that a Telemetry asks for; nothing if it does not say what it is.
pub(super) fn custom(name: &str, written: &telemetry::CustomTag) -> Option<CustomTag> {
    let what = if let Some(literal) = &written.literal {
        Type::Literal(Literal { value: literal.value.clone() })
    } else if let Some(environment) = &written.environment {
        Type::Environment(Environment {
            name: environment.name.clone(),
            default_value: environment.default_value.clone(),
        })
    } else if let Some(header) = &written.header {
        Type::RequestHeader(Header {
            name: header.name.clone(),
            default_value: header.default_value.clone(),
        })
    } else {
        Type::Value(written.formatter.as_ref()?.value.clone())
    };
    Some(tag(name, what))
}
