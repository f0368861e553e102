//! What is said about a command line that is wrong, in docker's words and with its exit codes.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::{command::grammar, output};

/// Tells what is wrong, or prints the help that was asked for, and ends the process.
pub(crate) fn explain(error: &clap::Error) -> ! {
    if !error.use_stderr() {
        // Nobody may be there to read it.
        let _ = error.print();
        std::process::exit(0);
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (path, usage, mut command) = command_of(&words);
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand
    ) {
        output::write(command.render_help().to_string().as_bytes());
        std::process::exit(0);
    }
    let (code, what) = describe(error, &path);
    output::note(format!(
        "{what}\n\n{usage}\n\nRun '{path} --help' for more information"
    ));
    std::process::exit(code)
}

fn context(error: &clap::Error, kind: ContextKind) -> String {
    match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        // The best suggestion comes last; of missing arguments there is mostly one.
        Some(ContextValue::Strings(texts)) => texts.last().cloned().unwrap_or_default(),
        _ => String::new(),
    }
}

/// The exit code and the first line.
fn describe(error: &clap::Error, path: &str) -> (i32, String) {
    let program = crate::program();
    let argument = context(error, ContextKind::InvalidArg);
    match error.kind() {
        ErrorKind::UnknownArgument if argument.starts_with("--") => {
            (125, format!("unknown flag: {argument}"))
        }
        ErrorKind::UnknownArgument if argument.starts_with('-') => {
            let flag = argument
                .trim_start_matches('-')
                .chars()
                .next()
                .unwrap_or('-');
            (
                125,
                format!("unknown shorthand flag: '{flag}' in {argument}"),
            )
        }
        ErrorKind::UnknownArgument => (
            1,
            format!("{program}: '{path}' does not accept the argument {argument:?}"),
        ),
        ErrorKind::InvalidSubcommand => {
            let name = context(error, ContextKind::InvalidSubcommand);
            let hint = context(error, ContextKind::SuggestedSubcommand);
            let hint = if hint.is_empty() {
                hint
            } else {
                format!("; did you mean '{hint}'?")
            };
            (
                1,
                format!("{program}: unknown command: {path} {name}{hint}"),
            )
        }
        ErrorKind::MissingRequiredArgument => (
            1,
            format!("{program}: '{path}' requires more arguments: {argument}"),
        ),
        _ => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            (125, first.trim_start_matches("error: ").to_owned())
        }
    }
}

/// The command that the words name: path, usage line, and itself.
fn command_of(words: &[String]) -> (String, String, clap::Command) {
    let mut command = grammar();
    command.build();
    let program = crate::program();
    let mut path = program.to_owned();
    for word in words.iter().filter(|word| !word.starts_with('-')) {
        let Some(sub) = command.find_subcommand(word).cloned() else {
            // Past the first word that is no command come arguments, or a value of -H.
            if path != program { break } else { continue }
        };
        path = format!("{path} {}", sub.get_name());
        command = sub.bin_name(path.clone());
    }
    let usage = command.render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").trim().to_owned();
    (path, format!("Usage:  {usage}"), command)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(line: &str) -> (i32, String) {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let (path, usage, _) = command_of(&words);
        let all = std::iter::once("shoal".to_owned()).chain(words);
        let Err(error) = grammar().try_get_matches_from(all) else {
            return (0, String::new());
        };
        let (code, what) = describe(&error, &path);
        (code, format!("{what} | {usage}"))
    }

    #[test]
    fn a_wrong_command_line_is_explained() {
        let seen: Vec<String> = [
            "ps --nosuch",
            "ps -z",
            "service create",
            "servce ls",
            "service lss",
            "ps -f bad",
            "swarm update --cert-expiry soon",
            "-H unix:///a rm",
        ]
        .iter()
        .map(|line| {
            let (code, text) = explained(line);
            format!("{line} -> {code} {text}")
        })
        .collect();
        expect_test::expect![[r#"
            ps --nosuch -> 125 unknown flag: --nosuch | Usage:  shoal ps [OPTIONS]
            ps -z -> 125 unknown shorthand flag: 'z' in -z | Usage:  shoal ps [OPTIONS]
            service create -> 1 shoal: 'shoal service create' requires more arguments: <IMAGE> [COMMAND]... | Usage:  shoal service create [OPTIONS] <IMAGE> [COMMAND]...
            servce ls -> 1 shoal: unknown command: shoal servce; did you mean 'service'? | Usage:  shoal [OPTIONS] <COMMAND>
            service lss -> 1 shoal: unknown command: shoal service lss; did you mean 'ls'? | Usage:  shoal service <COMMAND>
            ps -f bad -> 125 invalid value 'bad' for '--filter <key=value>': bad format of filter (expected name=value) | Usage:  shoal ps [OPTIONS]
            swarm update --cert-expiry soon -> 125 invalid value 'soon' for '--cert-expiry <duration>': invalid duration "soon": expected for instance 10s, 1m30s or 500ms | Usage:  shoal swarm update [OPTIONS]
            -H unix:///a rm -> 1 shoal: 'shoal rm' requires more arguments: <CONTAINER>... | Usage:  shoal rm [OPTIONS] <CONTAINER>..."#]].assert_eq(&seen.join("\n"));
    }
}
