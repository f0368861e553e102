//! Finding an object by what a user typed: its id, its name, or the beginning of its id.

use crate::backend::{ApiError, ApiResult};

/// Finds one object, in SwarmKit's order: whole id, name, then a prefix of the id that only one has.
///
/// `kind` is docker's word for the message.
pub(crate) fn resolve<'a, T>(
    kind: &str,
    items: &'a [T],
    wanted: &str,
    id: impl Fn(&T) -> &str,
    name: impl Fn(&T) -> &str,
) -> ApiResult<&'a T> {
    if wanted.is_empty() {
        return Err(ApiError::invalid(format!("no {kind} was named")));
    }
    if let Some(item) = items.iter().find(|item| id(item) == wanted) {
        return Ok(item);
    }
    let named: Vec<&T> = items.iter().filter(|item| name(item) == wanted).collect();
    let found = if named.is_empty() {
        items
            .iter()
            .filter(|item| id(item).starts_with(wanted))
            .collect()
    } else {
        named
    };
    match found[..] {
        [item] => Ok(item),
        [] => Err(ApiError::not_found(format!("{kind} {wanted} not found"))),
        _ => Err(ApiError::invalid(format!(
            "{kind} {wanted} is ambiguous ({} matches found)",
            found.len()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_before_names_before_prefixes() {
        let items = [
            ("abc1", "web"),
            ("abc2", "abc1"),
            ("web3", "db"),
            ("x", "db"),
        ];
        let find = |wanted| {
            resolve("service", &items, wanted, |i| i.0, |i| i.1)
                .map(|i| i.0)
                .map_err(|e| e.message)
        };
        assert_eq!(find("abc1"), Ok("abc1"));
        assert_eq!(find("web"), Ok("abc1"));
        assert_eq!(find("web3"), Ok("web3"));
        assert_eq!(find("we"), Ok("web3"));
        assert_eq!(find("nope"), Err("service nope not found".to_owned()));
        assert_eq!(
            find("abc"),
            Err("service abc is ambiguous (2 matches found)".to_owned())
        );
        assert_eq!(
            find("db"),
            Err("service db is ambiguous (2 matches found)".to_owned())
        );
    }
}
