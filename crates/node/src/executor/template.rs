//! Placeholders that Swarm allows in environment, hostname and mounts: `{{.Task.Slot}}` and its siblings.
//!
//! Go's text/template is reduced to what Swarm documents: one field per action, and `join` is left out. An unknown field
//! is an error, as with Go's `missingkey=error`.

use shoal_api::object::Task;

/// What a placeholder cannot be replaced by.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum TemplateError {
    /// `{{` without `}}`.
    #[error("unclosed action in template {0:?}")]
    Unclosed(String),
    /// Not one of the fields that Swarm allows.
    #[error(
        "template field {field:?} is not one of .Service.ID .Service.Name .Service.Labels.KEY .Node.ID .Node.Hostname .Node.Platform.OS .Node.Platform.Architecture .Task.ID .Task.Name .Task.Slot"
    )]
    UnknownField {
        /// As written.
        field: String,
    },
}

/// What placeholders stand for.
#[derive(Debug, Clone, Default)]
pub(super) struct Values {
    /// `.Service.ID`
    pub(super) service_id: String,
    /// `.Service.Name`
    pub(super) service_name: String,
    /// `.Service.Labels`
    pub(super) service_labels: std::collections::BTreeMap<String, String>,
    /// `.Node.ID`
    pub(super) node_id: String,
    /// `.Node.Hostname`
    pub(super) node_hostname: String,
    /// `.Node.Platform.Architecture`, as Go's runtime names it for docker: `x86_64`.
    pub(super) node_architecture: String,
    /// `.Task.ID`
    pub(super) task_id: String,
    /// `.Task.Name`
    pub(super) task_name: String,
    /// `.Task.Slot`; the node's id for global services.
    pub(super) task_slot: String,
}

impl Values {
    /// The values for a task on a node.
    pub(super) fn of(task: &Task, node_hostname: &str, architecture: &str) -> Self {
        let node_id = task
            .node
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        Self {
            service_id: task.service.to_string(),
            service_name: task.service_name.to_string(),
            service_labels: std::collections::BTreeMap::new(),
            task_slot: if task.slot == 0 {
                node_id.clone()
            } else {
                task.slot.to_string()
            },
            node_id,
            node_hostname: node_hostname.to_owned(),
            node_architecture: architecture.to_owned(),
            task_id: task.id.to_string(),
            task_name: task.name(),
        }
    }

    /// Replaces every placeholder in a text.
    pub(super) fn expand(&self, text: &str) -> Result<String, TemplateError> {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            out.push_str(before);
            let Some((action, after)) = after.split_once("}}") else {
                return Err(TemplateError::Unclosed(text.to_owned()));
            };
            // `{{-` and `-}}` trim, as in Go.
            let (action, after) = match action.strip_suffix('-') {
                Some(action) => (action, after.trim_start()),
                None => (action, after),
            };
            let action = match action.strip_prefix('-') {
                Some(action) => {
                    out.truncate(out.trim_end().len());
                    action
                }
                None => action,
            };
            out.push_str(self.field(action.trim())?);
            rest = after;
        }
        out.push_str(rest);
        Ok(out)
    }

    fn field(&self, field: &str) -> Result<&str, TemplateError> {
        Ok(match field {
            ".Service.ID" => &self.service_id,
            ".Service.Name" => &self.service_name,
            ".Node.ID" => &self.node_id,
            ".Node.Hostname" => &self.node_hostname,
            ".Node.Platform.OS" => "linux",
            ".Node.Platform.Architecture" => &self.node_architecture,
            ".Task.ID" => &self.task_id,
            ".Task.Name" => &self.task_name,
            ".Task.Slot" => &self.task_slot,
            other => {
                let label = other.strip_prefix(".Service.Labels.").or_else(|| {
                    other
                        .strip_prefix("index .Service.Labels ")
                        .map(|key| key.trim_matches('"'))
                });
                let value = label.and_then(|label| self.service_labels.get(label));
                value.ok_or_else(|| TemplateError::UnknownField {
                    field: other.to_owned(),
                })?
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Values {
        Values {
            task_slot: "3".to_owned(),
            node_hostname: "n1".to_owned(),
            ..Values::default()
        }
    }

    #[test]
    fn placeholders_are_replaced_wherever_they_stand() {
        let expanded = values().expand("{{.Node.Hostname}}-{{ .Task.Slot }}!");
        assert_eq!(expanded.as_deref(), Ok("n1-3!"));
        assert_eq!(
            values().expand("a {{- .Task.Slot -}} b").as_deref(),
            Ok("a3b")
        );
        assert_eq!(
            values().expand("plain } text {").as_deref(),
            Ok("plain } text {")
        );
    }

    #[test]
    fn what_swarm_does_not_know_is_refused_by_name() {
        let refused = values().expand("{{.Node.Colour}}").unwrap_err();
        assert_eq!(
            refused,
            TemplateError::UnknownField {
                field: ".Node.Colour".to_owned()
            }
        );
        assert!(matches!(
            values().expand("{{.Task"),
            Err(TemplateError::Unclosed(_))
        ));
    }
}
