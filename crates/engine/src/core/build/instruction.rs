//! One instruction of a Dockerfile, read into what it asks for.

use std::time::Duration;

use shoal_api::container::HealthCheck;

/// A command as `RUN`, `CMD` and `ENTRYPOINT` have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments, or the one line that the shell is to read.
    pub words: Vec<String>,
    /// Shell form.
    pub shell: bool,
}

/// What `COPY` and `ADD` ask for; every text may still hold variables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CopySpec {
    /// `ADD`: unpacks local archives and downloads from URLs.
    pub is_add: bool,
    pub sources: Vec<String>,
    pub target: String,
    /// A stage by name or number, or an image.
    pub from: Option<String>,
    pub chown: Option<String>,
    /// Octal.
    pub chmod: Option<String>,
}

/// An instruction within a stage.
#[derive(Debug, Clone, PartialEq)]
pub enum Instruction {
    Copy(CopySpec),
    Run(Command),
    Cmd(Command),
    Entrypoint(Command),
    Env(Vec<(String, String)>),
    Label(Vec<(String, String)>),
    Maintainer(String),
    Expose(Vec<String>),
    Volume(Vec<String>),
    User(String),
    Workdir(String),
    StopSignal(String),
    Arg(Vec<(String, Option<String>)>),
    OnBuild(String),
    Shell(Vec<String>),
    Healthcheck(HealthCheck),
}

/// Reads an instruction other than `FROM`; `keyword` is in lower case.
pub(super) fn parse(keyword: &str, rest: &str, escape: char) -> Result<Instruction, String> {
    let upper = keyword.to_uppercase();
    let (flags, rest) = take_flags(rest);
    let mut flags = Flags::new(flags)?;
    let one = || match rest {
        "" => Err(format!("{upper} requires exactly one argument")),
        text => Ok(text.to_owned()),
    };
    let some = |words: Vec<String>| match words.is_empty() {
        true => Err(format!("{upper} requires at least one argument")),
        false => Ok(words),
    };
    let instruction = match keyword {
        "add" | "copy" => Instruction::Copy(copy(keyword, &mut flags, rest)?),
        "run" => {
            for name in ["mount", "network", "security"] {
                if flags.take(name)?.is_some() {
                    return Err(needs_buildkit(&format!("--{name} option")));
                }
            }
            if is_heredoc(rest) {
                return Err(needs_buildkit("heredoc syntax"));
            }
            Instruction::Run(command(rest).ok_or("RUN requires at least one argument")?)
        }
        "cmd" => Instruction::Cmd(command(rest).unwrap_or(EMPTY)),
        "entrypoint" => Instruction::Entrypoint(command(rest).unwrap_or(EMPTY)),
        "env" => Instruction::Env(pairs(rest, "ENV", escape)?),
        "label" => Instruction::Label(pairs(rest, "LABEL", escape)?),
        "maintainer" => Instruction::Maintainer(one()?),
        "expose" => {
            Instruction::Expose(some(rest.split_whitespace().map(str::to_owned).collect())?)
        }
        "volume" => {
            let volumes = some(list(rest))?;
            if volumes.iter().any(|volume| volume.trim().is_empty()) {
                return Err("VOLUME specified can not be an empty string".to_owned());
            }
            Instruction::Volume(volumes)
        }
        "user" => Instruction::User(one()?),
        "workdir" => Instruction::Workdir(one()?),
        "stopsignal" => Instruction::StopSignal(one()?),
        "arg" => Instruction::Arg(args(rest, escape)?),
        "onbuild" => Instruction::OnBuild(trigger(rest)?),
        "shell" => match json_list(rest) {
            Some(Ok(words)) => Instruction::Shell(some(words)?),
            Some(Err(why)) => return Err(why),
            None => return Err("SHELL requires the arguments to be in JSON form".to_owned()),
        },
        "healthcheck" => Instruction::Healthcheck(healthcheck(&mut flags, rest)?),
        other => return Err(format!("unknown instruction: {}", other.to_uppercase())),
    };
    flags.finish()?;
    Ok(instruction)
}

const EMPTY: Command = Command {
    words: Vec::new(),
    shell: false,
};

fn needs_buildkit(what: &str) -> String {
    format!("the {what} requires BuildKit, which this builder is not")
}

/// `<<EOF`, which would otherwise run as something else than its author meant.
fn is_heredoc(rest: &str) -> bool {
    rest.split_whitespace().next().is_some_and(|word| {
        let word = word.trim_start_matches(|c: char| c.is_ascii_digit());
        word.strip_prefix("<<").is_some_and(|name| {
            let name = name.trim_start_matches('-').trim_matches(['"', '\'']);
            !name.is_empty() && !name.starts_with('<')
        })
    })
}

fn copy(keyword: &str, flags: &mut Flags, rest: &str) -> Result<CopySpec, String> {
    let upper = keyword.to_uppercase();
    for name in ["link", "parents", "exclude", "checksum", "keep-git-dir"] {
        if flags.take(name)?.is_some() {
            return Err(needs_buildkit(&format!("--{name} option")));
        }
    }
    let from = match keyword {
        "copy" => flags.take("from")?,
        _ => None,
    };
    let mut words = list(rest);
    if words.iter().any(|word| is_heredoc(word)) {
        return Err(needs_buildkit("heredoc syntax"));
    }
    if words.len() < 2 {
        return Err(format!("{upper} requires at least two arguments"));
    }
    let target = words.pop().expect("there are two");
    Ok(CopySpec {
        is_add: keyword == "add",
        sources: words,
        target,
        from,
        chown: flags.take("chown")?,
        chmod: flags.take("chmod")?,
    })
}

/// `None` if there is nothing.
fn command(rest: &str) -> Option<Command> {
    match json_list(rest) {
        Some(Ok(words)) => Some(Command {
            words,
            shell: false,
        }),
        _ if rest.is_empty() => None,
        _ => Some(Command {
            words: vec![rest.to_owned()],
            shell: true,
        }),
    }
}

/// A JSON array of strings; `None` if it is no array at all.
fn json_list(rest: &str) -> Option<Result<Vec<String>, String>> {
    if !rest.starts_with('[') {
        return None;
    }
    let values: Vec<serde_json::Value> = serde_json::from_str(rest).ok()?;
    let words: Option<Vec<String>> = values
        .into_iter()
        .map(|value| value.as_str().map(str::to_owned))
        .collect();
    Some(words.ok_or_else(|| {
        "When using JSON array syntax, arrays must be comprised of strings only.".to_owned()
    }))
}

fn list(rest: &str) -> Vec<String> {
    match json_list(rest) {
        Some(Ok(words)) => words,
        _ => rest.split_whitespace().map(str::to_owned).collect(),
    }
}

/// `name=value …`, or the old form `name value with spaces`.
fn pairs(rest: &str, keyword: &str, escape: char) -> Result<Vec<(String, String)>, String> {
    let words = words(rest, escape);
    let Some(first) = words.first() else {
        return Err(format!("{keyword} requires at least one argument"));
    };
    let pairs: Vec<_> = if first.contains('=') {
        let pair = |word: &String| {
            word.split_once('=')
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .ok_or_else(|| {
                    format!(
                        "Syntax error - can't find = in {word:?}. Must be of the form: name=value"
                    )
                })
        };
        words.iter().map(pair).collect::<Result<_, _>>()?
    } else {
        let (name, value) = rest
            .split_once(char::is_whitespace)
            .ok_or_else(|| format!("{keyword} must have two arguments"))?;
        vec![(name.to_owned(), value.trim_start().to_owned())]
    };
    match pairs.iter().any(|(name, _)| name.is_empty()) {
        true => Err(format!("{keyword} names can not be blank")),
        false => Ok(pairs),
    }
}

fn args(rest: &str, escape: char) -> Result<Vec<(String, Option<String>)>, String> {
    let words = words(rest, escape);
    if words.is_empty() {
        return Err("ARG requires at least one argument".to_owned());
    }
    let arg = |word: String| {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (word, None),
        };
        match name.is_empty() {
            true => Err("ARG names can not be blank".to_owned()),
            false => Ok((name, value)),
        }
    };
    words.into_iter().map(arg).collect()
}

/// Splits at spaces outside quotes; quotes and escapes stay, since variables are replaced later.
fn words(rest: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote: Option<char> = None;
    let mut chars = rest.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (c, None) if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            // Nothing is escaped in single quotes.
            (c, quote) if c == escape && quote != Some('\'') => {
                word.push(c);
                word.extend(chars.next());
                continue;
            }
            ('\'' | '"', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            _ => {}
        }
        word.push(c);
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

fn trigger(rest: &str) -> Result<String, String> {
    let keyword = rest.split_whitespace().next().unwrap_or_default();
    match keyword.to_ascii_uppercase().as_str() {
        "" => Err("ONBUILD requires at least one argument".to_owned()),
        "ONBUILD" => Err("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed".to_owned()),
        keyword @ ("MAINTAINER" | "FROM") => {
            Err(format!("{keyword} isn't allowed as an ONBUILD trigger"))
        }
        _ => Ok(rest.to_owned()),
    }
}

fn healthcheck(flags: &mut Flags, rest: &str) -> Result<HealthCheck, String> {
    let (kind, rest) = rest
        .split_once(char::is_whitespace)
        .map_or((rest, ""), |(kind, rest)| (kind, rest.trim()));
    let kind = kind.to_ascii_uppercase();
    let mut check = HealthCheck::default();
    match kind.as_str() {
        "" => return Err("HEALTHCHECK requires at least one argument".to_owned()),
        "NONE" if !rest.is_empty() => {
            return Err("HEALTHCHECK NONE takes no arguments".to_owned());
        }
        "NONE" => check.test = vec![kind],
        "CMD" => {
            let command = command(rest).filter(|command| !command.words.is_empty());
            let command = command.ok_or("Missing command after HEALTHCHECK CMD")?;
            let form = if command.shell { "CMD-SHELL" } else { "CMD" };
            check.test = std::iter::once(form.to_owned())
                .chain(command.words)
                .collect();
            check.interval = duration(flags, "interval")?;
            check.timeout = duration(flags, "timeout")?;
            check.start_period = duration(flags, "start-period")?;
            check.start_interval = duration(flags, "start-interval")?;
            if let Some(text) = flags.take("retries")? {
                let retries: i64 = text
                    .parse()
                    .map_err(|_| format!("invalid value for --retries: {text:?}"))?;
                let retries = u32::try_from(retries)
                    .map_err(|_| format!("--retries cannot be negative ({retries})"))?;
                check.retries = Some(retries).filter(|retries| *retries > 0);
            }
        }
        other => return Err(format!("Unknown type {other:?} in HEALTHCHECK (try CMD)")),
    }
    Ok(check)
}

/// At least a millisecond, as docker wants it; 0 is the default.
fn duration(flags: &mut Flags, name: &str) -> Result<Option<Duration>, String> {
    let Some(text) = flags.take(name)? else {
        return Ok(None);
    };
    let duration = go_duration(&text)
        .ok_or_else(|| format!("time: invalid duration {text:?} for --{name}"))?;
    if !duration.is_zero() && duration < Duration::from_millis(1) {
        return Err(format!("Interval {name:?} cannot be less than 1ms"));
    }
    Ok(Some(duration).filter(|duration| !duration.is_zero()))
}

/// `1h2m3.5s`, `300ms`, `0`.
fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        seconds += number
            * match &rest[..end] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = &rest[end..];
    }
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|_| !text.is_empty())
}

/// The words `--name[=value]` before everything else, and the rest.
pub(super) fn take_flags(text: &str) -> (Vec<&str>, &str) {
    let mut flags = Vec::new();
    let mut rest = text.trim();
    while rest.starts_with("--") {
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        let word = &rest[..end];
        if word == "--" {
            break;
        }
        flags.push(word);
        rest = rest[end..].trim_start();
    }
    (flags, rest)
}

/// Flags not yet asked for.
pub(super) struct Flags(Vec<(String, Option<String>)>);

impl Flags {
    pub(super) fn new(words: Vec<&str>) -> Result<Self, String> {
        let mut flags: Vec<(String, Option<String>)> = Vec::new();
        for word in words {
            let word = &word[2..];
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value.trim_matches(['"', '\'']).to_owned())),
                None => (word, None),
            };
            // `--mount` alone may come several times, and is refused anyway.
            if name != "mount" && flags.iter().any(|(known, _)| known == name) {
                return Err(format!("duplicate flag specified: {name}"));
            }
            flags.push((name.to_owned(), value));
        }
        Ok(Self(flags))
    }

    /// The value of a flag, which must have one.
    pub(super) fn take(&mut self, name: &str) -> Result<Option<String>, String> {
        let Some(at) = self.0.iter().position(|(known, _)| known == name) else {
            return Ok(None);
        };
        match self.0.remove(at).1 {
            Some(value) => Ok(Some(value)),
            None if name == "link" || name == "parents" => Ok(Some(String::new())),
            None => Err(format!("missing a value on flag: {name}")),
        }
    }

    /// No flag may be left over.
    pub(super) fn finish(self) -> Result<(), String> {
        match self.0.first() {
            Some((name, _)) => Err(format!("unknown flag: --{name}")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Instruction, String> {
        let (keyword, rest) = line.split_once(' ').unwrap_or((line, ""));
        parse(&keyword.to_lowercase(), rest, '\\')
    }

    #[track_caller]
    fn refused(line: &str, why: &str) {
        assert_eq!(read(line).unwrap_err(), why, "{line}");
    }

    #[test]
    fn commands_have_two_forms() {
        let command = |line: &str| match read(line).unwrap() {
            Instruction::Run(command) | Instruction::Cmd(command) => command,
            other => panic!("{other:?}"),
        };
        let exec = command(r#"RUN ["a", "b c"]"#);
        assert!(!exec.shell && exec.words == ["a", "b c"]);
        let shell = command("RUN [a, b]");
        assert!(shell.shell && shell.words == ["[a, b]"]);
        assert!(command("CMD").words.is_empty());
    }

    #[test]
    fn pairs_keep_their_quotes_until_variables_are_replaced() {
        let Instruction::Env(pairs) = read(r#"ENV a=1 b="x y" c=d\ e"#).unwrap() else {
            panic!()
        };
        let shown: Vec<_> = pairs.iter().map(|(k, v)| format!("{k}:{v}")).collect();
        assert_eq!(shown, ["a:1", r#"b:"x y""#, r"c:d\ e"]);
        let Instruction::Env(old) = read("ENV a  b c").unwrap() else {
            panic!()
        };
        assert_eq!(old, [("a".to_owned(), "b c".to_owned())]);
    }

    #[test]
    fn health_checks_have_flags() {
        let check = |line: &str| match read(line).unwrap() {
            Instruction::Healthcheck(check) => check,
            other => panic!("{other:?}"),
        };
        let full = check("HEALTHCHECK --interval=1m30s --retries=3 CMD curl -f x");
        assert_eq!(full.test, ["CMD-SHELL", "curl -f x"]);
        assert_eq!(
            (full.interval, full.retries),
            (Some(Duration::from_secs(90)), Some(3))
        );
        assert_eq!(check("HEALTHCHECK NONE").test, ["NONE"]);
    }

    #[test]
    fn mistakes_are_told_in_dockers_words() {
        refused("FOO a", "unknown instruction: FOO");
        refused("RUN", "RUN requires at least one argument");
        refused("COPY a", "COPY requires at least two arguments");
        refused("ENV a", "ENV must have two arguments");
        refused(
            "ENV a=b c",
            "Syntax error - can't find = in \"c\". Must be of the form: name=value",
        );
        refused("LABEL =b", "LABEL names can not be blank");
        refused("USER", "USER requires exactly one argument");
        refused("ONBUILD FROM a", "FROM isn't allowed as an ONBUILD trigger");
        refused(
            "ONBUILD onbuild RUN a",
            "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed",
        );
        refused(
            "SHELL sh",
            "SHELL requires the arguments to be in JSON form",
        );
        refused(
            "HEALTHCHECK TCP",
            "Unknown type \"TCP\" in HEALTHCHECK (try CMD)",
        );
        refused("HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD");
        refused("COPY --frm=a b c", "unknown flag: --frm");
        refused("COPY --from b c", "missing a value on flag: from");
        refused(
            "COPY --from=a --from=b c d",
            "duplicate flag specified: from",
        );
        refused(
            "VOLUME [\"\"]",
            "VOLUME specified can not be an empty string",
        );
        let buildkit = |line: &str| read(line).unwrap_err().contains("requires BuildKit");
        assert!(buildkit("RUN --mount=type=cache,target=/x a") && buildkit("RUN <<EOF"));
        assert!(buildkit("COPY <<EOF /a") && buildkit("COPY --link a b"));
        assert!(read("RUN cat << x").is_ok() && read("RUN <x cat").is_ok());
    }
}
