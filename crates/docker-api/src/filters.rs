//! The `filters` parameter of list, prune and event requests.

use std::collections::BTreeMap;

use serde_json::Value;
use shoal_api::Timestamp;

use crate::{
    backend::{ApiError, ApiResult, PruneFilter},
    convert::time::{parse_go_duration, parse_instant},
};

/// Values by name; kinds are and-ed, the values of one kind or-ed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Filters(BTreeMap<String, Vec<String>>);

impl Filters {
    /// Reads both forms that clients send: `{"name":["a"]}` and `{"name":{"a":true}}`. Empty text is no filter.
    pub(crate) fn parse(text: &str) -> ApiResult<Self> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let invalid = || ApiError::invalid(format!("invalid filters: {text}"));
        let named: BTreeMap<String, Value> = serde_json::from_str(text).map_err(|_| invalid())?;
        let mut filters = BTreeMap::new();
        for (name, values) in named {
            let values: Vec<String> = match values {
                Value::Array(values) => values
                    .into_iter()
                    .map(|value| match value {
                        Value::String(text) => Ok(text),
                        _ => Err(invalid()),
                    })
                    .collect::<ApiResult<_>>()?,
                Value::Object(values) => values
                    .into_iter()
                    .filter(|(_, wanted)| *wanted != Value::Bool(false))
                    .map(|(value, _)| value)
                    .collect(),
                Value::Null => Vec::new(),
                _ => return Err(invalid()),
            };
            if !values.is_empty() {
                filters.insert(name, values);
            }
        }
        Ok(Self(filters))
    }

    /// Refuses names that the request does not know, in docker's words.
    pub(crate) fn only(self, known: &[&str]) -> ApiResult<Self> {
        match self.0.keys().find(|name| !known.contains(&name.as_str())) {
            None => Ok(self),
            Some(name) => Err(ApiError::invalid(format!("invalid filter '{name}'"))),
        }
    }

    /// The values of a name; empty if it was not given.
    pub(crate) fn values(&self, name: &str) -> &[String] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// The values of a name, taken.
    pub(crate) fn take(&mut self, name: &str) -> Vec<String> {
        self.0.remove(name).unwrap_or_default()
    }

    /// Whether some value of the name, if there is one at all, satisfies `matches`.
    pub(crate) fn any(&self, name: &str, matches: impl Fn(&str) -> bool) -> bool {
        let values = self.values(name);
        values.is_empty() || values.iter().any(|value| matches(value))
    }

    /// Whether `text` equals a value.
    pub(crate) fn exact(&self, name: &str, text: &str) -> bool {
        self.any(name, |value| value == text)
    }

    /// Whether `text` begins with a value.
    pub(crate) fn prefix(&self, name: &str, text: &str) -> bool {
        self.any(name, |value| text.starts_with(value))
    }

    /// Whether all `key` and `key=value` of the name are among the labels.
    pub(crate) fn labels(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        self.values(name)
            .iter()
            .all(|wanted| has_label(labels, wanted))
    }

    /// A truth value; `None` if it was not given.
    pub(crate) fn flag(&self, name: &str) -> ApiResult<Option<bool>> {
        match self.values(name) {
            [] => Ok(None),
            [value] => match value.as_str() {
                "1" | "true" | "True" | "t" => Ok(Some(true)),
                "0" | "false" | "False" | "f" => Ok(Some(false)),
                _ => Err(ApiError::invalid(format!(
                    "invalid filter '{name}=[{value}]'"
                ))),
            },
            values => Err(ApiError::invalid(format!(
                "invalid filter '{name}=[{}]'",
                values.join(" ")
            ))),
        }
    }

    /// What a prune may take; `all` is decided by the caller.
    pub(crate) fn prune(&self, now: Timestamp) -> ApiResult<PruneFilter> {
        let until = match self.values("until") {
            [] => None,
            [value] => Some(parse_until(value, now)?),
            _ => return Err(ApiError::invalid("more than one until filter specified")),
        };
        Ok(PruneFilter {
            all: false,
            keep_bytes: 0,
            until,
            label: self.values("label").to_vec(),
            label_not: self.values("label!").to_vec(),
        })
    }
}

/// Whether the labels have `key` or `key=value`.
pub(crate) fn has_label(labels: &BTreeMap<String, String>, wanted: &str) -> bool {
    match wanted.split_once('=') {
        None => labels.contains_key(wanted),
        Some((key, value)) => labels.get(key).is_some_and(|have| have == value),
    }
}

/// An instant, or a Go duration before now (`24h`).
fn parse_until(text: &str, now: Timestamp) -> ApiResult<Timestamp> {
    if let Some(before) = parse_go_duration(text) {
        return Ok(now - before);
    }
    parse_instant(text)
        .ok_or_else(|| ApiError::invalid(format!("invalid value for filter 'until': {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_mean_the_same() {
        let list = Filters::parse(r#"{"name":["a","b"],"none":[]}"#).unwrap();
        let map = Filters::parse(r#"{"name":{"a":true,"b":true,"c":false}}"#).unwrap();
        assert_eq!(list, map);
        assert!(list.prefix("name", "alpha") && !list.exact("name", "alpha"));
        assert!(list.exact("absent", "anything"));
    }

    #[test]
    fn rubbish_is_refused() {
        for text in ["[", "[]", "\"a\"", r#"{"a":1}"#, r#"{"a":[1]}"#] {
            assert!(Filters::parse(text).is_err(), "{text}");
        }
        let unknown = Filters::parse(r#"{"colour":["red"]}"#).unwrap();
        assert_eq!(
            unknown.only(&["name"]).unwrap_err().message,
            "invalid filter 'colour'"
        );
    }

    #[test]
    fn labels_must_all_match() {
        let labels = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
        let filter = |text| Filters::parse(text).unwrap().labels("label", &labels);
        assert!(filter(r#"{"label":["a","a=1"]}"#));
        assert!(!filter(r#"{"label":["a","b"]}"#));
        assert!(!filter(r#"{"label":["a=2"]}"#));
    }

    #[test]
    fn until_is_an_instant_or_an_age() {
        let now = Timestamp::parse_rfc3339("2026-01-02T00:00:00Z").unwrap();
        let until = |text: &str| {
            Filters(BTreeMap::from([(
                "until".to_owned(),
                vec![text.to_owned()],
            )]))
            .prune(now)
            .map(|filter| filter.until.unwrap().to_string())
        };
        assert_eq!(until("24h").unwrap(), "2026-01-01T00:00:00Z");
        assert_eq!(
            until("2025-05-05T00:00:00Z").unwrap(),
            "2025-05-05T00:00:00Z"
        );
        assert_eq!(until("1767225600").unwrap(), "2026-01-01T00:00:00Z");
        assert!(until("soon").is_err());
    }
}
