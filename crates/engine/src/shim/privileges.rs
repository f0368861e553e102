//! What a process of a container may do: limits, user, system calls and capabilities, in the order in which they can be given
//! up.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, chdir, setgroups};
use oci_spec::runtime::{LinuxCapabilities, PosixRlimit, PosixRlimitType, Process, Spec};

use super::exec::give;
use super::executor::describe;
use super::filter::Filter;
use super::protocol::Failure;
use crate::core::capabilities::CapabilitySet;

/// Makes this process that of the spec, but for the program that it runs.
pub(super) fn assume(spec: &Spec, filter: Option<&Filter>) -> Result<(), Failure> {
    let fail = |what: &str| {
        let what = what.to_owned();
        move |errno: Errno| Failure::new(format!("cannot {what}: {}", describe(errno)))
    };
    let process = process_of(spec)?;
    for limit in process.rlimits().iter().flatten() {
        set_limit(limit).map_err(fail("set a resource limit"))?;
    }
    umask(Mode::from_bits_truncate(0o022));
    // What the daemon wishes for itself is not for containers.
    crate::io::memory::grow();
    let cwd = process.cwd();
    chdir(cwd).map_err(|errno| {
        Failure::new(format!(
            "chdir to cwd ({:?}) set in config.json failed: {}",
            cwd.display().to_string(),
            describe(errno)
        ))
    })?;
    let from = libc::STDERR_FILENO.cast_unsigned() + 1;
    // SAFETY: changes flags of descriptors, which stay open until this process becomes another.
    Errno::result(unsafe {
        libc::close_range(
            from,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC.cast_signed(),
        )
    })
    .map_err(fail("mark descriptors"))?;
    if process.no_new_privileges() == Some(true) {
        prctl::set_no_new_privs().map_err(fail("set no_new_privs"))?;
    }
    let who = process.user();
    give(&std::io::stdin(), who);
    give(&std::io::stdout(), who);
    give(&std::io::stderr(), who);
    let groups: Vec<Gid> = who
        .additional_gids()
        .iter()
        .flatten()
        .map(|&gid| Gid::from_raw(gid))
        .collect();
    setgroups(&groups).map_err(fail("set groups"))?;
    prctl::set_keepcaps(true).map_err(fail("keep capabilities"))?;
    let (uid, gid) = (Uid::from_raw(who.uid()), Gid::from_raw(who.gid()));
    nix::unistd::setresgid(gid, gid, gid).map_err(fail("set the group"))?;
    nix::unistd::setresuid(uid, uid, uid).map_err(fail("set the user"))?;
    prctl::set_keepcaps(false).map_err(fail("keep capabilities"))?;
    // The change of the user took them out of effect.
    let mut halves = capabilities().map_err(fail("read capabilities"))?;
    for half in &mut halves {
        half.effective = half.permitted;
    }
    set_capabilities(&halves).map_err(fail("set capabilities"))?;
    // Before the capabilities go: without no_new_privs the filter may be set by CAP_SYS_ADMIN only.
    if let Some(filter) = filter {
        filter.install(spec)?;
    }
    match process.capabilities() {
        Some(caps) => keep_only(caps).map_err(fail("drop capabilities")),
        None => Ok(()),
    }
}

/// The process of a spec.
pub(super) fn process_of(spec: &Spec) -> Result<&Process, Failure> {
    let process = spec.process().as_ref();
    process.ok_or_else(|| Failure::new("the container's spec has no process"))
}

fn set_limit(limit: &PosixRlimit) -> Result<(), Errno> {
    let resource = match limit.typ() {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    };
    let values = libc::rlimit {
        rlim_cur: limit.soft(),
        rlim_max: limit.hard(),
    };
    // SAFETY: the kernel reads the two values, which live until after the call.
    Errno::result(unsafe { libc::setrlimit(resource, &raw const values) }).map(drop)
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

/// Version 3, of this process.
const HEADER: Header = Header {
    version: 0x2008_0522,
    pid: 0,
};

/// Drops all capabilities but these, for good.
fn keep_only(caps: &LinuxCapabilities) -> Result<(), Errno> {
    let set = |set: &Option<oci_spec::runtime::Capabilities>| {
        CapabilitySet::those(set.iter().flatten().copied())
    };
    let bounding = set(caps.bounding());
    for number in 0..u64::BITS {
        if bounding.0 >> number & 1 == 1 {
            continue;
        }
        // SAFETY: takes numbers.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) };
        match Errno::result(dropped) {
            // The kernel has no more of them.
            Err(Errno::EINVAL) => break,
            dropped => dropped?,
        };
    }
    let (effective, permitted, inheritable) = (
        set(caps.effective()),
        set(caps.permitted()),
        set(caps.inheritable()),
    );
    let mut halves = [Half::default(); 2];
    for (number, half) in halves.iter_mut().enumerate() {
        // Truncation takes the half that is meant.
        #[allow(clippy::cast_possible_truncation)]
        let part = |set: CapabilitySet| (set.0 >> (32 * number)) as u32;
        half.effective = part(effective);
        half.permitted = part(permitted);
        half.inheritable = part(inheritable);
    }
    set_capabilities(&halves)?;
    // SAFETY: takes numbers.
    let cleared = unsafe {
        libc::prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_CLEAR_ALL,
            0,
            0,
            0,
        )
    };
    Errno::result(cleared)?;
    // A container must not run with more than it was given, whatever happened.
    if capabilities()? == halves {
        Ok(())
    } else {
        Err(Errno::EPERM)
    }
}

fn set_capabilities(halves: &[Half; 2]) -> Result<(), Errno> {
    let header = HEADER;
    // SAFETY: reads a header and two halves, which live until after the call.
    let set = unsafe { libc::syscall(libc::SYS_capset, &raw const header, halves.as_ptr()) };
    Errno::result(set).map(drop)
}

fn capabilities() -> Result<[Half; 2], Errno> {
    let mut halves = [Half::default(); 2];
    let mut header = HEADER;
    // SAFETY: reads a header and writes two halves, which live until after the call.
    let got = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, halves.as_mut_ptr()) };
    Errno::result(got)?;
    Ok(halves)
}
