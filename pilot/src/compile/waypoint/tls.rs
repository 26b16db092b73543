//! How a waypoint proves who it is in tunnels, and whom it takes.
//!
//! In: the mesh's trust domains. Out: the TLS of its tunnels, both ways, and where Envoy finds secrets: the
//! certificate of the workload and the mesh's roots come from its own agent (the bootstrap's cluster `sds-grpc`).

use proto::envoy::envoy::{
    config::core::v3::{
        ApiConfigSource, ApiVersion, ConfigSource, GrpcService, api_config_source::ApiType,
        config_source::ConfigSourceSpecifier, grpc_service,
    },
    extensions::transport_sockets::tls::v3::{
        CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
        SubjectAltNameMatcher, TlsParameters, UpstreamTlsContext,
        common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
        subject_alt_name_matcher::SanType,
        tls_parameters::TlsProtocol,
    },
    r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
};

use super::message::{flag, seconds};
use crate::compile::MeshConfig;

/// The agent's name of the workload's own certificate.
const OWN_CERTIFICATE: &str = "default";
/// The agent's name of the mesh's roots.
pub(super) const ROOTS: &str = "ROOTCA";

/// A tunnel that is opened to the waypoint.
pub(super) fn accepting(config: &MeshConfig) -> DownstreamTlsContext {
    DownstreamTlsContext {
        common_tls_context: Some(tunnel(trust_domains(config))),
        require_client_certificate: Some(flag(true)),
        ..DownstreamTlsContext::default()
    }
}

/// A tunnel that the waypoint opens to an identity that starts with one of these.
pub(super) fn opening(prefixes: Vec<String>) -> UpstreamTlsContext {
    UpstreamTlsContext {
        common_tls_context: Some(tunnel(prefixes)),
        ..UpstreamTlsContext::default()
    }
}

/// What every identity of the mesh starts with.
pub(super) fn trust_domains(config: &MeshConfig) -> Vec<String> {
    let names = std::iter::once(&config.trust_domain).chain(&config.trust_domain_aliases);
    names.map(|name| format!("spiffe://{name}/")).collect()
}

fn tunnel(prefixes: Vec<String>) -> CommonTlsContext {
    let names = prefixes.into_iter().map(|prefix| SubjectAltNameMatcher {
        san_type: SanType::Uri.into(),
        matcher: Some(StringMatcher {
            match_pattern: Some(MatchPattern::Prefix(prefix)),
            ..StringMatcher::default()
        }),
        ..SubjectAltNameMatcher::default()
    });
    CommonTlsContext {
        tls_params: Some(TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::TlSv13.into(),
            tls_maximum_protocol_version: TlsProtocol::TlSv13.into(),
            ..TlsParameters::default()
        }),
        alpn_protocols: vec!["h2".into()],
        tls_certificate_sds_secret_configs: vec![own_certificate()],
        validation_context_type: Some(validation(
            ROOTS,
            CertificateValidationContext {
                match_typed_subject_alt_names: names.collect(),
                ..CertificateValidationContext::default()
            },
        )),
        ..CommonTlsContext::default()
    }
}

/// The workload's own certificate.
pub(super) fn own_certificate() -> SdsSecretConfig {
    secret(OWN_CERTIFICATE)
}

/// Roots by their name, and what else is checked.
pub(super) fn validation(
    roots: &str,
    checks: CertificateValidationContext,
) -> ValidationContextType {
    checked_by(secret(roots), checks)
}

/// Roots from anywhere, and what else is checked.
pub(super) fn checked_by(
    roots: SdsSecretConfig,
    checks: CertificateValidationContext,
) -> ValidationContextType {
    ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
        default_validation_context: Some(checks),
        validation_context_sds_secret_config: Some(roots),
        ..CombinedCertificateValidationContext::default()
    })
}

/// A secret that the agent has.
pub(super) fn secret(name: &str) -> SdsSecretConfig {
    let agent = grpc_service::EnvoyGrpc {
        cluster_name: "sds-grpc".into(),
        ..grpc_service::EnvoyGrpc::default()
    };
    let source = ApiConfigSource {
        api_type: ApiType::Grpc.into(),
        transport_api_version: ApiVersion::V3.into(),
        set_node_on_first_message_only: true,
        grpc_services: vec![GrpcService {
            target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(agent)),
            ..GrpcService::default()
        }],
        ..ApiConfigSource::default()
    };
    SdsSecretConfig {
        name: name.into(),
        sds_config: Some(ConfigSource {
            // Without its certificate a listener must not open, however long that takes.
            initial_fetch_timeout: Some(seconds(0)),
            resource_api_version: ApiVersion::V3.into(),
            config_source_specifier: Some(ConfigSourceSpecifier::ApiConfigSource(source)),
            ..ConfigSource::default()
        }),
    }
}
