//! What is promised of limits, health, restarts, logs and numbers, measured.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use shoal_tests::{
    lab::{TestLab, text},
    wait,
};

use super::cli::{host, said};

struct Shoal<'a>(&'a TestLab);

impl Shoal<'_> {
    /// Runs a line of words.
    fn said(&self, line: &str) -> Result<String> {
        said(self.0, line)
    }

    fn get(&self, path: &str) -> Result<Value> {
        let url = format!("http://d{path}");
        let words = ["curl", "-s", "--unix-socket", "/run/shoal/shoal.sock", &url];
        Ok(serde_json::from_str(&text(&self.0.output("n1", &words)?)?)?)
    }

    /// Waits until the template says so of a container.
    fn comes_to(&self, name: &str, template: &str, wanted: &str) -> Result<()> {
        wait(&format!("{name}: {template} to be {wanted}"), || {
            let now = self.said(&format!("inspect -f {template} {name}"))?;
            Ok(if now == wanted { Ok(()) } else { Err(now) })
        })
    }
}

fn number(value: &Value, path: &str) -> Result<u64> {
    value
        .pointer(path)
        .and_then(Value::as_u64)
        .with_context(|| format!("no number at {path}"))
}

#[test]
fn limits_hold() -> Result<()> {
    let lab = host(&[])?;
    let shoal = Shoal(&lab);
    shoal.said("run -d --name eats -m 64m --memory-swap 64m busybox:test tail /dev/zero")?;
    ensure!(shoal.said("wait eats")? == "137");
    shoal.comes_to("eats", "{{.State.OOMKilled}}", "true")?;

    let body = "for i in 1 2; do while :; do :; done & done; wait";
    lab.shoal(&[
        "-H",
        &lab.docker_host("n1"),
        "run",
        "-d",
        "--name",
        "spins",
        "--cpus",
        ".5",
        "busybox:test",
        "sh",
        "-c",
        body,
    ])?;
    // Begins with a second of its own, in which the quota is found.
    let used = || -> Result<(u64, Instant)> {
        let stats = shoal.get("/containers/spins/stats?stream=false&one-shot=true")?;
        Ok((
            number(&stats, "/cpu_stats/cpu_usage/total_usage")?,
            Instant::now(),
        ))
    };
    wait("it to spin", || {
        Ok(if used()?.0 > 100_000_000 {
            Ok(())
        } else {
            Err("not yet".to_owned())
        })
    })?;
    let (before, began) = used()?;
    // A measurement is over a time.
    std::thread::sleep(Duration::from_secs(3));
    let (after, ended) = used()?;
    #[allow(clippy::cast_precision_loss)]
    let share = (after - before) as f64 / (ended - began).as_nanos() as f64;
    ensure!((0.2..=0.55).contains(&share), "{share} processors");
    shoal.said("rm -f spins eats").map(drop)
}

#[test]
fn health_is_known_soon_and_crashes_slow_down() -> Result<()> {
    let lab = host(&[])?;
    let shoal = Shoal(&lab);
    let began = Instant::now();
    shoal.said(
        "run -d --name well --health-cmd true --health-interval 30s --health-start-period 10s --health-start-interval 1s \
         busybox:test sleep 1000",
    )?;
    shoal.comes_to("well", "{{.State.Health.Status}}", "healthy")?;
    ensure!(
        began.elapsed() <= Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );

    shoal.said("run -d --name crash --restart always busybox:test false")?;
    wait("five restarts", || {
        let count: u32 = shoal.said("inspect -f {{.RestartCount}} crash")?.parse()?;
        Ok(if count >= 5 {
            Ok(())
        } else {
            Err(count.to_string())
        })
    })?;
    shoal.said("rm -f crash")?;
    let events = lab.shoal(&[
        "-H",
        &lab.docker_host("n1"),
        "events",
        "--since",
        "1h",
        "--until",
        "0s",
        "--filter",
        "container=crash",
        "--format",
        "{{json .}}",
    ])?;
    let events: Vec<Value> = events
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let times = |action: &str| -> Result<Vec<u64>> {
        let those = events.iter().filter(|event| event["Action"] == action);
        those.map(|event| number(event, "/timeNano")).collect()
    };
    // 100 ms behind the first end, and twice as much behind each further one; the start itself takes a while, too.
    let (deaths, starts) = (times("die")?, times("start")?);
    for (nth, wanted) in [100, 200, 400, 800, 1600].into_iter().enumerate() {
        let pause = (starts[nth + 1] - deaths[nth]) / 1_000_000;
        ensure!(
            (wanted..2 * wanted + 400).contains(&pause),
            "{nth}: {pause} ms"
        );
    }
    Ok(())
}

#[test]
fn logs_stay_small_and_can_be_read() -> Result<()> {
    let lab = host(&[])?;
    let shoal = Shoal(&lab);
    for driver in ["json-file", "local"] {
        shoal.said(&format!(
            "run --name talks -d --log-driver {driver} --log-opt max-size=1m --log-opt max-file=2 busybox:test seq 1 400000",
        ))?;
        ensure!(shoal.said("wait talks")? == "0");
        let id = shoal.said("inspect -f {{.Id}} talks")?;
        let folder = lab.folder("n1").join("lib/containers").join(&id);
        let mut bytes = 0;
        for entry in fs::read_dir(&folder)?.flatten() {
            if entry.file_name().to_string_lossy().contains("json.log") {
                bytes += entry.metadata()?.len();
            }
        }
        ensure!((1..=2 << 20).contains(&bytes), "{driver}: {bytes} bytes");
        let last = shoal.said("logs -n 1 talks")?;
        ensure!(last == "400000", "{driver}: {last}");
        let all = shoal.said("logs talks")?;
        let first: u64 = all.lines().next().context("a line")?.parse()?;
        let expected = (first..=400_000).map(|number| number.to_string());
        ensure!(
            all.lines().eq(expected),
            "{driver}: a line is lost behind {first}"
        );
        shoal.said("rm talks")?;
    }
    Ok(())
}

/// Bytes of the files below a folder, as `du --apparent-size` counts them.
fn bytes_below(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        if meta.is_dir() {
            bytes += bytes_below(&entry.path())?;
        } else if meta.is_file() {
            bytes += meta.len();
        }
    }
    Ok(bytes)
}

#[test]
fn numbers_are_those_of_the_kernel_and_the_disk() -> Result<()> {
    let lab = host(&[])?;
    let shoal = Shoal(&lab);
    // Holds 40 MB of memory, and has files in its own layer and in a volume.
    let script = "dd if=/dev/zero of=/held bs=1M count=7 2>/dev/null; dd if=/dev/zero of=/v/file bs=1M count=9 2>/dev/null; \
        head -c 40000000 /dev/zero > /dev/shm/held; echo ready; exec sleep 1000";
    lab.shoal(&[
        "-H",
        &lab.docker_host("n1"),
        "run",
        "-d",
        "--name",
        "holds",
        "-v",
        "kept:/v",
        "busybox:test",
        "sh",
        "-c",
        script,
    ])?;
    wait("it to be ready", || {
        let log = shoal.said("logs holds")?;
        Ok(if log == "ready" { Ok(()) } else { Err(log) })
    })?;
    let stats = shoal.get("/containers/holds/stats?stream=false&one-shot=true")?;
    let told = number(&stats, "/memory_stats/usage")?;
    let inside = "cat /sys/fs/cgroup/memory/memory.usage_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.current";
    let socket = lab.docker_host("n1");
    let words = ["-H", &socket, "exec", "holds", "sh", "-c", inside];
    let counted: u64 = lab.shoal(&words)?.trim().parse()?;
    ensure!(
        told.abs_diff(counted) * 10 <= counted,
        "{told} told, {counted} counted"
    );

    let usage = shoal.get("/system/df")?;
    let close = |what: &str, told: u64, there: u64| {
        ensure!(
            told.abs_diff(there) * 20 <= there,
            "{what}: {told} told, {there} on the disk"
        );
        Ok(())
    };
    let lib = lab.folder("n1").join("lib");
    let volume = number(&usage, "/Volumes/0/UsageData/Size")?;
    close(
        "the volume",
        volume,
        bytes_below(&lib.join("volumes/kept"))?,
    )?;
    let id = shoal.said("inspect -f {{.Id}} holds")?;
    let upper = bytes_below(&lib.join("containers").join(&id).join("upper"))?;
    close(
        "the container",
        number(&usage, "/Containers/0/SizeRw")?,
        upper,
    )?;
    let layers = fs::read_dir(lib.join("layers"))?.flatten();
    let there = layers
        .map(|layer| layer.path().join("diff"))
        .filter(|diff| diff.is_dir())
        .try_fold(0, |sum, diff| anyhow::Ok(sum + bytes_below(&diff)?))?;
    close("the layers", number(&usage, "/LayersSize")?, there)
}
