//! The flags of `service create`, and those it shares with `service update`.

use anyhow::{Result, bail};
use clap::Args;
use serde_json::{Value, json};

use super::{
    container_flags,
    image::registry_auth,
    service::{Wait, pin_image},
    service_beyond::Beyond,
    service_parts::{
        References, add_reach_labels, fill_in, generic_resource, host_line, preference, words,
    },
};
use crate::{
    client::{Client, Target},
    flags::{
        self,
        environment::{self, Lookup},
        mount, port, quantity,
    },
    json::text,
    output,
};

/// Create a new service
#[derive(Args)]
#[command(
    after_help = "Examples:\n  shoal service create --name web --replicas 3 -p 8080:80 nginx\n  shoal service create --mode global --name agent --mount type=bind,src=/proc,dst=/host/proc,ro agent:1"
)]
pub(crate) struct Create {
    /// Service name
    #[arg(
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    name: String,
    /// Service mode
    #[arg(long, value_name = "string", default_value = "replicated", value_parser = ["replicated", "global", "replicated-job", "global-job"])]
    mode: String,
    /// Service labels
    #[arg(short, long, value_name = "list")]
    label: Vec<String>,
    /// Container labels
    #[arg(long, value_name = "list")]
    container_label: Vec<String>,
    /// Set environment variables
    #[arg(short, long, value_name = "list")]
    env: Vec<String>,
    /// Read in a file of environment variables
    #[arg(long, value_name = "list")]
    env_file: Vec<String>,
    /// Placement constraints
    #[arg(long, value_name = "list")]
    constraint: Vec<String>,
    /// Add a placement preference
    #[arg(long, value_name = "pref")]
    placement_pref: Vec<String>,
    /// Attach a filesystem mount to the service
    #[arg(long, value_name = "mount")]
    mount: Vec<String>,
    /// Network attachments
    #[arg(long, value_name = "network")]
    network: Vec<String>,
    /// Publish a port as a node port
    #[arg(short, long, value_name = "port")]
    publish: Vec<String>,
    /// Specify secrets to expose to the service
    #[arg(long, value_name = "secret")]
    secret: Vec<String>,
    /// Specify configurations to expose to the service
    #[arg(long, value_name = "config")]
    config: Vec<String>,
    /// Set one or more supplementary user groups for the container
    #[arg(long, value_name = "list")]
    group: Vec<String>,
    /// Set one or more custom host-to-IP mappings (host:ip)
    #[arg(long, value_name = "list")]
    host: Vec<String>,
    /// Set custom DNS servers
    #[arg(long, value_name = "list")]
    dns: Vec<String>,
    /// Set DNS options
    #[arg(long, value_name = "list")]
    dns_option: Vec<String>,
    /// Set custom DNS search domains
    #[arg(long, value_name = "list")]
    dns_search: Vec<String>,
    /// Add Linux capabilities
    #[arg(long, value_name = "list")]
    cap_add: Vec<String>,
    /// Drop Linux capabilities
    #[arg(long, value_name = "list")]
    cap_drop: Vec<String>,
    /// Sysctl options
    #[arg(long, value_name = "list")]
    sysctl: Vec<String>,
    /// Ulimit options
    #[arg(long, value_name = "ulimit", value_parser = quantity::ulimit)]
    ulimit: Vec<Value>,
    /// User defined resources
    #[arg(long, value_name = "list")]
    generic_resource: Vec<String>,
    #[command(flatten)]
    pub(crate) settings: Settings,
    #[command(flatten)]
    wait: Wait,
    /// Image, and the command with its arguments
    #[arg(required = true, trailing_var_arg = true, value_names = ["IMAGE", "COMMAND"], num_args = 1..)]
    image_and_command: Vec<String>,
}

/// Settings with one value each; what is not said stays as it is.
#[derive(Args)]
pub(crate) struct Settings {
    #[command(flatten)]
    beyond: Beyond,
    /// Number of tasks
    #[arg(long, value_name = "uint")]
    pub(crate) replicas: Option<u64>,
    /// Number of job tasks to run concurrently (default equal to --replicas)
    #[arg(long, value_name = "uint")]
    max_concurrent: Option<u64>,
    /// Maximum number of tasks per node (default 0 = unlimited)
    #[arg(long, value_name = "uint")]
    replicas_max_per_node: Option<u64>,
    /// Overwrite the default ENTRYPOINT of the image
    #[arg(long, value_name = "command")]
    entrypoint: Option<String>,
    /// Working directory inside the container
    #[arg(short, long, value_name = "string")]
    workdir: Option<String>,
    /// Username or UID (format: <name|uid>[:<group|gid>])
    #[arg(short, long, value_name = "string")]
    user: Option<String>,
    /// Container hostname
    #[arg(long, value_name = "string")]
    hostname: Option<String>,
    /// Use an init inside each service container to forward signals and reap processes
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "bool")]
    init: Option<bool>,
    /// Allocate a pseudo-TTY
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "bool")]
    tty: Option<bool>,
    /// Mount the container's root filesystem as read only
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "bool")]
    read_only: Option<bool>,
    /// Signal to stop the container
    #[arg(long, value_name = "string")]
    stop_signal: Option<String>,
    /// Time to wait before force killing a container (ns|us|ms|s|m|h) (default 10s)
    #[arg(long, value_name = "duration", value_parser = quantity::duration)]
    stop_grace_period: Option<i64>,
    /// Tune host's OOM preferences (-1000 to 1000)
    #[arg(long, value_name = "int", allow_negative_numbers = true)]
    oom_score_adj: Option<i64>,
    /// Logging driver for service
    #[arg(long, value_name = "string")]
    log_driver: Option<String>,
    /// Logging driver options
    #[arg(long, value_name = "list")]
    log_opt: Vec<String>,
    /// Endpoint mode (vip or dnsrr)
    #[arg(long, value_name = "string", value_parser = ["vip", "dnsrr"])]
    endpoint_mode: Option<String>,

    /// Command to run to check health
    #[arg(long, value_name = "string", help_heading = "Health")]
    health_cmd: Option<String>,
    /// Time between running the check (ms|s|m|h)
    #[arg(long, value_name = "duration", value_parser = quantity::duration, help_heading = "Health")]
    health_interval: Option<i64>,
    /// Consecutive failures needed to report unhealthy
    #[arg(long, value_name = "int", help_heading = "Health")]
    health_retries: Option<u32>,
    /// Maximum time to allow one check to run (ms|s|m|h)
    #[arg(long, value_name = "duration", value_parser = quantity::duration, help_heading = "Health")]
    health_timeout: Option<i64>,
    /// Start period for the container to initialize (ms|s|m|h)
    #[arg(long, value_name = "duration", value_parser = quantity::duration, help_heading = "Health")]
    health_start_period: Option<i64>,
    /// Time between running the check during the start period (ms|s|m|h)
    #[arg(long, value_name = "duration", value_parser = quantity::duration, help_heading = "Health")]
    health_start_interval: Option<i64>,
    /// Disable any container-specified HEALTHCHECK
    #[arg(long, help_heading = "Health")]
    no_healthcheck: bool,

    /// Limit CPUs
    #[arg(long, value_name = "decimal", value_parser = quantity::cpus, help_heading = "Resources")]
    limit_cpu: Option<i64>,
    /// Limit Memory
    #[arg(long, value_name = "bytes", value_parser = quantity::bytes, help_heading = "Resources")]
    limit_memory: Option<i64>,
    /// Limit maximum number of processes (default 0 = unlimited)
    #[arg(long, value_name = "int", help_heading = "Resources")]
    limit_pids: Option<i64>,
    /// Reserve CPUs
    #[arg(long, value_name = "decimal", value_parser = quantity::cpus, help_heading = "Resources")]
    reserve_cpu: Option<i64>,
    /// Reserve Memory
    #[arg(long, value_name = "bytes", value_parser = quantity::bytes, help_heading = "Resources")]
    reserve_memory: Option<i64>,

    /// Restart when condition is met ("none", "on-failure", "any") (default "any")
    #[arg(long, value_name = "string", value_parser = ["none", "on-failure", "any"], help_heading = "Restart")]
    restart_condition: Option<String>,
    /// Delay between restart attempts (ns|us|ms|s|m|h) (default 5s)
    #[arg(long, value_name = "duration", value_parser = quantity::duration, help_heading = "Restart")]
    restart_delay: Option<i64>,
    /// Maximum number of restarts before giving up
    #[arg(long, value_name = "uint", help_heading = "Restart")]
    restart_max_attempts: Option<u64>,
    /// Window used to evaluate the restart policy (ns|us|ms|s|m|h)
    #[arg(long, value_name = "duration", value_parser = quantity::duration, help_heading = "Restart")]
    restart_window: Option<i64>,

    /// Maximum number of tasks updated simultaneously (0 to update all at once) (default 1)
    #[arg(long, value_name = "uint", help_heading = "Update")]
    update_parallelism: Option<u64>,
    /// Delay between updates (ns|us|ms|s|m|h) (default 0s)
    #[arg(long, value_name = "duration", value_parser = quantity::duration, help_heading = "Update")]
    update_delay: Option<i64>,
    /// Duration after each task update to monitor for failure (ns|us|ms|s|m|h) (default 5s)
    #[arg(long, value_name = "duration", value_parser = quantity::duration, help_heading = "Update")]
    update_monitor: Option<i64>,
    /// Action on update failure ("pause", "continue", "rollback") (default "pause")
    #[arg(long, value_name = "string", value_parser = ["pause", "continue", "rollback"], help_heading = "Update")]
    update_failure_action: Option<String>,
    /// Failure rate to tolerate during an update (default 0)
    #[arg(long, value_name = "float", help_heading = "Update")]
    update_max_failure_ratio: Option<f64>,
    /// Update order ("start-first", "stop-first") (default "stop-first")
    #[arg(long, value_name = "string", value_parser = ["start-first", "stop-first"], help_heading = "Update")]
    update_order: Option<String>,
    /// Maximum number of tasks rolled back simultaneously (0 to roll back all at once) (default 1)
    #[arg(long, value_name = "uint", help_heading = "Rollback")]
    rollback_parallelism: Option<u64>,
    /// Delay between task rollbacks (ns|us|ms|s|m|h) (default 0s)
    #[arg(long, value_name = "duration", value_parser = quantity::duration, help_heading = "Rollback")]
    rollback_delay: Option<i64>,
    /// Duration after each task rollback to monitor for failure (ns|us|ms|s|m|h) (default 5s)
    #[arg(long, value_name = "duration", value_parser = quantity::duration, help_heading = "Rollback")]
    rollback_monitor: Option<i64>,
    /// Action on rollback failure ("pause", "continue") (default "pause")
    #[arg(long, value_name = "string", value_parser = ["pause", "continue"], help_heading = "Rollback")]
    rollback_failure_action: Option<String>,
    /// Failure rate to tolerate during a rollback (default 0)
    #[arg(long, value_name = "float", help_heading = "Rollback")]
    rollback_max_failure_ratio: Option<f64>,
    /// Rollback order ("start-first", "stop-first") (default "stop-first")
    #[arg(long, value_name = "string", value_parser = ["start-first", "stop-first"], help_heading = "Rollback")]
    rollback_order: Option<String>,

    /// Do not query the registry to resolve image digest and supported platforms
    #[arg(long)]
    pub(crate) no_resolve_image: bool,
    /// Send registry authentication details to swarm agents
    #[arg(long)]
    pub(crate) with_registry_auth: bool,
}

/// The value at a path of names, made if need be.
pub(crate) fn at<'a>(value: &'a mut Value, path: &[&str]) -> &'a mut Value {
    path.iter().fold(value, |value, name| &mut value[*name])
}

impl Settings {
    /// Writes what was said into a spec.
    pub(crate) fn apply(&self, spec: &mut Value) -> Result<()> {
        self.beyond.apply(spec)?;
        let mut set = |path: &[&str], value: Option<Value>| {
            if let Some(value) = value {
                *at(spec, path) = value;
            }
        };
        macro_rules! container {
            ($($name:literal: $field:ident),* $(,)?) => {$(
                set(&["TaskTemplate", "ContainerSpec", $name], self.$field.clone().map(Value::from));
            )*};
        }
        container! {
            "Dir": workdir, "User": user, "Hostname": hostname, "Init": init, "TTY": tty, "ReadOnly": read_only,
            "StopSignal": stop_signal, "StopGracePeriod": stop_grace_period, "OomScoreAdj": oom_score_adj,
        }
        let entrypoint = self.entrypoint.as_deref().map(words).transpose()?;
        set(
            &["TaskTemplate", "ContainerSpec", "Command"],
            entrypoint.map(Value::from),
        );
        let times = [
            self.health_interval,
            self.health_timeout,
            self.health_start_period,
            self.health_start_interval,
        ];
        let check = container_flags::health(
            self.no_healthcheck,
            self.health_cmd.as_deref(),
            times,
            self.health_retries,
        )?;
        for (name, value) in check.iter().flat_map(|check| crate::json::pairs(check, "")) {
            set(
                &["TaskTemplate", "ContainerSpec", "Healthcheck", name],
                Some(value.clone()),
            );
        }
        for (group, name, value) in [
            ("Limits", "NanoCPUs", self.limit_cpu),
            ("Limits", "MemoryBytes", self.limit_memory),
            ("Limits", "Pids", self.limit_pids),
            ("Reservations", "NanoCPUs", self.reserve_cpu),
            ("Reservations", "MemoryBytes", self.reserve_memory),
        ] {
            set(
                &["TaskTemplate", "Resources", group, name],
                value.map(Value::from),
            );
        }
        for (name, value) in [
            ("Condition", self.restart_condition.clone().map(Value::from)),
            ("Delay", self.restart_delay.map(Value::from)),
            ("MaxAttempts", self.restart_max_attempts.map(Value::from)),
            ("Window", self.restart_window.map(Value::from)),
        ] {
            set(&["TaskTemplate", "RestartPolicy", name], value);
        }
        let max = self.replicas_max_per_node.map(Value::from);
        set(&["TaskTemplate", "Placement", "MaxReplicas"], max);
        if self.log_driver.is_some() || !self.log_opt.is_empty() {
            let name = self.log_driver.clone().unwrap_or_default();
            let driver = json!({"Name": name, "Options": flags::object(&self.log_opt)});
            set(&["TaskTemplate", "LogDriver"], Some(driver));
        }
        set(
            &["EndpointSpec", "Mode"],
            self.endpoint_mode.clone().map(Value::from),
        );
        macro_rules! rolling {
            ($config:literal: $parallelism:ident $delay:ident $monitor:ident $action:ident $ratio:ident $order:ident) => {
                let fields = [
                    ("Parallelism", self.$parallelism.map(Value::from)),
                    ("Delay", self.$delay.map(Value::from)),
                    ("Monitor", self.$monitor.map(Value::from)),
                    ("FailureAction", self.$action.clone().map(Value::from)),
                    ("MaxFailureRatio", self.$ratio.map(Value::from)),
                    ("Order", self.$order.clone().map(Value::from)),
                ];
                if fields.iter().any(|(_, value)| value.is_some()) {
                    // One setting alone must not turn the others' defaults into zeros.
                    let config = at(spec, &[$config]);
                    if config["Parallelism"].is_null() {
                        config["Parallelism"] = 1.into();
                    }
                    for (name, value) in fields {
                        if let Some(value) = value {
                            config[name] = value;
                        }
                    }
                }
            };
        }
        rolling!("UpdateConfig": update_parallelism update_delay update_monitor update_failure_action update_max_failure_ratio update_order);
        rolling!("RollbackConfig": rollback_parallelism rollback_delay rollback_monitor rollback_failure_action rollback_max_failure_ratio rollback_order);
        self.apply_mode(spec)
    }

    fn apply_mode(&self, spec: &mut Value) -> Result<()> {
        let mode = &mut spec["Mode"];
        let has = |mode: &Value, name: &str| mode.get(name).is_some_and(|value| !value.is_null());
        if let Some(replicas) = self.replicas {
            if has(mode, "ReplicatedJob") {
                mode["ReplicatedJob"]["TotalCompletions"] = replicas.into();
                if self.max_concurrent.is_none() && mode["ReplicatedJob"]["MaxConcurrent"].is_null()
                {
                    mode["ReplicatedJob"]["MaxConcurrent"] = replicas.into();
                }
            } else if has(mode, "Replicated") {
                mode["Replicated"]["Replicas"] = replicas.into();
            } else {
                bail!("replicas can only be used with replicated or replicated-job mode");
            }
        }
        if let Some(max) = self.max_concurrent {
            if !has(mode, "ReplicatedJob") {
                bail!("max-concurrent can only be used with replicated-job mode");
            }
            mode["ReplicatedJob"]["MaxConcurrent"] = max.into();
        }
        if self.replicas_max_per_node.is_some_and(|max| max > 0)
            && !has(mode, "Replicated")
            && !has(mode, "ReplicatedJob")
        {
            bail!("replicas-max-per-node can only be used with replicated or replicated-job mode");
        }
        Ok(())
    }
}

impl Create {
    fn spec(&self, references: &References, lookup: Lookup<'_>) -> Result<Value> {
        let (image, args) = self
            .image_and_command
            .split_first()
            .expect("clap demands one value");
        let mode = match self.mode.as_str() {
            "global" => json!({"Global": {}}),
            "replicated-job" => json!({"ReplicatedJob": {}}),
            "global-job" => json!({"GlobalJob": {}}),
            _ => json!({"Replicated": {"Replicas": 1}}),
        };
        let mut spec = json!({
            "Name": self.name,
            "Labels": flags::object(&self.label),
            "Mode": mode,
            "TaskTemplate": {
                "ContainerSpec": {
                    "Image": image,
                    "Args": args,
                    "Labels": flags::object(&self.container_label),
                    "Env": environment::variables(&self.env, &self.env_file, lookup)?,
                    "Groups": self.group,
                    "CapabilityAdd": flags::capabilities(&self.cap_add),
                    "CapabilityDrop": flags::capabilities(&self.cap_drop),
                    "Ulimits": self.ulimit,
                    "Sysctls": flags::object(&self.sysctl),
                    "DNSConfig": {"Nameservers": self.dns, "Search": self.dns_search, "Options": self.dns_option},
                },
                "Placement": {"Constraints": self.constraint},
            },
        });
        let each = |texts: &[String], read: &dyn Fn(&str) -> Result<Value>| -> Result<Value> {
            texts
                .iter()
                .map(|text| read(text))
                .collect::<Result<Vec<_>>>()
                .map(Value::from)
        };
        let task = &mut spec["TaskTemplate"];
        task["ContainerSpec"]["Mounts"] = each(&self.mount, &mount::long)?;
        task["ContainerSpec"]["Hosts"] =
            each(&self.host, &|text| host_line(text).map(Value::from))?;
        task["ContainerSpec"]["Secrets"] = each(&self.secret, &|text| references.secret(text))?;
        task["ContainerSpec"]["Configs"] = each(&self.config, &|text| references.config(text))?;
        task["Networks"] = each(&self.network, &|text| references.attachment(text))?;
        task["Placement"]["Preferences"] = each(&self.placement_pref, &preference)?;
        task["Resources"]["Reservations"]["GenericResources"] =
            each(&self.generic_resource, &generic_resource)?;
        let ports: Vec<Vec<Value>> = self
            .publish
            .iter()
            .map(|text| port::service(text))
            .collect::<Result<_>>()?;
        spec["EndpointSpec"]["Ports"] = ports.concat().into();
        add_reach_labels(&mut spec["Labels"], &self.network, &self.publish)?;
        self.settings.apply(&mut spec)?;
        fill_in(&mut spec);
        // Jobs run to completion: restarting what has completed makes no sense.
        if self.mode == "replicated-job"
            && spec["Mode"]["ReplicatedJob"]["TotalCompletions"].is_null()
        {
            let concurrent = &spec["Mode"]["ReplicatedJob"]["MaxConcurrent"];
            let total = if concurrent.is_null() {
                1.into()
            } else {
                concurrent.clone()
            };
            spec["Mode"]["ReplicatedJob"]["TotalCompletions"] = total;
        }
        Ok(spec)
    }

    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let references =
            References::resolve(&self.network, &self.secret, &self.config, client).await?;
        let mut spec = self.spec(&references, &environment::process)?;
        if !self.settings.no_resolve_image
            && let Some(warning) = pin_image(&mut spec, client).await?
        {
            output::note(warning);
        }
        let auth = self
            .settings
            .with_registry_auth
            .then(|| registry_auth(&self.image_and_command[0]))
            .flatten();
        let made = client
            .post(
                Target::new("/services/create", &[]).registry_auth(auth),
                spec,
            )
            .await?;
        for warning in crate::json::texts(&made, "/Warnings") {
            output::note(warning);
        }
        let id = text(&made, "/ID").to_owned();
        output::line(&id);
        self.wait.done(&id, client).await
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use expect_test::expect;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        create: Create,
    }

    fn spec(line: &str) -> Result<Value> {
        let line = Line::try_parse_from(std::iter::once("create").chain(line.split_whitespace()))?;
        let spec = line.create.spec(&References::default(), &|_| None)?;
        Ok(crate::json::significant(&spec).unwrap_or_default())
    }

    #[test]
    fn flags_become_a_spec() {
        let spec = spec("--name web --replicas 3 -p 8080:80 -e A=1 --network name=net,alias=w --mount type=volume,src=d,dst=/d --secret source=key,mode=0400 --limit-cpu .5 --reserve-memory 64m --restart-condition on-failure --update-parallelism 2 --update-order start-first --constraint node.role==worker --placement-pref spread=node.labels.zone --health-cmd true --host db:10.0.0.1 --generic-resource gpu=1 --stop-grace-period 3s nginx:1 nginx -g daemon").unwrap();
        expect![[r#"
            {
                "EndpointSpec": {
                    "Ports": [
                        {
                            "Protocol": "tcp",
                            "PublishMode": "ingress",
                            "PublishedPort": 8080,
                            "TargetPort": 80
                        }
                    ]
                },
                "Mode": {
                    "Replicated": {
                        "Replicas": 3
                    }
                },
                "Name": "web",
                "TaskTemplate": {
                    "ContainerSpec": {
                        "Args": [
                            "nginx",
                            "-g",
                            "daemon"
                        ],
                        "Env": [
                            "A=1"
                        ],
                        "Healthcheck": {
                            "Test": [
                                "CMD-SHELL",
                                "true"
                            ]
                        },
                        "Hosts": [
                            "10.0.0.1 db"
                        ],
                        "Image": "nginx:1",
                        "Mounts": [
                            {
                                "Source": "d",
                                "Target": "/d",
                                "Type": "volume"
                            }
                        ],
                        "Secrets": [
                            {
                                "File": {
                                    "GID": "0",
                                    "Mode": 256,
                                    "Name": "key",
                                    "UID": "0"
                                },
                                "SecretName": "key"
                            }
                        ],
                        "StopGracePeriod": 3000000000
                    },
                    "Networks": [
                        {
                            "Aliases": [
                                "w"
                            ],
                            "Target": "net"
                        }
                    ],
                    "Placement": {
                        "Constraints": [
                            "node.role==worker"
                        ],
                        "Preferences": [
                            {
                                "Spread": {
                                    "SpreadDescriptor": "node.labels.zone"
                                }
                            }
                        ]
                    },
                    "Resources": {
                        "Limits": {
                            "NanoCPUs": 500000000
                        },
                        "Reservations": {
                            "GenericResources": [
                                {
                                    "DiscreteResourceSpec": {
                                        "Kind": "gpu",
                                        "Value": 1
                                    }
                                }
                            ],
                            "MemoryBytes": 67108864
                        }
                    },
                    "RestartPolicy": {
                        "Condition": "on-failure",
                        "Delay": 5000000000
                    }
                },
                "UpdateConfig": {
                    "FailureAction": "pause",
                    "Monitor": 5000000000,
                    "Order": "start-first",
                    "Parallelism": 2
                }
            }"#]]
        .assert_eq(&output::indented(&spec));
    }

    #[test]
    fn contradictions_are_refused() {
        for (line, problem) in [
            (
                "--mode global --replicas 2 a",
                "replicas can only be used with replicated or replicated-job mode",
            ),
            (
                "--max-concurrent 2 a",
                "max-concurrent can only be used with replicated-job mode",
            ),
            (
                "--placement-pref zone a",
                "placement preference must be of the format \"<strategy>=<arg>\"",
            ),
            ("--host db a", "bad format for add-host: \"db\""),
        ] {
            assert_eq!(spec(line).unwrap_err().to_string(), problem, "{line}");
        }
    }
}
