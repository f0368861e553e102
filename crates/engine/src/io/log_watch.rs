//! Tells when logs grow: one inotify instance for all who follow, since the kernel allows a user only 128 of them.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

/// Watches directories. Clones share one instance, which ends with the last of them and of their [`Growth`]s.
#[derive(Clone)]
pub(super) struct LogWatch {
    inner: Arc<Inner>,
}

struct Inner {
    inotify: Instance,
    followers: Mutex<Followers>,
    ended: Arc<Notify>,
}

type Followers = BTreeMap<WatchDescriptor, Vec<Weak<Notify>>>;

/// Shared, since the task that reads may outlive the rest for a moment.
#[derive(Clone)]
struct Instance(Arc<Inotify>);

impl AsRawFd for Instance {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl AsFd for Instance {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// One follower's interest in one directory.
pub(super) struct Growth {
    inner: Arc<Inner>,
    watch: WatchDescriptor,
    notify: Arc<Notify>,
}

impl LogWatch {
    /// Starts the task that reads the kernel's events; needs a runtime.
    pub(super) fn new() -> io::Result<Self> {
        let inotify = Instance(Arc::new(Inotify::init(
            InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK,
        )?));
        let ended = Arc::new(Notify::new());
        let inner = Arc::new(Inner {
            inotify: inotify.clone(),
            followers: Mutex::default(),
            ended: ended.clone(),
        });
        // SAFETY: the descriptor is open, and an Inotify in an Arc is neither closed nor exchanged while one is here.
        let ready = unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE) }?;
        tokio::spawn(read_events(ready, Arc::downgrade(&inner), ended));
        Ok(Self { inner })
    }

    /// Whether something was written, made or renamed in `dir` will be told from now on.
    pub(super) fn follow(&self, dir: &Path) -> io::Result<Growth> {
        let flags =
            AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        let notify = Arc::new(Notify::new());
        let mut followers = self.inner.lock();
        // The same directory has the same number, however often it is asked for.
        let watch = self.inner.inotify.0.add_watch(dir, flags)?;
        followers
            .entry(watch)
            .or_default()
            .push(Arc::downgrade(&notify));
        drop(followers);
        Ok(Growth {
            inner: self.inner.clone(),
            watch,
            notify,
        })
    }
}

impl Growth {
    /// Waits until something has happened since the last call.
    pub(super) async fn happened(&self) {
        self.notify.notified().await;
    }
}

impl Drop for Growth {
    fn drop(&mut self) {
        let mut followers = self.inner.lock();
        if let Some(entry) = followers.get_mut(&self.watch) {
            entry.retain(|other| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(&self.notify)));
            if entry.is_empty() {
                // Gone already if the directory is.
                let _ = self.inner.inotify.0.rm_watch(self.watch);
                followers.remove(&self.watch);
            }
        }
    }
}

impl Inner {
    fn lock(&self) -> std::sync::MutexGuard<'_, Followers> {
        self.followers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, watch: Option<WatchDescriptor>) {
        let followers = self.lock();
        let told = followers
            .iter()
            .filter(|(key, _)| watch.is_none_or(|watch| watch == **key));
        for notify in told.flat_map(|(_, entry)| entry).filter_map(Weak::upgrade) {
            notify.notify_one();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.ended.notify_one();
    }
}

async fn read_events(ready: AsyncFd<Instance>, inner: Weak<Inner>, ended: Arc<Notify>) {
    loop {
        let mut guard = tokio::select! {
            guard = ready.readable() => match guard {
                Ok(guard) => guard,
                Err(_) => return,
            },
            () = ended.notified() => return,
        };
        let Some(inner) = inner.upgrade() else { return };
        while let Ok(events) = guard.get_inner().0.read_events() {
            for event in events {
                // When the kernel lost events, anything may have happened anywhere.
                let lost = event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
                inner.tell((!lost).then_some(event.wd));
            }
        }
        guard.clear_ready();
    }
}
