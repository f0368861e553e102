//! Building images of Dockerfiles, as docker's classic builder does: what is to be done, step by step.

mod args;
mod dockerfile;
mod ignore;
mod instruction;
mod lines;
mod paths;
mod state;
mod words;

pub use args::BuildArgs;
pub use dockerfile::{Dockerfile, Stage, Step, parse_trigger};
pub use ignore::{IgnoreList, InvalidPattern, matches_glob};
pub use instruction::{Command, CopySpec, Instruction};
pub use lines::ParseError;
pub use paths::{Destination, destination};
pub use state::{BuildState, Change};
pub use words::{SubstitutionError, substitute, substitute_words};
