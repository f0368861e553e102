//! Encryption at rest: XChaCha20-Poly1305 under the manager's data key.

use std::fmt;

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, AeadInOut, Payload, inout::InOutBuf},
};
use sha2::{Digest, Sha256};
use shoal_api::{ClusterId, NodeId};

/// Bytes that sealing adds: the nonce before, the tag behind.
pub const OVERHEAD: usize = NONCE + 16;
const NONCE: usize = 24;

/// Whose files these are. Part of what every seal covers, so that files of one node cannot be given to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner(pub(super) [u8; 32]);

impl Owner {
    /// The files of this node in this cluster.
    pub fn new(cluster: &ClusterId, node: &NodeId) -> Self {
        Self(Sha256::digest(format!("{cluster}/{node}")).into())
    }
}

/// The data key of one manager.
#[derive(Clone)]
pub struct DataKey([u8; 32]);

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(…)")
    }
}

impl DataKey {
    /// Takes up a key kept elsewhere.
    pub fn new(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// Draws a fresh key.
    pub fn generate() -> Self {
        Self(random())
    }

    /// The key itself, to be kept.
    pub fn reveal(&self) -> &[u8; 32] {
        &self.0
    }

    /// Names the key without telling it, so that a wrong key is told from damage.
    pub fn id(&self) -> u32 {
        let digest = Sha256::new()
            .chain_update(b"shoal key id")
            .chain_update(self.0)
            .finalize();
        u32::from_le_bytes(digest[..4].try_into().expect("four bytes are four bytes"))
    }

    /// Seals `plain`; `about` is covered but not contained.
    pub fn seal(&self, plain: &[u8], about: &[u8]) -> Vec<u8> {
        self.seal_parts(&[plain], about)
    }

    /// Seals these parts as one, each copied once: they may be large.
    pub fn seal_parts(&self, parts: &[&[u8]], about: &[u8]) -> Vec<u8> {
        let nonce = random::<NONCE>();
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let mut sealed = Vec::with_capacity(length + OVERHEAD);
        sealed.extend_from_slice(&nonce);
        for part in parts {
            sealed.extend_from_slice(part);
        }
        let tag = XChaCha20Poly1305::new(&self.0.into())
            .encrypt_inout_detached(
                &XNonce::from(nonce),
                about,
                InOutBuf::from(&mut sealed[NONCE..]),
            )
            .expect("what we seal is far below the cipher's limit of 256 GiB");
        sealed.extend_from_slice(&tag);
        sealed
    }

    /// Opens what [`Self::seal`] made; `None` when a bit of it or of `about` differs, or the key.
    pub fn open(&self, sealed: &[u8], about: &[u8]) -> Option<Vec<u8>> {
        let (nonce, body) = sealed.split_first_chunk::<NONCE>()?;
        XChaCha20Poly1305::new(&self.0.into())
            .decrypt(
                &XNonce::from(*nonce),
                Payload {
                    msg: body,
                    aad: about,
                },
            )
            .ok()
    }
}

/// A manager's data key, and those before it while something is left that they sealed.
#[derive(Debug, Clone)]
pub struct KeyRing {
    /// The newest first; never empty.
    keys: Vec<DataKey>,
}

impl From<DataKey> for KeyRing {
    fn from(key: DataKey) -> Self {
        Self { keys: vec![key] }
    }
}

impl KeyRing {
    /// The key that seals.
    pub fn current(&self) -> &DataKey {
        &self.keys[0]
    }

    /// All keys, the one that seals first.
    pub fn iter(&self) -> impl Iterator<Item = &DataKey> {
        self.keys.iter()
    }

    /// The key of this id.
    pub fn find(&self, id: u32) -> Option<&DataKey> {
        self.iter().find(|key| key.id() == id)
    }

    /// Whether there are keys that seal no more.
    pub fn has_older(&self) -> bool {
        self.keys.len() > 1
    }

    /// The ring in which another key seals from now on.
    #[must_use]
    pub fn succeeded_by(&self, key: DataKey) -> Self {
        let older = self.keys.iter().cloned();
        Self {
            keys: std::iter::once(key).chain(older).collect(),
        }
    }

    /// All keys, one behind the other, to be kept.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.keys.iter().flat_map(|key| key.0).collect()
    }

    /// Reads what [`Self::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (keys, rest) = bytes.as_chunks::<32>();
        let keys: Vec<_> = keys.iter().copied().map(DataKey).collect();
        (!keys.is_empty() && rest.is_empty()).then_some(Self { keys })
    }
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes after boot");
    bytes
}
