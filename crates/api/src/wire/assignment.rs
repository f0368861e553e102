//! Assignments as bytes: what several agents are told is written once for all of them.

use std::sync::{Arc, LazyLock};

use bytes::{BufMut, Bytes, BytesMut};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len},
};

use super::{AssignmentChange, AssignmentsMessage, DecodeError, batch::parse};
use crate::{
    network::{NetworkView, ViewChange, ViewUpdate},
    object::Task,
    spec::TaskSpec,
    wire,
};

/// Field of `AssignmentChange` that holds a task.
const CHANGE_TASK: u32 = 2;
/// Field of `Task` that holds its spec.
const TASK_SPEC: u32 = 7;

/// Stands in for a spec that is written apart.
static NO_SPEC: LazyLock<Arc<TaskSpec>> = LazyLock::new(Arc::default);

/// Writes a change.
pub fn encode_change(change: &AssignmentChange) -> Bytes {
    change.encode_to_vec().into()
}

/// Writes a network view.
pub fn encode_view(view: &NetworkView) -> Bytes {
    wire::NetworkView::from(view).encode_to_vec().into()
}

/// Writes what leads from one network view to another.
pub fn encode_view_change(change: &ViewChange) -> Bytes {
    wire::ViewChange::from(change).encode_to_vec().into()
}

/// Writes what siblings have in common, for [`encode_task_update`].
pub fn encode_task_spec(spec: &TaskSpec) -> Bytes {
    wire::TaskSpec::from(spec).encode_to_vec().into()
}

/// Writes the change that brings a task. `spec` is what [`encode_task_spec`] has written of its spec.
pub fn encode_task_update(task: &Task, spec: &[u8]) -> Bytes {
    let row = Task {
        spec: Arc::clone(&NO_SPEC),
        ..task.clone()
    };
    let mut row = wire::Task::from(&row);
    row.spec = None;
    let spec_bytes = key_len(TASK_SPEC) + encoded_len_varint(spec.len() as u64) + spec.len();
    let task_bytes = row.encoded_len() + spec_bytes;
    let mut out = BytesMut::with_capacity(16 + task_bytes);
    encode_key(CHANGE_TASK, WireType::LengthDelimited, &mut out);
    encode_varint(task_bytes as u64, &mut out);
    row.encode_raw(&mut out);
    encode_key(TASK_SPEC, WireType::LengthDelimited, &mut out);
    encode_varint(spec.len() as u64, &mut out);
    out.put_slice(spec);
    out.freeze()
}

impl AssignmentsMessage {
    /// Reads the changes.
    ///
    /// # Errors
    /// Bytes that are none.
    pub fn read_changes(&self) -> Result<Vec<AssignmentChange>, DecodeError> {
        let read = |bytes: &Bytes| parse::<AssignmentChange>(bytes, "AssignmentChange");
        self.changes.iter().map(read).collect()
    }

    /// Reads the network view, or what differs in it, if there is any.
    ///
    /// # Errors
    /// Bytes that are none, or the field that is missing or wrong.
    pub fn read_view(&self) -> Result<Option<ViewUpdate>, DecodeError> {
        let version = self.view_version;
        if let Some(bytes) = &self.view {
            let view = parse::<wire::NetworkView>(bytes, "NetworkView")?;
            let view = NetworkView {
                version,
                ..view.try_into()?
            };
            return Ok(Some(ViewUpdate::Whole(view)));
        }
        let Some(bytes) = &self.view_change else {
            return Ok(None);
        };
        let change = parse::<wire::ViewChange>(bytes, "ViewChange")?;
        let change = ViewChange {
            version,
            ..change.try_into()?
        };
        Ok(Some(ViewUpdate::Change(change)))
    }
}
