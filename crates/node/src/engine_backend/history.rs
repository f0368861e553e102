//! Events of the recent past, and those to come. The past outlives the daemon: it is kept in a file, a line each.

use std::{
    collections::VecDeque,
    fs,
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use shoal_api::{Timestamp, container::Event};
use shoal_docker_api::backend::ItemStream;
use shoal_engine::io::Engine;
use tokio::sync::broadcast::{self, error::RecvError};

/// Events remembered for `--since`, as docker's.
const EVENTS_KEPT_MAX: usize = 256;
/// Lines of the file before those that are no longer kept are taken out of it.
const LINES_MAX: usize = 4 * EVENTS_KEPT_MAX;
/// Events that a slow listener may lag behind.
const EVENTS_AHEAD_MAX: usize = 1024;

/// Remembers events. One lock orders the memory and the stream, so that a listener gets each event once.
#[derive(Debug, Clone)]
pub(super) struct History {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug)]
struct Shared {
    kept: VecDeque<Event>,
    live: broadcast::Sender<Event>,
}

impl History {
    /// Begins to listen to the engine, until it ends; what an earlier daemon kept at `path` comes first.
    pub(super) fn of(engine: &Engine, path: &Path) -> Self {
        let (live, _) = broadcast::channel(EVENTS_AHEAD_MAX);
        let kept = load(path).unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "cannot read earlier events");
            VecDeque::new()
        });
        let mut file = Kept::new(path);
        // Also takes a line out that a power cut left half written.
        file.write_all(&kept);
        let shared = Shared { kept, live };
        let history = Self {
            shared: Arc::new(Mutex::new(shared)),
        };
        let (mut events, writer) = (engine.events(), history.clone());
        tokio::spawn(async move {
            loop {
                match events.recv().await {
                    Ok(event) => {
                        file.add(&event);
                        if file.lines > LINES_MAX {
                            let kept = writer.shared().kept.clone();
                            file.write_all(&kept);
                        }
                        writer.push(event);
                    }
                    Err(RecvError::Lagged(missed)) => {
                        tracing::warn!(missed, "events came faster than they could be kept");
                    }
                    Err(RecvError::Closed) => return,
                }
            }
        });
        history
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many listen now.
    pub(super) fn listeners(&self) -> usize {
        self.shared().live.receiver_count()
    }

    fn push(&self, event: Event) {
        let mut shared = self.shared();
        if shared.kept.len() == EVENTS_KEPT_MAX {
            shared.kept.pop_front();
        }
        shared.kept.push_back(event.clone());
        // Fails only when nobody listens.
        let _ = shared.live.send(event);
    }

    /// What happened since `since` and is still known, then what happens, until `until`.
    pub(super) fn read(
        &self,
        since: Option<Timestamp>,
        until: Option<Timestamp>,
    ) -> ItemStream<Event> {
        let (past, live) = {
            let shared = self.shared();
            let wanted = |event: &&Event| {
                since.is_some_and(|since| event.time >= since)
                    && until.is_none_or(|until| event.time <= until)
            };
            let past: Vec<Event> = shared.kept.iter().filter(wanted).cloned().collect();
            (past, shared.live.subscribe())
        };
        let past = stream::iter(past.into_iter().map(Ok));
        let left = until.map(|until| until.since(Timestamp::now()));
        if left == Some(Duration::ZERO) {
            return Box::pin(past);
        }
        let live = stream::unfold(live, |mut live| async move {
            loop {
                match live.recv().await {
                    Ok(event) => return Some((Ok(event), live)),
                    // A listener that slow cannot be told everything; it goes on with what is left.
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return None,
                }
            }
        });
        match left {
            None => Box::pin(past.chain(live)),
            Some(left) => Box::pin(past.chain(live).take_until(tokio::time::sleep(left))),
        }
    }
}

/// The file. Losing it loses history and nothing else: trouble is told once, and not synced away.
struct Kept {
    path: PathBuf,
    file: Option<fs::File>,
    lines: usize,
}

impl Kept {
    fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            file: None,
            lines: 0,
        }
    }

    /// Writes the file anew.
    fn write_all(&mut self, events: &VecDeque<Event>) {
        let written = (|| {
            let partial = self.path.with_extension("partial");
            let mut text = Vec::new();
            for event in events {
                serde_json::to_writer(&mut text, event)?;
                text.push(b'\n');
            }
            fs::write(&partial, text)?;
            fs::rename(&partial, &self.path)?;
            fs::File::options().append(true).open(&self.path)
        })();
        self.lines = events.len();
        self.file = self.told(written);
    }

    fn add(&mut self, event: &Event) {
        let Some(file) = &mut self.file else {
            return;
        };
        let written = serde_json::to_vec(event)
            .map_err(io::Error::from)
            .and_then(|mut line| {
                line.push(b'\n');
                file.write_all(&line)
            });
        self.lines += 1;
        if self.told(written).is_none() {
            self.file = None;
        }
    }

    fn told<T>(&self, done: io::Result<T>) -> Option<T> {
        done.inspect_err(|error| {
            tracing::warn!(path = %self.path.display(), %error, "events will not outlive the daemon");
        })
        .ok()
    }
}

/// The last events of the file; lines that make no sense are passed over.
fn load(path: &Path) -> io::Result<VecDeque<Event>> {
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(VecDeque::new()),
        opened => opened?,
    };
    let mut events = VecDeque::with_capacity(EVENTS_KEPT_MAX);
    for line in BufReader::new(file).split(b'\n') {
        if let Ok(event) = serde_json::from_slice(&line?) {
            if events.len() == EVENTS_KEPT_MAX {
                events.pop_front();
            }
            events.push_back(event);
        }
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use shoal_api::container::{EventActor, EventKind};

    use super::*;

    fn event(number: usize) -> Event {
        Event {
            kind: EventKind::Container,
            action: format!("start {number}"),
            actor: EventActor {
                id: "a".to_owned(),
                attributes: Default::default(),
            },
            time: Timestamp(1),
        }
    }

    #[test]
    fn the_last_events_come_back_and_a_torn_line_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        assert!(load(&path).unwrap().is_empty());
        let mut file = Kept::new(&path);
        file.write_all(&VecDeque::new());
        for number in 0..EVENTS_KEPT_MAX + 3 {
            file.add(&event(number));
        }
        let mut torn = fs::File::options().append(true).open(&path).unwrap();
        torn.write_all(b"{\"kind\":\"cont").unwrap();
        let events = load(&path).unwrap();
        assert_eq!(events.len(), EVENTS_KEPT_MAX);
        assert_eq!(
            (&events[0], events.back()),
            (&event(3), Some(&event(EVENTS_KEPT_MAX + 2)))
        );
        file.write_all(&events);
        assert_eq!(load(&path).unwrap(), events);
    }
}
