//! `docker top`: processes as `ps` shows them, without a `ps` on the host.

use std::collections::BTreeMap;

/// A process as the kernel tells of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessFacts {
    pub pid: i32,
    pub parent: i32,
    pub uid: u32,
    /// `R`, `S`, …
    pub state: char,
    /// Device number of the terminal; zero when there is none.
    pub terminal: i32,
    /// Time on processors, in ticks.
    pub ticks: u64,
    /// Since boot, in ticks.
    pub started_ticks: u64,
    pub threads: u64,
    pub nice: i64,
    pub session: i32,
    pub group: i32,
    pub foreground_group: i32,
    pub virtual_bytes: u64,
    pub resident_bytes: u64,
    /// Name of the program, at most 15 bytes.
    pub name: String,
    /// Arguments; empty for threads of the kernel.
    pub args: Vec<String>,
}

/// The host at this moment.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// Seconds since the era.
    pub now: i64,
    pub boot: i64,
    /// Of a tick, per second.
    pub ticks_per_second: u64,
    pub memory_bytes: u64,
    /// Seconds that local time is ahead of UTC.
    pub offset: i64,
    /// Names by uid.
    pub users: BTreeMap<u32, String>,
}

/// A column of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    User,
    Uid,
    Pid,
    Ppid,
    C,
    CpuShare,
    MemoryShare,
    Vsz,
    Rss,
    Tty,
    State,
    StartTime,
    Start,
    Time,
    TimeBsd,
    Nice,
    Threads,
    Pgid,
    Sid,
    Elapsed,
    Comm,
    Command,
}

/// Which columns, under which titles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout(Vec<(String, Column)>);

fn layout(columns: &[(&str, Column)]) -> Layout {
    let columns = columns.iter();
    Layout(
        columns
            .map(|(title, c)| ((*title).to_owned(), *c))
            .collect(),
    )
}

/// Understands the usual arguments of `ps`: `-ef` and its kin, `aux` and its kin, `-o` with a list of columns. `None`
/// for others, of which the real `ps` knows more.
pub fn parse(arguments: &str) -> Option<Layout> {
    let words: Vec<&str> = arguments.split_whitespace().collect();
    let mut chosen: Vec<(String, Column)> = Vec::new();
    let (mut full, mut bsd, mut any) = (false, false, false);
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        any = true;
        let (dashed, letters) = match word.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, word),
        };
        let (flags, list) = match letters.split_once('o') {
            Some((flags, list)) => (flags, Some(list)),
            None => (letters, None),
        };
        for flag in flags.chars() {
            match (dashed, flag) {
                (true, 'e' | 'A' | 'a' | 'x' | 'w') | (false, 'a' | 'x' | 'w') => {}
                (true, 'f') => full = true,
                (_, 'u') => bsd = true,
                _ => return None,
            }
        }
        if let Some(list) = list {
            let list = if list.is_empty() { words.next()? } else { list };
            for name in list.split(',') {
                chosen.push(column(name)?);
            }
        }
    }
    if !chosen.is_empty() {
        return Some(Layout(chosen));
    }
    use Column as C;
    Some(if bsd {
        layout(&[
            ("USER", C::User),
            ("PID", C::Pid),
            ("%CPU", C::CpuShare),
            ("%MEM", C::MemoryShare),
            ("VSZ", C::Vsz),
            ("RSS", C::Rss),
            ("TTY", C::Tty),
            ("STAT", C::State),
            ("START", C::Start),
            ("TIME", C::TimeBsd),
            ("COMMAND", C::Command),
        ])
    } else if full || !any {
        layout(&[
            ("UID", C::User),
            ("PID", C::Pid),
            ("PPID", C::Ppid),
            ("C", C::C),
            ("STIME", C::StartTime),
            ("TTY", C::Tty),
            ("TIME", C::Time),
            ("CMD", C::Command),
        ])
    } else {
        layout(&[
            ("PID", C::Pid),
            ("TTY", C::Tty),
            ("TIME", C::Time),
            ("CMD", C::Comm),
        ])
    })
}

/// A column of `-o`, perhaps with a title of its own (`pid=Number`).
fn column(word: &str) -> Option<(String, Column)> {
    use Column as C;
    let (name, title) = match word.split_once('=') {
        Some((name, title)) => (name, Some(title)),
        None => (word, None),
    };
    let (own, column) = match name {
        "user" | "euser" => ("USER", C::User),
        "uid" | "euid" => ("UID", C::Uid),
        "pid" => ("PID", C::Pid),
        "ppid" => ("PPID", C::Ppid),
        "c" => ("C", C::C),
        "pcpu" | "%cpu" => ("%CPU", C::CpuShare),
        "pmem" | "%mem" => ("%MEM", C::MemoryShare),
        "vsz" | "vsize" => ("VSZ", C::Vsz),
        "rss" | "rsz" => ("RSS", C::Rss),
        "tty" | "tt" | "tname" => ("TT", C::Tty),
        "stat" | "state" | "s" => ("S", C::State),
        "stime" | "start_time" => ("STIME", C::StartTime),
        "time" | "cputime" => ("TIME", C::Time),
        "ni" | "nice" => ("NI", C::Nice),
        "nlwp" | "thcount" => ("NLWP", C::Threads),
        "pgid" | "pgrp" => ("PGID", C::Pgid),
        "sid" | "sess" => ("SID", C::Sid),
        "etime" => ("ELAPSED", C::Elapsed),
        "comm" | "ucmd" => ("COMMAND", C::Comm),
        "args" | "command" => ("COMMAND", C::Command),
        "cmd" => ("CMD", C::Command),
        _ => return None,
    };
    Some((title.unwrap_or(own).to_owned(), column))
}

impl Layout {
    /// Titles of the columns.
    pub fn titles(&self) -> Vec<String> {
        self.0.iter().map(|(title, _)| title.clone()).collect()
    }

    /// The row of one process.
    pub fn row(&self, process: &ProcessFacts, host: &Host) -> Vec<String> {
        let columns = self.0.iter();
        columns
            .map(|(_, column)| cell(*column, process, host))
            .collect()
    }
}

fn cell(column: Column, process: &ProcessFacts, host: &Host) -> String {
    let ticks = host.ticks_per_second.max(1);
    let seconds = process.ticks / ticks;
    let start = host.boot + i64::try_from(process.started_ticks / ticks).unwrap_or(0);
    let age = host.now.saturating_sub(start).max(1);
    let share = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
    let cpu = share(process.ticks, age.unsigned_abs() * ticks);
    match column {
        Column::User => match host.users.get(&process.uid) {
            Some(name) => name.clone(),
            None => process.uid.to_string(),
        },
        Column::Uid => process.uid.to_string(),
        Column::Pid => process.pid.to_string(),
        Column::Ppid => process.parent.to_string(),
        Column::C => format!("{}", cpu.min(99.0) as u32),
        Column::CpuShare => format!("{cpu:.1}"),
        Column::MemoryShare => {
            format!("{:.1}", share(process.resident_bytes, host.memory_bytes))
        }
        Column::Vsz => (process.virtual_bytes / 1024).to_string(),
        Column::Rss => (process.resident_bytes / 1024).to_string(),
        Column::Tty => terminal(process.terminal),
        Column::State => state(process),
        Column::StartTime | Column::Start => started(start + host.offset, host.now + host.offset),
        Column::Time => {
            format!(
                "{:02}:{:02}:{:02}",
                seconds / 3600,
                seconds / 60 % 60,
                seconds % 60
            )
        }
        Column::TimeBsd => format!("{}:{:02}", seconds / 60, seconds % 60),
        Column::Nice => process.nice.to_string(),
        Column::Threads => process.threads.to_string(),
        Column::Pgid => process.group.to_string(),
        Column::Sid => process.session.to_string(),
        Column::Elapsed => elapsed(age.unsigned_abs()),
        Column::Comm => process.name.clone(),
        Column::Command if process.args.is_empty() => format!("[{}]", process.name),
        Column::Command => process.args.join(" "),
    }
}

/// The kernel's encoding of device numbers in `/proc/<pid>/stat`.
fn terminal(number: i32) -> String {
    let (major, minor) = (
        (number >> 8) & 0xfff,
        (number & 0xff) | ((number >> 12) & 0xfff00),
    );
    match (number, major) {
        (0, _) => "?".to_owned(),
        (_, 136..=143) => format!("pts/{}", minor + (major - 136) * 256),
        (_, 4) if minor < 64 => format!("tty{minor}"),
        (_, 4) => format!("ttyS{}", minor - 64),
        _ => "?".to_owned(),
    }
}

fn state(process: &ProcessFacts) -> String {
    let mut text = process.state.to_string();
    match process.nice {
        ..0 => text.push('<'),
        1.. => text.push('N'),
        0 => {}
    }
    if process.session == process.pid {
        text.push('s');
    }
    if process.threads > 1 {
        text.push('l');
    }
    if process.foreground_group == process.group {
        text.push('+');
    }
    text
}

/// `15:04` on the same day, else `Nov22`.
fn started(start: i64, now: i64) -> String {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let (day, of_day) = (start.div_euclid(86400), start.rem_euclid(86400));
    if now.div_euclid(86400) == day {
        return format!("{:02}:{:02}", of_day / 3600, of_day / 60 % 60);
    }
    // Days since the era to the civil calendar (Howard Hinnant, "chrono-compatible low-level date algorithms").
    let shifted = day + 719_468;
    let era_day = shifted.rem_euclid(146_097);
    let year = (era_day - era_day / 1460 + era_day / 36524 - era_day / 146_096) / 365;
    let year_day = era_day - (365 * year + year / 4 - year / 100);
    let month = (5 * year_day + 2) / 153;
    let date = year_day - (153 * month + 2) / 5 + 1;
    let index = usize::try_from((month + 2) % 12).unwrap_or(0);
    format!("{}{date:02}", MONTHS[index])
}

fn elapsed(seconds: u64) -> String {
    let (days, hours) = (seconds / 86400, seconds / 3600 % 24);
    let rest = format!("{:02}:{:02}", seconds / 60 % 60, seconds % 60);
    match (days, hours) {
        (0, 0) => rest,
        (0, hours) => format!("{hours:02}:{rest}"),
        (days, hours) => format!("{days}-{hours:02}:{rest}"),
    }
}

/// Reads `/proc/<pid>/stat`, but for the owner and the arguments. `page` is the size of a page in bytes.
pub fn parse_stat(text: &str, page: u64) -> Option<ProcessFacts> {
    // The name may hold anything, brackets too, so the last one counts.
    let (head, tail) = text.rsplit_once(')')?;
    let (pid, name) = head.split_once('(')?;
    let fields: Vec<&str> = tail.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<i64>().ok();
    let small = |at: usize| number(at).and_then(|n| i32::try_from(n).ok());
    let positive = |at: usize| number(at).and_then(|n| u64::try_from(n).ok());
    Some(ProcessFacts {
        pid: pid.trim().parse().ok()?,
        state: fields.first()?.chars().next()?,
        parent: small(1)?,
        group: small(2)?,
        session: small(3)?,
        terminal: small(4)?,
        foreground_group: small(5)?,
        ticks: positive(11)? + positive(12)?,
        nice: number(16)?,
        threads: positive(17)?,
        started_ticks: positive(19)?,
        virtual_bytes: fields.get(20)?.parse().ok()?,
        resident_bytes: positive(21)? * page,
        name: name.to_owned(),
        ..ProcessFacts::default()
    })
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn host() -> Host {
        Host {
            now: 1_700_000_000,
            boot: 1_699_990_000,
            ticks_per_second: 100,
            memory_bytes: 1 << 30,
            offset: 0,
            users: [(0, "root".to_owned())].into(),
        }
    }

    fn process() -> ProcessFacts {
        let stat = "42 (a) b) S 7 42 42 34816 42 4194560 96 0 0 0 120 30 0 0 20 0 1 0 500000 4689920 242 184467440737";
        let mut process = parse_stat(stat, 4096).expect("the kernel's form");
        process.args = vec!["sleep".into(), "1 h".into()];
        process
    }

    fn table(arguments: &str) -> String {
        let layout = parse(arguments).expect("known arguments");
        let row = layout.row(&process(), &host());
        format!("{}\n{}\n", layout.titles().join("|"), row.join("|"))
    }

    #[test]
    fn rows_are_those_of_ps() {
        expect![[r#"
            UID|PID|PPID|C|STIME|TTY|TIME|CMD
            root|42|7|0|20:50|pts/0|00:00:01|sleep 1 h
        "#]]
        .assert_eq(&table("-ef"));
        assert_eq!(table(""), table("-ef"));
        expect![[r#"
            USER|PID|%CPU|%MEM|VSZ|RSS|TTY|STAT|START|TIME|COMMAND
            root|42|0.0|0.1|4580|968|pts/0|Ss+|20:50|0:01|sleep 1 h
        "#]]
        .assert_eq(&table("aux"));
        expect![[r#"
            PID|Name|ELAPSED
            42|a) b|01:23:20
        "#]]
        .assert_eq(&table("-eo pid,comm=Name -o etime"));
    }

    #[test]
    fn what_only_the_real_ps_knows_is_left_to_it() {
        assert_eq!(parse("--forest"), None);
        assert_eq!(parse("-o wchan"), None);
    }

    #[test]
    fn other_days_are_named() {
        assert_eq!(started(1_700_000_000 - 86_400, 1_700_000_000), "Nov13");
        assert_eq!(started(951_782_400, 1_700_000_000), "Feb29");
    }
}
