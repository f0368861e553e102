//! What comes and goes very often leaves nothing behind.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use shoal_tests::{
    lab::{TestLab, text},
    wait,
};

/// Users who make networks at the same time, and how many each of them makes one after the other: 500 together.
const USERS: usize = 10;
const CYCLES: usize = 50;
/// What the daemon's memory may grow by in all of them. It is the allocator's: a leak of one route per network would be
/// hidden by it, which is why those are counted, while one of a whole network's state would not.
const GROWTH_KIB_MAX: u64 = 16 << 10;

/// Makes a network, puts the container `eye` into it, takes it out, and removes the network; by docker's API.
const CYCLE: &str = r#"
call() {
    said=$(curl -sS --unix-socket /run/shoal/shoal.sock -H 'content-type: application/json' -w ' %{http_code}' -X "$@")
    case "$said" in *\ 2??) ;; *) echo "$*: $said" >&2; return 1 ;; esac
}
one() {
    call POST http://d/networks/create -d "{\"Name\": \"$1\", \"Driver\": \"overlay\", \"Attachable\": true}" &&
    call POST "http://d/networks/$1/connect" -d '{"Container": "'$2'"}' &&
    call POST "http://d/networks/$1/disconnect" -d '{"Container": "'$2'"}' &&
    call DELETE "http://d/networks/$1"
}
user() { for n in $(seq $2); do one "net$1-$n" "eye$1" || return 1; done; }
users=$1 cycles=$2 failed=0 all=
for u in $(seq $users); do user $u $cycles & all="$all $!"; done
for u in $all; do wait $u || failed=1; done
exit $failed
"#;

fn churn(lab: &TestLab, cycles: usize) -> Result<()> {
    let (users, cycles) = (USERS.to_string(), cycles.to_string());
    text(&lab.output("n1", &["sh", "-c", CYCLE, "churn", &users, &cycles])?).map(drop)
}

/// Everything in the kernel that a network is made of, by kind: on the host, in its routers, and in the containers.
fn standing(lab: &TestLab) -> Result<BTreeMap<&'static str, String>> {
    // Counters and the ages of entries change by themselves.
    const ALL: &str = r#"
        links() { ip -br link | awk '{print $1}'; }
        kinds() { links; ip addr | grep -o 'inet6* [^ ]*'; ip rule; ip -6 rule; ip route show table all; ip neigh show nud permanent; }
        kinds | sort
        for netns in /run/shoal/netns/*; do echo "$netns"; done
    "#;
    let said = |words: &[&str]| text(&lab.output("n1", words)?);
    let mut found = BTreeMap::new();
    found.insert("host", said(&["sh", "-c", ALL])?);
    found.insert("rules", said(&["nft", "-s", "list", "ruleset"])?);
    let namespaces = said(&["lsns", "-n", "-t", "net", "-o", "NS"])?;
    found.insert("namespaces", namespaces.lines().count().to_string());
    let mounts = said(&["cat", "/proc/mounts"])?;
    // Those of the machine, which the host began with, are nobody's business here.
    let is_handle = |line: &&str| line.starts_with("nsfs /run/shoal/");
    let mounts = mounts.lines().filter(is_handle);
    let mut mounts: Vec<&str> = mounts.collect();
    mounts.sort_unstable();
    found.insert("handles", mounts.join("\n"));
    for user in 1..=USERS {
        let pid = lab.on(
            "n1",
            &["inspect", "-f", "{{.State.Pid}}", &format!("eye{user}")],
        )?;
        let inside = ["nsenter", "-t", pid.trim(), "-n", "ip", "-br", "addr"];
        *found.entry("containers").or_default() += &said(&inside)?;
    }
    Ok(found)
}

/// What the daemon holds: open files, and memory in KiB.
fn held(lab: &TestLab) -> Result<(usize, u64)> {
    let shown = fs::read(format!("/var/lib/shoal-lab/{}/lab.json", lab.name()))?;
    let shown: Value = serde_json::from_slice(&shown)?;
    let pid = shown.pointer("/hosts/0/daemon/pid").context("a daemon")?;
    let open = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let rss = rss.and_then(|rest| rest.split_whitespace().next());
    Ok((open, rss.context("its memory")?.parse()?))
}

#[test]
fn five_hundred_networks_come_and_go_and_leave_nothing() -> Result<()> {
    let lab = TestLab::up(1, 1)?;
    for user in 1..=USERS {
        let name = format!("eye{user}");
        lab.on(
            "n1",
            &["run", "-d", "--name", &name, "shoal-demo:latest", "idle"],
        )?;
    }
    let alone = standing(&lab)?["containers"].clone();
    // The first ones make what stays: the ingress router, the files of the log.
    churn(&lab, 1)?;
    let before = wait("only the ingress router to stand", || {
        let untried = ["ip", "-6", "addr", "show", "tentative"];
        let untried = text(&lab.output("n1", &untried)?)?;
        let now = standing(&lab)?;
        let routers = now["host"].matches("/router-").count();
        // The kernel takes the links of a router's namespace down a while after the namespace is gone, and gives routes to
        // the addresses of new links when it has tried that nobody else has them.
        let uplinks = now["host"]
            .lines()
            .filter(|line| line.starts_with("shoalu"));
        let is_alone = routers == 1 && uplinks.count() == 1 && now["containers"] == alone;
        let is_alone = is_alone && untried.is_empty();
        Ok(is_alone.then_some(now.clone()).ok_or(now["host"].clone()))
    })?;
    let (files, memory_kib) = held(&lab)?;
    churn(&lab, CYCLES)?;
    wait("everything to be as it was", || {
        let now = standing(&lab)?;
        let changed = before.iter().flat_map(|(kind, was)| {
            let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
            let (was, now) = (lines(was), lines(&now[kind]));
            let changed = was.symmetric_difference(&now);
            changed
                .map(|line| format!("{kind}: {line}"))
                .collect::<Vec<_>>()
        });
        let changed: Vec<String> = changed.collect();
        Ok(match &changed[..] {
            [] => Ok(()),
            _ => Err(changed.join("\n")),
        })
    })?;
    let (files_now, memory_now_kib) = held(&lab)?;
    ensure!(
        files_now <= files + 8,
        "{files_now} open files, before {files}"
    );
    ensure!(
        memory_now_kib <= memory_kib + GROWTH_KIB_MAX,
        "{memory_now_kib} KiB, before {memory_kib}"
    );
    eprintln!("{files_now} open files, before {files}; {memory_now_kib} KiB, before {memory_kib}");
    let left = lab.on(
        "n1",
        &[
            "network",
            "ls",
            "--filter",
            "driver=overlay",
            "--format",
            "{{.Name}}",
        ],
    )?;
    ensure!(left.trim() == "ingress", "{left}");
    // The numbers are free again, too: a network and a place in it as on the first day.
    churn(&lab, 1)
}
