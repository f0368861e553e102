//! Files of containers: `docker cp`, `diff` and `export`.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::readlinkat;
use nix::sys::stat::fstat;
use shoal_api::Timestamp;
use shoal_api::container::{ChangeKind, PathStat};
use tokio::io::AsyncRead;
use tokio::sync::{OwnedMutexGuard, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::SyncIoBridge;

use super::record::{Entry, Record};
use super::{Engine, EngineError};
use crate::core::user;
use crate::io::files::{
    ExtractOptions, Extractor, FilesError, Packer, Place, Tree, View, ViewMount, changes, on_thread,
};

/// Bytes of an archive in one piece, and pieces that wait for a slow reader.
const PIECE_BYTES: usize = 64 << 10;
const PIECES_MAX: usize = 8;

/// Mount points that the engine makes itself.
const OURS: &[&str] = &[
    "/dev",
    "/dev/console",
    "/dev/mqueue",
    "/dev/pts",
    "/dev/shm",
    "/etc",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/proc",
    "/sys",
];

/// An archive on its way out; dropping it stops the work.
pub type ArchiveStream = ReceiverStream<io::Result<Bytes>>;

/// A path as a user writes it: cleaned, and whether a link in the last place is to be followed.
struct Wish {
    /// Whose file, as the user called it.
    container: String,
    /// As docker shows it, with the slash or dot at its end.
    shown: String,
    clean: PathBuf,
    follow: bool,
}

impl Wish {
    fn new(container: &str, path: &str) -> Self {
        let mut clean = PathBuf::from("/");
        for part in Path::new(path).components() {
            match part {
                Component::Normal(name) => clean.push(name),
                Component::ParentDir => drop(clean.pop()),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        Self {
            container: container.to_owned(),
            shown: path.to_owned(),
            clean,
            follow: path.ends_with('/') || path.ends_with("/.") || path == ".",
        }
    }

    /// Go's `filepath.Base` of the path.
    fn base(&self) -> String {
        if self.shown.ends_with("/.") || self.shown == "." {
            return ".".to_owned();
        }
        match self.clean.file_name() {
            Some(name) => name.to_string_lossy().into_owned(),
            None => "/".to_owned(),
        }
    }
}

impl Engine {
    /// What is at a path of a container.
    pub async fn path_stat(&self, name: &str, path: &str) -> Result<PathStat, EngineError> {
        let (entry, wish) = (self.find(name)?, Wish::new(name, path));
        let (place, guard) = self.place(&entry).await?;
        let (answer, answered) = oneshot::channel();
        run(guard, move || {
            let found = View::open(&place).and_then(|view| stat(&view.tree, &wish));
            let _ = answer.send(found.map(|(_, stat)| stat));
        })?;
        wait(answered).await
    }

    /// What is at a path of a container, and an archive of it.
    pub async fn archive(
        &self,
        name: &str,
        path: &str,
    ) -> Result<(PathStat, ArchiveStream), EngineError> {
        let (entry, wish) = (self.find(name)?, Wish::new(name, path));
        let (place, guard) = self.place(&entry).await?;
        self.stream(guard, move |begin| {
            let found = View::open(&place).and_then(|view| {
                let found = stat(&view.tree, &wish)?;
                Ok((view, found))
            });
            let (_view, (top, stat)) = match found {
                Ok(found) => found,
                Err(err) => return drop(begin.send(Err(err))),
            };
            // Docker's names for the root begin with a slash.
            let top_name = match wish.base() {
                base if base == "/" => String::new(),
                base => base,
            };
            if let Some(out) = begin.start(stat) {
                let _ = pack(out, top_name.as_bytes(), top);
            }
        })
        .await
    }

    /// The root file system of a container as an archive, without volumes.
    pub async fn export(&self, name: &str) -> Result<ArchiveStream, EngineError> {
        let entry = self.find(name)?;
        let (place, guard) = self.place(&entry).await?;
        let record = entry.record();
        let exported = self.stream(guard, move |begin| {
            let view = match View::open_bare(&place) {
                Ok(view) => view,
                Err(err) => return drop(begin.send(Err(err))),
            };
            if let Some(out) = begin.start(()) {
                let _ = pack_children(out, &view.tree);
            }
        });
        let ((), stream) = exported.await?;
        self.tell(&record, "export", &[]);
        Ok(stream)
    }

    /// Unpacks an archive into a directory of a container.
    pub async fn extract(
        &self,
        name: &str,
        path: &str,
        no_overwrite_dir_non_dir: bool,
        copy_owner: bool,
        archive: impl AsyncRead + Send + 'static,
    ) -> Result<(), EngineError> {
        let entry = self.find(name)?;
        let (place, guard) = self.place(&entry).await?;
        let record = entry.record();
        let wish = Wish::new(name, path);
        let (answer, answered) = oneshot::channel();
        let archive = SyncIoBridge::new(Box::pin(archive));
        let told = record.clone();
        run(guard, move || {
            let work = || {
                let view = View::open(&place)?;
                let owner = if copy_owner {
                    owner_of(&view.tree, &record)?
                } else {
                    None
                };
                let options = ExtractOptions {
                    no_overwrite_dir_non_dir,
                    owner,
                };
                let extractor = Extractor::new(&view.tree, &wish.clean, options);
                let extractor = extractor.map_err(|errno| match errno {
                    Errno::EROFS if in_volume(&record, &wish.clean) => FilesError::ReadOnlyVolume,
                    Errno::EROFS => FilesError::ReadOnlyRoot,
                    errno => not_found(errno, &wish),
                })?;
                extractor.run(archive)
            };
            let _ = answer.send(work());
        })?;
        wait(answered).await?;
        self.tell(&told, "extract-to-dir", &[]);
        Ok(())
    }

    /// What a container has changed in its files, by path.
    pub async fn changes(&self, name: &str) -> Result<Vec<(PathBuf, ChangeKind)>, EngineError> {
        let entry = self.find(name)?;
        let record = entry.record();
        let upper = entry.dir.join("upper");
        let found = tokio::task::spawn_blocking(move || changes(&upper, &record.layers, OURS));
        let found = found
            .await
            .map_err(|err| EngineError::Invalid(err.to_string()))?;
        Ok(found?)
    }

    /// Where the files of a container are. One that does not run is kept from starting while the guard lives.
    async fn place(
        &self,
        entry: &Arc<Entry>,
    ) -> Result<(Place, Option<OwnedMutexGuard<()>>), EngineError> {
        let guard = entry.op.clone().lock_owned().await;
        let record = entry.record();
        if record.removed {
            return Err(EngineError::NoSuchContainer(record.name.clone()));
        }
        if record.state.status.is_up() {
            let place = Place::Process {
                pid: record.state.pid,
                cgroup: entry.id.to_string(),
            };
            return Ok((place, None));
        }
        let mut mounts = Vec::new();
        for name in ["resolv.conf", "hostname", "hosts"] {
            let source = entry.dir.join(name);
            let target = PathBuf::from(format!("/etc/{name}"));
            // They are written at the first start.
            if source.exists()
                && !record
                    .mounts
                    .iter()
                    .any(|m| Path::new(&m.destination) == target)
            {
                mounts.push(ViewMount {
                    source,
                    target,
                    read_only: record.spec.host.readonly_rootfs,
                });
            }
        }
        // A tmpfs of a container that does not run holds nothing.
        let own = record.mounts.iter().filter(|mount| mount.kind != "tmpfs");
        mounts.extend(own.map(|mount| ViewMount {
            source: mount.source.clone(),
            target: mount.destination.clone().into(),
            read_only: !mount.rw,
        }));
        let place = Place::Stopped {
            dir: entry.dir.clone(),
            layers: record.layers.clone(),
            mounts,
            read_only: record.spec.host.readonly_rootfs,
        };
        Ok((place, Some(guard)))
    }

    /// Runs `work`, which answers once and then writes an archive.
    async fn stream<T: Send + 'static>(
        &self,
        guard: Option<OwnedMutexGuard<()>>,
        work: impl FnOnce(Begin<T>) + Send + 'static,
    ) -> Result<(T, ArchiveStream), EngineError> {
        let (answer, answered) = oneshot::channel();
        let (pieces, stream) = mpsc::channel(PIECES_MAX);
        run(guard, move || work(Begin { answer, pieces }))?;
        let found = wait(answered).await?;
        Ok((found, ReceiverStream::new(stream)))
    }
}

/// What the client hears first.
struct Begin<T> {
    answer: oneshot::Sender<Result<T, FilesError>>,
    pieces: mpsc::Sender<io::Result<Bytes>>,
}

impl<T> Begin<T> {
    fn send(self, found: Result<T, FilesError>) -> Result<(), Result<T, FilesError>> {
        self.answer.send(found)
    }

    /// Answers, and returns where the archive goes unless nobody waits any more.
    fn start(self, found: T) -> Option<Pieces> {
        self.answer.send(Ok(found)).ok()?;
        Some(Pieces {
            pieces: self.pieces,
            piece: Vec::with_capacity(PIECE_BYTES),
        })
    }
}

/// A writer that hands pieces over to the client.
struct Pieces {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    piece: Vec<u8>,
}

impl Pieces {
    fn pass_on(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE_BYTES));
        self.pieces
            .blocking_send(Ok(piece.into()))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE_BYTES {
            self.pass_on()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        self.pass_on()
    }
}

fn pack(out: Pieces, name: &[u8], top: OwnedFd) -> io::Result<()> {
    write(out, |packer| packer.add(name, top))
}

/// Everything in the root, by names without a slash before them.
fn pack_children(out: Pieces, tree: &Tree) -> io::Result<()> {
    write(out, |packer| {
        for name in crate::io::files::names(tree, Path::new(""))? {
            use std::os::unix::ffi::OsStrExt;
            let path = Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()));
            match tree.find(path, false) {
                Ok(top) => packer.add(name.to_bytes(), top)?,
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    })
}

fn write(out: Pieces, fill: impl FnOnce(&mut Packer<Pieces>) -> io::Result<()>) -> io::Result<()> {
    let pieces = out.pieces.clone();
    let mut packer = Packer::new(out);
    let done = fill(&mut packer).and_then(|()| packer.finish().map(drop));
    if let Err(err) = &done {
        // Breaks the transfer off, so that nobody takes half an archive for a whole one.
        let _ = pieces.blocking_send(Err(io::Error::new(err.kind(), err.to_string())));
    }
    done
}

/// Runs `work` in a thread of its own and lets the container go when it is done.
fn run(
    guard: Option<OwnedMutexGuard<()>>,
    work: impl FnOnce() + Send + 'static,
) -> Result<(), EngineError> {
    on_thread(move || {
        work();
        drop(guard);
    })
    .map_err(EngineError::io("start", "a thread"))
}

async fn wait<T>(answered: oneshot::Receiver<Result<T, FilesError>>) -> Result<T, EngineError> {
    let gone = || FilesError::View("the work on them broke off".into());
    Ok(answered.await.unwrap_or_else(|_| Err(gone()))?)
}

/// Finds what a wish is about and describes it.
fn stat(tree: &Tree, wish: &Wish) -> Result<(OwnedFd, PathStat), FilesError> {
    let fail = |errno| not_found(errno, wish);
    let found = tree.find(&wish.clean, wish.follow).map_err(fail)?;
    let stat = fstat(&found).map_err(fail)?;
    let kind = stat.st_mode & libc::S_IFMT;
    if wish.follow && kind != libc::S_IFDIR {
        return Err(FilesError::Kernel {
            path: wish.shown.clone(),
            errno: Errno::ENOTDIR,
        });
    }
    let link_target = if kind == libc::S_IFLNK {
        let text = readlinkat(&found, "").map_err(fail)?;
        let parent = wish.clean.parent().unwrap_or_else(|| Path::new("/"));
        let target = Wish::new("", &parent.join(text).to_string_lossy());
        target.clean.display().to_string()
    } else {
        String::new()
    };
    let nanos = i64::from(stat.st_mtime) * 1_000_000_000 + i64::from(stat.st_mtime_nsec);
    let described = PathStat {
        name: wish.base(),
        size: stat.st_size,
        mode: stat.st_mode,
        mtime: Timestamp(nanos.into()),
        link_target,
    };
    Ok((found, described))
}

fn not_found(errno: Errno, wish: &Wish) -> FilesError {
    match errno {
        Errno::ENOENT => FilesError::NotFound {
            path: wish.shown.clone(),
            container: wish.container.clone(),
        },
        Errno::ENOTDIR => FilesError::NotDirectory,
        errno => FilesError::Kernel {
            path: wish.shown.clone(),
            errno,
        },
    }
}

fn in_volume(record: &Record, path: &Path) -> bool {
    let mut mounts = record.mounts.iter();
    mounts.any(|mount| path.starts_with(&mount.destination))
}

/// The container's user, when it has one.
fn owner_of(tree: &Tree, record: &Record) -> Result<Option<(u32, u32)>, FilesError> {
    let Some(wanted) = record.spec.user.as_deref().filter(|user| !user.is_empty()) else {
        return Ok(None);
    };
    let text = |path: &str| {
        let found = tree.find(Path::new(path), true).ok()?;
        let regular = fstat(&found).ok()?.st_mode & libc::S_IFMT == libc::S_IFREG;
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&found));
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).ok().filter(|_| regular)?;
        file.take(user::ACCOUNT_FILE_MAX)
            .read_to_end(&mut bytes)
            .ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    };
    let (passwd, group) = (text("/etc/passwd"), text("/etc/group"));
    let who = user::resolve(
        wanted,
        &[],
        &passwd.unwrap_or_default(),
        &group.unwrap_or_default(),
    );
    let who = who.map_err(|err| FilesError::Archive(err.to_string()))?;
    Ok(Some((who.uid, who.gid)))
}
