//! What the agent must remember to take up its tasks again: their assignments, last statuses, the last view, the
//! managers. Never the content of a secret, nor a registry's credentials: a task that had some is remembered as one that
//! waits for them.
//!
//! A thread owns the file and commits what has gathered while the last commit was on its way to the disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, OpenOptions, Permissions},
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, backends::FileBackend};
use serde::{Serialize, de::DeserializeOwned};
use shoal_api::{
    TaskId,
    network::{NetworkView, ViewChange},
    object::{Task, TaskStatus},
    spec::PullAuth,
};
use tokio::sync::{mpsc, oneshot};

/// Rows as JSON: `task/<id>`, `status/<id>`, `view`, `view-change/<number>`, `managers`; and `withheld/<id>`, empty, of a
/// task whose credentials were left out.
const ROWS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("rows");
const VIEW: &str = "view";
const VIEW_CHANGE: &str = "view-change";
/// Requests that may wait for the disk before their senders do.
const REQUESTS_MAX: usize = 1024;
/// Requests in one commit.
const REQUESTS_PER_COMMIT_MAX: usize = 256;

/// Why the ledger cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file cannot be opened, or is no ledger.
    #[error("cannot open the ledger {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the database said.
        source: Box<redb::Error>,
    },
    /// A commit failed: the disk is full or broken.
    #[error("cannot write the ledger: {reason}")]
    Write {
        /// What the database said; one commit can fail for many at once.
        reason: String,
    },
}

/// One thing to remember, or to forget.
#[derive(Debug, Clone)]
pub(super) enum Row {
    Task(Box<Task>),
    Status(TaskId, TaskStatus),
    Forget(TaskId),
    View(Arc<NetworkView>),
    Managers(Vec<String>),
    ForgetAll,
}

/// What an earlier agent remembered.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    pub(super) tasks: Vec<Task>,
    /// Those of them that had credentials for their registry.
    pub(super) withheld: BTreeSet<TaskId>,
    pub(super) view: Option<NetworkView>,
    pub(super) managers: Vec<String>,
}

struct Request {
    rows: Vec<Row>,
    done: Option<oneshot::Sender<Result<(), LedgerError>>>,
}

/// The way to the thread; it ends when this is gone.
pub(super) struct Ledger {
    requests: mpsc::Sender<Request>,
}

impl Ledger {
    /// Opens or makes the file and reads it. Blocks. The receiver hears when the file is closed again.
    pub(super) fn open(
        path: &Path,
    ) -> Result<(Self, Remembered, oneshot::Receiver<()>), LedgerError> {
        let failed = |source: redb::Error| LedgerError::Open {
            path: path.to_owned(),
            source: Box::new(source),
        };
        let file = private(path).map_err(|error| failed(redb::Error::Io(error)))?;
        let backend = FileBackend::new(file).map_err(|error| failed(error.into()))?;
        let database = Database::builder().create_with_backend(backend);
        let database = database.map_err(|error| failed(error.into()))?;
        let remembered = read(&database).map_err(failed)?;
        let (requests, received) = mpsc::channel(REQUESTS_MAX);
        let (closes, closed) = oneshot::channel();
        std::thread::Builder::new()
            .name("ledger".to_owned())
            .spawn(move || {
                serve(&database, received);
                drop(database);
                let _ = closes.send(());
            })
            .map_err(|error| failed(error.into()))?;
        Ok((Self { requests }, remembered, closed))
    }

    /// Remembers rows; they are on the disk when this returns.
    pub(super) async fn write(&self, rows: Vec<Row>) -> Result<(), LedgerError> {
        let (done, written) = oneshot::channel();
        let ended = || LedgerError::Write {
            reason: "its thread has ended".to_owned(),
        };
        self.requests
            .send(Request {
                rows,
                done: Some(done),
            })
            .await
            .map_err(|_| ended())?;
        written.await.map_err(|_| ended())?
    }

    /// Remembers rows soon. For what can be observed again should it be lost.
    pub(super) async fn post(&self, rows: Vec<Row>) {
        if self
            .requests
            .send(Request { rows, done: None })
            .await
            .is_err()
        {
            tracing::error!("the ledger's thread has ended");
        }
    }
}

fn serve(database: &Database, mut requests: mpsc::Receiver<Request>) {
    let mut view = None;
    while let Some(first) = requests.blocking_recv() {
        let mut batch = vec![first];
        while let Some(next) = (batch.len() < REQUESTS_PER_COMMIT_MAX)
            .then(|| requests.try_recv().ok())
            .flatten()
        {
            batch.push(next);
        }
        let rows = batch.iter().flat_map(|request| &request.rows);
        let failure = commit(database, rows, &mut view).err();
        if failure.is_some() {
            // What of it is in the file is not known: the next one is written whole.
            view = None;
        }
        for request in batch {
            let reason = failure.as_ref().map(ToString::to_string);
            match (request.done, reason) {
                // Whoever no longer waits does not need to know.
                (Some(done), None) => drop(done.send(Ok(()))),
                (Some(done), Some(reason)) => drop(done.send(Err(LedgerError::Write { reason }))),
                (None, Some(reason)) => tracing::error!(reason, "cannot write the agent's ledger"),
                (None, None) => {}
            }
        }
    }
}

/// The view that is in the file, as a whole one with the changes to it.
struct WrittenView {
    is: Arc<NetworkView>,
    /// Bytes of the whole one.
    whole: usize,
    /// Changes that followed, and their bytes.
    changes: usize,
    changed: usize,
}

impl WrittenView {
    /// The rows that lead to another view; changes as long as they have fewer bytes than the whole.
    fn advance(written: &mut Option<Self>, view: &Arc<NetworkView>) -> (String, Vec<u8>) {
        if let Some(held) = written.as_mut().filter(|held| held.changed < held.whole) {
            let change = json(&view.change_from(&held.is));
            held.is = Arc::clone(view);
            held.changes += 1;
            held.changed += change.len();
            return (format!("{VIEW_CHANGE}/{:010}", held.changes), change);
        }
        let whole = json(view);
        *written = Some(Self {
            is: Arc::clone(view),
            whole: whole.len(),
            changes: 0,
            changed: 0,
        });
        (VIEW.to_owned(), whole)
    }
}

fn commit<'r>(
    database: &Database,
    rows: impl Iterator<Item = &'r Row>,
    view: &mut Option<WrittenView>,
) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(ROWS)?;
        for row in rows {
            let (key, value) = match row {
                Row::Task(task) if task.spec.container.pull_auth == PullAuth::default() => {
                    table.remove(withheld_key(&task.id).as_str())?;
                    (task_key(&task.id), json(task))
                }
                Row::Task(task) => {
                    let mut task = task.clone();
                    Arc::make_mut(&mut task.spec).container.pull_auth = PullAuth::default();
                    table.insert(withheld_key(&task.id).as_str(), &[][..])?;
                    (task_key(&task.id), json(&task))
                }
                Row::Status(id, status) => (status_key(id), json(status)),
                Row::View(next) => {
                    let (key, value) = WrittenView::advance(view, next);
                    if key == VIEW {
                        table.retain(|key, _| !key.starts_with(VIEW_CHANGE))?;
                    }
                    (key, value)
                }
                Row::Managers(managers) => ("managers".to_owned(), json(managers)),
                Row::Forget(id) => {
                    table.remove(task_key(id).as_str())?;
                    table.remove(status_key(id).as_str())?;
                    table.remove(withheld_key(id).as_str())?;
                    continue;
                }
                Row::ForgetAll => {
                    table.retain(|_, _| false)?;
                    *view = None;
                    continue;
                }
            };
            table.insert(key.as_str(), value.as_slice())?;
        }
    }
    transaction.commit()?;
    Ok(())
}

fn task_key(id: &TaskId) -> String {
    format!("task/{id}")
}

fn status_key(id: &TaskId) -> String {
    format!("status/{id}")
}

fn withheld_key(id: &TaskId) -> String {
    format!("withheld/{id}")
}

/// The file, for its owner alone; one that is there becomes so.
fn private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let file = options.mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("these values have string keys and no serializer of their own")
}

fn read(database: &Database) -> Result<Remembered, redb::Error> {
    let transaction = database.begin_read()?;
    let table = match transaction.open_table(ROWS) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Remembered::default()),
        Err(error) => return Err(error.into()),
    };
    let mut remembered = Remembered::default();
    let mut statuses: BTreeMap<TaskId, TaskStatus> = BTreeMap::new();
    for row in table.iter()? {
        let (key, value) = row?;
        let (key, value) = (key.value(), value.value());
        match key.split_once('/') {
            Some(("task", _)) => remembered.tasks.extend(parse(key, value)),
            Some(("status", id)) => {
                statuses.extend(id.parse().ok().zip(parse(key, value)));
            }
            Some(("withheld", id)) => remembered.withheld.extend(id.parse::<TaskId>()),
            // Their numbers ascend, and all come after the whole one.
            Some((VIEW_CHANGE, _)) => {
                let change = parse::<ViewChange>(key, value);
                let view = remembered.view.take().zip(change);
                remembered.view = view.map(|(view, change)| view.changed(change));
            }
            _ if key == VIEW => remembered.view = parse(key, value),
            _ if key == "managers" => remembered.managers = parse(key, value).unwrap_or_default(),
            _ => {}
        }
    }
    for task in &mut remembered.tasks {
        if let Some(status) = statuses
            .remove(&task.id)
            .filter(|status| status.state >= task.status.state)
        {
            task.status = status;
        }
    }
    Ok(remembered)
}

/// Reads a row; one that another version wrote differently is passed over, a manager will send it again.
fn parse<T: DeserializeOwned>(key: &str, value: &[u8]) -> Option<T> {
    serde_json::from_slice(value)
        .inspect_err(|error| tracing::warn!(key, %error, "cannot read a row of the agent's ledger"))
        .ok()
}

#[cfg(test)]
mod tests {
    use shoal_api::TaskState as S;

    use super::*;
    use crate::core::task_machine::tests::task;

    #[tokio::test]
    async fn what_was_written_is_remembered_and_what_was_forgotten_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("ledger");
        let (ledger, remembered, closed) = Ledger::open(&path).expect("a new ledger");
        assert!(remembered.tasks.is_empty() && remembered.view.is_none());
        let [one, two] = ["t1", "t2"].map(|id| task(id, S::Assigned, S::Running));
        let view = Arc::new(NetworkView {
            version: 7,
            ..NetworkView::default()
        });
        let rows = vec![
            Row::Task(Box::new(one.clone())),
            Row::Task(Box::new(two.clone())),
            Row::View(view),
        ];
        ledger.write(rows).await.expect("written");
        let running = TaskStatus {
            state: S::Running,
            ..TaskStatus::default()
        };
        ledger
            .post(vec![
                Row::Status(one.id.clone(), running),
                Row::Forget(two.id),
            ])
            .await;
        ledger
            .write(vec![Row::Managers(vec!["a:1".to_owned()])])
            .await
            .expect("written");

        drop(ledger);
        closed.await.expect("closed");
        let remembered = Ledger::open(&path).expect("the ledger").1;
        assert_eq!(remembered.tasks.len(), 1);
        assert_eq!(
            (
                remembered.tasks[0].id.clone(),
                remembered.tasks[0].status.state
            ),
            (one.id, S::Running)
        );
        assert_eq!(remembered.view.map(|view| view.version), Some(7));
        assert_eq!(remembered.managers, ["a:1"]);
    }

    #[tokio::test]
    async fn credentials_are_left_out_and_it_is_known_whose() {
        const NEEDLE: &str = "needle-in-a-ledger";
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("ledger");
        let (ledger, _, closed) = Ledger::open(&path).expect("a new ledger");
        let [mut one, two, mut three] =
            ["t1", "t2", "t3"].map(|id| task(id, S::Assigned, S::Running));
        for with in [&mut one, &mut three] {
            Arc::make_mut(&mut with.spec).container.pull_auth = PullAuth(NEEDLE.to_owned());
        }
        let rows = [&one, &two, &three].map(|task| Row::Task(Box::new(task.clone())));
        ledger.write(rows.into()).await.expect("written");
        ledger
            .write(vec![Row::Forget(three.id)])
            .await
            .expect("written");
        drop(ledger);
        closed.await.expect("closed");

        let bytes = std::fs::read(&path).expect("the file");
        let needle = NEEDLE.as_bytes();
        assert!(!bytes.windows(needle.len()).any(|found| found == needle));
        let mode = std::fs::metadata(&path).expect("the file").permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        let remembered = Ledger::open(&path).expect("the ledger").1;
        assert_eq!(remembered.tasks.len(), 2);
        assert_eq!(remembered.withheld, BTreeSet::from([one.id]));
    }

    #[tokio::test]
    async fn of_a_view_what_has_changed_is_written() {
        use shoal_api::network::Peer;
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("ledger");
        let (ledger, _, closed) = Ledger::open(&path).expect("a new ledger");
        let mut view = NetworkView::default();
        let peer = |last: u8| Peer {
            underlay: [192, 0, 2, last].into(),
            hostname: format!("h{last}"),
            tunnel_keys: Vec::new(),
        };
        for last in 0..100 {
            view.peers
                .insert(format!("n{last}").parse().expect("an id"), peer(last));
        }
        // More than one round: changes until they are as long as the whole.
        for version in 1..=200 {
            view.version = version;
            let id = format!("n{}", version % 100).parse().expect("an id");
            view.peers
                .insert(id, peer(u8::try_from(version % 50).expect("small")));
            ledger.post(vec![Row::View(Arc::new(view.clone()))]).await;
        }
        drop(ledger);
        closed.await.expect("closed");
        let (ledger, remembered, closed) = Ledger::open(&path).expect("the ledger");
        assert_eq!(remembered.view, Some(view));
        drop(ledger);
        closed.await.expect("closed");
        let database = Database::create(&path).expect("the ledger");
        let table = database
            .begin_read()
            .expect("it is read")
            .open_table(ROWS)
            .expect("rows");
        let rows: Vec<(String, usize)> = table
            .iter()
            .expect("rows")
            .map(|row| row.map(|(key, value)| (key.value().to_owned(), value.value().len())))
            .collect::<Result<_, _>>()
            .expect("rows");
        let of = |changes: bool| {
            let rows = rows
                .iter()
                .filter(move |(key, _)| key.starts_with(VIEW_CHANGE) == changes);
            rows.map(|(_, bytes)| bytes).sum::<usize>()
        };
        assert!(rows.len() > 2 && of(true) < of(false) * 2, "{rows:?}");
    }

    #[tokio::test]
    async fn leaving_forgets_everything() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("ledger");
        let (ledger, _, closed) = Ledger::open(&path).expect("a new ledger");
        let rows = vec![
            Row::Task(Box::new(task("t1", S::Running, S::Running))),
            Row::ForgetAll,
        ];
        ledger.write(rows).await.expect("written");
        drop(ledger);
        closed.await.expect("closed");
        assert!(Ledger::open(&path).expect("the ledger").1.tasks.is_empty());
    }
}
