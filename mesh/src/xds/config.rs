//! Which server to ask, how to know it and how to be known by it.
//!
//! In: addresses, paths and texts of the configuration. Out: an endpoint to dial and the headers of a call. Files are
//! read for each connection, because roots and tokens are replaced while the process runs.

use std::{collections::BTreeMap, fs, io, path::PathBuf, time::Duration};

use proto::{
    envoy::envoy::config::core::v3::Node,
    google::{ListValue, Struct, Value, value::Kind},
};
use tonic::{
    metadata::{AsciiMetadataValue, errors::InvalidMetadataValue},
    transport::{Certificate, ClientTlsConfig, Endpoint},
};

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A silent server is asked for a sign of life this often, and given this long: a stream through a NAT that forgot it
/// would otherwise look open forever.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_LIMIT: Duration = Duration::from_secs(10);

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
}

/// A server of the control plane.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// `https://host:port`, or `http://host:port` for plain text. `https` if there is no scheme.
    pub address: String,
    /// Certificates that may have signed the server's.
    pub roots: Roots,
    /// The name the server's certificate must bear, if it is not the host of the address.
    pub server_name: Option<String>,
    /// Proves who asks. None where the connection itself does.
    pub token: Option<Token>,
    /// The header `clusterid`.
    pub cluster_id: String,
}

/// Root certificates.
#[derive(Clone, Debug)]
pub enum Roots {
    /// A PEM file, read for each connection.
    File(PathBuf),
    /// PEM text.
    Pem(String),
}

/// A bearer token.
#[derive(Clone)]
pub enum Token {
    /// A file, read for each connection.
    File(PathBuf),
    /// The token itself.
    Literal(String),
}

/// Why a server cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address is no URI with `http` or `https` and a host.
    #[error("`{address}` is no address of a server")]
    Address {
        /// The text as given.
        address: String,
        /// What the parser said.
        source: tonic::transport::Error,
    },
    /// The roots cannot be read.
    #[error("reading the root certificates in {path}")]
    Roots {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The roots are no certificates.
    #[error("using the root certificates of `{address}`")]
    Tls {
        /// The server.
        address: String,
        /// What the TLS library said.
        source: tonic::transport::Error,
    },
    /// The token cannot be read.
    #[error("reading the token in {path}")]
    Token {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The token's file has no token.
    #[error("the token in {path} is empty")]
    EmptyToken {
        /// The file.
        path: PathBuf,
    },
    /// A header's value has characters that a header cannot carry.
    #[error("the header {name} cannot carry its value")]
    Header {
        /// The header.
        name: &'static str,
        /// What the library said.
        source: InvalidMetadataValue,
    },
}

impl XdsConfig {
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

impl ServerConfig {
    /// What to dial.
    pub(super) fn endpoint(&self) -> Result<Endpoint, ServerError> {
        let address = if self.address.contains("://") {
            self.address.clone()
        } else {
            format!("https://{}", self.address)
        };
        let endpoint = Endpoint::from_shared(address)
            .map_err(|source| ServerError::Address { address: self.address.clone(), source })?
            .connect_timeout(CONNECT_LIMIT)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_LIMIT)
            .keep_alive_while_idle(true);
        if endpoint.uri().scheme_str() == Some("http") {
            return Ok(endpoint);
        }
        let mut tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(self.roots.read()?));
        if let Some(name) = &self.server_name {
            tls = tls.domain_name(name);
        }
        endpoint
            .tls_config(tls)
            .map_err(|source| ServerError::Tls { address: self.address.clone(), source })
    }

    /// The headers of a call.
    pub(super) fn headers(&self) -> Result<Vec<(&'static str, AsciiMetadataValue)>, ServerError> {
        let header = |name, value: &str| match value.parse::<AsciiMetadataValue>() {
            Ok(value) => Ok((name, value)),
            Err(source) => Err(ServerError::Header { name, source }),
        };
        let mut headers = vec![header("clusterid", &self.cluster_id)?];
        if let Some(token) = &self.token {
            let (name, mut bearer) = header("authorization", &format!("Bearer {}", token.read()?))?;
            bearer.set_sensitive(true);
            headers.push((name, bearer));
        }
        Ok(headers)
    }
}

impl Roots {
    fn read(&self) -> Result<String, ServerError> {
        match self {
            Self::File(path) => fs::read_to_string(path)
                .map_err(|source| ServerError::Roots { path: path.clone(), source }),
            Self::Pem(pem) => Ok(pem.clone()),
        }
    }
}

impl Token {
    fn read(&self) -> Result<String, ServerError> {
        match self {
            Self::File(path) => {
                let text = fs::read_to_string(path)
                    .map_err(|source| ServerError::Token { path: path.clone(), source })?;
                match text.trim() {
                    "" => Err(ServerError::EmptyToken { path: path.clone() }),
                    token => Ok(token.to_owned()),
                }
            }
            Self::Literal(token) => Ok(token.clone()),
        }
    }
}

impl std::fmt::Debug for Token {
    /// A literal token stays out of logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Literal(_) => f.write_str("Literal(..)"),
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
