//! `depends_on`: what a service waits for, and that it does not wait for itself.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{
    Problem, Scope,
    read::Fields,
    yaml::{Node, Yaml},
};

/// Label of a service that says what it waits for.
const LABEL: &str = "shoal.depends-on";
/// How far another service must have come.
const CONDITIONS: [&str; 3] = [
    "service_started",
    "service_healthy",
    "service_completed_successfully",
];

/// One entry of `depends_on`.
struct Dependency<'a> {
    service: &'a str,
    condition: String,
    required: bool,
    node: &'a Node,
    /// Whether it wants more than there is: to be restarted along.
    restart: Option<&'a Node>,
}

fn read(node: &Node) -> Result<Vec<Dependency<'_>>, Problem> {
    let started = |service, node| Dependency {
        service,
        condition: CONDITIONS[0].to_owned(),
        required: true,
        node,
        restart: None,
    };
    match &node.value {
        Yaml::List(items) => items
            .iter()
            .map(|item| match &item.value {
                Yaml::Text(name) | Yaml::Plain(name) => Ok(started(name, item)),
                _ => Err(item.problem("must be the name of a service")),
            })
            .collect(),
        _ => node
            .entries()?
            .map(|(key, value)| {
                let mut out = started(&key.name, value);
                let mut fields = Fields::of(value, &value.path)?;
                if let Some(condition) =
                    fields.maybe("condition", |node| node.one_of(&CONDITIONS))?
                {
                    out.condition = condition;
                }
                out.required = fields.maybe("required", Node::boolean)?.unwrap_or(true);
                out.restart = match fields.take("restart") {
                    Some(node) if node.boolean()? => Some(node),
                    _ => None,
                };
                fields.finish()?;
                Ok(out)
            })
            .collect(),
    }
}

/// The value of the label for a service, if it waits for anything.
pub(super) fn label(
    node: Option<&Node>,
    scope: &mut Scope<'_>,
) -> Result<Option<(&'static str, String)>, Problem> {
    let Some(node) = node else { return Ok(None) };
    let mut all = Vec::new();
    for dependency in read(node)? {
        if let Some(restart) = dependency.restart {
            let problem = restart.problem("has no effect in a stack");
            scope.warnings.push(problem.to_string());
        }
        let optional = if dependency.required { "" } else { ":optional" };
        let name = scope.name(dependency.service);
        all.push(format!("{name}:{}{optional}", dependency.condition));
    }
    Ok((!all.is_empty()).then(|| (LABEL, all.join(","))))
}

/// Checks that services wait for others that there are, and never in a circle.
pub(super) fn check(services: &Node) -> Result<(), Problem> {
    let mut graph: BTreeMap<&str, Vec<Dependency<'_>>> = BTreeMap::new();
    for (key, service) in services.entries()? {
        let mut all = Vec::new();
        if let Yaml::Map(entries) = &service.value
            && let Some((_, node)) = entries.iter().find(|(key, _)| key.name == "depends_on")
            && !matches!(node.value, Yaml::Null)
        {
            all = read(node)?;
        }
        graph.insert(&key.name, all);
    }
    for dependency in graph.values().flatten() {
        if dependency.required && !graph.contains_key(dependency.service) {
            return Err(dependency.node.problem(format!(
                "waits for the service {:?}, which the file does not declare, or whose profiles were not asked for",
                dependency.service
            )));
        }
    }
    let mut done = BTreeSet::new();
    for name in graph.keys().copied() {
        visit(name, &graph, &mut Vec::new(), &mut done)?;
    }
    Ok(())
}

fn visit<'a>(
    name: &'a str,
    graph: &'a BTreeMap<&str, Vec<Dependency<'a>>>,
    path: &mut Vec<&'a str>,
    done: &mut BTreeSet<&'a str>,
) -> Result<(), Problem> {
    if done.contains(name) {
        return Ok(());
    }
    path.push(name);
    for dependency in graph.get(name).into_iter().flatten() {
        if let Some(at) = path.iter().position(|known| *known == dependency.service) {
            let mut circle = path[at..].to_vec();
            circle.push(dependency.service);
            return Err(dependency.node.problem(format!(
                "makes services wait for each other: {}",
                circle.join(" → ")
            )));
        }
        visit(dependency.service, graph, path, done)?;
    }
    path.pop();
    done.insert(name);
    Ok(())
}

/// Sorts services by name, but those that others wait for before these.
pub(super) fn sort(services: &mut Vec<Value>) {
    let name = |service: &Value| crate::json::text(service, "/Name").to_owned();
    services.sort_by_key(name);
    let all: BTreeSet<String> = services.iter().map(name).collect();
    let mut sorted: Vec<Value> = Vec::new();
    let mut seen = BTreeSet::new();
    while !services.is_empty() {
        let is_free = |service: &Value| {
            let label = service["Labels"][LABEL].as_str().unwrap_or_default();
            let mut needs = label.split(',').filter_map(|item| item.split(':').next());
            needs.all(|need| !all.contains(need) || seen.contains(need))
        };
        // There is no circle, but a loop that cannot end is worse than a wrong order.
        let at = services.iter().position(is_free).unwrap_or(0);
        let service = services.remove(at);
        seen.insert(name(&service));
        sorted.push(service);
    }
    *services = sorted;
}
