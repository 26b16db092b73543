//! Code that users put into a waypoint: WasmPlugins and TrafficExtensions.
//!
//! In: those attached to a waypoint or a service. Out: for each chain the filters by their phase, in each the more
//! important first; and the extensions themselves, which the proxy asks for by name.

mod merge;
mod patch;
mod wasm;

pub(super) use patch::apply as apply_patches;

use proto::{
    envoy::envoy::{
        config::{
            core::v3::{
                AggregatedConfigSource, ApiVersion, ConfigSource, DataSource,
                ExtensionConfigSource, TypedExtensionConfig, config_source::ConfigSourceSpecifier,
                data_source::Specifier,
            },
            listener::v3::{Filter, filter},
        },
        extensions::filters::{
            http::lua::v3::Lua,
            network::http_connection_manager::v3::{HttpFilter, http_filter},
        },
    },
    google::Any,
};

use super::{
    ChainKind, Context,
    message::{any, http_filter as typed, seconds},
    policy::{Place, Targeted},
};
use crate::{
    compile::registry::Port,
    manifests::{
        Meta, Object, TargetRef,
        extensions::{
            PluginPhase, PluginType, TrafficExtension, TrafficSelector, WasmExtension, WasmPlugin,
        },
        telemetry::WorkloadMode,
    },
};

/// What an extension is called in a chain, and when it is asked for.
const PREFIX: &str = "extensions.istio.io/trafficextension/";
/// After the name of an extension that was written as a WasmPlugin.
const OF_PLUGIN: &str = "~istio-translated-wasmplugin";

impl Targeted for WasmPlugin {
    fn targets(&self) -> impl Iterator<Item = &TargetRef> {
        self.target_ref.iter().chain(&self.target_refs)
    }
}

impl Targeted for TrafficExtension {
    fn targets(&self) -> impl Iterator<Item = &TargetRef> {
        self.target_refs.iter()
    }
}

/// One extension, however it was written.
struct Extension<'a> {
    meta: &'a Meta,
    /// `namespace.name`, with what it was written as.
    name: String,
    phase: PluginPhase,
    priority: i32,
    matches: &'a [TrafficSelector],
    code: Code<'a>,
}

enum Code<'a> {
    Wasm(WasmExtension),
    Lua(&'a str),
}

/// Filters of one chain by their phase.
pub(super) struct Filters<F>(Vec<(PluginPhase, F)>);

impl<F> Filters<F> {
    /// Those of a phase, in order.
    pub(super) fn of(&self, phase: PluginPhase) -> impl Iterator<Item = F>
    where
        F: Clone,
    {
        let own = self.0.iter().filter(move |(own, _)| *own == phase);
        own.map(|(_, filter)| filter.clone()).collect::<Vec<_>>().into_iter()
    }
}

/// For requests to a port, or to pods directly.
pub(super) fn http(
    context: &Context<'_>,
    place: &Place<'_>,
    port: Option<&Port>,
) -> Filters<HttpFilter> {
    let of_chain = of_chain(context, place, port, ChainKind::Http);
    let filters = of_chain.into_iter().map(|extension| {
        let name = format!("{PREFIX}{}", extension.name);
        let filter = match extension.code {
            Code::Lua(code) => typed(&name, lua(code)),
            Code::Wasm(_) => HttpFilter {
                name,
                config_type: Some(http_filter::ConfigType::ConfigDiscovery(discovered("http"))),
                ..HttpFilter::default()
            },
        };
        (extension.phase, filter)
    });
    Filters(filters.collect())
}

/// For connections to a port, or to pods directly.
pub(super) fn network(
    context: &Context<'_>,
    place: &Place<'_>,
    port: Option<&Port>,
) -> Filters<Filter> {
    let of_chain = of_chain(context, place, port, ChainKind::Tcp);
    let filters = of_chain.into_iter().map(|extension| {
        let discovery = filter::ConfigType::ConfigDiscovery(discovered("network"));
        let name = format!("{PREFIX}{}", extension.name);
        (extension.phase, Filter { name, config_type: Some(discovery) })
    });
    Filters(filters.collect())
}

/// The extensions that the filters of all chains ask for, sorted by name.
pub(super) fn configs(context: &Context<'_>) -> Vec<TypedExtensionConfig> {
    let services = context.hosts.iter().map(|host| Place::of(context, Some(host)));
    let places: Vec<_> = std::iter::once(Place::of(context, None)).chain(services).collect();
    let mut configs: Vec<_> = places
        .iter()
        .flat_map(|place| all(context, place))
        .filter_map(|extension| match &extension.code {
            Code::Wasm(code) => Some(TypedExtensionConfig {
                name: format!("{PREFIX}{}", extension.name),
                // Without an agent nobody fetches code.
                typed_config: Some(if context.client.has_agent() || wasm::is_local(code) {
                    wasm::config(&extension.name, extension.meta, code)
                } else {
                    wasm::stand_in(code)
                }),
            }),
            Code::Lua(_) => None,
        })
        .collect();
    configs.sort_by(|a, b| a.name.cmp(&b.name));
    configs.dedup_by(|a, b| a.name == b.name);
    configs
}

/// Those of a place, the most important first.
fn all<'a>(context: &Context<'a>, place: &Place<'_>) -> Vec<Extension<'a>> {
    let plugins = place.select(&context.manifests.wasm_plugins).map(of_plugin);
    let extensions = place.select(&context.manifests.traffic_extensions);
    let mut all: Vec<_> = plugins.chain(extensions.filter_map(of_extension)).collect();
    all.sort_by(|a, b| (-i64::from(a.priority), &a.name).cmp(&(-i64::from(b.priority), &b.name)));
    all
}

fn of_plugin(object: &Object<WasmPlugin>) -> Extension<'_> {
    let Object { meta, spec } = object;
    Extension {
        meta,
        name: format!("{}.{}{OF_PLUGIN}", meta.namespace, meta.name),
        phase: spec.phase,
        priority: spec.priority.unwrap_or_default(),
        matches: &spec.r#match,
        code: Code::Wasm(WasmExtension {
            url: spec.url.clone(),
            sha256: spec.sha256.clone(),
            image_pull_policy: spec.image_pull_policy,
            image_pull_secret: spec.image_pull_secret.clone(),
            verification_key: spec.verification_key.clone(),
            plugin_config: spec.plugin_config.clone(),
            plugin_name: spec.plugin_name.clone(),
            fail_strategy: spec.fail_strategy,
            vm_config: spec.vm_config.clone(),
            r#type: spec.r#type,
        }),
    }
}

/// Nothing if it has no code.
fn of_extension(object: &Object<TrafficExtension>) -> Option<Extension<'_>> {
    let Object { meta, spec } = object;
    let code = match (&spec.wasm, &spec.lua) {
        (Some(wasm), _) => Code::Wasm(wasm.clone()),
        (None, Some(lua)) => Code::Lua(&lua.inline_code),
        (None, None) => return None,
    };
    Some(Extension {
        meta,
        name: format!("{}.{}", meta.namespace, meta.name),
        phase: spec.phase,
        priority: spec.priority.unwrap_or_default(),
        matches: &spec.r#match,
        code,
    })
}

fn of_chain<'a>(
    context: &Context<'a>,
    place: &Place<'_>,
    port: Option<&Port>,
    kind: ChainKind,
) -> Vec<Extension<'a>> {
    let mut own = all(context, place);
    own.retain(|extension| {
        let of_kind = match &extension.code {
            Code::Lua(_) => kind == ChainKind::Http,
            Code::Wasm(wasm) => (wasm.r#type == PluginType::Network) == (kind == ChainKind::Tcp),
        };
        let number = port.map(|port| u32::from(port.number));
        of_kind
            && (extension.matches.is_empty()
                || extension.matches.iter().any(|one| is_of(one, number)))
    });
    own
}

/// Whether traffic to a port is meant: on the side of the server, which is where a waypoint stands.
fn is_of(selector: &TrafficSelector, port: Option<u32>) -> bool {
    let side = match selector.mode {
        WorkloadMode::Client => false,
        WorkloadMode::Server | WorkloadMode::ClientAndServer => true,
    };
    let ports = &selector.ports;
    side && (ports.is_empty() || ports.iter().any(|one| port == Some(one.number)))
}

/// Where a filter is to be had: over the stream that everything comes by. Until it is there, nothing passes.
fn discovered(kind: &str) -> ExtensionConfigSource {
    let url = |name: &str| format!("type.googleapis.com/envoy.extensions.filters.{kind}.{name}");
    ExtensionConfigSource {
        config_source: Some(ConfigSource {
            config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
            initial_fetch_timeout: Some(seconds(0)),
            resource_api_version: ApiVersion::V3.into(),
            ..ConfigSource::default()
        }),
        type_urls: vec![url("wasm.v3.Wasm"), url("rbac.v3.RBAC")],
        ..ExtensionConfigSource::default()
    }
}

fn lua(code: &str) -> Any {
    let source = Specifier::InlineString(code.to_owned());
    any(&Lua {
        default_source_code: Some(DataSource { specifier: Some(source), ..DataSource::default() }),
        ..Lua::default()
    })
}
