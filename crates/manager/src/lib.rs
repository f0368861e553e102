//! Placeholder until the crate's rooms are laid out.
