//! Whether a container would get hold of the API, which is as good as being root on this host.

use std::path::Path;

use shoal_api::container::{ContainerSpec, MountKind};

use crate::config::DaemonConfig;

/// What to tell whoever asks for such a container; `None` if it gets no socket of the API.
pub(super) fn warning(config: &DaemonConfig, spec: &ContainerSpec) -> Option<String> {
    let binds = spec
        .host
        .binds
        .iter()
        .filter_map(|bind| bind.split(':').next());
    let mounts = spec
        .host
        .mounts
        .iter()
        .filter_map(|mount| match &mount.kind {
            MountKind::Bind { source, .. } => Some(source.as_str()),
            MountKind::Volume { .. } | MountKind::Tmpfs { .. } | MountKind::Image { .. } => None,
        });
    let socket = config.socket();
    let exposing = binds
        .chain(mounts)
        .filter(|source| source.starts_with('/'))
        .find(|source| holds(source, &socket))?;
    Some(format!(
        "the bind mount of {exposing} gives the container the API's socket {} and with it all rights on this host",
        socket.display()
    ))
}

/// Whether a path of this host is the socket or a folder that it is in. By what they are, so that links hide nothing.
fn holds(source: &str, socket: &Path) -> bool {
    let (Ok(source), Ok(socket)) = (Path::new(source).canonicalize(), socket.canonicalize()) else {
        return false;
    };
    socket.starts_with(source)
}
