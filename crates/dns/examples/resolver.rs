//! A resolver with many names in a network namespace, to be measured: `resolver NETNS NAMES`.
//!
//! Names are `web0.` and so on. It serves until its standard input ends.

use std::{io::Read, net::IpAddr, path::Path, sync::Arc};

use shoal_dns::{ClientScope, Dns, DnsConfig, Host, Records, Zone};

#[tokio::main(worker_threads = 1)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let (Some(netns), Some(count)) = (words.next(), words.next()) else {
        return Err("usage: resolver NETNS NAMES".into());
    };
    let host = |number: u32| Host {
        names: vec![format!("web{number}")],
        addresses: vec![IpAddr::from((0x0a00_0000 + number).to_be_bytes())],
    };
    let hosts: Vec<Host> = (0..count.parse()?).map(host).collect();
    let mut records = Records::default();
    let network = "bench".parse::<shoal_api::NetworkId>()?;
    records.insert(network.clone(), Zone::local("bench", false, vec![], &hosts));
    let dns = Dns::start(&DnsConfig::default());
    dns.publish(Arc::new(records));
    let scope = ClientScope {
        networks: vec![network],
        ..ClientScope::default()
    };
    dns.serve("bench", Path::new(&netns), 53, scope).await?;
    println!("serving");
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    dns.stop("bench").await;
    Ok(())
}
