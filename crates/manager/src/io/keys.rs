//! Keys on a manager's disk: the data key of its log, and, under autolock, the lock that seals it.
//!
//! The lock is a key of this node alone. It seals the data key and the node's private key; itself it is kept sealed under
//! the cluster's unlock key, so that a new unlock key is the replacement of one small file. As SwarmKit's KEK and DEK,
//! with one step between them.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use shoal_ca::{KeySeal, UnlockKey};

use super::raft::seal::{DataKey, KeyRing};

/// File of the data key beside the log's directory.
const DATA_KEY: &str = "raft.key";
const MAGIC: &[u8; 8] = b"SHOALKEY";
const VERSION: u8 = 1;
const PLAIN: u8 = 0;
const SEALED: u8 = 1;
/// What the seals of these files cover besides their content.
const ABOUT_LOCK: &[u8] = b"shoal lock 1";
const ABOUT_DATA_KEY: &[u8] = b"shoal data key 1";
const ABOUT_NODE_KEY: &[u8] = b"shoal node key 1";

/// The lock of one node's files.
#[derive(Debug, Clone)]
pub struct NodeLock(KeyRing);

impl NodeLock {
    /// A fresh lock.
    pub fn generate() -> Self {
        Self(DataKey::generate().into())
    }

    /// A fresh lock that also opens what the old one sealed, while that is sealed anew.
    #[must_use]
    pub fn succeed(&self) -> Self {
        Self(self.0.succeeded_by(DataKey::generate()))
    }

    /// The same lock, when nothing is left that an older one sealed.
    #[must_use]
    pub fn alone(&self) -> Self {
        Self(self.0.current().clone().into())
    }

    fn open_about(&self, sealed: &[u8], about: &[u8]) -> Option<Vec<u8>> {
        self.0.iter().find_map(|key| key.open(sealed, about))
    }
}

impl KeySeal for NodeLock {
    fn seal(&self, plain: &[u8]) -> Vec<u8> {
        self.0.current().seal(plain, ABOUT_NODE_KEY)
    }

    fn open(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        self.open_about(sealed, ABOUT_NODE_KEY)
    }
}

/// The file in which a node keeps its lock, sealed under the unlock key.
#[derive(Debug, Clone)]
pub struct LockFile(PathBuf);

impl LockFile {
    /// Names the file; nothing is read or made yet.
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Opens the lock; `None` when this is not its key, or the file is damaged.
    pub fn open(&self, key: &UnlockKey) -> io::Result<Option<NodeLock>> {
        let content = fs::read(&self.0)?;
        let plain = content
            .strip_prefix(MAGIC)
            .and_then(|rest| rest.strip_prefix(&[VERSION, SEALED]))
            .and_then(|sealed| under(key).open(sealed, ABOUT_LOCK));
        Ok(plain
            .and_then(|plain| KeyRing::from_bytes(&plain))
            .map(NodeLock))
    }

    /// Writes the lock so that it survives a loss of power.
    pub fn save(&self, lock: &NodeLock, key: &UnlockKey) -> io::Result<()> {
        let sealed = under(key).seal(&lock.0.to_bytes(), ABOUT_LOCK);
        replace(&self.0, &[&MAGIC[..], &[VERSION, SEALED], &sealed].concat())
    }

    /// Removes the file, if there is one.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn under(key: &UnlockKey) -> DataKey {
    DataKey::new(*key.bytes())
}

/// Whether a manager's data key is there, and sealed.
pub(crate) fn is_sealed(directory: &Path) -> io::Result<bool> {
    Ok(read(directory)?.is_some_and(|content| content.get(MAGIC.len() + 1) == Some(&SEALED)))
}

/// Whether a manager was here before.
pub(crate) fn exists(directory: &Path) -> bool {
    directory.join(DATA_KEY).exists()
}

/// Reads a manager's data keys, or makes one.
pub(crate) fn load_or_make(directory: &Path, lock: Option<&NodeLock>) -> io::Result<KeyRing> {
    let Some(content) = read(directory)? else {
        let ring = KeyRing::from(DataKey::generate());
        save(directory, &ring, lock)?;
        return Ok(ring);
    };
    let path = directory.join(DATA_KEY);
    let unusable = |why: &str| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{} {why}", path.display()),
        )
    };
    let body = content
        .strip_prefix(MAGIC)
        .and_then(|rest| rest.strip_prefix(&[VERSION]))
        .ok_or_else(|| unusable("is not a key file of this version"))?;
    let plain = match body.split_first() {
        Some((&PLAIN, plain)) => plain.to_vec(),
        Some((&SEALED, sealed)) => lock
            .ok_or_else(|| unusable("is sealed: unlock the swarm first"))?
            .open_about(sealed, ABOUT_DATA_KEY)
            .ok_or_else(|| unusable("was sealed by another lock, or is damaged"))?,
        _ => return Err(unusable("is cut off")),
    };
    KeyRing::from_bytes(&plain).ok_or_else(|| unusable("does not hold keys of 32 bytes"))
}

/// Writes a manager's data keys so that they survive a loss of power.
pub(crate) fn save(directory: &Path, ring: &KeyRing, lock: Option<&NodeLock>) -> io::Result<()> {
    let plain = ring.to_bytes();
    let (flag, body) = match lock {
        Some(lock) => (SEALED, lock.0.current().seal(&plain, ABOUT_DATA_KEY)),
        None => (PLAIN, plain),
    };
    let content = [&MAGIC[..], &[VERSION, flag], &body].concat();
    replace(&directory.join(DATA_KEY), &content)
}

fn read(directory: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(directory.join(DATA_KEY)) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces a file of ours; a crash leaves the old one or the new one.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let temporary = path.with_extension("tmp");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    fs::File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unlock_key(byte: u8) -> UnlockKey {
        UnlockKey::from_bytes(&[byte; 32]).unwrap()
    }

    /// Whether any file of a directory holds these bytes.
    fn holds(directory: &Path, bytes: &[u8]) -> bool {
        let files = fs::read_dir(directory)
            .unwrap()
            .map(|entry| fs::read(entry.unwrap().path()).unwrap());
        let mut contents = files.into_iter();
        contents.any(|content| content.windows(bytes.len()).any(|window| window == bytes))
    }

    #[test]
    fn a_data_key_is_plain_without_a_lock_and_nowhere_with_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let ring = load_or_make(path, None).unwrap();
        assert!(holds(path, ring.current().reveal()) && !is_sealed(path).unwrap());

        let lock = NodeLock::generate();
        save(path, &ring, Some(&lock)).unwrap();
        assert!(!holds(path, ring.current().reveal()) && is_sealed(path).unwrap());
        assert_eq!(
            load_or_make(path, Some(&lock)).unwrap().to_bytes(),
            ring.to_bytes()
        );
        let refused = load_or_make(path, None).unwrap_err().to_string();
        assert!(
            refused.ends_with("raft.key is sealed: unlock the swarm first"),
            "{refused}"
        );
        let refused = load_or_make(path, Some(&NodeLock::generate()))
            .unwrap_err()
            .to_string();
        assert!(refused.contains("sealed by another lock"), "{refused}");
    }

    #[test]
    fn a_lock_opens_with_its_unlock_key_alone_and_outlives_a_new_one() {
        let directory = tempfile::tempdir().unwrap();
        let file = LockFile::new(directory.path().join("lock"));
        let lock = NodeLock::generate();
        file.save(&lock, &unlock_key(1)).unwrap();
        let sealed = lock.seal(b"node key");
        assert!(file.open(&unlock_key(2)).unwrap().is_none());
        assert!(!holds(directory.path(), lock.0.current().reveal()));

        // As a rotation does it: the new lock also opens what is not sealed anew yet.
        let next = file.open(&unlock_key(1)).unwrap().unwrap().succeed();
        file.save(&next, &unlock_key(2)).unwrap();
        assert!(file.open(&unlock_key(1)).unwrap().is_none());
        let next = file.open(&unlock_key(2)).unwrap().unwrap();
        assert_eq!(next.open(&sealed).as_deref(), Some(&b"node key"[..]));
        assert_eq!(next.alone().open(&sealed), None);
    }

    #[test]
    fn a_damaged_key_file_is_refused_with_its_name() {
        let directory = tempfile::tempdir().unwrap();
        for damaged in [
            &b""[..],
            b"SHOALKEY",
            b"SHOALKEY\x01",
            b"SHOALKEY\x01\x00short",
            &[7; 32],
        ] {
            fs::write(directory.path().join(DATA_KEY), damaged).unwrap();
            let refused = load_or_make(directory.path(), None)
                .unwrap_err()
                .to_string();
            assert!(refused.contains("raft.key "), "{refused}");
        }
    }
}
