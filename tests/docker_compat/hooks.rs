//! Programs that specifications of devices (CDI) have called while a container is made.

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cli::host;

#[test]
fn specifications_of_devices_have_programs_called() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = folder.path().display().to_string();
    let shell = |name: &str, script: &str, timeout: Option<u32>| {
        let args = ["sh", "-c", script];
        let mut hook =
            json!({"hookName": name, "path": "/bin/sh", "args": args, "env": [format!("AT={at}")]});
        if let Some(seconds) = timeout {
            hook["timeout"] = seconds.into();
        }
        hook
    };
    // The host's files until the root changes, the container's names before that.
    let good = [
        shell(
            "createRuntime",
            "cat > $AT/state; hostname > $AT/host",
            None,
        ),
        shell("createContainer", "hostname > $AT/inside", Some(10)),
        shell("startContainer", "echo called > /called", None),
    ];
    let device =
        |name: &str, hooks: &[Value]| json!({"name": name, "containerEdits": {"hooks": hooks}});
    let specification = json!({
        "cdiVersion": "0.6.0", "kind": "shoal.test/hook",
        "devices": [
            device("good", &good),
            device("bad", &[shell("createRuntime", "echo no such card >&2; exit 3", None)]),
            device("slow", &[shell("createContainer", "sleep 1000", Some(1))]),
        ],
    });
    fs::write(folder.path().join("hooks.json"), specification.to_string())?;
    let lab = host(&[&format!("--cdi-spec-dir={at}")])?;
    let socket = lab.docker_host("n1");
    let run = |device: &str| {
        let device = format!("shoal.test/hook={device}");
        let words = ["run", "--name", "one", "-h", "inner", "--device", &device];
        lab.shoal(
            &[
                &["-H", &socket][..],
                &words,
                &["busybox:test", "cat", "/called"],
            ]
            .concat(),
        )
    };
    assert_eq!(run("good")?, "called\n");
    let read = |name: &str| fs::read_to_string(folder.path().join(name));
    let state: Value = serde_json::from_str(&read("state")?)?;
    let id = lab.shoal(&["-H", &socket, "inspect", "-f", "{{.Id}}", "one"])?;
    assert_eq!(state["id"], id.trim());
    assert_eq!(state["status"], "creating");
    assert!(state["pid"].as_i64().is_some_and(|pid| pid > 1), "{state}");
    assert_eq!(
        (read("host")?.trim(), read("inside")?.trim()),
        ("n1", "inner")
    );

    for (device, why) in [
        ("bad", "exit status: 3: no such card"),
        ("slow", "it did not end within 1 s"),
    ] {
        lab.shoal(&["-H", &socket, "rm", "-f", "one"])?;
        let refused = run(device).err().context("it was not refused")?;
        let refused = format!("{refused:#}");
        assert!(
            refused.contains(&format!("error running hook /bin/sh: {why}")),
            "{refused}"
        );
    }
    Ok(())
}
