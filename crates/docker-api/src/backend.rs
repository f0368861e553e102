//! What the API needs from the rest of the daemon, in domain terms.

mod cluster;
mod engine;
mod error;

use std::pin::Pin;

use bytes::Bytes;
use futures_util::Stream;
use shoal_api::{container::StdStream, image::PullProgress};
use tokio::io::AsyncWrite;

pub use cluster::*;
pub use engine::*;
pub use error::ApiError;

/// What every backend method answers.
pub type ApiResult<T> = Result<T, ApiError>;

/// Things that come one by one. Dropping it stops whatever makes them.
pub type ItemStream<T> = Pin<Box<dyn Stream<Item = ApiResult<T>> + Send>>;

/// Raw bytes, for instance a tar archive.
pub type ByteStream = ItemStream<Bytes>;

/// Both directions of a container's or exec's standard streams.
pub struct Attached {
    /// Output as it comes; ends when the process and all holders of its output are gone. With a terminal everything
    /// comes as [`StdStream::Stdout`].
    pub output: ItemStream<(StdStream, Bytes)>,
    /// Standard input, if it was asked for and is open; shutting it down closes the process's input.
    pub input: Option<Pin<Box<dyn AsyncWrite + Send>>>,
    /// Whether there is a terminal: then output travels unframed.
    pub tty: bool,
}

impl std::fmt::Debug for Attached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attached")
            .field("input", &self.input.is_some())
            .field("tty", &self.tty)
            .finish_non_exhaustive()
    }
}

/// One message of a pull, push or load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// The state of a layer or of the whole.
    Status(PullProgress),
    /// A line of plain text, with its newline (`Loaded image: …`).
    Line(String),
    /// The id of an image that a build made.
    Built(String),
    /// What was asked for went wrong, with the exit code that the client is to end with.
    Failed {
        /// Exit code.
        code: i32,
        /// Why.
        message: String,
    },
}
