use std::sync::Arc;

use expect_test::{Expect, expect};
use shoal_api::{
    object::{ContainerStatus, Meta},
    spec::TaskSpec,
};

use super::*;

/// A task in a state.
pub(crate) fn task(id: &str, state: TaskState, desired: TaskState) -> Task {
    Task {
        id: id.parse().expect("an id"),
        meta: Meta::default(),
        service: "web".parse().expect("an id"),
        slot: 1,
        node: Some("node1".parse().expect("an id")),
        spec_version: 1,
        spec: Arc::new(TaskSpec::default()),
        service_name: "web".into(),
        service_labels: Default::default(),
        desired_state: desired,
        status: TaskStatus {
            state,
            message: "before".into(),
            ..TaskStatus::default()
        },
        networks: Box::default(),
        ports: Box::default(),
        attempts: 0,
        start_after: None,
        job_iteration: None,
        drained: false,
        assigned: None,
    }
}

const NOW: Timestamp = Timestamp(7);

fn line(status: &TaskStatus) -> String {
    assert_eq!(status.at, NOW);
    let code = status
        .container
        .as_ref()
        .map(|c| format!(" code={}", c.exit_code))
        .unwrap_or_default();
    format!(
        "{} {:?} {:?}{code}",
        status.state, status.message, status.err
    )
}

#[test]
fn every_state_has_one_next_step() {
    let mut lines = String::new();
    for desired in [
        TaskState::Ready,
        TaskState::Running,
        TaskState::Complete,
        TaskState::Shutdown,
        TaskState::Remove,
    ] {
        for state in TaskState::ALL
            .into_iter()
            .filter(|state| *state >= TaskState::Assigned)
        {
            let step = match next_step(&task("t1", state, desired), NOW) {
                Step::Idle => continue,
                Step::Report(status) => {
                    assert!(shoal_api::may_move(
                        shoal_api::Actor::Agent,
                        Some(state),
                        Some(status.state)
                    ));
                    line(&status)
                }
                Step::Run(op) => format!("run {op:?}"),
            };
            lines += &format!("{state}, wanted {desired}: {step}\n");
        }
    }
    expect![[r#"
        assigned, wanted ready: accepted "accepted" ""
        accepted, wanted ready: preparing "preparing" ""
        preparing, wanted ready: run Prepare
        starting, wanted ready: run Start
        running, wanted ready: run Wait
        assigned, wanted running: accepted "accepted" ""
        accepted, wanted running: preparing "preparing" ""
        preparing, wanted running: run Prepare
        ready, wanted running: starting "starting" ""
        starting, wanted running: run Start
        running, wanted running: run Wait
        assigned, wanted complete: accepted "accepted" ""
        accepted, wanted complete: preparing "preparing" ""
        preparing, wanted complete: run Prepare
        ready, wanted complete: starting "starting" ""
        starting, wanted complete: run Start
        running, wanted complete: run Wait
        assigned, wanted shutdown: run Shutdown
        accepted, wanted shutdown: run Shutdown
        preparing, wanted shutdown: run Shutdown
        ready, wanted shutdown: run Shutdown
        starting, wanted shutdown: run Shutdown
        running, wanted shutdown: run Shutdown
        assigned, wanted remove: run Shutdown
        accepted, wanted remove: run Shutdown
        preparing, wanted remove: run Shutdown
        ready, wanted remove: run Shutdown
        starting, wanted remove: run Shutdown
        running, wanted remove: run Shutdown
    "#]]
    .assert_eq(&lines);
}

fn check(state: TaskState, op: Op, out: Result<OpOutput, ExecError>, expected: &Expect) {
    let outcome = match on_result(&task("t1", state, TaskState::Running), op, out, NOW) {
        Outcome::Moved(status) => line(&status),
        Outcome::Retry => "retry".to_owned(),
    };
    expected.assert_eq(&outcome);
}

fn exit(code: i64, reason: Option<&str>) -> Result<OpOutput, ExecError> {
    let container = ContainerStatus {
        exit_code: code,
        ..ContainerStatus::default()
    };
    Ok(OpOutput::Exited(Exit {
        container,
        reason: reason.map(str::to_owned),
    }))
}

#[test]
fn success_moves_a_task_forward() {
    use TaskState as S;
    check(
        S::Preparing,
        Op::Prepare,
        Ok(OpOutput::Done),
        &expect![[r#"ready "prepared" """#]],
    );
    let started = Ok(OpOutput::Started(Started::default()));
    check(
        S::Starting,
        Op::Start,
        started,
        &expect![[r#"running "started" "" code=0"#]],
    );
    let checked = Ok(OpOutput::Started(Started {
        is_checked: true,
        ..Started::default()
    }));
    check(
        S::Starting,
        Op::Start,
        checked,
        &expect![[r#"starting "starting" "" code=0"#]],
    );
    let mut checked = task("t1", S::Starting, S::Running);
    checked.status.container = Some(Box::default());
    assert_eq!(next_step(&checked, NOW), Step::Run(Op::BecomeHealthy));
    check(
        S::Starting,
        Op::BecomeHealthy,
        Ok(OpOutput::Done),
        &expect![[r#"running "started" """#]],
    );
    check(
        S::Running,
        Op::Wait,
        exit(0, None),
        &expect![[r#"complete "finished" "" code=0"#]],
    );
    check(
        S::Running,
        Op::Shutdown,
        Ok(OpOutput::Done),
        &expect![[r#"shutdown "shutdown" """#]],
    );
    let done = Err(ExecError::new(ExecErrorKind::AlreadyDone, "is prepared"));
    check(
        S::Preparing,
        Op::Prepare,
        done,
        &expect![[r#"ready "prepared" """#]],
    );
}

#[test]
fn a_bad_end_is_a_failure_with_swarm_s_words() {
    use TaskState as S;
    check(
        S::Running,
        Op::Wait,
        exit(137, None),
        &expect![[r#"failed "before" "task: non-zero exit (137)" code=137"#]],
    );
    check(
        S::Running,
        Op::Wait,
        exit(0, Some("unhealthy container")),
        &expect![[r#"failed "before" "task: non-zero exit (0): unhealthy container" code=0"#]],
    );
}

#[test]
fn errors_reject_before_the_start_and_fail_after_it() {
    use TaskState as S;
    let fatal = || Err(ExecError::fatal("cannot pull web:1").because("no such image"));
    check(
        S::Preparing,
        Op::Prepare,
        fatal(),
        &expect![[r#"rejected "before" "cannot pull web:1: no such image""#]],
    );
    check(
        S::Starting,
        Op::Start,
        fatal(),
        &expect![[r#"failed "before" "cannot pull web:1: no such image""#]],
    );
    check(
        S::Running,
        Op::Shutdown,
        fatal(),
        &expect![[r#"failed "before" "cannot pull web:1: no such image""#]],
    );
    check(
        S::Starting,
        Op::Start,
        Err(ExecError::temporary("busy")),
        &expect!["retry"],
    );
    let not_ready = Err(ExecError::new(ExecErrorKind::NotReady, "no network yet"));
    check(S::Preparing, Op::Prepare, not_ready, &expect!["retry"]);
}

#[test]
fn what_the_node_saw_wins_unless_the_manager_gave_the_task_up() {
    use TaskState as S;
    for (held, told, wanted, state, desired) in [
        (S::Running, S::Preparing, S::Running, S::Running, S::Running),
        (S::Failed, S::Running, S::Running, S::Failed, S::Running),
        (S::Accepted, S::Running, S::Running, S::Running, S::Running),
        (S::Running, S::Orphaned, S::Running, S::Running, S::Shutdown),
        (
            S::Shutdown,
            S::Orphaned,
            S::Shutdown,
            S::Orphaned,
            S::Shutdown,
        ),
        (S::Running, S::Running, S::Shutdown, S::Running, S::Shutdown),
    ] {
        let merged = merged(
            Some(&task("t1", held, S::Running)),
            task("t1", told, wanted),
        );
        assert_eq!(
            (merged.status.state, merged.desired_state),
            (state, desired),
            "{held} and {told}"
        );
    }
    let stopping = task("t1", S::Running, S::Shutdown);
    let merged = merged(Some(&stopping), task("t1", S::Running, S::Running));
    assert_eq!(
        merged.desired_state,
        S::Shutdown,
        "desired states never sink"
    );
}
