//! Build arguments: what the user gave, and what the Dockerfile has declared so far.

use std::collections::{BTreeMap, BTreeSet};

/// Proxies may be given without being declared, and leave no trace in image or cache (Dockerfile reference,
/// "Predefined ARGs").
const PREDEFINED: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// The arguments of one build.
#[derive(Debug, Clone, Default)]
pub struct BuildArgs {
    given: BTreeMap<String, String>,
    /// Declared in the current stage, with their defaults.
    declared: BTreeMap<String, Option<String>>,
    /// Declared before the first stage: defaults for those who declare them again.
    meta: BTreeMap<String, Option<String>>,
    used: BTreeSet<String>,
}

impl BuildArgs {
    /// Arguments given by the user; those without a value are as good as not given.
    pub fn new(given: &BTreeMap<String, Option<String>>) -> Self {
        let given = given
            .iter()
            .filter_map(|(name, value)| Some((name.clone(), value.clone()?)));
        Self {
            given: given.collect(),
            ..Self::default()
        }
    }

    /// Declares one before the first stage.
    pub fn declare_meta(&mut self, name: &str, default: Option<String>) {
        self.used.insert(name.to_owned());
        self.meta.insert(name.to_owned(), default);
    }

    /// Declares one in the current stage.
    pub fn declare(&mut self, name: &str, default: Option<String>) {
        self.used.insert(name.to_owned());
        self.declared.insert(name.to_owned(), default);
    }

    /// A stage knows only what it declares itself.
    pub fn begin_stage(&mut self) {
        self.declared.clear();
    }

    /// `NAME=value` for `FROM` and for further `ARG`s before the first stage.
    pub fn for_from(&self) -> Vec<String> {
        let value = |name: &String, default: &Option<String>| {
            self.given.get(name).cloned().or_else(|| default.clone())
        };
        self.meta
            .iter()
            .filter_map(|(name, default)| Some(format!("{name}={}", value(name, default)?)))
            .collect()
    }

    /// `NAME=value` of all that instructions of this stage see, unless `env` has the name.
    pub fn visible(&self, env: &[String]) -> Vec<String> {
        let taken = |name: &str| {
            env.iter()
                .any(|entry| entry.split('=').next() == Some(name))
        };
        let mut names: BTreeSet<&str> = self.declared.keys().map(String::as_str).collect();
        names.extend(PREDEFINED);
        names
            .into_iter()
            .filter(|name| !taken(name))
            .filter_map(|name| Some(format!("{name}={}", self.value(name)?)))
            .collect()
    }

    /// Of [`Self::visible`] what decides whether a step was run before: proxies that nobody declared do not.
    pub fn for_cache(&self, env: &[String]) -> Vec<String> {
        let mut visible = self.visible(env);
        visible.retain(|entry| {
            let name = entry.split('=').next().unwrap_or_default();
            !PREDEFINED.contains(&name) || self.declared.contains_key(name)
        });
        visible
    }

    /// Names the user gave and no instruction declared.
    pub fn unused(&self) -> Vec<&str> {
        self.given
            .keys()
            .map(String::as_str)
            .filter(|name| !self.used.contains(*name) && !PREDEFINED.contains(name))
            .collect()
    }

    fn value(&self, name: &str) -> Option<String> {
        let default = || match self.declared.get(name) {
            Some(Some(default)) => Some(default.clone()),
            Some(None) => self.meta.get(name).cloned().flatten(),
            None => None,
        };
        self.given.get(name).cloned().or_else(default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(pairs: &[(&str, &str)]) -> BuildArgs {
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), Some((*value).to_owned()));
        BuildArgs::new(&pairs.iter().map(pair).collect())
    }

    #[test]
    fn a_stage_sees_what_it_declares() {
        let mut args = given(&[("A", "user"), ("X", "unused")]);
        args.declare_meta("V", Some("1".to_owned()));
        assert_eq!(args.for_from(), ["V=1"]);
        assert!(args.visible(&[]).is_empty());
        args.declare("A", Some("default".to_owned()));
        args.declare("V", None);
        args.declare("N", None);
        assert_eq!(args.visible(&[]), ["A=user", "V=1"]);
        assert_eq!(args.visible(&["A=env".to_owned()]), ["V=1"]);
        assert_eq!(args.unused(), ["X"]);
        args.begin_stage();
        assert!(args.visible(&[]).is_empty());
    }

    #[test]
    fn proxies_need_no_declaration_and_leave_no_trace() {
        let mut args = given(&[("http_proxy", "p")]);
        assert_eq!(args.visible(&[]), ["http_proxy=p"]);
        assert!(args.for_cache(&[]).is_empty() && args.unused().is_empty());
        args.declare("http_proxy", None);
        assert_eq!(args.for_cache(&[]), ["http_proxy=p"]);
    }
}
