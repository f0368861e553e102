//! An executor that only pretends: containers are rows, and images say by their names how they behave.
//!
//! `bad:…` cannot be prepared, `exits:…` ends soon after its start, `checked:…` becomes healthy some time after it,
//! everything else runs until it is stopped.

use std::sync::Arc;

use shoal_api::{
    object::{ContainerStatus, NodeDescription, Task},
    spec::GenericResource,
};
use shoal_worker::{
    ExecError, Exit, Started,
    core::task_machine::{Op, OpOutput},
};

use crate::{
    agent::Body,
    env::{Env, Event, HostId, MS, SECOND},
    manager::{Me, node_of},
};

/// What the executor does with a container.
pub fn perform(
    op: Op,
    task: &Task,
    me: Me,
    body: &mut Body,
    env: &mut Env,
) -> Result<OpOutput, ExecError> {
    let status = |exit_code| ContainerStatus {
        container_id: format!("container-{}", task.id),
        pid: 1,
        exit_code,
    };
    let image = &task.spec.container.image;
    let missing = || ExecError::fatal("there is no such container");
    match op {
        Op::Prepare => {
            if image.starts_with("bad:") {
                return Err(ExecError::fatal("no such image"));
            }
            if env.rng.chance(env.faults.executor) {
                return Err(ExecError::temporary("the registry does not answer"));
            }
            let container = body.containers.entry(task.id.clone()).or_default();
            container.task = Some(Arc::new(task.clone()));
            Ok(OpOutput::Done)
        }
        Op::Start => {
            let container = body.containers.get_mut(&task.id).ok_or_else(missing)?;
            if container.exit.is_some() {
                return Err(ExecError::fatal("it has ended already"));
            }
            if !container.is_started {
                container.is_started = true;
                if image.starts_with("exits:") {
                    let exit = Event::Exit {
                        host: me.host,
                        boot: body.boot,
                        task: task.id.clone(),
                        code: 1,
                    };
                    let delay = env.rng.range(500 * MS, 3 * SECOND);
                    env.after(delay, exit);
                }
                let oracle = env.oracle.clone();
                oracle.lock().started(me.host, task, env.now);
            }
            Ok(OpOutput::Started(Started {
                container: status(0),
                host_ports: Vec::new(),
                is_checked: image.starts_with("checked:"),
            }))
        }
        Op::BecomeHealthy => Ok(OpOutput::Done),
        Op::Wait => {
            let container = body.containers.get(&task.id).ok_or_else(missing)?;
            match container.exit {
                Some(code) => Ok(OpOutput::Exited(Exit {
                    container: status(code),
                    reason: None,
                })),
                None => Err(ExecError::temporary("it runs")),
            }
        }
        Op::Shutdown => {
            if let Some(container) = body.containers.get_mut(&task.id) {
                container.exit.get_or_insert(143);
            }
            env.oracle.lock().stopped(&task.id);
            Ok(OpOutput::Done)
        }
        Op::Remove => {
            body.containers.remove(&task.id);
            env.oracle.lock().stopped(&task.id);
            Ok(OpOutput::Done)
        }
    }
}

/// What a node says of itself.
pub fn describe(host: HostId) -> NodeDescription {
    NodeDescription {
        hostname: node_of(host).to_string(),
        platform: shoal_api::spec::Platform {
            os: "linux".to_owned(),
            architecture: "amd64".to_owned(),
        },
        resources: shoal_api::spec::Resources {
            nano_cpus: 4_000_000_000,
            memory_bytes: 1_000_000_000,
            pids: 0,
            generic: [
                (
                    "card".to_owned(),
                    GenericResource::Named(["a", "b"].map(str::to_owned).into()),
                ),
                ("seat".to_owned(), GenericResource::Discrete(3)),
            ]
            .into(),
        },
        plugins: vec!["Network/overlay".to_owned(), "Volume/local".to_owned()],
        ..NodeDescription::default()
    }
}
