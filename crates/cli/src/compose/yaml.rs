//! YAML as a tree that remembers where everything stands and how numbers were written.

use std::{fmt, path::Path, rc::Rc};

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::Problem;

/// Where something stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) file: Rc<str>,
    pub(super) line: u64,
    /// Where relative paths count from; `None` is the folder of the first file.
    pub(super) folder: Option<Rc<Path>>,
}

impl Place {
    /// A problem here.
    pub(super) fn problem(&self, what: impl Into<String>) -> Problem {
        Problem {
            file: self.file.to_string(),
            line: self.line,
            what: what.into(),
        }
    }
}

/// A value.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) place: Place,
    /// Names from the top, for messages.
    pub(super) path: String,
    pub(super) value: Yaml,
}

/// Kinds of values.
#[derive(Debug, Clone)]
pub(super) enum Yaml {
    Null,
    /// A boolean or number, as it was written.
    Plain(String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key of a map.
#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) name: String,
    pub(super) place: Place,
}

/// Parses one document.
pub(super) fn parse(file: &str, text: &str, folder: Option<&Rc<Path>>) -> Result<Node, Problem> {
    let at = |line| Place {
        file: file.into(),
        line,
        folder: folder.cloned(),
    };
    let file = at(1);
    let options = serde_saphyr::options! {
        strict_booleans: true,
        with_snippet: false,
        // Text in the end, so nothing is too great.
        non_finite_float_policy: serde_saphyr::NonFiniteFloatPolicy::AsString,
    };
    let raw: Spanned<Raw> =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            let line = error.location().map_or(1, |location| location.line());
            let what = error.to_string();
            // The position stands before the text already.
            let what = what
                .split(" at line ")
                .next()
                .unwrap_or_default()
                .lines()
                .next()
                .unwrap_or_default()
                .to_owned();
            at(line).problem(what)
        })?;
    Ok(node(raw, text, &file, String::new()))
}

enum Raw {
    Null,
    Plain(String),
    Text(String),
    List(Vec<Spanned<Self>>),
    Map(Vec<(Spanned<String>, Spanned<Self>)>),
}

fn node(raw: Spanned<Raw>, text: &str, file: &Place, path: String) -> Node {
    let place = Place {
        line: raw.referenced.line().max(1),
        ..file.clone()
    };
    let value = match raw.value {
        Raw::Null => Yaml::Null,
        Raw::Plain(parsed) => {
            let span = raw.defined.span();
            let written = span
                .byte_offset()
                .zip(span.byte_len())
                .and_then(|(start, length)| {
                    let start = usize::try_from(start).ok()?;
                    text.get(start..start + usize::try_from(length).ok()?)
                });
            Yaml::Plain(
                written
                    .map(str::trim)
                    .filter(|text| !text.is_empty())
                    .map_or(parsed, str::to_owned),
            )
        }
        Raw::Text(text) => Yaml::Text(text),
        Raw::List(items) => {
            let place = |(i, item)| node(item, text, file, format!("{path}[{i}]"));
            Yaml::List(items.into_iter().enumerate().map(place).collect())
        }
        Raw::Map(entries) => Yaml::Map(
            entries
                .into_iter()
                .map(|(key, value)| {
                    let place = Place {
                        line: key.referenced.line().max(1),
                        ..file.clone()
                    };
                    let path = match path.is_empty() {
                        true => key.value.clone(),
                        false => format!("{path}.{}", key.value),
                    };
                    (
                        Key {
                            name: key.value,
                            place,
                        },
                        node(value, text, file, path),
                    )
                })
                .collect(),
        ),
    };
    Node { place, path, value }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Raw;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a YAML value")
            }
            fn visit_unit<E>(self) -> Result<Raw, E> {
                Ok(Raw::Null)
            }
            fn visit_none<E>(self) -> Result<Raw, E> {
                Ok(Raw::Null)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
                Ok(Raw::Plain(value.to_string()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
                Ok(Raw::Plain(value.to_string()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
                Ok(Raw::Plain(value.to_string()))
            }
            fn visit_i128<E>(self, value: i128) -> Result<Raw, E> {
                Ok(Raw::Plain(value.to_string()))
            }
            fn visit_u128<E>(self, value: u128) -> Result<Raw, E> {
                Ok(Raw::Plain(value.to_string()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
                Ok(Raw::Plain(value.to_string()))
            }
            fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
                Ok(Raw::Text(value.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = access.next_element()? {
                    items.push(item);
                }
                Ok(Raw::List(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = access.next_entry()? {
                    entries.push(entry);
                }
                Ok(Raw::Map(entries))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// Writes a tree as YAML.
pub(super) fn write(node: &Node) -> String {
    let mut out = String::new();
    block(node, 0, &mut out);
    out
}

fn block(node: &Node, indent: usize, out: &mut String) {
    let pad = "  ".repeat(indent);
    match &node.value {
        Yaml::Map(entries) => {
            for (key, value) in entries {
                out.push_str(&format!("{pad}{}:", quoted(&key.name)));
                nested(value, indent, out);
            }
        }
        Yaml::List(items) => {
            for item in items {
                out.push_str(&format!("{pad}-"));
                match &item.value {
                    // The first entry stands beside the dash.
                    Yaml::Map(entries) if !entries.is_empty() => {
                        let mut inner = String::new();
                        block(item, indent + 1, &mut inner);
                        out.push(' ');
                        out.push_str(inner.trim_start());
                    }
                    _ => nested(item, indent, out),
                }
            }
        }
        _ => {
            out.push_str(&pad);
            out.push_str(&scalar(node));
            out.push('\n');
        }
    }
}

fn nested(node: &Node, indent: usize, out: &mut String) {
    match &node.value {
        Yaml::Map(entries) if entries.is_empty() => out.push_str(" {}\n"),
        Yaml::List(items) if items.is_empty() => out.push_str(" []\n"),
        Yaml::Map(_) | Yaml::List(_) => {
            out.push('\n');
            block(node, indent + 1, out);
        }
        _ => out.push_str(&format!(" {}\n", scalar(node))),
    }
}

fn scalar(node: &Node) -> String {
    match &node.value {
        Yaml::Plain(text) => text.clone(),
        Yaml::Text(text) => quoted(text),
        _ => "null".to_owned(),
    }
}

/// Text that every YAML parser reads back as text: bare where it cannot be anything else.
fn quoted(text: &str) -> String {
    let bare = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-./@=+".contains(c))
        && !["true", "false", "null", "yes", "no", "on", "off", "y", "n"]
            .contains(&text.to_ascii_lowercase().as_str());
    if bare {
        text.to_owned()
    } else {
        // A JSON string is a YAML string.
        serde_json::Value::from(text).to_string()
    }
}
