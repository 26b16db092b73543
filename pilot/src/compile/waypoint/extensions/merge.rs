//! Reads patches as messages, and merges them into others.
//!
//! In: JSON as users write it. Out: messages. A field of the patch takes the place of the other's; messages are merged
//! field by field, lists grow, and a span of time is taken whole.

use std::sync::LazyLock;

use prost::{Message, Name};
use prost_reflect::{
    DescriptorPool, DynamicMessage, MessageDescriptor, ReflectMessage, Value as Field,
};
use proto::google::Any;
use serde_json::Value;

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(proto::DESCRIPTORS).expect("the build has compiled these descriptors")
});

/// A message from its JSON; nothing if it is none.
pub(super) fn read<M: Message + Default + Name>(value: &Value) -> Option<M> {
    let descriptor = POOL.get_message_by_name(&M::full_name())?;
    let message = DynamicMessage::deserialize(descriptor, value).ok()?;
    M::decode(&*message.encode_to_vec()).ok()
}

/// A message with a patch merged into it; nothing if the patch is none.
pub(super) fn merge<M: Message + Default + Name>(message: &M, patch: &Value) -> Option<M> {
    let descriptor = POOL.get_message_by_name(&M::full_name())?;
    let patch = DynamicMessage::deserialize(descriptor.clone(), patch).ok()?;
    let mut merged = DynamicMessage::decode(descriptor, &*message.encode_to_vec()).ok()?;
    merge_message(&mut merged, &patch)?;
    M::decode(&*merged.encode_to_vec()).ok()
}

fn merge_message(into: &mut DynamicMessage, patch: &DynamicMessage) -> Option<()> {
    for (field, value) in patch.fields() {
        match value {
            Field::Message(new) if into.has_field(&field) => {
                let Field::Message(old) = into.get_field_mut(&field) else { return None };
                match old.descriptor().full_name() {
                    "google.protobuf.Duration" => *old = new.clone(),
                    "google.protobuf.Any" => *old = merge_any(old, new)?,
                    _ => merge_message(old, new)?,
                }
            }
            Field::List(new) => {
                let Field::List(old) = into.get_field_mut(&field) else { return None };
                old.extend(new.iter().cloned());
            }
            Field::Map(new) => {
                let Field::Map(old) = into.get_field_mut(&field) else { return None };
                old.extend(new.iter().map(|(key, value)| (key.clone(), value.clone())));
            }
            new @ (Field::Message(_)
            | Field::Bool(_)
            | Field::I32(_)
            | Field::I64(_)
            | Field::U32(_)
            | Field::U64(_)
            | Field::F32(_)
            | Field::F64(_)
            | Field::String(_)
            | Field::Bytes(_)
            | Field::EnumNumber(_)) => into.set_field(&field, new.clone()),
        }
    }
    Some(())
}

/// What two of one type hold is merged; else the patch's takes the place.
fn merge_any(old: &DynamicMessage, new: &DynamicMessage) -> Option<DynamicMessage> {
    let (held, patch): (Any, Any) = (old.transcode_to().ok()?, new.transcode_to().ok()?);
    if held.type_url != patch.type_url {
        return Some(new.clone());
    }
    let descriptor: MessageDescriptor =
        POOL.get_message_by_name(held.type_url.rsplit('/').next().unwrap_or_default())?;
    let mut merged = DynamicMessage::decode(descriptor.clone(), &*held.value).ok()?;
    let patch = DynamicMessage::decode(descriptor, &*patch.value).ok()?;
    merge_message(&mut merged, &patch)?;
    let mut any = old.clone();
    any.transcode_from(&Any { type_url: held.type_url, value: merged.encode_to_vec() }).ok()?;
    Some(any)
}
