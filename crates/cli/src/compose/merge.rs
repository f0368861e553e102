//! Laying one compose file over another, as `docker stack deploy -c a -c b`.

use super::{
    Problem,
    yaml::{Node, Yaml},
};

/// Lists that a later file replaces as a whole.
const REPLACED: [&str; 4] = ["command", "entrypoint", "test", "args"];
/// Lists of `key=value` that stand for a map.
const MAPS: [&str; 6] = [
    "environment",
    "labels",
    "sysctls",
    "extra_hosts",
    "driver_opts",
    "options",
];

/// Lays `over` over `base`.
pub(super) fn documents(base: Node, over: Node) -> Result<Node, Problem> {
    merge("", base, over)
}

fn merge(name: &str, base: Node, over: Node) -> Result<Node, Problem> {
    let base = if MAPS.contains(&name) {
        as_map(base)
    } else {
        base
    };
    let over = if MAPS.contains(&name) {
        as_map(over)
    } else {
        over
    };
    let Node { place, path, value } = over;
    let value = match (base.value, value) {
        (below, Yaml::Null) => below,
        (Yaml::Map(mut entries), Yaml::Map(later)) => {
            for (key, value) in later {
                match entries.iter().position(|(known, _)| known.name == key.name) {
                    Some(at) => {
                        let (known, below) = entries.remove(at);
                        let merged = merge(&known.name, below, value)?;
                        entries.insert(at, (known, merged));
                    }
                    None => entries.push((key, value)),
                }
            }
            Yaml::Map(entries)
        }
        (Yaml::List(mut items), Yaml::List(later)) if !REPLACED.contains(&name) => {
            for item in later {
                let identity = identity(name, &item);
                match items
                    .iter()
                    .position(|other| self::identity(name, other) == identity)
                {
                    Some(at) => items[at] = item,
                    None => items.push(item),
                }
            }
            Yaml::List(items)
        }
        (_, value) => value,
    };
    Ok(Node { place, path, value })
}

/// A list of `key=value` as a map; anything else stays.
fn as_map(node: Node) -> Node {
    let Yaml::List(items) = node.value else {
        return node;
    };
    let entries = items.into_iter().map(|item| {
        let place = item.place.clone();
        let text = match &item.value {
            Yaml::Text(text) | Yaml::Plain(text) => text.clone(),
            _ => String::new(),
        };
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name.to_owned(), Yaml::Text(value.to_owned())),
            None => (text, Yaml::Null),
        };
        (super::yaml::Key { name, place }, Node { value, ..item })
    });
    Node {
        value: Yaml::Map(entries.collect()),
        ..node
    }
}

/// What makes two items of a list the same: the target of ports, volumes, secrets and configs, else all of it.
fn identity(name: &str, item: &Node) -> String {
    let field = |wanted: &str| match &item.value {
        Yaml::Map(entries) => entries.iter().find_map(|(key, value)| match &value.value {
            Yaml::Text(text) | Yaml::Plain(text) if key.name == wanted => Some(text.clone()),
            _ => None,
        }),
        _ => None,
    };
    let whole = super::yaml::write(item);
    let text = match &item.value {
        Yaml::Text(text) | Yaml::Plain(text) => text.as_str(),
        _ => "",
    };
    match name {
        "volumes" => field("target").or_else(|| text.split(':').nth(1).map(str::to_owned)),
        "secrets" | "configs" => {
            field("source").or_else(|| (!text.is_empty()).then(|| text.to_owned()))
        }
        "ports" => field("target")
            .map(|target| format!("{}:{target}", field("published").unwrap_or_default())),
        _ => None,
    }
    .unwrap_or(whole)
}
