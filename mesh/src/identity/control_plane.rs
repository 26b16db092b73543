//! How to reach a server of the control plane, how to know it and how to be known by it.
//!
//! In: addresses, paths and texts of the configuration. Out: an endpoint to dial and the headers of a call. Files are
//! read for each connection or call, because roots and tokens are replaced while the process runs.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, InvalidDnsNameError, ServerName, pem::PemObject};
use tonic::{
    metadata::{
        AsciiMetadataKey, AsciiMetadataValue,
        errors::{InvalidMetadataKey, InvalidMetadataValue},
    },
    transport::{ClientTlsConfig, Endpoint, Uri},
};

use super::{TlsVersions, control_plane_verifier::ControlPlaneVerifier};

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Probes of TCP itself, as Istio's ztunnel sends them: they reach where a proxy answers HTTP/2's pings.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(300);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(75);
/// A silent server is asked for a sign of life this often, and given this long: a stream through a NAT that forgot it
/// would otherwise look open forever.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_LIMIT: Duration = Duration::from_secs(10);

/// A server of the control plane.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// `https://host:port`, or `http://host:port` for plain text. `https` if there is no scheme. With a token, plain
    /// text is only for this machine's own addresses.
    pub address: String,
    /// Certificates that may have signed the server's.
    pub roots: Roots,
    /// A name that the server's certificate may bear in the place of the address's host.
    pub further_name: Option<String>,
    /// Which versions of TLS are spoken with it.
    pub versions: TlsVersions,
    /// Proves who asks. None where the connection itself does.
    pub token: Option<Token>,
    /// The header `clusterid`.
    pub cluster_id: String,
    /// Further headers of every call, name and value.
    pub headers: Vec<(String, String)>,
}

/// Root certificates.
#[derive(Clone, Debug)]
pub enum Roots {
    /// A PEM file, read for each connection.
    File(PathBuf),
    /// PEM text.
    Pem(String),
    /// Those of the system, read for each connection.
    System,
}

/// A bearer token.
#[derive(Clone)]
pub enum Token {
    /// A file, read for each connection.
    File(PathBuf),
    /// The token itself.
    Literal(String),
}

/// Where systems keep their root certificates.
const SYSTEM_ROOTS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

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
    /// No certificate is among the roots, so no server could be known.
    #[error("{origin} has no usable root certificate for `{address}`: {reason}")]
    NoRoot {
        /// The file, or that it is the configuration's own text.
        origin: String,
        /// The server.
        address: String,
        /// What the parser said.
        reason: String,
    },
    /// The further name is none.
    #[error("`{name}` is no name that a certificate could bear")]
    Name {
        /// The text as given.
        name: String,
        /// What the parser said.
        source: InvalidDnsNameError,
    },
    /// The TLS library does not take the server's name.
    #[error("preparing TLS for `{address}`")]
    Tls {
        /// The server.
        address: String,
        /// What the TLS library said.
        source: tonic::transport::Error,
    },
    /// Whoever carries the packets could take the token and be this node.
    #[error("a token is not sent to `{address}` in plain text: use https")]
    PlaintextToken {
        /// The server.
        address: String,
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
    /// This is no name of a header.
    #[error("`{name}` is no name of a header")]
    HeaderName {
        /// The name.
        name: String,
        /// What the library said.
        source: InvalidMetadataKey,
    },
    /// A header's value has characters that a header cannot carry.
    #[error("the header {name} cannot carry its value")]
    Header {
        /// The header.
        name: String,
        /// What the library said.
        source: InvalidMetadataValue,
    },
}

impl ServerConfig {
    /// Whether the connection goes without TLS.
    pub(crate) fn is_plaintext(&self) -> bool {
        self.address.starts_with("http://")
    }

    /// What to dial.
    ///
    /// # Errors
    /// If the address, the roots or the name cannot be used, or a token would be sent in plain text.
    pub fn endpoint(&self) -> Result<Endpoint, ServerError> {
        let address = if self.address.contains("://") {
            self.address.clone()
        } else {
            format!("https://{}", self.address)
        };
        let endpoint = Endpoint::from_shared(address)
            .map_err(|source| ServerError::Address { address: self.address.clone(), source })?
            .connect_timeout(CONNECT_LIMIT)
            .tcp_keepalive(Some(KEEPALIVE_AFTER))
            .tcp_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .tcp_keepalive_retries(Some(9))
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_LIMIT)
            .keep_alive_while_idle(true);
        if self.is_plaintext() {
            if self.token.is_some() && !is_own_machine(endpoint.uri()) {
                return Err(ServerError::PlaintextToken { address: self.address.clone() });
            }
            return Ok(endpoint);
        }
        endpoint
            .tls_config_with_verifier(ClientTlsConfig::new(), self.verifier()?)
            .map_err(|source| ServerError::Tls { address: self.address.clone(), source })
    }

    fn verifier(&self) -> Result<Arc<ControlPlaneVerifier>, ServerError> {
        let pem = self.roots_pem()?;
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(pem.as_bytes()).flatten());
        let further = self.further_name.as_deref().map(|name| {
            ServerName::try_from(name.to_owned())
                .map_err(|source| ServerError::Name { name: name.to_owned(), source })
        });
        Ok(Arc::new(ControlPlaneVerifier::new(roots, further.transpose()?, self.versions)))
    }

    /// The roots as they are at present, at least one of which is a certificate: the TLS library takes none for none.
    pub(crate) fn roots_pem(&self) -> Result<String, ServerError> {
        let (origin, pem) = self.roots.read()?;
        match CertificateDer::from_pem_slice(pem.as_bytes()) {
            Ok(_) => Ok(pem),
            Err(error) => {
                let (address, reason) = (self.address.clone(), error.to_string());
                Err(ServerError::NoRoot { origin, address, reason })
            }
        }
    }

    /// The headers of a call.
    ///
    /// # Errors
    /// If the token cannot be read, or a header cannot carry its value.
    pub fn headers(&self) -> Result<Vec<(AsciiMetadataKey, AsciiMetadataValue)>, ServerError> {
        let mut headers = vec![header("clusterid", &self.cluster_id)?];
        for (name, value) in &self.headers {
            headers.push(header(name, value)?);
        }
        if let Some(token) = &self.token {
            let (name, mut bearer) = header("authorization", &format!("Bearer {}", token.read()?))?;
            bearer.set_sensitive(true);
            headers.push((name, bearer));
        }
        Ok(headers)
    }
}

fn header(name: &str, value: &str) -> Result<(AsciiMetadataKey, AsciiMetadataValue), ServerError> {
    let key = AsciiMetadataKey::from_bytes(name.to_ascii_lowercase().as_bytes())
        .map_err(|source| ServerError::HeaderName { name: name.to_owned(), source })?;
    match value.parse::<AsciiMetadataValue>() {
        Ok(value) => Ok((key, value)),
        Err(source) => Err(ServerError::Header { name: name.to_owned(), source }),
    }
}

impl Roots {
    /// What a setting means: PEM text, `SYSTEM`, or else the path of a PEM file.
    pub fn from_setting(text: &str) -> Self {
        if text.contains("-----BEGIN ") {
            Self::Pem(text.to_owned())
        } else if text == "SYSTEM" {
            Self::System
        } else {
            Self::File(text.into())
        }
    }

    /// Where they are, in words, and the text.
    fn read(&self) -> Result<(String, String), ServerError> {
        let path = match self {
            Self::Pem(pem) => return Ok(("the configuration".into(), pem.clone())),
            Self::File(path) => path.as_path(),
            Self::System => {
                let mut known = SYSTEM_ROOTS.iter().map(Path::new);
                known.find(|path| path.exists()).unwrap_or(Path::new(SYSTEM_ROOTS[0]))
            }
        };
        let pem = fs::read_to_string(path)
            .map_err(|source| ServerError::Roots { path: path.to_owned(), source })?;
        Ok((path.display().to_string(), pem))
    }
}

impl Token {
    /// What a setting means: a file if there is one of this path, or it has a slash, which no token has; else the token
    /// itself.
    pub fn from_setting(text: &str) -> Self {
        if text.contains('/') || Path::new(text).exists() {
            Self::File(text.into())
        } else {
            Self::Literal(text.to_owned())
        }
    }

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

fn is_own_machine(address: &Uri) -> bool {
    let host = address.host().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(address: &str) -> ServerConfig {
        ServerConfig {
            address: address.into(),
            roots: Roots::File("/nonexistent/root-cert.pem".into()),
            further_name: None,
            versions: TlsVersions::Only13,
            token: Some(Token::Literal("secret".into())),
            cluster_id: "Kubernetes".into(),
            headers: Vec::new(),
        }
    }

    fn refusal(server: &ServerConfig) -> String {
        server.endpoint().err().map_or("accepted".into(), |error| error.to_string())
    }

    #[test]
    fn a_token_is_sent_in_plain_text_to_this_machine_only() {
        for own in ["http://localhost:15010", "http://127.0.0.1:15010", "http://[::1]:15010"] {
            assert_eq!(refusal(&server(own)), "accepted", "{own}");
        }
        let refused = "a token is not sent to `http://10.0.0.1:15010` in plain text: use https";
        assert_eq!(refusal(&server("http://10.0.0.1:15010")), refused);
        let anonymous = ServerConfig { token: None, ..server("http://10.0.0.1:15010") };
        assert_eq!(refusal(&anonymous), "accepted");
    }

    #[test]
    fn without_a_scheme_an_address_is_one_of_tls() {
        assert_eq!(
            refusal(&server("istiod.istio-system.svc:15012")),
            "reading the root certificates in /nonexistent/root-cert.pem"
        );
    }

    #[test]
    fn roots_must_hold_a_certificate() {
        let empty = ServerConfig { roots: Roots::Pem(String::new()), ..server("https://ca") };
        assert_eq!(
            refusal(&empty),
            "the configuration has no usable root certificate for `https://ca`: no items found"
        );
    }

    #[test]
    fn an_empty_token_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let token = Some(Token::File(file.path().into()));
        let error = ServerConfig { token, ..server("https://ca") }.headers().unwrap_err();
        let expected = format!("the token in {} is empty", file.path().display());
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_token_is_sent_without_the_line_end_of_its_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "secret\n").unwrap();
        let token = Some(Token::File(file.path().into()));
        let headers = ServerConfig { token, ..server("https://ca") }.headers().unwrap();
        let bearer = headers.iter().find(|(name, _)| *name == "authorization").unwrap();
        assert_eq!(bearer.1.to_str().unwrap(), "Bearer secret");
        assert!(bearer.1.is_sensitive());
    }

    #[test]
    fn further_headers_are_sent_under_lower_case_names() {
        let headers = vec![("X-Mesh".to_owned(), "a".to_owned())];
        let sent = ServerConfig { headers, ..server("https://ca") }.headers().unwrap();
        let sent = sent.iter().find(|(name, _)| *name == "x-mesh").unwrap();
        assert_eq!(sent.1.to_str().unwrap(), "a");
        for (name, value, expected) in [
            ("a b", "c", "`a b` is no name of a header"),
            ("a", "c\n", "the header a cannot carry its value"),
        ] {
            let headers = vec![(name.to_owned(), value.to_owned())];
            let error = ServerConfig { headers, ..server("https://ca") }.headers().unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn roots_are_a_path_a_text_or_the_systems() {
        let word = |text: &str| match Roots::from_setting(text) {
            Roots::File(path) => format!("file {}", path.display()),
            Roots::Pem(_) => "text".to_owned(),
            Roots::System => "system".to_owned(),
        };
        assert_eq!(word("./root-cert.pem"), "file ./root-cert.pem");
        assert_eq!(word("-----BEGIN CERTIFICATE-----\n"), "text");
        assert_eq!(word("SYSTEM"), "system");
    }

    #[test]
    fn a_token_is_a_file_or_itself() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let word = |text: &str| format!("{:?}", Token::from_setting(text));
        let path = file.path().to_str().unwrap();
        assert_eq!(word(path), format!("File({path:?})"));
        assert_eq!(word("./not/there/yet"), "File(\"./not/there/yet\")");
        assert_eq!(word("eyJhbGciOiJSUzI1NiJ9.e30.c2ln"), "Literal(..)");
    }

    #[test]
    fn roots_and_tokens_are_read_anew_for_each_call() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let server =
            ServerConfig { token: Some(Token::File(file.path().into())), ..server("https://ca") };
        for token in ["first", "second"] {
            fs::write(file.path(), token).unwrap();
            let headers = server.headers().unwrap();
            let bearer = headers.iter().find(|(name, _)| *name == "authorization").unwrap();
            assert_eq!(bearer.1.to_str().unwrap(), format!("Bearer {token}"));
        }
    }
}
