//! Ways to and from registries that break, lead elsewhere, or are asked other things than images.

use std::io::Write;
use std::sync::{Arc, Mutex};

use shoal_api::image::ImageConfig;
use shoal_engine::io::images::Registries;

use crate::bench::*;

/// Answers with the rest of `body` from where the request's head wants it.
fn from_range(body: &[u8], head: &str) -> (Vec<u8>, Option<usize>) {
    let lower = head.to_ascii_lowercase();
    let range = lower
        .lines()
        .find_map(|line| line.strip_prefix("range: bytes="));
    let Some(from) = range.and_then(|range| range.trim_end_matches('-').trim().parse().ok()) else {
        return (ok(body), None);
    };
    let rest = &body[from..];
    let mut answer = format!(
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        rest.len()
    )
    .into_bytes();
    answer.extend_from_slice(rest);
    (answer, Some(from))
}

/// A registry of one image whose layer breaks off after `bytes` as long as `broken` says so, and what it was asked for.
fn breaking(bytes: usize, broken: Arc<Mutex<bool>>) -> (String, Arc<Mutex<Vec<usize>>>) {
    let plain = rootfs();
    let (manifest, config) = documents(&plain, &digest(&plain), plain.len());
    let config_digest = digest(config.as_bytes());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&asked);
    let address = serve(move |path, head| match path {
        _ if path.contains("/manifests/") => ok(manifest.as_bytes()),
        _ if path.contains(&config_digest) => ok(config.as_bytes()),
        _ if !path.contains("/blobs/") => ok(b"{}"),
        _ => {
            let (mut answer, from) = from_range(&plain, head);
            noted.lock().unwrap().push(from.unwrap_or(0));
            if *broken.lock().unwrap() {
                let head = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
                let sent = from.unwrap_or(0);
                answer.truncate(head + bytes.saturating_sub(sent));
            }
            answer
        }
    });
    (address, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_goes_on_where_an_earlier_daemon_was_killed() {
    let broken = Arc::new(Mutex::new(true));
    let (address, asked) = breaking(300_000, Arc::clone(&broken));
    let (dir, store) = store();
    let name = format!("{address}/x");
    let (progress, _lines) = listener();
    let failed = store.pull(&name, None, None, progress).await;
    assert!(failed.is_err());
    // As if the daemon had died: nobody tidies up, and the next one opens what is there.
    std::mem::forget(store);
    let store = shoal_engine::io::images::ImageStore::open(dir.path()).unwrap();
    assert!(store.list().is_empty() && store.layers_bytes() == 0);
    let partial = names_in(&dir.path().join("images/partial"));
    assert_eq!(partial.len(), 1);
    let here = std::fs::metadata(dir.path().join("images/partial").join(&partial[0]))
        .unwrap()
        .len();
    assert_eq!(here, 300_000);

    *broken.lock().unwrap() = false;
    asked.lock().unwrap().clear();
    let (progress, _lines) = listener();
    store.pull(&name, None, None, progress).await.unwrap();
    assert_eq!(*asked.lock().unwrap(), [300_000]);
    assert_eq!(names_in(&dir.path().join("images/partial")), [""; 0]);
    assert_eq!(store.list().len(), 1);
    // The blob is whole: what is saved can be loaded elsewhere.
    let blob = dir.path().join("images/blobs/sha256").join(&partial[0]);
    assert_eq!(
        digest(&std::fs::read(blob).unwrap()),
        format!("sha256:{}", partial[0])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_part_is_thrown_away_and_the_blob_fetched_anew() {
    let broken = Arc::new(Mutex::new(false));
    let (address, asked) = breaking(0, broken);
    let (dir, store) = store();
    let layer = digest(&rootfs());
    let partial = dir
        .path()
        .join("images/partial")
        .join(layer.trim_start_matches("sha256:"));
    std::fs::write(&partial, vec![0; 4096]).unwrap();
    let (progress, _lines) = listener();
    store
        .pull(&format!("{address}/x"), None, None, progress)
        .await
        .unwrap();
    assert_eq!(*asked.lock().unwrap(), [4096, 0]);
    assert!(!partial.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_docker_hub_come_from_the_first_mirror_that_has_them() {
    let (address, asked) = breaking(0, Arc::new(Mutex::new(false)));
    let (_dir, store) = store();
    store.set_registries(Registries {
        mirrors: vec![
            "http://127.0.0.1:1".to_owned(),
            format!("http://{address}/"),
        ],
        ..Registries::default()
    });
    let (progress, _lines) = listener();
    let pulled = store.pull("busy:1", None, None, progress).await.unwrap();
    assert_eq!(pulled.name, "busy:1");
    assert_eq!(asked.lock().unwrap().len(), 1);
    assert_eq!(
        store.resolve("docker.io/library/busy:1").unwrap().id,
        pulled.id
    );
    // Images of other registries are none of a mirror's business.
    let (progress, _lines) = listener();
    let other = store.pull("127.0.0.1:1/busy", None, None, progress).await;
    assert!(other.unwrap_err().to_string().contains("127.0.0.1:1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_a_certificate_of_its_own_is_trusted_by_its_directory() {
    let (_dir, store) = store();
    let certs = tempfile::tempdir().unwrap();
    std::fs::create_dir(certs.path().join("127.0.0.1:1")).unwrap();
    std::fs::write(certs.path().join("127.0.0.1:1/own.cert"), "").unwrap();
    store.set_registries(Registries {
        certs_dir: certs.path().to_owned(),
        ..Registries::default()
    });
    let (progress, _lines) = listener();
    let refused = store
        .pull("127.0.0.1:1/x", None, None, progress)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("missing key "), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn searches_ask_the_registry_and_say_why_they_cannot() {
    let address = serve(|path, _| {
        if path == "/v1/search?q=bu%2Fsy&n=7" {
            return ok(br#"{"results":[{"name":"busy","description":"d","star_count":3,"is_official":true}]}"#);
        }
        ok(b"<html>")
    });
    let (_dir, store) = store();
    let found = store
        .search(&format!("{address}/bu/sy"), 7, None)
        .await
        .unwrap();
    assert_eq!(
        (found.len(), found[0].name.as_str(), found[0].stars),
        (1, "busy", 3)
    );
    let strange = store
        .search(&format!("{address}/other"), 7, None)
        .await
        .unwrap_err();
    assert!(
        strange.to_string().ends_with("the registry has no search"),
        "{strange}"
    );
    let nobody = store.search("127.0.0.1:1/x", 7, None).await.unwrap_err();
    assert!(
        nobody.to_string().contains("http://127.0.0.1:1/v1/search"),
        "{nobody}"
    );
    assert!(store.search("https://h/x", 7, None).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_are_imported_however_they_are_packed() {
    let plain = rootfs();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 0);
    xz.write_all(&plain).unwrap();
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(&plain).unwrap();
    let packed = [
        plain.clone(),
        gzip.finish().unwrap(),
        zstd::encode_all(&plain[..], 1).unwrap(),
        xz.finish().unwrap(),
        bzip2.finish().unwrap(),
    ];
    let (_dir, store) = store();
    for archive in packed {
        let id = store
            .import_rootfs(std::io::Cursor::new(archive), ImageConfig::default(), None)
            .await
            .unwrap();
        let spec = store.spec(&id).unwrap();
        assert_eq!(spec.diff_ids[0].to_string(), digest(&plain));
    }
    let torn = store.import_rootfs(
        std::io::Cursor::new(b"\xfd7zXZ\0torn".to_vec()),
        ImageConfig::default(),
        None,
    );
    assert!(torn.await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_a_pull_and_an_import_clearly_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let words = ["-t", "tmpfs", "-o", "size=900k", "tmpfs"];
    let mounted = std::process::Command::new("mount")
        .args(words)
        .arg(dir.path())
        .status()
        .unwrap();
    assert!(mounted.success());
    struct Unmount(std::path::PathBuf);
    impl Drop for Unmount {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount")
                .arg("-l")
                .arg(&self.0)
                .status();
        }
    }
    let _unmount = Unmount(dir.path().to_owned());
    let store = shoal_engine::io::images::ImageStore::open(dir.path()).unwrap();
    let (address, _) = breaking(0, Arc::new(Mutex::new(false)));
    let (progress, _lines) = listener();
    let failed = store
        .pull(&format!("{address}/x"), None, None, progress)
        .await
        .unwrap_err();
    assert!(
        failed.report().contains("No space left on device"),
        "{}",
        failed.report()
    );
    let failed = store
        .import_rootfs(
            std::io::Cursor::new(rootfs()),
            ImageConfig::default(),
            Some("x"),
        )
        .await
        .unwrap_err();
    assert!(
        failed.report().contains("No space left on device"),
        "{}",
        failed.report()
    );
    let mut archive = tar::Builder::new(Vec::new());
    archive
        .append_path_with_name("/bin/busybox", "layer.tar")
        .unwrap();
    let (progress, _lines) = listener();
    let archive = std::io::Cursor::new(archive.into_inner().unwrap());
    let failed = store.load(archive, progress).await.unwrap_err();
    assert!(
        failed.report().contains("No space left on device"),
        "{}",
        failed.report()
    );
    drop(store);
    let store = shoal_engine::io::images::ImageStore::open(dir.path()).unwrap();
    assert!(store.list().is_empty());
    for place in [
        "images/blobs/sha256",
        "images/incoming",
        "images/partial",
        "layers/incoming",
    ] {
        assert_eq!(names_in(&dir.path().join(place)), [""; 0], "{place}");
    }
}
