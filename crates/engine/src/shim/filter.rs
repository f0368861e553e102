//! Puts a process under a system call filter that was compiled ahead.
#![allow(unsafe_code)]

use std::path::Path;

use nix::errno::Errno;
use oci_spec::runtime::{LinuxSeccompFilterFlag, Spec};

use super::executor::describe;
use super::protocol::{FILTER_NAME, Failure};

/// Instructions of the kernel's filter language, of 8 bytes each.
#[derive(Debug, Clone)]
pub(super) struct Filter(Vec<u64>);

impl Filter {
    /// The filter that lies in a run directory, if one does.
    pub(super) fn read(run_dir: &Path) -> Result<Option<Self>, Failure> {
        let wrong = |why: &str| Failure::new(format!("cannot read {FILTER_NAME}: {why}"));
        let bytes = match std::fs::read(run_dir.join(FILTER_NAME)) {
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|err| wrong(&err.to_string()))?,
        };
        let (instructions, rest) = bytes.as_chunks::<{ size_of::<u64>() }>();
        if instructions.is_empty() || !rest.is_empty() {
            return Err(wrong("it holds no whole instructions"));
        }
        let instructions = instructions.iter().map(|&bytes| u64::from_ne_bytes(bytes));
        Ok(Some(Self(instructions.collect())))
    }

    /// From here on this process, and all that it starts, makes no other calls. Takes CAP_SYS_ADMIN or no_new_privs. The spec
    /// may want the filter to be told of in the audit log, or to be taken less seriously by the processor.
    pub(super) fn install(&self, spec: &Spec) -> Result<(), Failure> {
        const _: () = assert!(size_of::<libc::sock_filter>() == size_of::<u64>());
        let linux = spec.linux().as_ref();
        let seccomp = linux.and_then(|linux| linux.seccomp().as_ref());
        let wanted = seccomp.and_then(|seccomp| seccomp.flags().as_ref());
        let bits = wanted.into_iter().flatten().map(|flag| match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => {
                libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW
            }
            // There is one thread, and nobody who is notified.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync
            | LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
        });
        let flags = bits.fold(0, |all, bit| all | bit);
        let program = libc::sock_fprog {
            len: u16::try_from(self.0.len()).map_err(|_| refused(Errno::E2BIG))?,
            filter: self.0.as_ptr().cast_mut().cast(),
        };
        // SAFETY: the kernel copies the instructions, which live until after the call, and checks each of them.
        let set = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                flags,
                &raw const program,
            )
        };
        Errno::result(set).map(drop).map_err(refused)
    }
}

fn refused(errno: Errno) -> Failure {
    Failure::new(format!(
        "cannot set the seccomp filter: {}",
        describe(errno)
    ))
}
