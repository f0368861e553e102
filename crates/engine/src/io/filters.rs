//! The default system call filter as the kernel takes it. Compiling it costs more than anything else of a start, and only
//! the container's capabilities change what comes of it, so that is done once for each set of them.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use libseccomp::{ScmpAction, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompOperator, LinuxSyscall};

use crate::core::capabilities::CapabilitySet;
use crate::core::seccomp;
use crate::shim::protocol::FILTER_NAME;

/// Sets of capabilities whose filters are kept: few are in use at a time.
const KEPT_MAX: usize = 32;

/// Compiled filters.
#[derive(Debug, Default)]
pub(super) struct Filters(Mutex<BTreeMap<u64, Arc<[u8]>>>);

impl Filters {
    /// Puts the default filter for these capabilities into a run directory. Blocks.
    pub(super) fn put(&self, run_dir: &Path, capabilities: CapabilitySet) -> io::Result<()> {
        std::fs::write(run_dir.join(FILTER_NAME), self.compiled(capabilities)?)
    }

    fn compiled(&self, capabilities: CapabilitySet) -> io::Result<Arc<[u8]>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(program) = kept.get(&capabilities.0) {
            return Ok(Arc::clone(program));
        }
        let program: Arc<[u8]> = compile(&seccomp::default_profile(capabilities))?.into();
        if kept.len() >= KEPT_MAX {
            kept.clear();
        }
        kept.insert(capabilities.0, Arc::clone(&program));
        Ok(program)
    }
}

/// Removes what an earlier start with another filter left.
pub(super) fn clear(run_dir: &Path) -> io::Result<()> {
    match std::fs::remove_file(run_dir.join(FILTER_NAME)) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The kernel's instructions for a profile of ours. By the same library, and in the same way, as libcontainer does it.
fn compile(profile: &LinuxSeccomp) -> io::Result<Vec<u8>> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut context = ScmpFilterContext::new(default).map_err(io::Error::other)?;
    for rule in profile.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret())?;
        let comparisons = comparisons(rule)?;
        for name in rule.names() {
            // Calls that the library does not know yet stay forbidden.
            let Ok(call) = ScmpSyscall::from_name(name) else {
                continue;
            };
            let added = match comparisons.as_slice() {
                [] => context.add_rule(action, call),
                some => context.add_rule_conditional(action, call, some),
            };
            added.map_err(io::Error::other)?;
        }
    }
    // It fits into the pipe: the kernel takes 4,096 instructions of 8 bytes.
    let (mut read, write) = io::pipe()?;
    context.export_bpf(&write).map_err(io::Error::other)?;
    drop(write);
    let mut program = Vec::new();
    read.read_to_end(&mut program)?;
    Ok(program)
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> io::Result<ScmpAction> {
    match action {
        LinuxSeccompAction::ScmpActAllow => Ok(ScmpAction::Allow),
        LinuxSeccompAction::ScmpActErrno => {
            let errno = i32::try_from(errno.unwrap_or(libc::EPERM.cast_unsigned()));
            Ok(ScmpAction::Errno(errno.map_err(io::Error::other)?))
        }
        other => Err(io::Error::other(format!(
            "action {other:?} is none of ours"
        ))),
    }
}

/// Each argument is compared once at most in rules of ours. As for the order of a mask and its value see `core::seccomp`.
fn comparisons(rule: &LinuxSyscall) -> io::Result<Vec<ScmpArgCompare>> {
    let args = rule.args().iter().flatten();
    args.map(|arg| {
        let operator = match (arg.op(), arg.value_two()) {
            (LinuxSeccompOperator::ScmpCmpEq, None) => ScmpCompareOp::Equal,
            (LinuxSeccompOperator::ScmpCmpMaskedEq, Some(mask)) => ScmpCompareOp::MaskedEqual(mask),
            (other, _) => {
                return Err(io::Error::other(format!(
                    "comparison {other:?} is none of ours"
                )));
            }
        };
        let index = u32::try_from(arg.index()).map_err(io::Error::other)?;
        Ok(ScmpArgCompare::new(index, operator, arg.value()))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_differ_by_capabilities_and_are_compiled_once() {
        let filters = Filters::default();
        let plain = filters
            .compiled(CapabilitySet::docker_default())
            .expect("a program");
        let all = filters.compiled(CapabilitySet::ALL).expect("a program");
        assert!(plain.len().is_multiple_of(8) && plain.len() > 800);
        assert_ne!(plain, all);
        let again = filters
            .compiled(CapabilitySet::docker_default())
            .expect("a program");
        assert!(Arc::ptr_eq(&plain, &again));
        for bits in 0..100 {
            filters
                .compiled(CapabilitySet(bits % 2))
                .expect("a program");
        }
        assert!(filters.0.lock().expect("nobody panics").len() <= KEPT_MAX);
    }
}
