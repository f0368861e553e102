//! Reading JSON objects so that nothing is lost: what was not read is refused by name.
//!
//! Docker's own server ignores what it does not know. For a spec that is the wrong kind of lenient: the user asked for
//! something and would not get it. Here whoever reads an object takes the members it can honour, and [`Fields::finish`]
//! refuses the rest unless it is zero as Go means it (`null`, `false`, `0`, `""`, empty).
//!
//! Members of the body itself that do not begin with a capital letter are no specification: the Engine API has none such
//! there, and client libraries pass their own options along with it (dockerode `name`, `version`).

use std::{collections::BTreeMap, time::Duration};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::backend::{ApiError, ApiResult};

/// An object that is being read.
#[derive(Debug)]
pub(crate) struct Fields {
    /// Where it is in the body, for messages; empty for the body itself.
    path: String,
    members: Map<String, Value>,
}

impl Fields {
    /// The body of a request; an empty body is an empty object.
    pub(crate) fn body(bytes: &[u8]) -> ApiResult<Self> {
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Self::new(String::new(), Value::Null);
        }
        let value = serde_json::from_slice(bytes).map_err(|error: serde_json::Error| {
            // What Go's decoder says of a body that breaks off.
            let cut = error.is_eof().then(|| "unexpected EOF".to_owned());
            let why = cut.unwrap_or_else(|| error.to_string());
            ApiError::invalid(format!("invalid JSON: {why}"))
        })?;
        Self::new(String::new(), value)
    }

    fn new(path: String, value: Value) -> ApiResult<Self> {
        match value {
            Value::Object(members) => Ok(Self { path, members }),
            Value::Null => Ok(Self {
                path,
                members: Map::new(),
            }),
            other => Err(ApiError::invalid(format!(
                "invalid {}: expected an object, not {}",
                if path.is_empty() { "body" } else { &path },
                kind(&other)
            ))),
        }
    }

    fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    /// Takes a member out, whatever it is; absent and `null` are the same. Like Go's decoder it does not mind the case.
    fn remove(&mut self, name: &str) -> Option<Value> {
        let value = self.members.remove(name).or_else(|| {
            let key = self
                .members
                .keys()
                .find(|key| key.eq_ignore_ascii_case(name))?
                .clone();
            self.members.remove(&key)
        })?;
        (!value.is_null()).then_some(value)
    }

    /// An error about a member.
    pub(crate) fn invalid(&self, name: &str, why: impl std::fmt::Display) -> ApiError {
        ApiError::invalid(format!("invalid {}: {why}", self.path_of(name)))
    }

    /// Takes a member of any type; `None` if it is absent or `null`.
    pub(crate) fn take<T: DeserializeOwned>(&mut self, name: &str) -> ApiResult<Option<T>> {
        match self.remove(name) {
            None => Ok(None),
            Some(value) => serde_json::from_value(value)
                .map(Some)
                .map_err(|error| self.invalid(name, error)),
        }
    }

    /// Takes a member, its default if it is absent or `null`.
    pub(crate) fn get<T: DeserializeOwned + Default>(&mut self, name: &str) -> ApiResult<T> {
        Ok(self.take(name)?.unwrap_or_default())
    }

    /// Takes a text; `None` if it is empty.
    pub(crate) fn text(&mut self, name: &str) -> ApiResult<Option<String>> {
        Ok(self.take::<String>(name)?.filter(|text| !text.is_empty()))
    }

    /// Takes a number that must not be negative; `None` if it is 0.
    pub(crate) fn amount(&mut self, name: &str) -> ApiResult<Option<u64>> {
        match self.get::<i64>(name)? {
            0 => Ok(None),
            n => u64::try_from(n)
                .map(Some)
                .map_err(|_| self.invalid(name, format!("{n} is negative"))),
        }
    }

    /// Takes a number of nanoseconds; `None` if it is absent.
    pub(crate) fn nanos(&mut self, name: &str) -> ApiResult<Option<Duration>> {
        match self.take::<i64>(name)? {
            None => Ok(None),
            Some(n) => u64::try_from(n)
                .map(|n| Some(Duration::from_nanos(n)))
                .map_err(|_| self.invalid(name, format!("{n} is negative"))),
        }
    }

    /// Takes a member and parses its text; `None` if it is absent or empty.
    pub(crate) fn parse<T>(&mut self, name: &str) -> ApiResult<Option<T>>
    where
        T: std::str::FromStr,
        T::Err: std::fmt::Display,
    {
        match self.text(name)? {
            None => Ok(None),
            Some(text) => text
                .parse()
                .map(Some)
                .map_err(|error| self.invalid(name, format!("{text:?}: {error}"))),
        }
    }

    /// Takes one of several words; the empty word is the first one's meaning.
    pub(crate) fn word<T: Copy>(&mut self, name: &str, words: &[(&str, T)]) -> ApiResult<T> {
        let text = self.text(name)?;
        let Some(text) = text else {
            return Ok(words[0].1);
        };
        words
            .iter()
            .find(|(word, _)| *word == text)
            .map(|(_, meaning)| *meaning)
            .ok_or_else(|| {
                let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                self.invalid(name, format!("{text:?} is not one of {}", known.join(", ")))
            })
    }

    /// Takes an object; `None` if it is absent or `null`.
    pub(crate) fn object(&mut self, name: &str) -> ApiResult<Option<Self>> {
        let path = self.path_of(name);
        self.remove(name)
            .map(|value| Self::new(path, value))
            .transpose()
    }

    /// Takes an object, an empty one if it is absent.
    pub(crate) fn object_or_empty(&mut self, name: &str) -> ApiResult<Self> {
        let path = self.path_of(name);
        Self::new(path, self.remove(name).unwrap_or(Value::Null))
    }

    /// Takes a list of objects.
    pub(crate) fn objects(&mut self, name: &str) -> ApiResult<Vec<Self>> {
        let path = self.path_of(name);
        self.get::<Vec<Value>>(name)?
            .into_iter()
            .enumerate()
            .map(|(index, value)| Self::new(format!("{path}[{index}]"), value))
            .collect()
    }

    /// Takes an object whose members are objects.
    pub(crate) fn named_objects(&mut self, name: &str) -> ApiResult<BTreeMap<String, Self>> {
        let path = self.path_of(name);
        self.get::<BTreeMap<String, Value>>(name)?
            .into_iter()
            .map(|(key, value)| Ok((key.clone(), Self::new(format!("{path}.{key}"), value)?)))
            .collect()
    }

    /// Drops members that mean nothing to us and harm nobody.
    pub(crate) fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.remove(name);
        }
    }

    /// Whether nothing but zeros is left.
    pub(crate) fn is_zero(&self) -> bool {
        self.members.values().all(is_zero)
    }

    /// Refuses what was not taken.
    pub(crate) fn finish(self) -> ApiResult<()> {
        let of_the_api = |name: &str| {
            !self.path.is_empty() || !name.starts_with(|first: char| first.is_ascii_lowercase())
        };
        let left = self.members.iter();
        match left
            .clone()
            .find(|(name, value)| of_the_api(name) && !is_zero(value))
        {
            None => Ok(()),
            Some((name, _)) => Err(ApiError::invalid(format!(
                "{} is not supported",
                self.path_of(name)
            ))),
        }
    }
}

/// Whether a value says nothing, as Go's `omitempty` and zero structs do.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.values().all(is_zero),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Fields {
        Fields::body(json.as_bytes()).expect("a JSON object")
    }

    #[test]
    fn what_was_not_taken_is_refused_by_name() {
        let mut body = read(r#"{"Outer":{"Known":1,"Strange":[1]},"Zero":{"A":[],"B":""}}"#);
        let mut outer = body.object("Outer").unwrap().unwrap();
        assert_eq!(outer.get::<u8>("known").unwrap(), 1);
        assert_eq!(
            outer.finish().unwrap_err(),
            ApiError::invalid("Outer.Strange is not supported")
        );
        body.finish().unwrap();
    }

    #[test]
    fn options_of_client_libraries_are_no_specification() {
        read(r#"{"name":"a","version":3,"Zero":0}"#)
            .finish()
            .unwrap();
        assert!(read(r#"{"Name":"a"}"#).finish().is_err());
        let mut body = read(r#"{"Outer":{"name":"a"}}"#);
        assert!(body.object("Outer").unwrap().unwrap().finish().is_err());
    }

    #[test]
    fn a_wrong_type_is_refused_with_its_place() {
        let mut body = read(r#"{"List":[{"N":"x"}],"O":3}"#);
        let mut first = body.objects("List").unwrap().remove(0);
        assert_eq!(
            first.get::<u8>("N").unwrap_err().message,
            "invalid List[0].N: invalid type: string \"x\", expected u8"
        );
        assert_eq!(
            body.object("O").unwrap_err().message,
            "invalid O: expected an object, not a number"
        );
        assert_eq!(
            Fields::body(b"{\"a\":").unwrap_err().status,
            http::StatusCode::BAD_REQUEST
        );
    }
}
