//! Volumes with options, mounted for real while containers use them.

use std::path::Path;

use shoal_api::container::{ContainerSpec, VolumeSpec};
use shoal_engine::io::EngineError;

use crate::host::{Host, sh};

fn options(pairs: &[(&str, &str)]) -> VolumeSpec {
    let pair = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    VolumeSpec {
        name: Some("vv".to_owned()),
        options: pairs.iter().map(pair).collect(),
        ..VolumeSpec::default()
    }
}

fn with_volume(command: &str) -> ContainerSpec {
    let mut spec = sh(command);
    spec.host.binds = vec!["vv:/v".to_owned()];
    spec
}

/// What is mounted at a path; empty if nothing is.
fn mounted_at(path: &Path) -> String {
    let info = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let path = path.to_str().expect("a path in UTF-8");
    let here = info
        .lines()
        .filter(|line| line.split(' ').nth(4) == Some(path));
    here.collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_is_mounted_from_the_first_user_to_the_last() {
    let host = Host::new().await;
    let tmpfs = options(&[
        ("type", "tmpfs"),
        ("o", "size=1m,nodev"),
        ("device", "tmpfs"),
    ]);
    let volume = host.engine.volume_create(&tmpfs).expect("create");
    assert_eq!(volume.options, tmpfs.options);
    assert_eq!(mounted_at(&volume.mountpoint), "");
    let first = host
        .start(with_volume("echo 1 > /v/file; echo on; exec sleep 1000"))
        .await;
    host.wait_for_output(&first, "on").await;
    let shown = mounted_at(&volume.mountpoint);
    assert!(
        shown.contains(" - tmpfs tmpfs ") && shown.contains("nodev"),
        "{shown}"
    );
    let second = host.start(with_volume("exec sleep 1000")).await;
    assert_eq!(
        host.exec(&second, &["cat", "/v/file"]).await,
        (0, "1\n".to_owned())
    );
    let fill = ["sh", "-c", "head -c 2000000 /dev/zero > /v/big"];
    assert_ne!(host.exec(&second, &fill).await.0, 0);
    let big = std::fs::metadata(volume.mountpoint.join("big")).expect("file");
    assert!(big.len() <= 1 << 20, "{}", big.len());
    host.engine
        .remove(first.as_str(), true, true)
        .await
        .expect("remove");
    assert_ne!(mounted_at(&volume.mountpoint), "");
    let refused = host.engine.volume_remove("vv", true).unwrap_err();
    assert_eq!(
        refused.to_string(),
        format!("remove vv: volume is in use - [{second}]")
    );
    host.engine
        .remove(second.as_str(), true, true)
        .await
        .expect("remove");
    assert_eq!(mounted_at(&volume.mountpoint), "");
    host.engine.volume_remove("vv", false).expect("remove");
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_a_volume_leaves_what_was_bound_there() {
    let mut host = Host::new().await;
    let outside = tempfile::tempdir().expect("directory");
    std::fs::write(outside.path().join("mine"), "kept").expect("file");
    let device = outside.path().to_str().expect("a path in UTF-8").to_owned();
    let bind = options(&[("type", "none"), ("o", "bind,ro"), ("device", &device)]);
    let volume = host.engine.volume_create(&bind).expect("create");
    let id = host.start(with_volume("exec sleep 1000")).await;
    assert_eq!(host.exec(&id, &["cat", "/v/mine"]).await.1, "kept");
    assert!(
        host.exec(&id, &["touch", "/v/new"])
            .await
            .1
            .contains("Read-only")
    );

    // A daemon that died knows its users again, and unmounts after the last of them.
    host.reopen().await;
    assert_ne!(mounted_at(&volume.mountpoint), "");
    host.engine
        .remove(id.as_str(), true, true)
        .await
        .expect("remove");
    assert_eq!(mounted_at(&volume.mountpoint), "");

    // One that died with a mount nobody uses removes the mount.
    let wish = nix::mount::MsFlags::MS_BIND;
    nix::mount::mount(
        Some(outside.path()),
        &volume.mountpoint,
        None::<&str>,
        wish,
        None::<&str>,
    )
    .expect("mount");
    host.reopen().await;
    assert_eq!(mounted_at(&volume.mountpoint), "");
    nix::mount::mount(
        Some(outside.path()),
        &volume.mountpoint,
        None::<&str>,
        wish,
        None::<&str>,
    )
    .expect("mount");
    host.engine.volume_remove("vv", false).expect("remove");
    assert_eq!(
        std::fs::read(outside.path().join("mine")).expect("file"),
        b"kept"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_mounted_is_told_in_dockers_words_and_nothing_stays() {
    let host = Host::new().await;
    let refused = |pairs: &[(&str, &str)]| {
        let error: EngineError = host.engine.volume_create(&options(pairs)).unwrap_err();
        error.to_string()
    };
    assert_eq!(
        refused(&[("type", "nfs")]),
        "create vv: missing required option: \"device\""
    );
    assert_eq!(
        refused(&[("color", "red")]),
        "create vv: invalid option: \"color\""
    );
    assert!(host.engine.volumes().expect("volumes").is_empty());

    let missing = options(&[("type", "none"), ("o", "bind"), ("device", "/nothing/here")]);
    let volume = host.engine.volume_create(&missing).expect("create");
    let id = host
        .engine
        .create(with_volume("true"))
        .await
        .expect("create");
    let said = host.engine.start(id.as_str()).await.unwrap_err().report();
    let at = volume.mountpoint.display();
    assert_eq!(
        said,
        format!(
            "error while mounting volume '{at}': failed to mount local volume: mount /nothing/here:{at}, flags: 0x1000: no such file or directory"
        )
    );
    assert_eq!(mounted_at(&volume.mountpoint), "");
    host.engine
        .remove(id.as_str(), true, true)
        .await
        .expect("remove");
    host.engine.volume_remove("vv", false).expect("remove");
}
