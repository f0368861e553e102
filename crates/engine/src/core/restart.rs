//! When the engine starts a container again by itself.

use std::time::Duration;

use shoal_api::container::RestartPolicy;

const DELAY_MIN: Duration = Duration::from_millis(100);
const DELAY_MAX: Duration = Duration::from_secs(60);
/// A run this long wipes out earlier failures, as in Docker.
const RUN_COUNTS_AS_GOOD: Duration = Duration::from_secs(10);

/// The end of a run, as far as the policy cares.
#[derive(Debug, Clone, Copy)]
pub struct End {
    pub exit_code: i32,
    pub ran_for: Duration,
    /// Ends in a row before this one.
    pub failures: u32,
    pub restart_count: u32,
    pub stopped_by_user: bool,
}

/// How long to wait before the next start, and the failures in a row with this one; `None` leaves it ended.
pub fn next_start(policy: RestartPolicy, end: End) -> Option<(Duration, u32)> {
    let wanted = match policy {
        RestartPolicy::No => false,
        RestartPolicy::Always | RestartPolicy::UnlessStopped => !end.stopped_by_user,
        RestartPolicy::OnFailure { max_retries } => {
            !end.stopped_by_user
                && end.exit_code != 0
                && (max_retries == 0 || end.restart_count < max_retries)
        }
    };
    let failures = if end.ran_for >= RUN_COUNTS_AS_GOOD {
        0
    } else {
        end.failures
    };
    let delay = DELAY_MIN
        .saturating_mul(1 << failures.min(20))
        .min(DELAY_MAX);
    wanted.then_some((delay, failures + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_and_a_good_run_forgives() {
        let end = End {
            exit_code: 1,
            ran_for: Duration::ZERO,
            failures: 0,
            restart_count: 0,
            stopped_by_user: false,
        };
        let ms = |policy, end| {
            next_start(policy, end).map(|(delay, failures)| (delay.as_millis(), failures))
        };
        assert_eq!(ms(RestartPolicy::Always, end), Some((100, 1)));
        assert_eq!(
            ms(RestartPolicy::Always, End { failures: 3, ..end }),
            Some((800, 4))
        );
        assert_eq!(
            ms(
                RestartPolicy::Always,
                End {
                    failures: 40,
                    ..end
                }
            ),
            Some((60_000, 41))
        );
        let good = End {
            failures: 9,
            ran_for: Duration::from_secs(11),
            ..end
        };
        assert_eq!(ms(RestartPolicy::Always, good), Some((100, 1)));
        assert_eq!(
            ms(
                RestartPolicy::UnlessStopped,
                End {
                    stopped_by_user: true,
                    ..end
                }
            ),
            None
        );
        let twice = RestartPolicy::OnFailure { max_retries: 2 };
        assert_eq!(
            ms(
                twice,
                End {
                    restart_count: 1,
                    ..end
                }
            ),
            Some((100, 1))
        );
        assert_eq!(
            ms(
                twice,
                End {
                    restart_count: 2,
                    ..end
                }
            ),
            None
        );
        assert_eq!(
            ms(
                twice,
                End {
                    exit_code: 0,
                    ..end
                }
            ),
            None
        );
    }
}
