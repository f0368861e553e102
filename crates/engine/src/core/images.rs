//! Images: their names, their documents, and what may be done with them.

mod archive;
mod catalog;
mod challenge;
mod config;
mod digest;
mod entry;
mod manifest;
mod platform;
mod reference;
mod ustar;

pub use archive::{ArchiveItem, ArchiveLayout, OCI_LAYOUT, docker_manifest, oci_index};
pub use catalog::{Built, Catalog, CatalogError, ImageRow, Layer, RemovePlan};
pub use challenge::Challenge;
pub use config::{BuildStep, ImageSpec, InvalidConfig, render_config};
pub use digest::{Digest, InvalidDigest, chain_ids};
pub use entry::{EntryPath, InvalidEntry, Whiteout, xattr_is_kept};
pub use manifest::{
    Descriptor, Document, InvalidManifest, Manifest, MediaType, parse_document, render_manifest,
};
pub use platform::{choose_platform, host_platform, parse_platform};
pub use reference::{InvalidReference, Reference};
pub use ustar::{Assembler, BLOCK, InvalidTar, Member, MemberKind, Step};
