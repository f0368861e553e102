//! The flags of `run` and `create`, and the container that they describe.

mod rare;

use anyhow::{Result, anyhow, bail};
use clap::Args;
use serde_json::{Map, Value, json};

use crate::flags::{
    self,
    environment::{self, Lookup},
    mount::{self, Volume},
    network, port, quantity,
};

#[derive(Args, Default)]
pub(crate) struct Flags {
    /// Assign a name to the container
    #[arg(long, value_name = "string")]
    pub(crate) name: Option<String>,
    /// Keep STDIN open even if not attached
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_default_value = true, value_name = "bool")]
    pub(crate) interactive: bool,
    /// Allocate a pseudo-TTY
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_default_value = true, value_name = "bool")]
    pub(crate) tty: bool,
    /// Attach to STDIN, STDOUT or STDERR
    #[arg(short, long, value_name = "list", value_parser = ["stdin", "stdout", "stderr"], ignore_case = true)]
    pub(crate) attach: Vec<String>,
    /// Automatically remove the container when it exits
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_default_value = true, value_name = "bool")]
    pub(crate) rm: bool,
    /// Write the container ID to the file
    #[arg(long, value_name = "string")]
    pub(crate) cidfile: Option<String>,
    /// Pull image before running ("always", "missing", "never")
    #[arg(long, value_name = "string", default_value = "missing", value_parser = ["always", "missing", "never"])]
    pub(crate) pull: String,
    /// Set platform if server is multi-platform capable
    #[arg(long, value_name = "string")]
    pub(crate) platform: Option<String>,
    /// Suppress the pull output
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// Overwrite the default ENTRYPOINT of the image
    #[arg(long, value_name = "string", help_heading = "Process")]
    entrypoint: Option<String>,
    /// Working directory inside the container
    #[arg(short, long, value_name = "string", help_heading = "Process")]
    workdir: Option<String>,
    /// Username or UID (format: <name|uid>[:<group|gid>])
    #[arg(short, long, value_name = "string", help_heading = "Process")]
    user: Option<String>,
    /// Add additional groups to join
    #[arg(long, value_name = "list", help_heading = "Process")]
    group_add: Vec<String>,
    /// Set environment variables
    #[arg(short, long, value_name = "list", help_heading = "Process")]
    env: Vec<String>,
    /// Read in a file of environment variables
    #[arg(long, value_name = "list", help_heading = "Process")]
    env_file: Vec<String>,
    /// Run an init inside the container that forwards signals and reaps processes
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "bool", help_heading = "Process")]
    init: Option<bool>,
    /// Signal to stop the container
    #[arg(long, value_name = "string", help_heading = "Process")]
    stop_signal: Option<String>,
    /// Timeout (in seconds) to stop a container
    #[arg(
        long,
        value_name = "int",
        help_heading = "Process",
        allow_negative_numbers = true
    )]
    stop_timeout: Option<i64>,
    /// Restart policy to apply when a container exits
    #[arg(
        long,
        value_name = "string",
        default_value = "no",
        help_heading = "Process"
    )]
    restart: String,

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

    /// Set meta data on a container
    #[arg(short, long, value_name = "list", help_heading = "Metadata")]
    label: Vec<String>,
    /// Read in a line delimited file of labels
    #[arg(long, value_name = "list", help_heading = "Metadata")]
    label_file: Vec<String>,
    /// Add an annotation to the container (passed through to the OCI runtime)
    #[arg(long, value_name = "map", help_heading = "Metadata")]
    annotation: Vec<String>,

    /// Connect a container to a network
    #[arg(
        long,
        visible_alias = "net",
        value_name = "network",
        help_heading = "Network"
    )]
    network: Vec<String>,
    /// Add network-scoped alias for the container
    #[arg(
        long,
        visible_alias = "net-alias",
        value_name = "list",
        help_heading = "Network"
    )]
    network_alias: Vec<String>,
    /// IPv4 address
    #[arg(long, value_name = "string", help_heading = "Network")]
    ip: Option<String>,
    /// IPv6 address
    #[arg(long, value_name = "string", help_heading = "Network")]
    ip6: Option<String>,
    /// Container MAC address
    #[arg(long, value_name = "string", help_heading = "Network")]
    mac_address: Option<String>,
    /// Publish a container's port(s) to the host
    #[arg(short, long, value_name = "list", help_heading = "Network")]
    publish: Vec<String>,
    /// Publish all exposed ports to random ports
    #[arg(short = 'P', long, help_heading = "Network")]
    publish_all: bool,
    /// Expose a port or a range of ports
    #[arg(long, value_name = "list", help_heading = "Network")]
    expose: Vec<String>,
    /// Set custom DNS servers
    #[arg(long, value_name = "list", help_heading = "Network")]
    dns: Vec<String>,
    /// Set DNS options
    #[arg(
        long,
        visible_alias = "dns-opt",
        value_name = "list",
        help_heading = "Network"
    )]
    dns_option: Vec<String>,
    /// Set custom DNS search domains
    #[arg(long, value_name = "list", help_heading = "Network")]
    dns_search: Vec<String>,
    /// Add a custom host-to-IP mapping (host:ip)
    #[arg(long, value_name = "list", help_heading = "Network")]
    add_host: Vec<String>,
    /// Container host name
    #[arg(short = 'h', long, value_name = "string", help_heading = "Network")]
    hostname: Option<String>,
    /// Container NIS domain name
    #[arg(long, value_name = "string", help_heading = "Network")]
    domainname: Option<String>,

    /// Bind mount a volume
    #[arg(short, long, value_name = "list", help_heading = "Storage")]
    volume: Vec<String>,
    /// Attach a filesystem mount to the container
    #[arg(long, value_name = "mount", help_heading = "Storage")]
    mount: Vec<String>,
    /// Mount a tmpfs directory
    #[arg(long, value_name = "list", help_heading = "Storage")]
    tmpfs: Vec<String>,
    /// Mount volumes from the specified container(s)
    #[arg(long, value_name = "list", help_heading = "Storage")]
    volumes_from: Vec<String>,
    /// Mount the container's root filesystem as read only
    #[arg(long, help_heading = "Storage")]
    read_only: bool,
    /// Size of /dev/shm
    #[arg(long, value_name = "bytes", value_parser = quantity::bytes, help_heading = "Storage")]
    shm_size: Option<i64>,

    /// PID namespace to use
    #[arg(long, value_name = "string", help_heading = "Isolation")]
    pid: Option<String>,
    /// IPC mode to use
    #[arg(long, value_name = "string", help_heading = "Isolation")]
    ipc: Option<String>,
    /// UTS namespace to use
    #[arg(long, value_name = "string", help_heading = "Isolation")]
    uts: Option<String>,
    /// User namespace to use
    #[arg(long, value_name = "string", help_heading = "Isolation")]
    userns: Option<String>,
    /// Cgroup namespace to use (host|private)
    #[arg(long, value_name = "string", help_heading = "Isolation")]
    cgroupns: Option<String>,
    /// Optional parent cgroup for the container
    #[arg(long, value_name = "string", help_heading = "Isolation")]
    cgroup_parent: Option<String>,
    /// Give extended privileges to this container
    #[arg(long, help_heading = "Isolation")]
    privileged: bool,
    /// Add Linux capabilities
    #[arg(long, value_name = "list", help_heading = "Isolation")]
    cap_add: Vec<String>,
    /// Drop Linux capabilities
    #[arg(long, value_name = "list", help_heading = "Isolation")]
    cap_drop: Vec<String>,
    /// Security Options
    #[arg(long, value_name = "list", help_heading = "Isolation")]
    security_opt: Vec<String>,
    /// Sysctl options
    #[arg(long, value_name = "map", help_heading = "Isolation")]
    sysctl: Vec<String>,
    /// Runtime to use for this container
    #[arg(long, value_name = "string", help_heading = "Isolation")]
    runtime: Option<String>,

    /// Memory limit
    #[arg(short, long, value_name = "bytes", value_parser = quantity::bytes, help_heading = "Resources")]
    memory: Option<i64>,
    /// Memory soft limit
    #[arg(long, value_name = "bytes", value_parser = quantity::bytes, help_heading = "Resources")]
    memory_reservation: Option<i64>,
    /// Swap limit equal to memory plus swap: '-1' to enable unlimited swap
    #[arg(long, value_name = "bytes", value_parser = quantity::bytes, help_heading = "Resources", allow_negative_numbers = true)]
    memory_swap: Option<i64>,
    /// Number of CPUs
    #[arg(long, value_name = "decimal", value_parser = quantity::cpus, help_heading = "Resources")]
    cpus: Option<i64>,
    /// CPU shares (relative weight)
    #[arg(short, long, value_name = "int", help_heading = "Resources")]
    cpu_shares: Option<i64>,
    /// Limit CPU CFS (Completely Fair Scheduler) period
    #[arg(long, value_name = "int", help_heading = "Resources")]
    cpu_period: Option<i64>,
    /// Limit CPU CFS (Completely Fair Scheduler) quota
    #[arg(long, value_name = "int", help_heading = "Resources")]
    cpu_quota: Option<i64>,
    /// CPUs in which to allow execution (0-3, 0,1)
    #[arg(long, value_name = "string", help_heading = "Resources")]
    cpuset_cpus: Option<String>,
    /// MEMs in which to allow execution (0-3, 0,1)
    #[arg(long, value_name = "string", help_heading = "Resources")]
    cpuset_mems: Option<String>,
    /// Tune container pids limit (set -1 for unlimited)
    #[arg(
        long,
        value_name = "int",
        help_heading = "Resources",
        allow_negative_numbers = true
    )]
    pids_limit: Option<i64>,
    /// Tune host's OOM preferences (-1000 to 1000)
    #[arg(
        long,
        value_name = "int",
        help_heading = "Resources",
        allow_negative_numbers = true
    )]
    oom_score_adj: Option<i64>,
    /// Ulimit options
    #[arg(long, value_name = "ulimit", value_parser = quantity::ulimit, help_heading = "Resources")]
    ulimit: Vec<Value>,
    /// Logging driver for the container
    #[arg(long, value_name = "string", help_heading = "Logs")]
    log_driver: Option<String>,
    /// Log driver options
    #[arg(long, value_name = "list", help_heading = "Logs")]
    log_opt: Vec<String>,
    #[command(flatten)]
    rare: rare::Rare,
}

/// A health check of the `--health-*` flags, shared with services.
pub(crate) fn health(
    disabled: bool,
    command: Option<&str>,
    [interval, timeout, start_period, start_interval]: [Option<i64>; 4],
    retries: Option<u32>,
) -> Result<Option<Value>> {
    let mut check = Map::new();
    if let Some(command) = command {
        check.insert("Test".to_owned(), json!(["CMD-SHELL", command]));
    }
    for (name, value) in [
        ("Interval", interval),
        ("Timeout", timeout),
        ("StartPeriod", start_period),
        ("StartInterval", start_interval),
        ("Retries", retries.map(i64::from)),
    ] {
        if let Some(value) = value {
            if value < 0 {
                bail!("--health-{} cannot be negative", name.to_lowercase());
            }
            check.insert(name.to_owned(), value.into());
        }
    }
    match (disabled, check.is_empty()) {
        (true, false) => bail!("--no-healthcheck conflicts with --health-* options"),
        (true, true) => Ok(Some(json!({"Test": ["NONE"]}))),
        (false, true) => Ok(None),
        (false, false) => Ok(Some(check.into())),
    }
}

/// Puts `value` at `field` if there is one.
fn put(object: &mut Value, field: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        object[field] = value.into();
    }
}

/// Puts a list at `field` unless it is empty.
fn put_list<T: Clone + Into<Value>>(object: &mut Value, field: &str, list: &[T]) {
    if !list.is_empty() {
        object[field] = list
            .iter()
            .cloned()
            .map(Into::into)
            .collect::<Vec<Value>>()
            .into();
    }
}

impl Flags {
    /// Whether the container gets the API's socket.
    pub(crate) fn uses_api_socket(&self) -> bool {
        self.rare.use_api_socket
    }

    /// The body of `POST /containers/create`.
    pub(crate) fn body(
        &self,
        image: &str,
        command: &[String],
        lookup: Lookup<'_>,
    ) -> Result<Value> {
        let (exposed, bindings) = port::container(&self.publish, &self.expose)?;
        let mut body = json!({
            "Image": image,
            "Tty": self.tty,
            "OpenStdin": self.interactive,
            "Env": environment::variables(&self.env, &self.env_file, lookup)?,
            "Labels": flags::object(&self.labels()?),
            "ExposedPorts": exposed,
        });
        put_list(&mut body, "Cmd", command);
        if let Some(entrypoint) = &self.entrypoint {
            // An empty one takes the image's away.
            body["Entrypoint"] = json!([entrypoint]);
        }
        put(&mut body, "WorkingDir", self.workdir.clone());
        put(&mut body, "User", self.user.clone());
        put(&mut body, "Hostname", self.hostname.clone());
        put(&mut body, "Domainname", self.domainname.clone());
        put(&mut body, "StopSignal", self.stop_signal.clone());
        put(&mut body, "StopTimeout", self.stop_timeout);
        let times = [
            self.health_interval,
            self.health_timeout,
            self.health_start_period,
            self.health_start_interval,
        ];
        let check = health(
            self.no_healthcheck,
            self.health_cmd.as_deref(),
            times,
            self.health_retries,
        )?;
        put(&mut body, "Healthcheck", check);
        let (networks, mode) = self.networks()?;
        body["HostConfig"] = self.host_config(bindings, &mode, &mut body)?;
        body["NetworkingConfig"] = json!({"EndpointsConfig": networks});
        Ok(body)
    }

    fn labels(&self) -> Result<Vec<String>> {
        let mut all = environment::variables(&[], &self.label_file, &|_| Some(String::new()))?;
        all.extend(self.label.iter().cloned());
        Ok(all)
    }

    fn host_config(&self, bindings: Value, mode: &str, body: &mut Value) -> Result<Value> {
        let (policy, retries) = restart(&self.restart)?;
        if self.rm && policy != "no" {
            bail!("conflicting options: cannot specify both --restart and --rm");
        }
        let mut host = json!({
            "AutoRemove": self.rm,
            "NetworkMode": mode,
            "PortBindings": bindings,
            "PublishAllPorts": self.publish_all,
            "RestartPolicy": {"Name": policy, "MaximumRetryCount": retries},
            "Privileged": self.privileged,
            "ReadonlyRootfs": self.read_only,
        });
        let mut binds = Vec::new();
        for volume in &self.volume {
            match mount::short(volume)? {
                Volume::Anonymous(path) => body["Volumes"][path] = json!({}),
                Volume::Bind(bind) => binds.push(bind),
            }
        }
        let mounts: Vec<Value> = self
            .mount
            .iter()
            .map(|text| mount::long(text))
            .collect::<Result<_>>()?;
        put_list(&mut host, "Binds", &binds);
        put_list(&mut host, "Mounts", &mounts);
        put_list(&mut host, "VolumesFrom", &self.volumes_from);
        if !self.tmpfs.is_empty() {
            let tmpfs = self.tmpfs.iter().map(|text| {
                let (path, options) = text.split_once(':').unwrap_or((text, ""));
                (path.to_owned(), options.into())
            });
            host["Tmpfs"] = Value::Object(tmpfs.collect());
        }
        put_list(&mut host, "Dns", &self.dns);
        put_list(&mut host, "DnsOptions", &self.dns_option);
        put_list(&mut host, "DnsSearch", &self.dns_search);
        put_list(&mut host, "ExtraHosts", &self.add_host);
        put_list(&mut host, "GroupAdd", &self.group_add);
        put_list(&mut host, "CapAdd", &flags::capabilities(&self.cap_add));
        put_list(&mut host, "CapDrop", &flags::capabilities(&self.cap_drop));
        let security = flags::security::options(&self.security_opt)?;
        put_list(&mut host, "SecurityOpt", &security);
        put_list(&mut host, "Ulimits", &self.ulimit);
        self.rare.apply(&mut host)?;
        put(&mut host, "Init", self.init);
        put(&mut host, "ShmSize", self.shm_size);
        put(&mut host, "PidMode", self.pid.clone());
        put(&mut host, "IpcMode", self.ipc.clone());
        put(&mut host, "UTSMode", self.uts.clone());
        put(&mut host, "UsernsMode", self.userns.clone());
        put(&mut host, "CgroupnsMode", self.cgroupns.clone());
        put(&mut host, "CgroupParent", self.cgroup_parent.clone());
        put(&mut host, "Runtime", self.runtime.clone());
        put(&mut host, "Memory", self.memory);
        put(&mut host, "MemoryReservation", self.memory_reservation);
        put(&mut host, "MemorySwap", self.memory_swap);
        put(&mut host, "NanoCpus", self.cpus);
        put(&mut host, "CpuShares", self.cpu_shares);
        put(&mut host, "CpuPeriod", self.cpu_period);
        put(&mut host, "CpuQuota", self.cpu_quota);
        put(&mut host, "CpusetCpus", self.cpuset_cpus.clone());
        put(&mut host, "CpusetMems", self.cpuset_mems.clone());
        put(&mut host, "PidsLimit", self.pids_limit);
        put(&mut host, "OomScoreAdj", self.oom_score_adj);
        if !self.sysctl.is_empty() {
            host["Sysctls"] = flags::object(&self.sysctl);
        }
        if !self.annotation.is_empty() {
            host["Annotations"] = flags::object(&self.annotation);
        }
        if self.log_driver.is_some() || !self.log_opt.is_empty() {
            let driver = self.log_driver.clone().unwrap_or_default();
            host["LogConfig"] = json!({"Type": driver, "Config": flags::object(&self.log_opt)});
        }
        Ok(host)
    }

    /// Endpoints by network, and the network mode.
    fn networks(&self) -> Result<(Map<String, Value>, String)> {
        let mut endpoints = Map::new();
        let mut mode = None;
        for text in &self.network {
            let mut wanted = network::attachment(text)?;
            if mode.is_none() {
                mode = Some(wanted.target.clone());
                let own = [&self.ip, &self.ip6, &self.mac_address].map(Option::as_deref);
                let rare = &self.rare;
                wanted.fill(&self.network_alias, own, &rare.link, &rare.link_local_ip)?;
            }
            let target = wanted.target.clone();
            if endpoints.insert(target.clone(), wanted.body()).is_some() {
                bail!("network {target:?} is specified multiple times");
            }
        }
        if mode.is_none() {
            if !self.network_alias.is_empty() {
                bail!("network-scoped aliases are only supported for user-defined networks");
            }
            let mut wanted = network::Attachment::default();
            let own = [&self.ip, &self.ip6, &self.mac_address].map(Option::as_deref);
            wanted.fill(&[], own, &[], &self.rare.link_local_ip)?;
            let endpoint = wanted.body();
            if endpoint != json!({}) {
                endpoints.insert("default".to_owned(), endpoint);
            }
        }
        Ok((endpoints, mode.unwrap_or_else(|| "default".to_owned())))
    }
}

/// Reads a restart policy: its name and how often it may be tried.
pub(crate) fn restart(text: &str) -> Result<(&str, i64)> {
    let (name, count) = match text.split_once(':') {
        Some((name, count)) => (name, Some(count)),
        None => (text, None),
    };
    match (name, count) {
        ("" | "no", None) => Ok(("no", 0)),
        ("always" | "unless-stopped" | "on-failure", None) => Ok((name, 0)),
        ("on-failure", Some(count)) => {
            let count = count.parse().map_err(|_| {
                anyhow!("invalid restart policy format: maximum retry count must be an integer")
            })?;
            Ok((name, count))
        }
        (_, Some(_)) => {
            bail!("invalid restart policy: maximum retry count can only be used with 'on-failure'")
        }
        (other, None) => bail!(
            "invalid restart policy: unknown policy '{other}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        ),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use expect_test::expect;

    use super::*;

    #[derive(Parser)]
    #[command(disable_help_flag = true)]
    struct Line {
        #[command(flatten)]
        flags: Flags,
    }

    fn body(line: &str) -> Result<Value> {
        let words = std::iter::once("run").chain(line.split_whitespace());
        let line = Line::try_parse_from(words)?;
        let body = line.flags.body("nginx", &["-g".to_owned()], &|_| None)?;
        Ok(crate::json::significant(&body).unwrap_or_default())
    }

    #[test]
    fn flags_become_a_container() {
        let body = body("-it --rm -h box -e A=1 -v data:/data -v /anon --mount type=tmpfs,target=/t --network name=n,alias=a --ip 10.0.0.9 -p 80:80 -m 64m --cpus 1.5 --device /dev/fuse --init --health-cmd true --health-retries 2 --log-opt max-size=1m").unwrap();
        expect![[r#"
            {
                "Cmd": [
                    "-g"
                ],
                "Env": [
                    "A=1"
                ],
                "Healthcheck": {
                    "Retries": 2,
                    "Test": [
                        "CMD-SHELL",
                        "true"
                    ]
                },
                "HostConfig": {
                    "AutoRemove": true,
                    "Binds": [
                        "data:/data"
                    ],
                    "Devices": [
                        {
                            "CgroupPermissions": "rwm",
                            "PathInContainer": "/dev/fuse",
                            "PathOnHost": "/dev/fuse"
                        }
                    ],
                    "Init": true,
                    "LogConfig": {
                        "Config": {
                            "max-size": "1m"
                        }
                    },
                    "Memory": 67108864,
                    "Mounts": [
                        {
                            "Target": "/t",
                            "Type": "tmpfs"
                        }
                    ],
                    "NanoCpus": 1500000000,
                    "NetworkMode": "n",
                    "PortBindings": {
                        "80/tcp": [
                            {
                                "HostPort": "80"
                            }
                        ]
                    },
                    "RestartPolicy": {
                        "Name": "no"
                    }
                },
                "Hostname": "box",
                "Image": "nginx",
                "NetworkingConfig": {
                    "EndpointsConfig": {
                        "n": {
                            "Aliases": [
                                "a"
                            ],
                            "IPAMConfig": {
                                "IPv4Address": "10.0.0.9"
                            }
                        }
                    }
                },
                "OpenStdin": true,
                "Tty": true
            }"#]]
        .assert_eq(&crate::output::indented(&body));
    }

    #[test]
    fn contradictions_are_refused() {
        for (line, problem) in [
            (
                "--rm --restart always",
                "conflicting options: cannot specify both --restart and --rm",
            ),
            (
                "--restart sometimes",
                "invalid restart policy: unknown policy 'sometimes'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'",
            ),
            (
                "--no-healthcheck --health-cmd true",
                "--no-healthcheck conflicts with --health-* options",
            ),
            (
                "--network-alias a",
                "network-scoped aliases are only supported for user-defined networks",
            ),
            (
                "--network n --network n",
                "network \"n\" is specified multiple times",
            ),
        ] {
            assert_eq!(body(line).unwrap_err().to_string(), problem, "{line}");
        }
    }
}
