// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The system calls that stay possible.
//!
//! A call that is not on the list fails with EPERM. It does not end the process: QEMU aborts when its device is gone, so
//! a call that a library makes one day would take the guest along.

use crate::sys::vfio_ioctls;
use libc::{c_long, c_ulong};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};
use std::collections::BTreeMap;

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// Which process it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// What a guest and a VMM talk to.
    Daemon,
    /// What opens for it.
    Opener,
}

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum FilterError {
    #[error("the filter cannot be built: {0}")]
    Build(#[from] BackendError),
    #[error("the kernel does not take the filter: {0}")]
    Apply(#[from] seccompiler::Error),
}

/// Of every program: memory, time, threads' own affairs, plain files.
const COMMON: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_pidfd_open,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sendmsg,
    libc::SYS_sigaltstack,
    libc::SYS_statx,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Of a program that waits for many things at once, in several threads, at sockets.
const DAEMON: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_pwrite64,
    libc::SYS_recvfrom,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sendto,
    libc::SYS_set_robust_list,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_signalfd4,
    libc::SYS_timer_create,
    libc::SYS_timer_delete,
    libc::SYS_timer_settime,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_umask,
    libc::SYS_unlinkat,
];

/// Older forms of these, which other architectures never had.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] = &[
    libc::SYS_accept,
    libc::SYS_epoll_wait,
    libc::SYS_lstat,
    libc::SYS_open,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_stat,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[];

/// `true` unless the kernel has no such filters.
pub(super) fn apply(role: Role) -> Result<bool, FilterError> {
    let allowed = program(rules(role)?, SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32))?;
    // What a new thread is to be is behind a pointer in clone3, where no filter sees it. The C library falls back on
    // clone, of which it does.
    let hidden = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let hidden = program(hidden, SeccompAction::Errno(libc::ENOSYS as u32), SeccompAction::Allow)?;
    match apply_filter(&hidden).and_then(|()| apply_filter(&allowed)) {
        Ok(()) => Ok(true),
        Err(seccompiler::Error::Seccomp(error) | seccompiler::Error::Prctl(error))
            if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL)) =>
        {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

fn program(
    rules: Rules,
    matched: SeccompAction,
    otherwise: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(rules, otherwise, matched, std::env::consts::ARCH.try_into()?)?.try_into()
}

fn rules(role: Role) -> Result<Rules, BackendError> {
    let mut rules = Rules::new();
    let mut allow = |calls: &[c_long]| rules.extend(calls.iter().map(|call| (*call, Vec::new())));
    allow(COMMON);
    allow(OLDER);
    match role {
        Role::Daemon => {
            allow(DAEMON);
            // By the first filter it ends in ENOSYS.
            allow(&[libc::SYS_clone3]);
            rules.insert(libc::SYS_clone, vec![has(0, libc::CLONE_THREAD as u64)?]);
            rules.insert(libc::SYS_socket, vec![is(0, libc::AF_UNIX as u64)?]);
            rules.insert(libc::SYS_socketpair, vec![is(0, libc::AF_UNIX as u64)?]);
            rules.insert(libc::SYS_prctl, vec![is(0, libc::PR_SET_NAME as u64)?]);
            // Its own limits: of open files it needs as many as it has sources.
            rules.insert(libc::SYS_prlimit64, vec![is(0, 0)?]);
        }
        Role::Opener => allow(&[libc::SYS_pidfd_getfd]),
    }
    // Memory that is not to be run.
    rules.insert(libc::SYS_mmap, vec![has_not(2, libc::PROT_EXEC as u64)?]);
    rules.insert(libc::SYS_mprotect, vec![has_not(2, libc::PROT_EXEC as u64)?]);
    let ioctls = vfio_ioctls().into_iter().chain([libc::FIONBIO as c_ulong, libc::FIOCLEX as c_ulong]);
    rules.insert(libc::SYS_ioctl, ioctls.map(|number| is(1, number)).collect::<Result<_, _>>()?);
    // For a panic, to end with a message.
    rules.insert(libc::SYS_tgkill, vec![is(2, libc::SIGABRT as u64)?]);
    Ok(rules)
}

fn is(argument: u8, value: u64) -> Result<SeccompRule, BackendError> {
    rule(argument, SeccompCmpOp::Eq, value)
}

fn has(argument: u8, bits: u64) -> Result<SeccompRule, BackendError> {
    rule(argument, SeccompCmpOp::MaskedEq(bits), bits)
}

fn has_not(argument: u8, bits: u64) -> Result<SeccompRule, BackendError> {
    rule(argument, SeccompCmpOp::MaskedEq(bits), 0)
}

fn rule(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?])
}
