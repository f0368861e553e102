//! Which manager to call, and how long to wait before calling again.

use std::time::Duration;

/// First pause after all managers failed (SwarmKit's `agent/session.go`).
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(8);
/// Managers that are believed in a row when they say that another one leads.
const REDIRECTS_MAX: u32 = 4;
/// A session that lasted this long was a good one.
const HELD: Duration = Duration::from_secs(1);

/// Growing pauses between rounds of failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backoff {
    rounds: u32,
}

impl Backoff {
    /// The pause after one more failure: 100 ms, doubling up to 8 s, of which `random` takes away up to half, so that
    /// nodes which lost the same manager do not come back all at once.
    pub fn next_pause(&mut self, random: u32) -> Duration {
        let full = PAUSE_MIN
            .saturating_mul(1 << self.rounds.min(16))
            .min(PAUSE_MAX);
        self.rounds = self.rounds.saturating_add(1);
        full.mul_f64(1.0 - f64::from(random) / f64::from(u32::MAX) / 2.0)
    }

    /// Forgets earlier failures.
    pub fn reset(&mut self) {
        self.rounds = 0;
    }
}

/// What to do for a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// Call this address now.
    Now(String),
    /// Call again after a pause: everybody has been tried.
    After(Duration),
}

/// The managers that can be called, and whom to try next.
#[derive(Debug, Default)]
pub struct Managers {
    known: Vec<String>,
    /// Those not yet tried in this round, the next one last.
    untried: Vec<String>,
    leader: Option<String>,
    redirects: u32,
    backoff: Backoff,
}

impl Managers {
    /// Managers as configured.
    pub fn new(known: Vec<String>) -> Self {
        Self {
            untried: known.iter().rev().cloned().collect(),
            known,
            ..Self::default()
        }
    }

    /// Addresses that are known.
    pub fn known(&self) -> &[String] {
        &self.known
    }

    /// Takes over the list that a manager sent; one that is empty says nothing. Returns whether it is news.
    pub fn update(&mut self, managers: Vec<String>) -> bool {
        let news = !managers.is_empty() && managers != self.known;
        if news {
            self.known = managers;
        }
        news
    }

    /// A manager said who leads: that one is called first next time. Returns whether that is somebody else than `here`.
    pub fn redirect(&mut self, here: &str, leader: &str) -> bool {
        let elsewhere = !leader.is_empty() && leader != here;
        // Managers that disagree must not send us back and forth at full speed.
        if elsewhere && self.redirects < REDIRECTS_MAX {
            self.redirects += 1;
            self.leader = Some(leader.to_owned());
        }
        elsewhere
    }

    /// A session with `here` is over. After one that had held, everybody is worth a call at once, `here` last; one that
    /// broke at once was just another failure.
    pub fn on_session_end(&mut self, here: &str, lasted: Duration, random: u32) {
        if lasted >= HELD {
            self.backoff.reset();
            self.redirects = 0;
            self.begin_round(random);
            self.untried.retain(|address| address != here);
            self.untried.insert(0, here.to_owned());
        }
    }

    /// Whom to call, or how long to wait. `random` decides where a round begins and how long a pause is.
    pub fn next_call(&mut self, random: u32) -> Call {
        if let Some(leader) = self.leader.take() {
            self.untried.retain(|address| *address != leader);
            return Call::Now(leader);
        }
        if let Some(address) = self.untried.pop() {
            return Call::Now(address);
        }
        self.redirects = 0;
        self.begin_round(random);
        Call::After(self.backoff.next_pause(random))
    }

    fn begin_round(&mut self, random: u32) {
        self.untried.clone_from(&self.known);
        self.untried.reverse();
        if !self.untried.is_empty() {
            let turn = random as usize % self.untried.len();
            self.untried.rotate_left(turn);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_eight_seconds() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u128> = (0..9).map(|_| backoff.next_pause(0).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 8000, 8000]);
        assert_eq!(backoff.next_pause(u32::MAX).as_millis(), 4000);
        backoff.reset();
        assert_eq!(backoff.next_pause(0).as_millis(), 100);
    }

    #[test]
    fn everybody_is_tried_before_a_pause() {
        let mut managers = Managers::new(vec!["a:1".to_owned(), "b:1".to_owned()]);
        let calls: Vec<Call> = (0..6).map(|_| managers.next_call(0)).collect();
        let now = |address: &str| Call::Now(address.to_owned());
        let after = |ms| Call::After(Duration::from_millis(ms));
        assert_eq!(
            calls,
            [
                now("a:1"),
                now("b:1"),
                after(100),
                now("a:1"),
                now("b:1"),
                after(200)
            ]
        );
    }

    #[test]
    fn a_leader_is_called_first_and_at_once() {
        let mut managers = Managers::new(vec!["a:1".to_owned()]);
        assert_eq!(managers.next_call(0), Call::Now("a:1".to_owned()));
        assert!(!managers.redirect("a:1", "a:1") && !managers.redirect("a:1", ""));
        assert!(managers.redirect("a:1", "c:1"));
        assert_eq!(managers.next_call(0), Call::Now("c:1".to_owned()));
        assert_eq!(
            managers.next_call(0),
            Call::After(Duration::from_millis(100))
        );
    }

    #[test]
    fn after_a_good_session_everybody_else_is_called_at_once() {
        let mut managers = Managers::new(vec!["a:1".to_owned(), "b:1".to_owned()]);
        assert_eq!(managers.next_call(0), Call::Now("a:1".to_owned()));
        managers.on_session_end("a:1", Duration::from_secs(60), 0);
        let now = |address: &str| Call::Now(address.to_owned());
        assert_eq!(
            [managers.next_call(0), managers.next_call(0)],
            [now("b:1"), now("a:1")]
        );
        managers.on_session_end("a:1", Duration::ZERO, 0);
        assert!(
            matches!(managers.next_call(0), Call::After(_)),
            "a session that breaks at once is a failure"
        );
    }

    #[test]
    fn managers_that_disagree_are_given_a_pause() {
        let mut managers = Managers::new(vec!["a:1".to_owned()]);
        let mut calls = 0;
        while let Call::Now(here) = managers.next_call(0) {
            assert!(managers.redirect(&here, if here == "a:1" { "b:1" } else { "a:1" }));
            calls += 1;
        }
        assert_eq!(calls, 5);
    }

    #[test]
    fn nobody_to_call_is_a_pause() {
        assert_eq!(
            Managers::default().next_call(7),
            Managers::default().next_call(7)
        );
        assert!(matches!(Managers::default().next_call(7), Call::After(_)));
    }
}
