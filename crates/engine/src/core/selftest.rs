//! What the engine must see inside a container before it runs any.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What the probe container saw.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Facts {
    /// `/proc/self/status`.
    pub status: String,
    pub masked: BTreeMap<String, PathFact>,
    pub readonly: BTreeMap<String, PathFact>,
    /// Errors that forbidden system calls answered with; zero for success.
    pub calls: BTreeMap<String, i32>,
}

const EPERM: i32 = 1;

/// How a path looks from inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathFact {
    Absent,
    /// The null device or an empty directory.
    Hidden,
    ReadOnly,
    Open,
}

/// Compares what was seen with what was asked for; the error says the first thing that is wrong.
pub fn judge(facts: &Facts, capabilities: u64) -> Result<(), String> {
    let field = |name: &str| {
        facts
            .status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
            .unwrap_or_default()
    };
    if field("Seccomp") != "2" {
        return Err(format!(
            "the system call filter is not in force (Seccomp: {:?})",
            field("Seccomp")
        ));
    }
    for set in ["CapBnd", "CapEff", "CapPrm"] {
        if u64::from_str_radix(field(set), 16) != Ok(capabilities) {
            return Err(format!("{set} is {}, not {capabilities:016x}", field(set)));
        }
    }
    for set in ["CapInh", "CapAmb"] {
        if u64::from_str_radix(field(set), 16) != Ok(0) {
            return Err(format!("{set} is {}, not empty", field(set)));
        }
    }
    if let Some((path, _)) = facts
        .masked
        .iter()
        .find(|(_, fact)| !matches!(fact, PathFact::Hidden | PathFact::Absent))
    {
        return Err(format!("{path} is not masked"));
    }
    if let Some((path, _)) = facts
        .readonly
        .iter()
        .find(|(_, fact)| **fact == PathFact::Open)
    {
        return Err(format!("{path} is writable"));
    }
    if let Some((call, errno)) = facts.calls.iter().find(|(_, errno)| **errno != EPERM) {
        return Err(format!(
            "the system call filter lets {call} through (it answered {errno})"
        ));
    }
    if facts
        .masked
        .get("/proc/kcore")
        .is_none_or(|fact| *fact == PathFact::Absent)
        && facts
            .masked
            .get("/proc/keys")
            .is_none_or(|fact| *fact == PathFact::Absent)
        && facts
            .masked
            .get("/proc/timer_list")
            .is_none_or(|fact| *fact == PathFact::Absent)
    {
        return Err("no masked path was seen at all".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    const CAPS: u64 = 0xa804_25fb;

    fn facts() -> Facts {
        let caps = format!("{CAPS:016x}");
        Facts {
            status: format!(
                "Name:\tx\nCapInh:\t0000000000000000\nCapPrm:\t{caps}\nCapEff:\t{caps}\nCapBnd:\t{caps}\nCapAmb:\t0000000000000000\nSeccomp:\t2\nSeccomp_filters:\t1\n"
            ),
            masked: [("/proc/kcore".to_owned(), PathFact::Hidden)].into(),
            readonly: [("/proc/sys".to_owned(), PathFact::ReadOnly)].into(),
            calls: [("socket(AF_ALG)".to_owned(), 1)].into(),
        }
    }

    fn check(change: impl FnOnce(&mut Facts), expect: Expect) {
        let mut facts = facts();
        change(&mut facts);
        expect.assert_eq(&format!("{:?}", judge(&facts, CAPS)));
    }

    #[test]
    fn every_missing_wall_is_named() {
        check(|_| {}, expect!["Ok(())"]);
        check(
            |facts| facts.status = facts.status.replace("Seccomp:\t2", "Seccomp:\t0"),
            expect![[r#"Err("the system call filter is not in force (Seccomp: \"0\")")"#]],
        );
        check(
            |facts| {
                facts.status = facts
                    .status
                    .replace("CapBnd:\t00000000a80425fb", "CapBnd:\t000001ffffffffff")
            },
            expect![[r#"Err("CapBnd is 000001ffffffffff, not 00000000a80425fb")"#]],
        );
        check(
            |facts| {
                facts.masked.insert("/proc/keys".to_owned(), PathFact::Open);
            },
            expect![[r#"Err("/proc/keys is not masked")"#]],
        );
        check(
            |facts| {
                facts
                    .readonly
                    .insert("/proc/sys".to_owned(), PathFact::Open);
            },
            expect![[r#"Err("/proc/sys is writable")"#]],
        );
        check(
            |facts| {
                facts.calls.insert("socket(AF_ALG)".to_owned(), 97);
            },
            expect![[
                r#"Err("the system call filter lets socket(AF_ALG) through (it answered 97)")"#
            ]],
        );
        check(
            |facts| facts.masked.clear(),
            expect![[r#"Err("no masked path was seen at all")"#]],
        );
    }
}
