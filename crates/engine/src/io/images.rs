//! Images on disk and in registries.
