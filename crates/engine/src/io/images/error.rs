//! What can go wrong with an image.

use std::{io, path::Path};

use crate::core::images::{
    CatalogError, Digest, InvalidConfig, InvalidEntry, InvalidManifest, InvalidReference,
    InvalidTar,
};

/// A failed deed on images. Texts of errors that docker has too are docker's.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Name(#[from] InvalidReference),
    /// The registry has no such repository or tag.
    #[error("{0}")]
    NotFound(String),
    /// The registry refuses us.
    #[error("{0}")]
    Denied(String),
    #[error("{method} {url:?}: {reason}")]
    Registry {
        method: String,
        url: String,
        reason: String,
    },
    #[error("cannot use the manifest of {image}")]
    Manifest {
        image: String,
        source: InvalidManifest,
    },
    #[error("cannot use the configuration of {image}")]
    Config {
        image: String,
        source: InvalidConfig,
    },
    #[error("image {image} has {layers} layers but its configuration lists {listed}")]
    LayerCount {
        image: String,
        layers: usize,
        listed: usize,
    },
    #[error("invalid platform {0:?}: expected os/arch[/variant]")]
    PlatformText(String),
    #[error("no matching manifest for {0} in the manifest list entries")]
    NoPlatform(String),
    #[error(
        "image with reference {image} was found but does not provide the specified platform ({wanted})"
    )]
    OtherPlatform { image: String, wanted: String },
    #[error("content is {found}, expected {expected}")]
    Digest { expected: Digest, found: Digest },
    #[error("content of {digest} has not the announced size of {size} bytes")]
    Size { digest: Digest, size: u64 },
    #[error("cannot read the archive")]
    Tar(#[from] InvalidTar),
    #[error("cannot read the archive")]
    Entry(#[from] InvalidEntry),
    #[error("archive entry {path:?} cannot be unpacked")]
    Unpack { path: String, source: io::Error },
    /// An archive that holds no images, or not all of what it lists.
    #[error("{0}")]
    Archive(String),
    #[error("cannot {action}")]
    Io { action: String, source: io::Error },
    #[error("{0} was interrupted")]
    Interrupted(&'static str),
}

/// What a caller can do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageErrorKind {
    NotFound,
    Denied,
    /// The name, image or archive is at fault.
    Invalid,
    Conflict,
    /// The registry or the way to it is at fault.
    Registry,
    /// This host is at fault.
    Io,
}

impl ImageError {
    /// Sorts the error by what can be done about it.
    pub fn kind(&self) -> ImageErrorKind {
        match self {
            Self::Catalog(CatalogError::NotFound(_))
            | Self::NotFound(_)
            | Self::NoPlatform(_)
            | Self::OtherPlatform { .. } => ImageErrorKind::NotFound,
            Self::Catalog(CatalogError::Conflict(_)) => ImageErrorKind::Conflict,
            Self::Denied(_) => ImageErrorKind::Denied,
            Self::Registry { .. } => ImageErrorKind::Registry,
            Self::Io { .. } | Self::Interrupted(_) => ImageErrorKind::Io,
            Self::Catalog(_)
            | Self::Name(_)
            | Self::Manifest { .. }
            | Self::Config { .. }
            | Self::LayerCount { .. }
            | Self::PlatformText(_)
            | Self::Digest { .. }
            | Self::Size { .. }
            | Self::Tar(_)
            | Self::Entry(_)
            | Self::Unpack { .. }
            | Self::Archive(_) => ImageErrorKind::Invalid,
        }
    }

    /// The error with all its causes in one line, for a user.
    pub fn report(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(next) = cause {
            let part = next.to_string();
            if !text.ends_with(&part) {
                text.push_str(": ");
                text.push_str(&part);
            }
            cause = next.source();
        }
        text
    }

    /// For `map_err`: what was attempted on which path.
    pub(super) fn io(action: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let action = format!("{action} {}", path.display());
        move |source| Self::Io { action, source }
    }

    /// For `map_err`: what was attempted.
    pub(super) fn doing(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        // Readers in between carry our own errors as `io::Error`.
        move |source| match source.downcast::<Self>() {
            Ok(own) => own,
            Err(source) => Self::Io {
                action: action.to_owned(),
                source,
            },
        }
    }
}

impl From<ImageError> for io::Error {
    fn from(error: ImageError) -> Self {
        Self::other(error)
    }
}
