//! How services are reached beyond what docker has flags for: chosen virtual addresses, options of published ports.

use anyhow::{Result, ensure};
use shoal_tests::{
    lab::{TestLab, get},
    wait,
};

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

#[test]
fn services_have_the_addresses_and_ports_that_they_ask_for() -> Result<()> {
    let lab = TestLab::up(2, 1)?;
    let image = "shoal-demo:latest";
    lab.on(
        "n1",
        &words("network create -d overlay --attachable --subnet 10.77.0.0/24 front"),
    )?;
    // By our own flags; any docker client says the same by labels.
    let create = format!(
        "service create --detach --name web --constraint node.hostname==n1 --network name=front,ip=10.77.0.50 -p \
         published=8080,target=80,local=true {image}"
    );
    lab.on("n1", &words(&create))?;
    lab.wait_running("web", 1)?;
    let format = "{{json .Endpoint.VirtualIPs}} {{index .Spec.Labels \"shoal.ip\"}}";
    let shown = lab.on("n1", &["service", "inspect", "--format", format, "web"])?;
    ensure!(
        shown.contains("\"10.77.0.50/24\"") && shown.contains("front=10.77.0.50"),
        "{shown}"
    );
    lab.on(
        "n2",
        &words(&format!("run -d --name asks --network front {image}")),
    )?;
    for to in ["web", "10.77.0.50"] {
        wait(&format!("{to} to answer"), || {
            let asked = lab.on("n2", &["exec", "asks", "/demo", "get", to]);
            Ok(asked.map_err(|error| format!("{error:#}")))
        })?;
    }

    // The node with the task answers, the other does not.
    wait("the published port", || {
        Ok(get(&lab.addr("n1"), 8080, "/").map_err(|error| format!("{error:#}")))
    })?;
    ensure!(get(&lab.addr("n2"), 8080, "/").is_err(), "no task is there");

    // In host mode at one address only.
    let host = format!(
        "service create --detach --name own --constraint node.hostname==n2 --label \
         shoal.publish.80.host-ip=127.0.0.1 -p published=8090,target=80,mode=host {image}"
    );
    lab.on("n1", &words(&host))?;
    lab.wait_running("own", 1)?;
    let ports = lab.on("n2", &words("ps --filter name=own --format {{.Ports}}"))?;
    ensure!(ports.contains("127.0.0.1:8090->80/tcp"), "{ports}");
    ensure!(
        get(&lab.addr("n2"), 8090, "/").is_err(),
        "only its own loopback"
    );

    for (labels, expected) in [
        (
            "shoal.ip=front=10.77.0.50",
            "address 10.77.0.50 of network front is already in use by service 'web'",
        ),
        (
            "shoal.ip=front=10.78.0.50",
            "address 10.78.0.50 is not part of network front: expected one of 10.77.0.0/24",
        ),
        (
            "shoal.publish.80.host-ip=eth0",
            "label 'shoal.publish.80.host-ip' has the invalid value 'eth0': expected ADDRESS",
        ),
        (
            "shoal.publish.81.local=true",
            "label 'shoal.publish.81.local' is of a port that the service does not publish: expected one of 80/tcp",
        ),
        (
            "shoal.publish.80.host-ip=0.0.0.0",
            "label 'shoal.publish.80.host-ip': 0.0.0.0 stands for all addresses: expected an address of a node",
        ),
        (
            "shoal.publish.80.host-ip=fe80::1",
            "label 'shoal.publish.80.host-ip': fe80::1 holds on one link only: expected an address of a node",
        ),
        (
            "shoal.publish.80.proxy-protocol=2",
            "label 'shoal.publish.80.proxy-protocol' has the invalid value '2': expected v2",
        ),
        ("shoal.publish.80.loud=true", "shoal.publish.80.loud"),
        (
            "shoal.ip=back=10.77.0.51",
            "label 'shoal.ip': the service is not in a network \"back\": expected one of front",
        ),
        (
            "shoal.ip=front=10.77.0.1",
            "address 10.77.0.1 of network front is already in use by the network's gateway",
        ),
        (
            "shoal.ip=front=10.77.0.255",
            "address 10.77.0.255 of network front is not one of a host",
        ),
        (
            "shoal.affinity=cookie",
            "label 'shoal.affinity' has the invalid value 'cookie': expected none|source",
        ),
    ] {
        let create = format!(
            "service create --detach --name bad --network front -p 8100:80 --label {labels} {image}"
        );
        let (_, said) = lab.refused("n1", &words(&create))?;
        ensure!(said.contains(expected), "{said}");
        ensure!(!said.contains("ingress"), "nobody has named it: {said}");
    }
    // What excludes each other, and ports that are taken or make no sense.
    for (options, expected) in [
        (
            "-p 5300:80/udp --label shoal.publish.80/udp.proxy-protocol=v2",
            "only a tcp port has connections that can begin with a header",
        ),
        (
            "-p published=8100,target=80,mode=host --label shoal.publish.80.proxy-protocol=v2",
            "a port published in host mode tells the client's address by itself: expected mode ingress",
        ),
        (
            "-p published=8100,target=80,mode=host --label shoal.publish.80.local=true",
            "a port published in host mode is answered by the task's node alone: expected mode ingress",
        ),
        (
            "-p 8100:80 --label shoal.publish.80.proxy-protocol=v2 --label shoal.affinity=source",
            "cannot be used with the label 'shoal.affinity=source': connections to tasks are the node's own",
        ),
        (
            "-p 8100:80 --endpoint-mode dnsrr",
            "port published with ingress mode can't be used with dnsrr mode",
        ),
        (
            "-p 8080:80",
            "port '8080' is already in use by service 'web'",
        ),
        (
            "-p 8100:80 -p 8100:81",
            "duplicate published ports provided",
        ),
        ("-p 70000:80", "70000"),
    ] {
        let create = format!("service create --detach --name bad {options} {image}");
        let (_, said) = lab.refused("n1", &words(&create))?;
        ensure!(said.contains(expected), "{options}: {said}");
    }
    let left = lab.on("n1", &words("service ls --format {{.Name}}"))?;
    ensure!(!left.contains("bad"), "nothing of them is left: {left}");
    Ok(())
}
