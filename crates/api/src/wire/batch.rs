//! Batches and objects as bytes: what the log, snapshots and ledgers keep.

use std::{cell::LazyCell, sync::Arc};

use prost::Message;

use super::{DecodeError, change, object};
use crate::{
    ServiceId,
    object::{Batch, Expect, Object, Wishes},
    spec::TaskSpec,
    wire,
};

/// Finds the task spec that a service had at a version, for task rows that were written without it.
pub type SpecSource<'a> = &'a dyn Fn(&ServiceId, u64) -> Option<Arc<TaskSpec>>;

/// Writes a batch, each task with its spec.
pub fn encode_batch(batch: &Batch) -> Vec<u8> {
    wire::Batch::from(batch).encode_to_vec()
}

/// Writes a batch without the specs of those tasks whose spec the reader finds by service and version.
pub fn encode_batch_lean(batch: &Batch, known: SpecSource<'_>) -> Vec<u8> {
    let mut message = wire::Batch::from(batch);
    for task in tasks(&mut message) {
        let service = task.service.parse::<ServiceId>().ok();
        if service.is_some_and(|service| known(&service, task.spec_version).is_some()) {
            task.spec = None;
        }
    }
    message.encode_to_vec()
}

/// Adds to a batch that is written already that an object is put which is not there. Messages are joined by putting their
/// bytes together.
pub fn append_put(batch: &mut Vec<u8>, object: object::Kind) {
    let put = change::Put {
        object: Some(wire::Object { kind: Some(object) }),
        expect: Some((&Expect::Absent).into()),
    };
    let change = wire::Change {
        kind: Some(change::Kind::Put(put)),
    };
    let more = wire::Batch {
        changes: vec![change],
        ..wire::Batch::default()
    };
    more.encode(batch)
        .expect("a buffer grows as far as it must");
}

/// Reads what [`encode_batch`] wrote.
///
/// # Errors
/// The field that is missing or wrong.
pub fn decode_batch(bytes: &[u8]) -> Result<Batch, DecodeError> {
    decode_batch_with(bytes, &|_, _| None)
}

/// Reads what [`encode_batch_lean`] wrote; siblings share the spec that `known` returns.
///
/// # Errors
/// The field that is missing or wrong, for instance a task's spec that is neither written nor known.
pub fn decode_batch_with(bytes: &[u8], known: SpecSource<'_>) -> Result<Batch, DecodeError> {
    let mut message: wire::Batch = parse(bytes, "Batch")?;
    let placeholder = LazyCell::new(|| wire::TaskSpec::from(&TaskSpec::default()));
    let mut shared = Vec::new();
    for (place, change) in message.changes.iter_mut().enumerate() {
        let Some(task) = task_of(change).filter(|task| task.spec.is_none()) else {
            continue;
        };
        let service = task.service.parse::<ServiceId>().ok();
        if let Some(spec) = service.and_then(|service| known(&service, task.spec_version)) {
            task.spec = Some(wire::TaskSpec::clone(&placeholder));
            shared.push((place, spec));
        }
    }
    let mut batch = Batch::try_from(message)?;
    for (place, spec) in shared {
        if let crate::object::Change::Put { object, .. } = &mut batch.changes[place]
            && let Object::Task(task) = object.as_mut()
        {
            task.spec = spec;
        }
    }
    Ok(batch)
}

/// Writes the wishes that are remembered.
pub fn encode_wishes(wishes: &Wishes) -> Vec<u8> {
    wire::Wishes::from(wishes).encode_to_vec()
}

/// Reads what [`encode_wishes`] wrote.
///
/// # Errors
/// The field that is missing or wrong.
pub fn decode_wishes(bytes: &[u8]) -> Result<Wishes, DecodeError> {
    parse::<wire::Wishes>(bytes, "Wishes")?.try_into()
}

/// Writes an object.
pub fn encode_object(object: &Object) -> Vec<u8> {
    wire::Object::from(object).encode_to_vec()
}

/// Reads what [`encode_object`] wrote.
///
/// # Errors
/// The field that is missing or wrong.
pub fn decode_object(bytes: &[u8]) -> Result<Object, DecodeError> {
    parse::<wire::Object>(bytes, "Object")?.try_into()
}

pub(super) fn parse<M: Message + Default>(bytes: &[u8], name: &str) -> Result<M, DecodeError> {
    M::decode(bytes).map_err(|malformed| DecodeError::new(malformed).within(name))
}

fn tasks(batch: &mut wire::Batch) -> impl Iterator<Item = &mut wire::Task> {
    batch.changes.iter_mut().filter_map(task_of)
}

fn task_of(change: &mut wire::Change) -> Option<&mut wire::Task> {
    match change.kind.as_mut()? {
        change::Kind::Put(put) => match put.object.as_mut()?.kind.as_mut()? {
            object::Kind::Task(task) => Some(task),
            _ => None,
        },
        change::Kind::Delete(_) => None,
    }
}
