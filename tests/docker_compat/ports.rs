//! Ports in every form that they are published in, and addresses that were asked for: packets go there.

use std::{
    io::{BufRead, BufReader},
    net::UdpSocket,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use shoal_tests::{
    lab::{TestLab, get, program, text},
    skipped, wait,
};

use super::cli::{host, said};

struct Shoal<'a>(&'a TestLab);

impl Shoal<'_> {
    /// Runs a line of words.
    fn said(&self, line: &str) -> Result<String> {
        said(self.0, line)
    }

    fn refused(&self, line: &str) -> Result<String> {
        let error = self.said(line).err();
        let error = error.with_context(|| format!("shoal {line} was not refused"))?;
        Ok(format!("{error:#}"))
    }

    /// Starts a container that serves the number of each of these ports on it.
    fn serves(&self, options: &str, ports: &[u16]) -> Result<()> {
        let mut script = String::new();
        for port in ports {
            script.push_str(&format!(
                "mkdir -p /srv/{port}; echo {port} > /srv/{port}/page; httpd -p {port} -h /srv/{port}; "
            ));
        }
        script.push_str("exec sleep 1000");
        let socket = self.0.docker_host("n1");
        let mut words = vec!["-H", &socket, "run", "-d"];
        words.extend(options.split(' '));
        words.extend(["busybox:test", "sh", "-c", &script]);
        self.0.shoal(&words).map(drop)
    }

    /// Waits until a port of the host answers with this page to whoever is outside.
    fn outside(&self, port: u16, page: &str) -> Result<()> {
        let addr = self.0.addr("n1");
        wait(&format!("{page:?} on port {port}"), || {
            Ok(match get(&addr, port, "/page") {
                Ok(said) if said.trim() == page => Ok(()),
                other => Err(format!("{other:?}")),
            })
        })
    }

    /// The host's port that a container's is published on, as `port` tells it.
    fn published(&self, name: &str, port: &str) -> Result<u16> {
        let told = self.said(&format!("port {name} {port}"))?;
        let first = told.lines().next().unwrap_or_default();
        let (_, number) = first.rsplit_once(':').with_context(|| told.clone())?;
        Ok(number.parse()?)
    }
}

/// A program that ends with the test.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Answers datagrams in capitals, from within the network of a process.
const ECHO: &str = "import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('', 53))
print('up', flush=True)
while True:
    data, peer = s.recvfrom(100)
    s.sendto(data.upper(), peer)
";

/// Asks a port of the host for a datagram.
fn datagram(lab: &TestLab, port: u16, addr: &str) -> Result<String> {
    let socket = UdpSocket::bind(format!("{}:0", lab.machine()))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.send_to(b"ping", (addr, port))?;
    let mut answer = [0; 100];
    let (length, from) = socket.recv_from(&mut answer)?;
    ensure!(from.port() == port, "answered by {from}");
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

#[test]
fn published_ports_of_every_form_are_reached() -> Result<()> {
    let lab = host(&[])?;
    let shoal = Shoal(&lab);
    let on = |script: &str| text(&lab.output("n1", &["sh", "-c", script])?);
    let forms = "--name web -p 127.0.0.1:8090:80 -p 8000-8002:80-82 -p 83 -p 5300:53/udp";
    shoal.serves(forms, &[80, 81, 82, 83])?;
    // Each of a range is its own.
    for (port, page) in [(8000, "80"), (8001, "81"), (8002, "82")] {
        shoal.outside(port, page)?;
    }
    // An address of the host is that address alone.
    assert_eq!(on("curl -sm5 http://127.0.0.1:8090/page")?, "80\n");
    assert!(get(&lab.addr("n1"), 8090, "/page").is_err());
    // One of the host's own choice.
    let chosen = shoal.published("web", "83/tcp")?;
    assert!(chosen >= 32768, "{chosen}");
    shoal.outside(chosen, "83")?;
    // Datagrams, there and back.
    let pid = shoal.said("inspect -f {{.State.Pid}} web")?;
    let mut echo = Command::new(program());
    echo.args(["lab", "exec", "--name", lab.name(), "n1", "--"])
        .args(["nsenter", "-n", "-t", &pid, "python3", "-c", ECHO])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut echo = Ends(echo.spawn()?);
    let mut line = String::new();
    let told = echo.0.stdout.take().context("the pipe was asked for")?;
    BufReader::new(told).read_line(&mut line)?;
    assert_eq!(line, "up\n");
    assert_eq!(datagram(&lab, 5300, &lab.addr("n1"))?, "PING");
    assert_eq!(
        shoal.said("port web 53/udp")?.lines().next(),
        Some("0.0.0.0:5300")
    );

    // All that the image and the command line expose; one port of the host out of several.
    shoal.serves("--name all -P --expose 80-81", &[80, 81])?;
    for (port, page) in [("80/tcp", "80"), ("81/tcp", "81")] {
        shoal.outside(shoal.published("all", port)?, page)?;
    }
    for (name, port) in [("one", 8100), ("two", 8101)] {
        shoal.serves(&format!("--name {name} -p 8100-8101:80"), &[80])?;
        assert_eq!(shoal.published(name, "80")?, port);
        shoal.outside(port, "80")?;
    }
    let refused = shoal.refused("run -d -p 8100-8101:80 busybox:test true")?;
    assert!(refused.contains("port is already allocated"), "{refused}");
    let refused = shoal.refused("run -d -p 8000-8002:80-81 busybox:test true")?;
    assert!(
        refused.contains("nvalid ranges specified for container and host Ports"),
        "{refused}"
    );
    // What is stopped is not there, and is again when it runs again.
    shoal.said("stop -t 0 web")?;
    assert!(get(&lab.addr("n1"), 8000, "/page").is_err());
    shoal.said("start web")?;
    shoal.outside(8000, "80")?;

    // Addresses that were asked for.
    shoal.said("network create --subnet 10.222.0.0/24 fixed")?;
    shoal.serves("--name at --network fixed --ip 10.222.0.77", &[80])?;
    let at = "inspect -f {{.NetworkSettings.Networks.fixed.IPAddress}} at";
    let page = "run --rm --network fixed busybox:test wget -qO- http://10.222.0.77/page";
    for _ in ["before", "after"] {
        assert_eq!(shoal.said(at)?, "10.222.0.77");
        wait("the page", || {
            Ok(match shoal.said(page) {
                Ok(said) if said == "80" => Ok(()),
                other => Err(format!("{other:?}")),
            })
        })?;
        shoal.said("restart -t 0 at")?;
    }
    for (options, why) in [
        ("--network fixed --ip 10.222.0.77", "Address already in use"),
        (
            "--network fixed --ip 10.9.0.1",
            "no configured subnet or ip-range contain the IP address 10.9.0.1",
        ),
        (
            "--ip 172.17.0.99",
            "user specified IP address is supported on user defined networks only",
        ),
    ] {
        let refused = shoal.refused(&format!("run --rm {options} busybox:test true"))?;
        assert!(refused.contains(why), "{options}: {refused}");
    }

    // What a connection may be told.
    shoal.said("network create --subnet 10.223.0.0/24 other")?;
    shoal.said("run -d --name many --network fixed busybox:test sleep 1000")?;
    let options = "--driver-opt com.docker.network.endpoint.ifname=side0 --gw-priority 9 --link-local-ip 169.254.7.7";
    shoal.said(&format!(
        "network connect {options} --ip 10.223.0.9 other many"
    ))?;
    let seen = shoal.said("exec many ip -o -4 addr show dev side0")?;
    for address in ["10.223.0.9/24", "169.254.7.7/"] {
        assert!(seen.contains(address), "{address} in {seen}");
    }
    let socket = lab.docker_host("n1");
    let field = "{{json .NetworkSettings.Networks.other}}";
    let told = lab.shoal(&["-H", &socket, "inspect", "-f", field, "many"])?;
    let told: serde_json::Value = serde_json::from_str(&told)?;
    assert_eq!(told["IPAMConfig"]["LinkLocalIPs"][0], "169.254.7.7");
    assert_eq!(told["GwPriority"], 9);

    // The highest priority has the way out, from the moment that it is there until it goes.
    let way_out = || -> Result<String> {
        let routes = shoal.said("exec many ip route")?;
        let ways: Vec<&str> = routes
            .lines()
            .filter(|line| line.starts_with("default"))
            .map(str::trim)
            .collect();
        Ok(ways.join("\n"))
    };
    assert_eq!(way_out()?, "default via 10.223.0.1 dev side0 onlink");
    shoal.said("network disconnect other many")?;
    let first = way_out()?;
    assert!(first.contains(" dev eth0 "), "{first}");
    shoal.said("network connect other many")?;
    assert_eq!(way_out()?, first);
    shoal.said("network disconnect other many")?;
    shoal.said("network connect --gw-priority -1 other many")?;
    assert_eq!(way_out()?, first);
    // Without the one before the next one has it.
    shoal.said("network disconnect fixed many")?;
    let last = way_out()?;
    assert!(last.contains("default via 10.223.0.1 dev "), "{last}");
    shoal.said("network connect fixed many")?;
    assert_eq!(way_out()?, first);
    shoal.said("stop -t 0 many")?;
    shoal.said("network disconnect -f other many")?;
    shoal.said("network rm other")?;
    Ok(())
}

#[test]
fn a_network_may_have_ipv6_alone() -> Result<()> {
    let lab = host(&[])?;
    let shoal = Shoal(&lab);
    if text(&lab.output("n1", &["test", "-e", "/proc/sys/net/ipv6"])?).is_err() {
        skipped("this kernel has no IPv6");
        return Ok(());
    }
    shoal.said("network create --ipv6 --ipv4=false --subnet fd00:221::/64 six")?;
    let shown = "{{.EnableIPv4}},{{.EnableIPv6}}";
    let shown = shoal.said(&format!("network inspect -f {shown} six"))?;
    assert_eq!(shown, "false,true");
    let run = "run -d --network six --name";
    let serve = "busybox:test httpd -f -p [::]:80 -h /etc";
    shoal.said(&format!("{run} web --hostname web -p 8080:80 {serve}"))?;
    shoal.said(&format!("{run} peer busybox:test sleep 1000"))?;
    let six = ".NetworkSettings.Networks.six";
    let at = format!(
        "{{{{{six}.IPAddress}}}},{{{{{six}.GlobalIPv6Address}}}},{{{{{six}.IPv6Gateway}}}}"
    );
    let shown = shoal.said(&format!("inspect -f {at} web"))?;
    assert_eq!(shown, ",fd00:221::2,fd00:221::1");
    assert_eq!(shoal.said("exec web ip -4 -o addr show dev eth0")?, "");
    assert_eq!(shoal.said("port web")?, "80/tcp -> [::]:8080");
    let works = |shoal: &Shoal<'_>| {
        let asked = "exec peer wget -qO- http://web/hostname";
        wait(asked, || {
            let said = shoal.said(asked);
            Ok(said.map_err(|error| format!("{error:#}")).and_then(|said| {
                let is_right = said == "web";
                is_right.then_some(()).ok_or(said)
            }))
        })?;
        let published = ["curl", "-sgm5", "http://[fd00:221::1]:8080/hostname"];
        assert_eq!(text(&lab.output("n1", &published)?)?, "web\n");
        anyhow::Ok(())
    };
    works(&shoal)?;
    // What was written down is read again.
    lab.lab("kill", &["--daemon", "n1"])?;
    lab.lab("start", &["n1"])?;
    works(&shoal)?;
    // Beside another network.
    shoal.said("run -d --name both busybox:test sleep 1000")?;
    shoal.said("network connect --ip6 fd00:221::77 six both")?;
    shoal.said("exec peer ping -c1 -W5 fd00:221::77")?;
    shoal.said("exec both ping -c1 -W5 172.17.0.1")?;
    for (line, why) in [
        (
            "network create --ipv4=false neither",
            "IPv4 or IPv6 must be enabled",
        ),
        (
            "network create --ipv6 --ipv4=false --subnet 10.221.0.0/24 four",
            "an IPv4 subnet needs a network with IPv4",
        ),
        (
            "run --rm --network six -p 127.0.0.1:8090:80 busybox:test true",
            "the container has no IPv4 address",
        ),
        (
            "run --rm --network six --ip 10.221.0.9 busybox:test true",
            "10.221.0.9",
        ),
    ] {
        let refused = shoal.refused(line)?;
        ensure!(refused.contains(why), "{line}: {refused}");
    }
    shoal.said("rm -f web peer both")?;
    shoal.said("network rm six")?;
    Ok(())
}
