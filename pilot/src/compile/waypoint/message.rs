//! Pieces that many messages of Envoy's API are made of.
//!
//! In: plain values. Out: messages, an `Any` where Envoy looks up an extension by its type. Decides nothing.

use std::{net::IpAddr, time::Duration};

use prost::{Message, Name};
use proto::{
    envoy::envoy::{
        config::{
            core::v3::{
                Address, EnvoyInternalAddress, SocketAddress, SubstitutionFormatString,
                TransportSocket, address::Address as AddressKind, data_source,
                envoy_internal_address::AddressNameSpecifier, socket_address::PortSpecifier,
                substitution_format_string, transport_socket,
            },
            listener::v3::{Filter, ListenerFilter, filter, listener_filter},
        },
        extensions::{
            filters::{
                common::set_filter_state::v3::{
                    FilterStateValue,
                    filter_state_value::{Key, SharedWithUpstream, Value as StateValue},
                },
                network::http_connection_manager::v3::{HttpFilter, http_filter},
            },
            transport_sockets::raw_buffer::v3::RawBuffer,
        },
    },
    google::{self, Any, Struct, Value, value},
    istio_proxy::TypedStruct,
};

/// A message with its type.
pub(crate) fn any<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: format!("type.googleapis.com/{}", M::full_name()),
        value: message.encode_to_vec(),
    }
}

/// A message of a type that Envoy's API does not have, as JSON.
pub(crate) fn typed_struct(name: &str, value: Struct) -> Any {
    let type_url = format!("type.googleapis.com/{name}");
    any(&TypedStruct { type_url, value: Some(value) })
}

/// JSON of named members.
pub(crate) fn json_object<const N: usize>(members: [(&str, Value); N]) -> Struct {
    let fields = members.into_iter().map(|(name, value)| (name.to_owned(), value));
    Struct { fields: fields.collect() }
}

/// A text in JSON.
pub(crate) fn json_text(text: impl Into<String>) -> Value {
    Value { kind: Some(value::Kind::StringValue(text.into())) }
}

/// `true` or `false` in JSON.
pub(crate) fn json_bool(is: bool) -> Value {
    Value { kind: Some(value::Kind::BoolValue(is)) }
}

/// A list in JSON.
pub(crate) fn json_list(values: Vec<Value>) -> Value {
    Value { kind: Some(value::Kind::ListValue(google::ListValue { values })) }
}

/// An object in JSON, as a member of another.
pub(crate) fn json_struct(object: Struct) -> Value {
    Value { kind: Some(value::Kind::StructValue(object)) }
}

/// A span of time; one longer than a proto can say becomes the longest there is.
pub(crate) fn duration(of: Duration) -> google::Duration {
    google::Duration {
        seconds: i64::try_from(of.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(of.subsec_nanos()).unwrap_or_default(),
    }
}

/// A whole number of seconds.
pub(crate) fn seconds(seconds: i64) -> google::Duration {
    google::Duration { seconds, nanos: 0 }
}

/// A number that may be absent.
pub(crate) fn number(value: u32) -> google::UInt32Value {
    google::UInt32Value { value }
}

/// A flag that may be absent.
pub(crate) fn flag(value: bool) -> google::BoolValue {
    google::BoolValue { value }
}

/// A filter of connections.
pub(crate) fn filter(name: &str, config: Any) -> Filter {
    Filter { name: name.into(), config_type: Some(filter::ConfigType::TypedConfig(config)) }
}

/// A filter of requests.
pub(crate) fn http_filter(name: &str, config: Any) -> HttpFilter {
    HttpFilter {
        name: name.into(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..HttpFilter::default()
    }
}

/// A filter that sees a connection before its chain is chosen.
pub(crate) fn listener_filter(name: &str, config: Any) -> ListenerFilter {
    ListenerFilter {
        name: name.into(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(config)),
        ..ListenerFilter::default()
    }
}

/// An IP address and port.
pub(crate) fn socket_address(address: impl ToString, port: u16) -> Address {
    let port = PortSpecifier::PortValue(port.into());
    let socket = SocketAddress {
        address: address.to_string(),
        port_specifier: Some(port),
        ..SocketAddress::default()
    };
    Address { address: Some(AddressKind::SocketAddress(socket)) }
}

/// A listener inside Envoy; what it is asked to reach tells its endpoints apart.
pub(crate) fn internal_address(listener: &str, endpoint_id: String) -> Address {
    let listener = AddressNameSpecifier::ServerListenerName(listener.into());
    let internal = EnvoyInternalAddress { endpoint_id, address_name_specifier: Some(listener) };
    Address { address: Some(AddressKind::EnvoyInternalAddress(internal)) }
}

/// `address:port`, with brackets around an IPv6 address.
pub(crate) fn host_port(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

/// How bytes travel.
pub(crate) fn transport_socket(name: &str, config: Any) -> TransportSocket {
    TransportSocket {
        name: name.into(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(config)),
    }
}

/// As they are.
pub(crate) fn raw_buffer() -> TransportSocket {
    transport_socket("raw_buffer", any(&RawBuffer {}))
}

/// Text with Envoy's `%COMMANDS%`.
pub(crate) fn format_string(text: &str) -> SubstitutionFormatString {
    let source = data_source::Specifier::InlineString(text.into());
    let source = proto::envoy::envoy::config::core::v3::DataSource {
        specifier: Some(source),
        ..Default::default()
    };
    SubstitutionFormatString {
        format: Some(substitution_format_string::Format::TextFormatSource(source)),
        ..SubstitutionFormatString::default()
    }
}

/// What a connection or request is remembered by under `key`; `factory` says of what type it is, if it is not clear
/// from the key.
pub(crate) fn filter_state(
    key: &str,
    factory: &str,
    format: SubstitutionFormatString,
    shared: SharedWithUpstream,
) -> FilterStateValue {
    FilterStateValue {
        key: Some(Key::ObjectKey(key.into())),
        factory_key: factory.into(),
        value: Some(StateValue::FormatString(format)),
        shared_with_upstream: shared.into(),
        ..FilterStateValue::default()
    }
}
