//! How often somebody may try to join in vain: guessing a token takes longer than the universe is old, and stays quiet.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use shoal_api::Timestamp;

/// Attempts that may fail in a row.
const FAILURES_MAX: u32 = 20;
/// Time after which one more may fail: 20 a minute.
const RECOVERY: Duration = Duration::from_secs(3);
/// Addresses that are remembered; beyond it those that failed longest ago are forgotten.
const ADDRESSES_MAX: usize = 4096;

/// Failed attempts by address; IPv6 by network, since a host has all addresses of its /64.
#[derive(Debug, Default)]
pub struct Attempts {
    /// When all failures of an address are forgiven.
    forgiven: BTreeMap<IpAddr, Timestamp>,
}

impl Attempts {
    /// Whether the address may try (again).
    pub fn may_try(&self, address: IpAddr, now: Timestamp) -> bool {
        let open = self.forgiven.get(&network(address));
        open.is_none_or(|at| at.since(now) <= RECOVERY * (FAILURES_MAX - 1))
    }

    /// An attempt of the address has failed.
    pub fn failed(&mut self, address: IpAddr, now: Timestamp) {
        self.forgiven.retain(|_, at| *at > now);
        while self.forgiven.len() >= ADDRESSES_MAX {
            let oldest = self.forgiven.iter().min_by_key(|(_, at)| **at);
            let Some(oldest) = oldest.map(|(address, _)| *address) else {
                break;
            };
            self.forgiven.remove(&oldest);
        }
        let at = self.forgiven.entry(network(address)).or_insert(now);
        *at = (*at).max(now) + RECOVERY;
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000_000_000);

    #[test]
    fn twenty_may_fail_and_then_one_every_three_seconds() {
        let (mut attempts, guesser) = (Attempts::default(), "10.0.0.1".parse().unwrap());
        for _ in 0..20 {
            assert!(attempts.may_try(guesser, NOW));
            attempts.failed(guesser, NOW);
        }
        assert!(!attempts.may_try(guesser, NOW));
        assert!(attempts.may_try("10.0.0.2".parse().unwrap(), NOW));
        let later = NOW + RECOVERY;
        assert!(attempts.may_try(guesser, later));
        attempts.failed(guesser, later);
        assert!(!attempts.may_try(guesser, later));
        assert!(attempts.may_try(guesser, NOW + Duration::from_secs(120)));
    }

    #[test]
    fn a_host_does_not_get_more_by_changing_its_address() {
        let mut attempts = Attempts::default();
        for last in 0..20u16 {
            attempts.failed(format!("2001:db8:1:1::{last:x}").parse().unwrap(), NOW);
        }
        assert!(!attempts.may_try("2001:db8:1:1::ffff".parse().unwrap(), NOW));
        assert!(attempts.may_try("2001:db8:1:2::1".parse().unwrap(), NOW));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut attempts = Attempts::default();
        for number in 0..10_000u32 {
            attempts.failed(IpAddr::V4(number.into()), NOW);
        }
        assert!(attempts.forgiven.len() <= ADDRESSES_MAX);
    }
}
