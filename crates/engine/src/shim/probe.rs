//! The self-test's payload: instead of running anything, it tells how the kernel holds it.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use nix::sys::statvfs::{FsFlags, statvfs};

use crate::core::selftest::{Facts, PathFact};

/// Takes the place of the container's process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Probe;

impl Executor for Probe {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let facts = look_around(spec);
        let json =
            serde_json::to_vec(&facts).map_err(|err| ExecutorError::Other(err.to_string()))?;
        std::io::stdout()
            .write_all(&json)
            .map_err(|err| ExecutorError::Other(err.to_string()))?;
        std::process::exit(0)
    }

    fn validate(&self, _spec: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }

    fn setup_envs(&self, _envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }
}

fn look_around(spec: &Spec) -> Facts {
    let linux = spec.linux().as_ref();
    let look = |paths: Option<&Vec<String>>| {
        paths
            .into_iter()
            .flatten()
            .map(|path| (path.clone(), look_at(path)))
            .collect()
    };
    Facts {
        status: std::fs::read_to_string("/proc/self/status").unwrap_or_default(),
        masked: look(linux.and_then(|linux| linux.masked_paths().as_ref())),
        readonly: look(linux.and_then(|linux| linux.readonly_paths().as_ref())),
    }
}

fn look_at(path: &str) -> PathFact {
    let Ok(meta) = std::fs::metadata(path) else {
        return PathFact::Absent;
    };
    let read_only =
        statvfs(Path::new(path)).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_RDONLY));
    let hidden = if meta.is_dir() {
        std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
    } else {
        use std::os::unix::fs::MetadataExt;
        meta.rdev() == nix::sys::stat::makedev(1, 3)
    };
    match (hidden, read_only) {
        (true, _) => PathFact::Hidden,
        (false, true) => PathFact::ReadOnly,
        (false, false) => PathFact::Open,
    }
}
