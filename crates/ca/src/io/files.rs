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

use super::{issuer::RootCertificate, tls::NodeIdentity};
use crate::CaError;

const ROOT: &str = "swarm-root-ca.crt";
const NODE: &str = "swarm-node.pem";

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

    /// Reads the identity; `None` when the node never had one or it was cleared.
    pub fn load(&self) -> Result<Option<NodeIdentity>, CaError> {
        let (Some(root), Some(node)) = (self.read(ROOT)?, self.read(NODE)?) else {
            return Ok(None);
        };
        let (certificate, key) = node
            .split_once("-----BEGIN PRIVATE KEY-----")
            .ok_or_else(|| CaError::invalid("node key", format!("{NODE} holds no private key")))?;
        let key = format!("-----BEGIN PRIVATE KEY-----{key}");
        NodeIdentity::new(
            RootCertificate::from_pem(&root)?,
            certificate.to_owned(),
            key,
        )
        .map(Some)
    }

    /// Writes the identity so that it survives a loss of power once this returns. Files are readable by the owner only.
    pub fn save(&self, identity: &NodeIdentity) -> Result<(), CaError> {
        let write = |name: &str, text: &str| {
            write_atomically(&self.directory, name, text.as_bytes()).map_err(|source| {
                CaError::File {
                    action: "write",
                    path: self.directory.join(name).display().to_string(),
                    source,
                }
            })
        };
        write(ROOT, identity.root().pem())?;
        write(
            NODE,
            &format!("{}{}", identity.certificate_pem(), identity.key_pem()),
        )
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
