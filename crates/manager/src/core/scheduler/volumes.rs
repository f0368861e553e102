//! Volumes that tasks do not leave: which ones a service that says `shoal.volumes.stay` means.
//!
//! A named volume of the node's own driver is data of one node. Swarm starts a task elsewhere with an empty volume of the
//! same name when its node is gone, and some stacks count on that; others would rather wait. Which nodes have which volumes
//! is what they say of themselves.

use shoal_api::{
    object::{Service, Task},
    spec::{Mount, MountKind, TaskSpec},
    template::task::Values,
};

/// Volumes that a task shall find, in the order of its mounts.
pub(super) fn of_task(task: &Task) -> Vec<String> {
    if !task.spec.placement.stay_with_volumes {
        return Vec::new();
    }
    // What is of a node by its very name is on every node another volume.
    let own = |mount: &&Mount| !mount.source.contains(".Node");
    let values = Values::of(task, "", "");
    let sources = named(&task.spec).filter(own);
    // A template that does not make sense was refused with its service.
    sources
        .filter_map(|mount| values.expand(&mount.source).ok())
        .collect()
}

/// Volumes that every task of a service shall find.
pub(super) fn of_service(service: &Service) -> Vec<String> {
    let spec = &service.spec.task;
    if !spec.placement.stay_with_volumes {
        return Vec::new();
    }
    let fixed = named(spec).filter(|mount| !mount.source.contains("{{"));
    fixed.map(|mount| mount.source.clone()).collect()
}

/// Mounts of volumes with a name, of the node's own driver.
fn named(spec: &TaskSpec) -> impl Iterator<Item = &Mount> {
    spec.container.mounts.iter().filter(|mount| {
        let driver = mount.driver.as_ref().map(|driver| driver.name.as_str());
        let is_local = matches!(driver, None | Some("" | "local"));
        mount.kind == MountKind::Volume && is_local && !mount.source.is_empty()
    })
}
