//! Archives of images, good and hostile.

use std::{fs, io::Read, process::Command};

use shoal_api::image::ImageConfig;
use shoal_engine::io::images::ImageErrorKind;

use crate::bench::*;

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
    store
        .remove("busy:1", false, false, Vec::new())
        .await
        .unwrap();
    assert_eq!(names_in(&dir.path().join("images/blobs/sha256")), [""; 0]);
    assert_eq!(names_in(&dir.path().join("layers")), ["incoming"]);
}
