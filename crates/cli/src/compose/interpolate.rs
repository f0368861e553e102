//! Variables in values: `$VAR`, `${VAR}`, `${VAR:-default}`, `${VAR:?error}`, `${VAR:+other}`, `$$`.

use super::{
    Problem,
    yaml::{Node, Yaml},
};
use crate::flags::environment::Lookup;

/// Defaults within defaults; deeper is a mistake or malice.
const DEPTH_MAX: usize = 16;

/// Fills in the variables of every text below `node`.
pub(super) fn all(node: &mut Node, lookup: Lookup<'_>) -> Result<(), Problem> {
    match &mut node.value {
        Yaml::Text(text) if text.contains('$') => match fill(text, lookup, 0) {
            Ok(filled) => *text = filled,
            Err(Wrong::Syntax) => {
                let what = format!(
                    "invalid interpolation format for {}: {text:?}; you may need to escape any $ with another $",
                    node.path
                );
                return Err(node.place.problem(what));
            }
            Err(Wrong::Missing(name, message)) => {
                let message = if message.is_empty() {
                    String::new()
                } else {
                    format!(": {message}")
                };
                return Err(node.place.problem(format!(
                    "required variable {name} is missing a value{message}"
                )));
            }
        },
        Yaml::Text(_) | Yaml::Plain(_) | Yaml::Null => {}
        Yaml::List(items) => {
            for item in items {
                all(item, lookup)?;
            }
        }
        Yaml::Map(entries) => {
            for (_, value) in entries {
                all(value, lookup)?;
            }
        }
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum Wrong {
    Syntax,
    Missing(String, String),
}

fn fill(text: &str, lookup: Lookup<'_>, depth: usize) -> Result<String, Wrong> {
    if depth > DEPTH_MAX {
        return Err(Wrong::Syntax);
    }
    let mut out = String::new();
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        out.push_str(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(inner) = rest.strip_prefix('{') {
            let end = closing(inner).ok_or(Wrong::Syntax)?;
            out.push_str(&braced(&inner[..end], lookup, depth)?);
            rest = &inner[end + 1..];
        } else {
            let end = name_length(rest);
            if end == 0 {
                return Err(Wrong::Syntax);
            }
            out.push_str(&lookup(&rest[..end]).unwrap_or_default());
            rest = &rest[end..];
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// Where the brace closes that was opened before `text`.
fn closing(text: &str) -> Option<usize> {
    let mut open = 0;
    let mut previous = ' ';
    for (at, c) in text.char_indices() {
        match c {
            '{' if previous == '$' => open += 1,
            '}' if open == 0 => return Some(at),
            '}' => open -= 1,
            _ => {}
        }
        previous = c;
    }
    None
}

fn name_length(text: &str) -> usize {
    let end = text
        .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .unwrap_or(text.len());
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        0
    } else {
        end
    }
}

fn braced(text: &str, lookup: Lookup<'_>, depth: usize) -> Result<String, Wrong> {
    let end = name_length(text);
    let (name, rest) = text.split_at(end);
    if name.is_empty() {
        return Err(Wrong::Syntax);
    }
    let value = lookup(name);
    let (empty_counts, operator) = match rest.strip_prefix(':') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let set = value
        .as_ref()
        .is_some_and(|value| !(empty_counts && value.is_empty()));
    let mut chars = operator.chars();
    let kind = chars.next();
    let argument = chars.as_str();
    match kind {
        None if !empty_counts => Ok(value.unwrap_or_default()),
        Some('-') if set => Ok(value.unwrap_or_default()),
        Some('-') => fill(argument, lookup, depth + 1),
        Some('?') if set => Ok(value.unwrap_or_default()),
        Some('?') => Err(Wrong::Missing(
            name.to_owned(),
            fill(argument, lookup, depth + 1)?,
        )),
        Some('+') if set => fill(argument, lookup, depth + 1),
        Some('+') => Ok(String::new()),
        _ => Err(Wrong::Syntax),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(text: &str) -> Result<String, Wrong> {
        let lookup = |name: &str| match name {
            "A" => Some("1".to_owned()),
            "E" => Some(String::new()),
            _ => None,
        };
        fill(text, &lookup, 0)
    }

    #[test]
    fn every_form_is_filled_in() {
        for (text, want) in [
            ("$A-${A}", "1-1"),
            ("$$A $${A}", "$A ${A}"),
            ("${X:-d} ${X-d} ${E:-d} ${E-d}", "d d d "),
            ("${X:-${Y:-${A}}}", "1"),
            ("${A:+yes}${X:+no}${E:+no}${E+set}", "yesset"),
            ("${X:-a:b-c}", "a:b-c"),
            ("$X", ""),
            ("{{.Task.Slot}}", "{{.Task.Slot}}"),
        ] {
            assert_eq!(filled(text).as_deref(), Ok(want), "{text}");
        }
    }

    #[test]
    fn what_is_no_variable_is_refused() {
        for text in ["$", "${", "${}", "$1", "${A:}", "${A!b}", "${A-b"] {
            assert_eq!(filled(text), Err(Wrong::Syntax), "{text}");
        }
        assert_eq!(
            filled("${E:?say $A}"),
            Err(Wrong::Missing("E".into(), "say 1".into()))
        );
        assert_eq!(filled("${E?say}").as_deref(), Ok(""));
        assert_eq!(filled(&"${X:-".repeat(40)), Err(Wrong::Syntax));
    }
}
