//! Parts of service specs that `create` and `update` read from flags in the same way.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::{
    client::{Client, Target},
    flags::{network, port},
    json::text,
};

/// Splits a command line into words, with quotes and backslashes as in a shell.
pub(crate) fn words(text: &str) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            ('\\', Some('"') | None) => {
                let escaped = chars
                    .next()
                    .context("a backslash at the end escapes nothing")?;
                word.get_or_insert_default().push(escaped);
            }
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        bail!("unterminated quote in {text:?}");
    }
    words.extend(word);
    Ok(words)
}

/// Adds the labels that stand for what `--network` and `--publish` ask for beyond docker's API.
pub(crate) fn add_reach_labels(
    labels: &mut Value,
    networks: &[String],
    publish: &[String],
) -> Result<()> {
    const IP: &str = "shoal.ip";
    let mut addresses = Vec::new();
    for flag in networks {
        addresses.extend(network::attachment(flag)?.of_service()?);
    }
    if !addresses.is_empty() {
        let before = labels[IP].as_str().filter(|text| !text.is_empty());
        addresses.splice(0..0, before.map(str::to_owned));
        labels[IP] = addresses.join(",").into();
    }
    for flag in publish {
        for (name, value) in port::labels(flag)? {
            labels[name.as_str()] = value.into();
        }
    }
    Ok(())
}

/// Ids of what a service refers to, by name.
#[derive(Default)]
pub(crate) struct References {
    /// Networks.
    pub(crate) networks: BTreeMap<String, String>,
    /// Secrets.
    pub(crate) secrets: BTreeMap<String, String>,
    /// Configs.
    pub(crate) configs: BTreeMap<String, String>,
}

impl References {
    /// Asks for the ids of the names in flags.
    pub(crate) async fn resolve(
        networks: &[String],
        secrets: &[String],
        configs: &[String],
        client: &Client,
    ) -> Result<Self> {
        let mut found = Self::default();
        for flag in networks {
            let name = network::attachment(flag)?.target;
            let network = client.get(Target::new("/networks/{}", &[&name])).await?;
            found
                .networks
                .insert(name, text(&network, "/Id").to_owned());
        }
        for (kind, wanted, ids) in [
            ("secret", secrets, &mut found.secrets),
            ("config", configs, &mut found.configs),
        ] {
            if wanted.is_empty() {
                continue;
            }
            let all = client.get(Target::new(&format!("/{kind}s"), &[])).await?;
            for flag in wanted {
                let (name, _) = network::file_reference(flag)?;
                let id = all
                    .as_array()
                    .into_iter()
                    .flatten()
                    .find(|item| text(item, "/Spec/Name") == name || text(item, "/ID") == name)
                    .map(|item| text(item, "/ID").to_owned())
                    .with_context(|| format!("{kind} not found: {name}"))?;
                ids.insert(name, id);
            }
        }
        Ok(found)
    }

    /// A network attachment of a flag.
    pub(crate) fn attachment(&self, flag: &str) -> Result<Value> {
        let wanted = network::attachment(flag)?;
        let id = self.networks.get(&wanted.target).unwrap_or(&wanted.target);
        let mut attachment = json!({"Target": id});
        if !wanted.aliases.is_empty() {
            attachment["Aliases"] = wanted.aliases.into();
        }
        if !wanted.driver_options.is_empty() {
            attachment["DriverOpts"] = wanted.driver_options.into();
        }
        Ok(attachment)
    }

    /// A reference to a secret.
    pub(crate) fn secret(&self, flag: &str) -> Result<Value> {
        let (name, file) = network::file_reference(flag)?;
        Ok(json!({"SecretID": self.secrets.get(&name), "SecretName": name, "File": file}))
    }

    /// A reference to a config.
    pub(crate) fn config(&self, flag: &str) -> Result<Value> {
        let (name, file) = network::file_reference(flag)?;
        Ok(json!({"ConfigID": self.configs.get(&name), "ConfigName": name, "File": file}))
    }
}

/// Says the defaults of groups of which a part is said, so that the rest does not read as zeros.
pub(super) fn fill_in(spec: &mut Value) {
    let defaults = json!({
        "UpdateConfig": {"Parallelism": 1, "Monitor": 5_000_000_000_i64, "FailureAction": "pause", "Order": "stop-first"},
        "RollbackConfig": {"Parallelism": 1, "Monitor": 5_000_000_000_i64, "FailureAction": "pause", "Order": "stop-first"},
    });
    let restart = json!({"Condition": "any", "Delay": 5_000_000_000_i64});
    let fill = |group: &mut Value, defaults: &Value| {
        for (name, value) in crate::json::pairs(defaults, "") {
            if group.is_object() && group[name].is_null() {
                group[name] = value.clone();
            }
        }
    };
    for (name, defaults) in crate::json::pairs(&defaults, "") {
        if let Some(group) = spec.get_mut(name) {
            fill(group, defaults);
        }
    }
    if let Some(group) = spec.pointer_mut("/TaskTemplate/RestartPolicy") {
        fill(group, &restart);
    }
}

/// A placement preference, `spread=node.labels.zone`.
pub(crate) fn preference(text: &str) -> Result<Value> {
    match text.split_once('=') {
        Some(("spread", descriptor)) => Ok(json!({"Spread": {"SpreadDescriptor": descriptor}})),
        Some((strategy, _)) => {
            bail!("unsupported placement preference {strategy} (only spread is supported)")
        }
        None => bail!("placement preference must be of the format \"<strategy>=<arg>\""),
    }
}

/// A line of /etc/hosts from `host:ip` or `host=ip`.
pub(crate) fn host_line(text: &str) -> Result<String> {
    match text.split_once(['=', ':']) {
        Some((host, ip)) if !host.is_empty() && !ip.is_empty() => Ok(format!(
            "{} {host}",
            ip.trim_start_matches('[').trim_end_matches(']')
        )),
        _ => bail!("bad format for add-host: {text:?}"),
    }
}

/// A request for a generic resource, `gpu=2`.
pub(crate) fn generic_resource(text: &str) -> Result<Value> {
    let Some((kind, value)) = text.split_once('=') else {
        bail!("invalid generic-resource {text:?}: expected key=value");
    };
    let Ok(count) = value.parse::<i64>() else {
        bail!(
            "invalid generic-resource request `{text}`, Named Generic Resources is not supported for service create or update"
        );
    };
    Ok(json!({"DiscreteResourceSpec": {"Kind": kind, "Value": count}}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_has_words() {
        assert_eq!(
            words("a 'b c' \"d\\\"e\" f\\ g ''").unwrap(),
            ["a", "b c", "d\"e", "f g", ""]
        );
        assert!(words("a 'b").is_err());
    }
}
