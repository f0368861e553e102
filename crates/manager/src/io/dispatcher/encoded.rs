//! What agents are sent, as bytes: written once and shared by all who are sent the same.

use std::{any::Any, collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use shoal_api::{network::NetworkView, wire};

use crate::core::dispatch::AssignmentChange;

/// Rounds for which bytes are kept after they were last used: agents whose sockets are busy come a little later.
const ROUNDS_KEPT: u64 = 16;

/// The bytes of what was sent lately. Bounded by what [`ROUNDS_KEPT`] rounds have sent, each value once.
#[derive(Default)]
pub(super) struct Encoded {
    round: u64,
    /// By address, and for what leads from one value to another by the addresses of both. The values are kept with the bytes,
    /// so that no others can come to lie there.
    kept: BTreeMap<(usize, usize), Kept>,
}

struct Kept {
    _values: [Option<Arc<dyn Any + Send + Sync>>; 2],
    bytes: Bytes,
    used_in: u64,
}

impl Encoded {
    /// Forgets what was not used for a while.
    pub(super) fn begin_round(&mut self) {
        self.round += 1;
        let oldest = self.round.saturating_sub(ROUNDS_KEPT);
        self.kept.retain(|_, kept| kept.used_in >= oldest);
    }

    pub(super) fn view(&mut self, view: &Arc<NetworkView>) -> Bytes {
        self.shared(view, wire::encode_view)
    }

    /// What leads from one view to another.
    pub(super) fn view_change(
        &mut self,
        before: &Arc<NetworkView>,
        now: &Arc<NetworkView>,
    ) -> Bytes {
        self.keep([Some(before), Some(now)], || {
            wire::encode_view_change(&now.change_from(before))
        })
    }

    pub(super) fn change(&mut self, change: &AssignmentChange) -> Bytes {
        use wire::assignment_change::{Action, Item};
        let write = |action: Action, item| {
            wire::encode_change(&wire::AssignmentChange {
                action: action.into(),
                item: Some(item),
            })
        };
        match change {
            AssignmentChange::PutSecret(secret) => self.shared(secret, |secret| {
                write(Action::Update, Item::Secret(secret.into()))
            }),
            AssignmentChange::PutConfig(config) => self.shared(config, |config| {
                write(Action::Update, Item::Config(config.into()))
            }),
            // A task is told to one agent; what it runs, to all that run its siblings.
            AssignmentChange::PutTask(task) => {
                let spec = self.shared(&task.spec, wire::encode_task_spec);
                wire::encode_task_update(task, &spec)
            }
            AssignmentChange::RemoveTask(id) => {
                let id = id.to_string();
                let task = wire::Task {
                    id,
                    ..Default::default()
                };
                write(Action::Remove, Item::Task(task))
            }
            AssignmentChange::RemoveConfig(id) => {
                let id = id.to_string();
                let config = wire::Config {
                    id,
                    ..Default::default()
                };
                write(Action::Remove, Item::Config(config))
            }
            AssignmentChange::RemoveSecret(id) => {
                let id = id.to_string();
                let secret = wire::Secret {
                    id,
                    ..Default::default()
                };
                write(Action::Remove, Item::Secret(secret))
            }
        }
    }

    fn shared<T: Send + Sync + 'static>(
        &mut self,
        value: &Arc<T>,
        write: impl FnOnce(&T) -> Bytes,
    ) -> Bytes {
        self.keep([Some(value), None], || write(value))
    }

    fn keep<T: Send + Sync + 'static>(
        &mut self,
        values: [Option<&Arc<T>>; 2],
        write: impl FnOnce() -> Bytes,
    ) -> Bytes {
        let [first, second] = values.map(|one| one.map_or(0, |one| Arc::as_ptr(one).addr()));
        let kept = self.kept.entry((first, second));
        let kept = kept.or_insert_with(|| Kept {
            _values: values.map(|one| one.map(|one| Arc::clone(one) as _)),
            bytes: write(),
            used_in: 0,
        });
        kept.used_in = self.round;
        kept.bytes.clone()
    }
}

#[cfg(test)]
mod tests {
    use shoal_api::object::Secret;

    use super::*;

    #[test]
    fn what_many_are_sent_is_written_once() {
        let mut encoded = Encoded::default();
        let secret = Arc::new(Secret {
            id: "s1".parse().unwrap(),
            meta: Default::default(),
            spec: Default::default(),
        });
        let view = Arc::new(NetworkView::default());
        encoded.begin_round();
        let change = AssignmentChange::PutSecret(Arc::clone(&secret));
        let (first, first_view) = (encoded.change(&change), encoded.view(&view));
        encoded.begin_round();
        // Equal bytes in the same place, not a copy of them.
        assert_eq!(encoded.change(&change).as_ptr(), first.as_ptr());
        assert_eq!(encoded.view(&view).as_ptr(), first_view.as_ptr());
        let next = Arc::new(NetworkView {
            data_path_port: 7,
            ..NetworkView::default()
        });
        let change = encoded.view_change(&view, &next);
        assert_eq!(encoded.view_change(&view, &next).as_ptr(), change.as_ptr());
        assert_ne!(encoded.view_change(&next, &view), change);
        let other = Arc::new(secret.as_ref().clone());
        let other = encoded.change(&AssignmentChange::PutSecret(other));
        assert!(other == first && other.as_ptr() != first.as_ptr());
        for _ in 0..=ROUNDS_KEPT {
            encoded.begin_round();
        }
        assert!(
            encoded.kept.is_empty(),
            "what nobody is sent any more is forgotten"
        );
    }
}
