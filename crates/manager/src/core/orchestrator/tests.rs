//! Stories of services, told by the tasks that are meant to run.

use std::time::Duration;

use expect_test::{Expect, expect};
use shoal_api::{
    ServiceId, TaskState,
    object::{UpdateState, UpdateStatus},
    spec::{Availability, FailureAction, RestartCondition, RestartPolicy, ServiceMode, UpdateConfig, UpdateOrder},
};

use crate::core::{
    control,
    fixture::service,
    world::{Behaviour, World},
};

const SECOND: Duration = Duration::from_secs(1);

fn check(world: &World, id: &ServiceId, expected: Expect) {
    expected.assert_eq(&world.table(id));
}

fn scale(world: &mut World, id: &ServiceId, replicas: u64) {
    world.update(id, |spec| spec.mode = ServiceMode::Replicated { replicas });
    world.settle();
}

#[test]
fn a_created_service_runs_on_all_nodes() {
    let mut world = World::new(&["n1", "n2", "n3"]);
    let id = world.create(service("web", 4));
    world.settle();
    check(&world, &id, expect![[r#"
        1 n1 running/running demo:1
        2 n2 running/running demo:1
        3 n3 running/running demo:1
        4 n1 running/running demo:1
    "#]]);
}
