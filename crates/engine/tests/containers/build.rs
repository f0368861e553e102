//! Images built of Dockerfiles, with real containers for their steps.

use std::collections::BTreeMap;
use std::io::{Cursor, Read, Write};
use std::os::unix::fs::PermissionsExt;

use shoal_api::build::{BuildEvent, BuildOptions, CommitOptions};
use shoal_api::container::{ContainerFilter, ContainerSpec, NetworkMode};
use shoal_api::image::ImageId;
use shoal_engine::io::build::BuildError;
use tokio::sync::mpsc;

use crate::host::{Host, IMAGE};

/// A context: files, and links that end in `@`.
fn context(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        match name.strip_suffix('@') {
            Some(name) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                tar.append_link(&mut header, name, content).expect("link");
            }
            None => {
                header.set_size(content.len() as u64);
                let content = content.as_bytes();
                tar.append_data(&mut header, name, content).expect("file");
            }
        }
    }
    tar.into_inner().expect("archive")
}

fn options() -> BuildOptions {
    BuildOptions {
        network: NetworkMode::None,
        ..BuildOptions::default()
    }
}

async fn build_with(
    host: &Host,
    options: BuildOptions,
    context: Vec<u8>,
) -> (Result<ImageId, BuildError>, String) {
    let (events, mut told) = mpsc::channel(16);
    let build = host.engine.build(options, Cursor::new(context), events);
    let log = async {
        let mut log = String::new();
        while let Some(event) = told.recv().await {
            if let BuildEvent::Text(text) = event {
                log.push_str(&text);
            }
        }
        log
    };
    tokio::join!(build, log)
}

async fn build(host: &Host, files: &[(&str, &str)]) -> (ImageId, String) {
    let (id, log) = build_with(host, options(), context(files)).await;
    let id = id.unwrap_or_else(|error| panic!("{}\n{log}", error.report()));
    (id, log)
}

async fn refused(host: &Host, files: &[(&str, &str)]) -> String {
    let (id, _) = build_with(host, options(), context(files)).await;
    id.expect_err("a build that fails").report()
}

/// What a shell command in a container of the image prints.
async fn said(host: &Host, image: &ImageId, command: &str) -> String {
    let spec = ContainerSpec {
        image: image.to_string(),
        entrypoint: Some(vec!["/bin/sh".into(), "-c".into()]),
        cmd: Some(vec![command.into()]),
        ..crate::host::sh("")
    };
    let (code, output) = host.run(spec).await;
    assert_eq!(code, 0, "{output}");
    output
}

async fn containers(host: &Host) -> usize {
    let all = ContainerFilter {
        all: true,
        ..ContainerFilter::default()
    };
    host.engine.list(&all).await.expect("list").len()
}

#[tokio::test(flavor = "multi_thread")]
async fn stages_steps_and_cache() {
    let host = Host::new().await;
    let files = [
        (
            "Dockerfile",
            "ARG BASE=box\n\
             FROM ${BASE} AS build\n\
             ARG WORD=default\n\
             ENV GREETING=\"hello $WORD\"\n\
             WORKDIR /src\n\
             COPY main.c lib/ ./\n\
             RUN cat main.c a.h > out && echo built && rm -f /bin/ls\n\
             FROM box\n\
             LABEL l=1\n\
             COPY --from=build /src/out /app/\n\
             COPY --from=0 /src /copy\n\
             USER 7:8\n\
             ENTRYPOINT [\"/bin/cat\"]\n\
             CMD [\"/app/out\"]\n",
        ),
        ("main.c", "main\n"),
        ("lib/a.h", "header\n"),
        ("lib/sub/b.h", "deep\n"),
    ];
    let (id, log) = build(&host, &files).await;
    assert!(
        log.starts_with("Step 1/14 : ARG BASE=box\nStep 2/14 : FROM ${BASE} AS build\n ---> "),
        "{log}"
    );
    assert!(
        log.contains("\n ---> Running in ") && log.contains("\nbuilt\n"),
        "{log}"
    );
    assert!(log.contains("\nRemoving intermediate container "), "{log}");
    assert!(
        log.ends_with(&format!("Successfully built {}\n", id.short())),
        "{log}"
    );
    assert_eq!(containers(&host).await, 0);
    assert_eq!(
        said(
            &host,
            &id,
            "cat /app/out /copy/sub/b.h; id -u; id -g; ls / | grep -c src; true"
        )
        .await,
        "main\nheader\ndeep\n7\n8\n0\n"
    );

    // The second time nothing is made.
    let (again, log) = build(&host, &files).await;
    assert_eq!(again, id);
    assert_eq!(log.matches(" ---> Using cache\n").count(), 11, "{log}");
    assert!(!log.contains("Running in"), "{log}");

    // A changed file is a step to be made again, and so are those after it; a removed file stays removed.
    let mut changed = files;
    changed[1].1 = "other\n";
    let (new, log) = build(&host, &changed).await;
    assert_ne!(new, id);
    assert_eq!(said(&host, &new, "cat /app/out").await, "other\nheader\n");
    assert_eq!(log.matches(" ---> Using cache\n").count(), 4, "{log}");
    let target = BuildOptions {
        target: "build".into(),
        ..options()
    };
    let (stage, _) = build_with(&host, target, context(&changed)).await;
    let stage = stage.expect("a stage");
    assert_eq!(
        said(
            &host,
            &stage,
            "test -e /bin/ls || echo gone; echo $GREETING"
        )
        .await,
        "gone\nhello default\n"
    );

    let no_cache = BuildOptions {
        no_cache: true,
        ..options()
    };
    let (fresh, log) = build_with(&host, no_cache, context(&changed)).await;
    assert!(fresh.is_ok() && !log.contains("Using cache"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_labels_and_names() {
    let host = Host::new().await;
    let file = "FROM box\nARG A\nARG B=b\nRUN echo \"$A-$B-$http_proxy\" > /said\n";
    let wish = BuildOptions {
        args: BTreeMap::from([
            ("A".to_owned(), Some("x".to_owned())),
            ("http_proxy".to_owned(), Some("p".to_owned())),
            ("UNKNOWN".to_owned(), Some("u".to_owned())),
        ]),
        labels: BTreeMap::from([("k".to_owned(), "$v".to_owned())]),
        tags: vec!["one".to_owned(), "two:2".to_owned()],
        ..options()
    };
    let (id, log) = build_with(&host, wish.clone(), context(&[("Dockerfile", file)])).await;
    let id = id.expect("an image");
    assert_eq!(said(&host, &id, "cat /said").await, "x-b-p\n");
    assert!(
        log.contains("[Warning] One or more build-args [UNKNOWN] were not consumed\n"),
        "{log}"
    );
    assert!(log.contains("Step 5/5 : LABEL k=$v\n"), "{log}");
    assert!(
        log.ends_with("Successfully tagged one:latest\nSuccessfully tagged two:2\n"),
        "{log}"
    );
    let images = host.engine.images();
    let record = images.resolve("two:2").expect("named");
    assert_eq!(
        (record.id, record.config.labels["k"].as_str()),
        (id.clone(), "$v")
    );
    let history = images.history("one").expect("history");
    assert_eq!(
        history[1].created_by,
        "|2 A=x B=b /bin/sh -c echo \"$A-$B-$http_proxy\" > /said"
    );
    assert!(
        history.iter().take(4).all(|row| row.id.is_some()),
        "{history:?}"
    );

    // Another value of an argument is another step; a proxy nobody declared is none.
    let proxy = BuildOptions {
        args: BTreeMap::from([("A".to_owned(), Some("x".to_owned()))]),
        ..wish.clone()
    };
    let (same, _) = build_with(&host, proxy, context(&[("Dockerfile", file)])).await;
    assert_eq!(same.expect("an image"), id);
    let other = BuildOptions {
        args: BTreeMap::from([("A".to_owned(), Some("y".to_owned()))]),
        ..options()
    };
    let (other, _) = build_with(&host, other, context(&[("Dockerfile", file)])).await;
    assert_ne!(other.expect("an image"), id);

    let quiet = BuildOptions {
        quiet: true,
        ..wish
    };
    let (id, log) = build_with(&host, quiet, context(&[("Dockerfile", file)])).await;
    assert_eq!(log, format!("{}\n", id.expect("an image")));
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_say_what_docker_says_and_leave_nothing() {
    let host = Host::new().await;
    let images = host.engine.images().list().len();
    let only = |text: &'static str| [("Dockerfile", text)];
    assert_eq!(
        refused(&host, &only("FROM box\nNONSENSE")).await,
        "dockerfile parse error on line 2: unknown instruction: NONSENSE"
    );
    assert_eq!(
        refused(&host, &[("a", "b")]).await,
        "Cannot locate specified Dockerfile: Dockerfile"
    );
    assert_eq!(
        refused(&host, &only("")).await,
        "the Dockerfile (Dockerfile) cannot be empty"
    );
    assert_eq!(
        refused(&host, &only("FROM box\nCOPY missing /")).await,
        "COPY failed: file not found in build context or excluded by .dockerignore: stat missing: file does not exist"
    );
    assert_eq!(
        refused(
            &host,
            &[
                ("Dockerfile", "FROM box\nCOPY a b /x"),
                ("a", ""),
                ("b", "")
            ]
        )
        .await,
        "When using COPY with more than one source file, the destination must be a directory and end with a /"
    );
    assert_eq!(
        refused(&host, &only("FROM box\nCOPY --from=3 a /x")).await,
        "invalid from flag value 3: there is no stage of this number before"
    );
    assert_eq!(
        refused(&host, &only("FROM scratch")).await,
        "No image was generated. Is your Dockerfile empty?"
    );
    assert_eq!(host.engine.images().list().len(), images);

    let failing = BuildOptions {
        remove_failed: true,
        ..options()
    };
    let (failed, log) = build_with(
        &host,
        failing,
        context(&only("FROM box\nRUN echo bad >&2; exit 7")),
    )
    .await;
    let failed = failed.expect_err("a step that fails");
    assert_eq!(failed.exit_code(), Some(7));
    assert_eq!(
        failed.report(),
        "The command '/bin/sh -c echo bad >&2; exit 7' returned a non-zero code: 7"
    );
    assert!(log.contains("\x1b[91mbad\n\x1b[0m"), "{log:?}");
    assert_eq!(containers(&host).await, 0);
    // Without the flag the container stays, to be looked into.
    refused(&host, &only("FROM box\nRUN false")).await;
    assert_eq!(containers(&host).await, 1);
    let left = std::fs::read_dir(host.root.join("lib/layers/incoming")).expect("incoming");
    assert_eq!(left.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_nobody_waits_for_ends_with_its_container() {
    let host = Host::new().await;
    let (events, mut told) = mpsc::channel(16);
    let (engine, files) = (
        host.engine.clone(),
        context(&[("Dockerfile", "FROM box\nRUN echo on; sleep 1000")]),
    );
    let building =
        tokio::spawn(async move { engine.build(options(), Cursor::new(files), events).await });
    while let Some(event) = told.recv().await {
        if event == BuildEvent::Text("on\n".to_owned()) {
            break;
        }
    }
    assert_eq!(containers(&host).await, 1);
    let mut happens = host.engine.events();
    building.abort();
    while happens.recv().await.expect("an event").action != "destroy" {}
    assert_eq!(containers(&host).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_a_killed_daemon_left_is_removed_at_the_next_start() {
    let mut host = Host::new().await;
    let (events, mut told) = mpsc::channel(16);
    let file = "FROM box\nRUN echo on; sleep 1000";
    let (engine, files) = (host.engine.clone(), context(&[("Dockerfile", file)]));
    // As long as this test lives, and so beyond the daemon that is taken for dead.
    let building =
        tokio::spawn(async move { engine.build(options(), Cursor::new(files), events).await });
    while let Some(event) = told.recv().await {
        if event == BuildEvent::Text("on\n".to_owned()) {
            break;
        }
    }
    host.reopen().await;
    assert_eq!(containers(&host).await, 0);
    let incoming = std::fs::read_dir(host.root.join("lib/layers/incoming")).expect("incoming");
    assert_eq!(incoming.count(), 0);
    building.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_take_owners_modes_patterns_and_ignored_files_into_account() {
    let host = Host::new().await;
    let mut archive = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    archive
        .write_all(&context(&[("in/side", "archived\n")]))
        .expect("archive");
    let archive = archive.finish().expect("archive");
    let mut whole = context(&[
        (
            "build/Dockerfile",
            "FROM box\n\
             RUN mkdir -p /etc && echo 'u:x:5:6::/:' > /etc/passwd && echo 'u:x:9:' > /etc/group && mkdir /real && ln -s /real /link && echo x > /real/old && ln -s old /real/alias\n\
             COPY --chown=u --chmod=0640 one /made/by/copy/\n\
             COPY --chown=3:4 dir /dir\n\
             COPY *.txt [d]ir/f? /patterns/\n\
             COPY . /all/\n\
             COPY one /link/new\n\
             COPY two.txt /link/alias\n\
             ADD a.tgz /unpacked/\n\
             COPY a.tgz /packed\n\
             ADD one three.txt /added/\n",
        ),
        (".dockerignore", "secret\nbuild\n**/skip*\n!dir/skip-not\n"),
        ("one", "1"),
        ("two.txt", "2"),
        ("three.txt", "3"),
        ("secret", "s"),
        ("dir/f1", "f"),
        ("dir/skip", ""),
        ("dir/skip-not", ""),
        ("way@", "dir/f1"),
    ]);
    // The archive is a file of the context like any other, before the two blocks that end it.
    whole.truncate(whole.len() - 1024);
    let mut tar = tar::Builder::new(whole);
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(archive.len() as u64);
    tar.append_data(&mut header, "a.tgz", &archive[..])
        .expect("file");
    let wish = BuildOptions {
        dockerfile: "build/Dockerfile".into(),
        ..options()
    };
    let (id, log) = build_with(&host, wish, tar.into_inner().expect("archive")).await;
    let id = id.unwrap_or_else(|error| panic!("{}\n{log}", error.report()));
    let script = "stat -c '%u:%g %a %n' /made /made/by/copy/one /dir /dir/f1; ls /patterns /all /all/dir; \
                  readlink /all/way; ls /link/; cat /real/new /real/old; cat /unpacked/in/side; ls -d /packed; ls /added";
    assert_eq!(
        said(&host, &id, script).await,
        "5:9 755 /made\n5:9 640 /made/by/copy/one\n3:4 755 /dir\n3:4 644 /dir/f1\n\
         /all:\na.tgz\ndir\none\nthree.txt\ntwo.txt\nway\n\n/all/dir:\nf1\nskip-not\n\n/patterns:\nf1\nthree.txt\ntwo.txt\n\
         dir/f1\nalias\nnew\nold\n12archived\n/packed\none\nthree.txt\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_in_a_context_or_image_leads_to_the_host() {
    let host = Host::new().await;
    let canary = tempfile::tempdir().expect("canary");
    let file = canary.path().join("file");
    std::fs::write(&file, "canary").expect("canary");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o604)).expect("canary");
    let path = canary.path().to_str().expect("a path in UTF-8");
    let climbing = format!("../../../../../..{path}/file");

    // Links of the context end in the context.
    for (link, target) in [
        ("l@", format!("{path}/file")),
        ("l@", climbing.clone()),
        ("d@", path.to_owned()),
    ] {
        let source = if link == "d@" { "d/file" } else { "l" };
        let dockerfile = format!("FROM box\nCOPY {source} /stolen");
        let said = refused(&host, &[("Dockerfile", &dockerfile), (link, &target)]).await;
        assert!(said.contains("file does not exist"), "{said}");
    }
    let dockerfile = format!("FROM box\nCOPY {climbing} /stolen");
    assert!(
        refused(&host, &[("Dockerfile", &dockerfile)])
            .await
            .contains("file does not exist")
    );
    // The Dockerfile itself is looked for inside, too.
    let said = refused(&host, &[("Dockerfile@", &format!("{path}/file"))]).await;
    assert!(said.contains("Cannot locate"), "{said}");

    // Links of an image end in the image, for reading and for writing.
    let dockerfile =
        format!("FROM box AS a\nRUN ln -s {path} /out\nFROM box\nCOPY --from=a /out/file /stolen");
    let said = refused(&host, &[("Dockerfile", &dockerfile)]).await;
    assert!(said.contains("file does not exist"), "{said}");
    let dockerfile = format!(
        "FROM box\nRUN ln -s {path} /out && ln -s {path}/file /name\nCOPY evil /out/file\nCOPY evil /name\nADD evil /out/new\nWORKDIR /out/made\n"
    );
    let (id, _) = build(&host, &[("Dockerfile", &dockerfile), ("evil", "evil")]).await;
    assert_eq!(said_at(&host, &id, path).await, "evil\nevil\n");

    // Archives that would write outside are refused, and so are names that climb.
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    let name = format!("../../../../../..{path}/file");
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_cksum();
    tar.append(&header, &b"evil"[..]).expect("entry");
    let (refused, _) = build_with(&host, options(), tar.into_inner().expect("archive")).await;
    assert!(
        refused
            .expect_err("a hostile context")
            .report()
            .contains("outside the archive")
    );

    let mut content = String::new();
    std::fs::File::open(&file)
        .expect("canary")
        .read_to_string(&mut content)
        .expect("canary");
    assert_eq!(content, "canary");
    assert_eq!(std::fs::read_dir(canary.path()).expect("canary").count(), 1);
    let mode = std::fs::metadata(&file)
        .expect("canary")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o604);
}

async fn said_at(host: &Host, image: &ImageId, path: &str) -> String {
    said(
        host,
        image,
        &format!("cat {path}/file; echo; cat {path}/new; echo"),
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dockerfile_that_only_travelled_along_is_not_copied() {
    let host = Host::new().await;
    let wish = BuildOptions {
        dockerfile: ".dockerfile.of.a.client".into(),
        ..options()
    };
    let files = [
        (".dockerfile.of.a.client", "FROM box\nCOPY . /all\n"),
        ("file", ""),
    ];
    let (id, log) = build_with(&host, wish, context(&files)).await;
    let id = id.unwrap_or_else(|error| panic!("{}\n{log}", error.report()));
    assert_eq!(said(&host, &id, "ls -A /all").await, "file\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn triggers_run_in_the_builds_that_follow() {
    let host = Host::new().await;
    let parent = BuildOptions {
        tags: vec!["parent".into()],
        ..options()
    };
    let file = "FROM box\nONBUILD COPY f /f\nONBUILD RUN cat /f > /g\n";
    let (id, log) = build_with(&host, parent, context(&[("Dockerfile", file)])).await;
    assert!(id.is_ok(), "{log}");
    let (id, log) = build(&host, &[("Dockerfile", "FROM parent\nCMD a"), ("f", "x")]).await;
    assert!(log.contains("# Executing 2 build triggers\n"), "{log}");
    assert_eq!(said(&host, &id, "cat /g").await, "x");
    assert!(
        host.engine
            .images()
            .resolve(&id.to_string())
            .expect("image")
            .config
            .on_build
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_an_image_serve_as_cache_on_another_host() {
    let (first, second) = (Host::new().await, Host::bare().await);
    let file = "FROM box\nRUN echo once > /file\nENV A=b\n";
    let wish = BuildOptions {
        tags: vec!["app".into()],
        ..options()
    };
    let (id, _) = build_with(&first, wish, context(&[("Dockerfile", file)])).await;
    let id = id.expect("an image");
    let (mut reader, writer) = tokio::io::duplex(1 << 20);
    let names = [IMAGE.to_owned(), "app:latest".to_owned()];
    let saving = first.engine.images().save(&names, writer);
    let mut archive = Vec::new();
    let reading = tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut archive);
    let (saved, read) = tokio::join!(saving, reading);
    saved.expect("saved");
    read.expect("read");
    let (progress, _lines) = mpsc::channel(1000);
    second
        .engine
        .images()
        .load(Cursor::new(archive), progress)
        .await
        .expect("loaded");
    assert_eq!(second.engine.images().resolve("app").expect("app").id, id);

    let wish = BuildOptions {
        cache_from: vec!["app".into(), "not-here".into()],
        ..options()
    };
    let (built, log) = build_with(&second, wish, context(&[("Dockerfile", file)])).await;
    let built = built.expect("an image");
    assert_eq!(log.matches("Using cache").count(), 2, "{log}");
    let layers = |host: &Host, id: &ImageId| host.engine.images().spec(id).expect("spec").diff_ids;
    assert_eq!(layers(&second, &built), layers(&first, &id));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_becomes_an_image() {
    let host = Host::new().await;
    let spec = crate::host::sh(
        "echo new > /new; rm -r /tmp; mkdir /tmp; chmod 700 /bin/busybox; exec sleep 1000",
    );
    let id = host.start(spec).await;
    let wish = CommitOptions {
        name: "made:1".into(),
        author: "me".into(),
        comment: "why".into(),
        pause: true,
        changes: vec!["ENV X=y".into(), "CMD [\"cat\", \"/new\"]".into()],
    };
    // What the shell did before it became sleep is a fact once its name says so.
    while !host
        .exec(&id, &["cat", "/proc/1/cmdline"])
        .await
        .1
        .contains("1000")
    {}
    let image = host
        .engine
        .commit(id.as_str(), &wish)
        .await
        .expect("commit");
    let status = host
        .engine
        .inspect(id.as_str(), false)
        .await
        .expect("inspect")
        .state
        .status;
    assert!(status.is_up(), "{status:?}");
    host.engine
        .remove(id.as_str(), true, true)
        .await
        .expect("remove");
    let shown = host.engine.images().inspect("made:1").expect("inspect");
    assert_eq!(
        (
            shown.id.clone(),
            shown.author.as_str(),
            shown.comment.as_str()
        ),
        (image.clone(), "me", "why")
    );
    assert!(shown.config.env.contains(&"X=y".to_owned()));
    assert_eq!(
        shown.config.cmd.as_deref().expect("command"),
        ["cat", "/new"]
    );
    assert_eq!(
        said(
            &host,
            &image,
            "cat /new; ls /tmp | wc -l; stat -c %a /bin/busybox"
        )
        .await,
        "new\n0\n700\n"
    );
    let bad = CommitOptions {
        changes: vec!["RUN x".into()],
        ..CommitOptions::default()
    };
    assert!(host.engine.commit("nobody", &bad).await.is_err());
}
