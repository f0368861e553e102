//! What a stage has made so far, and what an instruction changes of it.

use std::time::Duration;

use shoal_api::{container::HealthCheck, image::ImageConfig};

use super::{
    BuildArgs, Command, CopySpec, Instruction, SubstitutionError, destination, substitute,
    substitute_words,
};
use crate::core::signals;

/// The shell of the shell form, unless `SHELL` says otherwise.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];
/// The search path that docker gives to images built from scratch.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A stage under way.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BuildState {
    pub config: ImageConfig,
    pub author: String,
    /// A `CMD` in this stage outlives a later `ENTRYPOINT`; one of the base image does not.
    cmd_set: bool,
}

/// What has to happen to the files of the image.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Nothing; the text is for the image's history.
    Config(String),
    /// Run this, with these arguments in the environment.
    Run {
        words: Vec<String>,
        env: Vec<String>,
        /// As the history has it, which is what the cache compares.
        created_by: String,
    },
    /// Copy, with all variables replaced.
    Copy(CopySpec),
    /// Make this directory.
    Workdir { path: String, created_by: String },
}

impl BuildState {
    /// A stage on an image's configuration, whose triggers are taken out.
    pub fn on(config: ImageConfig, author: String) -> (Self, Vec<String>) {
        let mut state = Self {
            config,
            author,
            cmd_set: false,
        };
        let triggers = std::mem::take(&mut state.config.on_build);
        (state, triggers)
    }

    /// A stage on nothing.
    pub fn scratch() -> Self {
        let mut state = Self::default();
        state.config.env.push(PATH.to_owned());
        state
    }

    /// Applies an instruction to the configuration, and tells what else it takes.
    pub fn apply(
        &mut self,
        instruction: &Instruction,
        args: &mut BuildArgs,
        escape: char,
    ) -> Result<Change, String> {
        let mut env = self.config.env.clone();
        env.extend(args.visible(&self.config.env));
        let say = |error: SubstitutionError| error.to_string();
        let word = |text: &str| substitute(text, &env, escape).map_err(say);
        let words = |texts: &[String]| -> Result<Vec<String>, String> {
            texts.iter().map(|text| word(text)).collect()
        };
        let pairs = |pairs: &[(String, String)]| -> Result<Vec<(String, String)>, String> {
            let pair = |(name, value): &(String, String)| Ok((word(name)?, word(value)?));
            pairs.iter().map(pair).collect()
        };
        let shown = |keyword: &str, pairs: &[(String, String)]| {
            let pairs = pairs.iter().map(|(name, value)| format!(" {name}={value}"));
            format!("{keyword}{}", pairs.collect::<String>())
        };
        let comment = match instruction {
            Instruction::Run(command) => return Ok(self.run(command, args)),
            Instruction::Copy(spec) => {
                let optional = |text: &Option<String>| text.as_deref().map(word).transpose();
                return Ok(Change::Copy(CopySpec {
                    is_add: spec.is_add,
                    sources: words(&spec.sources)?,
                    target: word(&spec.target)?,
                    from: spec.from.clone(),
                    chown: optional(&spec.chown)?,
                    chmod: optional(&spec.chmod)?,
                }));
            }
            Instruction::Workdir(path) => {
                let path = word(path)?;
                if path.is_empty() {
                    return Err("cannot normalize nothing".to_owned());
                }
                let path = destination(&self.config.working_dir, &path).path;
                self.config.working_dir.clone_from(&path);
                let created_by = self.comment(&format!("WORKDIR {path}"));
                return Ok(Change::Workdir { path, created_by });
            }
            Instruction::Cmd(command) => {
                let words = self.command_line(command);
                let comment = format!("CMD {}", quoted(&words));
                self.cmd_set = !words.is_empty();
                self.config.cmd = Some(words);
                comment
            }
            Instruction::Entrypoint(command) => {
                let words = self.command_line(command);
                let comment = format!("ENTRYPOINT {}", quoted(&words));
                if !self.cmd_set {
                    self.config.cmd = None;
                }
                self.config.entrypoint = Some(words);
                comment
            }
            Instruction::Env(list) => {
                let list = pairs(list)?;
                for (name, value) in &list {
                    let entry = format!("{name}={value}");
                    let same = |known: &&mut String| known.split('=').next() == Some(name);
                    match self.config.env.iter_mut().find(same) {
                        Some(known) => *known = entry,
                        None => self.config.env.push(entry),
                    }
                }
                shown("ENV", &list)
            }
            Instruction::Label(list) => {
                let list = pairs(list)?;
                self.config.labels.extend(list.iter().cloned());
                shown("LABEL", &list)
            }
            Instruction::Maintainer(author) => {
                self.author.clone_from(author);
                format!("MAINTAINER {author}")
            }
            Instruction::Expose(ports) => {
                let mut found = Vec::new();
                for text in ports {
                    for port in substitute_words(text, &env, escape).map_err(say)? {
                        found.extend(exposed(&port)?);
                    }
                }
                found.sort();
                self.config.exposed_ports.extend(found.iter().cloned());
                format!("EXPOSE {}", found.join(" "))
            }
            Instruction::Volume(volumes) => {
                let volumes: Vec<String> = words(volumes)?
                    .into_iter()
                    .map(|volume| volume.trim().to_owned())
                    .collect();
                if volumes.iter().any(String::is_empty) {
                    return Err("VOLUME specified can not be an empty string".to_owned());
                }
                self.config.volumes.extend(volumes.iter().cloned());
                format!("VOLUME [{}]", volumes.join(" "))
            }
            Instruction::User(user) => {
                self.config.user = word(user)?;
                format!("USER {}", self.config.user)
            }
            Instruction::StopSignal(signal) => {
                let signal = word(signal)?;
                if signals::parse(&signal).is_none() {
                    return Err(format!("invalid signal: {signal}"));
                }
                let comment = format!("STOPSIGNAL {signal}");
                self.config.stop_signal = Some(signal);
                comment
            }
            Instruction::Arg(list) => {
                let mut comment = "ARG".to_owned();
                for (name, default) in list {
                    let name = word(name)?;
                    let default = default.as_deref().map(word).transpose()?;
                    comment.push(' ');
                    comment.push_str(&name);
                    if let Some(default) = &default {
                        comment.push('=');
                        comment.push_str(default);
                    }
                    args.declare(&name, default);
                }
                comment
            }
            Instruction::OnBuild(trigger) => {
                self.config.on_build.push(trigger.clone());
                format!("ONBUILD {trigger}")
            }
            Instruction::Shell(shell) => {
                self.config.shell = Some(shell.clone());
                format!("SHELL [{}]", shell.join(" "))
            }
            Instruction::Healthcheck(check) => {
                self.config.healthcheck = Some(check.clone());
                format!("HEALTHCHECK {}", shown_check(check))
            }
        };
        Ok(Change::Config(self.comment(&comment)))
    }

    /// The line of history for a step that runs nothing.
    pub fn comment(&self, comment: &str) -> String {
        format!("{} #(nop)  {comment}", self.shell().join(" "))
    }

    fn run(&self, command: &Command, args: &BuildArgs) -> Change {
        let words = self.command_line(command);
        let noted = args.for_cache(&self.config.env);
        let mut created_by = words.join(" ");
        if !noted.is_empty() {
            created_by = format!("|{} {} {created_by}", noted.len(), noted.join(" "));
        }
        Change::Run {
            words,
            env: args.visible(&self.config.env),
            created_by,
        }
    }

    fn shell(&self) -> Vec<String> {
        match &self.config.shell {
            Some(shell) if !shell.is_empty() => shell.clone(),
            _ => SHELL.map(str::to_owned).to_vec(),
        }
    }

    fn command_line(&self, command: &Command) -> Vec<String> {
        if !command.shell {
            return command.words.clone();
        }
        let mut words = self.shell();
        words.extend(command.words.iter().cloned());
        words
    }
}

/// Go's `%q` of a list of strings.
fn quoted(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    format!("[{}]", words.join(" "))
}

/// Go's `%q` of docker's struct for health checks.
fn shown_check(check: &HealthCheck) -> String {
    let duration =
        |duration: Option<Duration>| format!("{:?}", go_duration(duration.unwrap_or_default()));
    let [interval, timeout, start, start_interval] = [
        check.interval,
        check.timeout,
        check.start_period,
        check.start_interval,
    ]
    .map(duration);
    let test = quoted(&check.test);
    let retries = check.retries.unwrap_or(0);
    format!("&{{{test} {interval} {timeout} {start} {start_interval} '\\x{retries:02x}'}}")
}

/// Go's text of a duration: `1m30s`.
fn go_duration(duration: Duration) -> String {
    let (seconds, nanos) = (duration.as_secs(), duration.subsec_nanos());
    if seconds == 0 && nanos > 0 {
        return format!("{}ms", f64::from(nanos) / 1e6);
    }
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let fraction = match nanos {
        0 => String::new(),
        nanos => format!(".{nanos:09}").trim_end_matches('0').to_owned(),
    };
    let mut text = String::new();
    if hours > 0 {
        text.push_str(&format!("{hours}h"));
    }
    if minutes > 0 || hours > 0 {
        text.push_str(&format!("{minutes}m"));
    }
    text.push_str(&format!("{}{fraction}s", seconds % 60));
    text
}

/// `80`, `80/udp`, `8000-8010/tcp`: the ports, each with its protocol.
fn exposed(text: &str) -> Result<Vec<String>, String> {
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(format!("Invalid proto: {protocol}"));
    }
    let invalid = || format!("Invalid containerPort: {range}");
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let number = |text: &str| text.parse::<u16>().map_err(|_| invalid());
    let (first, last) = (number(first)?, number(last)?);
    if first > last {
        return Err(invalid());
    }
    Ok((first..=last)
        .map(|port| format!("{port}/{protocol}"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::super::parse_trigger;
    use super::*;

    fn run(lines: &[&str]) -> (BuildState, Vec<Change>) {
        let mut state = BuildState::scratch();
        let mut args = BuildArgs::default();
        let changes = lines.iter().map(|line| {
            let step = match line.strip_prefix("ONBUILD ") {
                Some(trigger) => Instruction::OnBuild(trigger.to_owned()),
                None => parse_trigger(line).unwrap().instruction,
            };
            state.apply(&step, &mut args, '\\').unwrap()
        });
        let changes = changes.collect();
        (state, changes)
    }

    #[test]
    fn instructions_change_the_configuration() {
        let (state, changes) = run(&[
            "ENV A=1 B=$PATH",
            "ENV A=2 C=$A",
            "WORKDIR x",
            "WORKDIR ../y",
            "EXPOSE 53/udp 80-81",
            "CMD echo $A",
            "USER ${A:-x}:${Z:-g}",
            "VOLUME /a /b",
            "STOPSIGNAL SIGINT",
            "ONBUILD RUN a",
            "HEALTHCHECK --interval=90s CMD a",
        ]);
        let config = &state.config;
        assert_eq!(
            config.env[1..],
            ["A=2", &format!("B={}", &PATH[5..]), "C=1"]
        );
        assert_eq!(
            (config.working_dir.as_str(), config.user.as_str()),
            ("/y", "2:g")
        );
        assert!(
            config
                .exposed_ports
                .iter()
                .eq(["53/udp", "80/tcp", "81/tcp"])
        );
        assert_eq!(config.cmd.as_deref().unwrap(), ["/bin/sh", "-c", "echo $A"]);
        let comment = |at: usize| match &changes[at] {
            Change::Config(text) => text.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(comment(1), "/bin/sh -c #(nop)  ENV A=2 C=1");
        assert_eq!(
            comment(5),
            r#"/bin/sh -c #(nop)  CMD ["/bin/sh" "-c" "echo $A"]"#
        );
        assert_eq!(comment(7), "/bin/sh -c #(nop)  VOLUME [/a /b]");
        assert_eq!(
            comment(10),
            r#"/bin/sh -c #(nop)  HEALTHCHECK &{["CMD-SHELL" "a"] "1m30s" "0s" "0s" "0s" '\x00'}"#
        );
    }

    #[test]
    fn a_new_entrypoint_drops_the_command_of_the_base_only() {
        let (state, _) = run(&["CMD a", "ENTRYPOINT [\"e\"]"]);
        assert!(state.config.cmd.is_some());
        let base = ImageConfig {
            cmd: Some(vec!["b".to_owned()]),
            on_build: vec!["RUN x".to_owned()],
            ..ImageConfig::default()
        };
        let (mut state, triggers) = BuildState::on(base, String::new());
        assert_eq!(triggers, ["RUN x"]);
        let entrypoint = parse_trigger("ENTRYPOINT [\"e\"]").unwrap().instruction;
        state
            .apply(&entrypoint, &mut BuildArgs::default(), '\\')
            .unwrap();
        assert_eq!(state.config.cmd, None);
    }

    #[test]
    fn arguments_show_in_what_the_cache_compares() {
        let (_, changes) = run(&["ARG v=1", "SHELL [\"/bin/bash\", \"-c\"]", "RUN make $v"]);
        let Change::Run {
            words,
            env,
            created_by,
        } = &changes[2]
        else {
            panic!()
        };
        assert_eq!(words, &["/bin/bash", "-c", "make $v"]);
        assert_eq!(env, &["v=1"]);
        assert_eq!(created_by, "|1 v=1 /bin/bash -c make $v");
    }

    #[test]
    fn wrong_values_are_refused() {
        let mut state = BuildState::scratch();
        let mut refused = |line: &str| {
            let step = parse_trigger(line).unwrap().instruction;
            state
                .apply(&step, &mut BuildArgs::default(), '\\')
                .unwrap_err()
        };
        assert_eq!(refused("EXPOSE 80/xyz"), "Invalid proto: xyz");
        assert_eq!(refused("EXPOSE a"), "Invalid containerPort: a");
        assert_eq!(refused("STOPSIGNAL NO"), "invalid signal: NO");
        assert_eq!(refused("WORKDIR $nothing"), "cannot normalize nothing");
    }
}
