//! The `shoal` binary: docker's command grammar as a client of the Engine API, and the daemon itself.

mod client;
mod command;
mod compose;
mod config_file;
mod connect;
mod context;
mod dockerignore;
mod flags;
mod human;
mod image_ref;
mod json;
mod output;
mod progress;
mod tarball;
mod template;
mod terminal;
mod usage;

/// A failure with an exit code of its own.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Exit {
    /// What the process ends with.
    code: i32,
    /// What to say; empty says nothing.
    message: String,
}

fn main() {
    shoal_engine::io::lookups::keep_to_ourselves();
    let mut args = std::env::args_os().skip(1);
    // Both must come before the process has a second thread.
    match args.next().as_deref().and_then(|first| first.to_str()) {
        Some("shim") => shoal_engine::shim::main(args),
        Some("lab-host") => lab_host(args),
        // Before the allocator has filled anything: what it has of huge pages by then it keeps.
        Some("daemon") => shoal_engine::io::memory::keep_small(),
        _ => {}
    }
    let cli = match command::parse() {
        Ok(cli) => cli,
        Err(error) => usage::explain(&error),
    };
    let code = match command::run(cli) {
        Ok(()) => 0,
        Err(error) => {
            let exit = error.downcast_ref::<Exit>();
            let text =
                exit.map_or_else(|| plain(&format!("{error:#}")), |exit| exit.message.clone());
            if !text.is_empty() {
                output::note(text);
            }
            exit.map_or(1, |exit| exit.code)
        }
    };
    // Leaves a read of standard input behind that nobody waits for.
    std::process::exit(code)
}

/// The name by which this program was called, if that is one of its own: it may stand in for docker's client.
fn program() -> &'static str {
    let called = std::env::args_os().next();
    let name = called
        .as_deref()
        .map(std::path::Path::new)
        .and_then(|path| path.file_name());
    if name.is_some_and(|name| name == "docker") {
        "docker"
    } else {
        "shoal"
    }
}

/// The text with the operating system's errors as C and Go write them: no number, no capital.
fn plain(text: &str) -> String {
    let mut parts = text.split(" (os error ");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let start = out.rfind(": ").map_or(0, |at| at + 2);
        if let Some(first) = out.get_mut(start..=start) {
            first.make_ascii_lowercase();
        }
        out.push_str(part.split_once(')').map_or(part, |(_, rest)| rest));
    }
    out
}

/// The hidden command that becomes process 1 of a lab's host.
fn lab_host(args: impl Iterator<Item = std::ffi::OsString>) -> ! {
    let words: Vec<String> = args
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let code = match shoal_node::lab::init(&words) {
        Ok(()) => 0,
        Err(error) => {
            output::note(error);
            1
        }
    };
    std::process::exit(code)
}
