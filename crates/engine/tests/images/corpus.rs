//! A corpus of layers that strangers might send: what is taken of them is what GNU's tar lists, and all of it is inside.

use std::{
    collections::BTreeSet,
    fs,
    io::{Cursor, Write},
    os::unix::fs::MetadataExt,
    path::{Component, Path},
    process::{Command, Stdio},
};

use shoal_api::image::ImageConfig;
use shoal_engine::io::images::ImageErrorKind;

use crate::bench::*;

const BLOCK: usize = 512;

/// What is to become of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Taken,
    Refused,
}
use Fate::{Refused, Taken};

/// Pads to whole blocks.
fn blocks(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

/// A header as POSIX has it, whatever it says.
fn header(name: &str, kind: u8, link: &str, size: usize) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..107].copy_from_slice(b"0000755");
    block[108..115].copy_from_slice(b"0000000");
    block[116..123].copy_from_slice(b"0000000");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[136..147].copy_from_slice(b"00000000000");
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link.as_bytes());
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[329..336].copy_from_slice(b"0000001");
    block[337..344].copy_from_slice(b"0000003");
    sealed(block)
}

/// Gives a header its checksum.
fn sealed(mut block: [u8; BLOCK]) -> [u8; BLOCK] {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().copied().map(u32::from).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn changed(mut block: [u8; BLOCK], change: impl FnOnce(&mut [u8; BLOCK])) -> Vec<u8> {
    change(&mut block);
    sealed(block).to_vec()
}

fn file(name: &str) -> Vec<u8> {
    [&header(name, b'0', "", 4)[..], &blocks(b"evil".to_vec())].concat()
}

fn entry(name: &str, kind: u8, link: &str) -> Vec<u8> {
    header(name, kind, link, 0).to_vec()
}

fn dir(name: &str) -> Vec<u8> {
    entry(name, b'5', "")
}

fn symlink(name: &str, to: &str) -> Vec<u8> {
    entry(name, b'2', to)
}

fn hard_link(name: &str, to: &str) -> Vec<u8> {
    entry(name, b'1', to)
}

/// A header that says something of the next entry, or of all.
fn extension(kind: u8, content: &[u8]) -> Vec<u8> {
    let before = header("extension", kind, "", content.len());
    [&before[..], &blocks(content.to_vec())].concat()
}

fn record(key: &str, value: &str) -> String {
    let rest = key.len() + value.len() + 3;
    let length = (rest..).find(|length| length.to_string().len() + rest == *length);
    let length = length.expect("a length with room for itself");
    format!("{length} {key}={value}\n")
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let text: String = records
        .iter()
        .map(|(key, value)| record(key, value))
        .collect();
    extension(b'x', text.as_bytes())
}

fn long_name(name: &str) -> Vec<u8> {
    extension(b'L', &[name.as_bytes(), b"\0"].concat())
}

/// The archives, with what is to become of them; `outside` is a directory of the host's.
fn corpus(outside: &str) -> Vec<(&'static str, Fate, Vec<u8>)> {
    let end = || vec![0; 2 * BLOCK];
    let whole = |entries: &[Vec<u8>]| [entries.concat(), end()].concat();
    let up = format!("{}{outside}", "../".repeat(20));
    let (secret, up_secret) = (format!("{outside}/secret"), format!("{up}/secret"));
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let cut = whole(&[file("a"), file("b")]);
    vec![
        // Names.
        (
            "ordinary",
            Taken,
            whole(&[dir("d/"), file("d/a"), file("b")]),
        ),
        ("absolute", Taken, whole(&[file("/etc/a")])),
        ("of the host", Taken, whole(&[dir(outside), file(&secret)])),
        (
            "with dots",
            Taken,
            whole(&[dir("./"), file("./a"), file("d/./b"), file("d//c")]),
        ),
        ("climbing", Refused, whole(&[file("../secret")])),
        (
            "climbing inside",
            Refused,
            whole(&[dir("d"), file("d/../../secret")]),
        ),
        ("climbing absolutely", Refused, whole(&[file("/../secret")])),
        ("only dots", Refused, whole(&[dir("..")])),
        (
            "the root as a file",
            Refused,
            whole(&[file("./")[..BLOCK].to_vec(), file("/")]),
        ),
        (
            "a long component",
            Refused,
            whole(&[long_name(&"x".repeat(256)), file("a")]),
        ),
        // Symbolic links.
        ("link out", Taken, whole(&[symlink("way", outside)])),
        (
            "through a link out",
            Refused,
            whole(&[symlink("way", outside), file("way/secret")]),
        ),
        (
            "through a climbing link",
            Refused,
            whole(&[symlink("way", &up), file("way/secret")]),
        ),
        (
            "through two links",
            Refused,
            whole(&[
                symlink("one", "two"),
                symlink("two", outside),
                file("one/secret"),
            ]),
        ),
        (
            "through itself",
            Refused,
            whole(&[symlink("way", "way"), file("way/a")]),
        ),
        (
            "a link where a directory was",
            Refused,
            whole(&[dir("way"), symlink("way", outside), file("way/secret")]),
        ),
        (
            "a directory where a link was",
            Taken,
            whole(&[symlink("way", outside), dir("way"), file("way/secret")]),
        ),
        (
            "a file where a link was",
            Taken,
            whole(&[symlink("way", &secret), file("way")]),
        ),
        // Hard links.
        (
            "second name",
            Taken,
            whole(&[file("a"), hard_link("b", "a")]),
        ),
        (
            "second name with a size",
            Taken,
            whole(&[file("a"), header("b", b'1', "a", 4).to_vec()]),
        ),
        (
            "second name of the host's",
            Refused,
            whole(&[hard_link("mine", &secret)]),
        ),
        (
            "second name by climbing",
            Refused,
            whole(&[hard_link("mine", &up_secret)]),
        ),
        (
            "second name through a link",
            Refused,
            whole(&[symlink("way", outside), hard_link("mine", "way/secret")]),
        ),
        (
            "second name of nothing",
            Refused,
            whole(&[hard_link("mine", "nothing")]),
        ),
        (
            "second name of a link out",
            Taken,
            whole(&[
                symlink("way", &secret),
                hard_link("mine", "way"),
                file("mine"),
            ]),
        ),
        // Devices and the like.
        (
            "devices",
            Taken,
            whole(&[
                entry("c", b'3', ""),
                entry("b", b'4', ""),
                entry("f", b'6', ""),
            ]),
        ),
        (
            "device through a link",
            Refused,
            whole(&[symlink("way", outside), entry("way/c", b'3', "")]),
        ),
        // Whiteouts.
        (
            "whiteouts",
            Taken,
            whole(&[file(".wh.a"), file("d/.wh.b"), file("e/.wh..wh..opq")]),
        ),
        ("whiteout of nothing", Refused, whole(&[file(".wh.")])),
        (
            "whiteout of the directory",
            Refused,
            whole(&[file("d/.wh..")]),
        ),
        (
            "whiteout of the one above",
            Refused,
            whole(&[file("d/.wh...")]),
        ),
        ("whiteout with a slash", Refused, whole(&[file(".wh./etc")])),
        (
            "whiteout that climbs",
            Refused,
            whole(&[file(".wh.../secret")]),
        ),
        ("below a whiteout", Refused, whole(&[file(".wh.d/a")])),
        // Entries twice.
        (
            "twice",
            Taken,
            whole(&[file("a"), file("a"), dir("d"), dir("d/")]),
        ),
        (
            "a directory, then a file",
            Taken,
            whole(&[file("a/b/c"), file("a/b")]),
        ),
        // Extended headers.
        (
            "GNU's long name",
            Taken,
            whole(&[long_name(&long), file("short")]),
        ),
        (
            "GNU's long name climbs",
            Refused,
            whole(&[long_name("../secret"), file("short")]),
        ),
        (
            "POSIX's long name",
            Taken,
            whole(&[pax(&[("path", &long)]), file("short")]),
        ),
        (
            "POSIX's long name climbs",
            Refused,
            whole(&[pax(&[("path", "../secret")]), file("short")]),
        ),
        (
            "both, the same",
            Taken,
            whole(&[long_name(&long), pax(&[("path", &long)]), file("short")]),
        ),
        (
            "both, different",
            Refused,
            whole(&[long_name("one"), pax(&[("path", "two")]), file("short")]),
        ),
        (
            "two of POSIX",
            Refused,
            whole(&[
                pax(&[("path", "one")]),
                pax(&[("mtime", "1")]),
                file("short"),
            ]),
        ),
        (
            "a name with a NUL",
            Refused,
            whole(&[pax(&[("path", "a\0b")]), file("short")]),
        ),
        (
            "a prefix",
            Taken,
            whole(&[changed(header("a", b'5', "", 0), |block| {
                block[345..350].copy_from_slice(b"above")
            })]),
        ),
        (
            "a prefix that climbs",
            Refused,
            whole(&[changed(header("secret", b'5', "", 0), |block| {
                block[345..347].copy_from_slice(b"..")
            })]),
        ),
        (
            "GNU's magic has no prefix",
            Taken,
            whole(&[changed(header("a", b'5', "", 0), |block| {
                block[257..265].copy_from_slice(b"ustar  \0");
                block[345..347].copy_from_slice(b"..");
            })]),
        ),
        (
            "a record that lies about its length",
            Refused,
            whole(&[extension(b'x', b"99 path=a\n"), file("short")]),
        ),
        (
            "a record in a value",
            Taken,
            whole(&[pax(&[("comment", "\n14 path=../x\n")]), file("a")]),
        ),
        (
            "a comment for all",
            Taken,
            whole(&[
                extension(b'g', record("comment", "hello").as_bytes()),
                file("a"),
            ]),
        ),
        (
            "a name for all",
            Refused,
            whole(&[
                extension(b'g', record("path", "other").as_bytes()),
                file("a"),
            ]),
        ),
        (
            "a size for all",
            Refused,
            whole(&[
                extension(b'g', record("size", "1024").as_bytes()),
                file("a"),
                file("b"),
            ]),
        ),
        (
            "extension without entry",
            Refused,
            whole(&[file("a"), pax(&[("path", "b")])]),
        ),
        // Sizes: what follows is data to one reader and the next entry to another.
        (
            "POSIX's size",
            Taken,
            whole(&[
                pax(&[("size", "512")]),
                header("a", b'0', "", 0).to_vec(),
                dir("hidden"),
                file("b"),
            ]),
        ),
        (
            "a directory with data",
            Refused,
            whole(&[header("d", b'5', "", BLOCK).to_vec(), file("hidden")]),
        ),
        (
            "an old directory with data",
            Refused,
            whole(&[header("d/", b'0', "", BLOCK).to_vec(), file("hidden")]),
        ),
        (
            "a link with data",
            Refused,
            whole(&[header("l", b'2', "a", BLOCK).to_vec(), file("hidden")]),
        ),
        (
            "a device with data",
            Refused,
            whole(&[header("c", b'3', "", BLOCK).to_vec(), file("hidden")]),
        ),
        (
            "a second name with POSIX's size",
            Refused,
            whole(&[
                file("a"),
                pax(&[("size", "512")]),
                hard_link("b", "a"),
                file("hidden"),
            ]),
        ),
        (
            "a binary size",
            Taken,
            whole(&[
                changed(header("a", b'0', "", 0), |block| {
                    block[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
                }),
                dir("hidden"),
                file("b"),
            ]),
        ),
        (
            "a negative size",
            Refused,
            whole(&[changed(header("a", b'0', "", 0), |block| {
                block[124..136].fill(0xff)
            })]),
        ),
        (
            "a huge size",
            Refused,
            whole(&[changed(header("a", b'0', "", 0), |block| {
                block[124..136].copy_from_slice(&[
                    0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
                ]);
            })]),
        ),
        (
            "no number",
            Refused,
            whole(&[changed(header("a", b'0', "", 0), |block| {
                block[124..128].copy_from_slice(b"0x12")
            })]),
        ),
        // What is not read.
        ("sparse", Refused, whole(&[entry("a", b'S', "")])),
        (
            "sparse of POSIX",
            Refused,
            whole(&[
                pax(&[("GNU.sparse.name", "a"), ("GNU.sparse.size", "9")]),
                file("b"),
            ]),
        ),
        (
            "a part of an archive",
            Refused,
            whole(&[entry("a", b'M', "")]),
        ),
        ("an unknown kind", Refused, whole(&[entry("a", b'Z', "")])),
        // Ends.
        ("no end", Taken, [file("a"), file("b")].concat()),
        (
            "one block as end",
            Taken,
            [file("a"), vec![0; BLOCK]].concat(),
        ),
        (
            "something after one block",
            Refused,
            [file("a"), vec![0; BLOCK], file("b"), end()].concat(),
        ),
        (
            "something after the end",
            Taken,
            [file("a"), end(), file("b")].concat(),
        ),
        ("cut in a header", Refused, cut[..2 * BLOCK + 100].to_vec()),
        ("cut in data", Refused, cut[..BLOCK + 2].to_vec()),
        (
            "cut in an extension",
            Refused,
            pax(&[("path", "a")])[..BLOCK + 4].to_vec(),
        ),
        (
            "a wrong checksum",
            Refused,
            [&file("a")[..1], b"b", &file("a")[2..], &end()].concat(),
        ),
    ]
}

/// A name as it is found in a directory: without what is only written differently.
fn plain(name: &str) -> String {
    let parts = Path::new(name).components().filter_map(|part| match part {
        Component::Normal(part) => part.to_str(),
        _ => None,
    });
    parts.collect::<Vec<_>>().join("/")
}

/// What GNU's tar finds in an archive, with the directories that are only implied.
fn listed(archive: &[u8]) -> BTreeSet<String> {
    let mut tar = Command::new("tar")
        .args(["--quoting-style=literal", "-t"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("tar");
    let mut input = tar.stdin.take().expect("a pipe");
    // It stops reading at the end of the archive.
    let _ = input.write_all(archive);
    drop(input);
    let output = tar.wait_with_output().expect("tar");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("names are text");
    let mut names = BTreeSet::new();
    for name in text.lines().map(plain) {
        // In a layer these are no files of their own.
        let name = name.replace(".wh..wh..opq", "").replace(".wh.", "");
        let above = Path::new(&name).ancestors();
        names.extend(above.filter_map(Path::to_str).map(plain));
    }
    names.remove("");
    names
}

/// All that is below a directory.
fn found(root: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut todo = vec![root.to_owned()];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(&directory).expect("a directory") {
            let entry = entry.expect("an entry");
            let inside = entry.path();
            let name = inside.strip_prefix(root).expect("below").to_str();
            names.insert(name.expect("text").to_owned());
            if entry.file_type().expect("a kind").is_dir() {
                todo.push(inside);
            }
        }
    }
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_strangers_are_what_tar_lists_and_stay_inside() {
    let outside = tempfile::tempdir().expect("a directory");
    let secret = outside.path().join("secret");
    fs::write(&secret, "untouched").expect("a file");
    let before = fs::metadata(&secret).expect("a file");
    for (what, fate, archive) in corpus(outside.path().to_str().expect("text")) {
        let (dir, store) = store();
        let content = Cursor::new(archive.clone());
        let config = ImageConfig::default();
        let done = store.import_rootfs(content, config, Some("strange")).await;
        match (fate, done) {
            (Taken, Ok(_)) => {
                let record = store.resolve("strange").expect("it was imported");
                let mut wanted = listed(&archive);
                // Replaced by something that is no directory.
                if what == "a directory, then a file" {
                    wanted.remove("a/b/c");
                }
                assert_eq!(found(&record.layers[0]), wanted, "{what}");
            }
            (Refused, Err(error)) => {
                assert_eq!(error.kind(), ImageErrorKind::Invalid, "{what}");
                let left = dir.path().join("layers");
                assert_eq!(names_in(&left), ["incoming"], "{what}");
                assert_eq!(names_in(&left.join("incoming")), [""; 0], "{what}");
            }
            (fate, done) => panic!("{what}: {fate:?}, but {:?}", done.map_err(|e| e.report())),
        }
        assert_eq!(names_in(outside.path()), ["secret"], "{what}");
        assert_eq!(
            fs::read_to_string(&secret).expect("a file"),
            "untouched",
            "{what}"
        );
        let after = fs::metadata(&secret).expect("a file");
        let same = |file: &fs::Metadata| (file.ino(), file.nlink(), file.mode(), file.ctime_nsec());
        assert_eq!(same(&after), same(&before), "{what}");
    }
}
