//! What a deployment is about to do: pure comparison of what there is with what the files say.

use std::fmt;

use serde_json::{Value, json};

use crate::json::{items, number, significant, text};

/// What happens to one object.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    Create,
    /// A service, with where its tasks would go.
    Place(String),
    Update(Vec<Difference>),
    Unchanged,
    Remove,
}

/// A field that changes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Difference {
    /// Names from the top, with dots.
    pub(super) path: String,
    /// What it is; nothing if it is not said.
    pub(super) old: Option<Value>,
    /// What it will be.
    pub(super) new: Option<Value>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &Option<Value>| match value {
            None => "(none)".to_owned(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        write!(
            f,
            "{}: {} → {}",
            self.path,
            shown(&self.old),
            shown(&self.new)
        )
    }
}

/// One line of a plan.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Step {
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) action: Action,
}

/// The plan as text.
pub(super) fn show(stack: &str, steps: &[Step]) -> String {
    let mut out = format!("Stack {stack}\n");
    let (mut created, mut updated, mut removed, mut kept) = (0, 0, 0, 0);
    for Step { kind, name, action } in steps {
        match action {
            Action::Create => {
                created += 1;
                out.push_str(&format!("+ {kind} {name}\n"));
            }
            Action::Place(places) => {
                created += 1;
                out.push_str(&format!("+ {kind} {name}\n    {places}\n"));
            }
            Action::Update(differences) => {
                updated += 1;
                out.push_str(&format!("~ {kind} {name}\n"));
                for difference in differences {
                    out.push_str(&format!("    {difference}\n"));
                }
            }
            Action::Remove => {
                removed += 1;
                out.push_str(&format!("- {kind} {name}\n"));
            }
            Action::Unchanged => kept += 1,
        }
    }
    out.push_str(&format!(
        "Plan: {created} to create, {updated} to update, {removed} to remove, {kept} unchanged\n"
    ));
    out
}

/// Hosts of a service that are named; the others are counted.
const HOSTS_MAX: usize = 8;

/// Where the tasks of a new service would go, as the managers foresee it.
pub(super) fn places(foreseen: &Value) -> String {
    let wanted = number(foreseen, "/Wanted");
    let places = items(foreseen, "/Places");
    let tasks = |place: &Value| number(place, "/1");
    let placed: i64 = places.iter().map(tasks).sum();
    let hosts = places.iter().take(HOSTS_MAX);
    let mut hosts: Vec<String> = hosts
        .map(|place| format!("{} on {}", tasks(place), text(place, "/0")))
        .collect();
    if places.len() > HOSTS_MAX {
        let rest: i64 = places[HOSTS_MAX..].iter().map(tasks).sum();
        hosts.push(format!("{rest} on {} more", places.len() - HOSTS_MAX));
    }
    let mut out = format!("places: {placed} of {wanted}");
    if !hosts.is_empty() {
        out.push_str(&format!(", {}", hosts.join(", ")));
    }
    let why = text(foreseen, "/Why");
    if !why.is_empty() {
        out.push_str(&format!(" ({why})"));
    }
    out
}

/// What writing `new` over a service's `old` spec would change.
pub(super) fn differences(old: &Value, new: &Value) -> Vec<Difference> {
    let mut out = Vec::new();
    compare("", &normal(old), &normal(new), &mut out);
    out
}

fn compare(path: &str, old: &Value, new: &Value, out: &mut Vec<Difference>) {
    let child = |name: &str| match path {
        "" => name.to_owned(),
        path => format!("{path}.{name}"),
    };
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (name, before) in old {
                match new.get(name) {
                    Some(after) => compare(&child(name), before, after, out),
                    None => out.push(Difference {
                        path: child(name),
                        old: Some(before.clone()),
                        new: None,
                    }),
                }
            }
            for (name, after) in new.iter().filter(|(name, _)| !old.contains_key(*name)) {
                out.push(Difference {
                    path: child(name),
                    old: None,
                    new: Some(after.clone()),
                });
            }
        }
        _ if old == new => {}
        _ => out.push(Difference {
            path: path.to_owned(),
            old: Some(old.clone()),
            new: Some(new.clone()),
        }),
    }
}

/// A spec without what says nothing and without the API's defaults, which a daemon fills in where a spec says nothing.
fn normal(spec: &Value) -> Value {
    let mut spec = spec.clone();
    let mut drop = |pointer: &str, field: &str, default: &Value| {
        if let Some(fields) = spec.pointer_mut(pointer).and_then(Value::as_object_mut)
            && fields.get(field) == Some(default)
        {
            fields.remove(field);
        }
    };
    let task = "/TaskTemplate";
    drop(
        &format!("{task}/ContainerSpec"),
        "StopGracePeriod",
        &json!(10_000_000_000_i64),
    );
    drop(
        &format!("{task}/ContainerSpec"),
        "Isolation",
        &json!("default"),
    );
    drop(&format!("{task}/RestartPolicy"), "Condition", &json!("any"));
    drop(
        &format!("{task}/RestartPolicy"),
        "Delay",
        &json!(5_000_000_000_i64),
    );
    drop(task, "Runtime", &json!("container"));
    drop("/EndpointSpec", "Mode", &json!("vip"));
    for config in ["/UpdateConfig", "/RollbackConfig"] {
        drop(config, "Parallelism", &json!(1));
        drop(config, "FailureAction", &json!("pause"));
        drop(config, "Monitor", &json!(5_000_000_000_i64));
        drop(config, "Order", &json!("stop-first"));
    }
    if let Some(task) = spec.pointer_mut(task).and_then(Value::as_object_mut) {
        // Follow from the image, not from the file.
        if let Some(placement) = task.get_mut("Placement").and_then(Value::as_object_mut) {
            placement.remove("Platforms");
        }
    }
    // An empty label is still a label.
    let has_some = |labels: &Value| labels.as_object().is_some_and(|labels| !labels.is_empty());
    let labels_at = |at| spec.pointer(at).filter(|labels| has_some(labels)).cloned();
    let of_service = labels_at("/Labels");
    let of_container = labels_at("/TaskTemplate/ContainerSpec/Labels");
    let mut out = significant(&spec).unwrap_or_else(|| json!({}));
    if let Some(labels) = of_service {
        out["Labels"] = labels;
    }
    if let Some(labels) = of_container {
        out["TaskTemplate"]["ContainerSpec"]["Labels"] = labels;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_is_the_same_with_its_defaults_filled_in() {
        let new = json!({"Name": "a", "Mode": {"Replicated": {"Replicas": 1}}, "TaskTemplate": {"ContainerSpec": {"Image": "x"}}});
        let old = json!({"Name": "a", "Labels": {}, "Mode": {"Replicated": {"Replicas": 1}}, "EndpointSpec": {"Mode": "vip"},
            "TaskTemplate": {"ContainerSpec": {"Image": "x", "StopGracePeriod": 10_000_000_000_i64}, "ForceUpdate": 0, "Runtime": "container",
                "Resources": {"Limits": {}}, "RestartPolicy": {"Condition": "any", "Delay": 5_000_000_000_i64, "MaxAttempts": 0},
                "Placement": {"Platforms": [{"OS": "linux"}]}}});
        assert_eq!(differences(&old, &new), []);
        let mut other = new.clone();
        other["TaskTemplate"]["ContainerSpec"]["Env"] = json!(["A=1"]);
        other["TaskTemplate"]["ContainerSpec"]["Image"] = "y".into();
        other["Labels"] = json!({"a": ""});
        let said: Vec<_> = differences(&old, &other)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            said,
            [
                "TaskTemplate.ContainerSpec.Image: x → y",
                "TaskTemplate.ContainerSpec.Env: (none) → [\"A=1\"]",
                "Labels: (none) → {\"a\":\"\"}",
            ]
        );
    }

    #[test]
    fn a_plan_is_read_at_a_glance() {
        let step = |kind, name: &str, action| Step {
            kind,
            name: name.to_owned(),
            action,
        };
        let change = Difference {
            path: "Mode.Replicated.Replicas".to_owned(),
            old: Some(3.into()),
            new: Some(5.into()),
        };
        let steps = [
            step("network", "demo_default", Action::Create),
            step("service", "demo_web", Action::Update(vec![change])),
            step(
                "service",
                "demo_new",
                Action::Place(places(&json!({
                    "Name": "demo_new", "Wanted": 4, "Places": [["n1", 2], ["n2", 1]],
                    "Why": "insufficient resources on 2 nodes; 1 node not available for new tasks",
                }))),
            ),
            step("service", "demo_db", Action::Unchanged),
            step("service", "demo_old", Action::Remove),
        ];
        assert_eq!(
            show("demo", &steps),
            "Stack demo\n+ network demo_default\n~ service demo_web\n    Mode.Replicated.Replicas: 3 → 5\n+ service demo_new\n    \
             places: 3 of 4, 2 on n1, 1 on n2 (insufficient resources on 2 nodes; 1 node not available for new tasks)\n\
             - service demo_old\nPlan: 2 to create, 1 to update, 1 to remove, 1 unchanged\n"
        );
    }
}
