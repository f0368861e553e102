//! Every domain value survives the wire, and no bytes make it panic.

mod sample;

use std::sync::Arc;

use proptest::{collection::vec, prelude::*};
use prost::Message;
use sample::{Generator, Sample};
use shoal_api::{
    Actor, Timestamp,
    network::{Endpoint, NetworkSlice, NetworkView},
    object::{Batch, Change, Expect, Object, Task, Wishes},
    spec::{ServiceSpec, TaskSpec},
    wire,
};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_service_spec_survives(seed: u64) {
        let spec = ServiceSpec::sample(&mut Generator::new(seed));
        let bytes = wire::ServiceSpec::from(&spec).encode_to_vec();
        let read = ServiceSpec::try_from(wire::ServiceSpec::decode(&bytes[..]).unwrap());
        prop_assert_eq!(read, Ok(spec));
    }

    #[test]
    fn a_network_view_survives(seed: u64) {
        let view = NetworkView::sample(&mut Generator::new(seed));
        let bytes = wire::NetworkView::from(&view).encode_to_vec();
        let read = NetworkView::try_from(wire::NetworkView::decode(&bytes[..]).unwrap());
        prop_assert_eq!(read, Ok(view));
    }

    #[test]
    fn an_object_survives(seed: u64) {
        let object = Object::sample(&mut Generator::new(seed));
        prop_assert_eq!(wire::decode_object(&wire::encode_object(&object)), Ok(object));
    }

    #[test]
    fn a_batch_survives(seed: u64) {
        let batch = Batch::sample(&mut Generator::new(seed));
        let bytes = wire::encode_batch(&batch);
        prop_assert_eq!(&bytes, &wire::encode_batch(&batch), "same value, same bytes");
        prop_assert_eq!(wire::decode_batch(&bytes), Ok(batch));
    }

    #[test]
    fn remembered_wishes_survive(seed: u64) {
        let wishes = Wishes::sample(&mut Generator::new(seed));
        prop_assert_eq!(wire::decode_wishes(&wire::encode_wishes(&wishes)), Ok(wishes));
    }

    #[test]
    fn a_task_with_its_spec_written_apart_is_the_same_task(seed: u64) {
        let task = Task::sample(&mut Generator::new(seed));
        let spec = wire::encode_task_spec(&task.spec);
        let message = wire::AssignmentsMessage {
            changes: vec![wire::encode_task_update(&task, &spec)],
            ..wire::AssignmentsMessage::default()
        };
        let change = message.read_changes().unwrap().remove(0);
        prop_assert_eq!(change.action(), wire::assignment_change::Action::Update);
        let Some(wire::assignment_change::Item::Task(read)) = change.item else {
            panic!("not a task")
        };
        prop_assert_eq!(Task::try_from(read), Ok(task));
    }

    #[test]
    fn what_differs_between_two_views_leads_from_one_to_the_other(seed: u64) {
        let mut generator = Generator::new(seed);
        let before = NetworkView::sample(&mut generator);
        let mut after = NetworkView::sample(&mut generator);
        // Some of what was there stays, and some of it is other.
        for (id, slice) in &before.networks {
            let mut other = NetworkSlice::sample(&mut generator);
            other.endpoints.extend(slice.endpoints.iter().skip(1).map(|(id, one)| (id.clone(), one.clone())));
            other.services.extend(slice.services.iter().skip(1).map(|(id, one)| (id.clone(), one.clone())));
            after.networks.insert(id.clone(), other);
        }
        after.peers.extend(before.peers.clone());
        let message = wire::AssignmentsMessage {
            view_change: Some(wire::encode_view_change(&after.change_from(&before))),
            view_version: after.version,
            ..wire::AssignmentsMessage::default()
        };
        let read = message.read_view().unwrap().unwrap();
        prop_assert_eq!(read.version(), after.version);
        prop_assert_eq!(read.clone().onto(None), None, "a change of nothing is nothing");
        prop_assert_eq!(read.onto(Some(&before)), Some(after));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..400)) {
        let _ = wire::decode_batch(&bytes);
        let _ = wire::decode_object(&bytes);
        let _ = wire::decode_wishes(&bytes);
    }

    #[test]
    fn a_damaged_batch_is_read_or_refused(seed: u64, cut: prop::sample::Index, flip: prop::sample::Index, bit in 0..8u32) {
        let mut bytes = wire::encode_batch(&Batch::sample(&mut Generator::new(seed)));
        prop_assume!(!bytes.is_empty());
        let _ = wire::decode_batch(&bytes[..cut.index(bytes.len())]);
        let at = flip.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let _ = wire::decode_batch(&bytes);
    }
}

fn batch_of(task: &Task) -> Batch {
    let object = Box::new(Object::Task(task.clone()));
    Batch {
        actor: Actor::Orchestrator,
        at: Timestamp(1),
        changes: vec![Change::Put {
            object,
            expect: Expect::Absent,
        }],
        wish: None,
    }
}

#[test]
fn what_a_change_costs_on_the_wire_does_not_grow_with_the_cluster() {
    let view = |services: u32| {
        let mut generator = Generator::new(1);
        let mut slice = NetworkSlice::sample(&mut generator);
        for number in 0..services * 10 {
            let id = format!("task{number:021}").parse().unwrap();
            slice
                .endpoints
                .insert(id, Arc::new(Endpoint::sample(&mut generator)));
        }
        let mut view = NetworkView::default();
        view.networks.insert("n1".parse().unwrap(), slice);
        view
    };
    let costs = [10, 1_000].map(|services| {
        let before = view(services);
        let mut after = before.clone();
        let slice = after.networks.get_mut("n1").unwrap();
        let endpoint = slice
            .endpoints
            .get_mut("task000000000000000000007")
            .unwrap();
        let endpoint = Arc::make_mut(endpoint);
        endpoint.serving = !endpoint.serving;
        let change = wire::encode_view_change(&after.change_from(&before)).len();
        (change, wire::encode_view(&after).len())
    });
    let [(few, _), (many, whole)] = costs;
    assert_eq!(few, many, "one endpoint is one endpoint");
    assert!(
        many < 2_000 && whole > 400 * many,
        "{many} of {whole} bytes"
    );
}

#[test]
fn a_lean_task_row_gets_its_spec_from_the_reader() {
    let mut generator = Generator::new(7);
    let mut task = Task::sample(&mut generator);
    let spec = Arc::new(TaskSpec::sample(&mut generator));
    task.spec = spec.clone();
    let batch = batch_of(&task);

    let lean = wire::encode_batch_lean(&batch, &|_, _| Some(spec.clone()));
    assert!(lean.len() < wire::encode_batch(&batch).len());
    assert_eq!(
        wire::decode_batch_with(&lean, &|service, version| {
            (*service == task.service && version == task.spec_version).then(|| spec.clone())
        }),
        Ok(batch)
    );
    assert_eq!(
        wire::decode_batch(&lean).unwrap_err().to_string(),
        "cannot decode Batch.changes[0].object.Task.spec: required field is missing"
    );
}

#[test]
fn what_is_wrong_is_named() {
    let good = wire::Task::from(&Task::sample(&mut Generator::new(3)));
    let problem = |spoil: fn(&mut wire::Task)| {
        let mut task = good.clone();
        spoil(&mut task);
        Task::try_from(task).unwrap_err().to_string()
    };
    let seen = [
        problem(|task| task.id.clear()),
        problem(|task| task.node = Some("n 1".to_owned())),
        problem(|task| task.meta = None),
        problem(|task| task.desired_state = 1),
        problem(|task| {
            task.networks = vec![wire::TaskAttachment {
                network: "a".to_owned(),
                addresses: vec!["10.0.0.0/8".to_owned(), "10.0.0.300/24".to_owned()],
                aliases: Vec::new(),
            }];
        }),
        problem(|task| {
            task.ports = vec![wire::PortConfig {
                target: 65_536,
                ..Default::default()
            }];
        }),
        problem(|task| task.spec.as_mut().unwrap().restart.as_mut().unwrap().delay = -1),
    ];
    expect_test::expect![[r#"
        cannot decode Task.id: invalid task id ""
        cannot decode Task.node: invalid node id "n 1"
        cannot decode Task.meta: required field is missing
        cannot decode Task.desired_state: unknown TaskState 1
        cannot decode Task.networks[0].addresses[1]: invalid prefix "10.0.0.300/24"
        cannot decode Task.ports[0].target: 65536 is greater than 65535
        cannot decode Task.spec.restart.delay: negative duration -1 ns"#]]
    .assert_eq(&seen.join("\n"));
}

#[test]
fn secrets_do_not_show_in_logs() {
    let data = b"hunter2".to_vec();
    let spec = wire::SecretSpec {
        annotations: None,
        data,
        templating: None,
    };
    assert_eq!(
        format!("{spec:?}"),
        "SecretSpec { annotations: None, data_bytes: 7 }"
    );
}
