//! What a health check's probes amount to.

use std::time::Duration;

use shoal_api::container::{Health, HealthCheck, HealthProbe, HealthStatus};

/// Docker's defaults.
pub const INTERVAL: Duration = Duration::from_secs(30);
pub const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u32 = 3;
/// Probes remembered.
const LOG_MAX: usize = 5;

/// The command of the check; `None` when there is none to run.
pub fn command(check: &HealthCheck) -> Option<Vec<String>> {
    match check.test.split_first() {
        Some((kind, rest)) if kind == "CMD" && !rest.is_empty() => Some(rest.to_vec()),
        Some((kind, [command, ..])) if kind == "CMD-SHELL" => {
            Some(vec!["/bin/sh".into(), "-c".into(), command.clone()])
        }
        _ => None,
    }
}

/// How long to wait before the next probe.
pub fn pause(check: &HealthCheck, health: &Health, up: Duration) -> Duration {
    let given = |wish: Option<Duration>| wish.filter(|duration| !duration.is_zero());
    let interval = given(check.interval).unwrap_or(INTERVAL);
    if health.status == HealthStatus::Starting && up < check.start_period.unwrap_or_default() {
        return given(check.start_interval)
            .unwrap_or(START_INTERVAL)
            .min(interval);
    }
    interval
}

/// The verdict after one more probe, `up` after the start.
///
/// As in Docker: success is healthy at once; failures count only after the start period, or once it was healthy.
pub fn judge(check: &HealthCheck, mut health: Health, probe: HealthProbe, up: Duration) -> Health {
    if probe.exit_code == 0 {
        health.failing_streak = 0;
        health.status = HealthStatus::Healthy;
    } else if health.status != HealthStatus::Starting
        || up >= check.start_period.unwrap_or_default()
    {
        health.failing_streak += 1;
        if health.failing_streak
            >= check
                .retries
                .filter(|retries| *retries > 0)
                .unwrap_or(RETRIES)
        {
            health.status = HealthStatus::Unhealthy;
        }
    }
    health.log.push(probe);
    if health.log.len() > LOG_MAX {
        health.log.remove(0);
    }
    health
}

#[cfg(test)]
mod tests {
    use shoal_api::Timestamp;

    use super::*;

    #[test]
    fn three_failures_after_the_start_period_are_unhealthy() {
        let check = HealthCheck {
            start_period: Some(Duration::from_secs(10)),
            ..HealthCheck::default()
        };
        let probe = |exit_code| HealthProbe {
            start: Timestamp::ZERO,
            end: Timestamp::ZERO,
            exit_code,
            output: String::new(),
        };
        let mut health = Health::default();
        let mut seen = Vec::new();
        for (at, code) in [(1, 1), (9, 1), (11, 1), (12, 1), (13, 1), (14, 0), (15, 1)] {
            health = judge(&check, health, probe(code), Duration::from_secs(at));
            seen.push((health.status.as_str(), health.failing_streak));
        }
        let expected = [
            ("starting", 0),
            ("starting", 0),
            ("starting", 1),
            ("starting", 2),
            ("unhealthy", 3),
            ("healthy", 0),
            ("healthy", 1),
        ];
        assert_eq!(seen, expected);
        assert_eq!(health.log.len(), LOG_MAX);
    }
}
