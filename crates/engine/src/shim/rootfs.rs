//! The container's root filesystem: mounted, and made safe to mount things into.
//!
//! An image may hold anything, a symbolic link `/dev -> /etc` of the host included. Everything here walks from a
//! descriptor of the root with `openat2` and never lets a link of the image lead out of it (the class of CVE-2021-30465 and
//! CVE-2024-45310).

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat2, readlinkat};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, fstat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::protocol::Failure;

/// Symbolic links followed in one path, as in the kernel.
const LINKS_MAX: usize = 40;
/// Where the overlay is mounted, below the container's directory and in the builder's own mount namespace only.
pub(crate) const MERGED: &str = "merged";

/// Mounts the overlay of `layers` (lowest first) and the writable layer on `merged`; the working directory must be the
/// container's. Gone with the last process of the container, since only its mount namespace has it.
pub(crate) fn mount_overlay(layers: &[PathBuf], volatile: bool) -> Result<(), Failure> {
    for dir in ["upper", "work", MERGED] {
        match std::fs::create_dir(dir) {
            Ok(()) if dir == "upper" => {
                copy_root_mode(layers).map_err(|errno| {
                    Failure::new(format!("cannot prepare upper: {}", errno.desc()))
                })?;
            }
            Ok(()) => {}
            Err(err) if err.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(err) => return Err(Failure::new(format!("cannot create {dir}: {err}"))),
        }
    }
    // A mount that was volatile once leaves this mark, and the kernel refuses the next one until it is gone.
    let _ = std::fs::remove_dir_all("work/work/incompat");
    let (held, mut lower) = lower_dirs(layers)?;
    if lower.is_empty() {
        let _ = std::fs::create_dir("empty");
        lower.push("empty".to_owned());
    }
    let mut options = format!("lowerdir={},upperdir=upper,workdir=work", lower.join(":"));
    if volatile {
        options.push_str(",volatile");
    }
    let mounted = mount(
        Some("overlay"),
        MERGED,
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    );
    drop(held);
    mounted.map_err(|errno| {
        Failure::new(format!(
            "cannot mount the root filesystem: {}",
            errno.desc()
        ))
    })
}

/// Mounts layers, lowest first, at a place, to be read alone.
pub(crate) fn mount_layers(layers: &[PathBuf], at: &Path) -> Result<(), Failure> {
    let (held, mut lower) = lower_dirs(layers)?;
    // The kernel wants two of them where nothing is written.
    let empty = at.with_extension("empty");
    for n in lower.len()..2 {
        let path = empty.join(n.to_string());
        std::fs::create_dir_all(&path)
            .map_err(|err| Failure::new(format!("cannot create {}: {err}", path.display())))?;
        lower.push(path.display().to_string());
    }
    let options = format!("lowerdir={}", lower.join(":"));
    let mounted = mount(
        Some("overlay"),
        at,
        Some("overlay"),
        MsFlags::MS_RDONLY,
        Some(options.as_str()),
    );
    drop(held);
    mounted.map_err(|errno| Failure::new(format!("cannot mount the image: {}", errno.desc())))
}

/// Layers as the mount option names them, the uppermost first, and what keeps those names good.
fn lower_dirs(layers: &[PathBuf]) -> Result<(Vec<OwnedFd>, Vec<String>), Failure> {
    let (mut held, mut lower) = (Vec::new(), Vec::new());
    for layer in layers.iter().rev() {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = open(layer, flags, Mode::empty()).map_err(|errno| {
            Failure::new(format!(
                "cannot open layer {}: {}",
                layer.display(),
                errno.desc()
            ))
        })?;
        // By descriptor, since the names of a hundred layers would not fit into the one page that mount takes.
        lower.push(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        held.push(fd);
    }
    Ok((held, lower))
}

/// The root filesystem by descriptor.
pub(crate) struct Root {
    fd: OwnedFd,
    /// Absolute path.
    pub path: PathBuf,
}

/// What is at a path.
enum Found {
    Nothing,
    Link(OsString),
    Other { directory: bool },
}

impl Root {
    /// Opens the directory at `path`, trusted to be what it says.
    pub(crate) fn open(path: PathBuf) -> Result<Self, Failure> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = open(&path, flags, Mode::empty()).map_err(|errno| {
            Failure::new(format!("cannot open {}: {}", path.display(), errno.desc()))
        })?;
        Ok(Self { fd, path })
    }

    /// Makes sure that `dev`, `proc` and `sys`, in which the runtime itself makes files, are directories of this root.
    /// Links and files in their place are replaced in the writable layer.
    pub(super) fn claim_system_dirs(&self) -> Result<(), Failure> {
        for name in ["dev", "proc", "sys"] {
            let claimed =
                match self.open_beneath(Path::new(name), OFlag::O_PATH | OFlag::O_DIRECTORY) {
                    Ok(_) => Ok(()),
                    Err(Errno::ENOENT) => mkdirat(&self.fd, name, Mode::from_bits_truncate(0o755)),
                    Err(Errno::ELOOP | Errno::ENOTDIR) => {
                        unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir)
                            .and_then(|()| mkdirat(&self.fd, name, Mode::from_bits_truncate(0o755)))
                    }
                    Err(errno) => Err(errno),
                };
            claimed.map_err(|errno| {
                Failure::new(format!("cannot use /{name} of the image: {}", errno.desc()))
            })?;
        }
        Ok(())
    }

    /// Resolves `path` inside this root, following its links inside this root only. Parts that do not exist are kept
    /// as written. The result starts with `/` and holds no link.
    pub(crate) fn resolve(&self, path: &Path) -> Result<PathBuf, Failure> {
        let fail = |errno: Errno| {
            Failure::new(format!(
                "cannot resolve {} in the container: {}",
                path.display(),
                errno.desc()
            ))
        };
        let mut todo: Vec<OsString> = components(path);
        todo.reverse();
        let mut done = PathBuf::new();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == OsStr::new("..") {
                done.pop();
                continue;
            }
            let next = done.join(&name);
            match self.look(&next).map_err(fail)? {
                Found::Nothing | Found::Other { .. } => done = next,
                Found::Link(target) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(fail(Errno::ELOOP));
                    }
                    let target = Path::new(&target);
                    if target.is_absolute() {
                        done = PathBuf::new();
                    }
                    todo.extend(components(target).into_iter().rev());
                }
            }
        }
        Ok(Path::new("/").join(done))
    }

    /// Makes sure that something of the right kind is at `path`, which [`Self::resolve`] returned.
    pub(crate) fn ensure(&self, path: &Path, directory: bool) -> Result<(), Failure> {
        let relative = path.strip_prefix("/").unwrap_or(path);
        let fail = |errno: Errno| {
            Failure::new(format!(
                "cannot create {} in the container: {}",
                path.display(),
                errno.desc()
            ))
        };
        match self.look(relative).map_err(fail)? {
            Found::Other { directory: found } if found == directory => return Ok(()),
            Found::Other { .. } | Found::Link(_) => {
                return Err(Failure::new(format!(
                    "cannot mount on {}: trying to mount a directory onto a file (or vice-versa)",
                    path.display()
                )));
            }
            Found::Nothing => {}
        }
        let mut parent = PathBuf::new();
        let parts = components(relative);
        for (index, name) in parts.iter().enumerate() {
            let at = self.dir_fd(&parent).map_err(fail)?;
            if index + 1 == parts.len() && !directory {
                let how = OpenHow::new()
                    .flags(OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC)
                    .mode(Mode::from_bits_truncate(0o644))
                    .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_BENEATH);
                openat2(&at, name.as_os_str(), how).map_err(fail)?;
            } else {
                match mkdirat(&at, name.as_os_str(), Mode::from_bits_truncate(0o755)) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(errno) => return Err(fail(errno)),
                }
            }
            parent.push(name);
        }
        Ok(())
    }

    /// A descriptor of the directory at a resolved path.
    pub(super) fn directory(&self, path: &Path) -> Result<OwnedFd, Errno> {
        self.open_beneath(
            path.strip_prefix("/").unwrap_or(path),
            OFlag::O_RDONLY | OFlag::O_DIRECTORY,
        )
    }

    /// A descriptor of what is at a resolved path, to mount on.
    pub(super) fn place(&self, path: &Path) -> Result<OwnedFd, Errno> {
        self.open_beneath(path.strip_prefix("/").unwrap_or(path), OFlag::O_PATH)
    }

    /// The same for a path that may lead through links, all inside this root; `None` where there is nothing.
    pub(super) fn place_if_any(&self, path: &Path) -> Result<Option<OwnedFd>, Errno> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        match openat2(&self.fd, path, how) {
            Ok(place) => Ok(Some(place)),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Opens the file at a resolved path.
    pub(super) fn open_file(&self, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
        self.open_beneath(path.strip_prefix("/").unwrap_or(path), flags)
    }

    /// The root itself.
    pub(super) fn descriptor(&self) -> &OwnedFd {
        &self.fd
    }

    /// The text of a regular file of at most `max` bytes; empty when there is none.
    pub(super) fn read_text(&self, path: &Path, max: u64) -> Result<String, Failure> {
        let resolved = self.resolve(path)?;
        let relative = resolved.strip_prefix("/").unwrap_or(&resolved);
        // Non-blocking, since the image may have put a FIFO there.
        let fd = match self.open_beneath(relative, OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
            Ok(fd) => fd,
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(String::new()),
            Err(errno) => {
                return Err(Failure::new(format!(
                    "cannot open {}: {}",
                    path.display(),
                    errno.desc()
                )));
            }
        };
        let regular = fstat(&fd).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFREG);
        let mut bytes = Vec::new();
        if regular {
            let read = File::from(fd).take(max).read_to_end(&mut bytes);
            read.map_err(|err| Failure::new(format!("cannot read {}: {err}", path.display())))?;
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn dir_fd(&self, relative: &Path) -> Result<OwnedFd, Errno> {
        self.open_beneath(relative, OFlag::O_PATH | OFlag::O_DIRECTORY)
    }

    fn open_beneath(&self, relative: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlag::RESOLVE_IN_ROOT
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(resolve);
        let relative = if relative.as_os_str().is_empty() {
            Path::new(".")
        } else {
            relative
        };
        openat2(&self.fd, relative, how)
    }

    fn look(&self, relative: &Path) -> Result<Found, Errno> {
        let fd = match self.open_beneath(relative, OFlag::O_PATH | OFlag::O_NOFOLLOW) {
            Ok(fd) => fd,
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(Found::Nothing),
            Err(errno) => return Err(errno),
        };
        Ok(match fstat(&fd)?.st_mode & libc::S_IFMT {
            libc::S_IFLNK => Found::Link(readlinkat(&fd, "")?),
            mode => Found::Other {
                directory: mode == libc::S_IFDIR,
            },
        })
    }
}

/// Refuses links below a mount that is not ours to change: `rest` is looked up in the host directory `source`.
pub(super) fn refuse_links(source: &Path, rest: &Path, target: &Path) -> Result<(), Failure> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    let Ok(source) = open(source, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()) else {
        return Ok(());
    };
    match openat2(&source, rest, how) {
        Err(Errno::ELOOP | Errno::EXDEV) => Err(Failure::new(format!(
            "cannot mount on {}: a symbolic link inside another mount is in the way",
            target.display()
        ))),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Gives the root of the writable layer the mode of the image's root directory.
fn copy_root_mode(layers: &[PathBuf]) -> Result<(), Errno> {
    if let Some(top) = layers.last() {
        let stat = nix::sys::stat::stat(top)?;
        fchmodat(
            AT_FDCWD,
            "upper",
            Mode::from_bits_truncate(stat.st_mode & 0o7777),
            FchmodatFlags::FollowSymlink,
        )?;
    }
    Ok(())
}

fn components(path: &Path) -> Vec<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .filter(|name| !name.as_bytes().is_empty())
        .collect()
}
