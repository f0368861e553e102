//! When new images have reached the disk.
//!
//! Nobody waits for the disk: an image is entered as one that a power cut may take, and what it is made of is written
//! out behind everybody's back. If the machine goes down before that, the image is not there at the next start, instead
//! of being there with files that are empty. A daemon that is killed loses nothing, since the kernel has it all.

use std::{
    fs::{self, File},
    sync::{Arc, Mutex, PoisonError},
};

use shoal_api::image::ImageId;

use super::{ImageError, store::Inner};

/// Whether somebody is writing out, and whether there is more since.
#[derive(Default)]
pub(super) struct Syncing(Mutex<State>);

#[derive(Default)]
struct State {
    running: bool,
    again: bool,
}

/// Names this run of the kernel; empty if it does not say.
pub(super) fn boot_id() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

impl Inner {
    /// Writes out new images, in a thread of its own.
    pub(super) fn sync_soon(self: &Arc<Self>) {
        if self.catalog().unsynced().next().is_none() {
            return;
        }
        {
            let mut state = self
                .syncing
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if state.running {
                state.again = true;
                return;
            }
            state.running = true;
        }
        let inner = Arc::clone(self);
        let thread = std::thread::Builder::new().name("shoal-sync".into());
        let started = thread.spawn(move || inner.sync_all());
        if let Err(error) = started {
            tracing::warn!(%error, "cannot write out new images");
            self.syncing
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .running = false;
        }
    }

    fn sync_all(&self) {
        loop {
            let ids: Vec<ImageId> = self.catalog().unsynced().cloned().collect();
            if let Err(error) = self.sync_these(&ids) {
                tracing::warn!(error = error.report(), "cannot write out new images");
            }
            let mut state = self
                .syncing
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if !std::mem::take(&mut state.again) {
                state.running = false;
                return;
            }
        }
    }

    fn sync_these(&self, ids: &[ImageId]) -> Result<(), ImageError> {
        let root = self.root();
        let fd = File::open(root).map_err(ImageError::io("open", root))?;
        nix::unistd::syncfs(&fd).map_err(|errno| ImageError::io("sync", root)(errno.into()))?;
        self.change(|catalog| {
            catalog.synced(ids);
            Ok(())
        })
    }
}
