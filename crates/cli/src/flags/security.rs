//! Security options: `--security-opt seccomp=profile.json`.

use std::fs;

use anyhow::{Context, Result};
use serde_json::Value;

/// A security option as the API has it, which knows no files: the path of a profile for system calls gives way to what is
/// in the file. `place` says where a path leads.
///
/// # Errors
/// The file cannot be read, or is no JSON.
pub(crate) fn option(text: &str, place: impl Fn(&str) -> String) -> Result<String> {
    // The colon is docker's old separator.
    let Some((key, value)) = text.split_once('=').or_else(|| text.split_once(':')) else {
        return Ok(text.to_owned());
    };
    let is_path = !matches!(value, "" | "builtin" | "unconfined") && !value.starts_with('{');
    if key != "seccomp" || !is_path {
        return Ok(text.to_owned());
    }
    let profile = fs::read_to_string(place(value))
        .with_context(|| format!("opening seccomp profile ({value}) failed"))?;
    let profile: Value = serde_json::from_str(&profile)
        .with_context(|| format!("compacting json for seccomp profile ({value}) failed"))?;
    Ok(format!("seccomp={profile}"))
}

/// The options of a command line, whose paths count from where it is given.
///
/// # Errors
/// As [`option`].
pub(crate) fn options(texts: &[String]) -> Result<Vec<String>> {
    let read = |text: &String| option(text, str::to_owned);
    texts.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_read_where_its_path_stands_and_all_else_stays() {
        let folder = tempfile::tempdir().unwrap();
        let place = |path: &str| folder.path().join(path).to_string_lossy().into_owned();
        fs::write(
            place("p.json"),
            "{\n  \"defaultAction\": \"SCMP_ACT_ALLOW\"\n}\n",
        )
        .unwrap();
        fs::write(place("broken.json"), "{").unwrap();
        for (given, read) in [
            ("no-new-privileges", "no-new-privileges"),
            ("seccomp=unconfined", "seccomp=unconfined"),
            ("seccomp={}", "seccomp={}"),
            ("apparmor=p.json", "apparmor=p.json"),
            (
                "seccomp=p.json",
                "seccomp={\"defaultAction\":\"SCMP_ACT_ALLOW\"}",
            ),
            (
                "seccomp:p.json",
                "seccomp={\"defaultAction\":\"SCMP_ACT_ALLOW\"}",
            ),
        ] {
            assert_eq!(option(given, place).unwrap(), read);
        }
        for (given, problem) in [
            (
                "seccomp=none.json",
                "opening seccomp profile (none.json) failed",
            ),
            (
                "seccomp=broken.json",
                "compacting json for seccomp profile (broken.json) failed",
            ),
        ] {
            assert_eq!(option(given, place).unwrap_err().to_string(), problem);
        }
    }
}
