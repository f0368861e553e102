//! `.dockerignore`: which files of a build's context stay at home.
//!
//! Patterns are rooted at the context, `**` stands for any number of folders, `!` takes a file back in, and the last
//! pattern that fits decides (Docker's documentation of the file).

/// The patterns of a file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Patterns(Vec<Pattern>);

#[derive(Debug, Clone)]
struct Pattern {
    /// The names of the path, each with `*`, `?` and `[…]`; `**` is any number of names.
    parts: Vec<String>,
    /// Takes back in.
    negated: bool,
}

impl Patterns {
    /// Reads a file; a wrong pattern is refused with its line.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let mut all = Vec::new();
        for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            // A comment stands at the start of its line.
            if line.starts_with('#') {
                continue;
            }
            let line = line.trim();
            let (negated, rest) = match line.strip_prefix('!') {
                Some(rest) => (true, rest.trim()),
                None => (false, line),
            };
            if line.is_empty() {
                continue;
            }
            let parts = clean(rest);
            if negated && parts.is_empty() {
                anyhow::bail!(
                    ".dockerignore:{}: illegal exclusion pattern: \"!\"",
                    number + 1
                );
            }
            if let Some(bad) = parts.iter().find(|part| !well_formed(part)) {
                anyhow::bail!(
                    ".dockerignore:{}: syntax error in pattern {bad:?}",
                    number + 1
                );
            }
            // The context itself cannot be left out.
            if !parts.is_empty() {
                all.push(Pattern { parts, negated });
            }
        }
        Ok(Self(all))
    }

    /// Whether a path of the context stays at home, itself or by a folder that it is in.
    pub(crate) fn leaves_out(&self, path: &[&str]) -> bool {
        let mut out = false;
        for pattern in &self.0 {
            if pattern.negated == out && pattern.fits_or_holds(path) {
                out = !pattern.negated;
            }
        }
        out
    }

    /// Whether something below a folder that is left out may be taken back in.
    pub(crate) fn may_take_back_below(&self, folder: &[&str]) -> bool {
        self.0
            .iter()
            .any(|pattern| pattern.negated && may_begin(&pattern.parts, folder))
    }
}

impl Pattern {
    fn fits_or_holds(&self, path: &[&str]) -> bool {
        (1..=path.len()).any(|length| fits(&self.parts, &path[..length]))
    }
}

/// The names of a pattern, without what says nothing.
fn clean(text: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part.to_owned()),
        }
    }
    parts
}

fn fits(pattern: &[String], path: &[&str]) -> bool {
    match pattern.split_first() {
        None => path.is_empty(),
        Some((first, rest)) if first == "**" => {
            // At its end it stands for at least one name.
            if rest.is_empty() {
                return !path.is_empty();
            }
            (0..=path.len()).any(|skipped| fits(rest, &path[skipped..]))
        }
        Some((first, rest)) => match path.split_first() {
            None => false,
            Some((name, below)) => name_fits(first, name) && fits(rest, below),
        },
    }
}

/// Whether a path that begins with `folder` can fit.
fn may_begin(pattern: &[String], folder: &[&str]) -> bool {
    match (pattern.split_first(), folder.split_first()) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some((first, _)), _) if first.contains("**") => true,
        (Some((first, rest)), Some((name, below))) => {
            name_fits(first, name) && may_begin(rest, below)
        }
    }
}

/// Whether brackets are closed and nothing is escaped by the end.
fn well_formed(part: &str) -> bool {
    let mut chars = part.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' if chars.next().is_none() => return false,
            '[' if !chars.by_ref().any(|c| c == ']') => return false,
            _ => {}
        }
    }
    true
}

/// Matches one name against `*`, `?`, `[a-z]`, `[^a]` and `\x` (Go's `filepath.Match`).
fn name_fits(pattern: &str, name: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    matches(&pattern, &name)
}

fn matches(pattern: &[char], name: &[char]) -> bool {
    match pattern.split_first() {
        None => name.is_empty(),
        Some(('*', rest)) => (0..=name.len()).any(|skipped| matches(rest, &name[skipped..])),
        Some(('?', rest)) => !name.is_empty() && matches(rest, &name[1..]),
        Some(('[', rest)) => {
            let Some(end) = rest.iter().position(|c| *c == ']') else {
                return false;
            };
            let Some((c, below)) = name.split_first() else {
                return false;
            };
            let (set, negated) = match rest[..end].split_first() {
                Some(('^', set)) => (set, true),
                _ => (&rest[..end], false),
            };
            in_set(set, *c) != negated && matches(&rest[end + 1..], below)
        }
        Some(('\\', rest)) if !rest.is_empty() => {
            name.first() == rest.first() && matches(&rest[1..], &name[1..])
        }
        Some((c, rest)) => name.first() == Some(c) && matches(rest, &name[1..]),
    }
}

fn in_set(set: &[char], c: char) -> bool {
    let mut at = 0;
    while at < set.len() {
        if at + 2 < set.len() && set[at + 1] == '-' {
            if (set[at]..=set[at + 2]).contains(&c) {
                return true;
            }
            at += 3;
        } else {
            if set[at] == c {
                return true;
            }
            at += 1;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out(file: &str, path: &str) -> bool {
        let path: Vec<&str> = path.split('/').collect();
        Patterns::parse(file).unwrap().leaves_out(&path)
    }

    #[test]
    fn patterns_are_rooted_and_cover_what_is_below() {
        assert!(out("node_modules", "node_modules/a/b"));
        assert!(!out("node_modules", "sub/node_modules/a"));
        assert!(
            out("**/node_modules", "sub/deep/node_modules/a")
                && out("**/node_modules", "node_modules")
        );
        assert!(out("/a/../b/", "b/c") && out("./x", "x"));
        assert!(out("*/temp*", "some/temporary.txt") && !out("*/temp*", "a/b/temp"));
        assert!(out("temp?", "tempa") && !out("temp?", "temp"));
        assert!(out("a/**", "a/b") && out("**", "anything/at/all"));
        assert!(
            out("[a-c]x", "bx") && !out("[^a-c]x", "bx") && out("\\*", "*") && !out("\\*", "a")
        );
        assert!(!out("# comment\n\n", "# comment") && !out(".", "a"));
    }

    #[test]
    fn the_last_pattern_decides() {
        let file = "*.md\n!README*.md\nREADME-secret.md";
        assert!(out(file, "a.md") && !out(file, "README.md") && out(file, "README-secret.md"));
        assert!(!out("docs\n!docs/keep", "docs/keep") && out("docs\n!docs/keep", "docs/other"));
        let patterns = Patterns::parse("docs\n!docs/a/keep").unwrap();
        assert!(
            patterns.may_take_back_below(&["docs"]) && patterns.may_take_back_below(&["docs", "a"])
        );
        assert!(!patterns.may_take_back_below(&["docs", "b"]));
    }

    #[test]
    fn wrong_patterns_are_refused() {
        assert!(
            Patterns::parse("a\n!")
                .unwrap_err()
                .to_string()
                .contains(".dockerignore:2")
        );
        assert!(Patterns::parse("[a").is_err() && Patterns::parse("a\\").is_err());
    }
}
