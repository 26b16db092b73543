//! One encoding for equal messages.
//!
//! In: a message. Out: its bytes, the entries of maps in the order of their keys. The types of Envoy's API keep maps
//! in tables without order: encoded by themselves, a message would look changed with each compilation, and be sent
//! again to everybody.

use std::sync::LazyLock;

use prost::{
    Message, Name,
    encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint},
};
use prost_reflect::{DescriptorPool, FieldDescriptor, Kind, MessageDescriptor};

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(proto::DESCRIPTORS).expect("the build has compiled these descriptors")
});

const ANY: &str = "google.protobuf.Any";

/// The bytes of a message, and of all that it holds.
pub(crate) fn encode<M: Message + Name>(message: &M) -> Vec<u8> {
    let encoded = message.encode_to_vec();
    match POOL.get_message_by_name(&M::full_name()) {
        Some(descriptor) => sorted(&descriptor, &encoded).unwrap_or(encoded),
        None => encoded,
    }
}

/// The same message with sorted maps; none if the bytes are no message.
fn sorted(descriptor: &MessageDescriptor, mut bytes: &[u8]) -> Option<Vec<u8>> {
    if descriptor.full_name() == ANY {
        return sorted_any(bytes);
    }
    let mut out = Vec::with_capacity(bytes.len());
    // Entries of one map stand together.
    let mut map: Vec<Vec<u8>> = Vec::new();
    let mut map_tag = 0;
    while !bytes.is_empty() {
        let (tag, wire_type) = decode_key(&mut bytes).ok()?;
        if tag != map_tag {
            put_map(&mut out, map_tag, &mut map);
        }
        let field = descriptor.get_field(tag);
        if wire_type != WireType::LengthDelimited {
            encode_key(tag, wire_type, &mut out);
            out.extend_from_slice(scalar(wire_type, &mut bytes)?);
            continue;
        }
        let value = delimited(&mut bytes)?;
        let held = field.as_ref().and_then(held_message);
        let value = match held {
            Some(held) => sorted(&held, value)?,
            None => value.to_vec(),
        };
        if field.is_some_and(|field| field.is_map()) {
            map_tag = tag;
            map.push(value);
        } else {
            put(&mut out, tag, &value);
        }
    }
    put_map(&mut out, map_tag, &mut map);
    Some(out)
}

fn held_message(field: &FieldDescriptor) -> Option<MessageDescriptor> {
    field.kind().as_message().cloned().filter(|_| matches!(field.kind(), Kind::Message(_)))
}

/// What an `Any` holds is of the type it says, where that is known.
fn sorted_any(bytes: &[u8]) -> Option<Vec<u8>> {
    let any = proto::google::Any::decode(bytes).ok()?;
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    let Some(held) = POOL.get_message_by_name(name) else { return Some(bytes.to_vec()) };
    let value = sorted(&held, &any.value)?;
    Some(proto::google::Any { value, ..any }.encode_to_vec())
}

/// Entries that differ in their keys differ before their values: the key comes first.
fn put_map(out: &mut Vec<u8>, tag: u32, entries: &mut Vec<Vec<u8>>) {
    entries.sort();
    for entry in entries.drain(..) {
        put(out, tag, &entry);
    }
}

fn put(out: &mut Vec<u8>, tag: u32, value: &[u8]) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

fn delimited<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(decode_varint(bytes).ok()?).ok()?;
    let (value, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(value)
}

/// The bytes of a number.
fn scalar<'a>(wire_type: WireType, bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = match wire_type {
        WireType::Varint => bytes.iter().position(|byte| byte & 0x80 == 0)? + 1,
        WireType::SixtyFourBit => 8,
        WireType::ThirtyTwoBit => 4,
        WireType::LengthDelimited | WireType::StartGroup | WireType::EndGroup => return None,
    };
    let (value, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(value)
}

#[cfg(test)]
mod tests {
    use proto::{
        envoy::envoy::config::core::v3::Metadata,
        google::{Any, Struct, Value, value::Kind},
    };

    use super::*;

    fn object(keys: impl Iterator<Item = u32>) -> Struct {
        let text = |key: u32| Value { kind: Some(Kind::StringValue(format!("value {key}"))) };
        Struct { fields: keys.map(|key| (format!("key {key}"), text(key))).collect() }
    }

    #[test]
    fn equal_messages_have_equal_bytes_in_whatever_order_their_maps_were_filled() {
        let of = |keys: Vec<u32>| {
            let held = proto::istio_proxy::TypedStruct {
                type_url: "x".into(),
                value: Some(object(keys.iter().copied())),
            };
            let any = Any {
                type_url: "type.googleapis.com/udpa.type.v1.TypedStruct".into(),
                value: held.encode_to_vec(),
            };
            let filter = keys.iter().map(|key| (format!("a {key}"), object(keys.iter().copied())));
            let typed = keys.iter().map(|key| (format!("b {key}"), any.clone()));
            Metadata { filter_metadata: filter.collect(), typed_filter_metadata: typed.collect() }
        };
        let (up, down) = (of((0..40).collect()), of((0..40).rev().collect()));
        let encoded = encode(&up);
        assert_eq!(encoded, encode(&down));
        let decoded = Metadata::decode(&*encoded).unwrap();
        assert_eq!(decoded.filter_metadata, up.filter_metadata);
        assert_eq!(decoded.typed_filter_metadata.len(), 40);
    }
}
