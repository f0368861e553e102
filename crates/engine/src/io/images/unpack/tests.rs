use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
};

use super::*;

/// A directory to unpack into, and beside it what an archive must not touch.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["diff", "trash", "canary"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("canary/secret"), "untouched").unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn diff(&self, name: &str) -> PathBuf {
        self.path("diff").join(name)
    }

    fn unpack(&self, archive: &[u8]) -> Result<u64, String> {
        let done = unpack(archive, &self.path("diff"), &self.path("trash"))
            .map_err(|error| error.report());
        let canary: Vec<_> = fs::read_dir(self.path("canary"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(canary, ["secret"]);
        let secret = self.path("canary/secret");
        assert_eq!(fs::read_to_string(&secret).unwrap(), "untouched");
        let meta = fs::metadata(&secret).unwrap();
        assert_eq!((meta.nlink(), meta.mode() & 0o7777), (1, 0o644));
        done
    }

    fn absolute_canary(&self) -> String {
        self.path("canary").to_str().unwrap().to_owned()
    }
}

struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    /// Writes names as they are, which the builder's own functions refuse to do.
    fn add(
        mut self,
        kind: tar::EntryType,
        name: &str,
        link: &str,
        content: &str,
        change: impl FnOnce(&mut tar::Header),
    ) -> Self {
        let mut header = tar::Header::new_ustar();
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        header.set_mtime(1_000_000);
        change(&mut header);
        header.set_cksum();
        self.0.append(&header, content.as_bytes()).unwrap();
        self
    }

    fn file(self, name: &str, content: &str) -> Self {
        self.add(tar::EntryType::Regular, name, "", content, |_| {})
    }

    fn dir(self, name: &str) -> Self {
        self.add(tar::EntryType::Directory, name, "", "", |header| {
            header.set_mode(0o755)
        })
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.add(tar::EntryType::Symlink, name, target, "", |_| {})
    }

    fn hard_link(self, name: &str, target: &str) -> Self {
        self.add(tar::EntryType::Link, name, target, "", |_| {})
    }

    fn xattr(mut self, key: &str, value: &[u8]) -> Self {
        self.0
            .append_pax_extensions([(format!("SCHILY.xattr.{key}").as_str(), value)])
            .unwrap();
        self
    }

    fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn xattr(path: &Path, key: &str) -> Option<Vec<u8>> {
    let output = std::process::Command::new("getfattr")
        .args(["--only-values", "-h", "-n", key])
        .arg(path)
        .output();
    match output {
        Ok(output) => output.status.success().then_some(output.stdout),
        Err(_) => {
            use std::{ffi::CString, os::unix::ffi::OsStrExt};
            let (path, key) = (
                CString::new(path.as_os_str().as_bytes()).unwrap(),
                CString::new(key).unwrap(),
            );
            let mut value = vec![0; 256];
            #[allow(unsafe_code)]
            // SAFETY: both strings end in NUL and the buffer is valid for its length.
            let length = unsafe {
                libc::lgetxattr(
                    path.as_ptr(),
                    key.as_ptr(),
                    value.as_mut_ptr().cast(),
                    value.len(),
                )
            };
            value.truncate(usize::try_from(length).ok()?);
            Some(value)
        }
    }
}

#[test]
fn an_ordinary_layer_comes_out_as_it_went_in() {
    let bench = Bench::new();
    let archive = Tar::new()
        .dir("./")
        .add(tar::EntryType::Directory, "bin/", "", "", |header| {
            header.set_mode(0o1777)
        })
        .add(tar::EntryType::Regular, "bin/su", "", "program", |header| {
            header.set_mode(0o4755);
            header.set_uid(12);
            header.set_gid(34);
        })
        .hard_link("bin/su2", "bin/su")
        .symlink("sh", "/bin/su")
        .add(tar::EntryType::Char, "null", "", "", |header| {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        })
        .add(tar::EntryType::Fifo, "pipe", "", "", |_| {})
        .xattr("user.note", b"a\nb")
        .xattr("trusted.overlay.redirect", b"/etc")
        .file("no/parents/listed", "x")
        .done();
    assert_eq!(bench.unpack(&archive), Ok(8));

    let su = fs::metadata(bench.diff("bin/su")).unwrap();
    assert_eq!(
        (
            su.mode() & 0o7777,
            su.uid(),
            su.gid(),
            su.nlink(),
            su.mtime()
        ),
        (0o4755, 12, 34, 2, 1_000_000)
    );
    let bin = fs::metadata(bench.diff("bin")).unwrap();
    assert_eq!((bin.mode() & 0o7777, bin.mtime()), (0o1777, 1_000_000));
    assert_eq!(
        fs::read_link(bench.diff("sh")).unwrap(),
        Path::new("/bin/su")
    );
    assert_eq!(
        fs::symlink_metadata(bench.diff("null")).unwrap().rdev(),
        makedev(1, 3)
    );
    assert!(
        fs::symlink_metadata(bench.diff("pipe"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    assert_eq!(
        fs::metadata(bench.diff("no/parents"))
            .unwrap()
            .permissions()
            .mode()
            & 0o7777,
        0o755
    );
}

#[test]
fn attributes_are_set_unless_they_steer_the_host() {
    let bench = Bench::new();
    let archive = Tar::new()
        .xattr(
            "security.capability",
            b"\x01\0\0\x02\n\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        )
        .file("ping", "x")
        .done();
    bench.unpack(&archive).unwrap();
    assert_eq!(
        xattr(&bench.diff("ping"), "security.capability").map(|value| value.len()),
        Some(20)
    );

    let bench = Bench::new();
    bench
        .unpack(
            &Tar::new()
                .xattr("trusted.overlay.redirect", b"/etc")
                .dir("d")
                .done(),
        )
        .unwrap();
    assert_eq!(xattr(&bench.diff("d"), "trusted.overlay.redirect"), None);
}

#[test]
fn names_that_climb_out_are_refused() {
    for name in [
        "../canary/secret",
        "a/../../canary/secret",
        "/../canary/secret",
        "..",
    ] {
        let bench = Bench::new();
        let error = bench
            .unpack(&Tar::new().file(name, "evil").done())
            .unwrap_err();
        assert!(error.contains("lies outside the archive"), "{error}");
    }
    let bench = Bench::new();
    let canary = bench.absolute_canary();
    bench
        .unpack(&Tar::new().file(&format!("{canary}/secret"), "evil").done())
        .unwrap();
    assert_eq!(
        fs::read_to_string(bench.diff(&canary[1..]).join("secret")).unwrap(),
        "evil"
    );
}

#[test]
fn writing_through_links_stays_inside() {
    let bench = Bench::new();
    let canary = bench.absolute_canary();
    // Absolute link: its target is looked for within the layer, and is not there.
    let error = bench
        .unpack(
            &Tar::new()
                .symlink("way", &canary)
                .file("way/secret", "evil")
                .done(),
        )
        .unwrap_err();
    assert!(error.contains("cannot be unpacked"), "{error}");

    // With such a directory in the layer, it is the layer's that is written.
    let bench = Bench::new();
    let canary = bench.absolute_canary();
    let archive = Tar::new()
        .dir(&canary[1..])
        .symlink("way", &canary)
        .file("way/secret", "evil")
        .done();
    bench.unpack(&archive).unwrap();
    assert_eq!(
        fs::read_to_string(bench.diff(&canary[1..]).join("secret")).unwrap(),
        "evil"
    );

    // Climbing link, link to a link, link as the last component, link to oneself.
    for archive in [
        Tar::new()
            .symlink("way", "../../canary")
            .file("way/secret", "evil"),
        Tar::new()
            .symlink("a", "..")
            .symlink("b", "a/canary")
            .file("b/secret", "evil"),
        Tar::new().symlink("way", "way").file("way/secret", "evil"),
    ] {
        assert!(Bench::new().unpack(&archive.done()).is_err());
    }
    let bench = Bench::new();
    let secret = format!("{}/secret", bench.absolute_canary());
    bench
        .unpack(
            &Tar::new()
                .symlink("secret", &secret)
                .file("secret", "evil")
                .done(),
        )
        .unwrap();
    assert!(
        fs::symlink_metadata(bench.diff("secret"))
            .unwrap()
            .is_file()
    );
}

#[test]
fn modes_and_owners_do_not_follow_links_out() {
    let bench = Bench::new();
    let secret = format!("{}/secret", bench.absolute_canary());
    let archive = Tar::new()
        .add(tar::EntryType::Symlink, "secret", &secret, "", |header| {
            header.set_mode(0o777);
            header.set_uid(4242);
        })
        .done();
    bench.unpack(&archive).unwrap();
    assert_eq!(
        fs::symlink_metadata(bench.diff("secret")).unwrap().uid(),
        4242
    );
    assert_ne!(
        fs::metadata(bench.path("canary/secret")).unwrap().uid(),
        4242
    );
}

#[test]
fn hard_links_reach_nothing_outside() {
    let bench = Bench::new();
    let secret = format!("{}/secret", bench.absolute_canary());
    for target in [secret.as_str(), "../canary/secret", "nosuch", "/"] {
        assert!(
            Bench::new()
                .unpack(&Tar::new().hard_link("mine", target).done())
                .is_err(),
            "{target}"
        );
    }
    assert!(
        bench
            .unpack(&Tar::new().hard_link("mine", &secret).done())
            .is_err()
    );
    let through = Tar::new()
        .symlink("way", &bench.absolute_canary())
        .hard_link("mine", "way/secret")
        .done();
    assert!(bench.unpack(&through).is_err());
    // A hard link to a symbolic link is that link, and writing to its name replaces it.
    let bench = Bench::new();
    let archive = Tar::new()
        .symlink("a", &secret)
        .hard_link("b", "a")
        .file("b", "evil")
        .done();
    bench.unpack(&archive).unwrap();
}

#[test]
fn whiteouts_become_those_of_overlayfs() {
    let bench = Bench::new();
    let archive = Tar::new()
        .file("etc/.wh.passwd", "")
        .file("opt/.wh..wh..opq", "")
        .file("opt/new", "x")
        .file(".wh..wh.plnk", "")
        // Hidden below, and made anew in this layer: before and after its whiteout.
        .file("before", "x")
        .file(".wh.before", "")
        .file(".wh.after", "")
        .dir("after")
        .done();
    bench.unpack(&archive).unwrap();
    let hidden = fs::symlink_metadata(bench.diff("etc/passwd")).unwrap();
    assert!(hidden.file_type().is_char_device() && hidden.rdev() == 0);
    assert_eq!(
        xattr(&bench.diff("opt"), "trusted.overlay.opaque").as_deref(),
        Some(&b"y"[..])
    );
    assert_eq!(
        xattr(&bench.diff("after"), "trusted.overlay.opaque").as_deref(),
        Some(&b"y"[..])
    );
    assert!(fs::metadata(bench.diff("before")).unwrap().is_file());
    assert!(!bench.diff(".wh..wh.plnk").exists());
    for bad in [".wh.", ".wh..", ".wh..."] {
        assert!(
            Bench::new()
                .unpack(&Tar::new().file(bad, "").done())
                .is_err(),
            "{bad}"
        );
    }
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    let bench = Bench::new();
    let archive = Tar::new()
        .file("a/b/c", "1")
        .file("a", "2")
        .file("x", "3")
        .dir("x")
        .file("x/y", "4")
        .dir("x")
        .done();
    bench.unpack(&archive).unwrap();
    assert_eq!(fs::read_to_string(bench.diff("a")).unwrap(), "2");
    assert_eq!(fs::read_to_string(bench.diff("x/y")).unwrap(), "4");
}

#[test]
fn damaged_archives_are_refused() {
    let whole = Tar::new().file("a", &"x".repeat(2000)).done();
    for length in [100, 512, 700, 1500, 2300] {
        assert!(Bench::new().unpack(&whole[..length]).is_err(), "{length}");
    }
    let mut flipped = whole;
    flipped[5] ^= 1;
    assert!(
        Bench::new()
            .unpack(&flipped)
            .unwrap_err()
            .contains("damaged")
    );
    assert_eq!(Bench::new().unpack(&[]), Ok(0));
}

#[test]
fn a_tree_deeper_than_the_stack_is_removed() {
    let bench = Bench::new();
    // Links let each entry start where the last one ended: no single name is long. The kernel follows 40 links for a
    // name, and counts those of its first try again when what it wants is not in its cache; so there are fewer than 20.
    let mut archive = Tar::new();
    let step = ["d"; 46].join("/");
    let mut from = String::new();
    for round in 0..19 {
        archive = archive.dir(&format!("{from}{step}"));
        let target = if round == 0 {
            step.clone()
        } else {
            format!("l{}/{step}", round - 1)
        };
        archive = archive.symlink(&format!("l{round}"), &format!("/{target}"));
        from = format!("l{round}/");
    }
    bench.unpack(&archive.done()).unwrap();
    let parent = rootdir::open_directory(bench.dir.path()).unwrap();
    rootdir::remove_tree(&parent, OsStr::new("diff")).unwrap();
    let mut left: Vec<_> = fs::read_dir(bench.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["canary", "trash"]);
}
