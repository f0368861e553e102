//! Taking values out of the tree with their types; what nobody took is unknown.

use super::{
    Problem,
    yaml::{Key, Node, Place, Yaml},
};
use crate::flags::quantity;

/// The entries of a map that are still to be taken.
pub(super) struct Fields<'a> {
    path: String,
    left: Vec<(&'a Key, &'a Node)>,
    known: Vec<String>,
}

impl<'a> Fields<'a> {
    /// The fields of a map; an empty value has none.
    pub(super) fn of(node: &'a Node, path: &str) -> Result<Self, Problem> {
        let left = node.entries()?.collect();
        Ok(Self {
            path: path.to_owned(),
            left,
            known: Vec::new(),
        })
    }

    /// Where the map stands, as names from the top.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Takes a value; nothing if it is missing or null.
    pub(super) fn take(&mut self, name: &str) -> Option<&'a Node> {
        self.take_with_key(name)
            .map(|(_, node)| node)
            .filter(|node| !matches!(node.value, Yaml::Null))
    }

    /// Takes a value, null or not, together with the place of its key.
    pub(super) fn take_with_key(&mut self, name: &str) -> Option<(&'a Place, &'a Node)> {
        self.known.push(name.to_owned());
        let at = self.left.iter().position(|(key, _)| key.name == name)?;
        let (key, node) = self.left.remove(at);
        Some((&key.place, node))
    }

    /// Takes a text, or an empty one.
    pub(super) fn text(&mut self, name: &str) -> Result<String, Problem> {
        Ok(self.maybe(name, Node::text)?.unwrap_or_default())
    }

    /// Takes a flag; missing is false.
    pub(super) fn flag(&mut self, name: &str) -> Result<bool, Problem> {
        Ok(self.maybe(name, Node::boolean)?.unwrap_or(false))
    }

    /// Takes a value through `read` if it is there.
    pub(super) fn maybe<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&'a Node) -> Result<T, Problem>,
    ) -> Result<Option<T>, Problem> {
        self.take(name).map(read).transpose()
    }

    /// Takes a list through `read`, or an empty one.
    pub(super) fn all<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&'a Node) -> Result<Vec<T>, Problem>,
    ) -> Result<Vec<T>, Problem> {
        Ok(self.maybe(name, read)?.unwrap_or_default())
    }

    /// Refuses what is left, extensions (`x-…`) aside.
    pub(super) fn finish(self) -> Result<(), Problem> {
        let Some((key, _)) = self
            .left
            .iter()
            .find(|(key, _)| !key.name.starts_with("x-"))
        else {
            return Ok(());
        };
        let hint = self
            .known
            .iter()
            .map(|known| (distance(known, &key.name), known))
            .filter(|(distance, known)| *distance <= 1 + known.len() / 4)
            .min();
        let hint = hint
            .map(|(_, known)| format!("; did you mean {known:?}?"))
            .unwrap_or_default();
        let path = if self.path.is_empty() {
            "(root)"
        } else {
            &self.path
        };
        Err(key.place.problem(format!(
            "{path} Additional property {} is not allowed{hint}",
            key.name
        )))
    }
}

/// Edits between two words (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

impl Node {
    /// A problem with this value.
    pub(super) fn problem(&self, what: impl std::fmt::Display) -> Problem {
        self.place.problem(format!("{} {what}", self.path))
    }

    /// The entries of a map; none if there is no value.
    pub(super) fn entries(&self) -> Result<impl Iterator<Item = (&Key, &Self)>, Problem> {
        let entries: &[(Key, Self)] = match &self.value {
            Yaml::Map(entries) => entries,
            Yaml::Null => &[],
            _ => return Err(self.problem("must be a mapping")),
        };
        Ok(entries.iter().map(|(key, node)| (key, node)))
    }

    /// The items of a list.
    pub(super) fn items(&self) -> Result<&[Self], Problem> {
        match &self.value {
            Yaml::List(items) => Ok(items),
            _ => Err(self.problem("must be a list")),
        }
    }

    /// A scalar as text.
    pub(super) fn text(&self) -> Result<String, Problem> {
        match &self.value {
            Yaml::Text(text) | Yaml::Plain(text) => Ok(text.clone()),
            _ => Err(self.problem("must be a string")),
        }
    }

    /// A boolean; variables may have filled it in as text.
    pub(super) fn boolean(&self) -> Result<bool, Problem> {
        match self.text()?.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "y" => Ok(true),
            "false" | "no" | "off" | "n" => Ok(false),
            _ => Err(self.problem("must be a boolean")),
        }
    }

    /// A whole number.
    pub(super) fn integer<T: TryFrom<i64>>(&self) -> Result<T, Problem> {
        let text = self.text()?;
        let number: Option<i64> = text.replace('_', "").parse().ok();
        number
            .and_then(|number| number.try_into().ok())
            .ok_or_else(|| self.problem(format!("must be an integer, not {text:?}")))
    }

    /// A number.
    pub(super) fn float(&self) -> Result<f64, Problem> {
        let text = self.text()?;
        text.parse()
            .map_err(|_| self.problem(format!("must be a number, not {text:?}")))
    }

    /// Permission bits: octal with a leading zero, as YAML and people write them.
    pub(super) fn mode(&self) -> Result<u32, Problem> {
        let text = self.text()?;
        let digits = text.strip_prefix("0o").or_else(|| text.strip_prefix('0'));
        let mode = match digits {
            Some(digits) if !digits.is_empty() => u32::from_str_radix(digits, 8).ok(),
            _ => text.parse().ok(),
        };
        mode.filter(|mode| *mode <= 0o7777)
            .ok_or_else(|| self.problem(format!("must be a file mode, not {text:?}")))
    }

    /// A duration in nanoseconds.
    pub(super) fn duration(&self) -> Result<i64, Problem> {
        quantity::duration(&self.text()?).map_err(|error| self.problem(format!("is an {error}")))
    }

    /// A size in bytes.
    pub(super) fn bytes(&self) -> Result<i64, Problem> {
        quantity::bytes(&self.text()?).map_err(|error| self.problem(format!("is an {error}")))
    }

    /// CPUs in billionths.
    pub(super) fn cpus(&self) -> Result<i64, Problem> {
        quantity::cpus(&self.text()?).map_err(|error| self.problem(format!("is wrong: {error}")))
    }

    /// A list of texts; one text alone is a list of one.
    pub(super) fn texts(&self) -> Result<Vec<String>, Problem> {
        match &self.value {
            Yaml::List(items) => items.iter().map(Self::text).collect(),
            _ => Ok(vec![self.text()?]),
        }
    }

    /// A command: a list of words, or one line that is taken apart as a shell would.
    pub(super) fn command(&self) -> Result<Vec<String>, Problem> {
        match &self.value {
            Yaml::List(items) => items.iter().map(Self::text).collect(),
            _ => crate::command::words(&self.text()?)
                .map_err(|error| self.problem(format!("is wrong: {error}"))),
        }
    }

    /// A map, or a list of `key=value`; a key alone has no value.
    pub(super) fn pairs(&self) -> Result<Vec<(String, Option<String>)>, Problem> {
        match &self.value {
            Yaml::List(items) => items
                .iter()
                .map(|item| {
                    let text = item.text()?;
                    Ok(match text.split_once('=') {
                        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                        None => (text, None),
                    })
                })
                .collect(),
            _ => self
                .entries()?
                .map(|(key, value)| {
                    let value = match &value.value {
                        Yaml::Null => None,
                        _ => Some(value.text()?),
                    };
                    Ok((key.name.clone(), value))
                })
                .collect(),
        }
    }

    /// Labels or options: a missing value is an empty one.
    pub(super) fn labels(&self) -> Result<serde_json::Map<String, serde_json::Value>, Problem> {
        let pairs = self.pairs()?.into_iter();
        Ok(pairs
            .map(|(key, value)| (key, value.unwrap_or_default().into()))
            .collect())
    }

    /// One of several words.
    pub(super) fn one_of(&self, words: &[&str]) -> Result<String, Problem> {
        let text = self.text()?;
        if words.contains(&text.as_str()) {
            Ok(text)
        } else {
            Err(self.problem(format!("must be one of {}, not {text:?}", words.join(", "))))
        }
    }
}
