//! Templates in services: `{{.Task.Slot}}` in environment, hostname and mounts, and secrets and configs that say they
//! are templates.
//!
//! Which fields there are and where they are allowed is SwarmKit's (`template/context.go`, `template/expand.go`).
//! Managers expand a service's templates once with values made up, so that a typing error is refused when the service is
//! created; nodes expand them with the values of each task.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Missing, Template, TemplateError};
use crate::{
    object::Task,
    spec::{ContainerTaskSpec, Labels, Mount},
};

/// The one driver of templates that there is.
pub const DRIVER: &str = "golang";
/// What only secrets and configs may call.
const PAYLOAD_FUNCTIONS: [&str; 3] = ["secret", "config", "env"];

/// A part of a spec whose template cannot be filled in; printed in SwarmKit's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expanding {what} failed: {source}")]
pub struct ExpandError {
    /// The part.
    pub what: String,
    /// What is wrong with it.
    pub source: TemplateError,
}

/// What placeholders stand for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Values(Value);

/// What secrets and configs may refer to besides: what their task has.
#[derive(Debug, Clone, Default)]
pub struct Payload<'a> {
    /// Data of its secrets by their target.
    pub secrets: BTreeMap<&'a str, &'a [u8]>,
    /// Data of its configs by their target.
    pub configs: BTreeMap<&'a str, &'a [u8]>,
    /// Its environment as `NAME=value`, expanded.
    pub env: &'a [String],
}

impl Values {
    /// The values for a task on a node.
    pub fn of(task: &Task, hostname: &str, architecture: &str) -> Self {
        let node = task.node.as_ref().map(ToString::to_string);
        let node = node.unwrap_or_default();
        // The slot of a global service is its node.
        let slot = match task.slot {
            0 => node.clone(),
            slot => slot.to_string(),
        };
        Self(json!({
            "Service": {"ID": task.service.as_str(), "Name": &*task.service_name, "Labels": *task.service_labels},
            "Node": {
                "ID": node,
                "Hostname": hostname,
                "Platform": {"OS": "linux", "Architecture": architecture},
            },
            "Task": {"ID": task.id.as_str(), "Name": task.name(), "Slot": slot},
        }))
    }

    /// Values of a task that is not there, for a check.
    pub fn example(service: &str, labels: &Labels) -> Self {
        Self::made_up(service, labels, ["id", "hostname", "x86_64", "1"])
    }

    fn made_up(service: &str, labels: &Labels, parts: [&str; 4]) -> Self {
        let [id, hostname, architecture, slot] = parts;
        Self(json!({
            "Service": {"ID": format!("service{id}"), "Name": service, "Labels": labels},
            "Node": {
                "ID": format!("node{id}"),
                "Hostname": hostname,
                "Platform": {"OS": "linux", "Architecture": architecture},
            },
            "Task": {"ID": format!("task{id}"), "Name": "taskname", "Slot": slot},
        }))
    }

    /// Fills in one text.
    ///
    /// # Errors
    /// It is no template, or names what is not there.
    pub fn expand(&self, text: &str) -> Result<String, TemplateError> {
        // Most texts are none, and a template costs a tree.
        if !text.contains("{{") {
            return Ok(text.to_owned());
        }
        Template::parse(text)?.render(&self.0, Missing::Error)
    }

    /// Fills in the data of a secret or config that is a template.
    ///
    /// # Errors
    /// It is no template, or names a secret, a config or a field that is not there.
    pub fn expand_payload(
        &self,
        data: &[u8],
        payload: &Payload<'_>,
    ) -> Result<Vec<u8>, TemplateError> {
        let text = std::str::from_utf8(data).map_err(|_| no_text())?;
        let template = Template::parse_with(text, &PAYLOAD_FUNCTIONS)?;
        let functions = |name: &str, args: &[Value]| {
            PAYLOAD_FUNCTIONS
                .contains(&name)
                .then(|| payload.call(name, args))
        };
        let filled = template.render_with(&self.0, Missing::Error, &functions)?;
        Ok(filled.into_bytes())
    }
}

fn no_text() -> TemplateError {
    TemplateError::Syntax("the data is no text".to_owned())
}

impl Payload<'_> {
    fn call(&self, name: &str, args: &[Value]) -> Result<Value, String> {
        let [Value::String(wanted)] = args else {
            return Err(format!("{name} takes one name, not {} values", args.len()));
        };
        let data = match name {
            "secret" => self.secrets.get(wanted.as_str()),
            "config" => self.configs.get(wanted.as_str()),
            _ => {
                let pairs = self.env.iter().filter_map(|line| line.split_once('='));
                let found = pairs.into_iter().find(|(name, _)| *name == wanted);
                return Ok(found.map_or("", |(_, value)| value).into());
            }
        };
        let data = data.ok_or_else(|| format!("{name} target {wanted} not found"))?;
        let text = std::str::from_utf8(data).map_err(|_| format!("{name} {wanted} is no text"))?;
        Ok(text.into())
    }
}

/// Whether a service may need its labels to fill in templates: it names them, or has data that may be a template.
pub fn names_labels(spec: &ContainerTaskSpec) -> bool {
    let mounts = spec.mounts.iter().flat_map(|mount| {
        let options = mount
            .driver
            .iter()
            .flat_map(|driver| driver.options.values());
        [&mount.source, &mount.target]
            .into_iter()
            .chain(mount.labels.values())
            .chain(options)
    });
    let mut texts = mounts.chain(&spec.env).chain([&spec.hostname]);
    !spec.secrets.is_empty()
        || !spec.configs.is_empty()
        || texts.any(|text| text.contains("{{") && text.contains(".Service"))
}

/// A secret or config as a task would have it.
#[derive(Debug, Clone, Copy)]
pub struct File<'a> {
    /// Whether it is one of the secrets.
    pub is_secret: bool,
    /// Its name.
    pub name: &'a str,
    /// Under which templates find it.
    pub target: &'a str,
    /// What is in it; `None` where that is not known.
    pub data: Option<&'a [u8]>,
    /// Whether it is a template.
    pub is_template: bool,
}

impl File<'_> {
    fn refused(&self, source: TemplateError) -> ExpandError {
        let kind = if self.is_secret { "secret" } else { "config" };
        ExpandError {
            what: format!("{kind} {}", self.name),
            source,
        }
    }
}

/// Checks that a secret or config is a template at all.
///
/// # Errors
/// It is none.
pub fn check_template(file: &File<'_>) -> Result<(), ExpandError> {
    let Some(data) = file.data.filter(|_| file.is_template) else {
        return Ok(());
    };
    let parsed = match std::str::from_utf8(data) {
        Ok(text) => Template::parse_with(text, &PAYLOAD_FUNCTIONS).map(drop),
        Err(_) => Err(no_text()),
    };
    parsed.map_err(|source| file.refused(source))
}

/// Checks that those files of a service that are templates can be filled in: with values made up, two of each kind. A
/// complaint that both give rise to is one about the template; what depends on the values may do well on a node.
///
/// # Errors
/// The first of them that cannot be filled in.
pub fn check_files(
    files: &[File<'_>],
    env: &[String],
    service: &str,
    labels: &Labels,
) -> Result<(), ExpandError> {
    // What splits one of them does not split the other.
    const MADE_UP: [([&str; 4], &[u8]); 2] = [
        (["id", "hostname", "x86_64", "1"], b""),
        (
            ["0-a", "a-2.b-3.example.org", "aarch64", "23"],
            b"a:b=c, d;e\nf",
        ),
    ];
    for file in files.iter().filter(|file| file.is_template) {
        let Some(data) = file.data else { continue };
        let [first, second] = MADE_UP.map(|(parts, unknown)| {
            let values = Values::made_up(service, labels, parts);
            let line = |line: &String| values.expand(line).unwrap_or_else(|_| line.clone());
            let env: Vec<String> = env.iter().map(line).collect();
            let of = |secrets: bool| {
                let those = files.iter().filter(move |file| file.is_secret == secrets);
                those
                    .map(|file| (file.target, file.data.unwrap_or(unknown)))
                    .collect()
            };
            let payload = Payload {
                secrets: of(true),
                configs: of(false),
                env: &env,
            };
            values.expand_payload(data, &payload).err()
        });
        if let Some(source) = first.filter(|first| Some(first) == second.as_ref()) {
            return Err(file.refused(source));
        }
    }
    Ok(())
}

/// Fills in everything of a container's spec that may be a template.
///
/// # Errors
/// The first part that cannot be filled in.
pub fn expand(spec: &ContainerTaskSpec, values: &Values) -> Result<ContainerTaskSpec, ExpandError> {
    let text = |what: &str, text: &str| {
        values.expand(text).map_err(|source| ExpandError {
            what: what.to_owned(),
            source,
        })
    };
    let mut out = spec.clone();
    for mount in &mut out.mounts {
        expand_mount(mount, &text)?;
    }
    for line in &mut out.env {
        // Of a variable only the value may be one.
        if let Some((name, value)) = line.split_once('=') {
            *line = format!("{name}={}", text("env", value)?);
        }
    }
    out.hostname = text("hostname", &out.hostname)?;
    Ok(out)
}

fn expand_mount(
    mount: &mut Mount,
    text: &impl Fn(&str, &str) -> Result<String, ExpandError>,
) -> Result<(), ExpandError> {
    mount.source = text("mount source", &mount.source)?;
    mount.target = text("mount target", &mount.target)?;
    for value in mount.labels.values_mut() {
        *value = text("volume labels", value)?;
    }
    if let Some(driver) = &mut mount.driver {
        for value in driver.options.values_mut() {
            *value = text("volume driver options", value)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Values {
        let labels = Labels::from([
            ("tier".to_owned(), "front".to_owned()),
            ("a.b".to_owned(), "dotted".to_owned()),
        ]);
        Values::example("web", &labels)
    }

    fn said(text: &str) -> String {
        values()
            .expand(text)
            .unwrap_or_else(|error| error.to_string())
    }

    #[test]
    fn placeholders_are_replaced_wherever_they_stand() {
        for (text, want) in [
            ("{{.Node.Hostname}}-{{ .Task.Slot }}!", "hostname-1!"),
            ("a {{- .Task.Slot -}} b", "a1b"),
            ("plain } text {", "plain } text {"),
            ("{{.Service.ID}} {{.Service.Name}}", "serviceid web"),
            (
                "{{.Node.Platform.OS}}/{{.Node.Platform.Architecture}}",
                "linux/x86_64",
            ),
            (
                "{{.Service.Labels.tier}} {{index .Service.Labels \"a.b\"}}",
                "front dotted",
            ),
            (
                "{{if eq .Task.Slot \"1\"}}first{{else}}other{{end}}",
                "first",
            ),
            ("{{join (split .Node.ID \"e\") \",\"}}", "nod,id"),
        ] {
            assert_eq!(said(text), want, "{text}");
        }
    }

    #[test]
    fn what_swarm_does_not_know_is_refused_by_name() {
        assert_eq!(
            said("{{.Node.Colour}}"),
            "template: can't evaluate field Colour: there are Hostname, ID, Platform"
        );
        assert_eq!(
            said("{{.Service.Labels.no}}"),
            "template: can't evaluate field no: there are a.b, tier"
        );
        assert_eq!(said("{{.Task"), "template parsing error: unclosed action");
        // A service's own text must not see secrets.
        assert_eq!(
            said("{{secret \"key\"}}"),
            "template parsing error: function \"secret\" not defined"
        );
    }

    #[test]
    fn a_container_spec_is_filled_in_where_swarm_allows_it() {
        let spec = ContainerTaskSpec {
            image: "{{.Task.ID}}".to_owned(),
            hostname: "{{.Task.Slot}}".to_owned(),
            env: vec!["A={{.Task.Name}}".to_owned(), "{{B}}".to_owned()],
            mounts: vec![Mount {
                source: "data-{{.Task.Slot}}".to_owned(),
                target: "/{{.Service.Name}}".to_owned(),
                ..Mount::default()
            }],
            ..ContainerTaskSpec::default()
        };
        let out = expand(&spec, &values()).unwrap();
        assert_eq!(out.image, "{{.Task.ID}}");
        assert_eq!(out.hostname, "1");
        assert_eq!(out.env, ["A=taskname", "{{B}}"]);
        assert_eq!(
            (out.mounts[0].source.as_str(), out.mounts[0].target.as_str()),
            ("data-1", "/web")
        );
        let wrong = ContainerTaskSpec {
            hostname: "{{.Nod}}".to_owned(),
            ..spec
        };
        assert_eq!(
            expand(&wrong, &values()).unwrap_err().to_string(),
            "expanding hostname failed: template: can't evaluate field Nod: there are Node, Service, Task"
        );
    }

    #[test]
    fn a_payload_reads_what_its_task_has() {
        let env = ["LEVEL=info".to_owned()];
        let payload = Payload {
            secrets: BTreeMap::from([("pw", b"hunter2".as_slice())]),
            configs: BTreeMap::from([("/etc/site", b"name".as_slice())]),
            env: &env,
        };
        let said = |text: &str| match values().expand_payload(text.as_bytes(), &payload) {
            Ok(data) => String::from_utf8(data).unwrap(),
            Err(error) => error.to_string(),
        };
        assert_eq!(
            said(
                "{{secret \"pw\"}} {{config \"/etc/site\"}} {{env \"LEVEL\"}}{{env \"NO\"}} {{.Task.Slot}}"
            ),
            "hunter2 name info 1"
        );
        assert_eq!(
            said("{{secret \"no\"}}"),
            "template: secret target no not found"
        );
        assert_eq!(
            said("{{secret}}"),
            "template: secret takes one name, not 0 values"
        );
    }
    #[test]
    fn files_are_refused_for_what_no_task_could_fill_in() {
        let check = |text: &str| {
            let secret = File {
                is_secret: true,
                name: "key",
                target: "pw",
                data: None,
                is_template: false,
            };
            let config = File {
                is_secret: false,
                name: "site",
                target: "/etc/site",
                data: Some(text.as_bytes()),
                is_template: true,
            };
            let labels = Labels::from([("tier".to_owned(), "front".to_owned())]);
            let env = ["NODE={{.Node.Hostname}}".to_owned()];
            let checked = check_files(&[secret, config], &env, "web", &labels);
            checked.map_or_else(|error| error.to_string(), |()| "fine".to_owned())
        };
        for text in [
            "{{.Service.Labels.tier}} {{secret \"pw\"}} {{env \"NODE\"}} {{config \"/etc/site\"}}",
            // These depend on the task's values, or on a secret's.
            "{{index (split .Node.Hostname \"-\") 1}}",
            "{{index (split (secret \"pw\") \":\") 1}}",
            "{{config .Node.Hostname}}",
        ] {
            assert_eq!(check(text), "fine", "{text}");
        }
        for (text, problem) in [
            (
                "{{.Task.Colour}}",
                "expanding config site failed: template: can't evaluate field Colour: there are ID, Name, Slot",
            ),
            (
                "{{secret \"other\"}}",
                "expanding config site failed: template: secret target other not found",
            ),
            (
                "{{.Service.Labels.zone}}",
                "expanding config site failed: template: can't evaluate field zone: there are tier",
            ),
            (
                "{{if}}",
                "expanding config site failed: template parsing error: missing value for if",
            ),
        ] {
            assert!(check(text).starts_with(problem), "{text}: {}", check(text));
        }
    }
}
