//! Signals by name or number, as users write them.

/// The number of a signal: `9`, `KILL`, `SIGKILL`, `sigkill`, `RTMIN+3`. `None` when there is no such signal.
pub fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(index) = NAMES.iter().position(|&known| known == name) {
        return i32::try_from(index + 1).ok();
    }
    let (base, offset) = match name.strip_prefix("RTMIN") {
        Some(rest) => (34, rest),
        None => (64, name.strip_prefix("RTMAX")?),
    };
    let offset: i32 = if offset.is_empty() {
        0
    } else {
        offset.parse().ok()?
    };
    Some(base + offset).filter(|number| (34..=64).contains(number))
}

/// The name of a signal, if it has one.
pub fn name(number: i32) -> Option<&'static str> {
    NAMES
        .get(usize::try_from(number).ok()?.checked_sub(1)?)
        .copied()
}

/// Signals 1 to 31 of Linux on x86 and ARM.
const NAMES: &[&str] = &[
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        let all = [
            "9",
            "KILL",
            "sigterm",
            "SIGRTMIN+3",
            "RTMAX-1",
            "0",
            "65",
            "NONE",
        ]
        .map(parse);
        assert_eq!(
            all,
            [
                Some(9),
                Some(9),
                Some(15),
                Some(37),
                Some(63),
                None,
                None,
                None
            ]
        );
        assert_eq!(name(15), Some("TERM"));
    }
}
