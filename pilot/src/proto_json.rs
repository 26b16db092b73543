//! Messages as JSON: field names as in `.proto` files, fields of default value left out, what an `Any` holds spelled out.
//!
//! In: encoded messages, or JSON. Out: the other. Knows the messages that [`proto::DESCRIPTORS`] describes.

use std::sync::LazyLock;

use anyhow::{Context, Result, anyhow};
use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, MessageDescriptor, ReflectMessage, SerializeOptions,
    Value as Field,
};
use proto::google::Any;
use serde_json::Value;

const ANY: &str = "google.protobuf.Any";
/// Stands for an `Any` that holds nothing, which the library cannot write: Go writes `{}`.
const NOTHING: &str = "type.googleapis.com/google.protobuf.Empty";

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(proto::DESCRIPTORS).expect("the build has compiled these descriptors")
});

/// What `any` holds, with its type as `@type`.
///
/// # Errors
/// If it or what it holds is of a type that is not described.
pub fn from_any(any: &Any) -> Result<Value> {
    let mut message = DynamicMessage::decode(descriptor(ANY)?, &*any.encode_to_vec())?;
    fill(&mut message)
        .and_then(|()| json(&message))
        .with_context(|| format!("writing a {} as JSON", any.type_url))
}

/// The reverse of [`from_any`].
///
/// # Errors
/// If it is of a type that is not described, or not a message of it.
pub fn to_any(value: &Value) -> Result<Any> {
    typed(ANY, value)
}

/// A message of type `name` from its JSON.
///
/// # Errors
/// As those of [`to_any`].
pub fn typed<M: Message + Default>(name: &str, value: &Value) -> Result<M> {
    let message = DynamicMessage::deserialize(descriptor(name)?, value)
        .with_context(|| format!("reading a {name}"))?;
    Ok(M::decode(&*message.encode_to_vec())?)
}

/// Whether `value` is a message of type `name`.
///
/// # Errors
/// As those of [`to_any`].
pub fn check(name: &str, value: &Value) -> Result<()> {
    let read = DynamicMessage::deserialize(descriptor(name)?, value);
    read.map(drop).with_context(|| format!("reading a {name}"))
}

fn descriptor(name: &str) -> Result<MessageDescriptor> {
    POOL.get_message_by_name(name).ok_or_else(|| anyhow!("no message is called {name}"))
}

/// Has every `Any` in a message hold something.
fn fill(message: &mut DynamicMessage) -> Result<()> {
    if message.descriptor().full_name() == ANY {
        let mut any: Any = message.transcode_to()?;
        if any.type_url.is_empty() {
            any.type_url = NOTHING.to_owned();
        } else {
            let name = any.type_url.rsplit('/').next().unwrap_or_default();
            let mut held = DynamicMessage::decode(descriptor(name)?, &*any.value)?;
            fill(&mut held)?;
            any.value = held.encode_to_vec();
        }
        return Ok(message.transcode_from(&any)?);
    }
    message.fields_mut().try_for_each(|(_, value)| fill_value(value))
}

fn fill_value(value: &mut Field) -> Result<()> {
    match value {
        Field::Message(message) => fill(message),
        Field::List(values) => values.iter_mut().try_for_each(fill_value),
        Field::Map(entries) => entries.values_mut().try_for_each(fill_value),
        Field::Bool(_)
        | Field::I32(_)
        | Field::I64(_)
        | Field::U32(_)
        | Field::U64(_)
        | Field::F32(_)
        | Field::F64(_)
        | Field::String(_)
        | Field::Bytes(_)
        | Field::EnumNumber(_) => Ok(()),
    }
}

fn json(message: &DynamicMessage) -> Result<Value> {
    let options = SerializeOptions::new().use_proto_field_name(true).skip_default_fields(true);
    let mut value = message.serialize_with_options(serde_json::value::Serializer, &options)?;
    as_go(&mut value);
    Ok(value)
}

/// Writes whole numbers without a fraction, and an empty `Any` as nothing.
fn as_go(value: &mut Value) {
    match value {
        Value::Number(number) => {
            let whole = number.as_f64().filter(|_| number.is_f64());
            // Casting saturates; beyond 2^53 not every whole number is a float anyway.
            let whole = whole.filter(|float| float.fract() == 0.0 && float.abs() < 9e15);
            if let Some(float) = whole {
                *number = (float as i64).into();
            }
        }
        Value::Array(values) => values.iter_mut().for_each(as_go),
        Value::Object(fields) => {
            if fields.get("@type").is_some_and(|held| held == NOTHING) {
                fields.clear();
            }
            fields.values_mut().for_each(as_go);
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}
