//! Where things go in the image being built.

/// The target of `COPY`, `ADD` or `WORKDIR`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// Absolute and cleaned.
    pub path: String,
    /// Written with a slash at its end: a directory, whether it exists or not.
    pub is_directory: bool,
}

/// Cleans a target; a relative one is below the working directory.
pub fn destination(working_dir: &str, target: &str) -> Destination {
    let last = target.rsplit('/').next().unwrap_or_default();
    let is_directory = matches!(last, "" | "." | "..");
    let whole = match target.starts_with('/') {
        true => target.to_owned(),
        false => format!("{working_dir}/{target}"),
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    Destination {
        path: format!("/{}", parts.join("/")),
        is_directory,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_cleaned_and_stay_below_the_root() {
        let shown = |dir: &str, target: &str| {
            let found = destination(dir, target);
            format!(
                "{}{}",
                found.path,
                if found.is_directory { " dir" } else { "" }
            )
        };
        assert_eq!(shown("/w", "a/b"), "/w/a/b");
        assert_eq!(shown("/w", "./"), "/w dir");
        assert_eq!(shown("/w", "."), "/w dir");
        assert_eq!(shown("", "a"), "/a");
        assert_eq!(shown("/w", "/x//y/../z/"), "/x/z dir");
        assert_eq!(shown("/w", "../../../etc"), "/etc");
        assert_eq!(shown("/w", "/"), "/ dir");
    }
}
