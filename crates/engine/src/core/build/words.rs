//! Variables in words: `$name`, `${name}`, `${name:-word}` and its kin, quotes and escapes.
//!
//! The grammar is that of the Dockerfile reference, "Environment replacement".

/// How deep a default may hold further variables.
const DEPTH_MAX: usize = 64;

/// The word cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("failed to process {word:?}: {reason}")]
pub struct SubstitutionError {
    pub word: String,
    pub reason: String,
}

/// Replaces the variables of a word and takes its quotes away; `env` holds `NAME=value`, the last one counts.
pub fn substitute(word: &str, env: &[String], escape: char) -> Result<String, SubstitutionError> {
    Ok(run(word, env, escape)?.text)
}

/// The same for a text that may become several words, at spaces outside quotes.
pub fn substitute_words(
    word: &str,
    env: &[String],
    escape: char,
) -> Result<Vec<String>, SubstitutionError> {
    let mut reader = run(word, env, escape)?;
    reader.end_word();
    Ok(reader.words)
}

fn run<'a>(
    word: &'a str,
    env: &'a [String],
    escape: char,
) -> Result<Reader<'a>, SubstitutionError> {
    let mut reader = Reader {
        rest: word.chars().peekable(),
        env,
        escape,
        text: String::new(),
        words: Vec::new(),
        word: None,
    };
    let done = reader.until(None, 0);
    done.map_err(|reason| SubstitutionError {
        word: word.to_owned(),
        reason,
    })?;
    Ok(reader)
}

struct Reader<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    env: &'a [String],
    escape: char,
    text: String,
    words: Vec<String>,
    /// The word begun; `Some("")` for one of quotes alone.
    word: Option<String>,
}

impl Reader<'_> {
    /// Reads to `stop`, or to the end if there is none, and returns what was read.
    fn until(&mut self, stop: Option<char>, depth: usize) -> Result<(), String> {
        if depth > DEPTH_MAX {
            return Err(format!("variables are nested more than {DEPTH_MAX} deep"));
        }
        loop {
            match self.rest.next() {
                None if stop.is_some() => {
                    return Err(
                        "unexpected end of statement while looking for matching }".to_owned()
                    );
                }
                None => return Ok(()),
                Some(c) if Some(c) == stop => return Ok(()),
                Some('\'') => self.single_quoted()?,
                Some('"') => self.double_quoted(depth)?,
                Some('$') => {
                    let value = self.variable(depth)?;
                    self.push_value(&value);
                }
                Some(c) if c == self.escape => {
                    if let Some(c) = self.rest.next() {
                        self.push(c);
                    }
                }
                Some(c) if c.is_whitespace() => {
                    self.text.push(c);
                    self.end_word();
                }
                Some(c) => self.push(c),
            }
        }
    }

    fn push(&mut self, c: char) {
        self.text.push(c);
        self.word.get_or_insert_default().push(c);
    }

    /// A value outside quotes: its spaces separate words.
    fn push_value(&mut self, value: &str) {
        self.text.push_str(value);
        for c in value.chars() {
            if c.is_whitespace() {
                self.end_word();
            } else {
                self.word.get_or_insert_default().push(c);
            }
        }
    }

    fn end_word(&mut self) {
        self.words.extend(self.word.take());
    }

    fn single_quoted(&mut self) -> Result<(), String> {
        self.word.get_or_insert_default();
        loop {
            match self.rest.next() {
                None => {
                    return Err(
                        "unexpected end of statement while looking for matching single-quote"
                            .to_owned(),
                    );
                }
                Some('\'') => return Ok(()),
                Some(c) => self.push(c),
            }
        }
    }

    fn double_quoted(&mut self, depth: usize) -> Result<(), String> {
        self.word.get_or_insert_default();
        let end =
            || "unexpected end of statement while looking for matching double-quote".to_owned();
        loop {
            match self.rest.next().ok_or_else(end)? {
                '"' => return Ok(()),
                '$' => {
                    let value = self.variable(depth)?;
                    self.text.push_str(&value);
                    self.word.get_or_insert_default().push_str(&value);
                }
                c if c == self.escape => {
                    let next = self.rest.next().ok_or_else(end)?;
                    if next != '"' && next != '$' && next != self.escape {
                        self.push(c);
                    }
                    self.push(next);
                }
                c => self.push(c),
            }
        }
    }

    /// What stands after a dollar sign.
    fn variable(&mut self, depth: usize) -> Result<String, String> {
        if self.rest.peek() != Some(&'{') {
            let name = self.name();
            return Ok(match name.as_str() {
                "" => "$".to_owned(),
                name => self.value(name).unwrap_or_default(),
            });
        }
        self.rest.next();
        match self.rest.peek() {
            None => return Err("syntax error: missing '}'".to_owned()),
            Some('{' | '}' | ':') => return Err("syntax error: bad substitution".to_owned()),
            Some(_) => {}
        }
        let name = self.name();
        let value = self.value(&name);
        let (colon, modifier) = match self.rest.next() {
            None => return Err("syntax error: missing '}'".to_owned()),
            Some('}') => return Ok(value.unwrap_or_default()),
            Some(':') => (true, self.rest.next()),
            other => (false, other),
        };
        // Without a colon only an unset variable counts as missing, with one an empty one does, too.
        let present = value
            .as_ref()
            .filter(|value| !colon || !value.is_empty())
            .cloned();
        match modifier {
            Some(modifier @ ('-' | '+' | '?')) => {
                let word = self.alternative(depth)?;
                match (modifier, present) {
                    ('-', present) => Ok(present.unwrap_or(word)),
                    ('+', present) => Ok(present.map(|_| word).unwrap_or_default()),
                    (_, Some(value)) => Ok(value),
                    (_, None) if word.is_empty() && colon => {
                        Err(format!("{name}: not allowed to be empty"))
                    }
                    (_, None) if word.is_empty() => Err(format!("{name}: not allowed to be unset")),
                    (_, None) => Err(format!("{name}: {word}")),
                }
            }
            Some(other) => Err(format!("unsupported modifier ({other}) in substitution")),
            None => Err("syntax error: missing modifier in substitution".to_owned()),
        }
    }

    /// The word after a modifier, up to its closing brace, with its own variables replaced.
    fn alternative(&mut self, depth: usize) -> Result<String, String> {
        let (text, words, word) = (
            std::mem::take(&mut self.text),
            std::mem::take(&mut self.words),
            self.word.take(),
        );
        let read = self.until(Some('}'), depth + 1);
        let inner = std::mem::replace(&mut self.text, text);
        (self.words, self.word) = (words, word);
        read.map(|()| inner)
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        let Some(&first) = self.rest.peek() else {
            return name;
        };
        if matches!(first, '@' | '*' | '#' | '?' | '-' | '$' | '!') {
            self.rest.next();
            return first.to_string();
        }
        let digits_only = first.is_ascii_digit();
        while let Some(&c) = self.rest.peek() {
            let fits = if digits_only {
                c.is_ascii_digit()
            } else {
                c.is_alphanumeric() || c == '_'
            };
            if !fits {
                break;
            }
            name.push(c);
            self.rest.next();
        }
        name
    }

    fn value(&self, name: &str) -> Option<String> {
        self.env.iter().rev().find_map(|entry| {
            let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
            (key == name).then(|| value.to_owned())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn env() -> Vec<String> {
        ["A=x", "E=", "S=p q", "PATH=/bin"]
            .map(str::to_owned)
            .to_vec()
    }

    #[track_caller]
    fn check(word: &str, expected: &str) {
        assert_eq!(
            substitute(word, &env(), '\\').as_deref(),
            Ok(expected),
            "{word}"
        );
    }

    #[test]
    fn variables_are_replaced_as_the_reference_says() {
        check("$A-${A}b-$B.", "x-xb-.");
        check("${B:-d}${E:-d}${A:-d}", "ddx");
        check("${B-d}${E-d}", "d");
        check("${B:+d}${E:+d}${A:+d}", "d");
        check("${E+d}", "d");
        check("${B:-${A}/$E}", "x/");
        check("${B:-a\\}b}", "a}b");
        check("\\$A '$A' \"$A\" \"\\$A\" \"a\\b\"", "$A $A x $A a\\b");
        check("$", "$");
        check("a$/b", "a$/b");
        check("$1x", "x");
        check("${A:?no}", "x");
        assert_eq!(substitute("`$A", &env(), '`').as_deref(), Ok("$A"));
    }

    #[test]
    fn broken_words_say_why() {
        let why = |word: &str| substitute(word, &env(), '\\').unwrap_err().reason;
        assert_eq!(why("${A"), "syntax error: missing '}'");
        assert_eq!(why("${}"), "syntax error: bad substitution");
        assert_eq!(why("${A:x}"), "unsupported modifier (x) in substitution");
        assert_eq!(why("${B:?gone}"), "B: gone");
        assert!(why("'a").contains("single-quote") && why("\"a").contains("double-quote"));
        assert!(why(&"${B:-".repeat(1000)).contains("nested"));
    }

    #[test]
    fn values_split_into_words_outside_quotes_only() {
        let words = |word: &str| substitute_words(word, &env(), '\\').unwrap();
        assert_eq!(words("$S \"$S\" a'b c' ''"), ["p", "q", "p q", "ab c", ""]);
    }

    proptest! {
        #[test]
        fn no_word_makes_it_panic(word in ".{0,40}") {
            let _ = substitute(&word, &env(), '\\');
            let _ = substitute_words(&word, &env(), '`');
        }

        #[test]
        fn plain_words_stay_as_they_are(word in "[a-zA-Z0-9_./:=@%+,-]{0,40}") {
            prop_assert_eq!(substitute(&word, &env(), '\\').unwrap(), word);
        }

        #[test]
        fn single_quotes_keep_everything(word in "[^']{0,40}") {
            prop_assert_eq!(substitute(&format!("'{word}'"), &env(), '\\').unwrap(), word);
        }
    }
}
