//! `node-generic-resources`: what a host has besides processors and memory.

use std::collections::BTreeMap;

use shoal_api::spec::GenericResource;

/// Reads `kind=amount` and `kind=name`, one or several of them, apart by commas, in each text.
///
/// # Errors
/// What makes no sense, in SwarmKit's words (`api/genericresource/parse.go`).
pub(super) fn parse(texts: &[String]) -> Result<BTreeMap<String, GenericResource>, String> {
    let mut found: BTreeMap<String, GenericResource> = BTreeMap::new();
    for term in texts.iter().flat_map(|text| text.split(',')) {
        let split = term
            .split_once('=')
            .map(|(kind, value)| (kind.trim(), value.trim()));
        let Some((kind, value)) =
            split.filter(|(kind, value)| !kind.is_empty() && !value.is_empty())
        else {
            return Err(format!(
                "incorrect term {term}, missing '=' or malformed expression"
            ));
        };
        match (value.parse::<i64>(), found.get_mut(kind)) {
            (Ok(amount), None) => {
                let amount = u64::try_from(amount).ok().filter(|amount| *amount > 0);
                let amount = amount
                    .ok_or_else(|| format!("invalid amount in {term}: expected at least 1"))?;
                found.insert(kind.to_owned(), GenericResource::Discrete(amount));
            }
            (Err(_), None) => {
                let names = GenericResource::Named(vec![value.to_owned()]);
                found.insert(kind.to_owned(), names);
            }
            (Err(_), Some(GenericResource::Named(names))) => {
                if names.iter().any(|name| name == value) {
                    return Err(format!("{term} is given twice"));
                }
                names.push(value.to_owned());
            }
            (Ok(_), Some(GenericResource::Discrete(_))) => {
                return Err(format!("the amount of {kind} is given twice"));
            }
            _ => {
                return Err(format!(
                    "mixed discrete and named resources in expression {term:?}"
                ));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_and_names_are_read_and_not_mixed() {
        let read = |texts: &[&str]| parse(&texts.iter().map(|&t| t.to_owned()).collect::<Vec<_>>());
        let names = GenericResource::Named(vec!["UUID1".into(), "UUID2".into()]);
        let both = BTreeMap::from([
            ("apple".to_owned(), GenericResource::Discrete(5)),
            ("gpu".to_owned(), names),
        ]);
        assert_eq!(read(&["gpu=UUID1", "gpu=UUID2,apple=5"]), Ok(both));
        let refused: Vec<_> = [
            &["gpu"][..],
            &["gpu=1", "gpu=a"],
            &["gpu=a", "gpu=a"],
            &["gpu=0"],
        ]
        .into_iter()
        .map(|texts| read(texts).unwrap_err())
        .collect();
        assert_eq!(
            refused,
            [
                "incorrect term gpu, missing '=' or malformed expression",
                "mixed discrete and named resources in expression \"gpu=a\"",
                "gpu=a is given twice",
                "invalid amount in gpu=0: expected at least 1",
            ]
        );
    }
}
