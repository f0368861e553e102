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
