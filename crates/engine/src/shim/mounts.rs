//! Fills a container's root filesystem: mounts, devices, and what is hidden or not to be written.
//!
//! Every target is opened below the root, through no link, and mounted on by its descriptor: whoever changes names meanwhile
//! moves nothing out of the root (the class of CVE-2021-30465 and CVE-2025-31133).

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, fstat, makedev, mkdirat, mknodat};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::{Gid, Uid, fchdir, fchownat, symlinkat};
use oci_spec::runtime::{LinuxDeviceType, LinuxNamespaceType, Mount, Spec};

use super::executor::describe;
use super::protocol::Failure;
use super::rootfs::Root;
use super::trees::{Attributes, READ_ONLY, Tree};

const GROUPS: &str = "/sys/fs/cgroup";

/// Nodes that every container has: name, and numbers of the device.
const NODES: &[(&str, u64, u64)] = &[
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Links that every container has in `/dev`.
const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// What the options of a mount come to.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    /// For a fresh filesystem.
    flags: MsFlags,
    /// For one that was there.
    attributes: Attributes,
    /// The same with all that is mounted below.
    below: Attributes,
    recursive: bool,
    propagation: Option<MsFlags>,
    /// For the filesystem itself.
    data: String,
}

// `MOUNT_ATTR_…` of `linux/mount.h`.
const NO_SUID: u64 = 2;
const NO_DEV: u64 = 4;
const NO_EXEC: u64 = 8;
const NO_ATIME: u64 = 0x10;
const STRICT_ATIME: u64 = 0x20;
const ATIME: u64 = 0x70;
const NO_DIR_ATIME: u64 = 0x80;

/// What an option sets and clears: flags of a fresh filesystem, and attributes of one that was there. With an `r` before it
/// the attributes are those of all that is mounted below, too.
struct Meaning {
    word: &'static str,
    flags: (MsFlags, MsFlags),
    attributes: Attributes,
}

const fn meaning(word: &'static str, flags: (MsFlags, MsFlags), set: u64, clear: u64) -> Meaning {
    Meaning {
        word,
        flags,
        attributes: Attributes { set, clear },
    }
}

const NONE: MsFlags = MsFlags::empty();
const MEANINGS: &[Meaning] = &[
    meaning("ro", (MsFlags::MS_RDONLY, NONE), READ_ONLY, 0),
    meaning("rw", (NONE, MsFlags::MS_RDONLY), 0, READ_ONLY),
    meaning("nosuid", (MsFlags::MS_NOSUID, NONE), NO_SUID, 0),
    meaning("suid", (NONE, MsFlags::MS_NOSUID), 0, NO_SUID),
    meaning("nodev", (MsFlags::MS_NODEV, NONE), NO_DEV, 0),
    meaning("dev", (NONE, MsFlags::MS_NODEV), 0, NO_DEV),
    meaning("noexec", (MsFlags::MS_NOEXEC, NONE), NO_EXEC, 0),
    meaning("exec", (NONE, MsFlags::MS_NOEXEC), 0, NO_EXEC),
    // A kind of access times replaces another one.
    meaning("noatime", (MsFlags::MS_NOATIME, NONE), NO_ATIME, ATIME),
    meaning("atime", (NONE, MsFlags::MS_NOATIME), 0, ATIME),
    meaning(
        "strictatime",
        (MsFlags::MS_STRICTATIME, NONE),
        STRICT_ATIME,
        ATIME,
    ),
    meaning("nostrictatime", (NONE, MsFlags::MS_STRICTATIME), 0, ATIME),
    meaning("relatime", (MsFlags::MS_RELATIME, NONE), 0, ATIME),
    meaning("norelatime", (NONE, MsFlags::MS_RELATIME), 0, 0),
    meaning(
        "nodiratime",
        (MsFlags::MS_NODIRATIME, NONE),
        NO_DIR_ATIME,
        0,
    ),
    meaning("diratime", (NONE, MsFlags::MS_NODIRATIME), 0, NO_DIR_ATIME),
    meaning("sync", (MsFlags::MS_SYNCHRONOUS, NONE), 0, 0),
    meaning("async", (NONE, MsFlags::MS_SYNCHRONOUS), 0, 0),
    meaning("dirsync", (MsFlags::MS_DIRSYNC, NONE), 0, 0),
    meaning("mand", (MsFlags::MS_MANDLOCK, NONE), 0, 0),
    meaning("nomand", (NONE, MsFlags::MS_MANDLOCK), 0, 0),
    meaning("defaults", (NONE, NONE), 0, 0),
    meaning("bind", (NONE, NONE), 0, 0),
];
const PROPAGATIONS: &[(&str, MsFlags)] = &[
    ("private", MsFlags::MS_PRIVATE),
    ("slave", MsFlags::MS_SLAVE),
    ("shared", MsFlags::MS_SHARED),
    ("unbindable", MsFlags::MS_UNBINDABLE),
];

/// Reads options as `mount` has them.
fn options(words: &[String]) -> Options {
    let mut all = Options {
        flags: NONE,
        attributes: Attributes::default(),
        below: Attributes::default(),
        recursive: false,
        propagation: None,
        data: String::new(),
    };
    let mut data: Vec<&str> = Vec::new();
    for word in words.iter().map(String::as_str) {
        let below = word.strip_prefix('r');
        let propagation = |word: &str| PROPAGATIONS.iter().find(|(name, _)| *name == word);
        let meaning = |word: &str| MEANINGS.iter().find(|one| one.word == word);
        if let Some((_, kind)) = propagation(word) {
            all.propagation = Some(*kind);
        } else if let Some((_, kind)) = below.and_then(propagation) {
            all.propagation = Some(*kind | MsFlags::MS_REC);
        } else if let Some(one) = meaning(word) {
            all.flags = all.flags & !one.flags.1 | one.flags.0;
            all.attributes.add(one.attributes);
        } else if word == "rbind" {
            all.recursive = true;
        } else if let Some(one) = below.and_then(meaning) {
            all.flags = all.flags & !one.flags.1 | one.flags.0;
            all.below.add(one.attributes);
        } else {
            data.push(word);
        }
    }
    // What may not be written already stays so, as in runc.
    all.attributes.clear &= !READ_ONLY;
    all.data = data.join(",");
    all
}

/// A path by which the kernel reaches an open place.
fn by_descriptor(place: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", place.as_raw_fd())
}

fn fail(what: &str, path: &Path) -> impl FnOnce(Errno) -> Failure {
    let text = format!("cannot {what} {}", path.display());
    move |errno| Failure::new(format!("{text}: {}", describe(errno)))
}

/// Mounts all that the spec names. Relative sources are below the working directory.
pub(super) fn mount_all(root: &Root, spec: &Spec) -> Result<(), Failure> {
    for one in spec.mounts().iter().flatten() {
        mount_one(root, spec, one)?;
    }
    Ok(())
}

fn mount_one(root: &Root, spec: &Spec, one: &Mount) -> Result<(), Failure> {
    let target = one.destination();
    let wanted = options(one.options().as_deref().unwrap_or_default());
    let kind = one.typ().as_deref().unwrap_or("bind");
    let is_bind = matches!(kind, "bind" | "none" | "");
    let source = one.source().clone().unwrap_or_default();
    let is_file = is_bind && std::fs::metadata(&source).is_ok_and(|meta| !meta.is_dir());
    root.ensure(target, !is_file)?;
    let place = root.place(target).map_err(fail("open", target))?;
    if is_bind {
        let tree = Tree::of(&source, wanted.recursive);
        let tree = tree.map_err(fail("mount", &source))?;
        let allow = |attributes: Attributes, recursive| {
            if attributes == Attributes::default() {
                return Ok(());
            }
            tree.restrict(attributes, recursive)
                .map_err(fail("change what is allowed at", target))
        };
        allow(wanted.attributes, false)?;
        allow(wanted.below, true)?;
        tree.attach_at(&place).map_err(fail("mount on", target))?;
    } else if kind == "cgroup" {
        mount_groups(root, spec, target, &place, wanted.flags)?;
    } else {
        let data = Some(wanted.data.as_str()).filter(|data| !data.is_empty());
        mount(
            Some(&source),
            by_descriptor(&place).as_str(),
            Some(kind),
            wanted.flags,
            data,
        )
        .map_err(fail(&format!("mount {kind} on"), target))?;
    }
    if let Some(kind) = wanted.propagation {
        // What lies there now.
        let place = root.place(target).map_err(fail("open", target))?;
        let none = None::<&str>;
        mount(none, by_descriptor(&place).as_str(), none, kind, none)
            .map_err(fail("set the propagation of", target))?;
    }
    Ok(())
}

/// The view of its own control groups.
fn mount_groups(
    root: &Root,
    spec: &Spec,
    target: &Path,
    place: &OwnedFd,
    flags: MsFlags,
) -> Result<(), Failure> {
    let fresh = |kind: &str, at: &str, flags, data: Option<&str>| {
        mount(Some(kind), at, Some(kind), flags, data)
            .map_err(fail("mount the control groups on", target))
    };
    let unified = statfs(GROUPS).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC);
    if unified {
        return fresh("cgroup2", &by_descriptor(place), flags, None);
    }
    let around = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    fresh("tmpfs", &by_descriptor(place), around, Some("mode=755"))?;
    let own = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_ref());
    let mut own = own.into_iter().flatten();
    let is_own = own.any(|namespace| namespace.typ() == LinuxNamespaceType::Cgroup);
    let failed = |err: io::Error| {
        Failure::new(format!(
            "cannot mount the control groups on {}: {err}",
            target.display()
        ))
    };
    let hierarchies = hierarchies(is_own).map_err(failed)?;
    // Nobody but us has seen this filesystem yet, so names in it are safe.
    let inside = root.directory(target).map_err(fail("open", target))?;
    let back = open(".", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
    let back = back.map_err(fail("open", Path::new(".")))?;
    fchdir(&inside).map_err(fail("enter", target))?;
    for Hierarchy { controllers, host } in &hierarchies {
        let name = controllers.strip_prefix("name=").unwrap_or(controllers);
        mkdirat(&inside, name, Mode::from_bits_truncate(0o755)).map_err(fail("make", target))?;
        match host {
            None => fresh("cgroup", name, flags, Some(controllers))?,
            Some(host) => {
                let tree = Tree::of(host, false).map_err(fail("mount", host))?;
                if flags.contains(MsFlags::MS_RDONLY) {
                    tree.restrict(Attributes::READ_ONLY, false)
                        .map_err(fail("protect", host))?;
                }
                tree.attach(Path::new(name)).map_err(fail("mount", host))?;
            }
        }
        // Controllers that are together are found by each of their names, too.
        for one in name.split(',').filter(|one| *one != name) {
            symlinkat(name, &inside, one).map_err(fail("make links in", target))?;
        }
    }
    fchdir(&back).map_err(fail("enter", Path::new(".")))?;
    if flags.contains(MsFlags::MS_RDONLY) {
        let place = root.place(target).map_err(fail("open", target))?;
        protect(&place).map_err(fail("protect", target))?;
    }
    Ok(())
}

/// A hierarchy of version 1.
struct Hierarchy {
    /// As the kernel lists them: `cpu,cpuacct` or `name=systemd`.
    controllers: String,
    /// Where our group is, for a container that sees the host's groups.
    host: Option<PathBuf>,
}

fn hierarchies(is_own: bool) -> io::Result<Vec<Hierarchy>> {
    let text = std::fs::read_to_string("/proc/self/cgroup")?;
    let table = if is_own {
        String::new()
    } else {
        std::fs::read_to_string("/proc/self/mountinfo")?
    };
    let mount_of = |controllers: &str| {
        let mounts = table.lines().filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut right = right.split(' ');
            let (kind, options) = (right.next()?, right.nth(1)?);
            let has = |one: &str| options.split(',').any(|option| option == one);
            let fits = kind == "cgroup" && controllers.split(',').all(has);
            fits.then(|| left.split(' ').nth(4)).flatten()
        });
        mounts.last()
    };
    let lines = text.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        // Version 2 beside it has none.
        if controllers.is_empty() {
            return None;
        }
        let host = match is_own {
            true => None,
            false => Some(Path::new(mount_of(controllers)?).join(path.trim_start_matches('/'))),
        };
        Some(Hierarchy {
            controllers: controllers.to_owned(),
            host,
        })
    });
    Ok(lines.collect())
}

/// Takes the right to write away from a mount.
fn protect(place: &OwnedFd) -> Result<(), Errno> {
    super::trees::restrict(Path::new(&by_descriptor(place)), Attributes::READ_ONLY)
}

/// Makes the nodes of `/dev`, those that the spec asks for among them, unless the user has put something else there.
pub(super) fn make_devices(root: &Root, spec: &Spec) -> Result<(), Failure> {
    let dev = Path::new("/dev");
    let mounts = spec.mounts().iter().flatten();
    let mut there = mounts.filter(|mount| mount.destination() == dev);
    if there.any(|mount| matches!(mount.typ().as_deref(), None | Some("bind"))) {
        return Ok(());
    }
    let made = |errno: Errno| match errno {
        Errno::EEXIST => Ok(()),
        other => Err(other),
    };
    let inside = root.directory(dev).map_err(fail("open", dev))?;
    let before = nix::sys::stat::umask(Mode::empty());
    for (name, major, minor) in NODES {
        let mode = Mode::from_bits_truncate(0o666);
        mknodat(
            &inside,
            *name,
            SFlag::S_IFCHR,
            mode,
            makedev(*major, *minor),
        )
        .or_else(made)
        .map_err(fail("make the device", &dev.join(name)))?;
    }
    let linux = spec.linux().as_ref();
    for device in linux
        .and_then(|linux| linux.devices().as_ref())
        .into_iter()
        .flatten()
    {
        let path = root.resolve(device.path())?;
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
            continue;
        };
        root.ensure(above, true)?;
        let above = root.directory(above).map_err(fail("open", above))?;
        let kind = match device.typ() {
            LinuxDeviceType::B => SFlag::S_IFBLK,
            LinuxDeviceType::P => SFlag::S_IFIFO,
            _ => SFlag::S_IFCHR,
        };
        let mode = Mode::from_bits_truncate(device.file_mode().unwrap_or(0o666) & 0o7777);
        let number = |number: i64| u64::try_from(number).unwrap_or_default();
        let numbers = makedev(number(device.major()), number(device.minor()));
        mknodat(&above, name, kind, mode, numbers)
            .or_else(made)
            .map_err(fail("make the device", device.path()))?;
        let (uid, gid) = (
            device.uid().map(Uid::from_raw),
            device.gid().map(Gid::from_raw),
        );
        let flags = nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW;
        fchownat(&above, name, uid, gid, flags).map_err(fail("own", device.path()))?;
    }
    nix::sys::stat::umask(before);
    for (target, name) in LINKS {
        symlinkat(*target, &inside, *name)
            .or_else(made)
            .map_err(fail("make the link", &dev.join(name)))?;
    }
    if Path::new("/proc/kcore").exists() {
        symlinkat("/proc/kcore", &inside, "core")
            .or_else(made)
            .map_err(fail("make the link", &dev.join("core")))?;
    }
    Ok(())
}

/// Sets what the spec wants of the kernel; it is set for the namespaces of this process.
pub(super) fn set_sysctls(root: &Root, spec: &Spec) -> Result<(), Failure> {
    let linux = spec.linux().as_ref();
    for (key, value) in linux
        .and_then(|linux| linux.sysctl().as_ref())
        .into_iter()
        .flatten()
    {
        // Names of interfaces have dots, which stand as slashes then.
        let name: String = key
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect();
        let path = Path::new("/proc/sys").join(name);
        let failed =
            |err: io::Error| Failure::new(format!("cannot set sysctl {key} to {value:?}: {err}"));
        let file = root.open_file(&path, OFlag::O_WRONLY);
        let file = file.map_err(|errno| failed(errno.into()))?;
        File::from(file)
            .write_all(value.as_bytes())
            .map_err(failed)?;
    }
    Ok(())
}

/// Hides what a container is not to see, and protects what it is not to write.
pub(super) fn hide(root: &Root, spec: &Spec) -> Result<(), Failure> {
    let Some(linux) = spec.linux().as_ref() else {
        return Ok(());
    };
    for path in linux.readonly_paths().iter().flatten().map(Path::new) {
        let Some(place) = root.place_if_any(path).map_err(fail("open", path))? else {
            continue;
        };
        Tree::of_place(&place, true)
            .and_then(|tree| {
                tree.restrict(Attributes::READ_ONLY, false)?;
                tree.attach_at(&place)
            })
            .map_err(fail("protect", path))?;
    }
    let nothing = Path::new("/dev/null");
    let null = open(nothing, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
    let null = null.map_err(fail("open", nothing))?;
    let is_null = fstat(&null).is_ok_and(|stat| stat.st_rdev == makedev(1, 3));
    for path in linux.masked_paths().iter().flatten().map(Path::new) {
        let Some(place) = root.place_if_any(path).map_err(fail("open", path))? else {
            continue;
        };
        let is_dir = fstat(&place).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR);
        let hidden = if is_dir {
            let at = by_descriptor(&place);
            mount(
                Some("tmpfs"),
                at.as_str(),
                Some("tmpfs"),
                MsFlags::MS_RDONLY,
                None::<&str>,
            )
        } else if is_null {
            Tree::of_place(&null, false).and_then(|tree| tree.attach_at(&place))
        } else {
            Err(Errno::ENXIO)
        };
        hidden.map_err(fail("hide", path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Options {
        options(&text.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_those_of_mount() {
        let fresh = of("nosuid,strictatime,mode=755,size=65536k");
        assert_eq!(fresh.flags, MsFlags::MS_NOSUID | MsFlags::MS_STRICTATIME);
        assert_eq!(fresh.data, "mode=755,size=65536k");
        let bind = of("rbind,ro,rprivate");
        assert_eq!(
            bind.attributes,
            Attributes {
                set: READ_ONLY,
                clear: 0
            }
        );
        assert_eq!(bind.below, Attributes::default());
        assert_eq!(
            bind.propagation,
            Some(MsFlags::MS_PRIVATE | MsFlags::MS_REC)
        );
        assert!(bind.recursive && bind.data.is_empty());
        let below = of("bind,rro,slave");
        assert_eq!(
            below.below,
            Attributes {
                set: READ_ONLY,
                clear: 0
            }
        );
        assert_eq!(
            (below.propagation, below.recursive),
            (Some(MsFlags::MS_SLAVE), false)
        );
        let times = of("noatime,exec,noexec,relatime,rw");
        assert_eq!(
            times.attributes,
            Attributes {
                set: NO_EXEC,
                clear: ATIME
            }
        );
        assert_eq!(
            times.flags,
            MsFlags::MS_NOATIME | MsFlags::MS_NOEXEC | MsFlags::MS_RELATIME
        );
    }
}
