//! Network namespaces and other things that containers may share.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shoal_api::container::{ContainerId, ContainerStatus, NetworkMode};
use shoal_engine::io::network::{ContainerNetwork, NetworkError, NetworkReady, NetworkRequest};

use crate::host::{Host, IMAGE, busybox, sh};

/// Makes namespaces with nothing in them, and remembers where.
#[derive(Default)]
struct Bare(Mutex<Vec<PathBuf>>);

#[async_trait]
impl ContainerNetwork for Bare {
    async fn open(&self, request: &NetworkRequest) -> Result<(), NetworkError> {
        std::fs::write(&request.netns, "").expect("namespace");
        let made = Command::new("unshare")
            .arg(format!("--net={}", request.netns.display()))
            .arg("true")
            .status();
        assert!(made.expect("unshare").success());
        self.0.lock().expect("list").push(request.netns.clone());
        Ok(())
    }

    async fn setup(&self, request: &NetworkRequest) -> Result<NetworkReady, NetworkError> {
        if request.mode == NetworkMode::Network("broken".into()) {
            return Err(NetworkError::Failed("no address left".into()));
        }
        if request.mode == NetworkMode::Network("endless".into()) {
            std::future::pending::<()>().await;
        }
        let address: IpAddr = "10.9.8.7".parse().expect("address");
        Ok(NetworkReady {
            netns: request.netns.clone(),
            nameservers: vec!["127.0.0.11".parse().expect("address")],
            options: vec!["ndots:0".into()],
            hosts: vec![(address, vec![request.hostname.clone()])],
            ..NetworkReady::default()
        })
    }

    async fn teardown(&self, _container: &ContainerId, _netns: &Path) {
        for path in std::mem::take(&mut *self.0.lock().expect("list")) {
            assert!(
                Command::new("umount")
                    .arg(&path)
                    .status()
                    .expect("umount")
                    .success()
            );
            std::fs::remove_file(path).expect("namespace");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_port_makes_the_namespace_and_fills_the_files() {
    let network = Arc::new(Bare::default());
    let host = Host::with_network(network.clone()).await;
    host.import(IMAGE, busybox).await;
    let mut spec = sh(
        "cat /etc/resolv.conf; grep 10.9.8.7 /etc/hosts; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; readlink /proc/self/ns/net; ip -o link | wc -l",
    );
    spec.hostname = Some("web".into());
    spec.host.network_mode = NetworkMode::Default;
    spec.host.extra_hosts = vec!["db:10.9.8.7".into()];
    // Its resolver has been told of these, and says what the file says of them.
    spec.host.dns_search = vec!["example.org".into()];
    spec.host.dns_options = vec!["rotate".into()];
    let (code, said) = host.run(spec).await;
    let lines: Vec<&str> = said.lines().collect();
    let start = [
        "nameserver 127.0.0.11",
        "options ndots:0",
        "10.9.8.7\tweb",
        "10.9.8.7\tdb",
        "0",
    ];
    assert_eq!((code, &lines[..5]), (0, start.as_slice()), "{said}");
    let ours = std::fs::read_link("/proc/self/ns/net").expect("namespace");
    assert_ne!(lines[5], ours.display().to_string());
    assert!(network.0.lock().expect("list").is_empty(), "torn down");

    let mut spec = sh("true");
    spec.host.network_mode = NetworkMode::Network("broken".into());
    let id = host.engine.create(spec).await.expect("create");
    let err = host
        .engine
        .start(id.as_str())
        .await
        .expect_err("no network");
    assert_eq!(
        err.to_string(),
        "failed to set up container networking: no address left"
    );
    let state = host
        .engine
        .inspect(id.as_str(), false)
        .await
        .expect("inspect")
        .state;
    assert_eq!(
        (state.status, state.exit_code),
        (ContainerStatus::Created, 128)
    );
}

/// A process, if it has not ended: its number and its parent's.
fn alive(pid: i32) -> Option<(i32, i32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rest = stat.rsplit_once(") ")?.1;
    let parent = rest.split(' ').nth(1)?.parse().ok()?;
    (!rest.starts_with('Z')).then_some((pid, parent))
}

/// The shim that stands in `run_dir`, followed by all that descend from it.
fn family(run_dir: &Path) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").expect("processes").flatten();
    let all: Vec<(i32, i32)> = entries
        .filter_map(|entry| alive(entry.file_name().to_str()?.parse().ok()?))
        .collect();
    let stands = |pid: i32| {
        let at = std::fs::read_link(format!("/proc/{pid}/cwd"));
        at.is_ok_and(|at| at == run_dir)
    };
    let is_shim = |&(pid, parent): &(i32, i32)| stands(pid) && !stands(parent);
    let mut found: Vec<i32> = all
        .iter()
        .filter(|one| is_shim(one))
        .map(|one| one.0)
        .collect();
    let mut at = 0;
    while let Some(&parent) = found.get(at) {
        found.extend(all.iter().filter(|one| one.1 == parent).map(|one| one.0));
        at += 1;
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_goes_on_building_for_a_daemon_that_went() {
    for stopped in [false, true] {
        let network = Arc::new(Bare::default());
        let mut host = Host::with_network(network.clone()).await;
        host.import(IMAGE, busybox).await;
        let mut spec = sh("true");
        spec.host.network_mode = NetworkMode::Network("endless".into());
        let id = host.engine.create(spec).await.expect("create");
        let run_dir = host.root.join("run/c").join(id.as_str());
        let (engine, name) = (host.engine.clone(), id.clone());
        let starting = tokio::spawn(async move { engine.start(name.as_str()).await });
        // The shim, and what waits to become the container's process.
        let mut found = family(&run_dir);
        while found.len() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            found = family(&run_dir);
        }
        if stopped {
            kill(Pid::from_raw(found[1]), Signal::SIGSTOP).expect("the builder");
            found = family(&run_dir);
        }
        // Closes the connection, as the end of a daemon does.
        starting.abort();
        for _ in 0..1000 {
            if found.iter().all(|&pid| alive(pid).is_none()) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let left: Vec<_> = found.into_iter().filter_map(alive).collect();
        for (pid, _) in &left {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        assert_eq!(
            (left, family(&run_dir)),
            (vec![], vec![]),
            "stopped: {stopped}"
        );
        // What is no process is for the next daemon to remove.
        let netns = host.root.join("run/netns").join(id.as_str());
        network.teardown(&id, &netns).await;
        host.reopen().await;
        host.cgroups_gone().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_can_be_shared() {
    let host = Host::new().await;
    let first = host.start(sh("echo up; sleep 1000")).await;
    host.wait_for_output(&first, "up").await;
    let (_, theirs) = host.exec(&first, &["readlink", "/proc/self/ns/net"]).await;
    let mut spec = sh("readlink /proc/self/ns/net; ip -o link | grep -c LOOPBACK,UP");
    spec.host.network_mode = NetworkMode::Container(first.short().into());
    assert_eq!(host.run(spec).await, (0, format!("{theirs}1\n")));

    let mut spec = sh(
        "readlink /proc/self/ns/net; readlink /proc/self/ns/uts; readlink /proc/self/ns/pid; hostname",
    );
    spec.host.network_mode = NetworkMode::Host;
    spec.host.uts_mode = Some("host".into());
    spec.host.pid_mode = Some("host".into());
    let ours = |kind: &str| {
        std::fs::read_link(format!("/proc/self/ns/{kind}"))
            .expect("namespace")
            .display()
            .to_string()
    };
    let name = nix::unistd::gethostname()
        .expect("name")
        .into_string()
        .expect("text");
    let expected = format!(
        "{}\n{}\n{}\n{name}\n",
        ours("net"),
        ours("uts"),
        ours("pid")
    );
    assert_eq!(host.run(spec).await, (0, expected));

    // What a container leaves running in the host's process namespace ends with it.
    let mut spec = sh("sleep 1000 & exit 0");
    spec.host.pid_mode = Some("host".into());
    assert_eq!(host.run(spec).await.0, 0);
    host.engine
        .remove(first.as_str(), true, true)
        .await
        .expect("remove");
    host.cgroups_gone().await;
}
