//! The functions of templates: Go's own and docker's.

use std::cmp::Ordering;

use serde_json::Value;

/// A result, or what was wrong.
pub(super) type Outcome<T> = Result<T, String>;

const NAMES: [&str; 23] = [
    "and", "or", "not", "len", "index", "slice", "print", "printf", "println", "eq", "ne", "lt",
    "le", "gt", "ge", "json", "join", "split", "lower", "upper", "title", "pad", "truncate",
];

/// Whether there is a function of this name.
pub(super) fn is_known(name: &str) -> bool {
    NAMES.contains(&name)
}

/// Whether Go takes the value for true.
pub(super) fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// The value as Go prints it: `[a b]`, `map[k:v]`.
pub(super) fn show(value: &Value) -> String {
    let inner = |value: &Value| match value {
        Value::Null => "<nil>".to_owned(),
        value => show(value),
    };
    match value {
        Value::Null => "<no value>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(inner).collect();
            format!("[{}]", items.join(" "))
        }
        Value::Object(fields) => {
            let mut fields: Vec<String> = fields
                .iter()
                .map(|(key, value)| format!("{key}:{}", inner(value)))
                .collect();
            fields.sort();
            format!("map[{}]", fields.join(" "))
        }
        other => other.to_string(),
    }
}

/// Calls a function.
pub(super) fn call(name: &str, args: &[Value]) -> Outcome<Value> {
    let arg = |at: usize| {
        args.get(at)
            .ok_or_else(|| format!("wrong number of args for {name}: got {}", args.len()))
    };
    let count = |at: usize| -> Outcome<usize> {
        let number = arg(at)?.as_u64().and_then(|number| number.try_into().ok());
        number.ok_or_else(|| format!("{name}: expected a number, not {}", show(&args[at])))
    };
    Ok(match name {
        "not" => (!truth(arg(0)?)).into(),
        // Piped into: `x | and y`.
        "and" => args
            .iter()
            .find(|value| !truth(value))
            .or_else(|| args.last())
            .cloned()
            .unwrap_or_default(),
        "or" => args
            .iter()
            .find(|value| truth(value))
            .or_else(|| args.last())
            .cloned()
            .unwrap_or_default(),
        "len" => match arg(0)? {
            Value::String(text) => text.len().into(),
            Value::Array(items) => items.len().into(),
            Value::Object(fields) => fields.len().into(),
            Value::Null => 0.into(),
            other => return Err(format!("len of {}", show(other))),
        },
        "index" => {
            arg(1)?;
            let (first, keys) = args.split_first().ok_or("index of nothing")?;
            keys.iter()
                .try_fold(first.clone(), |value, key| index(&value, key))?
        }
        "slice" => slice(arg(0)?, &args[1..])?,
        "print" => args.iter().map(show).collect::<String>().into(),
        "println" => format!("{}\n", args.iter().map(show).collect::<Vec<_>>().join(" ")).into(),
        "printf" => format(&show(arg(0)?), &args[1..]).into(),
        "eq" => {
            arg(1)?;
            args[1..]
                .iter()
                .any(|other| compare(&args[0], other) == Some(Ordering::Equal))
                .into()
        }
        "ne" => (compare(arg(0)?, arg(1)?) != Some(Ordering::Equal)).into(),
        "lt" | "le" | "gt" | "ge" => {
            let order = compare(arg(0)?, arg(1)?);
            let order = order.ok_or_else(|| {
                format!(
                    "incompatible types for comparison: {} and {}",
                    show(&args[0]),
                    show(&args[1])
                )
            })?;
            match name {
                "lt" => order.is_lt(),
                "le" => order.is_le(),
                "gt" => order.is_gt(),
                _ => order.is_ge(),
            }
            .into()
        }
        "json" => arg(0)?.to_string().into(),
        "join" => {
            let separator = show(arg(1)?);
            let items = args[0].as_array().map(Vec::as_slice).unwrap_or_default();
            items
                .iter()
                .map(show)
                .collect::<Vec<_>>()
                .join(&separator)
                .into()
        }
        "split" => {
            let (text, separator) = (show(arg(0)?), show(arg(1)?));
            text.split(separator.as_str()).map(Value::from).collect()
        }
        "lower" => show(arg(0)?).to_lowercase().into(),
        "upper" => show(arg(0)?).to_uppercase().into(),
        "title" => {
            let text = show(arg(0)?);
            let mut chars = text.chars();
            let first = chars.next().into_iter().flat_map(char::to_uppercase);
            first.chain(chars).collect::<String>().into()
        }
        "pad" => {
            let text = show(arg(0)?);
            let (before, after) = (count(1)?.min(WIDTH_MAX), count(2)?.min(WIDTH_MAX));
            format!("{:before$}{text}{:after$}", "", "").into()
        }
        "truncate" => show(arg(0)?)
            .chars()
            .take(count(1)?)
            .collect::<String>()
            .into(),
        _ => return Err(format!("function {name:?} not defined")),
    })
}

/// Characters of padding; more is a mistake or malice.
const WIDTH_MAX: usize = 10_000;

fn index(value: &Value, key: &Value) -> Outcome<Value> {
    match (value, key) {
        (Value::Array(items), key) => {
            let at = key.as_u64().and_then(|at| usize::try_from(at).ok());
            at.and_then(|at| items.get(at).cloned())
                .ok_or_else(|| format!("error calling index: index out of range: {}", show(key)))
        }
        (Value::Object(fields), Value::String(key)) => {
            Ok(fields.get(key).cloned().unwrap_or_default())
        }
        (Value::Null, _) => Err("error calling index: index of untyped nil".to_owned()),
        (value, key) => Err(format!(
            "error calling index: cannot index {} with {}",
            show(value),
            show(key)
        )),
    }
}

fn slice(value: &Value, bounds: &[Value]) -> Outcome<Value> {
    let length = match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.len(),
        other => return Err(format!("error calling slice: cannot slice {}", show(other))),
    };
    let bound = |at: usize, default: usize| match bounds.get(at) {
        None => Some(default),
        Some(bound) => bound.as_u64().and_then(|bound| usize::try_from(bound).ok()),
    };
    let range = bound(0, 0)
        .zip(bound(1, length))
        .filter(|(start, end)| start <= end && *end <= length);
    let out_of_range = || "error calling slice: index out of range".to_owned();
    let (start, end) = range.ok_or_else(out_of_range)?;
    match value {
        Value::String(text) => text
            .get(start..end)
            .map(Value::from)
            .ok_or_else(out_of_range),
        Value::Array(items) => Ok(items[start..end].to_vec().into()),
        _ => Err(out_of_range()),
    }
}

fn compare(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        _ if a == b => Some(Ordering::Equal),
        _ => None,
    }
}

/// Go's `fmt.Sprintf` for the verbs that templates use: `%s %v %d %q %t %x %f`, with flags, width and precision.
fn format(text: &str, args: &[Value]) -> String {
    let mut out = String::new();
    let mut args = args.iter();
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let end = rest
            .find(|c: char| c.is_ascii_alphabetic() || c == '%')
            .unwrap_or(rest.len());
        let (flags, after) = rest.split_at(end);
        let Some(verb) = after.chars().next() else {
            out.push_str("%!(NOVERB)");
            return out;
        };
        rest = &after[verb.len_utf8()..];
        if verb == '%' {
            out.push('%');
            continue;
        }
        let Some(value) = args.next() else {
            out.push_str(&format!("%!{verb}(MISSING)"));
            continue;
        };
        let (width, precision) = flags.split_once('.').unwrap_or((flags, ""));
        let precision: Option<usize> = precision
            .parse()
            .ok()
            .map(|digits: usize| digits.min(WIDTH_MAX));
        let shown = match (verb, value) {
            ('q', value) => Value::from(show(value)).to_string(),
            ('x', Value::Number(number)) => number
                .as_i64()
                .map_or_else(String::new, |number| format!("{number:x}")),
            ('x', value) => show(value)
                .bytes()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
            ('f' | 'g', Value::Number(number)) => {
                let digits = precision.unwrap_or(6);
                format!("{:.digits$}", number.as_f64().unwrap_or_default())
            }
            ('s' | 'v', value) => match precision {
                Some(length) => show(value).chars().take(length).collect(),
                None => show(value),
            },
            (_, value) => show(value),
        };
        let left = width.contains('-');
        let fill = if width.starts_with('0') { '0' } else { ' ' };
        let width: usize = width
            .trim_start_matches(['-', '+', ' ', '0', '#'])
            .parse()
            .unwrap_or(0);
        let missing = width.min(WIDTH_MAX).saturating_sub(shown.chars().count());
        let padding: String = std::iter::repeat_n(if left { ' ' } else { fill }, missing).collect();
        if left {
            out.push_str(&shown);
            out.push_str(&padding);
        } else {
            out.push_str(&padding);
            out.push_str(&shown);
        }
    }
    out.push_str(rest);
    out
}
