//! Puts a process under a system call filter that was compiled ahead.
#![allow(unsafe_code)]

use std::path::Path;

use nix::errno::Errno;
use oci_spec::runtime::{Capabilities, Capability, Spec};

use super::executor::describe;
use super::protocol::{FILTER_NAME, Failure};
use crate::core::capabilities::CapabilitySet;

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

    /// From here on this process, and all that it starts, makes no other calls. Takes CAP_SYS_ADMIN or no_new_privs.
    pub(super) fn install(&self) -> Result<(), Failure> {
        const _: () = assert!(size_of::<libc::sock_filter>() == size_of::<u64>());
        let program = libc::sock_fprog {
            len: u16::try_from(self.0.len()).map_err(|_| refused(Errno::E2BIG))?,
            filter: self.0.as_ptr().cast_mut().cast(),
        };
        // SAFETY: the kernel copies the instructions, which live until after the call, and checks each of them.
        let set = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                0,
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

/// The last walls around a container's process, put up when libcontainer is through with it.
///
/// libcontainer compiles a spec's filter at every start. This one is ready, so it is left out of what libcontainer is
/// told, and installed behind its back. Without no_new_privs that takes a capability which the process must not keep: it
/// is added to what libcontainer is told, and dropped here.
#[derive(Debug, Clone)]
pub(super) struct Walls {
    filter: Filter,
    /// What the process has in the end, effective and permitted, if libcontainer leaves it more.
    rights: Option<(CapabilitySet, CapabilitySet)>,
}

impl Walls {
    /// Splits a container's spec into what libcontainer is told and what is done here.
    pub(super) fn take(filter: Filter, spec: &mut Spec) -> Self {
        if let Some(linux) = spec.linux_mut() {
            linux.set_seccomp(None);
        }
        let mut rights = None;
        if let Some(process) = spec.process_mut()
            && process.no_new_privileges() != Some(true)
        {
            let mut told = process.capabilities().clone().unwrap_or_default();
            let of = |set: &Option<Capabilities>| set.clone().unwrap_or_default();
            let (mut effective, mut permitted) = (of(told.effective()), of(told.permitted()));
            rights = Some((
                CapabilitySet::those(effective.iter().copied()),
                CapabilitySet::those(permitted.iter().copied()),
            ));
            effective.insert(Capability::SysAdmin);
            permitted.insert(Capability::SysAdmin);
            told.set_effective(Some(effective))
                .set_permitted(Some(permitted));
            process.set_capabilities(Some(told));
        }
        Self { filter, rights }
    }

    /// Puts them up around this process.
    pub(super) fn close(&self) -> Result<(), Failure> {
        self.filter.install()?;
        match self.rights {
            Some((effective, permitted)) => keep_only(effective, permitted).map_err(|errno| {
                Failure::new(format!("cannot drop capabilities: {}", describe(errno)))
            }),
            None => Ok(()),
        }
    }
}

/// `struct __user_cap_header_struct` of `linux/capability.h`.
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`: one for the lower 32 capabilities and one for the upper.
#[repr(C)]
#[derive(Default, Clone, Copy, PartialEq, Eq)]
struct Half {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Drops all other capabilities; what may be inherited stays.
fn keep_only(effective: CapabilitySet, permitted: CapabilitySet) -> Result<(), Errno> {
    let mut halves = capabilities()?;
    for (number, half) in halves.iter_mut().enumerate() {
        // Truncation takes the half that is meant.
        #[allow(clippy::cast_possible_truncation)]
        let part = |set: CapabilitySet| (set.0 >> (32 * number)) as u32;
        half.effective = part(effective);
        half.permitted = part(permitted);
    }
    let header = HEADER;
    // SAFETY: reads a header and two halves, which live until after the call.
    let set = unsafe { libc::syscall(libc::SYS_capset, &raw const header, halves.as_ptr()) };
    Errno::result(set)?;
    // A container must not run with more than it was given, whatever happened.
    if capabilities()? == halves {
        Ok(())
    } else {
        Err(Errno::EPERM)
    }
}

/// Version 3, of this process.
const HEADER: Header = Header {
    version: 0x2008_0522,
    pid: 0,
};

fn capabilities() -> Result<[Half; 2], Errno> {
    let mut halves = [Half::default(); 2];
    let mut header = HEADER;
    // SAFETY: reads a header and writes two halves, which live until after the call.
    let got = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, halves.as_mut_ptr()) };
    Errno::result(got)?;
    Ok(halves)
}
