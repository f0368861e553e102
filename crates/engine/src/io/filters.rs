//! System call filters as the kernel takes them. Compiling one costs more than anything else of a start, and only the
//! container's capabilities change what comes of the default one, so that is done once for each set of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};

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

/// Puts a filter of the user's own into a run directory. Blocks.
pub(super) fn put_own(run_dir: &Path, profile: &LinuxSeccomp) -> io::Result<()> {
    std::fs::write(run_dir.join(FILTER_NAME), compile(profile)?)
}

/// Removes what an earlier start with another filter left.
pub(super) fn clear(run_dir: &Path) -> io::Result<()> {
    match std::fs::remove_file(run_dir.join(FILTER_NAME)) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The kernel's instructions for a profile.
fn compile(profile: &LinuxSeccomp) -> io::Result<Vec<u8>> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut context = ScmpFilterContext::new(default).map_err(io::Error::other)?;
    for architecture in profile.architectures().iter().flatten() {
        let name = serde_json::to_value(architecture)?;
        let known = ScmpArch::from_str(name.as_str().unwrap_or_default());
        let known = known.map_err(io::Error::other)?;
        context.add_arch(known).map_err(io::Error::other)?;
    }
    for rule in profile.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret())?;
        let conditions = conditions(rule)?;
        for name in rule.names() {
            // Calls that the library does not know yet stay as by default; the same for what comes to no change.
            let Ok(call) = ScmpSyscall::from_name(name) else {
                continue;
            };
            if action == default {
                continue;
            }
            for comparisons in &conditions {
                let added = match comparisons.as_slice() {
                    [] => context.add_rule(action, call),
                    some => context.add_rule_conditional(action, call, some),
                };
                added.map_err(io::Error::other)?;
            }
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
    let number = errno.unwrap_or(libc::EPERM.cast_unsigned());
    Ok(match action {
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActErrno => {
            ScmpAction::Errno(i32::try_from(number).map_err(io::Error::other)?)
        }
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            ScmpAction::KillThread
        }
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActTrace => {
            ScmpAction::Trace(u16::try_from(number).map_err(io::Error::other)?)
        }
        LinuxSeccompAction::ScmpActNotify => {
            return Err(io::Error::other(
                "SCMP_ACT_NOTIFY needs somebody to be notified, which containers do not have",
            ));
        }
    })
}

fn comparison(arg: &LinuxSeccompArg) -> io::Result<ScmpArgCompare> {
    let index = u32::try_from(arg.index()).map_err(io::Error::other)?;
    let operator = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => ScmpCompareOp::NotEqual,
        LinuxSeccompOperator::ScmpCmpLt => ScmpCompareOp::Less,
        LinuxSeccompOperator::ScmpCmpLe => ScmpCompareOp::LessOrEqual,
        LinuxSeccompOperator::ScmpCmpEq => ScmpCompareOp::Equal,
        LinuxSeccompOperator::ScmpCmpGe => ScmpCompareOp::GreaterEqual,
        LinuxSeccompOperator::ScmpCmpGt => ScmpCompareOp::Greater,
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            let (mask, value) = (arg.value(), arg.value_two().unwrap_or_default());
            let masked = ScmpCompareOp::MaskedEqual(mask);
            return Ok(ScmpArgCompare::new(index, masked, value));
        }
    };
    Ok(ScmpArgCompare::new(index, operator, arg.value()))
}

/// The conditions of a rule, each of which is a rule of its own where one argument is compared twice, as in runc.
fn conditions(rule: &LinuxSyscall) -> io::Result<Vec<Vec<ScmpArgCompare>>> {
    let args = rule.args().as_deref().unwrap_or_default();
    let comparisons = args
        .iter()
        .map(comparison)
        .collect::<io::Result<Vec<_>>>()?;
    let indexes: BTreeSet<usize> = args.iter().map(|arg| arg.index()).collect();
    Ok(if indexes.len() == args.len() {
        vec![comparisons]
    } else {
        comparisons.into_iter().map(|one| vec![one]).collect()
    })
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
