//! Images against a real registry (Debian's `docker-registry`), and against things that only claim to be one.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use shoal_api::image::{ImageConfig, ImageRemoved, PullProgress, RegistryAuth};
use shoal_engine::io::images::{ImageErrorKind, ImageStore};
use tempfile::TempDir;
use tokio::sync::mpsc;

/// A registry of our own, with one user; it ends with the test.
struct Registry {
    child: Child,
    address: String,
    _dir: TempDir,
}

impl Registry {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let password = Command::new("htpasswd")
            .args(["-Bbn", "ann", "secret"])
            .output()
            .expect("apache2-utils is installed");
        fs::write(dir.path().join("htpasswd"), password.stdout).unwrap();
        // The port is free now; nothing else on this host takes ports at random from this range so quickly.
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let address = format!("127.0.0.1:{port}");
        let (root, users) = (dir.path().join("data"), dir.path().join("htpasswd"));
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\nauth:\n  htpasswd:\n    realm: test\n    path: {}\n",
            root.display(),
            users.display()
        );
        let file = dir.path().join("config.yml");
        fs::write(&file, config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        let registry = Self {
            child,
            address,
            _dir: dir,
        };
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(&registry.address).is_err() {
            assert!(
                std::time::Instant::now() < deadline,
                "the registry does not listen"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ann(password: &str) -> RegistryAuth {
    RegistryAuth {
        username: "ann".into(),
        password: password.into(),
        ..RegistryAuth::default()
    }
}

fn at(registry: &Registry, password: &str) -> RegistryAuth {
    RegistryAuth {
        server_address: registry.address.clone(),
        ..ann(password)
    }
}

/// Listens to progress and keeps it.
fn listener() -> (
    mpsc::Sender<PullProgress>,
    tokio::task::JoinHandle<Vec<PullProgress>>,
) {
    let (sender, mut lines) = mpsc::channel(64);
    let kept = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Some(line) = lines.recv().await {
            kept.push(line);
        }
        kept
    });
    (sender, kept)
}

fn store() -> (TempDir, ImageStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    (dir, store)
}

/// A root file system of one static program.
fn rootfs() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    archive
        .append_path_with_name("/bin/busybox", "bin/busybox")
        .unwrap();
    let mut link = tar::Header::new_ustar();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    link.set_mode(0o777);
    archive.append_link(&mut link, "bin/sh", "busybox").unwrap();
    archive.into_inner().unwrap()
}

async fn import(store: &ImageStore, name: &str) -> String {
    let config = ImageConfig {
        cmd: Some(vec!["/bin/sh".into()]),
        env: vec!["A=1".into()],
        ..ImageConfig::default()
    };
    store
        .import_rootfs(std::io::Cursor::new(rootfs()), config, Some(name))
        .await
        .unwrap()
        .to_string()
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_travels_through_a_registry() {
    let registry = Registry::start();
    let name = registry.name("team/busy:1");
    let (_source_dir, source) = store();
    let id = import(&source, &name).await;
    let auth = ann("secret");
    let (progress, lines) = listener();
    let pushed = source
        .push(&name, Some(&auth), &[], progress)
        .await
        .unwrap();
    let said: Vec<_> = lines
        .await
        .unwrap()
        .into_iter()
        .map(|line| line.status)
        .collect();
    assert_eq!(
        said.first().unwrap(),
        &format!(
            "The push refers to repository [{}]",
            registry.name("team/busy")
        )
    );
    assert!(said.contains(&"Pushed".to_owned()));
    assert_eq!(
        said.last().unwrap(),
        &format!("1: digest: {} size: {}", pushed.digest, pushed.size)
    );
    let (progress, lines) = listener();
    source
        .push(&name, Some(&auth), &[], progress)
        .await
        .unwrap();
    assert!(
        lines
            .await
            .unwrap()
            .iter()
            .any(|line| line.status == "Layer already exists")
    );

    // By tag.
    let (target_dir, target) = store();
    let (progress, lines) = listener();
    let pulled = target
        .pull(&name, None, Some(&auth), &[], progress)
        .await
        .unwrap();
    assert_eq!(
        (pulled.id.to_string(), &pulled.digest, pulled.newer),
        (id.clone(), &pushed.digest, true)
    );
    let said: Vec<_> = lines
        .await
        .unwrap()
        .into_iter()
        .map(|line| line.status)
        .collect();
    assert_eq!(said.first().unwrap(), "Pulling from team/busy");
    for expected in ["Pulling fs layer", "Download complete", "Pull complete"] {
        assert!(
            said.iter().any(|status| status == expected),
            "{expected} in {said:?}"
        );
    }
    assert_eq!(
        said.last().unwrap(),
        &format!("Status: Downloaded newer image for {name}")
    );
    let record = target.resolve(&name).unwrap();
    assert_eq!(
        record.repo_digests,
        [format!("{}@{}", registry.name("team/busy"), pushed.digest)]
    );
    assert_eq!(record.config.env, ["A=1"]);
    assert_eq!(
        fs::read(record.layers[0].join("bin/busybox")).unwrap(),
        fs::read("/bin/busybox").unwrap()
    );
    assert_eq!(
        fs::read_link(record.layers[0].join("bin/sh")).unwrap(),
        Path::new("busybox")
    );

    // Again, and by digest.
    let (progress, lines) = listener();
    assert!(
        !target
            .pull(&name, None, Some(&auth), &[], progress)
            .await
            .unwrap()
            .newer
    );
    assert!(
        lines
            .await
            .unwrap()
            .iter()
            .any(|line| line.status == format!("Status: Image is up to date for {name}"))
    );
    let by_digest = format!("{}@{}", registry.name("team/busy"), pushed.digest);
    let (_other_dir, other) = store();
    let (progress, _lines) = listener();
    other
        .pull(&by_digest, None, Some(&auth), &[], progress)
        .await
        .unwrap();
    assert_eq!(other.resolve(&by_digest).unwrap().id.to_string(), id);
    assert!(other.resolve(&name).is_err());

    let remote = target
        .manifest_digest_of_remote(&name, Some(&auth), &[])
        .await
        .unwrap();
    assert_eq!(
        (remote.digest, remote.size, remote.platforms.len()),
        (pushed.digest, pushed.size, 1)
    );

    target
        .check_login(&at(&registry, "secret"), &[])
        .await
        .unwrap();
    let error = target
        .check_login(&at(&registry, "wrong"), &[])
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "login attempt to http://{}/v2/ failed with status: 401 Unauthorized",
            registry.address
        )
    );

    // What was pulled is there after a restart, and gone after removal.
    drop(target);
    let target = ImageStore::open(target_dir.path()).unwrap();
    assert_eq!(target.resolve(&name).unwrap().id.to_string(), id);
    let removed = target.remove(&name, false, Vec::new()).await.unwrap();
    assert_eq!(removed.first(), Some(&ImageRemoved::Untagged(name.clone())));
    assert_eq!(
        removed.last(),
        Some(&ImageRemoved::Deleted(target_layer(&source, &name)))
    );
    assert_eq!(
        names_in(&target_dir.path().join("images/blobs/sha256")),
        [""; 0]
    );
    assert_eq!(names_in(&target_dir.path().join("layers")), ["incoming"]);
}

fn target_layer(store: &ImageStore, name: &str) -> String {
    store.inspect(name).unwrap().diff_ids[0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_told_in_dockers_words() {
    let registry = Registry::start();
    let (dir, store) = store();
    let fail = async |name: &str, auth: Option<RegistryAuth>| {
        let (progress, _lines) = listener();
        store
            .pull(name, None, auth.as_ref(), &[], progress)
            .await
            .unwrap_err()
    };
    let name = registry.name("nosuch:1");
    let error = fail(&name, Some(ann("wrong"))).await;
    assert_eq!(error.kind(), ImageErrorKind::Denied);
    let url = format!("http://{}/v2/nosuch/manifests/1", registry.address);
    assert_eq!(
        error.to_string(),
        format!("Get {url:?}: unauthorized: authentication required")
    );
    let error = fail(&name, None).await;
    assert_eq!(
        error.to_string(),
        format!(
            "Get \"http://{}/v2/\": no basic auth credentials",
            registry.address
        )
    );
    let error = fail(&name, Some(ann("secret"))).await;
    assert_eq!(error.kind(), ImageErrorKind::NotFound);
    assert_eq!(
        error.to_string(),
        format!("manifest for {name} not found: manifest unknown: manifest unknown")
    );
    let error = fail("Not/A/Name", None).await;
    assert_eq!(error.kind(), ImageErrorKind::Invalid);
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let error = fail(&format!("{free}/x"), None).await;
    assert_eq!(error.kind(), ImageErrorKind::Registry);
    assert_eq!(
        error.to_string(),
        format!("Get \"http://{free}/v2/\": Connection refused (os error 111)")
    );
    assert_eq!(names_in(&dir.path().join("images/blobs/sha256")), [""; 0]);
}

/// Answers every request with what `answer` makes of its path, on one connection each.
fn serve(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // Ends with the test's process; it holds nothing but a socket.
    std::thread::spawn(move || {
        let answer = Arc::new(answer);
        for stream in listener.incoming() {
            let (Ok(mut stream), answer) = (stream, Arc::clone(&answer)) else {
                continue;
            };
            std::thread::spawn(move || {
                let mut request = Vec::new();
                let mut byte = [0];
                while !request.ends_with(b"\r\n\r\n")
                    && stream.read(&mut byte).is_ok_and(|count| count == 1)
                {
                    request.push(byte[0]);
                    if request[0] != b'G' && request[0] != b'H' {
                        return;
                    }
                }
                let text = String::from_utf8_lossy(&request).into_owned();
                let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
                let _ = stream.write_all(&answer(&path));
            });
        }
    });
    address
}

fn ok(body: &[u8]) -> Vec<u8> {
    let mut answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    answer.extend_from_slice(body);
    answer
}

fn digest(content: &[u8]) -> String {
    use sha2::Digest as _;
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(content)))
}

/// An image of one layer as a registry serves it: manifest and configuration for `layer`, which unpacks to `plain`.
fn documents(plain: &[u8], layer_digest: &str, layer_size: usize) -> (String, String) {
    let arch = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let config = format!(
        r#"{{"os":"linux","architecture":"{arch}","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        digest(plain)
    );
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},"layers":[{{"mediaType":"l","digest":"{layer_digest}","size":{layer_size}}}]}}"#,
        digest(config.as_bytes()),
        config.len(),
    );
    (manifest, config)
}

async fn pull_error(store: &ImageStore, name: &str) -> String {
    let (progress, _lines) = listener();
    store
        .pull(name, None, None, &[], progress)
        .await
        .unwrap_err()
        .report()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_answers_rubbish_is_named() {
    let (dir, store) = store();
    let address = serve(|_| b"\x16\x03rubbish\r\n\r\n".to_vec());
    let error = pull_error(&store, &format!("{address}/x")).await;
    assert!(
        error.starts_with(&format!("Get \"http://{address}/v2/\": ")),
        "{error}"
    );

    let address = serve(|_| ok(b"<html>hello</html>"));
    let error = pull_error(&store, &format!("{address}/x")).await;
    assert!(
        error.starts_with(&format!(
            "cannot use the manifest of {address}/x:latest: manifest is not readable JSON"
        )),
        "{error}"
    );

    let address = serve(|_| {
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\nConnection: close\r\n\r\noops".to_vec()
    });
    let error = pull_error(&store, &format!("{address}/x")).await;
    assert_eq!(
        error,
        format!("Get \"http://{address}/v2/\": unexpected status 502 Bad Gateway: oops")
    );

    // A manifest other than the one asked for.
    let address = serve(|_| ok(br#"{"schemaVersion":2}"#));
    let error = pull_error(&store, &format!("{address}/x@sha256:{}", "0".repeat(64))).await;
    assert!(error.contains("expected sha256:000"), "{error}");

    // An index without a build for this host.
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"digest":"sha256:{}","size":1,"platform":{{"os":"linux","architecture":"s390x"}}}}]}}"#,
        "0".repeat(64)
    );
    let address = serve(move |_| ok(index.as_bytes()));
    let error = pull_error(&store, &format!("{address}/x")).await;
    assert!(
        error.starts_with("no matching manifest for linux/"),
        "{error}"
    );
    assert_eq!(names_in(&dir.path().join("images/blobs/sha256")), [""; 0]);
    assert_eq!(names_in(&dir.path().join("images/incoming")), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_are_not_what_was_announced_leave_nothing() {
    let plain = rootfs();
    let real = digest(&plain);
    let other = digest(b"other");
    let cases: [(&str, String, String, usize, Vec<u8>); 5] = [
        (
            "wrong content",
            real.clone(),
            "content is sha256:".into(),
            plain.len(),
            {
                let mut bad = plain.clone();
                bad[2000] ^= 1;
                bad
            },
        ),
        (
            "too short",
            real.clone(),
            "has not the announced size".into(),
            plain.len(),
            plain[..plain.len() - 512].to_vec(),
        ),
        (
            "too long",
            real.clone(),
            "has not the announced size".into(),
            plain.len() - 512,
            plain.clone(),
        ),
        (
            "no archive",
            digest(&[7; 3000]),
            "archive header".into(),
            3000,
            vec![7; 3000],
        ),
        ("other diff id", other, String::new(), 5, b"other".to_vec()),
    ];
    for (what, layer_digest, expected, size, body) in cases {
        let (dir, store) = store();
        let (manifest, config) = documents(&plain, &layer_digest, size);
        let config_digest = digest(config.as_bytes());
        let address = serve(move |path| {
            if path.contains("/manifests/") {
                ok(manifest.as_bytes())
            } else if path.contains(&config_digest) {
                ok(config.as_bytes())
            } else {
                ok(&body)
            }
        });
        let error = pull_error(&store, &format!("{address}/x")).await;
        assert!(error.contains(&expected), "{what}: {error}");
        assert_eq!(
            names_in(&dir.path().join("images/blobs/sha256")),
            [""; 0],
            "{what}"
        );
        assert_eq!(
            names_in(&dir.path().join("layers/incoming")),
            [""; 0],
            "{what}"
        );
        assert_eq!(names_in(&dir.path().join("layers")), ["incoming"], "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pulls_of_one_layer_fetch_it_once_and_go_on_after_a_break() {
    let plain = rootfs();
    let (manifest, config) = documents(&plain, &digest(&plain), plain.len());
    let (config_digest, body) = (digest(config.as_bytes()), plain.clone());
    let half = plain.len() / 2;
    let layers = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&layers);
    let address = serve(move |path| {
        if path.contains("/manifests/") {
            return ok(manifest.as_bytes());
        }
        if path.contains(&config_digest) {
            return ok(config.as_bytes());
        }
        if !path.contains("/blobs/") {
            return ok(b"{}");
        }
        match counted.fetch_add(1, Ordering::SeqCst) {
            // The connection breaks in the middle; this server knows no ranges and starts over.
            0 => ok(&body)[..half].to_vec(),
            _ => ok(&body),
        }
    });
    let (_dir, store) = store();
    let name = format!("{address}/x");
    let one = {
        let (progress, _lines) = listener();
        let (store, name) = (store.clone(), name.clone());
        tokio::spawn(async move { store.pull(&name, None, None, &[], progress).await })
    };
    let (progress, _lines) = listener();
    let two = store.pull(&name, None, None, &[], progress).await.unwrap();
    assert_eq!(one.await.unwrap().unwrap().id, two.id);
    assert_eq!(layers.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_pull_leaves_nothing_and_holds_nobody_up() {
    let plain = rootfs();
    let (manifest, config) = documents(&plain, &digest(&plain), plain.len());
    let (config_digest, body) = (digest(config.as_bytes()), plain.clone());
    let (asked, was_asked) = std::sync::mpsc::channel();
    let asked = std::sync::Mutex::new(Some(asked));
    let stalled = Arc::new((std::sync::Mutex::new(false), std::sync::Condvar::new()));
    let gate = Arc::clone(&stalled);
    let address = serve(move |path| {
        if path.contains("/manifests/") {
            return ok(manifest.as_bytes());
        }
        if path.contains(&config_digest) {
            return ok(config.as_bytes());
        }
        if !path.contains("/blobs/") {
            return ok(b"{}");
        }
        let first = asked.lock().unwrap().take();
        if let Some(asked) = first {
            // The first to ask for the layer is kept waiting.
            asked.send(()).unwrap();
            drop(
                gate.1
                    .wait_while(gate.0.lock().unwrap(), |open| !*open)
                    .unwrap(),
            );
        }
        ok(&body)
    });
    let (dir, store) = store();
    let name = format!("{address}/x");
    let first = {
        let (progress, _lines) = listener();
        let (store, name) = (store.clone(), name.clone());
        tokio::spawn(async move { store.pull(&name, None, None, &[], progress).await })
    };
    tokio::task::spawn_blocking(move || was_asked.recv().unwrap())
        .await
        .unwrap();
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    let (progress, _lines) = listener();
    store.pull(&name, None, None, &[], progress).await.unwrap();
    *stalled.0.lock().unwrap() = true;
    stalled.1.notify_all();
    drop(store);
    let store = ImageStore::open(dir.path()).unwrap();
    assert_eq!(store.list().len(), 1);
    assert_eq!(names_in(&dir.path().join("layers/incoming")), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saved_archive_loads_elsewhere_as_the_same_image() {
    let (_dir, source) = store();
    let id = import(&source, "busy:1").await;
    source.tag("busy:1", "other/busy:2").await.unwrap();
    let (_archive_dir, archive) = (
        tempfile::tempdir().unwrap(),
        tempfile::NamedTempFile::new().unwrap(),
    );
    let file = tokio::fs::File::create(archive.path()).await.unwrap();
    source
        .save(&["busy:1".into(), "other/busy:2".into()], file)
        .await
        .unwrap();
    assert!(
        source
            .save(&["nosuch".into()], tokio::io::sink())
            .await
            .unwrap_err()
            .to_string()
            .contains("No such image: nosuch:latest")
    );

    let load = async |content: Vec<u8>| {
        let (dir, target) = store();
        let (progress, _lines) = listener();
        let loaded = target.load(std::io::Cursor::new(content), progress).await;
        (dir, target, loaded)
    };
    let content = fs::read(archive.path()).unwrap();
    let mut packed = Vec::new();
    flate2::read::GzEncoder::new(content.as_slice(), flate2::Compression::fast())
        .read_to_end(&mut packed)
        .unwrap();
    for content in [content.clone(), packed] {
        let (_dir, target, loaded) = load(content).await;
        let names: Vec<_> = loaded
            .unwrap()
            .into_iter()
            .map(|image| image.name.unwrap())
            .collect();
        assert_eq!(names, ["busy:1", "other/busy:2"]);
        let record = target.resolve("busy:1").unwrap();
        assert_eq!(record.id.to_string(), id);
        assert!(record.layers[0].join("bin/busybox").exists());
    }

    // Only one of the two layouts in it.
    for missing in ["manifest.json", "index.json"] {
        let mut rest = tar::Builder::new(Vec::new());
        for entry in tar::Archive::new(content.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            if entry.path().unwrap().as_os_str() != missing {
                let mut body = Vec::new();
                entry.read_to_end(&mut body).unwrap();
                rest.append(&entry.header().clone(), body.as_slice())
                    .unwrap();
            }
        }
        let (_dir, target, loaded) = load(rest.into_inner().unwrap()).await;
        assert_eq!(loaded.unwrap().len(), 2, "without {missing}");
        assert_eq!(target.resolve("other/busy:2").unwrap().id.to_string(), id);
    }

    let (dir, _target, loaded) = load(content[..content.len() / 2].to_vec()).await;
    assert!(loaded.is_err());
    assert_eq!(names_in(&dir.path().join("images/incoming")), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_archives_are_refused_or_contained() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "untouched").unwrap();
    let raw = |name: &str, kind: tar::EntryType, link: &str, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o777);
        header.set_cksum();
        (header, content.to_vec())
    };
    let archive = |entries: Vec<(tar::Header, Vec<u8>)>| {
        let mut archive = tar::Builder::new(Vec::new());
        for (header, content) in entries {
            archive.append(&header, content.as_slice()).unwrap();
        }
        archive.into_inner().unwrap()
    };
    let file = tar::EntryType::Regular;
    let secret = outside.path().join("secret");
    let secret = secret.to_str().unwrap();
    let list = |layer: &str| {
        format!(r#"[{{"Config":"{layer}","RepoTags":["evil:1"],"Layers":["{layer}"]}}]"#)
            .into_bytes()
    };

    let hostile = [
        archive(vec![raw("../escape", file, "", b"x")]),
        archive(vec![
            raw("layer", tar::EntryType::Symlink, secret, b""),
            raw("manifest.json", file, "", &list("layer")),
        ]),
        archive(vec![
            raw("layer", tar::EntryType::Link, secret, b""),
            raw("manifest.json", file, "", &list("layer")),
        ]),
        archive(vec![raw(
            "manifest.json",
            file,
            "",
            &list("../../../../etc/passwd"),
        )]),
        archive(vec![
            raw("a", tar::EntryType::Symlink, "b", b""),
            raw("b", tar::EntryType::Symlink, "a", b""),
            raw("manifest.json", file, "", &list("a")),
        ]),
        archive(vec![raw(
            "manifest.json",
            tar::EntryType::Symlink,
            "/etc/passwd",
            b"",
        )]),
        archive(vec![raw("x", file, "", b"no image at all")]),
        b"no archive at all".repeat(100),
    ];
    for (number, content) in hostile.into_iter().enumerate() {
        let (dir, store) = store();
        let (progress, _lines) = listener();
        let error = store
            .load(std::io::Cursor::new(content), progress)
            .await
            .unwrap_err();
        assert_eq!(
            error.kind(),
            ImageErrorKind::Invalid,
            "{number}: {}",
            error.report()
        );
        assert!(store.list().is_empty());
        assert_eq!(
            names_in(&dir.path().join("images/incoming")),
            [""; 0],
            "{number}"
        );
    }

    // The layer itself, by way of an import.
    let way = outside.path().to_str().unwrap();
    for content in [
        archive(vec![raw("../secret", file, "", b"evil")]),
        archive(vec![
            raw("way", tar::EntryType::Symlink, way, b""),
            raw("way/secret", file, "", b"evil"),
        ]),
        archive(vec![raw("mine", tar::EntryType::Link, secret, b"")]),
    ] {
        let (dir, store) = store();
        let done = store
            .import_rootfs(
                std::io::Cursor::new(content),
                ImageConfig::default(),
                Some("evil"),
            )
            .await;
        assert_eq!(done.unwrap_err().kind(), ImageErrorKind::Invalid);
        assert_eq!(names_in(&dir.path().join("layers")), ["incoming"]);
        assert_eq!(names_in(&dir.path().join("layers/incoming")), [""; 0]);
    }
    assert_eq!(names_in(outside.path()), ["secret"]);
    assert_eq!(fs::read_to_string(secret).unwrap(), "untouched");
}

/// A tar archive of files; names ending in a slash are directories.
fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o755);
        header.set_size(content.len() as u64);
        if name.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
        }
        archive.append_data(&mut header, name, *content).unwrap();
    }
    archive.into_inner().unwrap()
}

/// An archive as dockers before 25 wrote it, with these layers; the topmost layer is a link, as theirs could be.
fn old_archive(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<_> = layers.iter().map(|layer| digest(layer)).collect();
    let config = format!(
        r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":{diff_ids:?}}}}}"#
    );
    let names: Vec<_> = (0..layers.len())
        .map(|number| format!("{number}/layer.tar"))
        .collect();
    let list = format!(r#"[{{"Config":"c.json","RepoTags":["old:1"],"Layers":{names:?}}}]"#);
    let mut archive = tar::Builder::new(Vec::new());
    for (name, layer) in names.iter().zip(layers) {
        let mut header = tar::Header::new_ustar();
        header.set_size(layer.len() as u64);
        let real = format!("real/{name}");
        archive
            .append_data(&mut header, &real, layer.as_slice())
            .unwrap();
        let mut link = tar::Header::new_ustar();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        archive
            .append_link(&mut link, name, format!("../{real}"))
            .unwrap();
    }
    let documents = tar_of(&[
        ("c.json", config.as_bytes()),
        ("manifest.json", list.as_bytes()),
    ]);
    for entry in tar::Archive::new(documents.as_slice()).entries().unwrap() {
        let entry = entry.unwrap();
        archive.append(&entry.header().clone(), entry).unwrap();
    }
    archive.into_inner().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn stacked_layers_show_what_the_image_means() {
    let base = tar_of(&[
        ("etc/", b""),
        ("etc/kept", b"1"),
        ("etc/hidden", b"1"),
        ("opt/", b""),
        ("opt/old", b"1"),
        ("var/", b""),
        ("var/x", b"1"),
    ]);
    let top = tar_of(&[
        ("etc/.wh.hidden", b""),
        ("opt/.wh..wh..opq", b""),
        ("opt/new", b"2"),
        (".wh.var", b""),
        ("var/", b""),
        ("var/y", b"2"),
    ]);
    let (dir, store) = store();
    let (progress, _lines) = listener();
    let loaded = store
        .load(std::io::Cursor::new(old_archive(&[base, top])), progress)
        .await
        .unwrap();
    assert_eq!(loaded[0].name.as_deref(), Some("old:1"));
    let layers = store.resolve("old:1").unwrap().layers;
    for name in ["up", "work", "merged"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    // Mounted in a mount namespace that ends with the command.
    let script = "mount -t overlay overlay -o lowerdir=$1:$2,upperdir=up,workdir=work merged && cd merged && find . -type f | sort";
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh"])
        .args([&layers[1], &layers[0]])
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "./etc/kept\n./opt/new\n./var/y\n",
        "{output:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_every_compression_are_taken_and_bad_images_leave_nothing() {
    let plain = rootfs();
    let mut gzip = Vec::new();
    flate2::read::GzEncoder::new(plain.as_slice(), flate2::Compression::fast())
        .read_to_end(&mut gzip)
        .unwrap();
    let zstd = zstd::encode_all(plain.as_slice(), 1).unwrap();
    let (dir, store) = store();
    for (number, content) in [plain.clone(), gzip, zstd].into_iter().enumerate() {
        let name = format!("busy:{number}");
        store
            .import_rootfs(
                std::io::Cursor::new(content),
                ImageConfig::default(),
                Some(&name),
            )
            .await
            .unwrap();
        let inspected = store.inspect(&name).unwrap();
        assert_eq!(
            (inspected.diff_ids.len(), inspected.diff_ids[0].as_str()),
            (1, digest(&plain).as_str())
        );
    }
    assert_eq!(names_in(&dir.path().join("layers")).len(), 2);
    let (removed, bytes) = store.prune(|_| true, Vec::new()).await.unwrap();
    assert_eq!(
        (removed.len(), bytes),
        (7, fs::metadata("/bin/busybox").unwrap().len())
    );

    // The first layer is good, the second is not what the configuration lists: neither stays.
    let mut bad = old_archive(&[plain.clone(), tar_of(&[("a", b"1")])]);
    let needle = digest(&tar_of(&[("a", b"1")]));
    let at = bad
        .windows(needle.len())
        .position(|part| part == needle.as_bytes())
        .unwrap();
    bad[at + 10] = if bad[at + 10] == b'0' { b'1' } else { b'0' };
    let (progress, _lines) = listener();
    let error = store
        .load(std::io::Cursor::new(bad), progress)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ImageErrorKind::Invalid, "{}", error.report());
    // Waste is swept behind the caller's back; another removal waits for that sweep.
    import(&store, "busy:1").await;
    store.remove("busy:1", false, Vec::new()).await.unwrap();
    assert_eq!(names_in(&dir.path().join("images/blobs/sha256")), [""; 0]);
    assert_eq!(names_in(&dir.path().join("layers")), ["incoming"]);
}
