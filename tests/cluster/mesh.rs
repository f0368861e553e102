//! Published ports of the mesh through the daemons: every address of a host, real clients, and options by
//! label.

use std::{
    net::UdpSocket,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use shoal_tests::{
    lab::{TestLab, get, program as shoal_program, text},
    wait,
};

use crate::names::{line, program};

/// Answers every datagram with the address that it came from.
const DATAGRAMS: &str = r#"use IO::Socket::INET;
my $s = IO::Socket::INET->new(LocalPort => 53, Proto => "udp") or die $@;
while (defined $s->recv(my $m, 99)) { $s->send("client=" . $s->peerhost) }"#;

/// Reads a header of 16 bytes and 12 of addresses of IPv4, and answers with the client that it names.
const HEADERS: &str = r#"use IO::Socket::INET;
my $s = IO::Socket::INET->new(LocalPort => 80, Listen => 9) or die $@;
while (my $c = $s->accept) {
    sysread $c, my $head, 28;
    sysread $c, my $request, 999;
    my $client = join ".", unpack "x16 C4", $head;
    print $c "HTTP/1.0 200 OK\r\n\r\nclient=$client peer=", $c->peerhost;
    close $c;
}"#;

/// A program of the host in the namespace of a container.
pub(crate) struct Server(Child);

impl Server {
    /// In that of a service's only task.
    fn begin(lab: &TestLab, host: &str, service: &str, script: &str) -> Result<Self> {
        let task = line(lab, host, &format!("ps -q --filter name={service}."))?;
        Self::inside(lab, host, task.trim(), script)
    }

    /// A script of perl's.
    pub(crate) fn inside(lab: &TestLab, host: &str, who: &str, script: &str) -> Result<Self> {
        let pid = line(lab, host, &format!("inspect -f {{{{.State.Pid}}}} {who}"))?;
        let mut command = Command::new(shoal_program());
        command
            .args(["lab", "exec", "--name", lab.name(), host, "--"])
            .args(["nsenter", "-t", pid.trim(), "-n", "perl", "-e", script])
            .stdin(Stdio::null());
        Ok(Self(command.spawn()?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended
        let _ = self.0.wait();
    }
}

/// A service of one task on n1 that does nothing by itself.
fn idle_on_n1(lab: &TestLab, name: &str, more: &str) -> Result<()> {
    let create = format!(
        "service create --detach --name {name} --constraint node.hostname==n1 {more} shoal-demo:latest idle"
    );
    line(lab, "n1", &create)?;
    lab.wait_running(name, 1).map(drop)
}

fn ask_datagram(at: &str) -> Result<String> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.connect(at)?;
    socket.send(b"who?")?;
    let mut answer = [0; 99];
    let length = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

#[test]
fn a_published_port_answers_at_every_address_and_knows_its_clients() -> Result<()> {
    let lab = TestLab::up(2, 1)?;
    let web = "service create --detach --name web --publish 8088:80 shoal-demo:latest";
    line(&lab, "n1", web)?;
    lab.wait_running("web", 1)?;

    // An address that a host has only from now on.
    for (host, net) in [("n1", "10.250.1.11/24"), ("n2", "10.250.1.12/24")] {
        let addr = lab.addr(host);
        let shown = program(&lab, host, &["ip", "-o", "-4", "addr", "show", "to", &addr])?;
        let link = shown.split_whitespace().nth(1).context("an interface")?;
        program(&lab, host, &["ip", "addr", "add", net, "dev", link])?;
    }
    let ask = |from: &str, at: &str| {
        let url = format!("http://{at}:8088/");
        let output = lab.output(from, &["curl", "-sSgm3", &url])?;
        text(&output)
    };
    for (from, at, client) in [
        ("n2", "10.250.1.11", "10.250.1.12"),
        ("n1", "10.250.1.12", "10.250.1.11"),
    ] {
        let answer = wait(&format!("the port at {at}"), || {
            Ok(ask(from, at).map_err(|error| format!("{error:#}")))
        })?;
        ensure!(answer.contains(&format!("client={client}\n")), "{answer}");
    }
    for host in ["n1", "n2"] {
        ask(host, "127.0.0.1")?;
        ask(host, &lab.addr(host))?;
    }

    // Datagrams, too, come from where they come from.
    idle_on_n1(&lab, "names", "--publish 5353:53/udp")?;
    let _server = Server::begin(&lab, "n1", "names", DATAGRAMS)?;
    for host in ["n1", "n2"] {
        let at = format!("{}:5353", lab.addr(host));
        let answer = wait(&format!("an answer of {at}"), || {
            Ok(ask_datagram(&at).map_err(|error| error.to_string()))
        })?;
        ensure!(answer == format!("client={}", lab.machine()), "{answer}");
    }
    Ok(())
}

#[test]
fn options_of_published_ports_do_what_their_labels_say() -> Result<()> {
    let lab = TestLab::up(2, 1)?;
    let first = lab.addr("n1");
    let at_one = format!(
        "service create --detach --name narrow --label shoal.publish.80.host-ip={first} --publish 8095:80 shoal-demo:latest"
    );
    line(&lab, "n1", &at_one)?;
    lab.wait_running("narrow", 1)?;
    wait("the port at its one address", || {
        Ok(get(&first, 8095, "/").map_err(|error| format!("{error:#}")))
    })?;
    ensure!(
        get(&lab.addr("n2"), 8095, "/").is_err(),
        "it is n1's address"
    );
    let local = program(&lab, "n1", &["curl", "-sSgm2", "http://127.0.0.1:8095/"]);
    ensure!(local.is_err(), "not at loopback either: {local:?}");

    let told = "--label shoal.publish.80.proxy-protocol=v2 --publish 8096:80";
    idle_on_n1(&lab, "told", told)?;
    let _server = Server::begin(&lab, "n1", "told", HEADERS)?;
    for host in ["n1", "n2"] {
        let answer = wait(&format!("the port on {host}"), || {
            Ok(get(&lab.addr(host), 8096, "/").map_err(|error| format!("{error:#}")))
        })?;
        // The connection is a node's, the header tells the client.
        ensure!(
            answer.contains(&format!("client={} ", lab.machine())),
            "{answer}"
        );
        ensure!(
            !answer.contains(&format!("peer={}", lab.machine())),
            "{answer}"
        );
    }
    Ok(())
}
