//! Two hosts `h1` (192.0.2.1) and `h2` (192.0.2.2) with a network plane each, and an outside `client` (192.0.2.99).

#![allow(dead_code, unused_macros, reason = "not every test needs all of it")]

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use shoal_api::{
    NodeId,
    network::{
        Endpoint, IngressPort, LocalNamespaces, NetworkSlice, NetworkView, Peer, Protocol,
        ServiceSlice, Subnet,
    },
};
use shoal_overlay::{
    Plane, PlaneConfig, PlaneError,
    core::{diff::NetOp, keyring::KeyTimes, state::Family},
    netns,
};

/// What is ready, or the end of the test with a line that says what is missing.
macro_rules! or_skip {
    ($ready:expr) => {
        match $ready {
            Ok(ready) => ready,
            Err(missing) => return eprintln!("skipped, because {missing}"),
        }
    };
}

const HOSTS: [&str; 3] = ["h1", "h2", "h3"];
/// How long a packet that must not arrive is waited for: long enough for the second try of one that was dropped while
/// the kernel had not opened a new link yet.
const LOST: Duration = Duration::from_millis(1300);

pub struct Lab {
    dir: PathBuf,
    planes: Vec<Plane>,
    local: [LocalNamespaces; HOSTS.len()],
    hosts: usize,
    /// How long keys last for planes that are started from now on.
    pub key_times: KeyTimes,
}

pub fn id<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

/// Ingress and `n1` with tasks t1 (h1), t2 (h2), t3 (h1); `n2` with t4 (h1); the internal `n3` with t5 (h1), t6 (h2).
pub fn view() -> NetworkView {
    let web = |n: u8| {
        let service = ServiceSlice {
            name: "web".into(),
            vips: vec![[10, 0, n, 2].into()],
            aliases: vec![],
            ports: vec![IngressPort {
                protocol: Protocol::Tcp,
                published: 8080,
                target: 80,
                ..IngressPort::default()
            }],
            ..ServiceSlice::default()
        };
        [(id("web"), Arc::new(service))].into()
    };
    let network = |n: u8, tasks: &[(&str, usize)]| {
        let endpoint = |(last, (task, host)): (u8, &(&str, usize))| {
            let endpoint = Endpoint {
                node: id(HOSTS[*host]),
                service: Some(id("web")),
                addresses: vec![format!("10.0.{n}.{last}/24").parse().unwrap()],
                names: vec![],
                serving: true,
            };
            (id(task), Arc::new(endpoint))
        };
        NetworkSlice {
            name: format!("n{n}"),
            ingress: n == 0,
            internal: n == 3,
            encrypted: false,
            vni: 4096 + u32::from(n),
            mtu: None,
            subnets: vec![Subnet {
                range: format!("10.0.{n}.0/24").parse().unwrap(),
                gateway: [10, 0, n, 1].into(),
            }],
            attachable: false,
            labels: Default::default(),
            options: Default::default(),
            ip_ranges: Vec::new(),
            endpoints: (11..).zip(tasks).map(endpoint).collect(),
            services: web(n),
        }
    };
    let tasks = [("t1", 0), ("t2", 1), ("t3", 0)];
    NetworkView {
        version: 1,
        data_path_port: 4789,
        peers: BTreeMap::from([(id("h1"), peer(1)), (id("h2"), peer(2))]),
        networks: BTreeMap::from([
            (id("ingress"), network(0, &tasks)),
            (id("n1"), network(1, &tasks)),
            (id("n2"), network(2, &[("t4", 0)])),
            (id("n3"), network(3, &[("t5", 0), ("t6", 1)])),
        ]),
    }
}

/// A view with port 5353/udp of all hosts leading to port 53 of `web`.
pub fn with_datagrams(mut view: NetworkView) -> NetworkView {
    let ingress = view.networks.get_mut("ingress").unwrap();
    let web = Arc::make_mut(ingress.services.get_mut("web").unwrap());
    web.ports.push(IngressPort {
        protocol: Protocol::Udp,
        published: 5353,
        target: 53,
        ..IngressPort::default()
    });
    view
}

/// How other nodes know the host h`last`.
pub fn peer(last: u8) -> Peer {
    Peer {
        underlay: [192, 0, 2, last].into(),
        hostname: format!("h{last}"),
        tunnel_keys: Vec::new(),
    }
}

/// The same with IPv6 beside IPv4: fd00:1::11 is t1 on n1.
pub fn dual() -> NetworkView {
    let mut view = view();
    for network in view.networks.values_mut() {
        let n = network.vni - 4096;
        network.subnets.push(Subnet {
            range: format!("fd00:{n}::/64").parse().unwrap(),
            gateway: format!("fd00:{n}::1").parse().unwrap(),
        });
        for endpoint in network.endpoints.values_mut() {
            let ipnet = endpoint.addresses[0].addr().to_string();
            let last = ipnet.rsplit('.').next().unwrap();
            Arc::make_mut(endpoint)
                .addresses
                .push(format!("fd00:{n}::{last}/64").parse().unwrap());
        }
        for service in network.services.values_mut() {
            Arc::make_mut(service)
                .vips
                .push(format!("fd00:{n}::2").parse().unwrap());
        }
    }
    view
}

/// A task of h1's `web` that is on no network but ingress.
pub fn alone_on_ingress(ingress: &NetworkSlice) -> Arc<Endpoint> {
    let mut alone = Endpoint::clone(&ingress.endpoints["t1"]);
    alone.addresses = ["10.0.0.77/24", "fd00:0::77/64"]
        .map(|net| net.parse().unwrap())
        .into();
    Arc::new(alone)
}

/// Has bridged packets pass the rules of IP on both hosts (`br_netfilter`), and then not; says which it is. Once, as it is,
/// where the kernel cannot.
pub fn bridged_packets_pass_rules(lab: &Lab, family: Family) -> impl Iterator<Item = &'static str> {
    let name = match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    let set = move |value: u8| {
        let word = format!("net.bridge.bridge-nf-call-{name}={value}");
        let mut hosts = lab.hosts().iter();
        hosts.all(|host| lab.run(host, "sysctl", &["-qw", &word]))
    };
    let ways = [(1, "by the rules"), (0, "past the rules")];
    let possible = set(1);
    let tried = ways.into_iter().filter(move |(value, _)| set(*value));
    tried
        .map(|(_, what)| what)
        .chain((!possible).then_some("without br_netfilter"))
}

/// Makes the underlay and the planes of h1 and h2, or says what the machine lacks.
pub async fn lab() -> Result<Lab, String> {
    lab_of(2).await
}

/// The same with so many hosts.
pub async fn lab_of(hosts: usize) -> Result<Lab, String> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    if !nix::unistd::geteuid().is_root() {
        return Err("network namespaces need root".into());
    }
    let unique = format!(
        "shoal-net-{}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    );
    let mut lab = Lab {
        dir: std::env::temp_dir().join(unique),
        planes: vec![],
        local: Default::default(),
        hosts,
        key_times: KeyTimes::default(),
    };
    for place in ["switch", "client"].iter().chain(&HOSTS[..hosts]) {
        netns::create(&lab.place(place)).unwrap();
    }
    lab.ip("switch", "link add br0 up type bridge");
    let places = HOSTS.into_iter().zip(1..).take(hosts);
    for (place, last) in places.chain([("client", 99)]) {
        lab.ip(
            "switch",
            &format!("link add {place} up master br0 type veth peer name u0"),
        );
        let target = netns::open(&lab.place(place)).unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&target);
        lab.ip(
            "switch",
            &format!("link set u0 netns /proc/{}/fd/{fd}", std::process::id()),
        );
        lab.ip(place, "link set u0 name eth0 up");
        lab.ip(place, &format!("addr add 192.0.2.{last}/24 dev eth0"));
    }
    lab.restart_planes_or(PlaneError::to_string)?;
    Ok(lab)
}

/// What containers, hosts and the client can do.
pub trait Traffic {
    fn run(&self, place: &str, program: &str, arguments: &[&str]) -> bool;
    fn text(&self, place: &str, program: &str, arguments: &[&str]) -> String;
    fn serve(&self, place: &str, at: &str);
    fn ask(&self, place: &str, at: &str) -> io::Result<String>;
    /// Answers every datagram with who it is.
    fn serve_datagrams(&self, place: &str, at: &str);
    /// Answers every line with who it is, for as long as the connection lasts.
    fn serve_lines(&self, place: &str, at: &str);
    /// A connection that lasts.
    fn talk(&self, place: &str, to: &str) -> Talk;
    /// A socket that sends datagrams from one port.
    fn datagrams(&self, place: &str, to: &str) -> UdpSocket;
    /// Asks several times, and counts the different answers.
    fn count(&self, place: &str, at: &str, times: usize) -> BTreeMap<String, usize> {
        let mut answers = BTreeMap::new();
        for _ in 0..times {
            let answer = self
                .ask(place, at)
                .unwrap_or_else(|error| error.to_string());
            *answers.entry(answer).or_default() += 1;
        }
        answers
    }
    fn ping(&self, place: &str, to: &str) -> bool {
        self.run(place, "ping", &["-c1", "-W2", to])
    }
}

/// A connection that lasts.
pub struct Talk(BufReader<TcpStream>);

impl Talk {
    /// Says a line and returns the answer.
    pub fn say(&mut self, line: &str) -> String {
        writeln!(self.0.get_mut(), "{line}").unwrap();
        let mut answer = String::new();
        self.0.read_line(&mut answer).unwrap();
        answer.trim_end().to_owned()
    }
}

/// Who answers a datagram.
pub fn ask_datagram(socket: &UdpSocket) -> io::Result<String> {
    let mut answer = [0; 16];
    socket.send(b"?")?;
    let length = socket.recv(&mut answer)?;
    Ok(String::from_utf8(answer[..length].to_vec()).unwrap())
}

impl Traffic for Lab {
    fn run(&self, place: &str, program: &str, arguments: &[&str]) -> bool {
        self.command(place, program, arguments).status.success()
    }

    fn text(&self, place: &str, program: &str, arguments: &[&str]) -> String {
        String::from_utf8(self.command(place, program, arguments).stdout).unwrap()
    }

    /// Answers every connection with who it is and whom it sees.
    fn serve(&self, place: &str, at: &str) {
        let at: SocketAddr = at.parse().unwrap();
        let listener = netns::run_in(&self.place(place), move || TcpListener::bind(at))
            .unwrap()
            .unwrap();
        let name = place.to_owned();
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let Ok(mut connection) = connection else {
                    return;
                };
                let peer = connection.peer_addr().unwrap().ip();
                let _ = write!(connection, "{name} sees {peer}");
            }
        });
    }

    fn serve_datagrams(&self, place: &str, at: &str) {
        let at: SocketAddr = at.parse().unwrap();
        let socket = netns::run_in(&self.place(place), move || UdpSocket::bind(at))
            .unwrap()
            .unwrap();
        let name = place.to_owned();
        std::thread::spawn(move || {
            let mut buffer = [0; 16];
            while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(name.as_bytes(), peer);
            }
        });
    }

    fn serve_lines(&self, place: &str, at: &str) {
        let at: SocketAddr = at.parse().unwrap();
        let listener = netns::run_in(&self.place(place), move || TcpListener::bind(at))
            .unwrap()
            .unwrap();
        let name = place.to_owned();
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let name = name.clone();
                std::thread::spawn(move || {
                    let lines = BufReader::new(connection.try_clone().unwrap()).lines();
                    for _ in lines.map_while(Result::ok) {
                        let _ = writeln!(&connection, "{name}");
                    }
                });
            }
        });
    }

    fn talk(&self, place: &str, to: &str) -> Talk {
        let to: SocketAddr = to.parse().unwrap();
        let connect = move || TcpStream::connect_timeout(&to, LOST);
        let connection = netns::run_in(&self.place(place), connect).unwrap().unwrap();
        connection.set_read_timeout(Some(LOST)).unwrap();
        Talk(BufReader::new(connection))
    }

    fn datagrams(&self, place: &str, to: &str) -> UdpSocket {
        let to: SocketAddr = to.parse().unwrap();
        let socket = netns::run_in(&self.place(place), || UdpSocket::bind("0.0.0.0:0"))
            .unwrap()
            .unwrap();
        socket.set_read_timeout(Some(LOST)).unwrap();
        socket.connect(to).unwrap();
        socket
    }

    fn ask(&self, place: &str, at: &str) -> io::Result<String> {
        let at: SocketAddr = at.parse().unwrap();
        let ask = move || {
            let mut connection = TcpStream::connect_timeout(&at, LOST)?;
            connection.set_read_timeout(Some(LOST))?;
            let mut answer = String::new();
            connection.read_to_string(&mut answer)?;
            Ok(answer)
        };
        netns::run_in(&self.place(place), ask).unwrap()
    }
}

impl Lab {
    fn hosts(&self) -> &'static [&'static str] {
        &HOSTS[..self.hosts]
    }

    /// Makes an empty container namespace for a task.
    pub fn container(&mut self, task: &str, host: usize) {
        netns::create(&self.place(task)).unwrap();
        self.local[host].insert(id(task), self.place(task));
    }

    /// Takes a port, and lets go of it.
    pub fn bind(&self, place: &str, at: &str) -> io::Result<()> {
        let at: SocketAddr = at.parse().unwrap();
        netns::run_in(&self.place(place), move || TcpListener::bind(at))
            .unwrap()
            .map(drop)
    }

    /// Makes an empty namespace that is no task's.
    pub fn place_only(&self, name: &str) {
        netns::create(&self.place(name)).unwrap();
    }

    /// Says that there is a container where there is none.
    pub fn lose_container(&mut self, task: &str, host: usize) {
        self.local[host].insert(id(task), self.place(task));
    }

    pub async fn converge(&mut self, view: &NetworkView) {
        for host in 0..self.hosts {
            if let Err(errors) = self.try_converge(host, view).await {
                let chains = errors
                    .iter()
                    .map(|error| format!("{error}: {:?}", std::error::Error::source(error)));
                panic!("{}", chains.collect::<Vec<_>>().join("\n"));
            }
        }
    }

    /// Brings a view about on one host, without a copy of it.
    pub async fn bring(&self, host: usize, view: &Arc<NetworkView>) {
        let me = id(HOSTS[host]);
        let done = self.planes[host].converge(view, &me, &self.local[host]);
        if let Err(errors) = done.await {
            panic!("{errors:?}");
        }
    }

    /// Does something inside a namespace.
    pub fn within<T: Send + 'static>(
        &self,
        place: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        netns::run_in(&self.place(place), work).unwrap()
    }

    pub async fn try_converge(
        &self,
        host: usize,
        view: &NetworkView,
    ) -> Result<(), Vec<PlaneError>> {
        self.planes[host]
            .converge(&Arc::new(view.clone()), &id(HOSTS[host]), &self.local[host])
            .await
    }

    /// Repairs a host's part of the view whenever somebody disturbs it, as a daemon does.
    pub fn guard(&self, host: usize, view: &NetworkView) -> tokio::task::JoinHandle<()> {
        let plane = self.planes[host].clone();
        let (view, local) = (Arc::new(view.clone()), self.local[host].clone());
        tokio::spawn(async move {
            loop {
                plane.disturbed().await;
                // What one repair meets in the middle of a change, the next one sees.
                let _ = plane.repair(&view, &id(HOSTS[host]), &local).await;
            }
        })
    }

    /// Repairs until the kernel has nothing more to tell.
    pub async fn settle(&self, host: usize, view: &NetworkView) {
        while self.is_disturbed(host).await {
            let me = id(HOSTS[host]);
            let view = Arc::new(view.clone());
            let done = self.planes[host].repair(&view, &me, &self.local[host]);
            done.await.unwrap();
        }
    }

    /// Whether a host's plane is told of somebody else's work while a packet could be lost.
    pub async fn is_disturbed(&self, host: usize) -> bool {
        tokio::time::timeout(LOST, self.planes[host].disturbed())
            .await
            .is_ok()
    }

    pub async fn plan(&self, host: usize, view: &NetworkView) -> Vec<NetOp> {
        self.planes[host]
            .plan(&Arc::new(view.clone()), &id(HOSTS[host]), &self.local[host])
            .await
            .unwrap()
    }

    pub fn restart_planes(&mut self) {
        self.restart_planes_or(PlaneError::to_string).unwrap();
    }

    pub async fn teardown(&self) {
        for plane in &self.planes {
            plane.teardown_all().await.unwrap();
        }
    }

    /// Handles of the router namespaces of a host.
    pub fn routers(&self, host: usize) -> Vec<String> {
        let entries = std::fs::read_dir(self.run_dir(host).join("netns")).unwrap();
        let mut names: Vec<String> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Place of the router of a network on a host.
    pub fn router(&self, host: usize, network: &str) -> String {
        format!("run-{}/netns/router-{network}", HOSTS[host])
    }

    /// Lets the client try to enter h1's overlay networks directly.
    pub fn route_into_overlay(&self) {
        self.ip("client", "route add 10.0.0.0/8 via 192.0.2.1");
        self.ip("h1", "route add 10.0.1.0/24 dev shoal_gwbridge");
    }

    /// Restarts the planes with IPVS asked for, and returns what the kernel has.
    pub fn open_with_ipvs(&mut self) -> BTreeMap<String, bool> {
        self.planes.clear();
        for (host, name) in self.hosts().iter().enumerate() {
            let mut config = PlaneConfig::new(self.run_dir(host));
            config.lb_driver = "ipvs".parse().unwrap();
            config.host_netns = Some(self.place(name));
            self.planes.push(Plane::open(config).unwrap());
        }
        self.planes[0].features()
    }

    /// What the kernel has, by name.
    pub fn features(&self) -> BTreeMap<String, bool> {
        self.planes[0].features()
    }

    /// A view as the cluster would compute it once both hosts have told of their keys.
    pub fn with_keys(&self, mut view: NetworkView) -> NetworkView {
        for (host, plane) in HOSTS.into_iter().zip(&self.planes) {
            let keys = plane.keys().borrow().told.clone();
            view.peers.get_mut(&id::<NodeId>(host)).unwrap().tunnel_keys = keys;
        }
        view
    }

    /// Has a host take the next step in replacing its key.
    pub async fn turn_keys(&self, host: usize, view: &NetworkView) {
        let me = id(HOSTS[host]);
        let view = Arc::new(view.clone());
        let done = self.planes[host].turn_keys(&view, &me, &self.local[host]);
        done.await.unwrap();
    }

    /// What distributes connections on a host.
    pub fn lb_driver(&self, host: usize) -> &'static str {
        self.planes[host].lb_driver()
    }

    fn restart_planes_or(&mut self, missing: impl Fn(&PlaneError) -> String) -> Result<(), String> {
        self.planes.clear();
        for (host, name) in self.hosts().iter().enumerate() {
            let mut config = PlaneConfig::new(self.run_dir(host));
            if let Ok(driver) = std::env::var("SHOAL_LB_DRIVER") {
                config.lb_driver = driver.parse().unwrap();
            }
            config.host_netns = Some(self.place(name));
            config.key_times = self.key_times;
            match Plane::open(config) {
                Ok(plane) => self.planes.push(plane),
                Err(error @ PlaneError::Unsupported { .. }) => return Err(missing(&error)),
                Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
            }
        }
        Ok(())
    }

    fn run_dir(&self, host: usize) -> PathBuf {
        self.dir.join(format!("run-{}", HOSTS[host]))
    }

    /// Handle of a namespace.
    pub fn place(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn command(&self, place: &str, program: &str, arguments: &[&str]) -> std::process::Output {
        let mut command = Command::new(program);
        command.args(arguments);
        netns::run_in(&self.place(place), move || command.output())
            .unwrap()
            .unwrap()
    }

    fn ip(&self, place: &str, arguments: &str) {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        let done = self.command(place, "ip", &arguments);
        assert!(
            done.status.success(),
            "ip {arguments:?}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for host in HOSTS {
            let handles = std::fs::read_dir(self.dir.join(format!("run-{host}/netns")))
                .into_iter()
                .flatten()
                .flatten();
            for handle in handles {
                let _ = netns::delete(&handle.path());
            }
        }
        for entry in std::fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            if entry.path().is_file() {
                let _ = netns::delete(&entry.path());
            }
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
