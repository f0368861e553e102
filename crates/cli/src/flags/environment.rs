//! Environment variables and labels from flags and files.

use anyhow::{Context as _, Result, bail};

/// The caller's environment.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The process's own environment.
pub(crate) fn process(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Variables of files, then of flags; `NAME` alone takes the caller's value, or is left out without one.
pub(crate) fn variables(
    flags: &[String],
    files: &[String],
    lookup: Lookup<'_>,
) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).with_context(|| format!("open {file}"))?;
        for variable in parse_file(&text).with_context(|| file.clone())? {
            add(&mut all, &variable, lookup)?;
        }
    }
    for variable in flags {
        add(&mut all, variable, lookup)?;
    }
    Ok(all)
}

fn add(all: &mut Vec<String>, variable: &str, lookup: Lookup<'_>) -> Result<()> {
    if variable.is_empty() || variable.starts_with('=') {
        bail!("invalid environment variable: {variable}");
    }
    if variable.contains('=') {
        all.push(variable.to_owned());
    } else if let Some(value) = lookup(variable) {
        all.push(format!("{variable}={value}"));
    }
    Ok(())
}

/// Lines `NAME=value` or `NAME` of an env file; `#` starts a comment line, values are taken as they are.
pub(crate) fn parse_file(text: &str) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = line.split('=').next().unwrap_or_default();
        if name.is_empty() {
            bail!("line {}: no variable name on line '{line}'", number + 1);
        }
        if name.contains(char::is_whitespace) {
            bail!(
                "line {}: variable '{name}' contains whitespaces",
                number + 1
            );
        }
        all.push(line.to_owned());
    }
    Ok(all)
}

/// Variables of a `.env` file, as compose reads it: `export` and comments are allowed, single quotes are taken as they are, in
/// double quotes `\\n`, `\\"` and the like stand for what they do in a shell.
pub(crate) fn parse_dot_env(text: &str) -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
        // A name alone says nothing.
        let Some((name, value)) = line.split_once('=') else {
            continue;
        };
        let name = name.trim();
        if name.is_empty() || name.contains(char::is_whitespace) {
            bail!("line {}: invalid variable name {name:?}", number + 1);
        }
        let value = value.trim();
        let value = if let Some(rest) = value.strip_prefix('\'') {
            let end = rest.find('\'');
            let end = end.with_context(|| format!("line {}: unterminated quote", number + 1))?;
            rest[..end].to_owned()
        } else if let Some(rest) = value.strip_prefix('"') {
            double_quoted(rest)
                .with_context(|| format!("line {}: unterminated quote", number + 1))?
        } else {
            let end = value.find(" #").unwrap_or(value.len());
            value[..end].trim_end().to_owned()
        };
        all.push((name.to_owned(), value));
    }
    Ok(all)
}

fn double_quoted(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut chars = text.chars();
    loop {
        match chars.next()? {
            '"' => return Some(out),
            '\\' => match chars.next()? {
                'n' => out.push('\n'),
                't' => out.push('\t'),
                'r' => out.push('\r'),
                c @ ('"' | '\\' | '$') => out.push(c),
                c => out.extend(['\\', c]),
            },
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_takes_the_callers_value() {
        let lookup = |name: &str| (name == "HOME").then(|| "/home/me".to_owned());
        let flags = ["A=1", "HOME", "GONE", "B="].map(str::to_owned);
        assert_eq!(
            variables(&flags, &[], &lookup).unwrap(),
            ["A=1", "HOME=/home/me", "B="]
        );
        assert!(variables(&["=x".to_owned()], &[], &lookup).is_err());
    }

    #[test]
    fn a_dot_env_file_is_read_as_compose_reads_it() {
        let text = "# c\nA=1 # one\nexport B='x # y' \nC=\"a\\\"b\\n\"\nD=\nE\nF=a=b";
        let want = [
            ("A", "1"),
            ("B", "x # y"),
            ("C", "a\"b\n"),
            ("D", ""),
            ("F", "a=b"),
        ];
        let want = want.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(parse_dot_env(text).unwrap(), want);
        assert_eq!(
            parse_dot_env("A='x").unwrap_err().to_string(),
            "line 1: unterminated quote"
        );
        assert!(parse_dot_env("A B=1").is_err());
    }

    #[test]
    fn files_have_comments_and_no_quotes() {
        assert_eq!(
            parse_file("# c\n\nA=\"b\" # d\n  B\n").unwrap(),
            ["A=\"b\" # d", "B"]
        );
        assert_eq!(
            parse_file("A=1\nB C=2").unwrap_err().to_string(),
            "line 2: variable 'B C' contains whitespaces"
        );
    }
}
