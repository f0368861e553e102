//! Extensions of Swarm's specs, reached from any docker client by labels.
//!
//! A label of the service (`docker service create --label`, `deploy.labels` in a compose file) fills a field of the spec;
//! the label stays where it is, so that what a client reads and writes back keeps its meaning. [`KNOWN`] lists them all.
//! Lists are separated by commas, or by line breaks if the value has one.

mod publish;
mod value;

use super::{Affinity, Dependency, Device, HostOptions, Labels, PullPolicy, ServiceSpec};

/// All labels of Shoal begin like this; one that is not in [`KNOWN`] is refused.
pub const PREFIX: &str = "shoal.";

/// A label on a node that ends a drain that takes too long: time after which its tasks are stopped whatever the order and
/// parallelism of their services.
pub const DRAIN_DEADLINE: &str = "shoal.drain.deadline";
/// A label on the cluster: with `false`, services with [`HostOptions::privileged`] are refused.
pub const ALLOW_PRIVILEGED: &str = "shoal.allow-privileged";
/// A label on the cluster: time after which a node that is down is forgotten and shut out; without it, never.
pub const NODE_TTL: &str = "shoal.node-ttl";

/// Labels of services: name, form of the value, meaning.
pub const KNOWN: [(&str, &str, &str); 25] = [
    (
        "shoal.privileged",
        "true|false",
        "all capabilities and devices, no confinement",
    ),
    (
        "shoal.devices",
        "HOST[:CONTAINER][:rwm],…",
        "devices of the host",
    ),
    (
        "shoal.device-cgroup-rules",
        "TYPE MAJOR:MINOR PERMISSIONS,…",
        "rules of the device cgroup",
    ),
    (
        "shoal.cdi-devices",
        "VENDOR/CLASS=NAME,…",
        "devices of the Container Device Interface",
    ),
    (
        "shoal.security-opt",
        "no-new-privileges|seccomp=unconfined|seccomp={PROFILE}|apparmor=NAME|label=NAME,…",
        "as docker run --security-opt",
    ),
    ("shoal.shm-size", "BYTES[b|k|m|g]", "size of /dev/shm"),
    ("shoal.ipc", "none|private|shareable|host", "IPC namespace"),
    ("shoal.pid", "host", "PID namespace"),
    ("shoal.uts", "host", "UTS namespace"),
    ("shoal.userns", "host", "user namespace"),
    ("shoal.cgroupns", "private|host", "cgroup namespace"),
    ("shoal.cgroup-parent", "PATH", "parent of the cgroup"),
    ("shoal.domainname", "NAME", "NIS domain name"),
    (
        "shoal.pull-policy",
        "auto|always|missing|never",
        "when nodes pull the image",
    ),
    ("shoal.cpuset", "0-3,5", "processors on which it may run"),
    (
        "shoal.memory-swap",
        "BYTES[b|k|m|g]|-1",
        "memory and swap together",
    ),
    ("shoal.memory-swappiness", "0-100", "tendency to swap"),
    (
        "shoal.oom-kill-disable",
        "true|false",
        "not killed when memory runs out",
    ),
    (
        "shoal.restart.backoff",
        "true|false",
        "each restart waits twice as long, up to 300 s",
    ),
    (
        "shoal.volumes.stay",
        "true|false",
        "tasks run only on the node that has their named volumes",
    ),
    (
        "shoal.update.progress-deadline",
        "DURATION",
        "time for each new task to run, else it counts as failed; 0s is none",
    ),
    (
        "shoal.depends-on",
        "SERVICE[:CONDITION][:optional],…",
        "services that must have come so far first",
    ),
    (
        "shoal.depends-on.timeout",
        "DURATION",
        "how long to wait for optional ones",
    ),
    (
        IP,
        "NETWORK=ADDRESS,…",
        "virtual addresses, the network by name or id",
    ),
    (
        "shoal.affinity",
        "none|source",
        "with source, connections of one client go to one task while it serves",
    ),
];

/// A label of services: their virtual addresses, [`KNOWN`].
pub const IP: &str = "shoal.ip";
/// Labels of one published port begin like this; the port in the task, with `/udp` or `/sctp` if it is not TCP's, and one
/// of [`PORT_OPTIONS`] follow: `shoal.publish.80.local`.
pub const PUBLISH: &str = "shoal.publish.";
/// Options of a published port: end of the label, form of the value, meaning.
pub const PORT_OPTIONS: [(&str, &str, &str); 3] = [
    (
        "proxy-protocol",
        "v2",
        "each connection to a task begins with a header that tells the client's address",
    ),
    (
        "local",
        "true|false",
        "only nodes with a task answer, by their own tasks",
    ),
    (
        "host-ip",
        "ADDRESS",
        "the one address of a node at which the port listens",
    ),
];

/// A label that cannot be honoured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLabel {
    /// It begins like one of ours and is none.
    #[error("label '{0}' is unknown: expected one of {1}")]
    Unknown(String, String),
    /// Its value makes no sense.
    #[error("label '{name}' has the invalid value '{value}': expected {expected}")]
    Value {
        /// The label.
        name: String,
        /// Its value.
        value: String,
        /// What would be right.
        expected: String,
    },
    /// It is of a port that is not published.
    #[error(
        "label '{name}' is of a port that the service does not publish: expected one of {published}"
    )]
    NoSuchPort {
        /// The label.
        name: String,
        /// The ports that are.
        published: String,
    },
}

impl ServiceSpec {
    /// Fills the fields of the spec that labels stand for; without its label a field has its default.
    ///
    /// # Errors
    /// The first label that begins with [`PREFIX`] and is unknown, or has a value that makes no sense.
    pub fn apply_labels(&mut self) -> Result<(), InvalidLabel> {
        let mut host = HostOptions::default();
        self.task.restart.backoff = false;
        self.task.placement.stay_with_volumes = false;
        self.progress_deadline = None;
        self.depends_on.clear();
        self.depends_on_timeout = None;
        self.endpoint.addresses.clear();
        self.endpoint.affinity = Affinity::None;
        publish::clear(&mut self.endpoint.ports);
        for (name, text) in self.annotations.labels.clone() {
            if !name.starts_with(PREFIX) {
                continue;
            }
            self.apply_label(&mut host, &name, &text)?;
        }
        self.task.container.host = host;
        Ok(())
    }

    fn apply_label(
        &mut self,
        host: &mut HostOptions,
        name: &str,
        text: &str,
    ) -> Result<(), InvalidLabel> {
        if let Some(of_port) = name.strip_prefix(PUBLISH) {
            return publish::apply(&mut self.endpoint.ports, name, of_port, text);
        }
        let Some((_, form, _)) = KNOWN.iter().find(|(known, ..)| *known == name) else {
            let known: Vec<_> = KNOWN.iter().map(|(name, ..)| *name).collect();
            return Err(InvalidLabel::Unknown(
                name.to_owned(),
                publish::and_ports(&known),
            ));
        };
        let wrong = || InvalidLabel::Value {
            name: name.to_owned(),
            value: text.to_owned(),
            expected: (*form).to_owned(),
        };
        let one_of = |words: &[&str]| {
            let known = words.contains(&text);
            known.then(|| text.to_owned()).ok_or_else(wrong)
        };
        let flag = || value::flag(text).ok_or_else(wrong);
        let time = || value::duration(text).ok_or_else(wrong);
        let list = || value::list(text);
        let word = || {
            Some(text.to_owned())
                .filter(|t| !t.is_empty())
                .ok_or_else(wrong)
        };
        match name {
            "shoal.privileged" => host.privileged = flag()?,
            "shoal.devices" => {
                let read = list().into_iter().map(|item| item.parse::<Device>());
                host.devices = read.collect::<Result<_, _>>().map_err(|_| wrong())?;
            }
            "shoal.device-cgroup-rules" => {
                host.device_cgroup_rules = list();
                if !host
                    .device_cgroup_rules
                    .iter()
                    .all(|rule| value::is_device_rule(rule))
                {
                    return Err(wrong());
                }
            }
            "shoal.cdi-devices" => {
                host.cdi_devices = list();
                if !host.cdi_devices.iter().all(|name| value::is_cdi_name(name)) {
                    return Err(wrong());
                }
            }
            "shoal.security-opt" => {
                host.security_opt = list();
                let mut options = host.security_opt.iter();
                if !options.all(|option| value::is_security_option(option)) {
                    return Err(wrong());
                }
            }
            "shoal.shm-size" => {
                let size = value::bytes(text).filter(|size| *size > 0);
                host.shm_size_bytes = size.ok_or_else(wrong)?;
            }
            "shoal.ipc" => host.ipc_mode = one_of(&["none", "private", "shareable", "host"])?,
            "shoal.pid" => host.pid_mode = one_of(&["host"])?,
            "shoal.uts" => host.uts_mode = one_of(&["host"])?,
            "shoal.userns" => host.userns_mode = one_of(&["host"])?,
            "shoal.cgroupns" => host.cgroupns_mode = one_of(&["private", "host"])?,
            "shoal.cgroup-parent" => host.cgroup_parent = word()?,
            "shoal.domainname" => host.domainname = word()?,
            "shoal.pull-policy" => {
                host.pull_policy = value::pull_policy(text).ok_or_else(wrong)?;
            }
            "shoal.cpuset" => {
                host.cpuset_cpus = text.to_owned();
                if !value::is_cpu_list(text) {
                    return Err(wrong());
                }
            }
            "shoal.memory-swap" => {
                let size = || value::bytes(text).and_then(|size| i64::try_from(size).ok());
                let size = if text == "-1" { Some(-1) } else { size() };
                host.memory_swap_bytes = Some(size.ok_or_else(wrong)?);
            }
            "shoal.memory-swappiness" => {
                let number = text.parse().ok().filter(|number| *number <= 100);
                host.memory_swappiness = Some(number.ok_or_else(wrong)?);
            }
            "shoal.oom-kill-disable" => host.oom_kill_disable = flag()?,
            "shoal.volumes.stay" => self.task.placement.stay_with_volumes = flag()?,
            "shoal.restart.backoff" => self.task.restart.backoff = flag()?,
            "shoal.update.progress-deadline" => self.progress_deadline = Some(time()?),
            "shoal.depends-on" => {
                let read = list().into_iter().map(|item| value::dependency(&item));
                let read: Option<Vec<Dependency>> = read.collect();
                self.depends_on = read.ok_or_else(wrong)?;
            }
            "shoal.depends-on.timeout" => self.depends_on_timeout = Some(time()?),
            IP => {
                let read = list().into_iter().map(|item| value::fixed_address(&item));
                let read: Option<Vec<_>> = read.collect();
                self.endpoint.addresses = read.ok_or_else(wrong)?;
            }
            "shoal.affinity" => {
                self.endpoint.affinity = match text {
                    "none" => Affinity::None,
                    "source" => Affinity::Source,
                    _ => return Err(wrong()),
                };
            }
            _ => unreachable!("every label of the table has its field above, see the tests"),
        }
        Ok(())
    }
}

/// The time after which a drain of a node with these labels is carried out at once; `None` is never.
///
/// # Errors
/// The value is no duration.
pub fn drain_deadline(labels: &Labels) -> Result<Option<std::time::Duration>, InvalidLabel> {
    time_of(labels, DRAIN_DEADLINE)
}

/// The time after which a node that is down is forgotten, in a cluster with these labels; `None` is never, and so is 0.
///
/// # Errors
/// The value is no duration.
pub fn node_ttl(labels: &Labels) -> Result<Option<std::time::Duration>, InvalidLabel> {
    Ok(time_of(labels, NODE_TTL)?.filter(|ttl| !ttl.is_zero()))
}

fn time_of(labels: &Labels, name: &str) -> Result<Option<std::time::Duration>, InvalidLabel> {
    let Some(text) = labels.get(name) else {
        return Ok(None);
    };
    let time = value::duration(text).ok_or_else(|| InvalidLabel::Value {
        name: name.to_owned(),
        value: text.clone(),
        expected: "DURATION".to_owned(),
    });
    time.map(Some)
}

/// Writes a label's list.
pub fn list<T: ToString>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(T::to_string).collect();
    if items.iter().any(|item| item.contains(',')) {
        items.join("\n") + "\n"
    } else {
        items.join(",")
    }
}

/// The value of `shoal.depends-on` for these dependencies.
pub fn depends_on(dependencies: &[Dependency]) -> String {
    let one = |dependency: &Dependency| {
        let optional = if dependency.required { "" } else { ":optional" };
        let condition = dependency.condition.as_str();
        format!("{}:{condition}{optional}", dependency.service)
    };
    dependencies.iter().map(one).collect::<Vec<_>>().join(",")
}

impl PullPolicy {
    /// The word of the label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Always => "always",
            Self::Missing => "missing",
            Self::Never => "never",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::spec::DependencyCondition;

    fn read(labels: &[(&str, &str)]) -> Result<ServiceSpec, String> {
        let mut spec = ServiceSpec::default();
        for (name, value) in labels {
            let labels = &mut spec.annotations.labels;
            labels.insert((*name).to_owned(), (*value).to_owned());
        }
        spec.apply_labels().map_err(|error| error.to_string())?;
        Ok(spec)
    }

    /// A value for each label, and whether it fills a field.
    const SAMPLES: [(&str, &str); KNOWN.len()] = [
        ("shoal.privileged", "true"),
        ("shoal.devices", "/dev/null:/dev/zap:rw,/dev/zero"),
        ("shoal.device-cgroup-rules", "c 42:* rwm"),
        ("shoal.cdi-devices", "shoal.example/toy=0"),
        ("shoal.security-opt", "no-new-privileges,seccomp=unconfined"),
        ("shoal.shm-size", "256m"),
        ("shoal.ipc", "host"),
        ("shoal.pid", "host"),
        ("shoal.uts", "host"),
        ("shoal.userns", "host"),
        ("shoal.cgroupns", "private"),
        ("shoal.cgroup-parent", "/batch"),
        ("shoal.domainname", "example.org"),
        ("shoal.pull-policy", "never"),
        ("shoal.cpuset", "0-1,3"),
        ("shoal.memory-swap", "-1"),
        ("shoal.memory-swappiness", "10"),
        ("shoal.oom-kill-disable", "true"),
        ("shoal.restart.backoff", "true"),
        ("shoal.volumes.stay", "true"),
        ("shoal.update.progress-deadline", "1m30s"),
        ("shoal.depends-on", "db:service_healthy,cache:optional,mq"),
        ("shoal.depends-on.timeout", "500ms"),
        ("shoal.ip", "front=10.0.5.9,front=fd00::9"),
        ("shoal.affinity", "source"),
    ];

    #[test]
    fn every_label_fills_a_field_and_its_absence_empties_it() {
        for (name, value) in SAMPLES {
            let mut spec = read(&[(name, value)]).unwrap();
            let labels = std::mem::take(&mut spec.annotations.labels);
            assert_ne!(spec, ServiceSpec::default(), "{name}");
            spec.apply_labels().unwrap();
            assert_eq!(spec, ServiceSpec::default(), "{name}");
            assert_eq!(labels.len(), 1, "the label itself stays");
        }
        let names = |of: &[&'static str]| {
            of.iter()
                .copied()
                .collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(names(&SAMPLES.map(|s| s.0)), names(&KNOWN.map(|k| k.0)));
    }

    #[test]
    fn values_are_read_as_docker_reads_them() {
        let spec = read(&SAMPLES).unwrap();
        let host = &spec.task.container.host;
        let devices: Vec<_> = host.devices.iter().map(ToString::to_string).collect();
        assert_eq!(
            devices,
            ["/dev/null:/dev/zap:rw", "/dev/zero:/dev/zero:rwm"]
        );
        assert_eq!(host.shm_size_bytes, 256 * 1024 * 1024);
        assert_eq!(spec.progress_deadline, Some(Duration::from_secs(90)));
        let depends = spec.depends_on.iter();
        let depends: Vec<_> = depends
            .map(|d| (d.service.as_str(), d.condition, d.required))
            .collect();
        use DependencyCondition as C;
        assert_eq!(
            depends,
            [
                ("db", C::Healthy, true),
                ("cache", C::Started, false),
                ("mq", C::Started, true)
            ]
        );
        assert_eq!(
            depends_on(&spec.depends_on),
            "db:service_healthy,cache:service_started:optional,mq:service_started"
        );
    }

    #[test]
    fn a_list_of_texts_with_commas_is_read_back() {
        for items in [
            vec!["a", "b"],
            vec!["seccomp={\"x\":1,\"y\":2}", "b"],
            vec!["a,b"],
        ] {
            assert_eq!(value::list(&list(&items)), items);
        }
    }

    #[test]
    fn what_makes_no_sense_is_named_with_what_would() {
        let refused = |name, value| read(&[(name, value)]).unwrap_err();
        expect_test::expect![[r#"
            label 'shoal.privileged' has the invalid value 'yes please': expected true|false
            label 'shoal.devices' has the invalid value 'null': expected HOST[:CONTAINER][:rwm],…
            label 'shoal.shm-size' has the invalid value '12 pounds': expected BYTES[b|k|m|g]
            label 'shoal.depends-on' has the invalid value 'db:healthy': expected SERVICE[:CONDITION][:optional],…
            label 'shoal.update.progress-deadline' has the invalid value '10': expected DURATION
            label 'shoal.security-opt' has the invalid value 'no-new-privilege': expected no-new-privileges|seccomp=unconfined|seccomp={PROFILE}|apparmor=NAME|label=NAME,…
            label 'shoal.security-opt' has the invalid value 'seccomp=profile.json': expected no-new-privileges|seccomp=unconfined|seccomp={PROFILE}|apparmor=NAME|label=NAME,…
            label 'shoal.cpuset' has the invalid value '3-': expected 0-3,5
            label 'shoal.pid' has the invalid value 'container:x': expected host
            label 'shoal.ip' has the invalid value '10.0.5.9': expected NETWORK=ADDRESS,…
            label 'shoal.affinity' has the invalid value 'cookie': expected none|source"#]]
        .assert_eq(
            &[
                refused("shoal.privileged", "yes please"),
                refused("shoal.devices", "null"),
                refused("shoal.shm-size", "12 pounds"),
                refused("shoal.depends-on", "db:healthy"),
                refused("shoal.update.progress-deadline", "10"),
                refused("shoal.security-opt", "no-new-privilege"),
                refused("shoal.security-opt", "seccomp=profile.json"),
                refused("shoal.cpuset", "3-"),
                refused("shoal.pid", "container:x"),
                refused("shoal.ip", "10.0.5.9"),
                refused("shoal.affinity", "cookie"),
            ]
            .join("\n"),
        );
        let unknown = refused("shoal.privilege", "true");
        assert!(
            unknown.starts_with(
                "label 'shoal.privilege' is unknown: expected one of shoal.privileged, "
            )
        );
        assert!(read(&[("com.example.shoal.x", "1")]).is_ok());
    }
}
