//! CUSTOM policies: another service decides.
//!
//! In: the CUSTOM policies that count for a chain, and the mesh's providers. Out: a filter that marks what matches, in
//! the shadow, and one that asks the provider about what is marked. Where nobody can be asked, what matches is refused.

use std::collections::BTreeSet;

use proto::{
    envoy::envoy::{
        config::{
            core::v3::{ApiVersion, GrpcService, HeaderValue, HttpUri, grpc_service, http_uri},
            rbac::v3::rbac::Action as RbacAction,
        },
        extensions::filters::{
            http::ext_authz::v3::{
                AuthorizationRequest, AuthorizationResponse, BufferSettings, ExtAuthz, HttpService,
                ext_authz::Services,
            },
            network::ext_authz::v3::ExtAuthz as NetworkExtAuthz,
        },
        r#type::{
            matcher::v3::{ListStringMatcher, StringMatcher, string_matcher::MatchPattern},
            v3::HttpStatus,
        },
    },
    google::Any,
};

use super::{
    matcher,
    rbac::{HTTP_RBAC, NETWORK_RBAC, Rbac, TCP_PREFIX, named},
    wire::Rules,
};
use crate::{
    compile::{
        MeshConfig,
        mesh_config::{ExtAuthzGrpc, ExtAuthzHttp, ProviderKind, RequestBody, status_on_error},
        waypoint::{ChainKind, message::any, message::duration},
    },
    manifests::{AuthorizationPolicy, Duration, Object},
};

/// Before the names of what a provider is asked about.
const PREFIX: &str = "istio-ext-authz";
/// Before the names of what the marking filter says.
const SHADOW_PREFIX: &str = "istio_ext_authz_";
/// Under which name it says which policy matched.
const MATCHED: &str = "istio_ext_authz_shadow_effective_policy_id";
/// How long a provider may think if nothing else is said.
const TIMEOUT: Duration = Duration(std::time::Duration::from_secs(600));

/// A service of the mesh by its host name.
pub(crate) struct ProviderCluster {
    pub host: String,
    pub cluster: String,
}

/// Finds the service of a provider: `host`, or `namespace/host`.
pub(crate) type FindCluster<'a> = dyn Fn(&str, u32) -> Option<ProviderCluster> + 'a;

/// The filters of the CUSTOM policies.
pub(super) fn filters(
    policies: &[&Object<AuthorizationPolicy>],
    config: &MeshConfig,
    kind: ChainKind,
    find: &FindCluster<'_>,
) -> Vec<(&'static str, Any)> {
    let providers: BTreeSet<&str> = policies.iter().map(|policy| provider(policy)).collect();
    let Some(name) = providers.first() else { return Vec::new() };
    // Several would overwrite each other's marks.
    let asking = if providers.len() == 1 { ask(name, config, kind, find) } else { None };
    let Some(asking) = asking else {
        return vec![refuse(policies, config, kind)];
    };
    let mark = Rbac {
        shadow_rules: Some(rules(policies, config, kind, "")),
        shadow_prefix: SHADOW_PREFIX,
        ..Rbac::default()
    };
    vec![mark.filter(kind), asking]
}

fn provider(policy: &Object<AuthorizationPolicy>) -> &str {
    policy.spec.provider.as_ref().map_or("", |provider| &provider.name)
}

/// Refuses what matches.
fn refuse(
    policies: &[&Object<AuthorizationPolicy>],
    config: &MeshConfig,
    kind: ChainKind,
) -> (&'static str, Any) {
    let rules = rules(policies, config, kind, "-deny-due-to-bad-CUSTOM-action");
    Rbac { rules: Some(rules), ..Rbac::default() }.filter(kind)
}

fn rules(
    policies: &[&Object<AuthorizationPolicy>],
    config: &MeshConfig,
    kind: ChainKind,
    suffix: &str,
) -> Rules {
    let all = policies.iter().flat_map(|policy| {
        let prefix = format!("{PREFIX}-{}-", provider(policy));
        let rules = named(policy, config, kind).into_iter();
        rules.map(move |(name, rule)| (format!("{prefix}{name}{suffix}"), rule))
    });
    Rules { action: RbacAction::Deny.into(), policies: all.collect() }
}

/// The filter that asks; nothing if there is no such provider, its service is not known, or it cannot judge what this
/// chain carries.
fn ask(
    name: &str,
    config: &MeshConfig,
    kind: ChainKind,
    find: &FindCluster<'_>,
) -> Option<(&'static str, Any)> {
    let provider = &config.provider(name)?.kind;
    let (service, port) = provider.service()?;
    let to = find(service, port)?;
    let marked = format!("{PREFIX}-{name}");
    match (provider, kind) {
        (ProviderKind::ExtAuthzGrpc(grpc), ChainKind::Http) => {
            let ask = ExtAuthz {
                services: Some(Services::GrpcService(grpc_service(grpc, to))),
                filter_enabled_metadata: Some(matcher::metadata_prefix(HTTP_RBAC, MATCHED, marked)),
                ..common(&grpc.status_on_error, grpc.include_request_body_in_check.as_ref())?
            };
            let ask = ExtAuthz { failure_mode_allow: grpc.fail_open, ..ask };
            Some(("envoy.filters.http.ext_authz", any(&ask)))
        }
        (ProviderKind::ExtAuthzHttp(http), ChainKind::Http) => {
            let ask = ExtAuthz {
                allowed_headers: headers(if http.include_request_headers_in_check.is_empty() {
                    &http.include_headers_in_check
                } else {
                    &http.include_request_headers_in_check
                }),
                services: Some(Services::HttpService(http_service(http, to))),
                filter_enabled_metadata: Some(matcher::metadata_prefix(HTTP_RBAC, MATCHED, marked)),
                failure_mode_allow: http.fail_open,
                clear_route_cache: http.clear_route_cache,
                ..common(&http.status_on_error, http.include_request_body_in_check.as_ref())?
            };
            Some(("envoy.filters.http.ext_authz", any(&ask)))
        }
        (ProviderKind::ExtAuthzGrpc(grpc), ChainKind::Tcp) => {
            let ask = NetworkExtAuthz {
                stat_prefix: TCP_PREFIX.to_owned(),
                grpc_service: Some(grpc_service(grpc, to)),
                failure_mode_allow: grpc.fail_open,
                transport_api_version: ApiVersion::V3.into(),
                filter_enabled_metadata: Some(matcher::metadata_prefix(
                    NETWORK_RBAC,
                    MATCHED,
                    marked,
                )),
                ..NetworkExtAuthz::default()
            };
            Some(("envoy.filters.network.ext_authz", any(&ask)))
        }
        // Requests cannot be asked about where there are none, and other providers cannot be asked at all.
        _ => None,
    }
}

/// What both ways of asking share; nothing if the status makes no sense.
fn common(status: &str, body: Option<&RequestBody>) -> Option<ExtAuthz> {
    let status = status_on_error(status).ok()?;
    Some(ExtAuthz {
        transport_api_version: ApiVersion::V3.into(),
        status_on_error: status.map(|code| HttpStatus { code: code.into() }),
        with_request_body: body.map(|body| BufferSettings {
            max_request_bytes: body.max_request_bytes,
            allow_partial_message: body.allow_partial_message,
            pack_as_bytes: body.pack_as_bytes,
        }),
        ..ExtAuthz::default()
    })
}

fn grpc_service(grpc: &ExtAuthzGrpc, to: ProviderCluster) -> GrpcService {
    let target = grpc_service::EnvoyGrpc {
        cluster_name: to.cluster,
        authority: to.host,
        ..grpc_service::EnvoyGrpc::default()
    };
    GrpcService {
        timeout: Some(duration(grpc.timeout.unwrap_or(TIMEOUT).0)),
        target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(target)),
        ..GrpcService::default()
    }
}

fn http_service(http: &ExtAuthzHttp, to: ProviderCluster) -> HttpService {
    let extra = http.include_additional_headers_in_check.iter().map(|(key, value)| HeaderValue {
        key: key.clone(),
        value: value.clone(),
        ..HeaderValue::default()
    });
    let extra: Vec<_> = extra.collect();
    let response = AuthorizationResponse {
        allowed_upstream_headers: headers(&http.headers_to_upstream_on_allow),
        allowed_client_headers: headers(&http.headers_to_downstream_on_deny),
        allowed_client_headers_on_success: headers(&http.headers_to_downstream_on_allow),
        ..AuthorizationResponse::default()
    };
    HttpService {
        server_uri: Some(HttpUri {
            uri: format!("http://{}", to.host),
            timeout: Some(duration(http.timeout.unwrap_or(TIMEOUT).0)),
            http_upstream_type: Some(http_uri::HttpUpstreamType::Cluster(to.cluster)),
        }),
        path_prefix: http.path_prefix.clone(),
        authorization_request: (!extra.is_empty())
            .then(|| AuthorizationRequest { headers_to_add: extra, ..Default::default() }),
        authorization_response: (response != AuthorizationResponse::default()).then_some(response),
        ..HttpService::default()
    }
}

/// Headers by name, perhaps with a `*` at one end.
fn headers(names: &[String]) -> Option<ListStringMatcher> {
    let patterns = names.iter().map(|name| StringMatcher {
        ignore_case: !matches!(name.as_str(), "*"),
        ..if name == "*" { matcher::regex(".*".to_owned()) } else { matcher::string(name) }
    });
    let patterns: Vec<_> = patterns
        .filter(|matcher| !matches!(&matcher.match_pattern, Some(MatchPattern::Exact(name)) if name.is_empty()))
        .collect();
    (!patterns.is_empty()).then_some(ListStringMatcher { patterns })
}
