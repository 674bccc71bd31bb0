// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the kernel says about a process, from `/proc`.

use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use std::fs::{read_dir, read_to_string};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// What a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vitals {
    /// Number of threads.
    pub threads: usize,
    /// Number of open file descriptors.
    pub descriptors: usize,
    /// Number of mappings of shared memory: the guest's.
    pub shared_mappings: usize,
}

impl Vitals {
    /// Of the process with this id.
    ///
    /// # Errors
    /// There is no such process.
    pub fn of(process: u32) -> io::Result<Self> {
        let proc = PathBuf::from(format!("/proc/{process}"));
        let shared = |line: &&str| line.split_whitespace().nth(1).is_some_and(|mode| mode.ends_with('s'));
        Ok(Self {
            threads: read_dir(proc.join("task"))?.count(),
            descriptors: read_dir(proc.join("fd"))?.count(),
            shared_mappings: read_to_string(proc.join("maps"))?.lines().filter(shared).count(),
        })
    }
}

/// Resident memory of a process in KiB.
///
/// # Errors
/// There is no such process.
pub fn resident_kib(process: u32) -> io::Result<u64> {
    status_field(&PathBuf::from(format!("/proc/{process}/status")), "VmRSS:")
}

/// What of its resident memory no file is behind, so that nobody shares it, in KiB.
///
/// # Errors
/// There is no such process.
pub fn anonymous_kib(process: u32) -> io::Result<u64> {
    status_field(&PathBuf::from(format!("/proc/{process}/status")), "RssAnon:")
}

/// The processes that the main thread of a process started and that are there still.
///
/// # Errors
/// There is no such process, or the kernel does not tell (`CONFIG_PROC_CHILDREN`).
pub fn children(process: u32) -> io::Result<Vec<u32>> {
    let children = read_to_string(format!("/proc/{process}/task/{process}/children"))?;
    Ok(children.split_whitespace().filter_map(|id| id.parse().ok()).collect())
}

/// How often the threads of a process have gone to sleep of their own accord, which is as often as they were woken.
///
/// # Errors
/// There is no such process.
pub fn wakeups(process: u32) -> io::Result<u64> {
    let mut sum = 0;
    for thread in read_dir(format!("/proc/{process}/task"))? {
        sum += status_field(&thread?.path().join("status"), "voluntary_ctxt_switches:")?;
    }
    Ok(sum)
}

/// How long the threads of a process have run on any CPU, in the kernel or not.
///
/// # Errors
/// There is no such process.
pub fn cpu_time(process: u32) -> io::Result<Duration> {
    let process = i32::try_from(process).map_err(io::Error::other)?;
    Ok(clock_getcpuclockid(Pid::from_raw(process))?.now()?.into())
}

fn status_field(path: &std::path::Path, name: &str) -> io::Result<u64> {
    let status = read_to_string(path)?;
    let field = status.lines().find_map(|line| line.strip_prefix(name));
    let number = field.and_then(|field| field.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| io::Error::other(format!("{} has no number after {name}", path.display())))
}
