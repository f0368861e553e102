//! When to look at something again that one waits for.

use std::{pin::Pin, time::Duration};

use anyhow::Result;
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use hyper::Method;
use serde_json::Value;

use crate::client::{Client, Payload, Target, values};

/// Docker's API has no event for the state of a task or a node's certificate, so of a daemon that is not ours we ask in
/// this rhythm, as docker does.
const RHYTHM: Duration = Duration::from_millis(200);

/// When to look again.
pub(crate) struct Pulse {
    /// Says when something has changed; nothing where the daemon does not say.
    changes: Option<Pin<Box<dyn Stream<Item = Result<Value>>>>>,
    looked: bool,
}

impl Pulse {
    /// Of a stream of changes of the daemon's, which begins now.
    pub(crate) async fn of(changes: Target, client: &Client) -> Self {
        let answer = client.send(Method::GET, changes, Payload::Empty).await;
        Self {
            changes: answer.ok().map(|answer| Box::pin(values(answer)) as _),
            looked: false,
        }
    }

    /// Waits until nothing can change any more. Of a daemon that does not say so, not at all.
    pub(crate) async fn ended(&mut self) {
        while let Some(Ok(_)) = match &mut self.changes {
            Some(changes) => changes.next().await,
            None => None,
        } {}
    }

    /// Waits until it is time: something has changed, or `at_most` is over. The first look is at once.
    pub(crate) async fn next(&mut self, at_most: Option<Duration>) {
        if !std::mem::replace(&mut self.looked, true) {
            return;
        }
        let Some(changes) = &mut self.changes else {
            // This daemon tells of no changes: another one than ours.
            return tokio::time::sleep(RHYTHM).await;
        };
        let over = async {
            match at_most {
                // A deadline of the caller's.
                Some(time) => tokio::time::sleep(time).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            change = changes.next() => {
                let mut last = change;
                // Of what has come meanwhile one look is enough.
                while let Some(Ok(_)) = last {
                    match changes.next().now_or_never() {
                        Some(next) => last = next,
                        None => return,
                    }
                }
                self.changes = None;
            }
            () = over => {}
        }
    }
}
