//! What containers get of the host and the daemon's configuration: networks with IPv6, mounts, devices by name, logs.

use std::{
    fs,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use serde_json::json;
use shoal_tests::{
    lab::{TestLab, text},
    skipped, wait,
};

use super::cli::host;

/// Our client against one host; docker's grammar is the same, which `grammar` shows.
struct Shoal<'a>(&'a TestLab);

impl Shoal<'_> {
    fn said(&self, words: &[&str]) -> Result<String> {
        let socket = self.0.docker_host("n1");
        self.0.shoal(&[&["-H", &socket], words].concat())
    }

    fn refused(&self, words: &[&str]) -> Result<String> {
        let error = self.said(words).err();
        let error = error.with_context(|| format!("shoal {} was not refused", words.join(" ")))?;
        Ok(format!("{error:#}"))
    }

    fn field(&self, name: &str, template: &str) -> Result<String> {
        let said = self.said(&["inspect", "-f", template, name])?;
        Ok(said.trim().to_owned())
    }
}

/// Serves its name on port 80, over IPv6 as well.
const SERVE: &str = "echo $HOSTNAME > /srv/page; exec httpd -f -p '[::]:80' -h /srv";

#[test]
fn networks_are_as_they_were_asked_for() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("daemon.json");
    let config = json!({
        "bip": "10.209.0.1/24", "fixed-cidr": "10.209.0.128/25", "mtu": 1400, "icc": false, "ip": "127.0.0.1",
        "default-address-pools": [{"base": "10.210.0.0/16", "size": 24}],
    });
    fs::write(&file, config.to_string())?;
    let lab = host(&[&format!("--config-file={}", file.display())])?;
    let shoal = Shoal(&lab);

    // The default network is as the daemon's configuration says.
    shoal.said(&[
        "run",
        "-d",
        "--name",
        "one",
        "-p",
        "8080:80",
        "busybox:test",
        "sh",
        "-c",
        SERVE,
    ])?;
    shoal.said(&[
        "run",
        "-d",
        "--name",
        "two",
        "busybox:test",
        "sleep",
        "1000",
    ])?;
    let address = shoal.field("one", "{{.NetworkSettings.IPAddress}}")?;
    assert_eq!(address, "10.209.0.129");
    assert_eq!(shoal.said(&["port", "one", "80"])?, "127.0.0.1:8080\n");
    let mtu = shoal.said(&["exec", "one", "cat", "/sys/class/net/eth0/mtu"])?;
    assert_eq!(mtu, "1400\n");
    let ping = ["exec", "two", "ping", "-c1", "-W1", &address];
    assert!(shoal.said(&ping).is_err(), "icc is off");

    // Subnets come of the pools; addresses that are others' are given to nobody.
    let subnet = "{{(index .IPAM.Config 0).Subnet}}";
    shoal.said(&["network", "create", "pooled"])?;
    assert_eq!(
        shoal.said(&["network", "inspect", "-f", subnet, "pooled"])?,
        "10.210.0.0/24\n"
    );
    shoal.said(&[
        "network",
        "create",
        "--subnet",
        "10.211.0.0/24",
        "--ip-range",
        "10.211.0.8/29",
        "--gateway",
        "10.211.0.254",
        "--aux-address",
        "router=10.211.0.9",
        "taken",
    ])?;
    shoal.said(&[
        "run",
        "-d",
        "--name",
        "three",
        "--network",
        "taken",
        "busybox:test",
        "sleep",
        "1000",
    ])?;
    let at = "{{.NetworkSettings.Networks.taken.IPAddress}}";
    assert_eq!(shoal.field("three", at)?, "10.211.0.10");
    let auxiliary = "{{index (index .IPAM.Config 0).AuxiliaryAddresses \"router\"}}";
    assert_eq!(
        shoal.said(&["network", "inspect", "-f", auxiliary, "taken"])?,
        "10.211.0.9\n"
    );
    let refused = shoal.refused(&[
        "network",
        "create",
        "--subnet",
        "10.212.0.0/24",
        "--aux-address",
        "a=10.1.1.1",
        "x",
    ])?;
    assert!(
        refused.contains("no matching subnet for aux-address"),
        "{refused}"
    );

    // A configuration for others.
    shoal.said(&[
        "network",
        "create",
        "--config-only",
        "--subnet",
        "10.213.0.0/24",
        "-o",
        "com.docker.network.driver.mtu=1300",
        "plan",
    ])?;
    shoal.said(&["network", "create", "--config-from", "plan", "planned"])?;
    assert_eq!(
        shoal.said(&["network", "inspect", "-f", subnet, "planned"])?,
        "10.213.0.0/24\n"
    );
    let refused = shoal.refused(&["run", "--rm", "--network", "plan", "busybox:test"])?;
    assert!(
        refused.contains("configuration network is not available for containers"),
        "{refused}"
    );
    assert!(
        shoal
            .refused(&["network", "rm", "plan"])?
            .contains("in use by network")
    );
    shoal.said(&["network", "rm", "planned"])?;
    shoal.said(&["network", "rm", "plan"])?;

    // Names that one container alone has for another.
    shoal.said(&[
        "run",
        "-d",
        "--name",
        "db",
        "--network",
        "pooled",
        "busybox:test",
        "sleep",
        "1000",
    ])?;
    let resolve = ["sh", "-c", "nslookup -type=a store | grep -c 10.210.0"];
    let linked = [
        "run",
        "--rm",
        "--network",
        "pooled",
        "--link",
        "db:store",
        "busybox:test",
    ];
    assert_ne!(shoal.said(&[&linked[..], &resolve].concat())?, "0\n");
    let stranger = ["run", "--rm", "--network", "pooled", "busybox:test"];
    assert!(shoal.said(&[&stranger[..], &resolve].concat()).is_err());
    Ok(())
}

#[test]
fn ipv6_is_there_beside_ipv4() -> Result<()> {
    let lab = host(&[])?;
    let shoal = Shoal(&lab);
    if !text(&lab.output("n1", &["test", "-e", "/proc/sys/net/ipv6"])?).is_ok() {
        skipped("this kernel has no IPv6");
        return Ok(());
    }
    shoal.said(&[
        "network",
        "create",
        "--ipv6",
        "--subnet",
        "10.220.0.0/24",
        "--subnet",
        "fd00:220::/64",
        "both",
    ])?;
    shoal.said(&["network", "create", "--ipv6", "chosen"])?;
    let subnet = "{{(index .IPAM.Config 1).Subnet}}";
    assert!(
        shoal
            .said(&["network", "inspect", "-f", subnet, "chosen"])?
            .starts_with("fd")
    );
    shoal.said(&[
        "run",
        "-d",
        "--name",
        "web",
        "--network",
        "both",
        "--ip6",
        "fd00:220::99",
        "-p",
        "8080:80",
        "-p",
        "[::1]:8081:80",
        "--hostname",
        "web",
        "busybox:test",
        "sh",
        "-c",
        SERVE,
    ])?;
    shoal.said(&[
        "run",
        "-d",
        "--name",
        "peer",
        "--network",
        "both",
        "busybox:test",
        "sleep",
        "1000",
    ])?;
    let at = "{{.NetworkSettings.Networks.both.GlobalIPv6Address}} {{.NetworkSettings.Networks.both.IPv6Gateway}}";
    assert_eq!(shoal.field("web", at)?, "fd00:220::99 fd00:220::1");
    assert_eq!(shoal.field("peer", at)?, "fd00:220::2 fd00:220::1");
    shoal.said(&["exec", "peer", "ping", "-c1", "-W5", "fd00:220::99"])?;
    assert_ne!(
        shoal.said(&[
            "exec",
            "peer",
            "sh",
            "-c",
            "nslookup -type=aaaa web | grep -c fd00:220::99"
        ])?,
        "0\n"
    );
    assert!(
        shoal
            .said(&["exec", "web", "cat", "/etc/hosts"])?
            .contains("fd00:220::99")
    );
    assert_eq!(shoal.said(&["port", "web", "80"])?.lines().count(), 3);
    assert!(shoal.said(&["port", "web", "80"])?.contains("[::]:8080\n"));
    let ask = |url: &str| text(&lab.output("n1", &["curl", "-sgm5", url])?);
    for url in [
        "http://[fd00:220::99]/page",
        "http://[fd00:220::1]:8080/page",
    ] {
        wait(url, || {
            Ok(match ask(url) {
                Ok(said) if said == "web\n" => Ok(()),
                other => Err(format!("{other:?}")),
            })
        })?;
    }
    // A family that a container has not is not promised.
    let refused = shoal.refused(&["run", "--rm", "-p", "[::]:8090:80", "busybox:test"])?;
    assert!(
        refused.contains("the container has no IPv6 address"),
        "{refused}"
    );
    let refused = shoal.refused(&[
        "run",
        "--rm",
        "--network",
        "chosen",
        "--ip6",
        "fd00:1::1",
        "busybox:test",
    ])?;
    assert!(refused.contains("fd00:1::1"), "{refused}");
    // Nothing of it is left.
    shoal.said(&["rm", "-f", "web", "peer"])?;
    shoal.said(&["network", "rm", "both", "chosen"])?;
    let rules = text(&lab.output("n1", &["nft", "list", "tables"])?)?;
    assert!(!rules.contains("ip6 shoal_bridge"), "{rules}");
    Ok(())
}

#[test]
fn mounts_travel_and_images_are_read() -> Result<()> {
    let lab = host(&[])?;
    let shoal = Shoal(&lab);
    let on = |words: &[&str]| text(&lab.output("n1", words)?);
    let script = "mkdir -p /run/plain /run/shared; mount -t tmpfs none /run/plain; mount --make-private /run/plain;
        mount -t tmpfs none /run/shared; mount --make-shared /run/shared; mkdir /run/shared/in /run/shared/out";
    on(&["sh", "-c", script])?;
    let refused = shoal.refused(&["run", "--rm", "-v", "/run/plain:/m:rshared", "busybox:test"])?;
    assert!(
        refused.contains("path /run/plain is mounted on /run/plain but it is not a shared mount"),
        "{refused}"
    );
    shoal.said(&[
        "run",
        "-d",
        "--name",
        "share",
        "--privileged",
        "-v",
        "/run/shared:/m:rshared",
        "-v",
        "/run/shared:/s:rslave",
        "busybox:test",
        "sleep",
        "1000",
    ])?;
    // From the container to the host, and the other way round.
    shoal.said(&[
        "exec",
        "share",
        "sh",
        "-c",
        "mount -t tmpfs none /m/out && echo made > /m/out/file",
    ])?;
    assert_eq!(on(&["cat", "/run/shared/out/file"])?, "made\n");
    on(&[
        "sh",
        "-c",
        "mount -t tmpfs none /run/shared/in && echo given > /run/shared/in/file",
    ])?;
    for place in ["/m/in/file", "/s/in/file"] {
        assert_eq!(shoal.said(&["exec", "share", "cat", place])?, "given\n");
    }
    shoal.said(&["rm", "-f", "share"])?;
    // What is mounted below a read-only bind is read-only as well, unless that is not wanted.
    on(&[
        "sh",
        "-c",
        "mount -t tmpfs none /run/plain/; mkdir /run/plain/below; mount -t tmpfs none /run/plain/below;
        mount --make-rshared /run/plain",
    ])?;
    let script =
        "for place in /m /m/below; do touch $place/x 2> /dev/null && echo $place; done; true";
    let long = "type=bind,source=/run/plain,target=/m";
    for (flag, mount, written) in [
        ("-v", "/run/plain:/m", "/m\n/m/below\n"),
        ("-v", "/run/plain:/m:ro", ""),
        ("-v", "/run/plain:/m:ro,rshared", ""),
        ("--mount", &format!("{long},readonly"), ""),
        (
            "--mount",
            &format!("{long},readonly,bind-recursive=writable"),
            "/m/below\n",
        ),
        (
            "--mount",
            &format!("{long},readonly,bind-propagation=rprivate,bind-recursive=readonly"),
            "",
        ),
        (
            "--mount",
            &format!("{long},readonly,bind-recursive=disabled"),
            "",
        ),
    ] {
        let words = [
            "run",
            "--rm",
            flag,
            mount,
            "busybox:test",
            "sh",
            "-c",
            script,
        ];
        assert_eq!(shoal.said(&words)?, written, "{mount}");
    }
    on(&["umount", "/run/plain/below", "/run/plain"])?;

    on(&[
        "umount",
        "/run/shared/in",
        "/run/shared/out",
        "/run/shared",
        "/run/plain",
    ])?;

    // The files of an image.
    let mount = "type=image,source=busybox:test,target=/image";
    let seen = ["run", "--rm", "--mount", mount, "busybox:test", "sh", "-c"];
    let said = shoal.said(
        &[
            &seen[..],
            &["cat /image/etc/passwd | head -1; touch /image/x || echo no"],
        ]
        .concat(),
    )?;
    assert!(
        said.starts_with("root:x:0:0:") && said.ends_with("no\n"),
        "{said}"
    );
    let part = "type=image,source=busybox:test,target=/image,image-subpath=etc";
    let said = shoal.said(&[
        "run",
        "--rm",
        "--mount",
        part,
        "busybox:test",
        "ls",
        "/image",
    ])?;
    assert_eq!(said, "group\npasswd\n");
    for (mount, why) in [
        (
            "type=image,source=nothing:1,target=/i",
            "cannot mount image nothing:1",
        ),
        (
            "type=image,source=busybox:test,target=/i,image-subpath=../etc",
            "subpath must be a relative path",
        ),
    ] {
        let refused = shoal.refused(&["run", "--rm", "--mount", mount, "busybox:test"])?;
        assert!(refused.contains(why), "{refused}");
    }

    // A volume of a server that is not there says so.
    let options = [
        "-o",
        "type=nfs",
        "-o",
        "o=addr=127.0.0.1,nolock,soft,timeo=1,retrans=0",
        "-o",
        "device=:/nothing",
    ];
    shoal.said(&[&["volume", "create"][..], &options, &["far"]].concat())?;
    let refused = shoal.refused(&["run", "--rm", "-v", "far:/far", "busybox:test"])?;
    assert!(
        refused.contains("failed to mount local volume: mount :/nothing:"),
        "{refused}"
    );
    assert_eq!(shoal.said(&["ps", "-aq"])?, "");
    shoal.said(&["volume", "rm", "far"])?;
    Ok(())
}

/// Prints what the journal is sent, an object a line.
const JOURNAL: &str = r#"
import json, socket
journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
journal.bind("/run/systemd/journal/socket")
print("up", flush=True)
while True:
    rest, fields = journal.recv(65536), {}
    while rest:
        line, _, rest = rest.partition(b"\n")
        name, given, value = line.partition(b"=")
        if not given:
            length = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + length], rest[9 + length :]
        fields[name.decode()] = value.decode()
    print(json.dumps(fields), flush=True)
"#;

#[test]
fn devices_have_names_and_logs_do_not_hold_up() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let specification = json!({
        "cdiVersion": "0.6.0", "kind": "shoal.test/gpu",
        "devices": [{"name": "0", "containerEdits": {
            "deviceNodes": [{"path": "/dev/card", "hostPath": "/dev/zero"}],
            "mounts": [{"hostPath": "/etc/hostname", "containerPath": "/etc/card", "options": ["ro"]}],
        }}],
        "containerEdits": {"env": ["CARD=1"]},
    });
    fs::write(folder.path().join("card.json"), specification.to_string())?;
    let lab = host(&[&format!("--cdi-spec-dir={}", folder.path().display())])?;
    let shoal = Shoal(&lab);
    let look = [
        "busybox:test",
        "sh",
        "-c",
        "head -c3 /dev/card | wc -c; echo $CARD; test -s /etc/card && echo mounted",
    ];
    for wish in [
        &["--device", "shoal.test/gpu=0"][..],
        &["--gpus", "all"],
        &["--gpus", "device=0"],
    ] {
        let said = shoal.said(&[&["run", "--rm"][..], wish, &look].concat())?;
        assert_eq!(said, "3\n1\nmounted\n", "{wish:?}");
    }
    let refused = shoal.refused(&[
        "run",
        "--rm",
        "--device",
        "shoal.test/gpu=7",
        "busybox:test",
    ])?;
    assert!(
        refused.contains("CDI device injection failed: unresolvable CDI devices shoal.test/gpu=7"),
        "{refused}"
    );
    let found = shoal.said(&["info", "-f", "{{json .DiscoveredDevices}}"])?;
    assert_eq!(
        found,
        "[{\"ID\":\"shoal.test/gpu=0\",\"Source\":\"cdi\"}]\n"
    );
    fs::remove_file(folder.path().join("card.json"))?;
    let refused = shoal.refused(&["run", "--rm", "--gpus", "all", "busybox:test"])?;
    assert!(
        refused.contains(
            "could not select device driver \"\" with capabilities: [[gpu]]: no specification"
        ),
        "{refused}"
    );

    // A log that nobody waits for has all lines that fitted, in order.
    let options = [
        "--log-opt",
        "mode=non-blocking",
        "--log-opt",
        "max-buffer-size=1m",
    ];
    let print = ["busybox:test", "sh", "-c", "seq 1 2000; echo bad >&2"];
    shoal.said(&[&["run", "--name", "talker"][..], &options, &print].concat())?;
    let logged = shoal.said(&["logs", "talker"])?;
    let numbers: Vec<u32> = logged
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect();
    assert!(
        numbers.len() > 100 && numbers.is_sorted(),
        "{} lines",
        numbers.len()
    );
    // The journal is told what was said, by whom, and what labels were chosen.
    let on = |script: &str| text(&lab.output("n1", &["sh", "-ec", script])?);
    on("mkdir -p /run/systemd; mount -t tmpfs none /run/systemd; mkdir /run/systemd/journal")?;
    let mut journal = Command::new(shoal_tests::lab::program());
    journal
        .args(["lab", "exec", "--name", lab.name(), "n1", "--"])
        .args(["python3", "-c", JOURNAL])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut journal = Ends(journal.spawn()?);
    let told = journal.0.stdout.take().context("the pipe was asked for")?;
    let mut told = std::io::BufRead::lines(std::io::BufReader::new(told));
    let mut next = || told.next().context("the journal ended")?.context("a line");
    assert_eq!(next()?, "up");
    shoal.said(&[
        "run",
        "--name",
        "noted",
        "--log-driver",
        "journald",
        "--log-opt",
        "tag=chosen",
        "--log-opt",
        "labels=shape",
        "-l",
        "shape=round",
        "busybox:test",
        "sh",
        "-c",
        "echo good; echo bad >&2",
    ])?;
    let id = shoal.field("noted", "{{.Id}}")?;
    let mut entries = [next()?, next()?]
        .map(|line| serde_json::from_str::<serde_json::Value>(&line).unwrap_or_default());
    entries.sort_by_key(|entry| entry["PRIORITY"].to_string());
    for (entry, message, priority) in [(&entries[0], "bad", "3"), (&entries[1], "good", "6")] {
        for (field, value) in [
            ("MESSAGE", message),
            ("PRIORITY", priority),
            ("CONTAINER_NAME", "noted"),
            ("CONTAINER_ID", &id[..12]),
            ("CONTAINER_ID_FULL", &id),
            ("CONTAINER_TAG", "chosen"),
            ("SYSLOG_IDENTIFIER", "chosen"),
            ("IMAGE_NAME", "busybox:test"),
            ("SHAPE", "round"),
        ] {
            assert_eq!(entry[field], value, "{field} of {entry}");
        }
    }
    assert!(shoal.said(&["logs", "noted"])?.contains("good\n"));
    drop(journal);
    on("umount -l /run/systemd")?;
    // A service that takes nothing holds nobody up.
    let socket = folder.path().join("log.sock");
    let _silent = std::os::unix::net::UnixDatagram::bind(&socket)?;
    let address = format!("syslog-address=unixgram://{}", socket.display());
    let mut run = Command::new(shoal_tests::lab::program());
    run.args([
        "-H",
        &lab.docker_host("n1"),
        "run",
        "--rm",
        "--log-driver",
        "syslog",
        "--log-opt",
        &address,
    ])
    .args(options)
    .args(["busybox:test", "sh", "-c", "seq 1 5000; echo done"])
    .stdin(Stdio::null());
    assert!(text(&run.output()?)?.ends_with("5000\ndone\n"));
    Ok(())
}

/// A process that ends with the test.
struct Ends(std::process::Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn repositories_are_built() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let git = |words: &[&str]| {
        let mut git = Command::new("git");
        git.current_dir(folder.path()).args(words);
        text(&git.stdin(Stdio::null()).output()?)
    };
    if git(&["--version"]).is_err() {
        skipped("git is not on PATH");
        return Ok(());
    }
    fs::create_dir_all(folder.path().join("app/part"))?;
    fs::write(
        folder.path().join("app/part/Dockerfile"),
        "FROM busybox:test\nCOPY word /word\n",
    )?;
    fs::write(folder.path().join("app/part/word"), "fetched\n")?;
    git(&["init", "--quiet", "--initial-branch=main", "app"])?;
    git(&["-C", "app", "add", "."])?;
    let who = ["-c", "user.name=t", "-c", "user.email=t@localhost"];
    git(&[
        &["-C", "app"][..],
        &who,
        &["commit", "--quiet", "-m", "one"],
    ]
    .concat())?;

    let lab = host(&[])?;
    let shoal = Shoal(&lab);
    let (listen, base) = (
        format!("--listen={}", lab.machine()),
        format!("--base-path={}", folder.path().display()),
    );
    // Itself, and not the git that would start it and leave it behind.
    let exec_path = git(&["--exec-path"])?;
    let mut server = Command::new(format!("{}/git-daemon", exec_path.trim()));
    server.args(["--export-all", "--reuseaddr", "--port=9419", &listen, &base]);
    let server = server.stdout(Stdio::null()).stderr(Stdio::null());
    let _server = Ends(server.spawn()?);
    let url = format!("git://{}:9419/app", lab.machine());
    wait("the repository", || {
        Ok(git(&["ls-remote", &url])
            .map(drop)
            .map_err(|error| error.to_string()))
    })?;
    shoal.said(&["build", "-q", "-t", "fetched", &format!("{url}#main:part")])?;
    let said = shoal.said(&["run", "--rm", "fetched", "cat", "/word"])?;
    assert_eq!(said, "fetched\n");
    let refused = shoal.refused(&["build", "-q", &format!("{url}#nothing")])?;
    assert!(refused.contains("error fetching git context"), "{refused}");
    Ok(())
}
