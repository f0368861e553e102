//! Images against a real registry, against things that only claim to be one, and from archives.

mod archives;
mod bench;
mod corpus;
mod travel;
mod trouble;
mod ways;
