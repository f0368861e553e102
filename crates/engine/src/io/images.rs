//! Images on this host's disk and in registries.

mod blobs;
mod certificates;
mod commit;
mod decode;
mod durable;
mod error;
mod feed;
mod flight;
mod layers;
mod load;
mod pack;
mod partial;
mod pull;
mod push;
mod registry;
pub(in crate::io) mod rootdir;
mod save;
mod settings;
mod store;
pub(in crate::io) mod tar_reader;
mod unpack;
mod web;

pub(in crate::io) use commit::Workspace;
pub use commit::{Added, NewImage};
pub(in crate::io) use decode::{SNIFF_BYTES, is_tar};
pub use error::{ImageError, ImageErrorKind};
pub use load::LoadedImage;
pub(in crate::io) use pack::xattrs;
pub use pull::PulledImage;
pub use push::PushedImage;
pub use settings::Registries;
pub use store::{ImageRecord, ImageStore};
pub(in crate::io) use unpack::extract;
pub(in crate::io) use web::download;

pub use crate::core::images::Reference;
