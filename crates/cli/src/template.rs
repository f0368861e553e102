//! Go templates over JSON, with the functions that docker adds to Go's.

use std::collections::HashMap;

use anyhow::{Result, anyhow};
use gtmpl::{Context, FuncError, Template as Parsed, Value as Dynamic};
use serde_json::Value;

/// A template, ready to be filled in.
pub(crate) struct Template(Parsed);

/// Parses a template. `\t` and `\n` in it are a tab and a line end.
pub(crate) fn compile(text: &str) -> Result<Template> {
    let text = text.replace("\\t", "\t").replace("\\n", "\n");
    let mut template = Parsed::default();
    let functions: [(&str, gtmpl::Func); 9] = [
        ("json", json),
        ("join", join),
        ("split", split),
        ("lower", lower),
        ("upper", upper),
        ("title", title),
        ("pad", pad),
        ("truncate", truncate),
        ("println", println),
    ];
    template.add_funcs(&functions);
    template
        .parse(text)
        .map_err(|error| anyhow!("template parsing error: {error}"))?;
    Ok(Template(template))
}

impl Template {
    /// Fills in the fields of `value`.
    pub(crate) fn render(&self, value: &Value) -> Result<String> {
        let context = Context::from(dynamic(value));
        self.0
            .render(&context)
            .map_err(|error| anyhow!("template: {error}"))
    }
}

fn dynamic(value: &Value) -> Dynamic {
    match value {
        Value::Null => Dynamic::NoValue,
        Value::Bool(flag) => Dynamic::Bool(*flag),
        Value::Number(number) => {
            if let Some(number) = number.as_u64() {
                number.into()
            } else if let Some(number) = number.as_i64() {
                number.into()
            } else {
                number.as_f64().unwrap_or_default().into()
            }
        }
        Value::String(text) => Dynamic::String(text.clone()),
        Value::Array(items) => Dynamic::Array(items.iter().map(dynamic).collect()),
        Value::Object(fields) => {
            let fields: HashMap<String, Dynamic> = fields
                .iter()
                .map(|(key, value)| (key.clone(), dynamic(value)))
                .collect();
            Dynamic::Object(fields)
        }
    }
}

fn plain(value: &Dynamic) -> Value {
    match value {
        Dynamic::Nil | Dynamic::NoValue | Dynamic::Function(_) => Value::Null,
        Dynamic::Bool(flag) => (*flag).into(),
        Dynamic::String(text) => text.as_str().into(),
        Dynamic::Number(number) => {
            if let Some(number) = number.as_u64() {
                number.into()
            } else if let Some(number) = number.as_i64() {
                number.into()
            } else {
                number.as_f64().into()
            }
        }
        Dynamic::Array(items) => items.iter().map(plain).collect(),
        Dynamic::Object(fields) | Dynamic::Map(fields) => Value::Object(
            fields
                .iter()
                .map(|(key, value)| (key.clone(), plain(value)))
                .collect(),
        ),
    }
}

fn argument<'a>(args: &'a [Dynamic], at: usize, name: &str) -> Result<&'a Dynamic, FuncError> {
    args.get(at)
        .ok_or_else(|| FuncError::Generic(format!("{name}: wrong number of arguments")))
}

fn text(args: &[Dynamic], at: usize, name: &str) -> Result<String, FuncError> {
    Ok(match argument(args, at, name)? {
        Dynamic::String(text) => text.clone(),
        other => match plain(other) {
            Value::Null => String::new(),
            other => other.to_string(),
        },
    })
}

fn count(args: &[Dynamic], at: usize, name: &str) -> Result<usize, FuncError> {
    plain(argument(args, at, name)?)
        .as_u64()
        .and_then(|number| number.try_into().ok())
        .ok_or_else(|| FuncError::Generic(format!("{name}: expected a number")))
}

fn json(args: &[Dynamic]) -> Result<Dynamic, FuncError> {
    Ok(plain(argument(args, 0, "json")?).to_string().into())
}

fn join(args: &[Dynamic]) -> Result<Dynamic, FuncError> {
    let separator = text(args, 1, "join")?;
    let Dynamic::Array(items) = argument(args, 0, "join")? else {
        return Err(FuncError::Generic("join: expected a list".to_owned()));
    };
    let items: Vec<String> = (0..items.len())
        .map(|i| text(items, i, "join"))
        .collect::<Result<_, _>>()?;
    Ok(items.join(&separator).into())
}

fn split(args: &[Dynamic]) -> Result<Dynamic, FuncError> {
    let whole = text(args, 0, "split")?;
    let separator = text(args, 1, "split")?;
    let parts = whole.split(separator.as_str());
    Ok(Dynamic::Array(
        parts.map(|part| Dynamic::String(part.to_owned())).collect(),
    ))
}

fn lower(args: &[Dynamic]) -> Result<Dynamic, FuncError> {
    Ok(text(args, 0, "lower")?.to_lowercase().into())
}

fn upper(args: &[Dynamic]) -> Result<Dynamic, FuncError> {
    Ok(text(args, 0, "upper")?.to_uppercase().into())
}

fn title(args: &[Dynamic]) -> Result<Dynamic, FuncError> {
    let text = text(args, 0, "title")?;
    let mut chars = text.chars();
    let first = chars.next().into_iter().flat_map(char::to_uppercase);
    Ok(first.chain(chars).collect::<String>().into())
}

fn pad(args: &[Dynamic]) -> Result<Dynamic, FuncError> {
    let text = text(args, 0, "pad")?;
    let [before, after] = [count(args, 1, "pad")?, count(args, 2, "pad")?];
    Ok(format!("{}{text}{}", " ".repeat(before), " ".repeat(after)).into())
}

fn truncate(args: &[Dynamic]) -> Result<Dynamic, FuncError> {
    let text = text(args, 0, "truncate")?;
    let length = count(args, 1, "truncate")?;
    Ok(text.chars().take(length).collect::<String>().into())
}

fn println(args: &[Dynamic]) -> Result<Dynamic, FuncError> {
    let parts: Vec<String> = (0..args.len())
        .map(|i| text(args, i, "println"))
        .collect::<Result<_, _>>()?;
    Ok(format!("{}\n", parts.join(" ")).into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(template: &str, value: Value) -> String {
        compile(template).and_then(|t| t.render(&value)).unwrap()
    }

    #[test]
    fn dockers_functions_are_there() {
        let value = json!({"Name": "web", "Ports": ["80", "443"], "Spec": {"Replicas": 3, "Ratio": 0.5}, "Labels": {"tier": "front"}});
        assert_eq!(
            render("{{json .Spec}}", value.clone()),
            r#"{"Ratio":0.5,"Replicas":3}"#
        );
        assert_eq!(render("{{join .Ports \", \"}}", value.clone()), "80, 443");
        assert_eq!(
            render("{{.Spec.Replicas}} {{title .Name}}", value.clone()),
            "3 Web"
        );
        assert_eq!(
            render("{{range .Ports}}[{{.}}]{{end}}", value.clone()),
            "[80][443]"
        );
        assert_eq!(
            render("{{if eq .Spec.Replicas 3}}three{{end}}", value.clone()),
            "three"
        );
        assert_eq!(
            render(
                "{{range $k, $v := .Labels}}{{$k}}={{$v}} {{end}}",
                value.clone()
            ),
            "tier=front "
        );
        assert_eq!(render("{{index .Ports 1}}{{len .Ports}}", value), "4432");
    }
}
