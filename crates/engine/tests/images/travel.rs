//! Push and pull with Debian's `docker-registry`.

use std::{fs, net::TcpListener, path::Path};

use shoal_api::image::{ImageRemoved, RegistryAuth};
use shoal_engine::io::images::{ImageErrorKind, ImageStore};

use crate::bench::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_image_travels_through_a_registry() {
    let registry = Registry::start();
    let name = registry.name("team/busy:1");
    let (_source_dir, source) = store();
    let id = import(&source, &name).await;
    let auth = ann("secret");
    let (progress, lines) = listener();
    let pushed = source.push(&name, Some(&auth), progress).await.unwrap();
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
    source.push(&name, Some(&auth), progress).await.unwrap();
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
        .pull(&name, None, Some(&auth), progress)
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
            .pull(&name, None, Some(&auth), progress)
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
        .pull(&by_digest, None, Some(&auth), progress)
        .await
        .unwrap();
    assert_eq!(other.resolve(&by_digest).unwrap().id.to_string(), id);
    assert!(other.resolve(&name).is_err());

    let remote = target
        .manifest_digest_of_remote(&name, Some(&auth))
        .await
        .unwrap();
    assert_eq!(
        (remote.digest, remote.size, remote.platforms.len()),
        (pushed.digest, pushed.size, 1)
    );

    target.check_login(&at(&registry, "secret")).await.unwrap();
    let error = target
        .check_login(&at(&registry, "wrong"))
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
    let removed = target
        .remove(&name, false, false, Vec::new())
        .await
        .unwrap();
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
            .pull(name, None, auth.as_ref(), progress)
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

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_on_loopback_may_have_any_certificate() {
    let registry = Registry::start_with_tls();
    let name = registry.name("busy");
    let (_dir, store) = store();
    import(&store, &name).await;
    let auth = ann("secret");
    let (progress, _lines) = listener();
    let pushed = store.push(&name, Some(&auth), progress).await.unwrap();
    let remote = store
        .manifest_digest_of_remote(&name, Some(&auth))
        .await
        .unwrap();
    assert_eq!(remote.digest, pushed.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_index_the_build_for_this_host_is_pulled() {
    let plain = rootfs();
    let (manifest, config) = documents(&plain, &digest(&plain), plain.len());
    let arch = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let build = |digest: &str, size: usize, os: &str, arch: &str| {
        format!(
            r#"{{"digest":"{digest}","size":{size},"annotations":null,"platform":{{"os":"{os}","architecture":"{arch}"}}}}"#
        )
    };
    let nobody = digest(b"nobody asks for this");
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{},{},{}]}}"#,
        build(&nobody, 1, "linux", "s390x"),
        build(&digest(manifest.as_bytes()), manifest.len(), "linux", arch),
        build(&nobody, 1, "unknown", "unknown"),
    );
    let index_digest = digest(index.as_bytes());
    let (manifest_digest, config_digest) = (digest(manifest.as_bytes()), digest(config.as_bytes()));
    let id = config_digest.clone();
    let other = digest(b"another index");
    let (by_digest, lied) = (index_digest.clone(), other.clone());
    let address = serve(move |path, _| match path {
        _ if path.ends_with("/manifests/latest") => ok(index.as_bytes()),
        _ if path.ends_with(&by_digest) || path.ends_with(&lied) => ok(index.as_bytes()),
        _ if path.contains(&manifest_digest) => ok(manifest.as_bytes()),
        _ if path.contains(&config_digest) => ok(config.as_bytes()),
        _ => ok(&plain),
    });
    let (_dir, store) = store();
    let name = format!("{address}/x");
    let (progress, _lines) = listener();
    let pulled = store.pull(&name, None, None, progress).await.unwrap();
    assert_eq!((pulled.id.to_string(), &pulled.digest), (id, &index_digest));
    assert_eq!(
        store.resolve(&name).unwrap().repo_digests,
        [format!("{name}@{index_digest}")]
    );
    let remote = store.manifest_digest_of_remote(&name, None).await.unwrap();
    assert_eq!((&remote.digest, remote.platforms.len()), (&index_digest, 3));
    // By the digest of the index it is the same image, under no tag; what has another digest is not taken.
    let (_other_dir, elsewhere) = self::store();
    let exact = format!("{name}@{index_digest}");
    let (progress, _lines) = listener();
    let again = elsewhere.pull(&exact, None, None, progress).await.unwrap();
    assert_eq!((again.id, again.digest), (pulled.id, pulled.digest));
    let found = elsewhere.resolve(&exact).unwrap();
    assert_eq!((found.repo_tags, found.repo_digests), (vec![], vec![exact]));
    let (progress, _lines) = listener();
    let lie = format!("{name}@{other}");
    elsewhere
        .pull(&lie, None, None, progress)
        .await
        .expect_err("an index that is not what was asked for");
    // What is here is for this host only: a wish for another platform goes back to the registry.
    let (progress, _lines) = listener();
    let error = store.pull(&name, Some("linux/riscv64"), None, progress);
    assert_eq!(
        error.await.unwrap_err().to_string(),
        "no matching manifest for linux/riscv64 in the manifest list entries"
    );
}
