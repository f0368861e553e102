//! What changes without a notice: the kernel does not tell of IPVS and WireGuard, so they are read again and again.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use super::{Kernel, Plane, Worker};
use crate::{
    core::{naming, state::Space, tunnel},
    io::observe,
};

/// Pause between two looks.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// A look is followed by so many times as long without one, however much there is to read.
const SHARE: u32 = 50;

impl Plane {
    /// Waits until somebody else has changed, in the kernel, what the plane made. For one waiter at a time.
    pub async fn disturbed(&self) {
        let is_silent = self.uses_ipvs || self.abilities.families.wireguard.is_some();
        let mut pause = LOOK_PAUSE;
        loop {
            tokio::select! {
                () = self.alarm.notified() => return,
                () = sleep(pause), if is_silent => {}
            }
            // A change that is seen is told by the alarm like any other. Without a thread nobody looks.
            let took = self.actor.run(Worker::look).await.unwrap_or_default();
            pause = LOOK_PAUSE.max(took * SHARE);
        }
    }
}

impl Worker {
    /// Compares what is silent with what is known of it, and raises the alarm where it differs. Returns how long that took.
    fn look(&mut self) -> Duration {
        let began = Instant::now();
        let mut changed = BTreeSet::new();
        let handles = self.config.run_dir.join("netns");
        let mut kernel = Kernel::new(&self.home, handles, BTreeMap::new()).with(self.families);
        if self.by_source.is_some() {
            let routers = self.routers().into_iter();
            changed.extend(routers.filter(|router| self.has_other_ipvs(&mut kernel, router)));
        }
        if self.has_other_tunnel(&mut kernel) {
            changed.insert(Space::Host);
        }
        drop(kernel);
        if !changed.is_empty() {
            self.watch.shared().hold().disturb(changed);
        }
        began.elapsed()
    }

    /// Whether somebody else was at IPVS in a router. What cannot be read shows elsewhere.
    fn has_other_ipvs(&self, kernel: &mut Kernel<'_>, router: &Space) -> bool {
        let inode = kernel.inode(router).unwrap_or_default();
        let known = self.known.get(router, inode).map(|known| &known.found);
        let Some(known) = known.filter(|known| !known.ipvs.is_empty()) else {
            return false;
        };
        let mut read = || -> io::Result<bool> {
            let Some((socket, family)) = kernel.ipvs(router)? else {
                return Ok(false);
            };
            Ok(observe::ipvs_idle(socket, family)? != known.ipvs_idle_s
                || observe::ipvs(socket, family)? != known.ipvs)
        };
        read().unwrap_or(false)
    }

    /// Whether somebody else was at the tunnel's device. Where a peer is found the device learns by itself.
    fn has_other_tunnel(&self, kernel: &mut Kernel<'_>) -> bool {
        let Some(wanted) = self.tunnel.as_ref() else {
            return false;
        };
        let name = naming::tunnel_link(&self.config.prefix);
        let mut read = || -> io::Result<bool> {
            let Some((socket, family)) = kernel.wireguard(&Space::Host)? else {
                return Ok(false);
            };
            let found = observe::tunnel(socket, family, &name)?.tunnel();
            Ok(!found.is_some_and(|found| tunnel::is_same(wanted, &found)))
        };
        // One that is gone is told of as a link.
        read().unwrap_or(false)
    }
}
