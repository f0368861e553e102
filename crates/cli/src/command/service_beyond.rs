//! Flags of services for which Swarm's API has no field: they become labels, which every client keeps.

use anyhow::Result;
use clap::Args;
use serde_json::Value;
use shoal_api::spec::labels::list;

use crate::flags::security;

/// Options of `run` that Swarm does not have for services, and some that nobody has
#[derive(Args, Default)]
pub(crate) struct Beyond {
    /// Give extended privileges to the tasks
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "bool")]
    privileged: Option<bool>,
    /// Add a host device to the tasks, or one by its CDI name
    #[arg(long, value_name = "list")]
    device: Vec<String>,
    /// Add a rule to the cgroup allowed devices list
    #[arg(long, value_name = "list")]
    device_cgroup_rule: Vec<String>,
    /// Security options
    #[arg(long, value_name = "list")]
    security_opt: Vec<String>,
    /// Size of /dev/shm
    #[arg(long, value_name = "bytes")]
    shm_size: Option<String>,
    /// IPC mode to use
    #[arg(long, value_name = "string")]
    ipc: Option<String>,
    /// PID namespace to use
    #[arg(long, value_name = "string")]
    pid: Option<String>,
    /// UTS namespace to use
    #[arg(long, value_name = "string")]
    uts: Option<String>,
    /// User namespace to use
    #[arg(long, value_name = "string")]
    userns: Option<String>,
    /// Cgroup namespace to use
    #[arg(long, value_name = "string")]
    cgroupns: Option<String>,
    /// Optional parent cgroup for the tasks
    #[arg(long, value_name = "string")]
    cgroup_parent: Option<String>,
    /// NIS domain name of the tasks
    #[arg(long, value_name = "string")]
    domainname: Option<String>,
    /// Pull image before running ("auto", "always", "missing", "never")
    #[arg(long, value_name = "string")]
    pull: Option<String>,
    /// CPUs in which to allow execution (0-3, 0,1)
    #[arg(long, value_name = "string")]
    cpuset_cpus: Option<String>,
    /// Swap limit equal to memory plus swap: '-1' to enable unlimited swap
    #[arg(long, value_name = "bytes", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Tune memory swappiness (0 to 100)
    #[arg(long, value_name = "int")]
    memory_swappiness: Option<String>,
    /// Do not let the kernel kill tasks when memory runs out
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "bool")]
    oom_kill_disable: Option<bool>,
    /// Wait for another service before tasks start: SERVICE[:CONDITION][:optional]
    #[arg(long, value_name = "list")]
    depends_on: Vec<String>,
    /// Let each restart in a row wait twice as long
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "bool")]
    restart_backoff: Option<bool>,
    /// Time in which each new task of an update must run, else it has failed; 0s is none
    #[arg(long, value_name = "duration")]
    update_progress_deadline: Option<String>,
}

impl Beyond {
    /// Writes what was said into a service's labels. An empty value takes a label away.
    ///
    /// # Errors
    /// A profile that is named cannot be read.
    pub(crate) fn apply(&self, spec: &mut Value) -> Result<()> {
        let flag = |set: &Option<bool>| set.map(|set| set.to_string());
        // `vendor/class=name` is no path.
        let (paths, cdi): (Vec<_>, Vec<_>) = self
            .device
            .iter()
            .cloned()
            .partition(|device| device.starts_with('/') || !device.contains('='));
        let many = |items: &[String]| (!items.is_empty()).then(|| list(items));
        for (label, value) in [
            ("shoal.privileged", flag(&self.privileged)),
            ("shoal.devices", many(&paths)),
            ("shoal.cdi-devices", many(&cdi)),
            ("shoal.device-cgroup-rules", many(&self.device_cgroup_rule)),
            (
                "shoal.security-opt",
                many(&security::options(&self.security_opt)?),
            ),
            ("shoal.shm-size", self.shm_size.clone()),
            ("shoal.ipc", self.ipc.clone()),
            ("shoal.pid", self.pid.clone()),
            ("shoal.uts", self.uts.clone()),
            ("shoal.userns", self.userns.clone()),
            ("shoal.cgroupns", self.cgroupns.clone()),
            ("shoal.cgroup-parent", self.cgroup_parent.clone()),
            ("shoal.domainname", self.domainname.clone()),
            ("shoal.pull-policy", self.pull.clone()),
            ("shoal.cpuset", self.cpuset_cpus.clone()),
            ("shoal.memory-swap", self.memory_swap.clone()),
            ("shoal.memory-swappiness", self.memory_swappiness.clone()),
            ("shoal.oom-kill-disable", flag(&self.oom_kill_disable)),
            ("shoal.depends-on", many(&self.depends_on)),
            ("shoal.restart.backoff", flag(&self.restart_backoff)),
            (
                "shoal.update.progress-deadline",
                self.update_progress_deadline.clone(),
            ),
        ] {
            let Some(value) = value else { continue };
            let labels = &mut spec["Labels"];
            if value.is_empty() {
                labels.as_object_mut().map(|labels| labels.remove(label));
            } else {
                labels[label] = value.into();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        beyond: Beyond,
    }

    #[test]
    fn flags_become_labels_and_empty_ones_take_them_away() {
        let line = "x --privileged --device /dev/a --device v.com/c=0 --shm-size 1m --pid= --memory-swap -1 --depends-on db:service_healthy";
        let line = Line::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{error}"));
        let mut spec = json!({"Labels": {"a": "b", "shoal.pid": "host"}});
        line.beyond.apply(&mut spec).unwrap();
        assert_eq!(
            spec["Labels"],
            json!({"a": "b", "shoal.privileged": "true", "shoal.devices": "/dev/a", "shoal.cdi-devices": "v.com/c=0",
                "shoal.shm-size": "1m", "shoal.memory-swap": "-1", "shoal.depends-on": "db:service_healthy"})
        );
    }
}
