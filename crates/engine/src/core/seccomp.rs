//! The default system call filter: an allow-list with the behaviour Docker documents for its own.
//!
//! Everything not named answers EPERM. Calls that only make sense with a capability are allowed with that capability.
//! Foreign system call tables (32-bit x86, x32) are not part of the filter's architectures, so libseccomp kills a
//! process that uses them; that also closes the way round the socket rule through `socketcall`.

mod profile;

use std::collections::BTreeSet;

use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompBuilder, LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

pub use profile::Profile;

use super::capabilities::CapabilitySet;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}: namespaces are for those with CAP_SYS_ADMIN.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;
const LOW_32_BITS: u64 = 0xffff_ffff;

/// Calls every container may make, as 64-bit architectures name them.
const ALWAYS: &str = "accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown \
    clock_adjtime clock_getres clock_gettime clock_nanosleep close close_range connect copy_file_range creat dup dup2 \
    dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd \
    eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod \
    fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat \
    fstatfs fsync ftruncate futex futex_requeue futex_wait futex_waitv futex_wake futimesat get_robust_list \
    get_thread_area getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups getitimer getpeername getpgid \
    getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit getrusage getsid getsockname getsockopt \
    gettid gettimeofday getuid getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch \
    io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit ioctl ioprio_get ioprio_set kill \
    landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lgetxattr link linkat listen listxattr \
    listxattrat llistxattr lremovexattr lseek lsetxattr lstat madvise map_shadow_stack membarrier memfd_create \
    memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mprotect mq_getsetattr mq_notify mq_open \
    mq_timedreceive mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap \
    name_to_handle_at nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc \
    pkey_free pkey_mprotect poll ppoll prctl pread64 preadv preadv2 prlimit64 process_mrelease process_vm_readv \
    process_vm_writev pselect6 ptrace pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recvfrom \
    recvmmsg recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall rmdir rseq \
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait \
    rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam \
    sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler \
    sched_yield seccomp select semctl semget semop semtimedop sendfile sendmmsg sendmsg sendto set_robust_list \
    set_thread_area set_tid_address setfsgid setfsuid setgid setgroups setitimer setpgid setpriority setregid setresgid \
    setresuid setreuid setrlimit setsid setsockopt setuid setxattr setxattrat shmat shmctl shmdt shmget shutdown \
    sigaltstack signalfd signalfd4 socketpair splice stat statfs statx symlink symlinkat sync sync_file_range syncfs \
    sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create \
    timerfd_gettime timerfd_settime times tkill truncate umask uname unlink unlinkat uretprobe utime utimensat utimes \
    vfork vmsplice wait4 waitid write writev";

/// Calls of one architecture.
const X86_64: &str = "arch_prctl modify_ldt";

/// Calls that come with a capability.
const WITH_CAPABILITY: &[(Capability, &str)] = &[
    (Capability::DacReadSearch, "open_by_handle_at"),
    (
        Capability::SysAdmin,
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount \
         open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount2 unshare \
         listmount statmount",
    ),
    (Capability::SysBoot, "reboot"),
    (Capability::SysChroot, "chroot"),
    (
        Capability::SysModule,
        "delete_module finit_module init_module",
    ),
    (Capability::SysPacct, "acct"),
    (Capability::SysPtrace, "kcmp pidfd_getfd process_madvise"),
    (Capability::SysRawio, "ioperm iopl"),
    (Capability::SysTime, "clock_settime settimeofday"),
    (Capability::SysTtyConfig, "vhangup"),
    (
        Capability::SysNice,
        "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    ),
    (Capability::Syslog, "syslog"),
    (Capability::Bpf, "bpf"),
    (Capability::Perfmon, "perf_event_open"),
];

/// Execution domains that programs ask for harmlessly (Linux, 32-bit numbers, and "what is it").
const PERSONALITIES: &[u64] = &[0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Address families allowed for `socket`, as (mask, value) over the low 32 bits: all but AF_ALG (38) and AF_VSOCK (40).
///
/// The kernel looks at 32 bits of the argument only, so comparing all 64 could be evaded; and two "not equal" rules
/// over one argument would be or-ed, which allows everything. Hence ranges by mask: 0-31, 32-35, 36-37, 39, 41, 42-43,
/// 44-47.
const SOCKET_FAMILIES: &[(u64, u64)] = &[
    (0xffff_ffe0, 0),
    (0xffff_fffc, 32),
    (0xffff_fffe, 36),
    (LOW_32_BITS, 39),
    (LOW_32_BITS, 41),
    (0xffff_fffe, 42),
    (0xffff_fffc, 44),
];

/// The filter for a process with these capabilities in its bounding set.
pub fn default_profile(capabilities: CapabilitySet) -> LinuxSeccomp {
    let mut allowed: BTreeSet<&str> = ALWAYS.split_whitespace().collect();
    if cfg!(target_arch = "x86_64") {
        allowed.extend(X86_64.split_whitespace());
    }
    for (capability, calls) in WITH_CAPABILITY {
        if capabilities.contains(*capability) {
            allowed.extend(calls.split_whitespace());
        }
    }
    let names = allowed.iter().map(|&name| name.to_owned()).collect();
    let mut rules = vec![rule(names, LinuxSeccompAction::ScmpActAllow, None, vec![])];
    for &persona in PERSONALITIES {
        let arg = arg(LinuxSeccompOperator::ScmpCmpEq, persona, None);
        rules.push(rule(
            vec!["personality".into()],
            LinuxSeccompAction::ScmpActAllow,
            None,
            vec![arg],
        ));
    }
    for &(mask, value) in SOCKET_FAMILIES {
        let arg = masked(mask, value);
        rules.push(rule(
            vec!["socket".into()],
            LinuxSeccompAction::ScmpActAllow,
            None,
            vec![arg],
        ));
    }
    if !capabilities.contains(Capability::SysAdmin) {
        let arg = masked(CLONE_NAMESPACES, 0);
        rules.push(rule(
            vec!["clone".into()],
            LinuxSeccompAction::ScmpActAllow,
            None,
            vec![arg],
        ));
        // A filter cannot see the flags of clone3, which are in memory; with ENOSYS C libraries fall back to clone.
        rules.push(rule(
            vec!["clone3".into()],
            LinuxSeccompAction::ScmpActErrno,
            Some(ENOSYS),
            vec![],
        ));
    }
    let architecture = if cfg!(target_arch = "aarch64") {
        Arch::ScmpArchAarch64
    } else {
        Arch::ScmpArchX86_64
    };
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(EPERM)
        .architectures(vec![architecture])
        .syscalls(rules)
        .build()
        .expect("every required field is given")
}

fn rule(
    names: Vec<String>,
    action: LinuxSeccompAction,
    errno: Option<u32>,
    args: Vec<LinuxSeccompArg>,
) -> LinuxSyscall {
    let mut builder = LinuxSyscallBuilder::default().names(names).action(action);
    if let Some(errno) = errno {
        builder = builder.errno_ret(errno);
    }
    if !args.is_empty() {
        builder = builder.args(args);
    }
    builder.build().expect("every required field is given")
}

/// `argument & mask == value`.
///
/// The runtime spec has the mask in `value` and what to compare with in `valueTwo`. The other way round every mask of zero (no
/// namespaces for `clone`) would allow everything, so the self-test tries these rules.
fn masked(mask: u64, value: u64) -> LinuxSeccompArg {
    arg(LinuxSeccompOperator::ScmpCmpMaskedEq, mask, Some(value))
}

fn arg(op: LinuxSeccompOperator, value: u64, value_two: Option<u64>) -> LinuxSeccompArg {
    arg_at(0, op, value, value_two)
}

fn arg_at(
    index: usize,
    op: LinuxSeccompOperator,
    value: u64,
    value_two: Option<u64>,
) -> LinuxSeccompArg {
    let mut builder = LinuxSeccompArgBuilder::default()
        .index(index)
        .value(value)
        .op(op);
    if let Some(value_two) = value_two {
        builder = builder.value_two(value_two);
    }
    builder.build().expect("every required field is given")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_alg_and_vsock_sockets_are_refused() {
        let refused: Vec<u64> = (0..48)
            .filter(|family| {
                !SOCKET_FAMILIES
                    .iter()
                    .any(|(mask, value)| family & mask == *value)
            })
            .collect();
        assert_eq!(refused, [38, 40]);
        // High bits, which the kernel ignores, change nothing.
        let evading = 38 | 1 << 32;
        assert!(
            !SOCKET_FAMILIES
                .iter()
                .any(|(mask, value)| evading & mask == *value)
        );
    }

    #[test]
    fn capabilities_bring_their_calls() {
        let names = |capabilities: &[&str]| -> BTreeSet<String> {
            let capabilities: Vec<String> =
                capabilities.iter().map(|&name| name.to_owned()).collect();
            let profile =
                default_profile(CapabilitySet::of(&capabilities, &[]).expect("known names"));
            let allow = |rule: &&LinuxSyscall| rule.action() == LinuxSeccompAction::ScmpActAllow;
            profile
                .syscalls()
                .iter()
                .flatten()
                .filter(allow)
                .flat_map(|rule| rule.names().clone())
                .collect()
        };
        let plain = names(&[]);
        let admin = names(&["SYS_ADMIN"]);
        assert!(
            !plain.contains("mount") && !plain.contains("unshare") && !plain.contains("keyctl")
        );
        assert!(admin.contains("mount") && admin.contains("clone3") && !admin.contains("keyctl"));
    }
}
