//! The identity of a node on disk.
//!
//! `swarm-root-ca.crt` holds the root; `swarm-node.pem` holds certificate and key together, so that one rename
//! replaces both and a crash never leaves a key without its certificate.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use base64::Engine;

use super::{
    issuer::{RootCertificate, pem_text},
    tls::NodeIdentity,
};
use crate::CaError;

const ROOT: &str = "swarm-root-ca.crt";
const NODE: &str = "swarm-node.pem";
const KEY_BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const SEALED: &str = "SHOAL SEALED PRIVATE KEY";
const SEALED_BEGIN: &str = "-----BEGIN SHOAL SEALED PRIVATE KEY-----";

/// Seals a node's private key, where the cluster locks its managers.
pub trait KeySeal {
    /// Seals.
    fn seal(&self, plain: &[u8]) -> Vec<u8>;
    /// Opens what was sealed; `None` if it was sealed otherwise or is damaged.
    fn open(&self, sealed: &[u8]) -> Option<Vec<u8>>;
}

/// What is kept of an identity.
#[derive(Debug)]
pub enum StoredIdentity {
    /// Nothing: the node never had one, or it was cleared.
    Nothing,
    /// Its private key is sealed, and not by the given seal.
    Sealed,
    /// All of it.
    Open(Box<NodeIdentity>),
}

/// The directory of a node's certificates.
#[derive(Debug, Clone)]
pub struct IdentityFiles {
    directory: PathBuf,
}

impl IdentityFiles {
    /// Names the directory; nothing is read or made yet.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    /// Reads the identity, with the seal of its key where there is one.
    pub fn load(&self, seal: Option<&dyn KeySeal>) -> Result<StoredIdentity, CaError> {
        let (Some(root), Some(node)) = (self.read(ROOT)?, self.read(NODE)?) else {
            return Ok(StoredIdentity::Nothing);
        };
        let (certificate, key) = match node.split_once(SEALED_BEGIN) {
            Some((certificate, sealed)) => {
                let Some(key) = seal.and_then(|seal| open(seal, sealed)) else {
                    return Ok(StoredIdentity::Sealed);
                };
                (certificate, key)
            }
            None => {
                let missing =
                    || CaError::invalid("node key", format!("{NODE} holds no private key"));
                let (certificate, key) = node.split_once(KEY_BEGIN).ok_or_else(missing)?;
                (certificate, format!("{KEY_BEGIN}{key}"))
            }
        };
        let root = RootCertificate::from_pem(&root)?;
        let identity = NodeIdentity::new(root, certificate.to_owned(), key)?;
        Ok(StoredIdentity::Open(Box::new(identity)))
    }

    /// Writes the identity so that it survives a loss of power once this returns. Files are readable by the owner only;
    /// the key is sealed where there is a seal.
    pub fn save(&self, identity: &NodeIdentity, seal: Option<&dyn KeySeal>) -> Result<(), CaError> {
        let write = |name: &str, text: &str| {
            write_atomically(&self.directory, name, text.as_bytes()).map_err(|source| {
                CaError::File {
                    action: "write",
                    path: self.directory.join(name).display().to_string(),
                    source,
                }
            })
        };
        let key = match seal {
            Some(seal) => pem_text(SEALED, &seal.seal(identity.key_pem().as_bytes())),
            None => identity.key_pem().to_owned(),
        };
        write(ROOT, identity.root().pem())?;
        write(NODE, &format!("{}{key}", identity.certificate_pem()))
    }

    /// Forgets the identity, for a node that leaves its cluster.
    pub fn clear(&self) -> Result<(), CaError> {
        for name in [NODE, ROOT] {
            match fs::remove_file(self.directory.join(name)) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(CaError::File {
                        action: "remove",
                        path: self.directory.join(name).display().to_string(),
                        source,
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn read(&self, name: &str) -> Result<Option<String>, CaError> {
        let path = self.directory.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(CaError::File {
                action: "read",
                path: path.display().to_string(),
                source,
            }),
        }
    }
}

/// Opens what follows [`SEALED_BEGIN`].
fn open(seal: &dyn KeySeal, text: &str) -> Option<String> {
    let body: String = text.split("-----").next()?.split_whitespace().collect();
    let sealed = base64::engine::general_purpose::STANDARD
        .decode(body)
        .ok()?;
    String::from_utf8(seal.open(&sealed)?).ok()
}

fn write_atomically(directory: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let temporary = directory.join(format!(".{name}.tmp"));
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {} // what a crash left behind
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, directory.join(name))?;
    File::open(directory)?.sync_all()
}
