//! Which protocol a port speaks, from `appProtocol` or its name.

use proto::workload::AppProtocol;

use crate::manifests::ServicePort;

/// Ports that Istio takes for TCP when neither name nor `appProtocol` says: the server speaks first there (SMTP, DNS,
/// MySQL, MongoDB), so that nothing can be detected.
const SERVER_FIRST: [u16; 4] = [25, 53, 3306, 27017];

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) enum Protocol {
    Udp,
    Tcp,
    Http,
    Http2,
    Grpc,
    GrpcWeb,
    HttpProxy,
    Https,
    Tls,
    Mongo,
    Redis,
    Mysql,
    /// A waypoint looks at the first bytes.
    Unknown,
}

impl Protocol {
    /// Reads a ServiceEntry's `protocol`, or the name of a Service's port: what stands before the first `-` counts.
    pub(crate) fn parse(name: &str) -> Self {
        let name = name.to_ascii_lowercase();
        if name.starts_with("grpc-web") {
            return Self::GrpcWeb;
        }
        match name.split('-').next().unwrap_or_default() {
            "tcp" => Self::Tcp,
            "udp" => Self::Udp,
            "grpc" => Self::Grpc,
            "http" => Self::Http,
            "http_proxy" => Self::HttpProxy,
            "http2" => Self::Http2,
            "https" => Self::Https,
            "tls" => Self::Tls,
            "mongo" => Self::Mongo,
            "redis" => Self::Redis,
            "mysql" => Self::Mysql,
            _ => Self::Unknown,
        }
    }

    /// The protocol of a Service's port.
    pub(crate) fn of_port(port: &ServicePort) -> Self {
        if port.udp {
            return Self::Udp;
        }
        let named = match port.app_protocol.as_deref() {
            Some("kubernetes.io/h2c") => return Self::Http2,
            Some("kubernetes.io/ws") => return Self::Http,
            Some("kubernetes.io/wss") => return Self::Https,
            Some(other) => other,
            None => &port.name,
        };
        let protocol = Self::parse(named);
        let server_first = SERVER_FIRST.contains(&port.port.get());
        if protocol == Self::Unknown && server_first { Self::Tcp } else { protocol }
    }

    /// Whether it is HTTP in clear, of any version.
    pub(crate) fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::HttpProxy) || self.is_http2()
    }

    /// Whether it is HTTP/2 in clear.
    pub(crate) fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc | Self::GrpcWeb)
    }

    /// Whether the application encrypts: nothing of it can be seen but the name asked for.
    pub(crate) fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::Tls)
    }

    /// Whether it is forwarded as bytes.
    pub(crate) fn is_tcp(self) -> bool {
        matches!(self, Self::Tcp | Self::Mongo | Self::Redis | Self::Mysql) || self.is_tls()
    }

    /// What node daemons call it; they know fewer.
    pub(crate) fn for_daemons(self) -> AppProtocol {
        match self {
            Self::Http => AppProtocol::Http11,
            Self::Http2 => AppProtocol::Http2,
            Self::Grpc => AppProtocol::Grpc,
            Self::Https | Self::Tls => AppProtocol::Tls,
            Self::Tcp => AppProtocol::Tcp,
            Self::Udp
            | Self::GrpcWeb
            | Self::HttpProxy
            | Self::Mongo
            | Self::Redis
            | Self::Mysql
            | Self::Unknown => AppProtocol::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifests::TargetPort;

    #[test]
    fn the_application_protocol_beats_the_name() {
        for (name, app_protocol, port, expected) in [
            ("http", None, 80, Protocol::Http),
            ("HTTP-api", None, 80, Protocol::Http),
            ("http", Some("tcp"), 80, Protocol::Tcp),
            ("x", Some("kubernetes.io/h2c"), 80, Protocol::Http2),
            ("x", Some("kubernetes.io/ws"), 80, Protocol::Http),
            ("x", Some("kubernetes.io/wss"), 80, Protocol::Https),
            ("x", Some("https"), 80, Protocol::Https),
            ("grpc-api", None, 80, Protocol::Grpc),
            ("grpc-web-api", None, 80, Protocol::GrpcWeb),
            ("metrics", None, 9090, Protocol::Unknown),
            ("mysql", None, 3306, Protocol::Mysql),
            ("db", None, 3306, Protocol::Tcp),
            ("", None, 80, Protocol::Unknown),
        ] {
            let port = std::num::NonZeroU16::new(port).unwrap();
            let port = ServicePort {
                name: name.into(),
                port,
                target: TargetPort::Number(port),
                udp: false,
                app_protocol: app_protocol.map(Into::into),
            };
            assert_eq!(Protocol::of_port(&port), expected, "{name} {app_protocol:?}");
        }
    }

    #[test]
    fn daemons_are_told_what_they_know() {
        for (protocol, expected) in [
            (Protocol::Http, AppProtocol::Http11),
            (Protocol::GrpcWeb, AppProtocol::Unknown),
            (Protocol::Https, AppProtocol::Tls),
            (Protocol::Mysql, AppProtocol::Unknown),
        ] {
            assert_eq!(protocol.for_daemons(), expected);
        }
    }
}
