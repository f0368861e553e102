//! Reading fields of the API's documents: what is missing is empty.

use serde_json::Value;

/// The text at a pointer (`/Spec/Name`), or an empty one.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// The number at a pointer, or 0.
pub(crate) fn number(value: &Value, pointer: &str) -> i64 {
    value.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

/// Whether the field at a pointer is there and true.
pub(crate) fn is(value: &Value, pointer: &str) -> bool {
    value
        .pointer(pointer)
        .and_then(Value::as_bool)
        .unwrap_or(false)
}

/// The items at a pointer, or none.
pub(crate) fn items<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// The texts at a pointer, or none.
pub(crate) fn texts(value: &Value, pointer: &str) -> Vec<String> {
    items(value, pointer)
        .iter()
        .filter_map(|item| item.as_str().map(str::to_owned))
        .collect()
}

/// The fields at a pointer, or none.
pub(crate) fn pairs<'a>(
    value: &'a Value,
    pointer: &str,
) -> impl Iterator<Item = (&'a str, &'a Value)> {
    let object = value.pointer(pointer).and_then(Value::as_object);
    object
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.as_str(), value))
}

/// `key=value` of the fields at a pointer, joined by commas.
pub(crate) fn labels(value: &Value, pointer: &str) -> String {
    let all: Vec<String> = pairs(value, pointer)
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    all.join(",")
}

/// Takes out what says nothing: nulls, empty texts, lists and objects, zeros and falses, at any depth.
pub(crate) fn significant(value: &Value) -> Option<Value> {
    match value {
        Value::Null | Value::Bool(false) => None,
        Value::Number(number) if number.as_f64() == Some(0.0) => None,
        Value::String(text) if text.is_empty() => None,
        // Within a list every item says something, an empty argument for instance.
        Value::Array(items) => (!items.is_empty()).then(|| {
            let keep = |item: &Value| significant(item).unwrap_or_else(|| item.clone());
            Value::Array(items.iter().map(keep).collect())
        }),
        Value::Object(fields) => {
            let kept: serde_json::Map<_, _> = fields
                .iter()
                .filter_map(|(key, value)| Some((key.clone(), significant(value)?)))
                .collect();
            (!kept.is_empty()).then(|| kept.into())
        }
        other => Some(other.clone()),
    }
}

/// Takes out nulls, and lists and objects with nothing in them, at any depth.
pub(crate) fn compact(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(compact).collect(),
        Value::Object(fields) => {
            let kept = fields
                .iter()
                .map(|(key, value)| (key.clone(), compact(value)));
            let says_something = |value: &Value| match value {
                Value::Null => false,
                Value::Array(items) => !items.is_empty(),
                Value::Object(fields) => !fields.is_empty(),
                _ => true,
            };
            Value::Object(kept.filter(|(_, value)| says_something(value)).collect())
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_says_nothing_is_taken_out() {
        let value = json!({"A": {"B": null, "C": []}, "D": ["", 0], "E": 0, "F": 1, "G": false});
        assert_eq!(significant(&value), Some(json!({"D": ["", 0], "F": 1})));
        assert_eq!(significant(&json!({"A": {}})), None);
    }
}
