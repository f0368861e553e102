//! Brings packets and names to the newest network view.

use std::{sync::Arc, time::Duration};

use shoal_api::network::NetworkView;
use tokio::{sync::watch, time::sleep};

use crate::ports::{Chain, NamePlane, NetworkPlane};

/// Pause before a view that would not converge is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// A view to converge on, numbered by the agent.
#[derive(Debug, Clone, Default)]
struct Wanted {
    number: u64,
    view: Arc<NetworkView>,
}

/// How far the plane is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Settled {
    /// Number of the newest view that was tried, with or without success.
    pub(super) tried: u64,
    /// Version of the newest view that is in force; `None` before the first.
    pub(super) version: Option<u64>,
}

/// The way to the plane task.
pub(super) struct Plane {
    wanted: watch::Sender<Wanted>,
    settled: watch::Receiver<Settled>,
}

impl Plane {
    /// A plane, and the future that does its work.
    pub(super) fn new(
        network: Arc<dyn NetworkPlane>,
        names: Arc<dyn NamePlane>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (wanted, wants) = watch::channel(Wanted::default());
        let (settles, settled) = watch::channel(Settled::default());
        (
            Self { wanted, settled },
            run(network, names, wants, settles),
        )
    }

    /// Asks for a view. Returns its number, to be compared with [`Settled::tried`].
    pub(super) fn want(&self, view: Arc<NetworkView>) -> u64 {
        let number = self.wanted.borrow().number + 1;
        self.wanted.send_replace(Wanted { number, view });
        number
    }

    pub(super) fn settled(&self) -> watch::Receiver<Settled> {
        self.settled.clone()
    }
}

async fn run(
    network: Arc<dyn NetworkPlane>,
    names: Arc<dyn NamePlane>,
    mut wants: watch::Receiver<Wanted>,
    settles: watch::Sender<Settled>,
) {
    let mut converged = true;
    loop {
        tokio::select! {
            changed = wants.changed() => if changed.is_err() { return },
            () = sleep(RETRY_PAUSE), if !converged => {}
        }
        let Wanted { number, view } = wants.borrow_and_update().clone();
        let result = network.converge(&view).await;
        // Names come after the addresses they lead to; what they no longer lead to is still there, as nothing is
        // stopped before this is settled.
        names.publish(&view);
        converged = result.is_ok();
        for error in result.err().into_iter().flatten() {
            tracing::error!(view.version, error = %Chain(&error), "a part of the network view did not converge");
        }
        settles.send_modify(|settled| {
            settled.tried = number;
            if converged {
                settled.version = Some(view.version);
            }
        });
    }
}
