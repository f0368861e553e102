//! Bad input on a real cluster: a clear error in docker's form, and nothing left behind.

use std::fs;

use anyhow::Result;
use shoal_tests::lab::TestLab;

#[test]
fn bad_input_is_refused_by_name_and_leaves_nothing() -> Result<()> {
    let lab = TestLab::up(2, 0)?;

    // Without a cluster.
    let (_, said) = lab.refused("n1", &["service", "ls"])?;
    assert!(
        said.contains("This node is not a swarm manager. Use \"docker swarm init\""),
        "{said}"
    );

    lab.on(
        "n1",
        &["swarm", "init", "--advertise-addr", &lab.addr("n1")],
    )?;
    let manager = format!("{}:2377", lab.addr("n1"));
    let token = lab.on("n1", &["swarm", "join-token", "-q", "worker"])?;
    let token = token.trim();

    // Tokens: mangled, of another cluster, with a wrong secret.
    let (_, said) = lab.refused(
        "n2",
        &["swarm", "join", "--token", "SWMTKN-1-nonsense", &manager],
    )?;
    assert!(said.contains("invalid join token"), "{said}");
    let (head, secret) = token.rsplit_once('-').unwrap();
    let (_, said) = lab.refused(
        "n2",
        &[
            "swarm",
            "join",
            "--token",
            &format!("{head}-{}", "0".repeat(25)),
            &manager,
        ],
    )?;
    assert!(said.contains("token"), "{said}");
    let foreign = format!("SWMTKN-1-{}-{secret}", "1".repeat(50));
    let (_, said) = lab.refused("n2", &["swarm", "join", "--token", &foreign, &manager])?;
    assert!(
        said.contains("root certificate does not match the join token"),
        "{said}"
    );
    assert!(
        lab.on("n2", &["info", "--format", "{{.Swarm.LocalNodeState}}"])?
            .contains("inactive")
    );
    lab.on("n2", &["swarm", "join", "--token", token, &manager])?;

    // An authority of somebody else's: understood, and refused with what there is instead.
    let authority = "protocol=cfssl,url=https://ca.example";
    let (_, said) = lab.refused("n1", &["swarm", "update", "--external-ca", authority])?;
    assert!(
        said.contains("managers sign certificates themselves"),
        "{said}"
    );

    // A worker does not answer for the cluster.
    let (_, said) = lab.refused("n2", &["service", "ls"])?;
    assert!(
        said.contains("Worker nodes can't be used to view or modify cluster state"),
        "{said}"
    );

    // Images.
    let (code, said) = lab.refused("n1", &["run", "--rm", "127.0.0.1:1/nothing:1", "true"])?;
    assert_eq!(code, 125, "{said}");

    // A port that another service has.
    let image = "shoal-demo:latest";
    lab.on(
        "n1",
        &[
            "service", "create", "--detach", "--name", "first", "-p", "8081:80", image,
        ],
    )?;
    let (_, said) = lab.refused(
        "n1",
        &[
            "service", "create", "--detach", "--name", "second", "-p", "8081:80", image,
        ],
    )?;
    assert!(
        said.contains("port '8081' is already in use by service 'first'"),
        "{said}"
    );
    let (_, said) = lab.refused(
        "n1",
        &["service", "create", "--detach", "--name", "first", image],
    )?;
    assert!(
        said.contains("name conflicts with an existing object"),
        "{said}"
    );

    // Subnets that overlap.
    lab.on(
        "n1",
        &[
            "network",
            "create",
            "-d",
            "overlay",
            "--subnet",
            "10.77.0.0/24",
            "one",
        ],
    )?;
    let (_, said) = lab.refused(
        "n1",
        &[
            "network",
            "create",
            "-d",
            "overlay",
            "--subnet",
            "10.77.0.128/25",
            "two",
        ],
    )?;
    assert!(said.contains("overlap"), "{said}");

    // No free address: the task says so.
    lab.on(
        "n1",
        &[
            "network",
            "create",
            "-d",
            "overlay",
            "--subnet",
            "10.78.0.0/29",
            "small",
        ],
    )?;
    let words = [
        "service",
        "create",
        "--detach",
        "--name",
        "crowd",
        "--network",
        "small",
        "--replicas",
        "9",
    ];
    lab.on("n1", &[words.as_slice(), &[image, "idle"]].concat())?;
    shoal_tests::wait("a task that says that its subnet is full", || {
        let tasks = lab.on("n1", &["service", "ps", "--no-trunc", "crowd"])?;
        let said = tasks.contains("no address left in 10.78.0.0/29");
        Ok(if said { Ok(()) } else { Err(tasks) })
    })?;

    // A compose file with a key that does not exist: named with its line, nothing made.
    let file = tempfile::Builder::new().suffix(".yml").tempfile()?;
    fs::write(
        file.path(),
        "services:\n  web:\n    image: shoal-demo:latest\n    replicsa: 3\n",
    )?;
    let (_, said) = lab.refused(
        "n1",
        &[
            "stack",
            "deploy",
            "-c",
            &file.path().to_string_lossy(),
            "typo",
        ],
    )?;
    assert!(said.contains("replicsa") && said.contains('4'), "{said}");
    assert!(!lab.on("n1", &["network", "ls"])?.contains("typo"));

    let services = lab.on("n1", &["service", "ls", "--format", "{{.Name}}"])?;
    assert_eq!(
        services.lines().collect::<Vec<_>>(),
        ["crowd", "first"],
        "{services}"
    );
    Ok(())
}

/// What must be refused, by its words after `service create --detach --no-resolve-image --name bad`, and docker's complaint.
const SERVICES: &[(&[&str], &str)] = &[
    (
        &[
            "--update-order",
            "start-first",
            "--publish",
            "mode=host,target=80,published=8090",
            IMAGE,
        ],
        "a port published in host mode can't be used with the update order start-first by 1 replicas on 1 nodes",
    ),
    (
        &["--constraint", "node.role=manager", IMAGE],
        "rpc error: code = InvalidArgument desc = constraint expected one operator from ==, !=",
    ),
    (
        &["--constraint", "node.rolle==manager", IMAGE],
        "key 'node.rolle' is unknown",
    ),
    (
        &["--constraint", "node.role==manger", IMAGE],
        "value 'manger' of node.role is invalid: expected manager or worker",
    ),
    (
        &["--constraint", "node.ip==10.0.0.300", IMAGE],
        "value '10.0.0.300' of node.ip is invalid: expected an address or a range",
    ),
    (
        &["--placement-pref", "spread=node.role", IMAGE],
        "invalid placement preference 'node.role'",
    ),
    (&["--secret", "nothing", IMAGE], "secret not found: nothing"),
    (&["--config", "nothing", IMAGE], "config not found: nothing"),
    (
        &["--config", "colour", IMAGE],
        "expanding config colour failed: template: can't evaluate field Colour",
    ),
    (
        &["--secret", "colour", IMAGE],
        "expanding secret colour failed: template: can't evaluate field Colour",
    ),
    (
        &["--network", "nothing", IMAGE],
        "network nothing not found",
    ),
    (
        &["--hostname", "{{.Task.Colour}}", IMAGE],
        "expanding hostname failed: template: can't evaluate field Colour",
    ),
    (
        &["--env", "A={{.Nothing}}", IMAGE],
        "can't evaluate field Nothing",
    ),
    (
        &[
            "--mount",
            "type=volume,source=a{{.Node.Size}},target=/a",
            IMAGE,
        ],
        "can't evaluate field Size",
    ),
    (
        &[
            "--mount",
            "type=volume,source=a,target=/d",
            "--mount",
            "type=tmpfs,target=/d",
            IMAGE,
        ],
        "rpc error: code = InvalidArgument desc = ContainerSpec: duplicate mount point: /d",
    ),
    (
        &[
            "--secret",
            "source=one,target=x",
            "--secret",
            "source=two,target=x",
            IMAGE,
        ],
        "have a conflicting target: 'x'",
    ),
    (
        &[
            "--config",
            "source=one,target=/x",
            "--config",
            "source=two,target=/x",
            IMAGE,
        ],
        "have a conflicting target: '/x'",
    ),
    (
        &[
            "--config",
            "source=one,target=/run/secrets/x",
            "--secret",
            "source=two,target=x",
            IMAGE,
        ],
        "ContainerSpec: duplicate mount point: /run/secrets/x",
    ),
    (
        &[
            "--config",
            "source=one,target=/x",
            "--mount",
            "type=tmpfs,target=/x",
            IMAGE,
        ],
        "ContainerSpec: duplicate mount point: /x",
    ),
    (
        &["-p", "8090:80", "-p", "8090:81", IMAGE],
        "EndpointSpec: duplicate published ports provided",
    ),
    (
        &["--endpoint-mode", "dnsrr", "-p", "8090:80", IMAGE],
        "EndpointSpec: port published with ingress mode can't be used with dnsrr mode",
    ),
    (
        &["--limit-cpu", "0.0001", IMAGE],
        "invalid cpu value 0.0001: Must be at least 0.001",
    ),
    (
        &["--limit-memory", "1m", IMAGE],
        "invalid memory value 1048576: Must be at least 4MiB",
    ),
    (
        &["--mode", "global-job", "--update-parallelism", "2", IMAGE],
        "job-mode services cannot have update options set",
    ),
    (
        &["--label", "shoal.privilege=true", IMAGE],
        "label 'shoal.privilege' is unknown",
    ),
    (
        &["--label", "shoal.depends-on=bad", IMAGE],
        "dependency cycle detected: bad -> bad",
    ),
    (&["not/A/Name:x"], "is not a valid repository/tag"),
];

const IMAGE: &str = "shoal-demo:latest";

/// What must be refused of the service `good` that runs, by its words after `service update`, and docker's complaint.
const UPDATES: &[(&[&str], &str)] = &[
    (
        &[
            "--update-order",
            "start-first",
            "--publish-add",
            "mode=host,target=80,published=8090",
        ],
        "a port published in host mode can't be used with the update order start-first by 1 replicas on 1 nodes",
    ),
    (
        &["--constraint-add", "node.rolle==a"],
        "key 'node.rolle' is unknown",
    ),
    (
        &["--constraint-add", "node.role==manger"],
        "value 'manger' of node.role is invalid",
    ),
    (&["--secret-add", "nothing"], "secret not found: nothing"),
    (
        &["--env-add", "A={{.Nothing}}"],
        "can't evaluate field Nothing",
    ),
    (
        &["--config-add", "colour"],
        "expanding config colour failed: template: can't evaluate field Colour",
    ),
    (
        &[
            "--config-add",
            "source=one,target=/x",
            "--mount-add",
            "type=tmpfs,target=/x",
        ],
        "ContainerSpec: duplicate mount point: /x",
    ),
    (
        &[
            "--secret-add",
            "source=one,target=x",
            "--secret-add",
            "source=two,target=x",
        ],
        "have a conflicting target: 'x'",
    ),
    (
        &["--label-add", "shoal.depends-on=good"],
        "dependency cycle detected: good -> good",
    ),
    (
        &["--label-add", "shoal.security-opt=no-new-privilege"],
        "label 'shoal.security-opt' has the invalid value 'no-new-privilege'",
    ),
    (
        &["--image", "not/A/Name:x"],
        "is not a valid repository/tag",
    ),
    (&["--limit-memory", "1m"], "Must be at least 4MiB"),
];

/// Compose files that must be refused, and the complaint; the first two are no YAML that anybody may guess at.
const FILES: &[(&str, &str)] = &[
    ("services:\n\tweb: {image: x}\n", ":2: "),
    ("services:\n  web:\n    image: x\n    image: y\n", ":4: "),
    ("services:\n  web: {image: x}\n  web: {image: y}\n", ":3: "),
    (
        "services: {web: {image: x, secrets: [nothing]}}\n",
        "nothing",
    ),
    (
        "services: {web: {image: x, networks: [nothing]}}\n",
        "nothing",
    ),
    (
        "services: {web: {image: x, volumes: ['a:/d', 'b:/d']}}\nvolumes: {a: {}, b: {}}\n",
        "/d",
    ),
    (
        "services:\n  a: {image: x, depends_on: [b]}\n  b: {image: x, depends_on: [a]}\n",
        "makes services wait for each other: a → b → a",
    ),
    ("services: {a: {image: x, depends_on: [b]}}\n", "b"),
    (
        "services: {web: {image: '${NOTHING:?is not set}'}}\n",
        "is not set",
    ),
    (
        "services: {web: {image: x, mem_limit: lots}}\n",
        "mem_limit",
    ),
    (
        "services: {web: {image: x, deploy: {mode: global, replicas: 2}}}\n",
        "replicas",
    ),
    (
        "services: {good: {image: x}, web: {image: x, deploy: {placement: {constraints: ['node.rolle==manager']}}}}\n",
        "key 'node.rolle' is unknown",
    ),
    (
        "services: {good: {image: x}, web: {image: x, hostname: '{{.Node.Colour}}'}}\n",
        "can't evaluate field Colour",
    ),
    (
        "services: {good: {image: x}, web: {image: x, configs: [c]}}\n\
         configs: {c: {template_driver: golang, content: 'a {{.Task.Colour}}'}}\n",
        "service bad_web is refused: expanding config bad_c failed: template: can't evaluate field Colour",
    ),
    (
        "services: {web: {image: x, configs: [c]}}\n\
         configs: {c: {template_driver: golang, content: '{{secret \"key\"}}'}}\n",
        "secret target key not found",
    ),
    (
        "services: {web: {image: x, configs: [c]}}\n\
         configs: {c: {template_driver: golang, content: '{{.Task'}}\n",
        "template parsing error: unclosed action",
    ),
];

#[test]
fn what_cannot_be_is_refused_before_anything_changes() -> Result<()> {
    let lab = TestLab::up(1, 1)?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("data");
    fs::write(&path, "x")?;
    for name in ["one", "two"] {
        for kind in ["secret", "config"] {
            lab.on("n1", &[kind, "create", name, &path.to_string_lossy()])?;
        }
    }
    // Templates that name what no task has; one that is none is refused at once.
    let templated = |kind: &'static str, text: &str| -> Result<[String; 6]> {
        fs::write(&path, text)?;
        let path = path.to_string_lossy();
        let words = [
            kind,
            "create",
            "--template-driver",
            "golang",
            "colour",
            &*path,
        ];
        Ok(words.map(str::to_owned))
    };
    for kind in ["secret", "config"] {
        let words = templated(kind, "{{.Task.Slot")?;
        let (_, said) = lab.refused("n1", &words.each_ref().map(String::as_str))?;
        let problem = format!("expanding {kind} colour failed: template parsing error: unclosed");
        assert!(said.contains(&problem), "{said}");
        let words = templated(kind, "{{.Task.Colour}}")?;
        lab.on("n1", &words.each_ref().map(String::as_str))?;
    }
    // One that runs, to be updated: what is refused at its creation is refused then as well, and leaves it alone.
    let create = [
        "service",
        "create",
        "--detach",
        "--no-resolve-image",
        "--name",
    ];
    lab.on("n1", &[&create[..], &["good", IMAGE, "idle"]].concat())?;
    let good = || lab.on("n1", &["service", "inspect", "good"]);
    lab.wait_running("good", 1)?;
    let before = good()?;
    let everything = || -> Result<String> {
        let mut all = String::new();
        for kind in ["service", "secret", "config", "network", "volume"] {
            all += &lab.on("n1", &[kind, "ls", "-q"])?;
        }
        Ok(all)
    };
    let there = everything()?;
    for (words, complaint) in SERVICES {
        let (code, said) = lab.refused("n1", &[&create[..], &["bad"], words].concat())?;
        assert!(code == 1 && said.contains(complaint), "{words:?}: {said}");
    }
    for (words, complaint) in UPDATES {
        let update = ["service", "update", "--detach", "--no-resolve-image"];
        let (_, said) = lab.refused("n1", &[&update[..], words, &["good"]].concat())?;
        assert!(said.contains(complaint), "{words:?}: {said}");
    }
    for (text, complaint) in FILES {
        let file = folder.path().join("stack.yml");
        fs::write(&file, text)?;
        let file = file.to_string_lossy();
        for verb in ["deploy", "plan"] {
            let words = [
                "stack",
                verb,
                "--resolve-image",
                "never",
                "-c",
                &file,
                "bad",
            ];
            let (_, said) = lab.refused("n1", &words)?;
            assert!(said.contains(complaint), "{text}: {said}");
        }
    }
    // What only managers can tell, and only when it is made: what was made before it is gone again.
    let large = "x".repeat(1_024_000);
    for (text, complaint) in [
        (
            // The range of ingress.
            "services: {web: {image: x, networks: [a, b]}}\n\
             networks: {a: {}, b: {ipam: {config: [{subnet: 10.0.0.0/25}]}}}\n"
                .to_owned(),
            "overlap",
        ),
        (
            format!(
                "services: {{web: {{image: x, configs: [a, b]}}}}\n\
                 configs: {{a: {{content: y}}, b: {{content: {large}}}}}\n"
            ),
            "config data must be larger than 0 and less than 1024000 bytes",
        ),
    ] {
        let file = folder.path().join("stack.yml");
        fs::write(&file, text)?;
        let file = file.to_string_lossy();
        let deploy = ["stack", "deploy", "--resolve-image", "never", "-c"];
        let (_, said) = lab.refused("n1", &[&deploy[..], &[&file, "bad"]].concat())?;
        assert!(said.contains(complaint), "{said}");
        assert_eq!(everything()?, there, "{complaint}");
    }
    assert_eq!(everything()?, there);
    assert_eq!(good()?, before);
    Ok(())
}
