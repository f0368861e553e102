//! The keys of this node's tunnel, and how one follows another.
//!
//! A new key is told to the cluster first, while the old one is in use. Once this node's own view says that the cluster knows
//! it, the others are given some time to take note; then it is used, and the old one goes on being told for as long as a
//! session under it may last. At any time a node that is one step behind still finds a key that works.

use std::time::Duration;

use shoal_api::tunnel::{PublicKey, TunnelKey};

use super::tunnel::PrivateKey;

/// How long a key is used (SwarmKit's `manager/keymanager`: 12 h).
pub const KEY_LIFE: Duration = Duration::from_secs(12 * 60 * 60);
/// How long two keys are known: longer than WireGuard takes packets under a session that is over (180 s).
pub const KEY_OVERLAP: Duration = Duration::from_secs(5 * 60);

/// How long after a key could not be made it is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(60);

/// How long things last; only tests have others than the defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyTimes {
    /// How long a key is used.
    pub life: Duration,
    /// How long two keys are known, before and after the change.
    pub overlap: Duration,
}

impl Default for KeyTimes {
    fn default() -> Self {
        Self {
            life: KEY_LIFE,
            overlap: KEY_OVERLAP,
        }
    }
}

/// A key with both halves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// The half that stays here.
    pub private: PrivateKey,
    /// The half that others know.
    pub public: PublicKey,
}

/// Where the keys are on their way. Times are counted from any moment that stays the same.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// One key; due to be followed by another at this time.
    One { until: Duration },
    /// The next one is told of; `known` is since when the cluster knows it.
    Told {
        next: KeyPair,
        known: Option<Duration>,
    },
    /// The next one is in use, and the one before is known until then.
    Changed { before: PublicKey, until: Duration },
}

/// The keys of this node's tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keyring {
    current: KeyPair,
    port: u16,
    times: KeyTimes,
    phase: Phase,
}

impl Keyring {
    /// A key that is new now.
    pub fn new(current: KeyPair, port: u16, times: KeyTimes, now: Duration) -> Self {
        let until = now + times.life;
        let phase = Phase::One { until };
        Self {
            current,
            port,
            times,
            phase,
        }
    }

    /// A key that was found, of which nobody knows how old it is: it is to be followed by another at once.
    pub fn found(current: KeyPair, port: u16, times: KeyTimes, now: Duration) -> Self {
        Self {
            phase: Phase::One { until: now },
            ..Self::new(current, port, times, now)
        }
    }

    /// The key in use.
    pub fn current(&self) -> &KeyPair {
        &self.current
    }

    /// The port of the tunnel.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The other key by which this node is known.
    pub fn other(&self) -> Option<PublicKey> {
        match &self.phase {
            Phase::One { .. } => None,
            Phase::Told { next, .. } => Some(next.public),
            Phase::Changed { before, .. } => Some(*before),
        }
    }

    /// What the cluster is to be told: the key in use first.
    pub fn told(&self) -> Vec<TunnelKey> {
        let keys = [Some(self.current.public), self.other()];
        let told = keys.into_iter().flatten().map(|public| TunnelKey {
            public,
            port: self.port,
        });
        told.collect()
    }

    /// Takes note of what the cluster knows of this node; `None` where it does not say, because nobody needs it.
    pub fn note(&mut self, known: Option<&[TunnelKey]>, now: Duration) {
        if let Phase::Told { next, known: since } = &mut self.phase
            && since.is_none()
            && known.is_none_or(|keys| keys.iter().any(|key| key.public == next.public))
        {
            *since = Some(now);
        }
    }

    /// When the next step is due; `None` while it waits for the cluster.
    pub fn due(&self) -> Option<Duration> {
        match &self.phase {
            Phase::One { until } | Phase::Changed { until, .. } => Some(*until),
            Phase::Told { known, .. } => known.map(|known| known + self.times.overlap),
        }
    }

    /// Puts off a step that could not be taken.
    pub fn postpone(&mut self, now: Duration) {
        if let Phase::One { until } = &mut self.phase {
            *until = now + RETRY_PAUSE;
        }
    }

    /// Whether the next step needs a key that does not exist yet.
    pub fn needs_key(&self, now: Duration) -> bool {
        matches!(&self.phase, Phase::One { until } if *until <= now)
    }

    /// Takes the next step if it is due; `fresh` is the key that [`Self::needs_key`] asks for. Returns whether anything
    /// changed.
    pub fn step(&mut self, fresh: Option<KeyPair>, now: Duration) -> bool {
        if self.due().is_none_or(|due| due > now) {
            return false;
        }
        let until = now + self.times.overlap;
        self.phase = match (&self.phase, fresh) {
            (Phase::One { .. }, Some(next)) => Phase::Told { next, known: None },
            (Phase::One { .. }, None) => return false,
            (Phase::Told { next, .. }, _) => {
                let next = next.clone();
                let before = std::mem::replace(&mut self.current, next).public;
                Phase::Changed { before, until }
            }
            (Phase::Changed { until: since, .. }, _) => Phase::One {
                until: *since + self.times.life,
            },
        };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const MINUTE: Duration = Duration::from_secs(60);

    fn pair(n: u8) -> KeyPair {
        KeyPair {
            private: PrivateKey([n; 32]),
            public: PublicKey([n; 32]),
        }
    }

    fn told(ring: &Keyring) -> Vec<u8> {
        ring.told().iter().map(|key| key.public.0[0]).collect()
    }

    #[test]
    fn a_key_is_known_before_it_is_used_and_after_it_was() {
        let mut ring = Keyring::new(pair(1), 51820, KeyTimes::default(), Duration::ZERO);
        assert_eq!(told(&ring), [1]);
        assert!(!ring.step(Some(pair(2)), 11 * HOUR), "it is not time yet");
        assert!(ring.needs_key(12 * HOUR));
        assert!(ring.step(Some(pair(2)), 12 * HOUR));
        assert_eq!(
            (told(&ring), ring.current().public),
            (vec![1, 2], PublicKey([1; 32]))
        );
        // The cluster does not know it yet, however long that takes.
        let one = ring.told()[..1].to_vec();
        ring.note(Some(&one), 13 * HOUR);
        assert_eq!(ring.due(), None);
        assert!(
            !ring.step(None, 40 * HOUR),
            "a key that nobody knows is not used"
        );
        let both = ring.told();
        ring.note(Some(&both), 41 * HOUR);
        ring.note(Some(&both), 42 * HOUR);
        assert_eq!(
            ring.due(),
            Some(41 * HOUR + 5 * MINUTE),
            "since it was known first"
        );
        assert!(ring.step(None, 42 * HOUR));
        assert_eq!(
            (told(&ring), ring.current().private.0),
            (vec![2, 1], [2; 32])
        );
        assert!(!ring.step(None, 42 * HOUR + 4 * MINUTE));
        assert!(ring.step(None, 42 * HOUR + 5 * MINUTE));
        assert_eq!(told(&ring), [2]);
        assert_eq!(ring.due(), Some(54 * HOUR + 5 * MINUTE));
    }

    #[test]
    fn a_key_of_unknown_age_is_followed_at_once_and_nobody_need_know_where_nobody_needs_it() {
        let mut ring = Keyring::found(pair(1), 51821, KeyTimes::default(), HOUR);
        assert!(ring.needs_key(HOUR));
        assert!(!ring.step(None, HOUR), "there is none");
        assert!(ring.step(Some(pair(2)), HOUR));
        ring.note(None, HOUR);
        assert!(ring.step(None, HOUR + 5 * MINUTE));
        assert_eq!((told(&ring), ring.port()), (vec![2, 1], 51821));
    }
}
