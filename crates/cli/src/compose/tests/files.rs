//! Several files, and services that refer to each other.

use std::fs;

use super::*;

/// The whole document of files in a folder; the first is the one that is named.
fn whole(files: &[(&str, &str)], profiles: &[&str]) -> Result<(String, Vec<String>)> {
    let folder = tempfile::tempdir()?;
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap())?;
        fs::write(path, text)?;
    }
    let source = Source {
        name: files[0].0.to_owned(),
        text: files[0].1.to_owned(),
    };
    let profiles: Vec<_> = profiles.iter().map(|name| (*name).to_owned()).collect();
    let settings = Settings {
        stack: "demo",
        folder: folder.path(),
        profiles: &profiles,
    };
    let lookup = |name: &str| (name == "TAG").then(|| "1.27".to_owned());
    let hide = |text: String| text.replace(&folder.path().display().to_string(), "");
    match load(&[source], &settings, &lookup) {
        Ok(stack) => {
            let mut seen: Vec<String> = stack.networks.iter().map(|n| n.name.clone()).collect();
            seen.extend(stack.services.iter().map(Value::to_string));
            for data in stack.secrets.iter().chain(&stack.configs) {
                seen.push(format!(
                    "{}: {}",
                    data.name,
                    data.create.clone().unwrap_or_default()["Data"]
                ));
            }
            let warnings = stack.warnings.into_iter().map(hide).collect();
            Ok((hide(seen.join("\n")), warnings))
        }
        Err(error) => Err(anyhow::anyhow!(hide(format!("{error:#}")))),
    }
}

#[test]
fn a_service_extends_others_of_this_and_of_other_files() {
    let (seen, _) = whole(
        &[
            (
                "main.yml",
                "services:\n  web:\n    extends: {file: lib/base.yml, service: app}\n    environment: {B: 2}\n    command: serve\n  \
                 job:\n    extends: web\n    image: job:1\n    restart: 'no'\n",
            ),
            (
                "lib/base.yml",
                "services:\n  app:\n    extends: {service: root}\n    image: 'app:${TAG}'\n    env_file: app.env\n    volumes: ['./data:/data']\n  \
                 root:\n    environment: [A=1, B=1]\n    command: sleep\n",
            ),
            ("lib/app.env", "FROM_FILE=yes\n"),
        ],
        &[],
    )
    .unwrap();
    expect![[r#"
        demo_default
        {"Labels":{"com.docker.stack.image":"job:1","com.docker.stack.namespace":"demo"},"Mode":{"Replicated":{"Replicas":1}},"Name":"demo_job","TaskTemplate":{"ContainerSpec":{"Args":["serve"],"Env":["A=1","B=2","FROM_FILE=yes"],"Image":"job:1","Labels":{"com.docker.stack.namespace":"demo"},"Mounts":[{"BindOptions":{"CreateMountpoint":true},"Source":"/lib/data","Target":"/data","Type":"bind"}]},"Networks":[{"Aliases":["job"],"Target":"demo_default"}],"RestartPolicy":{"Condition":"none"}}}
        {"Labels":{"com.docker.stack.image":"app:1.27","com.docker.stack.namespace":"demo"},"Mode":{"Replicated":{"Replicas":1}},"Name":"demo_web","TaskTemplate":{"ContainerSpec":{"Args":["serve"],"Env":["A=1","B=2","FROM_FILE=yes"],"Image":"app:1.27","Labels":{"com.docker.stack.namespace":"demo"},"Mounts":[{"BindOptions":{"CreateMountpoint":true},"Source":"/lib/data","Target":"/data","Type":"bind"}]},"Networks":[{"Aliases":["web"],"Target":"demo_default"}]}}"#]]
    .assert_eq(&seen);
}

#[test]
fn an_included_file_brings_what_it_declares() {
    let files = [
        (
            "main.yml",
            "include:\n  - parts/db.yml\nservices:\n  web: {image: web, depends_on: [db]}\n",
        ),
        (
            "parts/db.yml",
            "services:\n  db:\n    image: 'db:${VERSION}-${TAG}'\n    secrets: [pw]\nsecrets:\n  pw: {file: pw.txt}\n",
        ),
        ("parts/.env", "VERSION=16\nTAG=not-this-one\n"),
        ("parts/pw.txt", "hunter2"),
    ];
    let (seen, _) = whole(&files, &[]).unwrap();
    assert!(seen.contains("\"Image\":\"db:16-1.27\""), "{seen}");
    assert!(seen.ends_with("demo_pw: \"aHVudGVyMg==\""), "{seen}");
    // What others wait for comes first.
    assert!(
        seen.find("demo_db").unwrap() < seen.find("\"demo_web\"").unwrap(),
        "{seen}"
    );

    let twice = [
        (
            "main.yml",
            "include: [a.yml]\nservices:\n  db: {image: x}\n",
        ),
        ("a.yml", "services:\n  db: {image: y}\n"),
    ];
    assert_eq!(
        whole(&twice, &[]).unwrap_err().to_string(),
        "/a.yml:2: services.db is declared in main.yml:3 already; an included file cannot change it"
    );
}

#[test]
fn files_and_services_that_lead_back_to_themselves_are_refused() {
    for (files, want) in [
        (
            vec![("main.yml", "include: [main.yml]\n")],
            "main.yml:1: include[0] leads back to itself: /main.yml",
        ),
        (
            vec![(
                "main.yml",
                "services:\n  a:\n    extends: b\n  b:\n    extends: {service: a}\n",
            )],
            "main.yml:5: services.b.extends leads back to itself: a → b → a",
        ),
        (
            vec![(
                "main.yml",
                "services:\n  a:\n    extends: {file: no.yml, service: x}\n",
            )],
            "main.yml:3: services.a.extends cannot be read: /no.yml: No such file or directory (os error 2)",
        ),
        (
            vec![("main.yml", "services:\n  a:\n    extends: x\n")],
            "main.yml:3: services.a.extends names the service \"x\", which the file does not have",
        ),
    ] {
        assert_eq!(whole(&files, &[]).unwrap_err().to_string(), want);
    }
}

#[test]
fn profiles_choose_services() {
    let file = [(
        "main.yml",
        "services:\n  web: {image: web}\n  debug: {image: debug, profiles: [dev]}\n  top: {image: top, depends_on: {debug: {condition: service_started, required: false}}}\n",
    )];
    let (seen, warnings) = whole(&file, &[]).unwrap();
    assert!(!seen.contains("demo_debug\",\"Task"), "{seen}");
    assert_eq!(
        warnings,
        ["left out for their profiles, which --profile names: debug"]
    );
    for profile in ["dev", "*"] {
        let (seen, warnings) = whole(&file, &[profile]).unwrap();
        assert!(
            seen.contains("demo_debug\",\"Task") && warnings.is_empty(),
            "{seen}"
        );
    }
    let needed = [(
        "main.yml",
        "services:\n  web: {image: web, depends_on: [debug]}\n  debug: {image: debug, profiles: [dev]}\n",
    )];
    assert_eq!(
        whole(&needed, &[]).unwrap_err().to_string(),
        "main.yml:2: services.web.depends_on[0] waits for the service \"debug\", which the file does not declare, or whose profiles were not asked for"
    );
}

#[test]
fn later_files_lie_over_earlier_ones_whatever_the_form() {
    let base = "services:\n  web:\n    image: a\n    ports: ['80:80/udp', '8443:443']\n    volumes: ['a:/data', /cache]\n    configs: [site]\n    depends_on: [db]\n    dns: 10.0.0.1\n    logging: {driver: json-file, options: {max-size: 1m}}\n";
    let over = "services:\n  web:\n    ports: [{target: 80, published: '80', protocol: udp, mode: host}]\n    volumes: [{type: tmpfs, target: /cache}, 'b:/data']\n    configs: [{source: other, target: site}]\n    depends_on: {db: {condition: service_healthy}}\n    dns: [10.0.0.2]\n    logging: {driver: none}\n";
    let sources = [("a.yml", base), ("b.yml", over)].map(|(name, text)| Source {
        name: name.to_owned(),
        text: text.to_owned(),
    });
    // Without variables nothing but the merge is looked at.
    expect![[r#"
        services:
          web:
            image: a
            ports:
              - target: 80
                published: "80"
                protocol: udp
                mode: host
              - "8443:443"
            volumes:
              - "b:/data"
              - type: tmpfs
                target: /cache
            configs:
              - source: other
                target: site
            depends_on:
              db:
                condition: service_healthy
            dns:
              - "10.0.0.1"
              - "10.0.0.2"
            logging:
              driver: none
    "#]]
    .assert_eq(&config(&sources, &settings(), None).unwrap());
}
