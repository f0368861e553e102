//! Stacks: planned, deployed and waited for, pruned, removed; what is in them reaches the tasks.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};

use anyhow::{Context, Result};
use shoal_tests::{
    busybox::{self, BUSYBOX},
    lab::{TestLab, program},
    wait,
};

use crate::services::moment;

/// Writes a compose file and returns its path.
pub(crate) fn write(folder: &Path, name: &str, text: &str) -> Result<String> {
    let path = folder.join(name);
    fs::write(&path, text.replace("BUSYBOX", BUSYBOX))?;
    Ok(path.to_string_lossy().into_owned())
}

const SHOP: &str = "
x-common: &common
  image: ${IMAGE:-BUSYBOX}
  stop_grace_period: 1s
services:
  web:
    <<: *common
    command: sleep 100000
    hostname: '{{.Service.Name}}-{{.Task.Slot}}'
    environment: {LEVEL: info, NODE: '{{.Node.Hostname}}'}
    secrets: [{source: key, target: key, uid: '1000', gid: '2000', mode: 0440}]
    configs: [{source: site, target: /etc/site.conf}]
    shm_size: 32m
    tmpfs: '/work:uid=1000,gid=2000,mode=0700,size=1m'
    labels: {a: b}
    deploy: {replicas: 2, labels: {tier: front}}
    depends_on: {db: {condition: service_healthy}, migrate: {condition: service_completed_successfully}}
  db:
    <<: *common
    command: sh -c 'sleep 1; touch /tmp/ready; sleep 100000'
    healthcheck: {test: [CMD, test, -e, /tmp/ready], interval: 200ms, start_interval: 200ms, start_period: 5s}
  migrate:
    <<: *common
    command: 'true'
    deploy: {mode: replicated-job}
    depends_on: [db]
secrets:
  key: {file: key.txt}
configs:
  site:
    template_driver: golang
    content: \"key={{secret \\\"key\\\"}} level={{env \\\"LEVEL\\\"}} slot={{.Task.Slot}} tier={{.Service.Labels.tier}}\"
networks:
  default: {attachable: true}
";

/// Ids of all tasks that run.
fn running(lab: &TestLab) -> Result<BTreeSet<String>> {
    let words = [
        "stack",
        "ps",
        "-q",
        "--no-trunc",
        "-f",
        "desired-state=running",
        "shop",
    ];
    Ok(lab.on("n1", &words)?.lines().map(str::to_owned).collect())
}

/// When the containers of a service were started, and when they ended, on both hosts.
fn spans(lab: &TestLab, service: &str) -> Result<Vec<[String; 2]>> {
    let filter = format!("label=com.docker.swarm.service.name={service}");
    let format = "{{.State.StartedAt}} {{.State.FinishedAt}}";
    let mut spans = Vec::new();
    for host in ["n1", "n2"] {
        for id in lab.on(host, &["ps", "-aq", "--filter", &filter])?.lines() {
            let times = lab.on(host, &["inspect", "--format", format, id])?;
            let times: Vec<String> = times.split_whitespace().map(moment).collect();
            spans.push(times.try_into().expect("two times"));
        }
    }
    Ok(spans)
}

#[test]
fn a_stack_is_planned_deployed_and_changed_without_needless_restarts() -> Result<()> {
    let lab = TestLab::up(2, 1)?;
    busybox::load(&lab, &["n1", "n2"])?;
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("key.txt"), "hunter2")?;
    let file = write(folder.path(), "shop.yml", SHOP)?;

    // A plan says everything and does nothing.
    let plan = lab.on("n1", &["stack", "plan", "-c", &file, "shop"])?;
    let places = |line: &&str| line.starts_with("    places: ");
    let (places, plan): (Vec<&str>, Vec<&str>) = plan.lines().partition(places);
    assert!(
        places[0].starts_with("    places: 1 of 1, 1 on n")
            && places[2].starts_with("    places: 2 of 2, 1 on n"),
        "{places:?}"
    );
    assert_eq!(
        plan.join("\n"),
        "Stack shop\n+ network shop_default\n+ secret shop_key\n+ config shop_site\n+ service shop_db\n+ service shop_migrate\n\
         + service shop_web\nPlan: 6 to create, 0 to update, 0 to remove, 0 unchanged"
    );
    assert_eq!(lab.on("n1", &["service", "ls", "-q"])?, "");
    assert_eq!(lab.on("n1", &["secret", "ls", "-q"])?, "");

    lab.on(
        "n1",
        &[
            "stack",
            "deploy",
            "-q",
            "--wait",
            "--timeout",
            "60s",
            "-c",
            &file,
            "shop",
        ],
    )?;
    let web = lab.wait_running("shop_web", 2)?;
    // Each began when that on which it depends was as far as it asks for: started, healthy, or done.
    let [db, migrate, served] =
        ["shop_db", "shop_migrate", "shop_web"].map(|service| spans(&lab, service));
    let (db, migrate, served) = (db?, migrate?, served?);
    assert_eq!((db.len(), migrate.len(), served.len()), (1, 1, 2));
    let [started, _] = &db[0];
    assert!(*started <= migrate[0][0], "{db:?} {migrate:?}");
    let healthy = lab.wait_running("shop_db", 1)?;
    let words = [
        "inspect",
        "--format",
        "{{.Status.Timestamp}}",
        &healthy[0].0,
    ];
    let healthy = moment(&lab.on("n1", &words)?);
    assert!(*started < healthy, "{db:?} {healthy}");
    for [started, _] in &served {
        assert!(*started >= healthy, "{started} {healthy}");
        assert!(*started >= migrate[0][1], "{started} {migrate:?}");
    }
    let inside = |command: &str| {
        lab.on(
            "n1",
            &["service", "exec", "shop_web.2", "sh", "-c", command],
        )
    };
    assert_eq!(inside("hostname")?, "shop_web-2\n");
    let node = &web
        .iter()
        .map(|(_, node)| node.clone())
        .collect::<BTreeSet<_>>();
    assert!(node.contains(inside("echo $NODE")?.trim()), "{node:?}");
    assert_eq!(
        inside("stat -c '%u %g %a' /run/secrets/key; cat /run/secrets/key")?,
        "1000 2000 440\nhunter2"
    );
    for path in ["/run/secrets/key", "/etc/site.conf"] {
        let mount = inside(&format!("grep ' {path} ' /proc/mounts"))?;
        assert!(mount.contains("tmpfs"), "{mount}");
    }
    assert_eq!(
        inside("cat /etc/site.conf")?,
        "key=hunter2 level=info slot=2 tier=front"
    );
    assert_eq!(inside("stat -c '%u %g %a' /work")?, "1000 2000 700\n");
    assert_eq!(
        inside("df -k /dev/shm | tail -1 | awk '{print $2}'")?,
        "32768\n"
    );

    // The same again: nothing is touched, also by docker's word for it.
    let before = running(&lab)?;
    let said = lab.on("n1", &["stack", "deploy", "-c", &file, "shop"])?;
    assert_eq!(said.matches("is unchanged").count(), 3, "{said}");
    let plan = lab.on("n1", &["stack", "plan", "-c", &file, "shop"])?;
    assert!(
        plan.ends_with("Plan: 0 to create, 0 to update, 0 to remove, 6 unchanged\n"),
        "{plan}"
    );
    assert_eq!(running(&lab)?, before);

    // A change, and a service that is gone: planned with its fields, then done, the rest left alone.
    let changed = SHOP
        .replace("LEVEL: info", "LEVEL: debug")
        .replace("replicas: 2", "replicas: 3")
        .replace(", migrate: {condition: service_completed_successfully}", "");
    let cut = changed.find("  migrate:").unwrap()..changed.find("secrets:\n  key").unwrap();
    let changed = format!("{}{}", &changed[..cut.start], &changed[cut.end..]);
    let file = write(folder.path(), "changed.yml", &changed)?;
    let plan = lab.on("n1", &["stack", "plan", "--prune", "-c", &file, "shop"])?;
    for line in [
        "~ service shop_web\n",
        "    Mode.Replicated.Replicas: 2 → 3\n",
        "- service shop_migrate\n",
        "Plan: 0 to create, 1 to update, 1 to remove, 4 unchanged\n",
    ] {
        assert!(plan.contains(line), "{plan}");
    }
    assert_eq!(running(&lab)?, before);
    let db: BTreeSet<_> = lab.wait_running("shop_db", 1)?.into_iter().collect();
    lab.on(
        "n1",
        &[
            "stack",
            "deploy",
            "-q",
            "--wait",
            "--timeout",
            "60s",
            "--prune",
            "-c",
            &file,
            "shop",
        ],
    )?;
    lab.wait_running("shop_web", 3)?;
    assert_eq!(
        lab.wait_running("shop_db", 1)?
            .into_iter()
            .collect::<BTreeSet<_>>(),
        db
    );
    let names = lab.on(
        "n1",
        &["stack", "services", "--format", "{{.Name}}", "shop"],
    )?;
    assert_eq!(names, "shop_db\nshop_web\n");

    // Nothing is left, on no host, when the removal returns.
    lab.on("n1", &["stack", "rm", "shop"])?;
    for kind in ["service", "secret", "config"] {
        assert_eq!(lab.on("n1", &[kind, "ls", "-q"])?, "", "{kind}");
    }
    let networks = lab.on("n1", &["network", "ls", "--format", "{{.Name}}"])?;
    assert!(!networks.contains("shop_"), "{networks}");
    for host in ["n1", "n2"] {
        assert_eq!(lab.on(host, &["ps", "-q"])?, "", "{host}");
    }
    Ok(())
}

#[test]
fn a_stack_that_fails_says_which_task_and_why() -> Result<()> {
    let lab = TestLab::up(1, 1)?;
    busybox::load(&lab, &["n1"])?;
    let folder = tempfile::tempdir()?;
    let failing = "
services:
  good: {image: BUSYBOX, command: sleep 100000}
  bad:
    image: BUSYBOX
    command: sh -c 'echo the disk is full; exit 3'
    deploy: {restart_policy: {condition: none}}
";
    let file = write(folder.path(), "failing.yml", failing)?;
    let words = [
        "stack",
        "deploy",
        "-q",
        "--wait",
        "--timeout",
        "60s",
        "-c",
        &file,
        "s",
    ];
    let (code, said) = lab.refused("n1", &words)?;
    assert_eq!(code, 1, "{said}");
    for part in [
        "s_bad.1 on n1: failed: task: non-zero exit (3)",
        "    | the disk is full",
        "service s_bad failed and is not restarted: task: non-zero exit (3)",
    ] {
        assert!(said.contains(part), "{said}");
    }
    lab.wait_running("s_good", 1)?;

    // One that cannot be placed never converges: the time is over, and the reason is said.
    let stuck = "services: {far: {image: BUSYBOX, command: sleep 1, deploy: {placement: {constraints: [node.labels.zone==moon]}}}}";
    let file = write(folder.path(), "stuck.yml", stuck)?;
    let words = [
        "stack",
        "deploy",
        "-q",
        "--wait",
        "--timeout",
        "2s",
        "-c",
        &file,
        "t",
    ];
    let (code, said) = lab.refused("n1", &words)?;
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains(
            "t_far.1: pending: no suitable node (scheduling constraints not satisfied on 1 node)"
        ),
        "{said}"
    );
    assert!(
        said.contains("the stack did not converge within 2s"),
        "{said}"
    );

    // What cannot be is refused with its place, before anything is made.
    for (text, problem) in [
        (
            "services:\n  a:\n    image: x\n    depends_on: [b]\n  b:\n    image: x\n    depends_on: [a]\n",
            "makes services wait for each other: a → b → a",
        ),
        ("services:\n\ta: {image: x}\n", ":2: "),
        ("services:\n  a:\n    image: x\n    image: y\n", ":4: "),
        (
            "services:\n  a:\n    image: x\n    configs: [c]\nconfigs: {c: {external: true}}\n",
            "config not found: c",
        ),
        (
            "services:\n  a:\n    image: x\n    networks: [n]\nnetworks: {n: {external: true}}\n",
            "network \"n\" is declared as external, but could not be found",
        ),
    ] {
        let file = write(folder.path(), "wrong.yml", text)?;
        let (_, said) = lab.refused("n1", &["stack", "deploy", "-c", &file, "u"])?;
        assert!(said.contains(problem), "{said}");
    }
    // A service that the daemon would refuse names the field.
    let wrong = "services: {a: {image: BUSYBOX, hostname: '{{.Node.Colour}}'}}";
    let file = write(folder.path(), "template.yml", wrong)?;
    let (_, said) = lab.refused("n1", &["stack", "deploy", "-c", &file, "v"])?;
    assert!(
        said.contains("expanding hostname failed: template: can't evaluate field Colour"),
        "{said}"
    );
    let services = lab.on("n1", &["service", "ls", "--format", "{{.Name}}"])?;
    assert_eq!(services, "s_bad\ns_good\nt_far\n");
    Ok(())
}

#[test]
fn a_stack_that_fails_leaves_the_version_before_it_serving() -> Result<()> {
    let lab = TestLab::up(1, 1)?;
    busybox::load(&lab, &["n1"])?;
    let folder = tempfile::tempdir()?;
    let stack = |command: &str, more: &str| {
        format!(
            "services:\n  web:\n    image: BUSYBOX\n    command: {command}\n    stop_grace_period: 0s\n    \
             environment: {{V: '{more}'}}\n    deploy: {{update_config: {{monitor: 1s}}, restart_policy: {{delay: 0s}}}}\n"
        )
    };
    let deploy = |file: &str| -> Vec<String> {
        let words = "stack deploy -q --prune --rollback --wait --timeout 60s -c";
        let words = words.split(' ').chain([file, "s"]);
        words.map(str::to_owned).collect()
    };
    let old = write(
        folder.path(),
        "old.yml",
        &(stack("sleep 100000", "1") + "  more: {image: BUSYBOX, command: sleep 100000}\n"),
    )?;
    let words = deploy(&old);
    lab.on("n1", &words.iter().map(String::as_str).collect::<Vec<_>>())?;
    let more = lab.wait_running("s_more", 1)?;

    // The next version ends at once and lacks a service: neither takes effect.
    let new = write(
        folder.path(),
        "new.yml",
        &stack("sh -c 'echo no such file; exit 4'", "2"),
    )?;
    let words = deploy(&new);
    let (code, said) = lab.refused("n1", &words.iter().map(String::as_str).collect::<Vec<_>>())?;
    assert_eq!(code, 1, "{said}");
    for part in ["non-zero exit (4)", "    | no such file"] {
        assert!(said.contains(part), "{said}");
    }
    lab.wait_running("s_web", 1)?;
    let inside = lab.on("n1", &["service", "exec", "s_web.1", "sh", "-c", "echo $V"])?;
    assert_eq!(inside, "1\n");
    assert_eq!(lab.wait_running("s_more", 1)?, more);
    lab.on("n1", &["stack", "rm", "s"])?;
    Ok(())
}

#[test]
fn a_removed_stack_is_gone_when_the_command_returns_with_its_volumes_if_asked() -> Result<()> {
    let lab = TestLab::up(2, 1)?;
    busybox::load(&lab, &["n1", "n2"])?;
    let folder = tempfile::tempdir()?;
    // Without a network of its own nothing but its tasks can be waited for, and these take their time.
    let text = "
services:
  slow:
    image: BUSYBOX
    command: [sh, -c, 'trap \"sleep 2; exit 0\" TERM; while true; do sleep 0.1; done']
    networks: [host]
    volumes: ['data:/data', '/anonymous', 'kept:/kept']
    deploy: {mode: global}
networks: {host: {external: true, name: host}}
volumes: {data: {}, kept: {external: true, name: kept}}
";
    let file = write(folder.path(), "slow.yml", text)?;
    let deploy = || -> Result<()> {
        lab.on("n1", &["stack", "deploy", "--detach", "-c", &file, "slow"])?;
        lab.wait_running("slow_slow", 2).map(drop)
    };
    let left = |kind: &[&str]| -> Result<Vec<String>> {
        let hosts = ["n1", "n2"].into_iter();
        hosts
            .map(|host| Ok(lab.on(host, kind)?.replace('\n', " ")))
            .collect()
    };
    let containers = ["ps", "-q"];
    let volumes = [
        "volume",
        "ls",
        "-q",
        "--filter",
        "name=slow_data",
        "--filter",
        "name=kept",
    ];
    deploy()?;
    lab.on("n1", &["stack", "rm", "slow"])?;
    assert_eq!(left(&containers)?, ["", ""]);
    assert_eq!(left(&volumes)?, ["kept slow_data ", "kept slow_data "]);

    deploy()?;
    let said = lab.on("n1", &["stack", "rm", "--volumes", "slow"])?;
    assert_eq!(
        said,
        "Removing service slow_slow\nRemoving volume slow_data on n1\nRemoving volume slow_data on n2\n"
    );
    assert_eq!(left(&containers)?, ["", ""]);
    assert_eq!(left(&volumes)?, ["kept ", "kept "]);

    // What is still held by somebody else stays, and is said; so is a node that cannot be asked.
    deploy()?;
    let holder = [
        "create",
        "--name",
        "holder",
        "-v",
        "slow_data:/data",
        BUSYBOX,
    ];
    lab.on("n2", &holder)?;
    let (_, said) = lab.refused("n1", &["stack", "rm", "--volumes", "slow"])?;
    assert!(
        said.contains("failed to remove volumes on n2: ") && said.contains("volume is in use"),
        "{said}"
    );
    assert_eq!(left(&volumes)?, ["kept ", "kept slow_data "]);
    lab.on("n2", &["rm", "holder"])?;
    let said = lab.on("n1", &["stack", "rm", "--volumes", "slow"])?;
    assert_eq!(said, "Removing volume slow_data on n2\n");
    let output = lab.output("n1", &["shoal", "stack", "rm", "--volumes", "slow"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said, "Nothing found in stack: slow\n");
    Ok(())
}

/// Someone who listens to events on the first host.
struct Listener {
    child: Child,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

impl Listener {
    fn begin(lab: &TestLab, filters: &[&str]) -> Result<Self> {
        let format = "{{.Type}} {{.Action}} {{.Actor.Attributes.name}} {{.Actor.Attributes.err}}";
        let mut child = Command::new(program())
            .args(["lab", "exec", "--name", lab.name(), "n1", "--"])
            .args(["shoal", "system", "events", "--format", format])
            .args(filters.iter().flat_map(|filter| ["--filter", filter]))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().context("it is piped")?).lines();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&heard);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                kept.lock().expect("nobody panics here").push(line);
            }
        });
        Ok(Self { child, heard })
    }

    /// Waits for an event that begins and ends so; `again` is done before each look.
    fn hears(&self, begins: &str, ends: &str, again: impl Fn() -> Result<()>) -> Result<()> {
        wait(&format!("{begins} … {ends}"), || {
            again()?;
            let heard = self.heard.lock().expect("nobody panics there");
            let is_it = |line: &&String| line.starts_with(begins) && line.ends_with(ends);
            Ok(match heard.iter().find(is_it) {
                Some(_) => Ok(()),
                None => Err(heard.join("\n")),
            })
        })
    }
}

#[test]
fn events_tell_what_happens_to_the_clusters_objects() -> Result<()> {
    let lab = TestLab::up(1, 1)?;
    busybox::load(&lab, &["n1"])?;
    let on = |line: &str| -> Result<()> { lab.on("n1", &words(line)).map(drop) };
    let no = || Ok(());
    let of_swarm = ["scope=swarm", "type=service", "type=node", "type=network"];
    let swarm = Listener::begin(&lab, &of_swarm)?;
    let tasks = Listener::begin(&lab, &["type=task"])?;
    // They listen when they hear of something that happens again and again.
    let create = "service create -q --detach --name";
    on(&format!("{create} probe shoal-demo:latest idle"))?;
    let again = || on("service update -q --detach --force probe");
    swarm.hears("service update probe", "", again)?;
    tasks.hears("task ", "", again)?;

    on("network create -d overlay net")?;
    on(&format!("{create} web shoal-demo:latest idle"))?;
    lab.wait_running("web", 1)?;
    on("service scale --detach web=2")?;
    lab.wait_running("web", 2)?;
    on("node update --label-add a=b n1")?;
    // Why a task ended is in its event.
    let ends = format!("{create} ends --restart-condition none {BUSYBOX} sh -c");
    lab.on("n1", &[&words(&ends)[..], &["exit 7"]].concat())?;
    tasks.hears("task failed ends.1.", "task: non-zero exit (7)", no)?;
    on("service rm web")?;
    for line in [
        "network create net",
        "service create web",
        "service update web",
        "node update n1",
        "service remove web",
    ] {
        swarm.hears(line, "", no)?;
    }
    for state in ["assigned", "running", "shutdown"] {
        tasks.hears(&format!("task {state} web."), "", no)?;
    }
    Ok(())
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}
