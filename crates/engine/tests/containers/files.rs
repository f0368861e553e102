//! `docker cp`, `diff` and `export`.

use std::collections::BTreeMap;
use std::io::Read;

use shoal_api::container::{ChangeKind, ContainerId};
use shoal_engine::io::EngineErrorKind;
use shoal_engine::io::engine::ArchiveStream;
use tokio_stream::StreamExt;

use crate::host::{Host, busybox, cmd, dir, file, link, sh};
use crate::walls::census;

/// Entries of an archive: kind, then what a file holds or a link says.
async fn entries(mut stream: ArchiveStream) -> BTreeMap<String, String> {
    let mut bytes = Vec::new();
    while let Some(piece) = stream.next().await {
        bytes.extend_from_slice(&piece.expect("a whole archive"));
    }
    let mut archive = tar::Archive::new(bytes.as_slice());
    let mut found = BTreeMap::new();
    for entry in archive.entries().expect("archive") {
        let mut entry = entry.expect("entry");
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let link = entry
            .link_name_bytes()
            .map(|link| String::from_utf8_lossy(&link).into_owned());
        let kind = entry.header().entry_type();
        let mut text = String::new();
        if kind.is_file() {
            entry.read_to_string(&mut text).unwrap_or_default();
        }
        let told = match kind {
            tar::EntryType::Directory => "directory".to_owned(),
            tar::EntryType::Symlink => format!("-> {}", link.unwrap_or_default()),
            tar::EntryType::Link => format!("= {}", link.unwrap_or_default()),
            _ => text,
        };
        found.insert(name, told);
    }
    found
}

fn archive(fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> std::io::Cursor<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    fill(&mut tar);
    std::io::Cursor::new(tar.into_inner().expect("archive"))
}

async fn copy_in(
    host: &Host,
    id: &ContainerId,
    path: &str,
    fill: impl FnOnce(&mut tar::Builder<Vec<u8>>),
) -> Result<(), String> {
    let done = host
        .engine
        .extract(id.as_str(), path, true, false, archive(fill));
    done.await.map_err(|err| err.report())
}

pub(crate) async fn get(host: &Host, id: &ContainerId, path: &str) -> BTreeMap<String, String> {
    let found = host.engine.archive(id.as_str(), path).await;
    entries(
        found
            .unwrap_or_else(|err| panic!("{path}: {}", err.report()))
            .1,
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn files_travel_both_ways_whether_it_runs_or_not() {
    let host = Host::new().await;
    let mut spec = sh(
        "mkdir -p /tmp/d/e; echo one > /tmp/d/one; ln -s /etc/passwd /tmp/d/link; ln /tmp/d/one /tmp/d/two; echo up; sleep 1000",
    );
    spec.host.binds = vec!["kept:/vol".into()];
    spec.host.tmpfs.insert("/mem".into(), String::new());
    let id = host.engine.create(spec).await.expect("create");
    // Before the first start.
    copy_in(&host, &id, "/vol", |tar| file(tar, "early", b"bird", 0o640))
        .await
        .expect("copy");
    copy_in(&host, &id, "/var", |tar| {
        file(tar, "x/early", b"worm", 0o600)
    })
    .await
    .expect("copy");
    assert_eq!(get(&host, &id, "/vol").await["vol/early"], "bird");
    host.engine.start(id.as_str()).await.expect("start");
    host.wait_for_output(&id, "up").await;

    let (_, said) = host
        .exec(
            &id,
            &[
                "sh",
                "-c",
                "cat /vol/early /var/x/early; stat -c %a /vol/early; echo m > /mem/m",
            ],
        )
        .await;
    assert_eq!(said, "birdworm640\n");
    let expected: BTreeMap<String, String> = [
        ("d/", "directory"),
        ("d/e/", "directory"),
        ("d/link", "-> /etc/passwd"),
        ("d/one", "one\n"),
        ("d/two", "= d/one"),
    ]
    .map(|(name, text)| (name.to_owned(), text.to_owned()))
    .into();
    assert_eq!(get(&host, &id, "/tmp/d").await, expected);
    assert_eq!(get(&host, &id, "/tmp/../tmp/d/one").await["one"], "one\n");
    assert_eq!(get(&host, &id, "/tmp/d/.").await["./one"], "one\n");
    // What only a running container has.
    assert_eq!(get(&host, &id, "/mem/m").await["m"], "m\n");
    copy_in(&host, &id, "/mem", |tar| file(tar, "n", b"new", 0o644))
        .await
        .expect("copy");
    assert_eq!(host.exec(&id, &["cat", "/mem/n"]).await.1, "new");

    let stat = host
        .engine
        .path_stat(id.as_str(), "/tmp/d/link")
        .await
        .expect("stat");
    assert_eq!(
        (stat.name.as_str(), stat.link_target.as_str()),
        ("link", "/etc/passwd")
    );
    assert_eq!(stat.mode & 0o170_000, 0o120_000);
    let stat = host
        .engine
        .path_stat(id.as_str(), "/tmp/d/")
        .await
        .expect("stat");
    assert_eq!(
        (stat.name.as_str(), stat.mode & 0o170_000),
        ("d", 0o040_000)
    );

    host.engine
        .stop(
            id.as_str(),
            &shoal_engine::io::engine::StopOptions {
                grace: Some(std::time::Duration::ZERO),
                ..Default::default()
            },
        )
        .await
        .expect("stop");
    assert_eq!(get(&host, &id, "/tmp/d").await, expected);
    copy_in(&host, &id, "/tmp", |tar| {
        dir(tar, "d/");
        file(tar, "d/one", b"changed", 0o644);
    })
    .await
    .expect("copy");
    assert_eq!(get(&host, &id, "/tmp/d/one").await["one"], "changed");
    host.engine.start(id.as_str()).await.expect("start again");
    host.engine
        .remove(id.as_str(), true, true)
        .await
        .expect("remove");
    host.cgroups_gone().await;
    assert!(host.mounts().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_copied_is_refused_in_dockers_words() {
    let host = Host::new().await;
    let mut spec = sh("echo up; sleep 1000");
    spec.host.readonly_rootfs = true;
    spec.host.binds = vec!["kept:/vol:ro".into(), "free:/free".into()];
    for start in [false, true] {
        let id = host.engine.create(spec.clone()).await.expect("create");
        if start {
            host.engine.start(id.as_str()).await.expect("start");
            host.wait_for_output(&id, "up").await;
        }
        let one = |tar: &mut tar::Builder<Vec<u8>>| file(tar, "x", b"x", 0o644);
        let refused = |path: &'static str| {
            let (host, id) = (&host, &id);
            async move { copy_in(host, id, path, one).await.expect_err(path) }
        };
        assert_eq!(
            refused("/tmp").await,
            "container rootfs is marked read-only",
            "{start}"
        );
        assert_eq!(
            refused("/vol").await,
            "mounted volume is marked read-only",
            "{start}"
        );
        copy_in(&host, &id, "/free", one)
            .await
            .expect("a volume that may be written");
        assert_eq!(
            refused("/nowhere").await,
            format!("Could not find the file /nowhere in container {id}")
        );
        assert_eq!(
            refused("/etc/passwd").await,
            "extraction point is not a directory"
        );
        let err = host
            .engine
            .archive(id.as_str(), "/nowhere")
            .await
            .expect_err("missing");
        assert_eq!(err.kind(), EngineErrorKind::NotFound);
        let made = copy_in(&host, &id, "/free", |tar| {
            dir(tar, "x/");
        });
        let said = made.await.expect_err("a file is in the way");
        assert_eq!(
            said,
            "cannot overwrite non-directory \"/free/x\" with directory \"x/\""
        );
        let said = copy_in(&host, &id, "/free", |tar| {
            let mut header = tar::Header::new_gnu();
            header.set_size(1);
            header.set_mode(0o644);
            header.as_old_mut().name[..5].copy_from_slice(b"../up");
            header.set_cksum();
            tar.append(&header, &b"x"[..]).expect("archive");
        });
        let said = said.await.expect_err("it climbs");
        assert!(said.contains("lies outside the archive"), "{said}");
        host.engine
            .remove(id.as_str(), true, false)
            .await
            .expect("remove");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_and_the_export_tell_the_same_story() {
    let host = Host::new().await;
    host.import("linked:latest", |tar| {
        busybox(tar);
        dir(tar, "old/");
        file(tar, "old/gone", b"", 0o644);
        file(tar, "old/kept", b"kept", 0o644);
        link(tar, "var/run", "/run");
    })
    .await;
    let mut spec = sh(
        "rm /old/gone; echo x > /new; echo y >> /etc/passwd; mkdir /tmp/a; touch /tmp/a/b; rm -r /var/data; mkdir /var/data; touch /var/data/z; echo v > /vol/v; echo up; sleep 1000",
    );
    spec.image = "linked".into();
    spec.host.binds = vec!["kept:/vol".into()];
    let id = host.start(spec).await;
    host.wait_for_output(&id, "up").await;
    let changes = host.engine.changes(id.as_str()).await.expect("changes");
    let changes: Vec<String> = changes
        .into_iter()
        .map(|(path, kind)| {
            let letter = match kind {
                ChangeKind::Modified => 'C',
                ChangeKind::Added => 'A',
                ChangeKind::Deleted => 'D',
            };
            format!("{letter} {}", path.display())
        })
        .collect();
    assert_eq!(
        changes,
        [
            "C /etc",
            "C /etc/passwd",
            "A /new",
            "C /old",
            "D /old/gone",
            "C /tmp",
            "A /tmp/a",
            "A /tmp/a/b",
            "C /var",
            "C /var/data",
            "A /var/data/z",
            "A /vol",
        ]
    );
    for running in [true, false] {
        let export = host.engine.export(id.as_str()).await.expect("export");
        let found = entries(export).await;
        assert_eq!(found["new"], "x\n", "{running}");
        assert_eq!(found["old/kept"], "kept");
        assert_eq!(found["var/run"], "-> /run");
        assert!(!found.contains_key("old/gone") && !found.contains_key("var/data/seed"));
        // Volumes, and what is mounted otherwise, stay out of it.
        assert_eq!(found["vol/"], "directory");
        assert!(
            !found.contains_key("vol/v") && found.keys().all(|name| !name.starts_with("proc/1"))
        );
        if running {
            let _ = host.engine.kill(id.as_str(), None).await;
            host.wait(&id).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn links_that_change_during_a_copy_lead_nowhere() {
    let host = Host::new().await;
    let canary = host.root.join("canary");
    std::fs::create_dir_all(canary.join("sub")).expect("canary");
    std::fs::write(canary.join("sub/secret"), "precious").expect("canary");
    let before = census(&canary);
    // The same path in the container, so that a link followed on the host would meet the canary.
    let mut spec = sh(&format!(
        "mkdir -p /tmp/real/sub; echo plain > /tmp/real/sub/secret; echo up; \
         while true; do ln -sfn {0} /tmp/swap; rm -rf /tmp/swap; mkdir -p /tmp/swap/sub; echo plain > /tmp/swap/sub/secret; rm -rf /tmp/swap; ln -s ../../../../../../../..{0} /tmp/swap; rm /tmp/swap; done",
        canary.display()
    ));
    spec.host.binds = vec!["shared:/vol".into()];
    let id = host.start(spec).await;
    host.wait_for_output(&id, "up").await;
    let rounds: u32 = std::env::var("SHOAL_CP_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(600);
    for round in 0..rounds {
        if let Ok((_, stream)) = host.engine.archive(id.as_str(), "/tmp/swap/sub").await {
            let mut stream = stream;
            while let Some(piece) = stream.next().await {
                let piece = piece.unwrap_or_default();
                assert!(!piece.windows(8).any(|w| w == b"precious"), "round {round}");
            }
        }
        let written = copy_in(&host, &id, "/tmp", |tar| {
            file(tar, "swap/sub/secret", b"written", 0o644);
        });
        // Whatever it met: a directory, a link, nothing.
        let _ = written.await;
    }
    assert_eq!(census(&canary), before);
    host.engine
        .remove(id.as_str(), true, true)
        .await
        .expect("remove");
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_leak_nothing() {
    let host = Host::new().await;
    let id = host.engine.create(cmd(&["true"])).await.expect("create");
    let open = || {
        std::fs::read_dir("/proc/self/fd")
            .expect("descriptors")
            .count()
    };
    let mut counts = Vec::new();
    for _ in 0..30 {
        copy_in(&host, &id, "/tmp", |tar| file(tar, "x", b"x", 0o644))
            .await
            .expect("copy");
        assert_eq!(get(&host, &id, "/tmp/x").await["x"], "x");
        // A client that goes away half-way.
        drop(
            host.engine
                .archive(id.as_str(), "/")
                .await
                .expect("archive"),
        );
        counts.push(open());
    }
    host.engine
        .remove(id.as_str(), false, true)
        .await
        .expect("remove");
    let (first, last) = (counts[4], counts[29]);
    assert!(last <= first + 8, "{counts:?}");
    assert!(host.mounts().is_empty());
}
