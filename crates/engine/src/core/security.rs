//! `--security-opt`.

use super::seccomp::Profile;

/// What a container's security options come to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Security {
    pub no_new_privileges: bool,
    pub filter: Filter,
}

/// Which system calls a container may make.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Filter {
    /// The engine's own profile.
    #[default]
    Default,
    Unconfined,
    Custom(Profile),
}

/// Docker's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecurityError {
    #[error("invalid --security-opt 1: {0:?}")]
    Form(String),
    #[error("invalid --security-opt 2: {0:?}")]
    Option(String),
    #[error("Decoding seccomp profile failed: {0}")]
    Profile(String),
}

/// Reads the options. The later of two about the same thing counts.
///
/// Profiles of AppArmor and labels of SELinux are accepted whatever their name: on kernels that have neither (the only
/// ones that are served) docker passes over them, too.
pub fn parse(options: &[String]) -> Result<Security, SecurityError> {
    let mut security = Security::default();
    for option in options {
        if option == "no-new-privileges" {
            security.no_new_privileges = true;
            continue;
        }
        if option == "disable" {
            continue;
        }
        // Docker's old separator is a colon.
        let (key, value) = option
            .split_once('=')
            .or_else(|| option.split_once(':'))
            .ok_or_else(|| SecurityError::Form(option.clone()))?;
        match (key, value) {
            ("no-new-privileges", "true" | "1" | "t" | "T" | "TRUE" | "True") => {
                security.no_new_privileges = true;
            }
            ("no-new-privileges", "false" | "0" | "f" | "F" | "FALSE" | "False") => {
                security.no_new_privileges = false;
            }
            ("seccomp", "unconfined") => security.filter = Filter::Unconfined,
            ("seccomp", "builtin" | "") => security.filter = Filter::Default,
            ("seccomp", json) => {
                let profile = Profile::parse(json).map_err(SecurityError::Profile)?;
                security.filter = Filter::Custom(profile);
            }
            ("apparmor" | "label", _) => {}
            _ => return Err(SecurityError::Option(option.clone())),
        }
    }
    Ok(security)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(options: &[&str]) -> Result<Security, String> {
        let options: Vec<String> = options.iter().map(|&text| text.to_owned()).collect();
        parse(&options).map_err(|err| err.to_string())
    }

    #[test]
    fn options_are_read_in_both_forms_and_refused_in_dockers_words() {
        assert!(of(&["no-new-privileges"]).expect("known").no_new_privileges);
        assert!(
            of(&["no-new-privileges:true"])
                .expect("known")
                .no_new_privileges
        );
        assert!(
            !of(&["no-new-privileges=0"])
                .expect("known")
                .no_new_privileges
        );
        let filter = of(&["seccomp:unconfined", "apparmor=mine", "label=disable"]);
        assert_eq!(filter.expect("known").filter, Filter::Unconfined);
        assert_eq!(
            of(&["odd"]),
            Err("invalid --security-opt 1: \"odd\"".into())
        );
        assert_eq!(
            of(&["a=b"]),
            Err("invalid --security-opt 2: \"a=b\"".into())
        );
        let broken = of(&["seccomp={"]).expect_err("it is no JSON");
        assert!(
            broken.starts_with("Decoding seccomp profile failed: "),
            "{broken}"
        );
    }
}
