//! Where configuration comes from and who asks for it.

use std::collections::BTreeMap;

use proto::{
    envoy::envoy::config::core::v3::Node,
    google::{ListValue, Struct, Value, value::Kind},
};

use super::OnDemand;
use crate::identity::ServerConfig;

/// Where configuration comes from and who asks.
#[derive(Clone, Debug)]
pub struct XdsConfig {
    /// The server.
    pub server: ServerConfig,
    /// Node id, such as `ztunnel~10.0.0.1~ztunnel-x.istio-system~istio-system.svc.cluster.local`: its first part tells
    /// the server which kind of proxy asks.
    pub node_id: String,
    /// Node metadata, such as `NODE_NAME` and `CLUSTER_ID`.
    pub node_metadata: BTreeMap<String, serde_json::Value>,
    /// The namespace whose policies are for everyone.
    pub root_namespace: String,
    /// Whether the node wants all addresses there are, or asks for single ones.
    pub on_demand: OnDemand,
}

impl XdsConfig {
    /// The Kubernetes node, as the metadata has it.
    pub(super) fn node_name(&self) -> &str {
        self.node_metadata.get("NODE_NAME").and_then(|name| name.as_str()).unwrap_or_default()
    }

    pub(super) fn node(&self) -> Node {
        let fields =
            self.node_metadata.iter().map(|(key, value)| (key.clone(), struct_value(value)));
        Node {
            id: self.node_id.clone(),
            metadata: Some(Struct { fields: fields.collect() }),
            ..Node::default()
        }
    }
}

fn struct_value(json: &serde_json::Value) -> Value {
    let kind = match json {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(value) => Kind::BoolValue(*value),
        serde_json::Value::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or(f64::NAN)),
        serde_json::Value::String(value) => Kind::StringValue(value.clone()),
        serde_json::Value::Array(values) => {
            Kind::ListValue(ListValue { values: values.iter().map(struct_value).collect() })
        }
        serde_json::Value::Object(fields) => {
            let fields = fields.iter().map(|(key, value)| (key.clone(), struct_value(value)));
            Kind::StructValue(Struct { fields: fields.collect() })
        }
    };
    Value { kind: Some(kind) }
}
