//! How long the plane takes to bring services into the kernel, and what their number costs a connection. Needs root.
//!
//! One network with a container on each of two hosts; all other endpoints are said to be on a third node that is not there,
//! since nothing is sent to them. Prints figures and whether the goals are met.
#![allow(clippy::print_stdout, reason = "what it prints is its purpose")]
#![allow(unreachable_pub, reason = "an example is a crate without a surface")]

#[path = "../tests/lab/mod.rs"]
mod lab;

use std::{
    io::Read,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use lab::{Lab, Traffic, id, view};
use shoal_api::network::{Endpoint, NetworkView, Peer, ServiceSlice, Subnet};

const SERVICES: [u32; 4] = [10, 100, 1_000, 10_000];
const ENDPOINTS_PER_SERVICE: u32 = 10;
/// Changes that are measured one by one.
const CHANGES: usize = 300;
const ROUNDS: usize = 15;
const CONNECTIONS: u32 = 300;

const COLD_MAX: Duration = Duration::from_secs(3);
const CHANGE_MAX: Duration = Duration::from_millis(5);
const CONNECTIONS_OF_DIRECT_MIN: f64 = 0.85;
const FLAT_MIN: f64 = 0.9;

const VIPS: u32 = 0x0a83_0000;
const TASKS: u32 = 0x0a80_0010;

fn vip(number: u32) -> Ipv4Addr {
    (VIPS + number).into()
}

/// The network `n1` with so many services; the first one's only backend is t2.
fn grown(services: u32) -> NetworkView {
    let mut view = view();
    let peer = Peer {
        underlay: [192, 0, 2, 77].into(),
        hostname: "h3".into(),
        tunnel_keys: Vec::new(),
    };
    view.peers.insert(id("h3"), peer);
    view.networks.retain(|network, _| network.as_str() == "n1");
    let network = view.networks.get_mut("n1").expect("the lab has it");
    network.subnets = vec![Subnet {
        range: "10.128.0.0/14".parse().expect("a subnet"),
        gateway: [10, 128, 0, 1].into(),
    }];
    let endpoint = |node: &str, service: u32, address: u32| Endpoint {
        node: id(node),
        service: Some(id(&format!("s{service}"))),
        addresses: vec![
            format!("{}/14", Ipv4Addr::from(address))
                .parse()
                .expect("an address"),
        ],
        names: vec![],
        serving: true,
    };
    network.endpoints.clear();
    let mut client = endpoint("h1", 0, TASKS);
    client.service = None;
    network.endpoints.insert(id("t1"), Arc::new(client));
    network
        .endpoints
        .insert(id("t2"), Arc::new(endpoint("h2", 0, TASKS + 1)));
    for service in 1..services {
        for number in 0..ENDPOINTS_PER_SERVICE {
            let at = service * ENDPOINTS_PER_SERVICE + number;
            let endpoint = endpoint("h3", service, TASKS + at);
            network
                .endpoints
                .insert(id(&format!("f{at}")), Arc::new(endpoint));
        }
    }
    let service = |number: u32| ServiceSlice {
        name: format!("s{number}"),
        vips: vec![vip(number).into()],
        aliases: vec![],
        ports: vec![],
        ..ServiceSlice::default()
    };
    let all = (0..services).map(|number| (id(&format!("s{number}")), Arc::new(service(number))));
    network.services = all.collect();
    view
}

#[tokio::main]
async fn main() {
    let mut labs = Vec::new();
    for services in SERVICES {
        let mut lab = match lab::lab().await {
            Ok(lab) => lab,
            Err(missing) => return println!("skipped, because {missing}"),
        };
        lab.container("t1", 0);
        lab.container("t2", 1);
        let cold = measure_programming(&lab, services).await;
        if services == SERVICES[3] {
            goal("all at once", cold, COLD_MAX);
        }
        labs.push(lab);
    }
    measure_connections(&labs);
    for lab in &labs {
        lab.teardown().await;
    }
    drop(labs);
    if MISSED.load(Ordering::Relaxed) {
        std::process::exit(1);
    }
}

/// Whether a goal was missed.
static MISSED: AtomicBool = AtomicBool::new(false);

fn verdict(is_met: bool) -> &'static str {
    if is_met {
        "met"
    } else {
        MISSED.store(true, Ordering::Relaxed);
        "NOT met"
    }
}

fn goal(what: &str, took: Duration, most: Duration) {
    let verdict = verdict(took <= most);
    println!("  {what}: {took:.1?}, goal at most {most:?}: {verdict}");
}

/// Prints how long everything, and then one change after the other, takes; returns the first.
async fn measure_programming(lab: &Lab, services: u32) -> Duration {
    let mut now = Arc::new(grown(services));
    let (began, before) = (Instant::now(), processor());
    lab.bring(0, &now).await;
    let (cold, cold_spent) = (began.elapsed(), processor().saturating_sub(before));
    lab.bring(1, &now).await;
    let (mut times, mut spent) = (Vec::new(), Duration::ZERO);
    for change in 0..CHANGES {
        let mut next = NetworkView::clone(&now);
        next.version += 1;
        let network = next.networks.get_mut("n1").expect("the lab has it");
        // Spread over all services but the first, whose backend is real.
        let places = (services - 1) * ENDPOINTS_PER_SERVICE;
        let at = (change as u32).wrapping_mul(0x9e37_79b1) % places + ENDPOINTS_PER_SERVICE;
        let endpoint = network
            .endpoints
            .get_mut(&id::<shoal_api::TaskId>(&format!("f{at}")));
        let endpoint = Arc::make_mut(endpoint.expect("every place is taken"));
        endpoint.serving = !endpoint.serving;
        let next = Arc::new(next);
        let (began, before) = (Instant::now(), processor());
        lab.bring(0, &next).await;
        spent += processor().saturating_sub(before);
        times.push(began.elapsed());
        now = next;
    }
    times.sort();
    let p99 = times[CHANGES * 99 / 100];
    println!(
        "{services} services × {ENDPOINTS_PER_SERVICE}: all at once {cold:.1?} ({cold_spent:.1?} of processor); one endpoint: median \
         {:.2?}, p99 {p99:.2?} ({:.2?} of processor on average)",
        times[CHANGES / 2],
        spent / CHANGES as u32,
    );
    if services == SERVICES[3] {
        goal("one change, p99", p99, CHANGE_MAX);
    }
    cold
}

/// Prints connections per second by the virtual address, with few and with many services, and directly.
fn measure_connections(labs: &[Lab]) {
    for lab in labs {
        lab.serve("t2", "0.0.0.0:80");
    }
    let (few, many) = (&labs[0], &labs[labs.len() - 1]);
    let direct: SocketAddr = (Ipv4Addr::from(TASKS + 1), 80).into();
    let by_vip: SocketAddr = (vip(0), 80).into();
    let ways = [(many, by_vip), (few, by_vip), (many, direct)];
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        let mut rates = [0.0; 3];
        for step in 0..ways.len() {
            let at = (round + step) % ways.len();
            let (lab, to) = ways[at];
            rates[at] = lab.within("t1", move || connections(to));
        }
        rounds.push(rates);
    }
    let median = |of: &dyn Fn(&[f64; 3]) -> f64| {
        let mut all: Vec<f64> = rounds.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all[ROUNDS / 2]
    };
    println!(
        "connections per second: {:.0} with {} services, {:.0} with {}, {:.0} direct",
        median(&|rates| rates[0]),
        SERVICES[3],
        median(&|rates| rates[1]),
        SERVICES[0],
        median(&|rates| rates[2]),
    );
    for (what, value, least) in [
        (
            "by virtual address of direct",
            median(&|r| r[0] / r[2]),
            CONNECTIONS_OF_DIRECT_MIN,
        ),
        (
            "with many services of with few",
            median(&|r| r[0] / r[1]),
            FLAT_MIN,
        ),
    ] {
        let verdict = verdict(value >= least);
        println!("  {what}: {value:.2}, goal at least {least}: {verdict}");
    }
}

/// Processor time of this process, the kernel's work for it included.
fn processor() -> Duration {
    let threads = std::fs::read_dir("/proc/self/task").expect("every process has threads");
    let of_thread = |thread: std::fs::DirEntry| {
        // A thread that ended meanwhile has nothing more to tell.
        let told = std::fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        told.split(' ')
            .next()
            .and_then(|text| text.parse().ok())
            .unwrap_or(0)
    };
    Duration::from_nanos(threads.flatten().map(of_thread).sum())
}

fn connections(to: SocketAddr) -> f64 {
    let began = Instant::now();
    for _ in 0..CONNECTIONS {
        let mut connection = TcpStream::connect(to).expect("the task listens");
        connection
            .read_to_end(&mut Vec::new())
            .expect("the task answers");
    }
    f64::from(CONNECTIONS) / began.elapsed().as_secs_f64()
}
