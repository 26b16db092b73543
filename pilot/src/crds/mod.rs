//! The definitions of Istio's kinds, made from our own types: what pilot reads, an API server stores.
//!
//! In: the types of [`crate::manifests`]. Out: CustomResourceDefinitions with the names, versions and columns that
//! Istio's have. The Gateway API's definitions are its own project's.

mod schema;

use serde_json::{Value, json};

use crate::manifests::{
    AuthorizationPolicy, Kind, PeerAuthentication, RequestAuthentication,
    extensions::{EnvoyFilter, TrafficExtension, WasmPlugin},
    networking::{
        self, DestinationRule, ProxyConfig, ServiceEntry, Sidecar, VirtualService, WorkloadEntry,
        WorkloadGroup,
    },
    telemetry::Telemetry,
};

/// What `kubectl get` shows of an object: title, type and path.
type Column = (&'static str, &'static str, &'static str);

const AGE: Column = ("Age", "date", ".metadata.creationTimestamp");

/// One kind, as the type of its objects does not say it.
struct Definition {
    kind: Kind,
    plural: &'static str,
    short: &'static [&'static str],
    /// The version that objects are stored in.
    stored: &'static str,
    columns: &'static [Column],
    spec: fn() -> Value,
}

const ALL: [Definition; 15] = [
    Definition {
        kind: Kind::VirtualService,
        plural: "virtualservices",
        short: &["vs"],
        stored: "v1",
        columns: &[
            ("Gateways", "string", ".spec.gateways"),
            ("Hosts", "string", ".spec.hosts"),
            AGE,
        ],
        spec: schema::of::<VirtualService>,
    },
    Definition {
        kind: Kind::DestinationRule,
        plural: "destinationrules",
        short: &["dr"],
        stored: "v1",
        columns: &[("Host", "string", ".spec.host"), AGE],
        spec: schema::of::<DestinationRule>,
    },
    Definition {
        kind: Kind::ServiceEntry,
        plural: "serviceentries",
        short: &["se"],
        stored: "v1",
        columns: &[
            ("Hosts", "string", ".spec.hosts"),
            ("Location", "string", ".spec.location"),
            ("Resolution", "string", ".spec.resolution"),
            AGE,
        ],
        spec: schema::of::<ServiceEntry>,
    },
    Definition {
        kind: Kind::WorkloadEntry,
        plural: "workloadentries",
        short: &["we"],
        stored: "v1",
        columns: &[AGE, ("Address", "string", ".spec.address")],
        spec: schema::of::<WorkloadEntry>,
    },
    Definition {
        kind: Kind::WorkloadGroup,
        plural: "workloadgroups",
        short: &["wg"],
        stored: "v1",
        columns: &[AGE],
        spec: schema::of::<WorkloadGroup>,
    },
    Definition {
        kind: Kind::IstioGateway,
        plural: "gateways",
        short: &["gw"],
        stored: "v1",
        columns: &[],
        spec: schema::of::<networking::Gateway>,
    },
    Definition {
        kind: Kind::Sidecar,
        plural: "sidecars",
        short: &[],
        stored: "v1",
        columns: &[],
        spec: schema::of::<Sidecar>,
    },
    Definition {
        kind: Kind::ProxyConfig,
        plural: "proxyconfigs",
        short: &[],
        stored: "v1beta1",
        columns: &[],
        spec: schema::of::<ProxyConfig>,
    },
    Definition {
        kind: Kind::EnvoyFilter,
        plural: "envoyfilters",
        short: &[],
        stored: "v1alpha3",
        columns: &[],
        spec: schema::of::<EnvoyFilter>,
    },
    Definition {
        kind: Kind::AuthorizationPolicy,
        plural: "authorizationpolicies",
        short: &["ap"],
        stored: "v1",
        columns: &[("Action", "string", ".spec.action"), AGE],
        spec: schema::of::<AuthorizationPolicy>,
    },
    Definition {
        kind: Kind::PeerAuthentication,
        plural: "peerauthentications",
        short: &["pa"],
        stored: "v1",
        columns: &[("Mode", "string", ".spec.mtls.mode"), AGE],
        spec: schema::of::<PeerAuthentication>,
    },
    Definition {
        kind: Kind::RequestAuthentication,
        plural: "requestauthentications",
        short: &["ra"],
        stored: "v1",
        columns: &[],
        spec: schema::of::<RequestAuthentication>,
    },
    Definition {
        kind: Kind::Telemetry,
        plural: "telemetries",
        short: &["telemetry"],
        stored: "v1",
        columns: &[AGE],
        spec: schema::of::<Telemetry>,
    },
    Definition {
        kind: Kind::WasmPlugin,
        plural: "wasmplugins",
        short: &[],
        stored: "v1alpha1",
        columns: &[AGE],
        spec: schema::of::<WasmPlugin>,
    },
    Definition {
        kind: Kind::TrafficExtension,
        plural: "trafficextensions",
        short: &[],
        stored: "v1alpha1",
        columns: &[AGE],
        spec: schema::of::<TrafficExtension>,
    },
];

/// All of them.
pub fn all() -> Vec<Value> {
    ALL.iter().map(Definition::json).collect()
}

impl Definition {
    fn json(&self) -> Value {
        let (kind, group) = (self.kind.name(), self.kind.group());
        let schema = self.schema();
        let columns = self
            .columns
            .iter()
            .map(|(name, of, path)| json!({ "name": name, "type": of, "jsonPath": path }));
        let columns: Vec<_> = columns.collect();
        let versions = self.kind.versions().iter().filter_map(|version| version.rsplit('/').next());
        let versions = versions.map(|version| {
            json!({
                "name": version,
                "served": true,
                "storage": version == self.stored,
                "subresources": { "status": {} },
                "additionalPrinterColumns": columns,
                "schema": { "openAPIV3Schema": schema },
            })
        });
        let mut names = json!({
            "kind": kind,
            "listKind": format!("{kind}List"),
            "plural": self.plural,
            "singular": kind.to_lowercase(),
            "categories": ["istio-io", group.replace('.', "-")],
        });
        if !self.short.is_empty() {
            names["shortNames"] = json!(self.short);
        }
        json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": { "name": format!("{}.{group}", self.plural) },
            "spec": {
                "group": group,
                "names": names,
                "scope": "Namespaced",
                "versions": versions.collect::<Vec<_>>(),
            },
        })
    }

    fn schema(&self) -> Value {
        let mut spec = (self.spec)();
        spec["description"] = format!("What the {} says.", self.kind.name()).into();
        json!({
            "type": "object",
            "properties": {
                "spec": spec,
                // Controllers say more in it than ours does.
                "status": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_istios_groups_has_a_definition() {
        let ours = Kind::ALL.iter().filter(|kind| kind.group().ends_with(".istio.io"));
        let defined: Vec<_> = ALL.iter().map(|one| one.kind).collect();
        for kind in ours {
            assert!(defined.contains(kind), "{kind:?}");
        }
        for (definition, of) in all().iter().zip(&ALL) {
            let versions = definition["spec"]["versions"].as_array().unwrap();
            let stored = versions.iter().filter(|version| version["storage"] == true);
            assert_eq!(stored.count(), 1, "{:?}", of.kind);
        }
    }
}
