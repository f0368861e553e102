//! Which statuses go to the manager, and when: at once if nothing is on its way, else together with the next ones.

use std::collections::BTreeMap;

use shoal_api::{
    TaskId,
    object::TaskStatus,
    planted::{Bug, planted},
};

/// Statuses in one report; keeps a message far below the limit of gRPC (4 MiB) whatever the statuses say.
pub const STATUSES_PER_REPORT_MAX: usize = 1000;

/// Statuses that the manager has not acknowledged. At most one per task: the newest says it all.
#[derive(Debug, Default)]
pub struct Reporter {
    waiting: BTreeMap<TaskId, TaskStatus>,
    sent: BTreeMap<TaskId, TaskStatus>,
}

impl Reporter {
    /// Adds a status, in place of an older one of its task.
    pub fn push(&mut self, task: TaskId, status: TaskStatus) {
        if planted(Bug::AgentDropsNews) && !self.sent.is_empty() {
            return;
        }
        match self.waiting.get_mut(&task) {
            Some(waiting) if waiting.state > status.state => {}
            Some(waiting) => *waiting = status,
            None => drop(self.waiting.insert(task, status)),
        }
    }

    /// Takes the next report, unless one is on its way or there is nothing to say.
    ///
    /// Answer with [`Self::delivered`] or [`Self::lost`].
    pub fn poll_report(&mut self) -> Option<Vec<(TaskId, TaskStatus)>> {
        if !self.sent.is_empty() || self.waiting.is_empty() {
            return None;
        }
        let rest = self.waiting.keys().nth(STATUSES_PER_REPORT_MAX).cloned();
        let rest = rest
            .map(|first| self.waiting.split_off(&first))
            .unwrap_or_default();
        self.sent = std::mem::replace(&mut self.waiting, rest);
        Some(
            self.sent
                .iter()
                .map(|(task, status)| (task.clone(), status.clone()))
                .collect(),
        )
    }

    /// The manager has taken the report.
    pub fn delivered(&mut self) {
        self.sent.clear();
    }

    /// The report may not have arrived: it goes out again, with what came since.
    pub fn lost(&mut self) {
        for (task, status) in std::mem::take(&mut self.sent) {
            self.waiting.entry(task).or_insert(status);
        }
    }

    /// Drops what there is to say of a task that is no longer assigned.
    pub fn forget(&mut self, task: &TaskId) {
        self.waiting.remove(task);
    }
}

#[cfg(test)]
mod tests {
    use shoal_api::TaskState as S;

    use super::*;

    fn push(reporter: &mut Reporter, task: &str, state: S) {
        reporter.push(
            task.parse().expect("an id"),
            TaskStatus {
                state,
                ..TaskStatus::default()
            },
        );
    }

    fn poll(reporter: &mut Reporter) -> String {
        let report = reporter.poll_report().unwrap_or_default();
        report
            .iter()
            .map(|(task, status)| format!("{task}={} ", status.state))
            .collect()
    }

    #[test]
    fn what_comes_while_a_report_is_on_its_way_goes_out_together() {
        let mut reporter = Reporter::default();
        assert_eq!(poll(&mut reporter), "");
        push(&mut reporter, "t1", S::Accepted);
        assert_eq!(poll(&mut reporter), "t1=accepted ");
        push(&mut reporter, "t1", S::Preparing);
        push(&mut reporter, "t2", S::Running);
        push(&mut reporter, "t1", S::Ready);
        assert_eq!(poll(&mut reporter), "", "one is on its way");
        reporter.delivered();
        assert_eq!(poll(&mut reporter), "t1=ready t2=running ");
    }

    #[test]
    fn a_lost_report_does_not_hide_what_came_since() {
        let mut reporter = Reporter::default();
        push(&mut reporter, "t1", S::Accepted);
        push(&mut reporter, "t2", S::Accepted);
        assert_eq!(poll(&mut reporter), "t1=accepted t2=accepted ");
        push(&mut reporter, "t2", S::Running);
        reporter.lost();
        reporter.forget(&"t1".parse().expect("an id"));
        push(&mut reporter, "t2", S::Ready);
        assert_eq!(poll(&mut reporter), "t2=running ", "states only grow");
    }

    #[test]
    fn many_statuses_are_cut_into_reports() {
        let mut reporter = Reporter::default();
        for number in 0..STATUSES_PER_REPORT_MAX + 5 {
            push(&mut reporter, &format!("t{number}"), S::Running);
        }
        assert_eq!(
            reporter.poll_report().map(|report| report.len()),
            Some(STATUSES_PER_REPORT_MAX)
        );
        reporter.delivered();
        assert_eq!(reporter.poll_report().map(|report| report.len()), Some(5));
    }
}
