//! The stories of `tests/scenarios`, acted out by real daemons. `crates/sim` acts out the same ones on virtual time.

use std::{cmp::Reverse, collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, anyhow, bail};
use shoal_sim::script::{Step, Who, parse};
use shoal_tests::{lab::TestLab, wait};

/// A lab in which stories are told.
struct Stage {
    lab: TestLab,
    hosts: usize,
    managers: usize,
    /// Hosts that were killed or whose daemons were, and not started since.
    down: Vec<usize>,
}

fn name(host: usize) -> String {
    format!("n{}", host + 1)
}

/// What `service ps` says of a task that is meant to run.
struct Task {
    host: String,
    runs: bool,
}

impl Stage {
    fn up(hosts: usize, managers: usize) -> Result<Self> {
        let lab = TestLab::up(hosts, managers)?;
        let down = Vec::new();
        Ok(Self {
            lab,
            hosts,
            managers,
            down,
        })
    }

    /// Asks managers that run, one after the other, until one answers.
    fn ask(&self, words: &[&str]) -> Result<String> {
        let mut last = anyhow!("no host runs");
        for host in (0..self.hosts).filter(|host| !self.down.contains(host)) {
            match self.lab.on(&name(host), words) {
                Ok(answer) => return Ok(answer),
                Err(problem) => last = problem,
            }
        }
        Err(last)
    }

    /// Asks for a change until somebody has made it.
    fn change(&self, words: &[&str]) -> Result<()> {
        wait(&words.join(" "), || {
            Ok(self.ask(words).map(drop).map_err(|why| format!("{why:#}")))
        })
    }

    /// Hosts with the part that they play among the managers, as the managers see it.
    fn nodes(&self) -> Result<Vec<(String, String)>> {
        let listed = self.ask(&[
            "node",
            "ls",
            "--format",
            "{{.Hostname}} {{.Status}} {{.ManagerStatus}}",
        ])?;
        let parts = listed.lines().map(|line| {
            let mut words = line.split_whitespace();
            let host = words.next().unwrap_or_default().to_owned();
            (host, words.skip(1).collect::<Vec<_>>().join(" "))
        });
        Ok(parts.collect())
    }

    fn leader(&self) -> Result<usize> {
        let host = wait("a leader", || {
            let nodes = self.nodes()?;
            let leader = nodes.iter().find(|(_, part)| part == "Leader");
            Ok(leader
                .map(|(host, _)| host.clone())
                .ok_or(format!("{nodes:?}")))
        })?;
        let number: usize = host[1..].parse().context("hosts are n1, n2, …")?;
        Ok(number - 1)
    }

    fn host(&self, who: Who) -> Result<usize> {
        match who {
            Who::Host(host) => Ok(host),
            Who::Leader => self.leader(),
        }
    }

    fn tasks(&self, service: &str) -> Result<Vec<Task>> {
        let listed = self.ask(&[
            "service",
            "ps",
            "--filter",
            "desired-state=running",
            "--format",
            "{{.Node}} {{.CurrentState}}",
            service,
        ])?;
        let tasks = listed.lines().map(|line| {
            let (host, state) = line.split_once(' ').unwrap_or_default();
            Task {
                host: host.to_owned(),
                runs: state.starts_with("Running"),
            }
        });
        Ok(tasks.collect())
    }

    fn act(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Hosts(..) => bail!("`hosts` comes once"),
            Step::Create(service, count) => {
                let count = count.to_string();
                let words = ["service", "create", "--detach", "--name", service];
                let more = ["--replicas", &count, "shoal-demo:latest", "idle"];
                self.change(&[&words[..], &more[..]].concat())
            }
            Step::Scale(service, count) => {
                let wish = format!("{service}={count}");
                self.change(&["service", "scale", "--detach", &wish])
            }
            Step::Update(service) => {
                self.change(&["service", "update", "--detach", "--force", service])
            }
            Step::Remove(service) => self.change(&["service", "rm", service]),
            Step::Drain(host) => {
                self.change(&["node", "update", "--availability", "drain", &name(*host)])
            }
            Step::Activate(host) => {
                self.change(&["node", "update", "--availability", "active", &name(*host)])
            }
            Step::Promote(host) => self.change(&["node", "promote", &name(*host)]),
            Step::Demote(who) => {
                let host = name(self.host(*who)?);
                self.change(&["node", "demote", &host])
            }
            Step::Kill(who) => {
                let host = self.host(*who)?;
                self.down.push(host);
                self.lab.lab("kill", &[&name(host)]).map(drop)
            }
            Step::Crash(who) => {
                let host = self.host(*who)?;
                self.down.push(host);
                self.lab.lab("kill", &["--daemon", &name(host)]).map(drop)
            }
            Step::Start(host) => {
                for down in std::mem::take(&mut self.down) {
                    if host.is_none_or(|host| host == down) {
                        self.lab.lab("start", &[&name(down)])?;
                    } else {
                        self.down.push(down);
                    }
                }
                Ok(())
            }
            Step::Cut(a, b) => self.lab.lab("cut", &[&name(*a), &name(*b)]).map(drop),
            Step::Isolate(who) => {
                let host = self.host(*who)?;
                for other in (0..self.hosts).filter(|other| *other != host) {
                    self.lab.lab("cut", &[&name(host), &name(other)])?;
                }
                Ok(())
            }
            Step::Heal => self.lab.lab("heal", &[]).map(drop),
            Step::Running(service, count, not_on) => {
                let elsewhere = not_on.map(name);
                wait(&format!("{step:?}"), || {
                    let tasks = self.tasks(service)?;
                    let is_so = tasks.len() as u64 == *count
                        && tasks.iter().all(|task| task.runs)
                        && !tasks
                            .iter()
                            .any(|task| elsewhere.as_ref() == Some(&task.host));
                    Ok(if is_so {
                        Ok(())
                    } else {
                        Err(self.ask(&["service", "ps", service])?)
                    })
                })
            }
            Step::Gone(service) => wait(&format!("{step:?}"), || {
                let listed = self.ask(&["service", "ls", "--format", "{{.Name}}"])?;
                Ok(if listed.lines().any(|name| name == service) {
                    Err(listed)
                } else {
                    Ok(())
                })
            }),
            Step::Managers(count) => wait(&format!("{step:?}"), || {
                let nodes = self.nodes()?;
                let answer =
                    |(_, part): &&(String, String)| part == "Leader" || part == "Reachable";
                let all = nodes.iter().filter(|(_, part)| !part.is_empty()).count();
                Ok(
                    if nodes.iter().filter(answer).count() == *count && all == *count {
                        Ok(())
                    } else {
                        Err(format!("{nodes:?}"))
                    },
                )
            }),
            Step::Leaderless => wait(&format!("{step:?}"), || {
                Ok(match self.ask(&["node", "ls"]) {
                    Err(why) if format!("{why:#}").contains("does not have a leader") => Ok(()),
                    Err(why) => Err(format!("{why:#}")),
                    Ok(nodes) => Err(nodes),
                })
            }),
        }
    }

    /// Leaves so many of the managers managers, the first ones.
    fn reduce(&mut self, managers: usize) -> Result<()> {
        for host in managers..self.managers {
            self.act(&Step::Demote(Who::Host(host)))?;
        }
        self.managers = managers;
        self.act(&Step::Managers(managers))
    }

    /// Makes the stage as it was before the first story.
    fn clear(&mut self) -> Result<()> {
        self.act(&Step::Heal)?;
        self.act(&Step::Start(None))?;
        self.act(&Step::Managers(self.managers))?;
        let services = self.ask(&["service", "ls", "-q"])?;
        for service in services.lines() {
            self.act(&Step::Remove(service.to_owned()))?;
        }
        wait("nodes that are ready and idle", || {
            let listed = self.ask(&["node", "ls", "--format", "{{.Status}} {{.Availability}}"])?;
            let ready = listed.lines().filter(|line| *line == "Ready Active");
            Ok(if ready.count() == self.hosts {
                Ok(())
            } else {
                Err(listed)
            })
        })
    }
}

/// Stories with their titles.
type Stories = Vec<(String, Vec<Step>)>;

#[test]
fn the_stories_of_the_simulator_come_to_pass_on_real_hosts() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut stories: BTreeMap<usize, BTreeMap<Reverse<usize>, Stories>> = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let title = path.display().to_string();
        let steps =
            parse(&fs::read_to_string(&path)?).map_err(|line| anyhow!("{title}: {line}"))?;
        let Some(Step::Hosts(hosts, managers)) = steps.first() else {
            bail!("{title} begins with `hosts`");
        };
        let of_this_size = stories.entry(*hosts).or_default();
        let of_this_shape = of_this_size.entry(Reverse(*managers)).or_default();
        of_this_shape.push((title, steps[1..].to_vec()));
    }
    let told = stories.values().flat_map(BTreeMap::values).flatten();
    assert!(told.count() >= 10);
    // A lab takes longer to make than most stories to tell: those of one size share it, with ever fewer managers.
    for (hosts, shapes) in stories {
        let most = shapes.keys().next().map_or(hosts, |Reverse(most)| *most);
        let mut stage = Stage::up(hosts, most)?;
        let shapes = shapes
            .into_iter()
            .flat_map(|(Reverse(managers), mut stories)| {
                stories.sort_by(|a, b| a.0.cmp(&b.0));
                stories.into_iter().map(move |story| (managers, story))
            });
        for (managers, (title, steps)) in shapes {
            stage
                .reduce(managers)
                .with_context(|| format!("before {title}"))?;
            for (number, step) in steps.iter().enumerate() {
                let place = || format!("{title}, step {}: {step:?}", number + 1);
                stage.act(step).with_context(place)?;
            }
            stage.clear().with_context(|| format!("after {title}"))?;
        }
    }
    Ok(())
}
