//! Which protocol a Service's port speaks, from `appProtocol` or the port's name.

use proto::workload::AppProtocol;

use crate::manifests::ServicePort;

/// Ports that Istio takes for TCP when neither name nor `appProtocol` says: the server speaks first there (SMTP, DNS,
/// MySQL, MongoDB), so that nothing can be detected.
const SERVER_FIRST: [u16; 4] = [25, 53, 3306, 27017];

/// Reads the protocol of a port.
pub(crate) fn of(port: &ServicePort) -> AppProtocol {
    if port.udp {
        return AppProtocol::Unknown;
    }
    let named = match port.app_protocol.as_deref() {
        Some("kubernetes.io/h2c") => return AppProtocol::Http2,
        Some("kubernetes.io/ws") => return AppProtocol::Http11,
        Some("kubernetes.io/wss") => return AppProtocol::Tls,
        Some(other) => other,
        None => &port.name,
    };
    let named = named.to_ascii_lowercase();
    if named.starts_with("grpc-web") {
        return AppProtocol::Unknown;
    }
    match named.split('-').next().unwrap_or_default() {
        "http" => AppProtocol::Http11,
        "http2" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "https" | "tls" => AppProtocol::Tls,
        "tcp" => AppProtocol::Tcp,
        // Known by name to Istio, though not to the daemons.
        "mongo" | "mysql" | "redis" | "udp" | "hbone" => AppProtocol::Unknown,
        _ if SERVER_FIRST.contains(&port.port.get()) => AppProtocol::Tcp,
        _ => AppProtocol::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifests::TargetPort;

    #[test]
    fn the_application_protocol_beats_the_name() {
        for (name, app_protocol, port, expected) in [
            ("http", None, 80, AppProtocol::Http11),
            ("HTTP-api", None, 80, AppProtocol::Http11),
            ("http", Some("tcp"), 80, AppProtocol::Tcp),
            ("x", Some("kubernetes.io/h2c"), 80, AppProtocol::Http2),
            ("x", Some("kubernetes.io/ws"), 80, AppProtocol::Http11),
            ("x", Some("https"), 80, AppProtocol::Tls),
            ("grpc-api", None, 80, AppProtocol::Grpc),
            ("grpc-web-api", None, 80, AppProtocol::Unknown),
            ("metrics", None, 9090, AppProtocol::Unknown),
            ("mysql", None, 3306, AppProtocol::Unknown),
            ("db", None, 3306, AppProtocol::Tcp),
            ("", None, 80, AppProtocol::Unknown),
        ] {
            let port = std::num::NonZeroU16::new(port).unwrap();
            let port = ServicePort {
                name: name.into(),
                port,
                target: TargetPort::Number(port),
                udp: false,
                app_protocol: app_protocol.map(Into::into),
            };
            assert_eq!(of(&port), expected, "{name} {app_protocol:?}");
        }
    }
}
