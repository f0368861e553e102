//! One file with every key of the specification: all of it is understood, and what changes nothing is said.

use super::*;

const FILE: &str = include_str!("whole.yml");

#[test]
fn every_key_of_the_specification_is_understood() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("base.labels"), "from.file=yes\n").expect("written");
    let source = Source {
        name: "whole.yml".to_owned(),
        text: FILE.to_owned(),
    };
    let settings = Settings {
        folder: folder.path(),
        ..settings()
    };
    let lookup = |name: &str| (name == "PASSWORD").then(|| "hunter2".to_owned());
    let read = load(&[source], &settings, &lookup).expect("nothing in it is refused");
    let hide = |text: &str| text.replace(&*folder.path().to_string_lossy(), "");
    expect![[r#"
        left out for their profiles, which --profile names: app, base
        whole.yml:2: name has no effect in a stack: this one is called "demo"
        whole.yml:239: .models has no effect in a stack
        whole.yml:195: services.elsewhere.provider has no effect in a stack"#]]
    .assert_eq(&hide(&read.warnings.join("\n")));
    let names: Vec<_> = read
        .services
        .iter()
        .map(|service| crate::json::text(service, "/Name"))
        .collect();
    assert_eq!(
        names,
        [
            "demo_base",
            "demo_cache",
            "demo_db",
            "demo_elsewhere",
            "demo_migrate",
            "demo_app"
        ]
    );
    let app = read
        .services
        .last()
        .expect("it comes after those that it waits for");
    expect![[r#""#]].assert_eq(&hide(&crate::output::indented(app)));
}

#[test]
fn what_services_do_not_have_is_refused_in_its_place() {
    for (mount, problem) in [
        (
            "{type: image, source: a, target: /a}",
            "demo.yml:4: services.web.volumes[0].type cannot be image in a stack: images are mounted in single containers alone",
        ),
        (
            "{type: cluster, source: a, target: /a}",
            "demo.yml:4: services.web.volumes[0].type cannot be cluster in a stack: there are no volumes of the cluster",
        ),
        (
            "{type: npipe, source: a, target: /a}",
            "demo.yml:4: services.web.volumes[0].type cannot be npipe in a stack: named pipes are of Windows",
        ),
    ] {
        let text = format!("services:\n  web:\n    image: a\n    volumes: [{mount}]\n");
        assert_eq!(stack(&text).unwrap_err().to_string(), problem);
    }
    let text = "services:\n  web:\n    image: a\n    tmpfs: '/run:uid=somebody'\n";
    assert_eq!(
        stack(text).unwrap_err().to_string(),
        "demo.yml:4: services.web.tmpfs has an unknown option \"uid=somebody\""
    );
}
