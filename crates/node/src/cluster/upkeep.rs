//! Keeps a membership in step with the cluster: its certificate valid, its role the one that the cluster gives it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use shoal_api::{Timestamp, spec::NodeRole};
use shoal_ca::{NodeIdentity, Role, RootCertificate, UnlockKey};
use shoal_manager::{Begin, Leadership};
use shoal_worker::io::agent::SessionState;
use tokio::{sync::watch, task::JoinHandle};

use super::{ClusterError, seat::Seat};
use crate::network::chain;

/// Pause after a first failure.
const PAUSE_MIN: Duration = Duration::from_secs(5);
/// Longest pause before another try to renew a certificate that is valid for weeks yet.
const RENEWAL_PAUSE_MAX: Duration = Duration::from_secs(3_600);
/// Time between two certificates at least, however short they last and however clocks differ.
const RENEWAL_PERIOD_MIN: Duration = Duration::from_secs(60);
/// Longest pause before another try to take on a role: somebody waits for it.
const ROLE_PAUSE_MAX: Duration = Duration::from_secs(60);

/// What a membership needs, the more urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    /// A certificate with another role.
    Role,
    /// To be rid of its manager.
    NoManager,
    /// A manager.
    Manager,
    /// To have its keys sealed otherwise.
    Lock,
    /// To trust the root that the cluster has now.
    Root,
    /// A certificate from the root that is on its way in.
    Issuer,
    /// A certificate that lasts longer.
    Renewal,
}

impl Need {
    const fn pause_max(self) -> Duration {
        match self {
            Self::Renewal => RENEWAL_PAUSE_MAX,
            Self::Role
            | Self::NoManager
            | Self::Manager
            | Self::Lock
            | Self::Root
            | Self::Issuer => ROLE_PAUSE_MAX,
        }
    }

    /// What could not be done, for the user.
    const fn failure(self) -> &'static str {
        match self {
            Self::Role => "cannot take on the role that the cluster gives this node",
            Self::NoManager => "cannot cease to be a manager",
            Self::Manager => "cannot become a manager",
            Self::Lock => "cannot seal the keys of this manager as the swarm wants it",
            Self::Root => "cannot take over the new root certificate of the swarm",
            Self::Issuer => "cannot get a certificate from the new root of the swarm",
            Self::Renewal => "cannot renew the certificate of this node",
        }
    }
}

/// How things are.
#[derive(Debug, Clone, Copy)]
struct Facts {
    /// The role in the certificate.
    certified: Role,
    /// The role that the cluster gives the node; `None` when nobody says.
    assigned: Option<Role>,
    runs_manager: bool,
    /// Whether its manager was taken out of the group although the node shall be a manager: it was demoted and promoted
    /// again meanwhile, and its log is worth nothing.
    is_expelled: bool,
    /// Whether its keys are sealed otherwise than the cluster wants it.
    lock_differs: bool,
    /// Whether the cluster's root is another than the one that the node trusts.
    root_differs: bool,
    /// Whether a root is on its way in and the certificate is not from it.
    issuer_differs: bool,
    renew_at: Timestamp,
}

impl Facts {
    fn needs(&self, now: Timestamp) -> impl Iterator<Item = Need> {
        let differs = self
            .assigned
            .is_some_and(|assigned| assigned != self.certified);
        // A certificate that is about to be replaced decides nothing.
        let is_manager = !differs && self.certified == Role::Manager;
        let is_worker = !differs && self.certified == Role::Worker;
        let is_superfluous = self.runs_manager && (is_worker || is_manager && self.is_expelled);
        [
            differs.then_some(Need::Role),
            is_superfluous.then_some(Need::NoManager),
            (is_manager && !self.runs_manager).then_some(Need::Manager),
            (is_manager && self.lock_differs).then_some(Need::Lock),
            self.root_differs.then_some(Need::Root),
            self.issuer_differs.then_some(Need::Issuer),
            (self.renew_at <= now).then_some(Need::Renewal),
        ]
        .into_iter()
        .flatten()
    }
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Do(Need),
    WaitUntil(Timestamp),
}

/// Needs that could not be met, and when to try again.
#[derive(Debug, Default)]
struct Pauses(BTreeMap<Need, Pause>);

#[derive(Debug)]
struct Pause {
    until: Timestamp,
    length: Duration,
}

impl Pauses {
    fn next_step(&self, facts: &Facts, now: Timestamp) -> Step {
        let mut wake = (facts.renew_at > now).then_some(facts.renew_at);
        for need in facts.needs(now) {
            match self.0.get(&need) {
                Some(pause) if pause.until > now => {
                    wake = Some(wake.map_or(pause.until, |wake| wake.min(pause.until)));
                }
                _ => return Step::Do(need),
            }
        }
        // Either renewal lies ahead, or it is a need, and then it is due or paused.
        Step::WaitUntil(wake.unwrap_or(now + RENEWAL_PAUSE_MAX))
    }

    fn failed(&mut self, need: Need, now: Timestamp) {
        let length = self.0.get(&need).map_or(PAUSE_MIN, |pause| {
            pause.length.saturating_mul(2).min(need.pause_max())
        });
        let until = now + length;
        self.0.insert(need, Pause { until, length });
    }

    fn met(&mut self, need: Need) {
        self.0.remove(&need);
    }

    /// Somebody new can be asked: what failed before is worth a try now.
    fn end(&mut self) {
        for pause in self.0.values_mut() {
            pause.until = Timestamp::ZERO;
        }
    }
}

/// The running upkeep of a membership. Dropping it ends it.
pub(super) struct Upkeep(JoinHandle<()>);

impl Upkeep {
    /// Begins; `session` is the agent's.
    pub(super) fn start(seat: Arc<Seat>, session: watch::Receiver<SessionState>) -> Self {
        Self(tokio::spawn(run(seat, session)))
    }

    /// Ends it, in the middle of a step if need be: the next daemon finds every step either done or to be done again.
    pub(super) async fn stop(mut self) {
        self.0.abort();
        let _ = (&mut self.0).await; // that it was ended is what we asked for
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn run(seat: Arc<Seat>, mut session: watch::Receiver<SessionState>) {
    let mut pauses = Pauses::default();
    let mut manager = None;
    let mut identity = seat.identity();
    let mut renew_at = renewal_of(&identity);
    loop {
        let told = session.borrow_and_update().clone();
        if let Err(error) = seat.learn(&told.managers) {
            tracing::warn!(error = chain(&error), "cannot remember the managers");
        }
        if told.manager.is_some() && told.manager != manager {
            manager.clone_from(&told.manager);
            pauses.end();
        }
        if !Arc::ptr_eq(&identity, &seat.identity()) {
            identity = seat.identity();
            renew_at = renewal_of(&identity).max(Timestamp::now() + RENEWAL_PERIOD_MIN);
        }
        let running = seat.manager();
        let mut leadership = running.as_ref().map(|manager| manager.leadership());
        let mut unlock_key = running.as_ref().map(|manager| manager.unlock_key());
        let (root_differs, issuer_differs) = roots_differ(&identity, &told);
        let is_removed = leadership
            .as_ref()
            .is_some_and(|now| now.borrow().is_removed);
        let facts = Facts {
            certified: identity.peer().role,
            assigned: assigned_role(&told),
            runs_manager: leadership.is_some(),
            is_expelled: is_removed && shall_manage(&told),
            lock_differs: seat.lock_differs(),
            root_differs,
            issuer_differs,
            renew_at,
        };
        let now = Timestamp::now();
        match pauses.next_step(&facts, now) {
            Step::Do(need) => match meet(&seat, need, &told).await {
                Ok(()) => {
                    pauses.met(need);
                    seat.set_trouble(None);
                }
                Err(error) => {
                    let trouble = format!("{}: {error}", need.failure());
                    tracing::warn!("{trouble}");
                    seat.set_trouble(Some(trouble));
                    pauses.failed(need, Timestamp::now());
                }
            },
            Step::WaitUntil(at) => {
                tokio::select! {
                    changed = session.changed() => if changed.is_err() { return },
                    () = removal(leadership.as_mut()), if !is_removed => {}
                    () = another_key(unlock_key.as_mut()) => {}
                    () = tokio::time::sleep(at.since(now)) => {}
                }
            }
        }
    }
}

/// When to ask for the certificate after this one.
fn renewal_of(identity: &NodeIdentity) -> Timestamp {
    let jitter = getrandom::u32().expect("the operating system gives random bytes after boot");
    identity.peer().renew_at((jitter >> 16) as u16)
}

/// The role in force. What an earlier session said may have been overtaken.
fn assigned_role(told: &SessionState) -> Option<Role> {
    told.manager.as_ref()?;
    told.node.as_ref().map(|node| match node.role {
        NodeRole::Worker => Role::Worker,
        NodeRole::Manager => Role::Manager,
    })
}

/// Whether users want the node to be a manager, as its session says. While it is being demoted its role is still one.
fn shall_manage(told: &SessionState) -> bool {
    let node = told.manager.as_ref().and(told.node.as_ref());
    node.is_some_and(|node| node.spec.role == NodeRole::Manager)
}

/// Waits until the manager, if there is one, is removed from the group.
async fn removal(leadership: Option<&mut watch::Receiver<Leadership>>) {
    if let Some(leadership) = leadership
        && leadership.wait_for(|now| now.is_removed).await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// Whether the node is to trust another root, and whether it is to have a certificate from another one.
fn roots_differ(identity: &NodeIdentity, told: &SessionState) -> (bool, bool) {
    if told.manager.is_none() {
        return (false, false);
    }
    let root = |pem: &str| RootCertificate::from_pem(pem).ok();
    let another_root = root(&told.root_pem).is_some_and(|root| root != *identity.root());
    let incoming = root(&told.incoming_root_pem);
    let another_issuer = incoming.is_some_and(|incoming| !identity.is_issued_by(&incoming));
    (another_root, another_issuer)
}

/// Waits until the manager, if there is one, hears of another unlock key.
async fn another_key(unlock_key: Option<&mut watch::Receiver<Option<UnlockKey>>>) {
    if let Some(unlock_key) = unlock_key
        && unlock_key.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// Other managers that can be asked, the likeliest first.
fn others(seat: &Seat, told: &SessionState) -> Vec<String> {
    let membership = seat.membership();
    let mut managers = membership.managers.clone();
    let first = told.manager.iter().chain(&told.managers).cloned();
    managers.splice(0..0, first);
    without_repeats(managers, &membership.advertise.to_string())
}

fn without_repeats(managers: Vec<String>, own: &str) -> Vec<String> {
    let mut kept: Vec<String> = Vec::with_capacity(managers.len());
    for address in managers {
        if address != own && !kept.contains(&address) {
            kept.push(address);
        }
    }
    kept
}

/// Takes the step that meets a need.
async fn meet(seat: &Seat, need: Need, told: &SessionState) -> Result<(), String> {
    let failed = |error: ClusterError| chain(&error);
    match need {
        Need::Lock => seat.settle_lock().await.map_err(failed),
        Need::Root => seat.trust(&told.root_pem).map_err(failed),
        Need::Role | Need::Renewal | Need::Issuer => {
            let mut managers = others(seat, told);
            if let Some(manager) = seat.manager() {
                managers.splice(0..0, manager.manager_addresses());
                managers = without_repeats(managers, "");
            }
            seat.renew(&managers).await.map_err(failed)?;
            let certified = seat.identity().peer().role;
            match assigned_role(told).filter(|assigned| *assigned != certified) {
                // A leader that has only just been elected may not know everything yet.
                Some(_) if need == Need::Role => {
                    Err(format!("the certificate still says {certified}"))
                }
                _ => Ok(()),
            }
        }
        Need::Manager => {
            let managers = others(seat, told);
            seat.start_manager(Begin::Join { managers })
                .await
                .map_err(failed)?;
            tracing::info!("this node is a manager now");
            Ok(())
        }
        Need::NoManager => {
            seat.dismiss_manager().await.map_err(failed)?;
            tracing::info!("this node is no longer a manager");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests;
