//! A thread that owns something and does one job after another with it.
//!
//! Work inside network namespaces moves its thread from one to another, which threads of the runtime must never do.

use std::{io, sync::mpsc};

use tokio::sync::oneshot;

type Job<W> = Box<dyn FnOnce(&mut W) + Send>;

/// The thread has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stopped;

/// Hands jobs to the thread. It ends with the last of these.
#[derive(Debug)]
pub(crate) struct Actor<W> {
    jobs: mpsc::Sender<Job<W>>,
}

impl<W> Clone for Actor<W> {
    fn clone(&self) -> Self {
        Self {
            jobs: self.jobs.clone(),
        }
    }
}

impl<W: Send + 'static> Actor<W> {
    /// Starts the thread; it lives if `enter` succeeds in it.
    pub(crate) fn start<E: Send + 'static + From<io::Error>>(
        name: &str,
        mut owned: W,
        enter: impl FnOnce(&mut W) -> Result<(), E> + Send + 'static,
    ) -> Result<Self, E> {
        let (jobs, queue) = mpsc::channel::<Job<W>>();
        let (ready, started) = mpsc::channel();
        let run = move || {
            let entered = enter(&mut owned);
            let usable = entered.is_ok();
            // A caller that has gone away no longer wants to know.
            let _ = ready.send(entered);
            if usable {
                queue.into_iter().for_each(|job| job(&mut owned));
            }
        };
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(run)?;
        started.recv().map_err(io::Error::other)??;
        Ok(Self { jobs })
    }

    /// Has the thread do `work`, and waits for its result.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut W) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let (answer, answered) = oneshot::channel();
        let job: Job<W> = Box::new(move |owned| {
            // A caller that has gone away no longer wants the answer.
            let _ = answer.send(work(owned));
        });
        self.jobs.send(job).map_err(|_| Stopped)?;
        answered.await.map_err(|_| Stopped)
    }
}
