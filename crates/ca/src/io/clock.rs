//! Certificates that are out of their time by this host's clock. Most often it is the clock that is wrong.

use std::{fmt, io};

use rustls::{CertificateError, Error, pki_types::UnixTime};
use shoal_api::Timestamp;

/// A handshake that failed for the time that this host's clock shows.
#[derive(Debug)]
struct OutOfTime {
    now: Timestamp,
    bound: Timestamp,
    is_early: bool,
}

impl fmt::Display for OutOfTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (valid, bound) = if self.is_early {
            ("not valid yet", "it begins")
        } else {
            ("no longer valid", "it ended")
        };
        write!(
            f,
            "the manager's certificate is {valid} by this host's clock, which shows {} while {bound} {}: set the clocks of \
             both hosts right",
            self.now, self.bound
        )
    }
}

impl std::error::Error for OutOfTime {}

/// The error of a handshake as people can act on it: where it comes of a clock, it names the clock.
pub fn name_clock(error: io::Error) -> io::Error {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref());
    let Some(Error::InvalidCertificate(reason)) = tls else {
        return error;
    };
    let at = |time: &UnixTime| {
        let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        Timestamp(seconds.saturating_mul(1_000_000_000))
    };
    let (now, bound, is_early) = match reason {
        CertificateError::NotValidYetContext { time, not_before } => (time, not_before, true),
        CertificateError::ExpiredContext { time, not_after } => (time, not_after, false),
        _ => return error,
    };
    let (now, bound) = (at(now), at(bound));
    io::Error::new(
        error.kind(),
        OutOfTime {
            now,
            bound,
            is_early,
        },
    )
}
