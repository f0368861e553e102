//! Log drivers: what may be asked of each, and what they say of a container.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shoal_api::container::{ContainerSpec, LogConfig};

use super::config::parse_size;

/// A log driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    JsonFile,
    Local,
    Syslog,
    Journald,
    None,
}

impl Driver {
    /// All of them, for `docker info`.
    pub const NAMES: [&str; 5] = ["json-file", "local", "syslog", "journald", "none"];

    /// The driver that a configuration names; docker's default when it names none.
    pub fn of(log: &LogConfig) -> Result<Self, LogError> {
        match log.driver.as_deref().unwrap_or_default() {
            "" | "json-file" => Ok(Self::JsonFile),
            "local" => Ok(Self::Local),
            "syslog" => Ok(Self::Syslog),
            "journald" => Ok(Self::Journald),
            "none" => Ok(Self::None),
            other => Err(LogError::Driver(other.to_owned())),
        }
    }

    fn name(self) -> &'static str {
        Self::NAMES[match self {
            Self::JsonFile => 0,
            Self::Local => 1,
            Self::Syslog => 2,
            Self::Journald => 3,
            Self::None => 4,
        }]
    }

    /// Options besides those of every driver.
    fn options(self) -> &'static [&'static str] {
        match self {
            Self::JsonFile => &[
                "max-size",
                "max-file",
                "compress",
                "labels",
                "labels-regex",
                "env",
                "env-regex",
                "tag",
            ],
            Self::Local => &["max-size", "max-file", "compress"],
            Self::Syslog => &[
                "syslog-address",
                "syslog-facility",
                "syslog-format",
                "tag",
                "labels",
                "labels-regex",
                "env",
                "env-regex",
                "cache-disabled",
                "cache-max-size",
                "cache-max-file",
                "cache-compress",
            ],
            Self::Journald => &[
                "tag",
                "labels",
                "labels-regex",
                "env",
                "env-regex",
                "cache-disabled",
                "cache-max-size",
                "cache-max-file",
                "cache-compress",
            ],
            Self::None => &[],
        }
    }
}

/// Docker's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    #[error("logger: no log driver named '{0}' is registered")]
    Driver(String),
    #[error("unknown log opt '{option}' for {driver} log driver")]
    Option {
        option: String,
        driver: &'static str,
    },
    #[error("logger: logging mode not supported: {0}")]
    Mode(String),
    #[error("logger: max-buffer-size option is only supported with 'mode=non-blocking'")]
    BufferWithoutMode,
    #[error("invalid value for log opt '{option}': {value}")]
    Value { option: String, value: String },
    #[error("compress cannot be true when max-file is less than 2 or max-size is not set")]
    CompressAlone,
    #[error("syslog-address should be in form proto://address, got {0}")]
    Address(String),
    #[error("{0:?} of log opt '{1}' is not supported: name them one by one")]
    Pattern(String, &'static str),
}

/// How output is kept in files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileLimits {
    /// Bytes of one file; absent lets it grow.
    pub max_size: Option<u64>,
    /// Files kept, the current one included.
    pub max_files: u32,
    /// Files that are no longer written are compressed.
    pub compress: bool,
}

/// Where else output goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyslogTarget {
    pub transport: Transport,
    /// 0 to 23, shifted into a message's priority by the sender.
    pub facility: u8,
    pub format: SyslogFormat,
}

/// How a syslog service is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transport {
    Udp(String),
    Tcp(String),
    /// Stream socket.
    Unix(String),
    /// Datagram socket.
    Unixgram(String),
}

/// The form of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyslogFormat {
    /// What syslog daemons of this host expect on their socket.
    Local,
    Rfc3164,
    Rfc5424,
    /// The same with microseconds.
    Rfc5424Micro,
}

/// Checks all options of a driver.
pub fn check(log: &LogConfig) -> Result<(), LogError> {
    let driver = Driver::of(log)?;
    let text = |name: &str| log.options.get(name).map(String::as_str);
    for (option, value) in &log.options {
        let wrong = || LogError::Value {
            option: option.clone(),
            value: value.clone(),
        };
        let common = matches!(option.as_str(), "mode" | "max-buffer-size");
        if !common && !driver.options().contains(&option.as_str()) {
            return Err(LogError::Option {
                option: option.clone(),
                driver: driver.name(),
            });
        }
        match option.as_str() {
            "mode" if !matches!(value.as_str(), "" | "blocking" | "non-blocking") => {
                return Err(LogError::Mode(value.clone()));
            }
            "max-buffer-size" if text("mode") != Some("non-blocking") => {
                return Err(LogError::BufferWithoutMode);
            }
            "max-size" | "cache-max-size" | "max-buffer-size" => {
                // Docker's "no limit".
                if value != "-1" {
                    parse_size(value)
                        .filter(|size| *size > 0)
                        .ok_or_else(wrong)?;
                }
            }
            "max-file" | "cache-max-file" => {
                let files: u32 = value.parse().map_err(|_| wrong())?;
                if files == 0 {
                    return Err(wrong());
                }
            }
            "compress" | "cache-compress" | "cache-disabled" => {
                value.parse::<bool>().map_err(|_| wrong())?;
            }
            "labels-regex" if !value.is_empty() => {
                return Err(LogError::Pattern(value.clone(), "labels-regex"));
            }
            "env-regex" if !value.is_empty() => {
                return Err(LogError::Pattern(value.clone(), "env-regex"));
            }
            _ => {}
        }
    }
    if driver == Driver::JsonFile && text("compress") == Some("true") {
        let several = text("max-file").is_some_and(|files| files != "1");
        if !several || text("max-size").is_none() {
            return Err(LogError::CompressAlone);
        }
    }
    if driver == Driver::Syslog {
        syslog(log)?;
    }
    Ok(())
}

/// How a driver keeps output in files of its own; `None` when it keeps none. What goes elsewhere is kept too, so that
/// it can be read here ("dual logging" in docker).
pub fn files(log: &LogConfig) -> Option<FileLimits> {
    let driver = Driver::of(log).ok()?;
    let text = |name: &str| log.options.get(name).map(String::as_str);
    let of = |prefix: &str, size: Option<u64>, files: u32, compress: bool| {
        let text = |name: &str| text(&format!("{prefix}{name}"));
        FileLimits {
            max_size: match text("max-size") {
                Some("-1") => None,
                Some(size) => parse_size(size),
                None => size,
            },
            max_files: text("max-file")
                .and_then(|n| n.parse().ok())
                .unwrap_or(files),
            compress: text("compress")
                .and_then(|b| b.parse().ok())
                .unwrap_or(compress),
        }
    };
    // Docker's defaults of the driver `local`, which its cache is made of.
    const SIZE: u64 = 20 << 20;
    match driver {
        Driver::JsonFile => Some(of("", None, 1, false)),
        Driver::Local => Some(of("", Some(SIZE), 5, true)),
        Driver::Syslog | Driver::Journald => {
            let cached = text("cache-disabled") != Some("true");
            cached.then(|| of("cache-", Some(SIZE), 5, true))
        }
        Driver::None => None,
    }
}

/// Reads the options of the syslog driver.
pub fn syslog(log: &LogConfig) -> Result<SyslogTarget, LogError> {
    let text = |name: &str| {
        let value = log.options.get(name).map(String::as_str);
        value.filter(|value| !value.is_empty())
    };
    let wrong = |option: &str, value: &str| LogError::Value {
        option: option.to_owned(),
        value: value.to_owned(),
    };
    let transport = match text("syslog-address") {
        None => Transport::Unixgram("/dev/log".into()),
        Some(address) => {
            let form = || LogError::Address(address.to_owned());
            let (scheme, place) = address.split_once("://").ok_or_else(form)?;
            if place.is_empty() {
                return Err(form());
            }
            let has_port = place
                .rsplit_once(':')
                .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
            let with_port = if has_port {
                place.to_owned()
            } else {
                format!("{place}:514")
            };
            match scheme {
                "udp" => Transport::Udp(with_port),
                "tcp" => Transport::Tcp(with_port),
                "unix" => Transport::Unix(place.to_owned()),
                "unixgram" => Transport::Unixgram(place.to_owned()),
                _ => return Err(wrong("syslog-address", address)),
            }
        }
    };
    let facility = match text("syslog-facility") {
        // `daemon`, as docker.
        None => 3,
        Some(name) => match FACILITIES.iter().position(|known| *known == name) {
            Some(number) => u8::try_from(number).expect("two dozen"),
            None => name
                .parse()
                .ok()
                .filter(|number| *number <= 23)
                .ok_or_else(|| wrong("syslog-facility", name))?,
        },
    };
    let format = match text("syslog-format") {
        None => match transport {
            Transport::Unix(_) | Transport::Unixgram(_) => SyslogFormat::Local,
            Transport::Udp(_) | Transport::Tcp(_) => SyslogFormat::Rfc3164,
        },
        Some("rfc3164") => SyslogFormat::Rfc3164,
        Some("rfc5424") => SyslogFormat::Rfc5424,
        Some("rfc5424micro") => SyslogFormat::Rfc5424Micro,
        Some(other) => return Err(wrong("syslog-format", other)),
    };
    Ok(SyslogTarget {
        transport,
        facility,
        format,
    })
}

const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv",
    "ftp", "ntp", "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4",
    "local5", "local6", "local7",
];

/// A container, as far as logs tell of it.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    pub id: &'a str,
    pub name: &'a str,
    pub image_id: &'a str,
    pub spec: &'a ContainerSpec,
}

impl Subject<'_> {
    /// What is said of every line: chosen labels and variables, and the tag if one was asked for.
    pub fn attributes(&self) -> BTreeMap<String, String> {
        let options = &self.spec.host.log.options;
        let list = |name: &str| {
            let text = options.get(name).map(String::as_str).unwrap_or_default();
            text.split(',')
                .map(str::trim)
                .filter(|name| !name.is_empty())
        };
        let mut found = BTreeMap::new();
        for label in list("labels") {
            if let Some(value) = self.spec.labels.get(label) {
                found.insert(label.to_owned(), value.clone());
            }
        }
        for wanted in list("env") {
            let mut env = self
                .spec
                .env
                .iter()
                .filter_map(|entry| entry.split_once('='));
            if let Some((_, value)) = env.find(|(key, _)| *key == wanted) {
                found.insert(wanted.to_owned(), value.to_owned());
            }
        }
        if options.get("tag").is_some_and(|tag| !tag.is_empty()) {
            found.insert("tag".to_owned(), self.tag());
        }
        found
    }

    /// The tag: a template of docker's, by default the short id.
    pub fn tag(&self) -> String {
        let template = self.spec.host.log.options.get("tag").map(String::as_str);
        let template = template.filter(|tag| !tag.is_empty()).unwrap_or("{{.ID}}");
        let short = |id: &str| id.get(..12).unwrap_or(id).to_owned();
        let image = self.image_id.trim_start_matches("sha256:");
        let values = [
            (".ImageFullID", self.image_id.to_owned()),
            (".ImageID", short(image)),
            (".ImageName", self.spec.image.clone()),
            (".FullID", self.id.to_owned()),
            (".ID", short(self.id)),
            (".Name", self.name.to_owned()),
            (".DaemonName", "shoal".to_owned()),
        ];
        let mut tag = template.to_owned();
        for (name, value) in values {
            tag = tag.replace(&format!("{{{{{name}}}}}"), &value);
            tag = tag.replace(&format!("{{{{ {name} }}}}"), &value);
        }
        tag
    }
}

/// Bytes of lines that may wait for the log, if the container is not to (docker's default is 1 MB).
pub fn buffer(log: &LogConfig) -> Option<u64> {
    const SIZE: u64 = 1 << 20;
    let text = |name: &str| log.options.get(name).map(String::as_str);
    let size = text("max-buffer-size").and_then(parse_size);
    (text("mode") == Some("non-blocking")).then(|| size.unwrap_or(SIZE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(driver: &str, options: &[(&str, &str)]) -> LogConfig {
        LogConfig {
            driver: Some(driver.to_owned()),
            options: options
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        }
    }

    fn refused(driver: &str, options: &[(&str, &str)]) -> String {
        check(&log(driver, options))
            .expect_err("it is wrong")
            .to_string()
    }

    #[test]
    fn options_are_checked_in_dockers_words() {
        assert_eq!(
            refused("odd", &[]),
            "logger: no log driver named 'odd' is registered"
        );
        assert_eq!(
            refused("json-file", &[("odd", "1")]),
            "unknown log opt 'odd' for json-file log driver"
        );
        assert_eq!(
            refused("local", &[("max-buffer-size", "1m")]),
            "logger: max-buffer-size option is only supported with 'mode=non-blocking'"
        );
        assert_eq!(
            refused("local", &[("mode", "odd")]),
            "logger: logging mode not supported: odd"
        );
        assert_eq!(
            refused("json-file", &[("compress", "true")]),
            "compress cannot be true when max-file is less than 2 or max-size is not set"
        );
        assert_eq!(
            refused("syslog", &[("syslog-address", "odd")]),
            "syslog-address should be in form proto://address, got odd"
        );
        let good = [
            ("mode", "non-blocking"),
            ("max-buffer-size", "4m"),
            ("max-size", "1m"),
        ];
        assert_eq!(check(&log("local", &good)), Ok(()));
    }

    #[test]
    fn syslog_has_dockers_defaults() {
        let target = syslog(&log("syslog", &[])).expect("defaults");
        assert_eq!(target.transport, Transport::Unixgram("/dev/log".into()));
        assert_eq!((target.facility, target.format), (3, SyslogFormat::Local));
        let options = [
            ("syslog-address", "udp://10.0.0.1"),
            ("syslog-facility", "local7"),
        ];
        let target = syslog(&log("syslog", &options)).expect("an address");
        assert_eq!(target.transport, Transport::Udp("10.0.0.1:514".into()));
        assert_eq!(
            (target.facility, target.format),
            (23, SyslogFormat::Rfc3164)
        );
    }

    #[test]
    fn tags_and_attributes_tell_of_the_container() {
        let mut spec = ContainerSpec {
            image: "box".into(),
            env: vec!["A=b".into(), "C=d".into()],
            labels: [("l".to_owned(), "m".to_owned())].into(),
            ..ContainerSpec::default()
        };
        spec.host.log = log(
            "json-file",
            &[
                ("tag", "{{.Name}}/{{.ID}}/{{.ImageName}}"),
                ("env", "A"),
                ("labels", "l,x"),
            ],
        );
        let subject = Subject {
            id: &"ab".repeat(32),
            name: "web",
            image_id: "sha256:cd",
            spec: &spec,
        };
        assert_eq!(subject.tag(), "web/abababababab/box");
        let told: Vec<_> = subject.attributes().into_iter().collect();
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(
            told,
            [
                pair("A", "b"),
                pair("l", "m"),
                pair("tag", "web/abababababab/box")
            ]
        );
    }
}
