//! Everything of a host that containers, networks and volumes leave if nobody cleans up behind them.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::Result;
use shoal_tests::lab::{TestLab, text};

/// One line for every file, link, rule, mount, group and process that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Residue(BTreeSet<String>);

/// What a host has in its kernel, told by its own programs.
const KERNEL: &str = "
    ip -o link | sed 's/^[0-9]*: /link /; s/@.*//; s/: <.*//'
    ip -o route show table all | grep -v -e fe80: -e ff00: | sed 's/ linkdown//; s/^/route /'
    nft -s list ruleset 2>/dev/null | sed 's/# handle.*//; s/^/rule /'
    cut -d' ' -f5 /proc/self/mountinfo | sed 's/^/mount /'
    ls /proc/*/comm | xargs cat 2>/dev/null | grep -x -e shoal-shim -e 'youki:.*' -e sleep -e top | sort | uniq -c | sed 's/^ */processes /'
";

/// Folders of the daemon and how deep their names matter.
const FOLDERS: &[(&str, usize)] = &[
    ("lib/containers", 2),
    ("lib/volumes", 1),
    ("lib/trash", 1),
    ("lib/layers", 1),
    ("lib/layers/incoming", 1),
    ("lib/images/blobs/sha256", 1),
    ("lib/images/incoming", 1),
    ("lib/images/partial", 1),
    ("lib/build", 2),
    ("run", 1),
    ("run/c", 2),
    ("run/netns", 1),
];

impl Residue {
    pub(super) fn of(lab: &TestLab) -> Result<Self> {
        let told = text(&lab.output("n1", &["sh", "-c", KERNEL])?)?;
        let mut all: BTreeSet<String> = told.lines().map(str::to_owned).collect();
        let host = lab.folder("n1");
        for (folder, depth) in FOLDERS {
            walk(&host.join(folder), folder, *depth, &mut all);
        }
        for root in ["/sys/fs/cgroup".into()].into_iter().chain(
            names(Path::new("/sys/fs/cgroup"))
                .into_iter()
                .map(|name| Path::new("/sys/fs/cgroup").join(name)),
        ) {
            let group = root.join(format!("shoal-lab-{}/n1", lab.name()));
            for name in names(&group) {
                if group.join(&name).is_dir() {
                    all.insert(format!("cgroup {name}"));
                }
            }
        }
        Ok(Self(all))
    }

    /// What is about to go by itself, if there is any: the host's end of a container's link, and what was removed.
    pub(super) fn about_to_go(&self) -> Option<String> {
        let is_going =
            |line: &&String| line.starts_with("link shoalv") || line.starts_with("lib/trash/");
        self.0.iter().find(is_going).cloned()
    }

    /// What is there now and was not, and the other way round.
    pub(super) fn difference(&self, before: &Self) -> Option<String> {
        let more = self.0.difference(&before.0).map(|line| format!("+ {line}"));
        let less = before.0.difference(&self.0).map(|line| format!("- {line}"));
        let all: Vec<String> = more.chain(less).collect();
        (!all.is_empty()).then(|| all.join("\n"))
    }
}

fn walk(path: &Path, name: &str, depth: usize, all: &mut BTreeSet<String>) {
    if depth == 0 {
        return;
    }
    for entry in names(path) {
        let name = format!("{name}/{entry}");
        walk(&path.join(&entry), &name, depth - 1, all);
        all.insert(name);
    }
}

/// Names in a folder; none where there is none.
pub(super) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Bytes of the files of all unpacked layers.
pub(super) fn layer_bytes(layers: &Path) -> Result<u64> {
    fn below(folder: &Path) -> Result<u64> {
        let mut bytes = 0;
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if meta.is_dir() {
                bytes += below(&entry.path())?;
            } else if meta.is_file() {
                bytes += meta.len();
            }
        }
        Ok(bytes)
    }
    let mut bytes = 0;
    for name in names(layers) {
        let diff = layers.join(name).join("diff");
        if diff.is_dir() {
            bytes += below(&diff)?;
        }
    }
    Ok(bytes)
}
