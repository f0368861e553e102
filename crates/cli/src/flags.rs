//! The small languages inside flags: ports, mounts, quantities, environment.

pub(crate) mod environment;
pub(crate) mod mount;
pub(crate) mod network;
pub(crate) mod port;
pub(crate) mod quantity;
pub(crate) mod security;

use anyhow::{Result, bail};

/// Splits a field of the CSV-like long forms: `a=b,"c=d,e"`.
pub(crate) fn fields(text: &str) -> Result<Vec<(String, Option<String>)>> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => fields.last_mut().expect("starts with one").push(c),
        }
    }
    if quoted {
        bail!("unterminated quote in {text:?}");
    }
    Ok(fields
        .into_iter()
        .map(|field| match field.split_once('=') {
            Some((key, value)) => (key.trim().to_ascii_lowercase(), Some(value.to_owned())),
            None => (field.trim().to_ascii_lowercase(), None),
        })
        .collect())
}

/// Reads a boolean as Go's `strconv.ParseBool` does; a field without a value is true.
pub(crate) fn boolean(key: &str, value: Option<&str>) -> Result<bool> {
    Ok(match value {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => true,
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => false,
        Some(other) => bail!("invalid value for {key}: {other}"),
    })
}

/// Splits `key=value`; a value that is left out is empty.
pub(crate) fn pair(text: &str) -> (String, String) {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    (key.to_owned(), value.to_owned())
}

/// Capabilities as the API names them: `CAP_NET_ADMIN`, or `ALL`.
pub(crate) fn capabilities(names: &[String]) -> Vec<String> {
    let full = |name: &String| {
        let name = name.to_ascii_uppercase();
        if name == "ALL" || name.starts_with("CAP_") {
            name
        } else {
            format!("CAP_{name}")
        }
    };
    names.iter().map(full).collect()
}

/// `key=value` texts as a JSON object.
pub(crate) fn object(texts: &[String]) -> serde_json::Value {
    let pairs = texts.iter().map(|text| {
        let (key, value) = pair(text);
        (key, value.into())
    });
    serde_json::Value::Object(pairs.collect())
}
