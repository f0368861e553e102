//! One lab per test, taken down at its end, also when the test fails.

use std::{
    env, fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::{Condvar, Mutex, Once, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};

use crate::wait;

/// Labs that are up at a time. A test mostly waits for something to happen, so that two cores carry two; more would only
/// make each other slow.
const AT_ONCE: u8 = 2;

/// The places that nobody has.
static FREE: (Mutex<Vec<u8>>, Condvar) = (Mutex::new(Vec::new()), Condvar::new());
static FILL: Once = Once::new();

/// Where a lab may be: its name and its underlay, for one test at a time.
pub struct Place {
    number: u8,
    name: String,
    /// The first three numbers of the underlay.
    net: String,
}

impl Place {
    /// Waits until there is one.
    pub fn take() -> Self {
        let (free, is_free) = &FREE;
        FILL.call_once(|| {
            free.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend(0..AT_ONCE)
        });
        let mut places = free.lock().unwrap_or_else(PoisonError::into_inner);
        let number = loop {
            match places.pop() {
                Some(number) => break number,
                None => {
                    places = is_free.wait(places).unwrap_or_else(PoisonError::into_inner);
                }
            }
        };
        // `SHOAL_TEST_LAB` and `SHOAL_TEST_NET` let several runs share a machine.
        let name = env::var("SHOAL_TEST_LAB").unwrap_or_else(|_| "test".to_owned());
        // Of a range for benchmarks (RFC 2544), other than those that labs take by themselves.
        let net = env::var("SHOAL_TEST_NET").unwrap_or_else(|_| "198.18.1".to_owned());
        let (range, third) = net.rsplit_once('.').expect("three numbers");
        let third: u8 = third.parse().expect("a number");
        Self {
            number,
            name: format!("{name}{number}"),
            net: format!("{range}.{}", third + 100 * number),
        }
    }

    /// The machine's own address on the underlay.
    pub fn machine(&self) -> String {
        format!("{}.1", self.net)
    }

    /// Address of a host: n1 is .11.
    pub fn addr(&self, host: &str) -> String {
        let number: u8 = host[1..].parse().expect("hosts are n1, n2, …");
        format!("{}.{}", self.net, 10 + number)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let (free, is_free) = &FREE;
        free.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(self.number);
        is_free.notify_one();
    }
}

/// A lab that is up.
pub struct TestLab {
    program: PathBuf,
    place: Place,
}

/// The program under test, from `SHOAL_BIN`, which `cargo xtask test` sets.
pub fn program() -> PathBuf {
    let said = env::var_os("SHOAL_BIN").map(PathBuf::from);
    said.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/debug/shoal"))
}

/// Output of a program as text, or its complaint as an error.
pub fn text(output: &Output) -> Result<String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let code = output.status.code().unwrap_or(-1);
    Err(anyhow!("{} (exit code {code})", said.trim()))
}

impl TestLab {
    /// A lab of so many hosts, the first `managers` of them managers of one cluster.
    pub fn up(nodes: usize, managers: usize) -> Result<Self> {
        Self::up_with(nodes, managers, &[])
    }

    /// The same with further words for `lab up`.
    pub fn up_with(nodes: usize, managers: usize, more: &[&str]) -> Result<Self> {
        Self::up_in(Place::take(), program(), (nodes, managers), more)
    }

    /// A lab of this program, in this place, of so many hosts and managers.
    pub fn up_in(
        place: Place,
        program: PathBuf,
        (nodes, managers): (usize, usize),
        more: &[&str],
    ) -> Result<Self> {
        let lab = Self { program, place };
        // An earlier run may have been ended by force.
        if lab
            .shoal(&["lab", "ls", "-q"])?
            .lines()
            .any(|name| name == lab.name())
        {
            lab.shoal(&["lab", "down", "--name", lab.name()])?;
        }
        let (nodes, managers) = (nodes.to_string(), managers.to_string());
        let subnet = format!("{}.0/24", lab.place.net);
        let mut words = vec!["lab", "up", "--name", lab.name(), "--subnet", &subnet];
        words.extend(["--nodes", nodes.as_str(), "--managers", managers.as_str()]);
        words.extend(more);
        lab.shoal(&words)?;
        Ok(lab)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.place.name
    }

    /// The machine's own address on its underlay.
    pub fn machine(&self) -> String {
        self.place.machine()
    }

    /// Runs `shoal` on the machine.
    pub fn shoal(&self, words: &[&str]) -> Result<String> {
        let output = Command::new(&self.program)
            .args(words)
            .stdin(Stdio::null())
            .output()?;
        text(&output).with_context(|| format!("shoal {}", words.join(" ")))
    }

    /// A verb of `shoal lab` for this lab.
    pub fn lab(&self, verb: &str, words: &[&str]) -> Result<String> {
        let mut all = vec!["lab", verb, "--name", self.name()];
        all.extend(words);
        self.shoal(&all)
    }

    /// Runs a program on a host and returns how it ended.
    pub fn output(&self, host: &str, words: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.program);
        command
            .args(["lab", "exec", "--name", self.name(), host, "--"])
            .args(words);
        Ok(command.stdin(Stdio::null()).output()?)
    }

    /// Runs `shoal` on a host; its complaint is the error.
    pub fn on(&self, host: &str, words: &[&str]) -> Result<String> {
        let mut all = vec!["shoal"];
        all.extend(words);
        text(&self.output(host, &all)?)
            .with_context(|| format!("{host}: shoal {}", words.join(" ")))
    }

    /// Exit code and complaint of a `shoal` on a host that must fail.
    pub fn refused(&self, host: &str, words: &[&str]) -> Result<(i32, String)> {
        let mut all = vec!["shoal"];
        all.extend(words);
        let output = self.output(host, &all)?;
        if output.status.success() {
            bail!("{host}: shoal {} was not refused", words.join(" "));
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Ok((output.status.code().unwrap_or(-1), said))
    }

    /// `DOCKER_HOST` of a host, for docker's own client on the machine.
    pub fn docker_host(&self, host: &str) -> String {
        format!(
            "unix:///var/lib/shoal-lab/{}/{host}/run/shoal.sock",
            self.name()
        )
    }

    /// Folder of a host's files on the machine: `run` is /run/shoal there, `lib` is /var/lib/shoal.
    pub fn folder(&self, host: &str) -> PathBuf {
        PathBuf::from(format!("/var/lib/shoal-lab/{}/{host}", self.name()))
    }

    /// Address of a host: n1 is .11.
    pub fn addr(&self, host: &str) -> String {
        self.place.addr(host)
    }

    /// Waits until a service has so many tasks that run, and returns their ids with their hosts.
    pub fn wait_running(&self, service: &str, tasks: usize) -> Result<Vec<(String, String)>> {
        wait(&format!("{tasks} running tasks of {service}"), || {
            let format = "{{.ID}} {{.Node}} {{.CurrentState}}";
            let filter = "desired-state=running";
            let listed = self.on(
                "n1",
                &[
                    "service",
                    "ps",
                    "--no-trunc",
                    "--filter",
                    filter,
                    "--format",
                    format,
                    service,
                ],
            )?;
            let running: Vec<_> = listed
                .lines()
                .filter_map(|line| {
                    let mut words = line.split(' ');
                    let (id, node, state) = (words.next()?, words.next()?, words.next()?);
                    (state == "Running").then(|| (id.to_owned(), node.to_owned()))
                })
                .collect();
            if running.len() == tasks && listed.lines().count() == tasks {
                return Ok(Ok(running));
            }
            Ok(Err(
                self.on("n1", &["service", "ps", "--no-trunc", service])?
            ))
        })
    }
}

impl Drop for TestLab {
    fn drop(&mut self) {
        if std::thread::panicking() || env::var_os("SHOAL_TEST_LOGS").is_some() {
            for host in 1..=5 {
                let log = format!("/var/lib/shoal-lab/{}/n{host}/daemon.log", self.name());
                if let Ok(text) = fs::read_to_string(&log) {
                    let lines: Vec<_> = text.lines().collect();
                    let tail = lines[lines.len().saturating_sub(40)..].join("\n");
                    let _ = writeln!(std::io::stderr(), "--- n{host}\n{tail}");
                }
            }
        }
        let down = self.lab("down", &[]);
        if !std::thread::panicking() {
            down.expect("a lab that can be taken down");
        }
    }
}

/// Body of the answer to `GET path` at an address.
pub fn get(addr: &str, port: u16, path: &str) -> Result<String> {
    let to = SocketAddr::new(addr.parse()?, port);
    let mut connection = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
    connection.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(connection, "GET {path} HTTP/1.0\r\nHost: {addr}\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("an answer without a body")?;
    if !head.contains(" 200 ") {
        bail!("{}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
}
