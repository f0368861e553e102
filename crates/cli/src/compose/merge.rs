//! Laying one compose file over another, as `docker stack deploy -c a -c b`, and one service over what it extends.

use super::{
    Problem,
    yaml::{Key, Node, Yaml},
};
use crate::flags::port;

/// Values that a later file replaces as a whole.
const REPLACED: [&str; 4] = ["command", "entrypoint", "test", "args"];
/// Lists of `key=value` that stand for a map.
const PAIRS: [&str; 7] = [
    "environment",
    "labels",
    "sysctls",
    "extra_hosts",
    "driver_opts",
    "options",
    "annotations",
];
/// Lists of names that stand for a map.
const NAMES: [&str; 2] = ["depends_on", "networks"];
/// Single texts that stand for a list.
const LISTS: [&str; 5] = ["dns", "dns_search", "tmpfs", "env_file", "label_file"];

/// Lays `over` over `base`.
pub(super) fn documents(base: Node, over: Node) -> Result<Node, Problem> {
    merge("", base, over)
}

/// Adds what an included file declares; nothing may be declared twice.
pub(super) fn included(base: Node, other: Node) -> Result<Node, Problem> {
    let Node { place, path, value } = base;
    let (Yaml::Map(mut sections), Yaml::Map(theirs)) = (value, other.value) else {
        return Err(place.problem("must be a mapping"));
    };
    for (section, node) in theirs {
        if section.name == "version" || section.name == "name" || section.name.starts_with("x-") {
            continue;
        }
        let Some((_, ours)) = sections
            .iter_mut()
            .find(|(known, _)| known.name == section.name)
        else {
            sections.push((section, node));
            continue;
        };
        let Yaml::Map(entries) = node.value else {
            continue;
        };
        if let Yaml::Null = ours.value {
            ours.value = Yaml::Map(Vec::new());
        }
        let Yaml::Map(known) = &mut ours.value else {
            return Err(ours.problem("must be a mapping"));
        };
        for (key, value) in entries {
            if let Some((earlier, _)) = known.iter().find(|(known, _)| known.name == key.name) {
                return Err(key.place.problem(format!(
                    "{}.{} is declared in {}:{} already; an included file cannot change it",
                    section.name, key.name, earlier.place.file, earlier.place.line
                )));
            }
            known.push((key, value));
        }
    }
    Ok(Node {
        place,
        path,
        value: Yaml::Map(sections),
    })
}

fn merge(name: &str, base: Node, over: Node) -> Result<Node, Problem> {
    let (base, over) = (normal(name, base), normal(name, over));
    let Node { place, path, value } = over;
    let value = match (base.value, value) {
        (below, Yaml::Null) => below,
        (Yaml::Map(entries), Yaml::Map(later))
            if name == "logging" && driver(&entries) != driver(&later) =>
        {
            // The options of one driver say nothing to another.
            let says_none = driver(&later).is_none();
            if says_none {
                Yaml::Map(maps(entries, later)?)
            } else {
                Yaml::Map(later)
            }
        }
        (Yaml::Map(entries), Yaml::Map(later)) => Yaml::Map(maps(entries, later)?),
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

fn maps(
    mut entries: Vec<(Key, Node)>,
    later: Vec<(Key, Node)>,
) -> Result<Vec<(Key, Node)>, Problem> {
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
    Ok(entries)
}

fn driver(entries: &[(Key, Node)]) -> Option<&str> {
    entries.iter().find_map(|(key, node)| match &node.value {
        Yaml::Text(text) | Yaml::Plain(text) if key.name == "driver" => Some(text.as_str()),
        _ => None,
    })
}

/// The long form of a value that has a short one.
fn normal(name: &str, node: Node) -> Node {
    match &node.value {
        Yaml::List(_) if PAIRS.contains(&name) => as_map(node, |text| match text.split_once('=') {
            Some((name, value)) => (name.to_owned(), Yaml::Text(value.to_owned())),
            // A host's address may stand behind a colon.
            None if name == "extra_hosts" => match text.split_once(':') {
                Some((name, value)) => (name.to_owned(), Yaml::Text(value.to_owned())),
                None => (text.to_owned(), Yaml::Null),
            },
            None => (text.to_owned(), Yaml::Null),
        }),
        Yaml::List(_) if NAMES.contains(&name) => {
            as_map(node, |text| (text.to_owned(), Yaml::Null))
        }
        Yaml::Text(_) | Yaml::Plain(_) if LISTS.contains(&name) => Node {
            place: node.place.clone(),
            path: node.path.clone(),
            value: Yaml::List(vec![node]),
        },
        _ => node,
    }
}

/// A list of texts as a map; anything else stays.
fn as_map(node: Node, pair: impl Fn(&str) -> (String, Yaml)) -> Node {
    let Yaml::List(items) = node.value else {
        return node;
    };
    let entries = items.into_iter().map(|item| {
        let place = item.place.clone();
        let text = match &item.value {
            Yaml::Text(text) | Yaml::Plain(text) => text.clone(),
            _ => String::new(),
        };
        let (name, value) = pair(&text);
        (Key { name, place }, Node { value, ..item })
    });
    Node {
        value: Yaml::Map(entries.collect()),
        ..node
    }
}

/// What makes two items of a list the same: the target of volumes, secrets and configs, the whole way of a port, else all
/// of it.
fn identity(name: &str, item: &Node) -> String {
    let field = |wanted: &str| match &item.value {
        Yaml::Map(entries) => entries.iter().find_map(|(key, value)| match &value.value {
            Yaml::Text(text) | Yaml::Plain(text) if key.name == wanted => Some(text.clone()),
            _ => None,
        }),
        _ => None,
    };
    let text = match &item.value {
        Yaml::Text(text) | Yaml::Plain(text) => text.as_str(),
        _ => "",
    };
    let known = match name {
        "volumes" | "devices" => field("target").or_else(|| {
            let mut parts = text.split(':');
            let first = parts.next().filter(|first| !first.is_empty())?;
            Some(parts.next().unwrap_or(first).to_owned())
        }),
        "secrets" | "configs" => field("target")
            .or_else(|| field("source"))
            .or_else(|| (!text.is_empty()).then(|| text.to_owned())),
        "ports" => field("target")
            .map(|target| {
                let or =
                    |name: &str, default: &str| field(name).unwrap_or_else(|| default.to_owned());
                format!(
                    "{}:{}:{target}/{}",
                    or("host_ip", ""),
                    or("published", ""),
                    or("protocol", "tcp")
                )
            })
            .or_else(|| match port::short(text).ok()?.as_slice() {
                [port] => Some(format!(
                    "{}:{}:{}/{}",
                    port.host_ip, port.published, port.target, port.protocol
                )),
                _ => None,
            }),
        _ => None,
    };
    known.unwrap_or_else(|| super::yaml::write(item))
}
