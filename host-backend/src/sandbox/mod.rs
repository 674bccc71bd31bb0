// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the daemon gives up before it opens anything or listens to anybody.
//!
//! Everything that a guest, a VMM or a client of the daemon says is read after this, by a process without capabilities
//! that can start no program, can reach no network, and can change nothing in the file system but its own sockets. All
//! of it holds for every thread, because it is done before the first one starts.
//!
//! What stays possible is what the daemon is for: reading sysfs and procfs, its sockets, and the interrupts of VFIO
//! devices that a VMM gave it. What needs more than that is done by the [`opener`](crate::opener).

mod filter;

use filter::Role;
use landlock::{
    ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
    path_beneath_rules,
};
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, set_capabilities,
    set_no_new_privs,
};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The newest rights that are known here. Older kernels enforce those of them that they have.
const RIGHTS: ABI = ABI::V6;

/// What the daemon goes on using.
#[derive(Debug, Default)]
pub struct Needs {
    /// Directories in which it makes sockets, and removes them.
    sockets: Vec<PathBuf>,
    /// Whether it opens VFIO's character devices.
    pub character_devices: bool,
}

/// What is enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confinement {
    /// The kernel has Landlock.
    pub file_system: bool,
    /// The kernel has seccomp filters.
    pub system_calls: bool,
}

/// Why the daemon could not give something up.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum SandboxError {
    #[error("cannot give capabilities up: {0}")]
    Capabilities(io::Error),
    #[error("cannot restrict the use of the file system: {0}")]
    FileSystem(#[from] landlock::RulesetError),
    #[error("cannot restrict the system calls: {0}")]
    SystemCalls(#[from] filter::FilterError),
}

impl Needs {
    /// A socket will be at `path`.
    pub fn socket(&mut self, path: &Path) {
        let directory = match path.parent() {
            Some(directory) if directory != Path::new("") => directory,
            _ => Path::new("."),
        };
        self.sockets.push(directory.to_owned());
    }
}

impl Confinement {
    /// What this kernel does not have.
    pub fn missing(self) -> impl Iterator<Item = &'static str> {
        let landlock = (!self.file_system).then_some("Landlock (CONFIG_SECURITY_LANDLOCK, and lsm=landlock)");
        let seccomp = (!self.system_calls).then_some("seccomp filters (CONFIG_SECCOMP_FILTER)");
        landlock.into_iter().chain(seccomp)
    }
}

impl fmt::Display for Confinement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no capabilities, no new privileges")?;
        if self.file_system {
            f.write_str(", files by Landlock")?;
        }
        if self.system_calls {
            f.write_str(", system calls by seccomp")?;
        }
        Ok(())
    }
}

/// Confines the process for good. There must be no other thread yet: it would stay as it is.
///
/// # Errors
/// The kernel has the means and refused them. That it has not is no error.
pub fn confine(needs: &Needs) -> Result<Confinement, SandboxError> {
    keep_capabilities(CapabilitySet::empty())?;
    let file_system = restrict_files(needs)?;
    let system_calls = filter::apply(Role::Daemon)?;
    Ok(Confinement { file_system, system_calls })
}

/// The same for the opener, which keeps what it exists for. Landlock would not let it look into the VMM.
///
/// # Errors
/// As of [`confine`].
pub(crate) fn confine_opener() -> Result<(), SandboxError> {
    // `/proc/N/fd` of another user's VMM is searched as any directory is: CAP_SYS_PTRACE is not asked for there.
    let look_into = CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_READ_SEARCH;
    keep_capabilities(CapabilitySet::SYS_ADMIN | look_into)?;
    filter::apply(Role::Opener)?;
    Ok(())
}

/// Keeps those of the capabilities that the process has, and sees to it that no program gives it more.
fn keep_capabilities(kept: CapabilitySet) -> Result<(), SandboxError> {
    let give_up = || -> rustix::io::Result<()> {
        set_no_new_privs(true)?;
        // A service manager's filter may forbid it where there is nothing to give up.
        let had = capabilities(None)?;
        let permitted = had.permitted & kept;
        let sets = CapabilitySets { effective: permitted, permitted, inheritable: CapabilitySet::empty() };
        if sets != had {
            set_capabilities(None, sets)?;
        }
        match clear_ambient_capability_set() {
            // Without permitted and inheritable ones there are none anyway.
            Ok(()) | Err(Errno::PERM | Errno::INVAL) => Ok(()),
            Err(errno) => Err(errno),
        }
    };
    give_up().map_err(|errno| SandboxError::Capabilities(errno.into()))
}

fn restrict_files(needs: &Needs) -> Result<bool, SandboxError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let sockets = AccessFs::MakeSock | AccessFs::RemoveFile;
    let devices = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::ReadDir | AccessFs::IoctlDev;
    let character_devices = needs.character_devices.then_some("/dev/vfio/devices");
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(RIGHTS))?
        .handle_access(AccessNet::from_all(RIGHTS))?
        .scope(Scope::from_all(RIGHTS))?
        .create()?
        // Directories that are not there are left out: what is to be used in them fails with its own error.
        .add_rules(path_beneath_rules(["/sys", "/proc"], read))?
        .add_rules(path_beneath_rules(&needs.sockets, sockets))?
        .add_rules(path_beneath_rules(character_devices, devices))?
        .restrict_self()?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}
