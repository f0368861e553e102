//! Networks of one host in the kernel. Needs root; each test has a host namespace of its own, which ends with it.

#![allow(clippy::print_stderr)]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::Uid,
};
use shoal_api::container::{
    ContainerId, EndpointSpec, NetworkMode, NetworkSettings, Port, PortBinding,
};
use shoal_docker_api::backend::LocalNetworkSpec;
use shoal_engine::io::network::{NetworkError, NetworkRequest};
use shoal_node::{
    bridges::{Bridges, Joining},
    config::DaemonConfig,
};
use shoal_overlay::netns;

/// A host: a network namespace of the test's thread, and directories.
struct Host {
    dir: tempfile::TempDir,
    netns: Vec<PathBuf>,
    told: Arc<AtomicUsize>,
}

impl Host {
    fn config(&self) -> DaemonConfig {
        let mut config = DaemonConfig::default();
        config.data_root = self.dir.path().join("data");
        config.exec_root = self.dir.path().join("exec");
        config.interface_prefix = "sbt".to_owned();
        config
    }

    async fn open(&self) -> Bridges {
        let told = Arc::clone(&self.told);
        let count = move |_| {
            told.fetch_add(1, Ordering::SeqCst);
        };
        Bridges::open(&self.config(), count).await.unwrap()
    }

    fn netns(&mut self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        netns::create(&path).unwrap();
        self.netns.push(path.clone());
        path
    }

    fn request(&mut self, n: u8, name: &str, network: &str) -> NetworkRequest {
        NetworkRequest {
            container: id(n),
            name: name.to_owned(),
            hostname: String::new(),
            labels: BTreeMap::new(),
            netns: self.netns(name),
            mode: NetworkMode::Network(network.to_owned()),
            endpoints: BTreeMap::new(),
            exposed_ports: BTreeSet::new(),
            port_bindings: BTreeMap::new(),
            publish_all_ports: false,
            dns: Vec::new(),
            dns_search: Vec::new(),
            dns_options: Vec::new(),
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for path in &self.netns {
            let _ = netns::delete(path);
        }
    }
}

fn id(n: u8) -> ContainerId {
    ContainerId::from_bytes([n; 32])
}

/// Runs a test on a thread in a network namespace of its own.
fn on_a_host<F: Future<Output = ()>>(test: impl FnOnce(Host) -> F + Send + 'static) {
    if !Uid::effective().is_root() {
        eprintln!("skipped, because it needs root");
        return;
    }
    let host = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let host = Host {
            dir: tempfile::tempdir().unwrap(),
            netns: Vec::new(),
            told: Arc::default(),
        };
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap().block_on(test(host));
    });
    host.join().unwrap();
}

/// Answers one connection inside a namespace with `name`.
fn serve(at: &Path, port: u16, name: &'static str) -> JoinHandle<()> {
    let listener = netns::run_in(at, move || TcpListener::bind(("0.0.0.0", port)))
        .unwrap()
        .unwrap();
    std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        client.write_all(name.as_bytes()).unwrap();
    })
}

fn ask(from: Option<&Path>, to: SocketAddrV4) -> String {
    let dial = move || {
        let mut answer = String::new();
        TcpStream::connect(to)?.read_to_string(&mut answer)?;
        std::io::Result::Ok(answer)
    };
    match from {
        Some(netns) => netns::run_in(netns, dial).unwrap().unwrap(),
        None => dial().unwrap(),
    }
}

fn address(settings: &NetworkSettings, network: &str) -> Ipv4Addr {
    settings.networks[network].ipv4.unwrap()
}

fn network(name: &str) -> LocalNetworkSpec {
    LocalNetworkSpec {
        name: name.to_owned(),
        driver: "bridge".to_owned(),
        ..LocalNetworkSpec::default()
    }
}

fn binding(host_ports: Option<(u16, u16)>) -> BTreeMap<Port, Vec<PortBinding>> {
    let binding = PortBinding {
        host_ip: None,
        host_ports,
    };
    [("80/tcp".parse().unwrap(), vec![binding])].into()
}

#[test]
fn containers_of_a_network_reach_each_other_and_the_host_their_ports() {
    on_a_host(async |mut host| {
        let bridges = host.open().await;
        let names: Vec<String> = bridges
            .list()
            .await
            .into_iter()
            .map(|network| network.name)
            .collect();
        assert_eq!(names, ["bridge", "host", "none"]);
        bridges.create(network("app")).await.unwrap();
        let taken = bridges.create(network("app")).await.unwrap_err();
        assert_eq!(taken.to_string(), "network with name app already exists");

        let mut web = host.request(1, "web", "app");
        web.port_bindings = binding(Some((8080, 8090)));
        let db = host.request(2, "db", "app");
        let web_settings = bridges.connect(&web).await.unwrap();
        let db_settings = bridges.connect(&db).await.unwrap();
        let (web_ip, db_ip) = (address(&web_settings, "app"), address(&db_settings, "app"));
        assert_eq!(web_ip, Ipv4Addr::new(172, 19, 0, 2));
        assert_eq!(db_ip, Ipv4Addr::new(172, 19, 0, 3));
        assert_eq!(
            web_settings.networks["app"].dns_names,
            ["web", id(1).short()]
        );
        assert!(host.told.load(Ordering::SeqCst) > 2, "names were published");

        let served = serve(&web.netns, 80, "web");
        assert_eq!(ask(Some(&db.netns), SocketAddrV4::new(web_ip, 80)), "web");
        served.join().unwrap();
        let port = web_settings.ports[&"80/tcp".parse().unwrap()][0]
            .host_port
            .unwrap();
        assert_eq!(port, 8080);
        let served = serve(&web.netns, 80, "web");
        assert_eq!(
            ask(None, SocketAddrV4::new(Ipv4Addr::new(172, 19, 0, 1), port)),
            "web"
        );
        served.join().unwrap();

        let mut late = host.request(3, "late", "bridge");
        late.port_bindings = binding(Some((8080, 8080)));
        let refused = bridges.connect(&late).await.unwrap_err().to_string();
        assert!(
            refused
                .starts_with("driver failed programming external connectivity on endpoint late ("),
            "{refused}"
        );
        assert!(
            refused.ends_with("): Bind for 0.0.0.0:8080 failed: port is already allocated"),
            "{refused}"
        );
        late.port_bindings = binding(None);
        let late_settings = bridges.connect(&late).await.unwrap();
        assert_eq!(
            address(&late_settings, "bridge"),
            Ipv4Addr::new(172, 17, 0, 2),
            "the refused start left nothing"
        );

        let active = bridges.remove("app").await.unwrap_err().to_string();
        assert!(
            active.contains("network app has active endpoints (name:\"web\" id:\""),
            "{active}"
        );
        for n in 1..=3 {
            bridges.disconnect(&id(n)).await.unwrap();
        }
        bridges.remove("app").await.unwrap();
        let gone = bridges.connect(&web).await.unwrap_err();
        assert!(matches!(gone, NetworkError::NotFound(name) if name == "app"));
    });
}

#[test]
fn a_later_daemon_takes_networks_and_endpoints_over() {
    on_a_host(async |mut host| {
        let bridges = host.open().await;
        let id_before = bridges.create(network("app")).await.unwrap();
        let mut web = host.request(1, "web", "app");
        web.port_bindings = binding(Some((8080, 8080)));
        let dead = host.request(2, "dead", "app");
        let settings = bridges.connect(&web).await.unwrap();
        let dead_settings = bridges.connect(&dead).await.unwrap();
        drop(bridges);
        netns::delete(&dead.netns).unwrap();

        let bridges = host.open().await;
        let app = bridges.get("app").await.unwrap();
        assert_eq!(app.id, id_before);
        assert_eq!(app.containers.keys().collect::<Vec<_>>(), [id(1).as_str()]);
        bridges.adopt(&id(1), &settings).await.unwrap();
        let served = serve(&web.netns, 80, "web");
        assert_eq!(
            ask(None, SocketAddrV4::new(Ipv4Addr::new(172, 17, 0, 1), 8080)),
            "web"
        );
        served.join().unwrap();
        let next = host.request(3, "next", "app");
        let next_settings = bridges.connect(&next).await.unwrap();
        assert_eq!(
            address(&next_settings, "app"),
            address(&dead_settings, "app"),
            "its address is free"
        );
        for n in [1, 3] {
            bridges.disconnect(&id(n)).await.unwrap();
        }
        assert!(bridges.get("app").await.unwrap().containers.is_empty());
    });
}

#[test]
fn a_running_container_joins_and_leaves() {
    on_a_host(async |mut host| {
        let bridges = host.open().await;
        let wish = LocalNetworkSpec {
            internal: true,
            ..network("inside")
        };
        bridges.create(wish).await.unwrap();
        bridges.create(network("app")).await.unwrap();
        let mut web = host.request(1, "web", "app");
        web.port_bindings = binding(Some((8080, 8080)));
        let inside = host.request(2, "peer", "inside");
        bridges.connect(&web).await.unwrap();
        bridges.connect(&inside).await.unwrap();
        let who = Joining {
            container: id(1),
            name: "web".to_owned(),
            hostname: String::new(),
            netns: web.netns.clone(),
        };
        let spec = EndpointSpec {
            aliases: vec!["www".to_owned()],
            ..EndpointSpec::default()
        };
        let (name, info) = bridges.join("inside", &who, spec.clone()).await.unwrap();
        assert_eq!(name, "inside");
        assert_eq!(info.dns_names, ["web", "www", id(1).short()]);
        assert_eq!(info.gateway, None);
        let twice = bridges.join("inside", &who, spec).await.unwrap_err();
        assert_eq!(
            twice.to_string(),
            "endpoint with name web already exists in network inside"
        );
        let served = serve(&web.netns, 80, "web");
        assert_eq!(
            ask(
                Some(&inside.netns),
                SocketAddrV4::new(info.ipv4.unwrap(), 80)
            ),
            "web"
        );
        served.join().unwrap();

        // An internal network is no way out for its port.
        bridges.leave("app", &id(1)).await.unwrap();
        let left = bridges.settings_of(&id(1)).await.unwrap();
        assert!(left.ports[&"80/tcp".parse().unwrap()].is_empty());
        let stranger = bridges.leave("app", &id(1)).await.unwrap_err();
        assert!(
            stranger
                .to_string()
                .ends_with("is not connected to network app")
        );
        bridges.leave("inside", &id(1)).await.unwrap();
        assert!(bridges.settings_of(&id(1)).await.is_none());
        bridges.disconnect(&id(2)).await.unwrap();
        let gone = bridges.prune(|_| true).await.unwrap();
        assert_eq!(gone.len(), 2);
    });
}
