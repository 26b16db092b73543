//! How bytes travel to an endpoint: in a tunnel, in TLS of its own, behind a PROXY protocol header, or as they are.
//!
//! In: what rules ask for. Out: transport sockets, one in the other.

use proto::envoy::envoy::{
    config::{
        cluster::v3::cluster::TransportSocketMatch,
        core::v3::{
            AggregatedConfigSource, ConfigSource, DataSource, ProxyProtocolConfig, TransportSocket,
            UpstreamHttpProtocolOptions, config_source::ConfigSourceSpecifier, data_source,
            proxy_protocol_config::Version,
        },
    },
    extensions::transport_sockets::{
        internal_upstream::v3::{
            InternalUpstreamTransport, internal_upstream_transport::MetadataValueSource,
        },
        proxy_protocol::v3::ProxyProtocolUpstreamTransport,
        raw_buffer::v3::RawBuffer,
        tls::v3::{
            CertificateValidationContext, CommonTlsContext, SdsSecretConfig, TlsParameters,
            UpstreamTlsContext, common_tls_context::ValidationContextType,
            tls_parameters::TlsProtocol,
        },
    },
    r#type::{
        matcher::v3::{StringMatcher, string_matcher::MatchPattern},
        metadata::v3::{MetadataKind, metadata_kind},
    },
};

use super::{Destination, tunnels::ORIGINAL_DST};
use crate::{
    compile::waypoint::{
        Context, Role,
        destination_rule::{Roots, Traffic},
        message::{any, json_object, json_text, raw_buffer, transport_socket},
        tls,
    },
    manifests::networking::{ClientTls, ClientTlsMode, ProxyProtocolVersion},
};

/// Of a certificate that no server has: for roots that are not there, so that nobody is believed.
const NOBODY: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Where endpoint metadata for listeners of the same Envoy comes from.
#[derive(Clone, Copy)]
enum Source {
    Host(&'static str),
    Cluster(&'static str),
}

/// To a listener of the same Envoy.
pub(super) fn internal(
    name: &str,
    passthrough_metadata: Vec<MetadataValueSource>,
    inner: TransportSocket,
) -> TransportSocket {
    let transport =
        InternalUpstreamTransport { passthrough_metadata, transport_socket: Some(inner) };
    transport_socket(name, any(&transport))
}

fn passed_on(sources: &[Source]) -> Vec<MetadataValueSource> {
    let sources = sources.iter().map(|source| {
        let (kind, name) = match source {
            Source::Host(name) => (metadata_kind::Kind::Host(metadata_kind::Host::default()), name),
            Source::Cluster(name) => {
                (metadata_kind::Kind::Cluster(metadata_kind::Cluster::default()), name)
            }
        };
        MetadataValueSource {
            kind: Some(MetadataKind { kind: Some(kind) }),
            name: (*name).to_owned(),
        }
    });
    sources.collect()
}

const OF_ENDPOINT: [Source; 2] = [Source::Host(ORIGINAL_DST), Source::Host("istio")];
const OF_ENDPOINT_AND_CLUSTER: [Source; 3] =
    [Source::Host(ORIGINAL_DST), Source::Cluster("istio"), Source::Host("istio")];

/// Of a chain's cluster: to the workload's tunnel, with what the rule asks for inside.
pub(super) fn of_chain(
    context: &Context<'_>,
    traffic: &Traffic<'_>,
    http2: bool,
) -> TransportSocket {
    match context.role {
        Role::Waypoint => {
            let inner = inner(traffic, http2, "raw_buffer");
            internal("internal_upstream", passed_on(&OF_ENDPOINT), inner)
        }
        Role::EastWest => internal(
            "envoy.transport_sockets.internal_upstream",
            passed_on(&OF_ENDPOINT_AND_CLUSTER),
            raw_buffer(),
        ),
    }
}

/// Of a route's cluster: by what each endpoint is able to do.
pub(super) fn of_route(
    to: &Destination<'_>,
    traffic: &Traffic<'_>,
    identities: Vec<String>,
    http2: bool,
) -> Vec<TransportSocketMatch> {
    let inner = inner(traffic, http2, "envoy.transport_sockets.raw_buffer");
    let tunnel = TransportSocketMatch {
        name: "hbone".into(),
        r#match: Some(json_object([("tunnel", json_text("http"))])),
        transport_socket: Some(internal(
            "envoy.transport_sockets.internal_upstream",
            passed_on(&OF_ENDPOINT_AND_CLUSTER),
            inner.clone(),
        )),
    };
    if user_tls(traffic).is_some() {
        let user = TransportSocketMatch {
            name: "user".into(),
            r#match: None,
            transport_socket: Some(inner),
        };
        return vec![tunnel, user];
    }
    let plain = TransportSocketMatch {
        name: "tlsMode-disabled".into(),
        r#match: Some(json_object([])),
        transport_socket: Some(inner),
    };
    let of_sidecars = |mode: &str| TransportSocketMatch {
        name: format!("tlsMode-{mode}"),
        r#match: Some(json_object([("tlsMode", json_text(mode))])),
        transport_socket: Some(mutual(to, identities, http2)),
    };
    let disabled = traffic.tls.as_ref().is_some_and(|tls| tls.mode == ClientTlsMode::Disable);
    match to.host.external || disabled {
        true => vec![tunnel, plain],
        false => vec![tunnel, of_sidecars("istio"), plain],
    }
}

/// To a sidecar: as one of the mesh.
fn mutual(to: &Destination<'_>, identities: Vec<String>, http2: bool) -> TransportSocket {
    let alpn = ["istio-peer-exchange", "istio"].into_iter().chain(http2.then_some("h2"));
    let context = UpstreamTlsContext {
        sni: format!("outbound_.{}_.{}_.{}", to.port.number, to.subset, to.host.hostname),
        common_tls_context: Some(CommonTlsContext {
            tls_params: Some(versions()),
            alpn_protocols: alpn.map(str::to_owned).collect(),
            tls_certificate_sds_secret_configs: vec![tls::own_certificate()],
            validation_context_type: Some(tls::validation(tls::ROOTS, named(identities))),
            ..CommonTlsContext::default()
        }),
        ..UpstreamTlsContext::default()
    };
    transport_socket("envoy.transport_sockets.tls", any(&context))
}

/// What is inside of a tunnel, or goes to an endpoint that is not in the mesh.
fn inner(traffic: &Traffic<'_>, http2: bool, raw: &str) -> TransportSocket {
    let socket = match user_tls(traffic) {
        Some(tls) => {
            transport_socket("envoy.transport_sockets.tls", any(&originated(traffic, tls, http2)))
        }
        None => transport_socket(raw, any(&RawBuffer {})),
    };
    let Some(header) = traffic.proxy_protocol else { return socket };
    let version = match header.version {
        ProxyProtocolVersion::V1 => Version::V1,
        ProxyProtocolVersion::V2 => Version::V2,
    };
    let transport = ProxyProtocolUpstreamTransport {
        config: Some(ProxyProtocolConfig {
            version: version.into(),
            ..ProxyProtocolConfig::default()
        }),
        transport_socket: Some(socket),
        ..ProxyProtocolUpstreamTransport::default()
    };
    transport_socket("envoy.transport_sockets.upstream_proxy_protocol", any(&transport))
}

/// The TLS that the user asks for. The mesh's own is in the tunnel.
fn user_tls<'a>(traffic: &'a Traffic<'_>) -> Option<&'a ClientTls> {
    traffic.tls.as_deref().filter(|tls| match tls.mode {
        ClientTlsMode::Simple | ClientTlsMode::Mutual => true,
        ClientTlsMode::Disable | ClientTlsMode::IstioMutual => false,
    })
}

/// How the server is called, and whether its certificate must say so, where the rule names nothing.
pub(super) fn names(traffic: &Traffic<'_>) -> Option<UpstreamHttpProtocolOptions> {
    let tls = user_tls(traffic).filter(|tls| tls.sni.is_empty())?;
    Some(UpstreamHttpProtocolOptions {
        auto_sni: true,
        auto_san_validation: tls.subject_alt_names.is_empty()
            && tls.insecure_skip_verify != Some(true),
        ..UpstreamHttpProtocolOptions::default()
    })
}

fn originated(traffic: &Traffic<'_>, tls: &ClientTls, http2: bool) -> UpstreamTlsContext {
    let certificate = match (tls.mode, tls.credential_name.as_str()) {
        (ClientTlsMode::Mutual, "") => {
            let name = format!("file-cert:{}~{}", tls.client_certificate, tls.private_key);
            Some(file_secret(&name))
        }
        (ClientTlsMode::Mutual, credential) => {
            Some(kubernetes_secret(&format!("kubernetes://{credential}")))
        }
        _ => None,
    };
    UpstreamTlsContext {
        sni: tls.sni.clone(),
        common_tls_context: Some(CommonTlsContext {
            tls_params: Some(versions()),
            alpn_protocols: http2.then(|| "h2".to_owned()).into_iter().collect(),
            tls_certificate_sds_secret_configs: certificate.into_iter().collect(),
            validation_context_type: Some(server_validation(traffic, tls)),
            ..CommonTlsContext::default()
        }),
        ..UpstreamTlsContext::default()
    }
}

/// Whom the server's certificate must be from, and what it must say.
fn server_validation(traffic: &Traffic<'_>, tls: &ClientTls) -> ValidationContextType {
    if tls.insecure_skip_verify == Some(true) {
        return ValidationContextType::ValidationContext(CertificateValidationContext::default());
    }
    let mut checks = named(tls.subject_alt_names.clone());
    match &traffic.roots {
        Some(Roots::Given(pem)) => {
            let specifier = Some(data_source::Specifier::InlineString((*pem).to_owned()));
            checks.trusted_ca = Some(DataSource { specifier, ..DataSource::default() });
            return ValidationContextType::ValidationContext(checks);
        }
        Some(Roots::Missing) => checks.verify_certificate_hash = vec![NOBODY.into()],
        None => {}
    }
    let roots = if !tls.credential_name.is_empty() {
        kubernetes_secret(&format!("kubernetes://{}-cacert", tls.credential_name))
    } else if tls.ca_certificates.is_empty() {
        file_secret("file-root:system")
    } else {
        file_secret(&format!("file-root:{}", tls.ca_certificates))
    };
    if !tls.ca_crl.is_empty() {
        let specifier = Some(data_source::Specifier::Filename(tls.ca_crl.clone()));
        checks.crl = Some(DataSource { specifier, ..DataSource::default() });
    }
    tls::checked_by(roots, checks)
}

#[expect(deprecated, reason = "what istiod sends: any kind of name counts")]
fn named(names: Vec<String>) -> CertificateValidationContext {
    let names = names.into_iter().map(|name| StringMatcher {
        match_pattern: Some(MatchPattern::Exact(name)),
        ..StringMatcher::default()
    });
    CertificateValidationContext {
        match_subject_alt_names: names.collect(),
        ..CertificateValidationContext::default()
    }
}

/// A secret that the agent reads from files.
fn file_secret(name: &str) -> SdsSecretConfig {
    let mut secret = tls::secret(name);
    if let Some(source) = &mut secret.sds_config {
        source.initial_fetch_timeout = None;
    }
    secret
}

/// A secret that the control plane hands out.
fn kubernetes_secret(name: &str) -> SdsSecretConfig {
    let source = ConfigSourceSpecifier::Ads(AggregatedConfigSource {});
    SdsSecretConfig {
        name: name.into(),
        sds_config: Some(ConfigSource {
            config_source_specifier: Some(source),
            resource_api_version: proto::envoy::envoy::config::core::v3::ApiVersion::V3.into(),
            ..ConfigSource::default()
        }),
    }
}

fn versions() -> TlsParameters {
    TlsParameters {
        tls_minimum_protocol_version: TlsProtocol::TlSv12.into(),
        tls_maximum_protocol_version: TlsProtocol::TlSv13.into(),
        ..TlsParameters::default()
    }
}
