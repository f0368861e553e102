//! Flags of `run` and `create` that few need: limits of block devices, links, devices, and what only other systems have.

use anyhow::{Result, anyhow, bail};
use clap::Args;
use serde_json::{Map, Value, json};

use super::{put, put_list};
use crate::flags::{self, quantity};

/// The flags, shown below the others.
#[derive(Args, Default)]
pub(super) struct Rare {
    /// Add link to another container
    #[arg(long, value_name = "list", help_heading = "Network")]
    pub(super) link: Vec<String>,
    /// Container IPv4/IPv6 link-local addresses
    #[arg(long, value_name = "list", help_heading = "Network")]
    pub(super) link_local_ip: Vec<String>,
    /// Optional volume driver for the container
    #[arg(long, value_name = "string", help_heading = "Storage")]
    volume_driver: Option<String>,
    /// Storage driver options for the container
    #[arg(long, value_name = "list", help_heading = "Storage")]
    storage_opt: Vec<String>,
    /// Bind mount Docker API socket and required auth
    #[arg(long, help_heading = "Storage")]
    pub(super) use_api_socket: bool,
    /// Add a host device to the container
    #[arg(long, value_name = "list", help_heading = "Isolation")]
    device: Vec<String>,
    /// Add a rule to the cgroup allowed devices list
    #[arg(long, value_name = "list", help_heading = "Isolation")]
    device_cgroup_rule: Vec<String>,
    /// GPU devices to add to the container ('all' to pass all GPUs)
    #[arg(long, value_name = "gpu-request", value_parser = gpus, help_heading = "Isolation")]
    gpus: Option<Value>,
    /// Container isolation technology
    #[arg(long, value_name = "string", help_heading = "Isolation")]
    isolation: Option<String>,
    /// Tune container memory swappiness (0 to 100)
    #[arg(
        long,
        value_name = "int",
        allow_negative_numbers = true,
        help_heading = "Resources"
    )]
    memory_swappiness: Option<i64>,
    /// Disable OOM Killer
    #[arg(long, help_heading = "Resources")]
    oom_kill_disable: bool,
    /// Limit CPU real-time period in microseconds
    #[arg(long, value_name = "int", help_heading = "Resources")]
    cpu_rt_period: Option<i64>,
    /// Limit CPU real-time runtime in microseconds
    #[arg(long, value_name = "int", help_heading = "Resources")]
    cpu_rt_runtime: Option<i64>,
    /// Block IO (relative weight), between 10 and 1000, or 0 to disable
    #[arg(long, value_name = "uint16", help_heading = "Resources")]
    blkio_weight: Option<u16>,
    /// Block IO weight (relative device weight)
    #[arg(long, value_name = "list", value_parser = weight, help_heading = "Resources")]
    blkio_weight_device: Vec<Value>,
    /// Limit read rate (bytes per second) from a device
    #[arg(long, value_name = "list", value_parser = bytes_rate, help_heading = "Resources")]
    device_read_bps: Vec<Value>,
    /// Limit write rate (bytes per second) to a device
    #[arg(long, value_name = "list", value_parser = bytes_rate, help_heading = "Resources")]
    device_write_bps: Vec<Value>,
    /// Limit read rate (IO per second) from a device
    #[arg(long, value_name = "list", value_parser = count_rate, help_heading = "Resources")]
    device_read_iops: Vec<Value>,
    /// Limit write rate (IO per second) to a device
    #[arg(long, value_name = "list", value_parser = count_rate, help_heading = "Resources")]
    device_write_iops: Vec<Value>,
    /// Kernel memory limit (without effect since Linux 5.4)
    #[arg(long, value_name = "bytes", value_parser = quantity::bytes, help_heading = "Resources")]
    kernel_memory: Option<i64>,
    /// CPU count (Windows only)
    #[arg(long, value_name = "int", help_heading = "Resources")]
    cpu_count: Option<i64>,
    /// CPU percent (Windows only)
    #[arg(long, value_name = "int", help_heading = "Resources")]
    cpu_percent: Option<i64>,
    /// Maximum IO bandwidth limit for the system drive (Windows only)
    #[arg(long, value_name = "bytes", value_parser = quantity::bytes, help_heading = "Resources")]
    io_maxbandwidth: Option<i64>,
    /// Maximum IOps limit for the system drive (Windows only)
    #[arg(long, value_name = "uint", help_heading = "Resources")]
    io_maxiops: Option<u64>,
    /// Skip image verification (there is none)
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", value_name = "bool")]
    disable_content_trust: bool,
}

impl Rare {
    /// Puts them into a `HostConfig`.
    pub(super) fn apply(&self, host: &mut Value) -> Result<()> {
        if !self.disable_content_trust {
            bail!("content trust is not supported: images are verified by digest alone");
        }
        let (mut devices, mut named) = (Vec::new(), Vec::new());
        for text in &self.device {
            if is_named(text) {
                named.push(Value::from(text.as_str()));
            } else {
                devices.push(device(text));
            }
        }
        let mut requests: Vec<Value> = self.gpus.iter().cloned().collect();
        if !named.is_empty() {
            requests.push(json!({"Driver": "cdi", "DeviceIDs": named}));
        }
        put_list(host, "Devices", &devices);
        put_list(host, "DeviceRequests", &requests);
        put_list(host, "DeviceCgroupRules", &self.device_cgroup_rule);
        put_list(host, "Links", &self.link);
        put(host, "VolumeDriver", self.volume_driver.clone());
        if !self.storage_opt.is_empty() {
            host["StorageOpt"] = flags::object(&self.storage_opt);
        }
        put(host, "Isolation", self.isolation.clone());
        // -1 is docker's "not said".
        let swappiness = self.memory_swappiness.filter(|value| *value != -1);
        put(host, "MemorySwappiness", swappiness);
        put(
            host,
            "OomKillDisable",
            self.oom_kill_disable.then_some(true),
        );
        put(host, "CpuRealtimePeriod", self.cpu_rt_period);
        put(host, "CpuRealtimeRuntime", self.cpu_rt_runtime);
        put(host, "BlkioWeight", self.blkio_weight);
        put_list(host, "BlkioWeightDevice", &self.blkio_weight_device);
        put_list(host, "BlkioDeviceReadBps", &self.device_read_bps);
        put_list(host, "BlkioDeviceWriteBps", &self.device_write_bps);
        put_list(host, "BlkioDeviceReadIOps", &self.device_read_iops);
        put_list(host, "BlkioDeviceWriteIOps", &self.device_write_iops);
        put(host, "KernelMemory", self.kernel_memory);
        put(host, "CpuCount", self.cpu_count);
        put(host, "CpuPercent", self.cpu_percent);
        put(host, "IOMaximumBandwidth", self.io_maxbandwidth);
        put(host, "IOMaximumIOps", self.io_maxiops);
        Ok(())
    }
}

/// Whether this is a device by its name of the Container Device Interface: `vendor.com/class=name`.
fn is_named(text: &str) -> bool {
    let word = |text: &str, more: &[u8]| {
        text.bytes()
            .next()
            .is_some_and(|first| first.is_ascii_alphanumeric())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte))
    };
    text.split_once('=')
        .and_then(|(kind, name)| Some((kind.split_once('/')?, name)))
        .is_some_and(|((vendor, class), name)| {
            word(vendor, b"_-.") && word(class, b"_-") && word(name, b"_-.:")
        })
}

fn device(text: &str) -> Value {
    let mut parts = text.split(':');
    let host = parts.next().unwrap_or_default();
    let is_mode = |text: &str| !text.is_empty() && text.bytes().all(|b| b"rwm".contains(&b));
    let (inside, mode) = match (parts.next(), parts.next()) {
        (None, _) => (host, "rwm"),
        (Some(mode), None) if is_mode(mode) => (host, mode),
        (Some(inside), None) => (inside, "rwm"),
        (Some(inside), Some(mode)) => (inside, mode),
    };
    json!({"PathOnHost": host, "PathInContainer": inside, "CgroupPermissions": mode})
}

/// Reads `--gpus`: `all`, a number, or `device=…,driver=…,capabilities=…,count=…,options=…`.
fn gpus(text: &str) -> Result<Value> {
    let count = |text: &str| match text {
        "all" => Ok(-1),
        number => number.parse::<i64>().map_err(|_| {
            anyhow!("invalid count ({number}): value must be either \"all\" or an integer")
        }),
    };
    let mut request = Map::new();
    let mut capabilities = vec![Value::from("gpu")];
    for (key, value) in flags::fields(text)? {
        match (key.as_str(), value) {
            ("driver", Some(driver)) => drop(request.insert("Driver".to_owned(), driver.into())),
            ("count", Some(number)) => {
                drop(request.insert("Count".to_owned(), count(&number)?.into()));
            }
            (number, None) => drop(request.insert("Count".to_owned(), count(number)?.into())),
            ("device", Some(ids)) => {
                let ids: Vec<Value> = ids.split(',').map(Into::into).collect();
                request.insert("DeviceIDs".to_owned(), ids.into());
            }
            ("capabilities", Some(more)) => {
                capabilities.extend(
                    more.split(',')
                        .filter(|name| *name != "gpu")
                        .map(Into::into),
                );
            }
            ("options", Some(options)) => {
                let options: Vec<String> = options.split(',').map(str::to_owned).collect();
                request.insert("Options".to_owned(), flags::object(&options));
            }
            (other, _) => bail!("unexpected key '{other}' in '{text}'"),
        }
    }
    if request.contains_key("Count") && request.contains_key("DeviceIDs") {
        bail!("cannot set both Count and DeviceIDs on device request");
    }
    if !request.contains_key("Count") && !request.contains_key("DeviceIDs") {
        request.insert("Count".to_owned(), 1.into());
    }
    request.insert("Capabilities".to_owned(), json!([capabilities]));
    Ok(request.into())
}

/// Splits `/dev/sda:10mb`.
fn of_device(text: &str) -> Result<(&str, &str)> {
    text.split_once(':')
        .filter(|(path, _)| path.starts_with("/dev/"))
        .ok_or_else(|| anyhow!("bad format: {text}; expected /dev/NAME:VALUE"))
}

fn weight(text: &str) -> Result<Value> {
    let (path, weight) = of_device(text)?;
    match weight.parse::<u16>() {
        Ok(weight @ (0 | 10..=1000)) => Ok(json!({"Path": path, "Weight": weight})),
        _ => bail!("invalid weight for device: {text}"),
    }
}

fn bytes_rate(text: &str) -> Result<Value> {
    let (path, rate) = of_device(text)?;
    let rate = quantity::bytes(rate).map_err(|_| {
        anyhow!(
            "invalid rate for device: {text}. The correct format is <device-path>:<number>[<unit>]. Number must be a \
             positive integer. Unit is optional and can be kb, mb, or gb"
        )
    })?;
    Ok(json!({"Path": path, "Rate": rate}))
}

fn count_rate(text: &str) -> Result<Value> {
    let (path, rate) = of_device(text)?;
    let rate: u64 = rate.parse().map_err(|_| {
        anyhow!(
            "invalid rate for device: {text}. The correct format is <device-path>:<number>. Number must be a positive \
             integer"
        )
    })?;
    Ok(json!({"Path": path, "Rate": rate}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names_or_paths() {
        assert!(is_named("vendor.com/class=name") && is_named("nvidia.com/gpu=0:1"));
        for path in [
            "/dev/fuse",
            "/dev/a=b",
            "/dev/fuse:/dev/x:rw",
            "vendor/class",
            "v/c=",
        ] {
            assert!(!is_named(path), "{path}");
        }
    }

    #[test]
    fn gpus_are_counted_or_named() {
        let read = |text: &str| gpus(text).map(|value| value.to_string());
        assert_eq!(
            read("all").unwrap(),
            r#"{"Capabilities":[["gpu"]],"Count":-1}"#
        );
        assert_eq!(
            read("\"device=0,1\",capabilities=compute").unwrap(),
            r#"{"Capabilities":[["gpu","compute"]],"DeviceIDs":["0","1"]}"#
        );
        assert_eq!(
            read("driver=cdi,count=2").unwrap(),
            r#"{"Capabilities":[["gpu"]],"Count":2,"Driver":"cdi"}"#
        );
        assert!(read("x").is_err() && read("count=1,device=0").is_err() && read("a=b").is_err());
    }

    #[test]
    fn rates_belong_to_devices() {
        assert_eq!(bytes_rate("/dev/sda:1mb").unwrap()["Rate"], 1 << 20);
        assert_eq!(count_rate("/dev/sda:100").unwrap()["Rate"], 100);
        assert_eq!(weight("/dev/sda:200").unwrap()["Weight"], 200);
        assert!(bytes_rate("sda:1").is_err() && count_rate("/dev/sda:1k").is_err());
        assert!(weight("/dev/sda:5").is_err());
    }
}
