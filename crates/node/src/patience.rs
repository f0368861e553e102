//! Waiting for what must come, but not for ever.

use std::{pin::pin, time::Duration};

use tokio::time::{Instant, timeout_at};

/// A deadline noticed so much too late means that this daemon stood still: its machine or its process was paused.
const STALL_MIN: Duration = Duration::from_secs(1);

/// Waits at most so long; `None` if nothing came. While the daemon stands still nothing can come, so then the time begins anew.
pub(crate) async fn within<T>(patience: Duration, answer: impl Future<Output = T>) -> Option<T> {
    let mut answer = pin!(answer);
    loop {
        let deadline = Instant::now() + patience;
        if let Ok(answer) = timeout_at(deadline, answer.as_mut()).await {
            return Some(answer);
        }
        if deadline.elapsed() < STALL_MIN {
            return None;
        }
        tracing::warn!("this daemon stood still: whoever waits goes on waiting");
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::{
        sync::oneshot,
        task::yield_now,
        time::{Instant, advance},
    };

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test(start_paused = true)]
    async fn the_time_in_which_the_daemon_stood_still_is_not_waited() {
        let (answer, answered) = oneshot::channel();
        let waiting = tokio::spawn(within(PATIENCE, answered));
        yield_now().await;
        advance(3 * PATIENCE).await;
        yield_now().await;
        assert!(!waiting.is_finished(), "it had no time to come");
        answer.send("came").expect("somebody waits");
        let came = waiting.await.expect("no panic");
        assert_eq!(came.expect("in time"), Ok("came"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_come_is_waited_for_once() {
        let began = Instant::now();
        assert_eq!(within(PATIENCE, pending::<()>()).await, None);
        let waited = began.elapsed();
        assert!(
            (PATIENCE..PATIENCE + STALL_MIN).contains(&waited),
            "{waited:?}"
        );
    }
}
