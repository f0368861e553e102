//! What can go wrong in the engine.

use std::io;
use std::path::PathBuf;

use crate::core::config::ConfigError;
use crate::core::mounts::MountError;
use crate::core::oci::OciError;
use crate::io::files::FilesError;
use crate::io::images::ImageError;
use crate::io::network::NetworkError;
use crate::shim::protocol::Failure;

/// A failed deed on containers, execs or volumes. Texts of errors that Docker has too are Docker's.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("No such container: {0}")]
    NoSuchContainer(String),
    #[error("multiple IDs found with provided prefix: {0}")]
    AmbiguousId(String),
    #[error("No such exec instance: {0}")]
    NoSuchExec(String),
    #[error("get {0}: no such volume")]
    NoSuchVolume(String),
    #[error("error looking up volume plugin {0}: plugin \"{0}\" not found")]
    NoSuchVolumePlugin(String),
    #[error("No such image: {0}")]
    NoSuchImage(String),
    #[error(
        "Conflict. The container name \"/{name}\" is already in use by container \"{holder}\". You have to remove (or rename) that container to be able to reuse that name."
    )]
    NameTaken { name: String, holder: String },
    #[error("Invalid container name ({0}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")]
    InvalidName(String),
    #[error("container {0} is not running")]
    NotRunning(String),
    #[error("Container {0} is already paused")]
    AlreadyPaused(String),
    #[error("Container {0} is not paused")]
    NotPaused(String),
    #[error("Container {0} is paused, unpause the container before stopping or killing")]
    Paused(String),
    #[error(
        "cannot remove container {0:?}: container is running: stop the container before removing or force remove"
    )]
    StillRunning(String),
    #[error("{0} is already as wanted")]
    NotModified(String),
    #[error("remove {name}: volume is in use - [{users}]")]
    VolumeInUse { name: String, users: String },
    #[error("error gathering device information while adding custom device {path:?}: {why}")]
    Device { path: String, why: String },
    /// What a volume's options ask for cannot be mounted; docker's words.
    #[error("{0}")]
    VolumeMount(String),
    #[error("{0}")]
    Conflict(String),
    #[error("{0}")]
    Invalid(String),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    Oci(#[from] OciError),
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("failed to set up container networking: {0}")]
    Network(#[from] NetworkError),
    /// The container or exec was made but cannot run; `exit_code` is what `docker run` exits with.
    #[error("failed to start container: {message}")]
    Start { exit_code: i32, message: String },
    #[error("OCI runtime exec failed: exec failed: {message}")]
    Exec { exit_code: i32, message: String },
    /// This host cannot isolate containers as it should, so none is run.
    #[error("no container can run on this host: {0}")]
    SelfTest(String),
    #[error("failed to start container: {0}")]
    Groups(String),
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot reach the container's shim")]
    Shim(#[source] io::Error),
}

/// What a caller can do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineErrorKind {
    NotFound,
    Conflict,
    Invalid,
    /// Nothing was to be done.
    NotModified,
    /// This host is at fault.
    Internal,
}

impl EngineError {
    /// Sorts the error by what can be done about it.
    pub fn kind(&self) -> EngineErrorKind {
        use crate::io::images::ImageErrorKind;
        match self {
            Self::NoSuchContainer(_)
            | Self::NoSuchExec(_)
            | Self::NoSuchVolume(_)
            | Self::NoSuchVolumePlugin(_)
            | Self::NoSuchImage(_)
            | Self::Network(NetworkError::NotFound(_)) => EngineErrorKind::NotFound,
            Self::NameTaken { .. }
            | Self::NotRunning(_)
            | Self::AlreadyPaused(_)
            | Self::NotPaused(_)
            | Self::Paused(_)
            | Self::StillRunning(_)
            | Self::VolumeInUse { .. }
            | Self::Conflict(_)
            | Self::Network(NetworkError::Conflict(_)) => EngineErrorKind::Conflict,
            Self::AmbiguousId(_)
            | Self::InvalidName(_)
            | Self::Invalid(_)
            | Self::Config(_)
            | Self::Mount(_)
            | Self::Oci(_)
            | Self::Network(NetworkError::Invalid(_)) => EngineErrorKind::Invalid,
            Self::Start { exit_code, .. } | Self::Exec { exit_code, .. } => match exit_code {
                126 | 127 => EngineErrorKind::Invalid,
                _ => EngineErrorKind::Internal,
            },
            Self::Files(err) => match err {
                FilesError::NotFound { .. } => EngineErrorKind::NotFound,
                FilesError::View(_) => EngineErrorKind::Internal,
                FilesError::NotDirectory
                | FilesError::ReadOnlyRoot
                | FilesError::ReadOnlyVolume
                | FilesError::DirectoryInTheWay { .. }
                | FilesError::FileInTheWay { .. }
                | FilesError::Archive(_)
                | FilesError::Kernel { .. } => EngineErrorKind::Invalid,
            },
            Self::Image(err) => match err.kind() {
                ImageErrorKind::NotFound => EngineErrorKind::NotFound,
                ImageErrorKind::Conflict => EngineErrorKind::Conflict,
                ImageErrorKind::Invalid => EngineErrorKind::Invalid,
                ImageErrorKind::Denied | ImageErrorKind::Registry | ImageErrorKind::Io => {
                    EngineErrorKind::Internal
                }
            },
            // Docker finds it out at the start, too, where it is no fault of the request's form.
            Self::Device { .. } => EngineErrorKind::Internal,
            Self::NotModified(_) => EngineErrorKind::NotModified,
            Self::Network(NetworkError::Failed(_))
            | Self::SelfTest(_)
            | Self::Groups(_)
            | Self::VolumeMount(_)
            | Self::Io { .. }
            | Self::Shim(_) => EngineErrorKind::Internal,
        }
    }

    /// The error with all its causes in one line, for a user.
    pub fn report(&self) -> String {
        use std::error::Error;
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(err) = cause {
            let more = err.to_string();
            if !text.contains(&more) {
                text.push_str(": ");
                text.push_str(&more);
            }
            cause = err.source();
        }
        text
    }

    pub(in crate::io) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

impl From<Failure> for EngineError {
    fn from(failure: Failure) -> Self {
        Self::Start {
            exit_code: failure.exit_code,
            message: failure.message,
        }
    }
}
