//! Registries that lie, break off or dawdle.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use shoal_engine::io::images::ImageStore;

use crate::bench::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_answers_rubbish_is_named() {
    let (dir, store) = store();
    let address = serve(|_, _| b"\x16\x03rubbish\r\n\r\n".to_vec());
    let error = pull_error(&store, &format!("{address}/x")).await;
    assert!(
        error.starts_with(&format!("Get \"http://{address}/v2/\": ")),
        "{error}"
    );

    let address = serve(|_, _| ok(b"<html>hello</html>"));
    let error = pull_error(&store, &format!("{address}/x")).await;
    assert!(
        error.starts_with(&format!(
            "cannot use the manifest of {address}/x:latest: manifest is not readable JSON"
        )),
        "{error}"
    );

    let address = serve(|_, _| {
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\nConnection: close\r\n\r\noops".to_vec()
    });
    let error = pull_error(&store, &format!("{address}/x")).await;
    assert_eq!(
        error,
        format!("Get \"http://{address}/v2/\": unexpected status 502 Bad Gateway: oops")
    );

    // A manifest other than the one asked for.
    let address = serve(|_, _| ok(br#"{"schemaVersion":2}"#));
    let error = pull_error(&store, &format!("{address}/x@sha256:{}", "0".repeat(64))).await;
    assert!(error.contains("expected sha256:000"), "{error}");

    // An index without a build for this host.
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"digest":"sha256:{}","size":1,"platform":{{"os":"linux","architecture":"s390x"}}}}]}}"#,
        "0".repeat(64)
    );
    let address = serve(move |_, _| ok(index.as_bytes()));
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
        let address = serve(move |path, _| {
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
    let address = serve(move |path, _| {
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
        tokio::spawn(async move { store.pull(&name, None, None, progress).await })
    };
    let (progress, _lines) = listener();
    let two = store.pull(&name, None, None, progress).await.unwrap();
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
    let address = serve(move |path, _| {
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
        tokio::spawn(async move { store.pull(&name, None, None, progress).await })
    };
    tokio::task::spawn_blocking(move || was_asked.recv().unwrap())
        .await
        .unwrap();
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    let (progress, _lines) = listener();
    store.pull(&name, None, None, progress).await.unwrap();
    *stalled.0.lock().unwrap() = true;
    stalled.1.notify_all();
    drop(store);
    let store = ImageStore::open(dir.path()).unwrap();
    assert_eq!(store.list().len(), 1);
    assert_eq!(names_in(&dir.path().join("layers/incoming")), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_fetched_where_the_registry_sends_us() {
    let plain = rootfs();
    let (manifest, config) = documents(&plain, &digest(&plain), plain.len());
    let (config_digest, tokens) = (digest(config.as_bytes()), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&tokens);
    let address = serve(move |path, head| {
        let head_lower = head.to_ascii_lowercase();
        let host = head_lower
            .lines()
            .find_map(|line| line.strip_prefix("host: "))
            .unwrap();
        if path.starts_with("/token") {
            // `ann:secret`
            let known = head_lower.contains("authorization: basic yw5uonnly3jlda==");
            assert!(
                path.contains("service=test") && path.contains("scope=repository%3Ax%3Apull"),
                "{path}"
            );
            counted.fetch_add(1, Ordering::SeqCst);
            return if known {
                ok(br#"{"token":"t0ken"}"#)
            } else {
                let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"incorrect username or password"}]}"#;
                format!("HTTP/1.1 401 Unauthorized\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()).into_bytes()
            };
        }
        if !head_lower.contains("authorization: bearer t0ken") {
            return format!(
                "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"test\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
            .into_bytes();
        }
        match path {
            _ if path.contains("/manifests/") => ok(manifest.as_bytes()),
            _ if path.contains(&config_digest) => ok(config.as_bytes()),
            _ => ok(&plain),
        }
    });
    let (_dir, store) = store();
    let name = format!("{address}/x");
    let (progress, _lines) = listener();
    store
        .pull(&name, None, Some(&ann("secret")), progress)
        .await
        .unwrap();
    assert_eq!(tokens.load(Ordering::SeqCst), 1);
    let (progress, _lines) = listener();
    let error = store
        .pull(&name, None, Some(&ann("wrong")), progress)
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("unauthorized: incorrect username or password"),
        "{error}"
    );
}
