//! Word of devices by name (CDI) that come and go on this host.
#![allow(unsafe_code)]

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::cdi;

/// Names of the devices that are specified in these directories.
pub fn names(dirs: &[PathBuf]) -> BTreeSet<String> {
    cdi::read(dirs).names().map(str::to_owned).collect()
}

/// Watches the directories of specifications, also those that do not exist yet.
#[derive(Debug)]
pub struct Watch {
    dirs: Vec<PathBuf>,
    known: BTreeSet<String>,
    kernel: AsyncFd<Instance>,
}

#[derive(Debug)]
struct Instance(Inotify);

impl AsRawFd for Instance {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Watch {
    /// Begins to watch; needs a runtime.
    ///
    /// # Errors
    /// The kernel's, which allows a user only so many watches.
    pub fn new(dirs: &[PathBuf]) -> io::Result<Self> {
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        let kernel = Instance(Inotify::init(flags)?);
        // SAFETY: the descriptor is open, and an Inotify is neither closed nor exchanged while it is here.
        let kernel = unsafe { AsyncFd::register_with_interest(kernel, Interest::READABLE) }?;
        let mut watch = Self {
            dirs: dirs.to_vec(),
            known: BTreeSet::new(),
            kernel,
        };
        watch.look_at_all()?;
        watch.known = names(dirs);
        Ok(watch)
    }

    /// Waits until there are other devices than before.
    ///
    /// # Errors
    /// The kernel's; nothing more will be heard then.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.kernel.readable().await?;
            // What has happened is read from the directories.
            while ready.get_inner().0.read_events().is_ok() {}
            ready.clear_ready();
            self.look_at_all()?;
            let now = names(&self.dirs);
            if now != self.known {
                self.known = now;
                return Ok(());
            }
        }
    }

    /// Looks at each directory, or at the nearest one above it, where it would appear.
    fn look_at_all(&self) -> io::Result<()> {
        let inside =
            AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR;
        let within =
            AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_FROM | AddWatchFlags::IN_DELETE;
        for dir in &self.dirs {
            let mut at: Option<&Path> = Some(dir);
            while let Some(path) = at {
                let flags = if path == dir { inside | within } else { inside };
                match self.kernel.get_ref().0.add_watch(path, flags) {
                    Ok(_) => break,
                    Err(Errno::ENOENT | Errno::ENOTDIR) => at = path.parent(),
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn specification(name: &str) -> String {
        format!(
            r#"{{"cdiVersion":"0.6.0","kind":"example.com/thing","devices":[{{"name":"{name}",
            "containerEdits":{{"env":["A=b"]}}}}],"containerEdits":{{}}}}"#
        )
    }

    #[tokio::test]
    async fn devices_that_come_and_go_are_noticed_even_before_their_directory_exists() {
        let root = tempfile::tempdir().expect("a directory");
        let dir = root.path().join("etc/cdi");
        let mut watch = Watch::new(std::slice::from_ref(&dir)).expect("a watch");
        assert_eq!(watch.known, BTreeSet::new());
        let file = dir.join("thing.json");
        let made = async {
            fs::create_dir_all(&dir)?;
            fs::write(&file, specification("one"))
        };
        let (changed, made) = tokio::join!(watch.changed(), made);
        changed.and(made).expect("noticed");
        assert_eq!(watch.known, ["example.com/thing=one".to_owned()].into());
        fs::write(&file, specification("two")).expect("written");
        while watch.known != ["example.com/thing=two".to_owned()].into() {
            watch.changed().await.expect("noticed");
        }
        fs::remove_file(&file).expect("removed");
        watch.changed().await.expect("noticed");
        assert_eq!(watch.known, BTreeSet::new());
    }
}
