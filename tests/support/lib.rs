//! What the tests of the whole share: a lab per test, commands on its hosts, questions to its ports.

pub mod busybox;
pub mod images;
pub mod kernel;
pub mod lab;
pub mod load;
pub mod lossless;

use std::{
    io::Write,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// A state that has not come after this long will not come.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks again and again until there is an answer; fails with what was last seen.
pub fn wait<T>(
    what: &str,
    ask: impl FnMut() -> Result<std::result::Result<T, String>>,
) -> Result<T> {
    wait_within(PATIENCE, what, ask)
}

/// The same for what takes longer by its nature, as a whole rolling update does.
pub fn wait_within<T>(
    patience: Duration,
    what: &str,
    mut ask: impl FnMut() -> Result<std::result::Result<T, String>>,
) -> Result<T> {
    let began = Instant::now();
    loop {
        let seen = match ask() {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(seen)) => seen,
            Err(problem) => format!("{problem:#}"),
        };
        if began.elapsed() > patience {
            bail!(
                "waited {} s for {what}; last seen: {seen}",
                patience.as_secs()
            );
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Says that a test did not run here, past the harness's capture, in the form that `cargo xtask test` counts.
pub fn skipped(because: &str) {
    let _ = writeln!(std::io::stderr(), "skipped, because {because}");
}
