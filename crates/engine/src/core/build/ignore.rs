//! `.dockerignore`, and the patterns of `COPY`.

/// A pattern that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("illegal exclusion pattern: {0:?}")]
pub struct InvalidPattern(pub String);

/// What a build context leaves out. The last pattern that matches a path, or a directory above it, decides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IgnoreList {
    patterns: Vec<Pattern>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    /// `!`: takes back what an earlier pattern left out.
    includes: bool,
    parts: Vec<String>,
}

impl IgnoreList {
    /// Reads the file: a pattern per line, `#` in the first column begins a comment.
    pub fn parse(text: &str) -> Result<Self, InvalidPattern> {
        let mut patterns = Vec::new();
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let line = line.trim();
            let (includes, body) = match line.strip_prefix('!') {
                Some(rest) => (true, rest.trim()),
                None => (false, line),
            };
            let mut parts: Vec<String> = Vec::new();
            for part in body.split('/').filter(|part| !matches!(*part, "" | ".")) {
                if part == ".." {
                    parts.pop();
                } else {
                    parts.push(part.to_owned());
                }
            }
            if line.is_empty() || (body.trim_matches('/').is_empty() && !includes) {
                continue;
            }
            if parts.is_empty() && includes {
                return Err(InvalidPattern(line.to_owned()));
            }
            if parts.iter().any(|part| !is_well_formed(part)) {
                return Err(InvalidPattern(line.to_owned()));
            }
            // `.` is everything, and everything is not what anybody means by it.
            if !parts.is_empty() {
                patterns.push(Pattern { includes, parts });
            }
        }
        Ok(Self { patterns })
    }

    /// Whether the file or directory at `path`, relative to the context and cleaned, is left out.
    pub fn excludes(&self, path: &str) -> bool {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let mut excluded = false;
        for pattern in &self.patterns {
            let matched = (1..=parts.len()).any(|end| matches_parts(&pattern.parts, &parts[..end]));
            if matched {
                excluded = !pattern.includes;
            }
        }
        excluded
    }

    /// Whether a later pattern may take back something below an excluded directory, so that it must be looked into.
    pub fn may_include_below(&self, directory: &str) -> bool {
        let parts: Vec<&str> = directory
            .split('/')
            .filter(|part| !part.is_empty())
            .collect();
        let includes = self.patterns.iter().filter(|pattern| pattern.includes);
        includes.into_iter().any(|pattern| {
            let shared = parts.len().min(pattern.parts.len());
            pattern.parts.iter().any(|part| part == "**")
                || (0..shared).all(|at| matches_glob(&pattern.parts[at], parts[at]))
        })
    }
}

/// `**` stands for any number of directories, also none.
fn matches_parts(pattern: &[String], path: &[&str]) -> bool {
    match pattern.split_first() {
        None => path.is_empty(),
        Some((first, rest)) if first == "**" => {
            (0..=path.len()).any(|skip| matches_parts(rest, &path[skip..]))
                // Nothing after it: everything below, but not the directory itself.
                && !(rest.is_empty() && path.is_empty())
        }
        Some((first, rest)) => match path.split_first() {
            Some((name, below)) => matches_glob(first, name) && matches_parts(rest, below),
            None => false,
        },
    }
}

/// Go's `path.Match` for one component: `*`, `?`, `[a-z]`, `[^a]` and `\` before a literal. A malformed class matches
/// nothing.
pub fn matches_glob(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), name.chars().collect());
    // Where the last star stood, and up to where it has eaten.
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        if pattern.get(p) == Some(&'*') {
            star = Some((p + 1, n));
            p += 1;
            continue;
        }
        if p == pattern.len() && n == name.len() {
            return true;
        }
        match (p < pattern.len())
            .then(|| one(&pattern, p, &name, n))
            .flatten()
        {
            Some(next) => (p, n) = (next, n + 1),
            None => match star {
                Some((after, eaten)) if eaten < name.len() => {
                    star = Some((after, eaten + 1));
                    (p, n) = (after, eaten + 1);
                }
                _ => return false,
            },
        }
    }
}

/// Matches one character; returns where the pattern goes on.
fn one(pattern: &[char], at: usize, name: &[char], n: usize) -> Option<usize> {
    let c = *name.get(n)?;
    match pattern[at] {
        '?' => Some(at + 1),
        '\\' => (pattern.get(at + 1) == Some(&c)).then_some(at + 2),
        '[' => {
            let mut next = at + 1;
            let negated = pattern.get(next) == Some(&'^');
            next += usize::from(negated);
            let mut found = false;
            let mut first = true;
            loop {
                let mut low = *pattern.get(next)?;
                if low == ']' && !first {
                    return (found != negated).then_some(next + 1);
                }
                first = false;
                if low == '\\' {
                    next += 1;
                    low = *pattern.get(next)?;
                }
                next += 1;
                let mut high = low;
                if pattern.get(next) == Some(&'-') {
                    next += 1;
                    high = *pattern.get(next)?;
                    if high == '\\' {
                        next += 1;
                        high = *pattern.get(next)?;
                    }
                    next += 1;
                }
                found |= low <= c && c <= high;
            }
        }
        literal => (literal == c).then_some(at + 1),
    }
}

fn is_well_formed(part: &str) -> bool {
    let mut chars = part.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' if chars.next().is_none() => return false,
            '[' => {
                let mut any = false;
                loop {
                    match chars.next() {
                        None => return false,
                        Some(']') if any => break,
                        Some('\\') if chars.next().is_none() => return false,
                        Some('^') if !any => {}
                        Some(_) => any = true,
                    }
                }
            }
            _ => {}
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(list: &str, excluded: &[&str], kept: &[&str]) {
        let list = IgnoreList::parse(list).unwrap();
        for path in excluded {
            assert!(list.excludes(path), "{path} is kept");
        }
        for path in kept {
            assert!(!list.excludes(path), "{path} is left out");
        }
    }

    #[test]
    fn patterns_leave_out_what_docker_leaves_out() {
        check(
            "# c\n*.md\n!README.md\n",
            &["a.md"],
            &["README.md", "d/a.md", "a.mdx"],
        );
        check("**/*.go", &["a.go", "x/y/a.go"], &["a.god"]);
        check("*/temp*", &["a/temp", "a/tempx/y"], &["temp", "a/b/temp"]);
        check("temp?", &["tempa"], &["temp", "tempab"]);
        check(
            "/node_modules/",
            &["node_modules", "node_modules/a"],
            &["b/node_modules"],
        );
        check("a/**", &["a/b", "a/b/c"], &["a"]);
        check("a/**/z", &["a/z", "a/b/c/z"], &["a/b"]);
        check("*\n!src\n!src/**", &["a", "b/c"], &["src", "src/a/b"]);
        check(
            "src\n!src/keep",
            &["src", "src/a"],
            &["src/keep", "src/keep/x"],
        );
        check("!a\na", &["a"], &[]);
        check("./x/../y", &["y"], &["x"]);
        check("\n  \n.\n", &[], &["a"]);
        check("[a-c].txt\n\\*", &["b.txt", "*"], &["d.txt", "x"]);
    }

    #[test]
    fn a_directory_with_exceptions_below_is_looked_into() {
        let list = IgnoreList::parse("src\n!src/keep/x").unwrap();
        assert!(list.may_include_below("src") && list.may_include_below("src/keep"));
        assert!(!list.may_include_below("src/other") && !list.may_include_below("lib"));
    }

    #[test]
    fn malformed_patterns_are_refused() {
        for bad in ["[", "a/[b", "x\\", "!", "[]"] {
            assert_eq!(
                IgnoreList::parse(bad),
                Err(InvalidPattern(bad.to_owned())),
                "{bad}"
            );
        }
    }

    /// The textbook matcher, slow and plain.
    fn slow(pattern: &[u8], name: &[u8]) -> bool {
        match pattern.split_first() {
            None => name.is_empty(),
            Some((b'*', rest)) => (0..=name.len()).any(|skip| slow(rest, &name[skip..])),
            Some((first, rest)) => name
                .split_first()
                .is_some_and(|(n, below)| (*first == b'?' || first == n) && slow(rest, below)),
        }
    }

    proptest! {
        #[test]
        fn the_matcher_agrees_with_the_textbook(pattern in "[ab*?]{0,8}", name in "[ab]{0,8}") {
            prop_assert_eq!(matches_glob(&pattern, &name), slow(pattern.as_bytes(), name.as_bytes()));
        }

        #[test]
        fn no_list_makes_it_panic(list in "[a*?!/\\[\\]^.\\\\\n-]{0,40}", path in "[a/.]{0,20}") {
            if let Ok(list) = IgnoreList::parse(&list) {
                let _ = list.excludes(&path);
            }
        }

        #[test]
        fn what_is_below_an_excluded_directory_is_excluded(dir in "[a-c]{1,3}", file in "[a-c/]{1,9}") {
            let list = IgnoreList::parse(&dir).unwrap();
            let path = format!("{dir}/{file}");
            prop_assert!(list.excludes(&path));
        }
    }
}
