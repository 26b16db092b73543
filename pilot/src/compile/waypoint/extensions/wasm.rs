//! A WebAssembly filter as the proxy gets it.

use std::{collections::BTreeMap, time::Duration};

use prost::{Message, Name};
use proto::{
    envoy::envoy::{
        config::{
            core::v3::{
                AsyncDataSource, DataSource, HttpUri, RemoteDataSource, async_data_source,
                data_source, http_uri,
            },
            rbac,
        },
        extensions::filters,
    },
    google::{self, Any},
};

use crate::{
    compile::waypoint::message::{any, duration},
    manifests::{
        Meta,
        extensions::{EnvSource, FailStrategy, PluginType, PullPolicy, VmConfig, WasmExtension},
    },
};

/// How long the code may take to arrive.
const FETCH_TIMEOUT: Duration = Duration::from_secs(30);

/// The filter of requests. These messages are Envoy's, their map in an order.
#[derive(Clone, PartialEq, Message)]
struct HttpWasm {
    #[prost(message, optional, tag = "1")]
    config: Option<Plugin>,
}

impl Name for HttpWasm {
    const NAME: &'static str = "Wasm";
    const PACKAGE: &'static str = "envoy.extensions.filters.http.wasm.v3";
}

/// The filter of connections.
#[derive(Clone, PartialEq, Message)]
struct NetworkWasm {
    #[prost(message, optional, tag = "1")]
    config: Option<Plugin>,
}

impl Name for NetworkWasm {
    const NAME: &'static str = "Wasm";
    const PACKAGE: &'static str = "envoy.extensions.filters.network.wasm.v3";
}

#[derive(Clone, PartialEq, Message)]
struct Plugin {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    root_id: String,
    #[prost(message, optional, tag = "3")]
    vm_config: Option<Vm>,
    #[prost(message, optional, tag = "4")]
    configuration: Option<Any>,
    #[prost(enumeration = "proto::envoy::envoy::extensions::wasm::v3::FailurePolicy", tag = "7")]
    failure_policy: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Vm {
    #[prost(string, tag = "2")]
    runtime: String,
    #[prost(message, optional, tag = "3")]
    code: Option<AsyncDataSource>,
    #[prost(message, optional, tag = "7")]
    environment_variables: Option<Environment>,
}

#[derive(Clone, PartialEq, Message)]
struct Environment {
    #[prost(string, repeated, tag = "1")]
    host_env_keys: Vec<String>,
    #[prost(btree_map = "string, string", tag = "2")]
    key_values: BTreeMap<String, String>,
}

/// The filter of an extension called `name`.
pub(super) fn config(name: &str, meta: &Meta, code: &WasmExtension) -> Any {
    use proto::envoy::envoy::extensions::wasm::v3::FailurePolicy;
    let failure_policy = match code.fail_strategy {
        FailStrategy::FailClose => FailurePolicy::FailClosed,
        FailStrategy::FailOpen => FailurePolicy::FailOpen,
        FailStrategy::FailReload => FailurePolicy::FailReload,
    };
    let configuration = match &code.plugin_config {
        Some(value) => any(&google::StringValue { value: value.to_string() }),
        None => Any::default(),
    };
    let config = Some(Plugin {
        name: name.to_owned(),
        root_id: code.plugin_name.clone(),
        vm_config: Some(Vm {
            runtime: "envoy.wasm.runtime.v8".to_owned(),
            code: Some(AsyncDataSource { specifier: Some(source(code)) }),
            environment_variables: Some(environment(meta, code)),
        }),
        configuration: Some(configuration),
        failure_policy: failure_policy.into(),
    });
    match code.r#type {
        PluginType::Network => any(&NetworkWasm { config }),
        PluginType::Http | PluginType::Unspecified => any(&HttpWasm { config }),
    }
}

/// Whether the code lies where the proxy is.
pub(super) fn is_local(code: &WasmExtension) -> bool {
    code.url.starts_with("file://")
}

/// What stands in for code that nobody fetches, as Istio's agent puts it when it cannot: nothing passes, or everything
/// where the user says so.
pub(super) fn stand_in(code: &WasmExtension) -> Any {
    // A rule that allows nobody.
    let rules = match code.fail_strategy {
        FailStrategy::FailClose | FailStrategy::FailReload => Some(rbac::v3::Rbac::default()),
        FailStrategy::FailOpen => None,
    };
    match code.r#type {
        PluginType::Network => any(&filters::network::rbac::v3::Rbac {
            rules,
            stat_prefix: "wasm.".to_owned(),
            ..Default::default()
        }),
        PluginType::Http | PluginType::Unspecified => {
            any(&filters::http::rbac::v3::Rbac { rules, ..Default::default() })
        }
    }
}

/// Where the code is: in a file of the proxy, or to be fetched by its agent.
fn source(code: &WasmExtension) -> async_data_source::Specifier {
    if let Some(path) = code.url.strip_prefix("file://") {
        let specifier = data_source::Specifier::Filename(path.to_owned());
        return async_data_source::Specifier::Local(DataSource {
            specifier: Some(specifier),
            ..DataSource::default()
        });
    }
    let scheme = if code.url.contains("://") { "" } else { "oci://" };
    async_data_source::Specifier::Remote(RemoteDataSource {
        http_uri: Some(HttpUri {
            uri: format!("{scheme}{}", code.url),
            timeout: Some(duration(FETCH_TIMEOUT)),
            // The agent fetches; the proxy asks for a name in any case.
            http_upstream_type: Some(http_uri::HttpUpstreamType::Cluster("_".to_owned())),
        }),
        sha256: code.sha256.clone(),
        ..RemoteDataSource::default()
    })
}

/// What the agent reads, and what the code is to find in its environment.
fn environment(meta: &Meta, code: &WasmExtension) -> Environment {
    // Tells the agent that the object is another than before.
    let mut key_values = BTreeMap::from([(
        "ISTIO_META_WASM_PLUGIN_RESOURCE_VERSION".to_owned(),
        meta.generation.to_string(),
    )]);
    let policy = match code.image_pull_policy {
        PullPolicy::Unspecified => None,
        PullPolicy::IfNotPresent => Some("IfNotPresent"),
        PullPolicy::Always => Some("Always"),
    };
    if let Some(policy) = policy {
        key_values.insert("ISTIO_META_WASM_IMAGE_PULL_POLICY".to_owned(), policy.to_owned());
    }
    let mut host_env_keys = Vec::new();
    for variable in code.vm_config.iter().flat_map(|VmConfig { env }| env) {
        match variable.value_from {
            EnvSource::Inline => {
                key_values.insert(variable.name.clone(), variable.value.clone());
            }
            EnvSource::Host => host_env_keys.push(variable.name.clone()),
        }
    }
    Environment { host_env_keys, key_values }
}
