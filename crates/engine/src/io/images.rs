//! Images on this host's disk and in registries.

mod blobs;
mod decode;
mod error;
mod feed;
mod flight;
mod layers;
mod load;
mod pull;
mod push;
mod registry;
pub(in crate::io) mod rootdir;
mod save;
mod store;
pub(in crate::io) mod tar_reader;
mod unpack;

pub use error::{ImageError, ImageErrorKind};
pub use load::LoadedImage;
pub use pull::PulledImage;
pub use push::PushedImage;
pub use store::{ImageRecord, ImageStore};
