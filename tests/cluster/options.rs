//! Every option of a service, given by docker's own client, seen where it takes effect.

mod given;
mod gone;

use std::{
    fs,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use shoal_tests::{
    busybox::{self, BUSYBOX},
    lab::{TestLab, text},
    skipped, wait,
};

/// Docker's client pointed at the lab's first host.
pub(crate) fn docker(lab: &TestLab, words: &[&str]) -> Result<String> {
    let mut docker = Command::new("docker");
    docker.env("DOCKER_HOST", lab.docker_host("n1"));
    docker.args(words).stdin(Stdio::null());
    text(&docker.output()?).with_context(|| format!("docker {}", words.join(" ")))
}

/// Where an option is seen.
pub(crate) enum Seen {
    /// Output of a shell command in the task.
    Inside(&'static str, &'static str),
    /// A template over the container.
    Container(&'static str, &'static str),
    /// A template over the service.
    Service(&'static str, &'static str),
    /// A template over a volume.
    Volume(&'static str, &'static str, &'static str),
}
use Seen::{Container, Inside, Service, Volume};

impl Seen {
    /// Waits until it is seen: an update may still be replacing the task.
    pub(crate) fn check(&self, lab: &TestLab, service: &str, option: &str) -> Result<()> {
        let (Inside(_, want) | Container(_, want) | Service(_, want) | Volume(_, _, want)) = self;
        wait(&format!("{option} to show {want:?}"), || {
            let seen = self.look(lab, service)?;
            let seen = seen.trim();
            Ok(if seen == *want {
                Ok(())
            } else {
                Err(seen.to_owned())
            })
        })
    }

    fn look(&self, lab: &TestLab, service: &str) -> Result<String> {
        // Asked for each time: the container of an earlier look may be that of the task before.
        let container = || -> Result<String> {
            let filter = format!("label=com.docker.swarm.service.name={service}");
            let ids = docker(lab, &["ps", "-q", "-f", &filter])?;
            let mut lines = ids.lines();
            match (lines.next(), lines.next()) {
                (Some(id), None) => Ok(id.to_owned()),
                _ => bail!("not one container: {ids:?}"),
            }
        };
        match self {
            Inside(command, _) => docker(lab, &["exec", &container()?, "sh", "-c", command]),
            Container(template, _) => docker(lab, &["inspect", "-f", template, &container()?]),
            Service(template, _) => docker(lab, &["service", "inspect", "-f", template, service]),
            Volume(volume, template, _) => {
                docker(lab, &["volume", "inspect", "-f", template, volume])
            }
        }
    }
}

/// Options of one command, and where each is seen. One without words is another look at the one before.
pub(crate) type Given = &'static [(&'static [&'static str], Seen)];

/// A service by its name, what only its creation can say, its options, and its command.
type Subject = (
    &'static str,
    &'static [&'static str],
    Given,
    &'static [&'static str],
);

const SUBJECTS: [Subject; 4] = [
    ("all", &[], given::ALL, &["sleep 100000"]),
    ("apart", &[], given::APART, &["sleep", "100000"]),
    ("many", &[], given::MANY, &["sleep", "100000"]),
    (
        "job",
        &["--mode", "replicated-job", "--replicas", "3"],
        given::JOB,
        &["true"],
    ),
];

/// A file of variables, on the machine.
const VARIABLES: &str = "/tmp/shoal-options.env";

/// A lab of one host with what the options refer to, and the folder of their files.
fn ready() -> Result<Option<(TestLab, tempfile::TempDir)>> {
    let found = Command::new("docker").arg("--version").output();
    if !found.is_ok_and(|said| said.status.success()) {
        skipped("docker's client is not on PATH");
        return Ok(None);
    }
    let apples = ["--daemon-arg", "--node-generic-resource=apple=3"];
    let lab = TestLab::up_with(1, 1, &apples)?;
    busybox::load(&lab, &["n1"])?;
    let folder = tempfile::tempdir()?;
    let file = |name: &str, text: &str| -> Result<String> {
        let path = folder.path().join(name);
        fs::write(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    };
    docker(&lab, &["secret", "create", "key", &file("key", "hunter2")?])?;
    docker(
        &lab,
        &[
            "config",
            "create",
            "--template-driver",
            "golang",
            "site",
            &file("site", "site of {{.Service.Name}}")?,
        ],
    )?;
    docker(&lab, &["network", "create", "-d", "overlay", "net"])?;
    let deep = ["run", "--rm", "-v", "deep:/deep", BUSYBOX, "sh", "-c"];
    let fill = ["mkdir /deep/inner; touch /deep/inner/here"];
    docker(&lab, &[&deep[..], &fill].concat())?;
    let shared = "mkdir -p /run/shared && mount -t tmpfs none /run/shared && mount --make-shared /run/shared";
    text(&lab.output("n1", &["sh", "-c", shared])?)?;
    Ok(Some((lab, folder)))
}

#[test]
fn every_option_of_a_service_takes_effect_in_its_task() -> Result<()> {
    let Some((lab, _folder)) = ready()? else {
        return Ok(());
    };
    fs::write(VARIABLES, "FROM_FILE=yes\n")?;
    for (name, more, options, command) in SUBJECTS {
        let mut words = vec!["service", "create", "--detach", "--no-resolve-image"];
        words.extend(["--name", name]);
        words.extend(more);
        words.extend(options.iter().flat_map(|(option, _)| *option));
        words.push(BUSYBOX);
        words.extend(command);
        docker(&lab, &words)?;
        for (option, seen) in options {
            seen.check(&lab, name, &option.join(" "))?;
        }
        // Both clients show the same of it; docker's leaves out what jobs are.
        if name != "job" {
            let inspect = ["service", "inspect", "--pretty", name];
            assert_eq!(lab.on("n1", &inspect)?, docker(&lab, &inspect)?);
        }
    }
    fs::remove_file(VARIABLES)?;
    let ports = docker(&lab, &["service", "ps", "--format", "{{.Ports}}", "apart"])?;
    assert_eq!(ports.trim(), "*:8099->80/udp");

    // Each node's own network, by docker's id for it.
    let words = "service create --detach --no-resolve-image --name own --network host";
    let words: Vec<&str> = words
        .split(' ')
        .chain([BUSYBOX, "sleep", "100000"])
        .collect();
    docker(&lab, &words)?;
    Inside("hostname", "n1").check(&lab, "own", "--network host")?;

    // Those that there cannot be.
    for (option, problem) in [
        (
            ["--label", "shoal.privilege=true"],
            "label 'shoal.privilege' is unknown",
        ),
        (["--isolation", "hyperv"], "\"hyperv\" is not linux's"),
        (["--credential-spec", "file://spec.json"], "Privileges"),
        (
            ["--mount", "type=cluster,source=a,target=/a"],
            "\"cluster\" is not one of volume, bind, tmpfs",
        ),
        (
            ["--mount", "type=image,source=a,target=/a"],
            "\"image\" is not one of volume, bind, tmpfs",
        ),
    ] {
        let words = [
            &["service", "create", "--name", "no"],
            &option[..],
            &[BUSYBOX],
        ]
        .concat();
        let said = format!("{:#}", docker(&lab, &words).unwrap_err());
        assert!(said.contains(problem), "{said}");
    }
    Ok(())
}

/// A client with its words.
type Client<'a> = &'a dyn Fn(&[&str]) -> Result<String>;

#[test]
fn every_option_of_an_update_reaches_the_task_and_is_taken_out_again() -> Result<()> {
    let Some((lab, _folder)) = ready()? else {
        return Ok(());
    };
    docker(&lab, &["tag", BUSYBOX, "shoal-busybox:other"])?;
    let ours = |words: &[&str]| lab.on("n1", words);
    let dockers = |words: &[&str]| docker(&lab, words);
    // Docker's client keeps these to itself where a service is updated.
    const UNSAID: &[&str] = &["--health-start-interval", "--max-concurrent"];
    let clients: [(Client<'_>, &[&str]); 2] = [(&dockers, UNSAID), (&ours, &[])];
    for (client, unsaid) in clients {
        let update = |name: &str, options: &[Vec<String>], looks: Given, more: &[&str]| {
            let mut words = vec!["service", "update", "--detach", "--no-resolve-image"];
            words.extend(options.iter().flatten().map(String::as_str));
            words.extend(more);
            words.push(name);
            client(&words)?;
            for (option, seen) in looks {
                let first = option.first().copied().unwrap_or_default();
                if first != "--env-file" && !unsaid.contains(&first) {
                    seen.check(&lab, name, &option.join(" "))?;
                }
            }
            anyhow::Ok(())
        };
        for (name, more, options, command) in SUBJECTS {
            // With none of them at first.
            let create = "service create --detach --no-resolve-image --name";
            let mut words: Vec<&str> = create.split(' ').collect();
            words.push(name);
            words.extend(more);
            words.extend([BUSYBOX, "sleep", "100000"]);
            client(&words)?;
            let words: Vec<_> = options
                .iter()
                .filter_map(|(option, _)| of_update(option))
                .collect();
            let command = format!("'{}'", command.join("' '"));
            update(name, &words, options, &["--args", &command])?;
        }
        for (name, options) in gone::GONE {
            let words: Vec<Vec<String>> = options
                .iter()
                .map(|(option, _)| option.iter().map(|&word| word.to_owned()).collect())
                .collect();
            update(name, &words, options, &[])?;
        }
        // The one before all of that.
        client(&["service", "update", "--detach", "--rollback", "all"])?;
        Inside("echo $A", "b n1").check(&lab, "all", "--rollback")?;
        client(&["service", "rm", "all", "apart", "many", "job"])?;
    }
    Ok(())
}

/// What is seen elsewhere: by the words that come out of the client, in tests of their own, or above.
const ELSEWHERE: [&str; 10] = [
    "--credential-spec",
    "--detach",
    "--help",
    "--isolation",
    "--mode",
    "--name",
    "--no-resolve-image",
    "--quiet",
    "--rollback",
    "--with-registry-auth",
];

#[test]
fn no_option_of_dockers_client_is_left_out_of_the_tables() -> Result<()> {
    let given: Vec<&[&str]> = SUBJECTS
        .iter()
        .flat_map(|(_, _, options, _)| options.iter())
        .map(|(option, _)| *option)
        .collect();
    let gone = gone::GONE.iter().flat_map(|(_, options)| options.iter());
    let updated: Vec<String> = given
        .iter()
        .filter_map(|option| of_update(option))
        .flatten()
        .chain(gone.flat_map(|(option, _)| option.iter().map(|&word| word.to_owned())))
        .collect();
    let created: Vec<String> = given.concat().iter().map(|&word| word.to_owned()).collect();
    for (verb, tables) in [("create", created), ("update", updated)] {
        let help = Command::new("docker")
            .args(["service", verb, "--help"])
            .output();
        let Ok(help) = help else {
            skipped("docker's client is not on PATH");
            return Ok(());
        };
        let help = text(&help)?;
        // What a line before goes on with stands further in.
        let indent = |line: &str| line.len() - line.trim_start().len();
        let options = help.lines().filter(|line| indent(line) < 8);
        let options = options.filter_map(|line| {
            let words = line.split_whitespace();
            words.take(2).find(|word| word.starts_with("--"))
        });
        let missing: Vec<&str> = options
            .filter(|option| {
                let is_it = |word: &String| word.split('=').next() == Some(option);
                !ELSEWHERE.contains(option) && !tables.iter().any(is_it)
            })
            .collect();
        assert!(missing.is_empty(), "service {verb}: {missing:?}");
    }
    Ok(())
}

/// An option of `service create` as `service update` has it; none for a file of variables.
fn of_update(option: &[&str]) -> Option<Vec<String>> {
    const LISTS: [&str; 18] = [
        "--config",
        "--constraint",
        "--container-label",
        "--dns",
        "--dns-option",
        "--dns-search",
        "--env",
        "--generic-resource",
        "--group",
        "--host",
        "--label",
        "--mount",
        "--network",
        "--placement-pref",
        "--publish",
        "--secret",
        "--sysctl",
        "--ulimit",
    ];
    if option.first() == Some(&"--env-file") {
        return None;
    }
    let word = |word: &&str| match *word {
        list if LISTS.contains(&list) => format!("{list}-add"),
        other => other.to_owned(),
    };
    Some(option.iter().map(word).collect())
}

#[test]
fn secrets_and_configs_have_swarms_rules() -> Result<()> {
    let lab = TestLab::up(1, 1)?;
    let folder = tempfile::tempdir()?;
    let file = |name: &str, bytes: usize| -> Result<String> {
        let path = folder.path().join(name);
        fs::write(&path, vec![b'x'; bytes])?;
        Ok(path.to_string_lossy().into_owned())
    };
    for (kind, bound) in [("secret", 512_000), ("config", 1_024_000)] {
        lab.on("n1", &[kind, "create", "most", &file("most", bound - 1)?])?;
        let (_, said) = lab.refused("n1", &[kind, "create", "x", &file("x", bound)?])?;
        let want = format!("{kind} data must be larger than 0 and less than {bound} bytes");
        assert!(said.contains(&want), "{said}");
        let (_, said) = lab.refused(
            "n1",
            &[
                kind,
                "create",
                "--template-driver",
                "perl",
                "x",
                &file("x", 1)?,
            ],
        )?;
        assert!(said.contains("unrecognized template type 'perl'"), "{said}");
        let flag = format!("--{kind}");
        let name = format!("uses-{kind}");
        lab.on(
            "n1",
            &[
                "service",
                "create",
                "-q",
                "--detach",
                "--name",
                &name,
                &flag,
                "most",
                "shoal-demo:latest",
                "idle",
            ],
        )?;
        let (_, said) = lab.refused("n1", &[kind, "rm", "most"])?;
        assert!(
            said.contains(&format!(
                "{kind} 'most' is in use by the following service: {name}"
            )),
            "{said}"
        );
        lab.on("n1", &["service", "rm", &name])?;
        lab.on("n1", &[kind, "rm", "most"])?;
    }
    Ok(())
}
