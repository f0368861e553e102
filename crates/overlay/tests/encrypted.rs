//! Encrypted networks: what others see on the way, what happens without the tunnel, and how keys follow one another.
//!
//! Needs a kernel with WireGuard, besides what `net.rs` needs.
#![allow(clippy::print_stderr, reason = "tests say why they were skipped")]
#![allow(unreachable_pub, reason = "a test is a crate without a surface")]

#[macro_use]
mod lab;

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use lab::{Lab, Traffic, id, lab, view};
use shoal_api::{NetworkId, network::NetworkView, tunnel::TunnelKey};
use shoal_overlay::core::keyring::KeyTimes;

const DEVICE: &str = "shoalwg";
/// Within this time connectivity is back.
const REPAIRED_WITHIN: Duration = Duration::from_secs(5);
/// UDP and not WireGuard's.
const IN_THE_OPEN: &str = "udp and not port 51820";

/// `n1` of the lab is encrypted, the rest is not.
fn encrypted() -> NetworkView {
    let mut view = view();
    let n1: NetworkId = id("n1");
    view.networks.get_mut(&n1).unwrap().encrypted = true;
    view
}

/// Both hosts with their containers, and the view in force.
async fn ready() -> Result<(Lab, NetworkView), String> {
    let mut lab = lab().await?;
    if !lab.features()["WireGuard"] {
        return Err("this kernel has no WireGuard".to_owned());
    }
    // Every step in replacing a key is due at once.
    lab.key_times = KeyTimes {
        life: Duration::ZERO,
        overlap: Duration::ZERO,
    };
    lab.restart_planes();
    for (task, host) in [("t1", 0), ("t2", 1), ("t5", 0), ("t6", 1)] {
        lab.container(task, host);
    }
    let view = lab.with_keys(encrypted());
    lab.converge(&view).await;
    Ok((lab, view))
}

/// Another program that sees everything that passes h1's link.
struct Capture {
    program: Child,
    file: tempfile::NamedTempFile,
}

impl Capture {
    fn begin(lab: &Lab) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut command = Command::new("tcpdump");
        command
            .args(["-i", "h1", "--immediate-mode", "-U", "-s0", "-w"])
            .arg(file.path());
        command.stderr(Stdio::piped());
        let mut program = lab.within("switch", move || command.spawn()).unwrap();
        let said = BufReader::new(program.stderr.take().unwrap()).lines();
        let listens = said
            .map_while(Result::ok)
            .any(|line| line.contains("listening on"));
        assert!(listens, "tcpdump ended");
        Self { program, file }
    }

    /// What was seen, as bytes; and the packets that a filter lets through, as lines.
    fn end(mut self, lab: &Lab, filter: &str) -> (Vec<u8>, String) {
        // Packets are told in their order: once it has told of this one it has told of all before.
        let (last, pattern) = ("THELASTOFALL", "5448454c4153544f46414c4c");
        assert!(lab.run(
            "client",
            "ping",
            &["-c1", "-W2", "-p", pattern, "192.0.2.1"]
        ));
        let read = || std::fs::read(self.file.path()).unwrap();
        while !has(&read(), last) {
            std::thread::yield_now();
        }
        let bytes = read();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.program.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        self.program.wait().unwrap();
        let mut show = Command::new("tcpdump");
        show.arg("-r").arg(self.file.path()).args(["-nn", filter]);
        let shown = show.output().unwrap();
        assert!(shown.status.success(), "{filter}");
        (bytes, String::from_utf8(shown.stdout).unwrap())
    }
}

fn has(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|part| part == text.as_bytes())
}

#[tokio::test]
async fn nobody_on_the_way_reads_what_an_encrypted_network_carries() {
    let (lab, _) = or_skip!(ready().await);
    for task in ["t2", "t6"] {
        lab.serve(task, "0.0.0.0:80");
    }
    let link = lab.text("t1", "ip", &["-o", "link", "show", "eth1"]);
    assert!(link.contains("mtu 1370 "), "{link}");
    // Without encryption what is said is on the wire, and this way of looking finds it.
    let capture = Capture::begin(&lab);
    assert_eq!(lab.ask("t5", "10.0.3.12:80").unwrap(), "t6 sees 10.0.3.11");
    let (seen, open) = capture.end(&lab, IN_THE_OPEN);
    assert!(has(&seen, " sees ") && !open.is_empty(), "{open}");

    let capture = Capture::begin(&lab);
    assert_eq!(lab.ask("t1", "10.0.1.12:80").unwrap(), "t2 sees 10.0.1.11");
    let marker = "SECRETSECRETSECR";
    let pattern: String = marker.bytes().map(|byte| format!("{byte:02x}")).collect();
    // A full packet fits, one byte more does not.
    let ping = |size: &str| {
        let words = [
            "-c1",
            "-W2",
            "-Mdo",
            "-s",
            size,
            "-p",
            &pattern,
            "10.0.1.12",
        ];
        lab.run("t1", "ping", &words)
    };
    assert!(ping("1342"), "a full packet");
    assert!(!ping("1343"), "one byte more");
    let (seen, open) = capture.end(&lab, IN_THE_OPEN);
    assert!(!has(&seen, " sees ") && !has(&seen, marker));
    assert_eq!(open, "", "nothing but the tunnel");
    let handshakes = lab.text("h1", "wg", &["show", DEVICE, "latest-handshakes"]);
    let times = handshakes.split_whitespace().nth(1);
    assert!(times.is_some_and(|time| time != "0"), "{handshakes}");
    let allowed = lab.text("h1", "wg", &["show", DEVICE, "allowed-ips"]);
    assert!(
        allowed.contains("fd53:686f:616c:2:") && allowed.trim().ends_with("/128"),
        "{allowed}"
    );
}

#[tokio::test]
async fn without_the_tunnel_nothing_leaves_and_it_comes_back_by_itself() {
    let (lab, view) = or_skip!(ready().await);
    assert!(lab.ping("t1", "10.0.1.12"));
    let words = |command: &str| command.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let run = |command: &str| {
        let words = words(command);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        assert!(lab.run("h1", words[0], &words[1..]), "{command}");
    };
    run(&format!("ip link del {DEVICE}"));
    // Even where somebody has all of its addresses lead elsewhere.
    run("ip addr add fd11::1/64 dev eth0 nodad");
    run("ip -6 route add fd53:686f:616c:2::/64 via fd11::2 dev eth0");
    run("ip -6 neigh add fd11::2 lladdr 02:00:00:00:00:02 dev eth0 nud permanent");
    let capture = Capture::begin(&lab);
    assert!(!lab.run("t1", "ping", &["-c2", "-i0.2", "-W1", "10.0.1.12"]));
    let (_, open) = capture.end(&lab, "udp port 4789");
    assert_eq!(open, "", "nothing leaves in the open");
    run("ip -6 route del fd53:686f:616c:2::/64 via fd11::2 dev eth0");
    lab.settle(0, &view).await;
    assert!(
        lab.run("t1", "ping", &["-c1", "-W3", "10.0.1.12"]),
        "it is back"
    );
    assert!(lab.plan(0, &view).await.is_empty(), "and complete");

    // A restarted daemon takes up the key that it finds.
    let before: BTreeSet<TunnelKey> = keys(&lab, &view);
    let mut lab = lab;
    lab.restart_planes();
    let view = lab.with_keys(view);
    assert_eq!(keys(&lab, &view), before);
    lab.converge(&view).await;
    assert!(lab.ping("t1", "10.0.1.12"));
    // Without encrypted networks there is no device.
    let plain = lab.with_keys(lab::view());
    lab.converge(&plain).await;
    assert!(!lab.run("h1", "ip", &["link", "show", DEVICE]));
}

fn keys(lab: &Lab, view: &NetworkView) -> BTreeSet<TunnelKey> {
    let view = lab.with_keys(view.clone());
    let keys = view
        .peers
        .values()
        .flat_map(|peer| peer.tunnel_keys.clone());
    keys.collect()
}

#[tokio::test]
async fn nothing_enters_an_encrypted_network_but_by_the_tunnel() {
    let (lab, _) = or_skip!(ready().await);
    // A tunnel of the client's own, which says all that h2's would say.
    for (place, command) in [
        ("h1", "ip addr add fd11::1/64 dev eth0 nodad"),
        ("client", "ip addr add fd11::99/64 dev eth0 nodad"),
        (
            "client",
            "ip link add forged type vxlan id 4097 dstport 4789 local fd11::99 remote fd11::1 nolearning",
        ),
        ("client", "ip link set forged address 02:42:c0:00:02:02 up"),
        ("client", "ip addr add 10.0.1.12/24 dev forged"),
        (
            "client",
            "ip neigh add 10.0.1.11 lladdr 02:42:c0:00:02:01 dev forged nud permanent",
        ),
    ] {
        let words: Vec<&str> = command.split(' ').collect();
        assert!(lab.run(place, words[0], &words[1..]), "{place}: {command}");
    }
    let received = || {
        let shown = lab.text(
            &lab.router(0, "n1"),
            "sh",
            &[
                "-c",
                "grep vx0: /proc/self/net/dev | tr : ' ' | awk '{print $3}'",
            ],
        );
        shown.trim().parse::<u64>().unwrap()
    };
    let forge = || {
        let before = received();
        let _ = lab.run("client", "ping", &["-c2", "-i0.2", "-W1", "10.0.1.11"]);
        received() - before
    };
    assert_eq!(forge(), 0, "forged packets arrived");
    // It is the rules that keep them out.
    assert!(lab.run("h1", "nft", &["delete", "table", "ip6", "shoal"]));
    assert_ne!(
        forge(),
        0,
        "without rules they arrive, and this test sees it"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_somebody_removes_comes_back_by_itself() {
    let (lab, view) = or_skip!(ready().await);
    assert!(lab.ping("t1", "10.0.1.12"));
    let guard = lab.guard(0, &view);
    let peers = |lab: &Lab| lab.text("h1", "wg", &["show", DEVICE, "peers"]);
    let before = peers(&lab);
    let peer = before.trim();
    for change in [
        ["set", DEVICE, "peer", peer, "remove"].as_slice(),
        &["set", DEVICE, "peer", peer, "allowed-ips", ""],
        &["set", DEVICE, "listen-port", "51999"],
    ] {
        assert!(lab.run("h1", "wg", change), "{change:?}");
        let began = Instant::now();
        while !(lab.plan(0, &view).await.is_empty() && lab.ping("t1", "10.0.1.12")) {
            assert!(began.elapsed() < REPAIRED_WITHIN, "{change:?}");
        }
        assert_eq!(peers(&lab), before, "{change:?}");
    }
    guard.abort();
    // Nobody is at work any more when the lab is taken down.
    assert!(guard.await.unwrap_err().is_cancelled());
}

#[tokio::test]
async fn keys_follow_one_another_and_only_what_is_on_its_way_can_be_lost() {
    let (mut lab, mut view) = or_skip!(ready().await);
    assert!(lab.ping("t1", "10.0.1.12"));
    let first = keys(&lab, &view);
    let place = lab.place("t1");
    let pinging = std::thread::spawn(move || {
        let mut ping = Command::new("ping");
        ping.args(["-q", "-i0.05", "-w8", "10.0.1.12"]);
        shoal_overlay::netns::run_in(&place, move || ping.output()).unwrap()
    });
    let private = |lab: &Lab| lab.text("h1", "wg", &["show", DEVICE, "private-key"]);
    let before = private(&lab);
    // Told, in use, alone: the hosts one after another, and then both at once.
    for both in [false, true] {
        for host in 0..2 {
            for _ in 0..3 {
                lab.turn_keys(host, &view).await;
                if both {
                    lab.turn_keys(1 - host, &view).await;
                }
                view = lab.with_keys(view);
                lab.converge(&view).await;
            }
        }
    }
    let output = pinging.join().unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let number_before = |word: &str| -> u32 {
        let before = said.split(word).next().unwrap();
        before.split_whitespace().last().unwrap().parse().unwrap()
    };
    let lost = number_before("packets transmitted") - number_before("received");
    // There were six changes, each in the middle of a packet at worst.
    assert!(lost <= 6, "{said}");
    assert_ne!(private(&lab), before);
    assert!(keys(&lab, &view).is_disjoint(&first), "all keys are new");
    let peers = lab.text("h1", "wg", &["show", DEVICE, "peers"]);
    assert_eq!(
        peers.lines().count(),
        1,
        "and the old ones are forgotten: {peers}"
    );
    assert!(lab.plan(0, &view).await.is_empty());
}
