//! Dockerfile text cut into logical lines.

/// A logical line: continuations joined, comments left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// Number of its first line in the file, from 1.
    pub number: usize,
    pub text: String,
}

/// The Dockerfile is wrong; docker's texts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("dockerfile parse error on line {line}: {reason}")]
pub struct ParseError {
    pub line: usize,
    pub reason: String,
}

impl ParseError {
    pub(super) fn new(line: usize, reason: impl Into<String>) -> Self {
        Self {
            line,
            reason: reason.into(),
        }
    }
}

/// The lines of a Dockerfile, and how it is written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Lines {
    /// The escape character, `\` unless the directive `escape` says otherwise.
    pub escape: char,
    pub lines: Vec<Line>,
    pub warnings: Vec<String>,
}

/// Cuts the text. Parser directives (`# escape=`, `# syntax=`, `# check=`) count only before anything else.
pub(super) fn split(text: &str) -> Result<Lines, ParseError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut found = Lines {
        escape: '\\',
        lines: Vec::new(),
        warnings: Vec::new(),
    };
    let mut directives = Vec::new();
    let mut in_head = true;
    let mut raw = text.lines().enumerate();
    while let Some((index, line)) = raw.next() {
        let number = index + 1;
        let line = line.trim_start();
        if let Some(comment) = line.strip_prefix('#') {
            if in_head {
                in_head = directive(comment, number, &mut found.escape, &mut directives)?;
            }
            continue;
        }
        in_head = false;
        let (begin, mut goes_on) = continuation(line, found.escape);
        if begin.is_empty() && !goes_on {
            continue;
        }
        let mut joined = begin.to_owned();
        let mut has_empty = false;
        while goes_on {
            let Some((_, next)) = raw.next() else { break };
            if next.trim_start().starts_with('#') {
                continue;
            }
            if next.trim().is_empty() {
                has_empty = true;
                continue;
            }
            let (part, more) = continuation(next, found.escape);
            joined.push_str(part);
            goes_on = more;
        }
        if has_empty {
            found.warnings.push(format!(
                "[WARNING]: Empty continuation line found in:\n    {joined}\n"
            ));
        }
        if !joined.trim().is_empty() {
            found.lines.push(Line {
                number,
                text: joined.trim().to_owned(),
            });
        }
    }
    if found.lines.is_empty() {
        return Err(ParseError::new(1, "file with no instructions"));
    }
    Ok(found)
}

/// Reads a comment as a directive; false if it is none, which ends the head of the file.
fn directive(
    comment: &str,
    number: usize,
    escape: &mut char,
    seen: &mut Vec<String>,
) -> Result<bool, ParseError> {
    let Some((name, value)) = comment.split_once('=') else {
        return Ok(false);
    };
    let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
    if !matches!(name.as_str(), "escape" | "syntax" | "check") {
        return Ok(false);
    }
    if seen.contains(&name) {
        return Err(ParseError::new(
            number,
            format!("only one {name} parser directive can be used"),
        ));
    }
    if name == "escape" {
        *escape = match value {
            "\\" => '\\',
            "`" => '`',
            other => {
                return Err(ParseError::new(
                    number,
                    format!("invalid escape token '{other}' does not match ` or \\"),
                ));
            }
        };
    }
    seen.push(name);
    Ok(true)
}

/// The line without its continuation mark, and whether it had one. An escaped mark is none.
fn continuation(line: &str, escape: char) -> (&str, bool) {
    let bare = line.trim_end_matches([' ', '\t']);
    match bare.strip_suffix(escape) {
        Some(rest) if !rest.ends_with(escape) => (rest, true),
        _ => (line, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(file: &str) -> Vec<String> {
        split(file)
            .unwrap()
            .lines
            .into_iter()
            .map(|line| format!("{} {}", line.number, line.text))
            .collect()
    }

    #[test]
    fn continuations_join_and_comments_inside_them_vanish() {
        assert_eq!(
            texts("# c\nFROM a\n\n  RUN x && \\\n  # between\n    y \\  \n\tz\nCMD b"),
            ["2 FROM a", "4 RUN x &&     y \tz", "8 CMD b"]
        );
        assert_eq!(texts("RUN a\\\\\nCMD b"), ["1 RUN a\\\\", "2 CMD b"]);
        assert_eq!(texts("RUN a \\"), ["1 RUN a"]);
        let lines = split("RUN a \\\n\nb").unwrap();
        assert_eq!(lines.warnings.len(), 1);
    }

    #[test]
    fn directives_count_only_at_the_top() {
        let lines = split("# syntax=docker/dockerfile:1\n# escape=`\nRUN a `\nb\\\nCMD c").unwrap();
        assert_eq!(lines.escape, '`');
        assert_eq!(lines.lines[0].text, "RUN a b\\");
        assert_eq!(split("# words\n# escape=`\nRUN a").unwrap().escape, '\\');
        let refused = |file: &str| split(file).unwrap_err().to_string();
        assert_eq!(
            refused("# escape=x\nRUN a"),
            "dockerfile parse error on line 1: invalid escape token 'x' does not match ` or \\"
        );
        assert_eq!(
            refused("# escape=`\n# escape=`\nRUN a"),
            "dockerfile parse error on line 2: only one escape parser directive can be used"
        );
        assert_eq!(
            refused("# nothing\n\n"),
            "dockerfile parse error on line 1: file with no instructions"
        );
    }
}
