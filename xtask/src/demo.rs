//! The main job before a newcomer's eyes: three hosts, one stack, from image to routing mesh.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use shoal_tests::{lab::get, wait};

use crate::{packages, shell};

const LAB: &str = "demo";
const PORT: u16 = 8080;

/// Runs the demo; `keep` leaves the cluster up.
pub(crate) fn run(keep: bool) -> Result<()> {
    shell::need_root("the demo")?;
    packages::ensure(&[packages::BUILD, packages::RUN])?;
    println!("building shoal");
    let mut demo = Demo {
        shoal: shell::build_shoal("dev")?,
        began: Instant::now(),
        hosts: Vec::new(),
    };
    // A demo that was interrupted, or kept.
    if demo
        .shoal(&["lab", "ls", "-q"])?
        .lines()
        .any(|name| name == LAB)
    {
        demo.shoal(&["lab", "down", "--name", LAB])?;
    }
    let shown = demo.show();
    if shown.is_ok() && keep {
        println!(
            "\nThe cluster is up. Try, for instance:\n  \
             {0} lab exec --name {LAB} n1 -- shoal service ls\n  \
             curl http://{1}:{PORT}\n  \
             {0} lab down --name {LAB}",
            demo.shoal.display(),
            demo.hosts[1].1,
        );
        return Ok(());
    }
    demo.say("taking the lab down");
    let down = demo.shoal(&["lab", "down", "--name", LAB]);
    shown?;
    down?;
    demo.say("done, nothing remains");
    Ok(())
}

struct Demo {
    shoal: PathBuf,
    began: Instant,
    /// Names and addresses.
    hosts: Vec<(String, String)>,
}

impl Demo {
    fn say(&self, text: &str) {
        println!("[{:5.1} s] {text}", self.began.elapsed().as_secs_f32());
    }

    fn shoal(&self, words: &[&str]) -> Result<String> {
        shell::read(path(&self.shoal), words)
    }

    /// Runs `shoal` on a host.
    fn on(&self, host: &str, words: &[&str]) -> Result<String> {
        let mut all = vec!["lab", "exec", "--name", LAB, host, "--", "shoal"];
        all.extend(words);
        self.shoal(&all)
    }

    fn show(&mut self) -> Result<()> {
        self.say("three hosts, each a daemon in namespaces of its own, on one bridge");
        let listed = self.shoal(&["lab", "up", "--name", LAB, "--nodes", "3"])?;
        let words = listed.lines().map(str::split_whitespace);
        self.hosts = words
            .filter_map(|mut words| Some((words.next()?.to_owned(), words.next()?.to_owned())))
            .collect();
        let manager = self.hosts.first().context("a lab without hosts")?.1.clone();

        self.say("n1: shoal swarm init");
        let printed = self.on("n1", &["swarm", "init", "--advertise-addr", &manager])?;
        let token = printed
            .split_whitespace()
            .find(|word| word.starts_with("SWMTKN-1-"));
        let token =
            token.with_context(|| format!("swarm init printed no join token:\n{printed}"))?;
        for (host, _) in &self.hosts[1..] {
            self.say(&format!(
                "{host}: shoal swarm join --token {}…",
                &token[..16.min(token.len())]
            ));
            self.on(
                host,
                &[
                    "swarm",
                    "join",
                    "--token",
                    token,
                    &format!("{}:2377", manager),
                ],
            )?;
        }
        println!("{}", self.on("n1", &["node", "ls"])?);

        self.say("shoal stack deploy -c deploy/examples/demo.yml demo");
        let file = shell::root().join("deploy/examples/demo.yml");
        self.on(
            "n1",
            &["stack", "deploy", "--detach", "-c", path(&file), "demo"],
        )?;
        self.wait_running(3)?;
        println!("{}", self.on("n1", &["service", "ls"])?);

        self.say(&format!(
            "asking port {PORT} of each host until every task has answered"
        ));
        self.ask_everywhere(3)?;

        self.say("shoal service scale demo_web=6");
        self.on("n1", &["service", "scale", "--detach", "demo_web=6"])?;
        self.wait_running(6)?;
        self.ask_everywhere(6)?;

        let (host, container) = self.a_container()?;
        self.say(&format!("{host}: shoal kill {container}"));
        let before = self.tasks()?;
        self.on(host, &["kill", &container])?;
        wait("the killed task's slot to be filled again", || {
            let now = self.tasks()?;
            Ok(if now.len() == 6 && now != before {
                Ok(())
            } else {
                Err(format!("{now:?}"))
            })
        })?;
        println!("{}", self.on("n1", &["service", "ps", "demo_web"])?);
        self.ask_everywhere(6)?;
        self.say("every slot is filled and every task answers, on every host");
        Ok(())
    }

    /// Ids of the web tasks that run.
    fn tasks(&self) -> Result<BTreeSet<String>> {
        let words = [
            "service",
            "ps",
            "--no-trunc",
            "--filter",
            "desired-state=running",
            "--format",
            "{{.ID}} {{.CurrentState}}",
            "demo_web",
        ];
        let printed = self.on("n1", &words)?;
        let running = printed
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter(|(_, state)| state.starts_with("Running"));
        Ok(running.map(|(id, _)| id.to_owned()).collect())
    }

    fn wait_running(&self, tasks: usize) -> Result<()> {
        wait(&format!("{tasks} running tasks"), || {
            if self.tasks()?.len() == tasks {
                return Ok(Ok(()));
            }
            Ok(Err(self.on(
                "n1",
                &["service", "ps", "--no-trunc", "demo_web", "demo_backend"],
            )?))
        })
    }

    /// Asks the published port of each host until all tasks have answered through it, backend included.
    fn ask_everywhere(&self, tasks: usize) -> Result<()> {
        for (host, addr) in &self.hosts {
            let mut seen = BTreeSet::new();
            let last = wait(
                &format!("{tasks} tasks to answer on {host} ({addr}:{PORT})"),
                || {
                    let body = get(addr, PORT, "/")?;
                    let task = body
                        .split_whitespace()
                        .find_map(|word| word.strip_prefix("task="));
                    if body.contains("backend=[task=backend.1") {
                        seen.extend(task.map(str::to_owned));
                    }
                    Ok(if seen.len() == tasks {
                        Ok(body)
                    } else {
                        Err(body)
                    })
                },
            )?;
            let seen = seen.into_iter().collect::<Vec<_>>().join(" ");
            println!("  {host}: {seen}, for instance: {}", last.trim());
        }
        Ok(())
    }

    /// A host that runs a web task, and the task's container.
    fn a_container(&self) -> Result<(&str, String)> {
        for (host, _) in &self.hosts {
            let filter = "label=com.docker.swarm.service.name=demo_web";
            let printed = self.on(host, &["ps", "-q", "--filter", filter])?;
            if let Some(id) = printed.lines().next() {
                return Ok((host, id.to_owned()));
            }
        }
        bail!("no host shows a container of demo_web")
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("paths of the checkout are UTF-8")
}
