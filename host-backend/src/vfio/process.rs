// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device out of the process that has it open.
//!
//! `/proc/N/fd` tells which descriptors to look at; `pidfd_getfd(2)` duplicates them. Process and descriptor numbers can
//! change hands at any moment, so neither decides anything: the pidfd is one process for ever, and which function a
//! device is, is asked of the duplicate.
//!
//! A kernel that does not tell which function a device is still tells it the other way round: the group, which the VMM
//! has open too and nobody else can, opens the device of a given name. VFIO devices can be opened so more than once, and
//! all of them share the interrupts. The first to open one resets it, so this is only done while it is open already.

use super::claim::{Claim, ClaimError, NotYet, SupplyError};
use super::identity::{self, Identity};
use super::{Host, VfioDevice};
use crate::sys::GroupFile;
use rustix::fs::fstat;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use virtio_irq_proto::PciAddress;

/// The VMM's process, once it runs.
#[derive(Debug)]
pub(super) struct Process {
    which: Which,
    host: Host,
    function: PciAddress,
}

#[derive(Debug)]
enum Which {
    Running(Running),
    File(PathBuf),
    Told(ToldProcess),
}

/// The VMM's process, which somebody finds out while the daemon runs, and which can be another one with each frontend.
#[derive(Clone, Debug, Default)]
pub struct ToldProcess(Arc<Mutex<Told>>);

#[derive(Debug, Default)]
struct Told {
    process: Option<Arc<Running>>,
    /// The functions whose devices are to come from it.
    functions: BTreeSet<PciAddress>,
}

impl ToldProcess {
    /// Gets hold of the process that has this number now.
    ///
    /// # Errors
    /// There is none, or it cannot be watched.
    pub fn find(pid: u32) -> Result<FoundProcess, SupplyError> {
        Running::find(pid).map(Arc::new).map(FoundProcess)
    }

    /// It is this one from now on.
    pub fn set(&self, process: Option<FoundProcess>) {
        self.told().process = process.map(|FoundProcess(process)| process);
    }

    /// Whether the device of `function` is to come from it.
    pub fn is_for(&self, function: PciAddress) -> bool {
        self.told().functions.contains(&function)
    }

    fn present(&self) -> Option<Arc<Running>> {
        self.told().process.clone()
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A process that a [`ToldProcess`] can be.
#[derive(Clone, Debug)]
pub struct FoundProcess(Arc<Running>);

#[derive(Debug)]
struct Running {
    pid: u32,
    pidfd: OwnedFd,
}

/// A descriptor of another process that may be one of VFIO's.
struct Candidate {
    number: i32,
    is_group: bool,
}

/// A process id and a line break are far less.
const PIDFILE_LIMIT: u64 = 64;

impl Process {
    /// The process that has this number now.
    pub(super) fn running(pid: u32, host: &Host, function: PciAddress) -> Result<Self, SupplyError> {
        Ok(Self { which: Which::Running(Running::find(pid)?), host: host.clone(), function })
    }

    /// The process that somebody will tell.
    pub(super) fn told(process: &ToldProcess, host: &Host, function: PciAddress) -> Self {
        process.told().functions.insert(function);
        Self { which: Which::Told(process.clone()), host: host.clone(), function }
    }

    /// The process whose number is in the file whenever it is looked for.
    pub(super) fn by_file(path: &Path, host: &Host, function: PciAddress) -> Self {
        Self { which: Which::File(path.to_owned()), host: host.clone(), function }
    }

    pub(super) fn claim(&self) -> Result<Claim, ClaimError> {
        match &self.which {
            Which::Running(process) => process.claim_through(&self.host, self.function),
            Which::Told(process) => match process.present() {
                Some(process) => process.claim_through(&self.host, self.function),
                None => Err(ClaimError::NotYet(NotYet::NotTold)),
            },
            Which::File(path) => match self.host.opener() {
                Some(opener) => opener.claim_by_file(self.function, path),
                None => by_pidfile(&self.host, self.function, path),
            },
        }
    }
}

/// The device of `function` out of the process of `pidfd`, which had the number `pid` when that was opened.
pub(crate) fn out_of(
    host: &Host,
    function: PciAddress,
    pid: u32,
    pidfd: OwnedFd,
) -> Result<Claim, ClaimError> {
    Running { pid, pidfd }.claim(host, function)
}

/// The device of `function` out of the process whose number is in the file now.
pub(crate) fn by_pidfile(host: &Host, function: PciAddress, path: &Path) -> Result<Claim, ClaimError> {
    let pid = read_pidfile(path)?;
    let process = Running::open(pid).map_err(|errno| match errno {
        Errno::SRCH => ClaimError::NotYet(NotYet::NotRunning { pid }),
        errno => ClaimError::failed("watch the process of the pidfile")(errno.into()),
    })?;
    process.claim(host, function)
}

impl Running {
    fn open(pid: u32) -> Result<Self, Errno> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
        Ok(Self { pid, pidfd: pidfd_open(raw, PidfdFlags::empty())? })
    }

    fn find(pid: u32) -> Result<Self, SupplyError> {
        Self::open(pid).map_err(|errno| match errno {
            Errno::SRCH => SupplyError::NoProcess { pid },
            errno => SupplyError::Process { pid, source: errno.into() },
        })
    }

    /// With the opener, where there is one.
    fn claim_through(&self, host: &Host, function: PciAddress) -> Result<Claim, ClaimError> {
        match host.opener() {
            Some(opener) => opener.claim_of(function, self.pid, self.pidfd.as_fd()),
            None => self.claim(host, function),
        }
    }

    fn claim(&self, host: &Host, function: PciAddress) -> Result<Claim, ClaimError> {
        let device = self.device(host, function)?;
        let owner = self.pidfd.try_clone().map_err(ClaimError::failed("duplicate a pidfd"))?;
        Ok(Claim { device, owner: Some(owner) })
    }

    fn device(&self, host: &Host, function: PciAddress) -> Result<VfioDevice, ClaimError> {
        let candidates = self.candidates(host)?;
        let mut unknown = false;
        for candidate in candidates.iter().filter(|candidate| !candidate.is_group) {
            let Some(fd) = self.duplicate(candidate.number)? else { continue };
            // The number can have become that of another file.
            let Ok(device) = VfioDevice::new(fd) else { continue };
            match identity::of(&device, host, function) {
                Identity::Same => return Ok(device),
                Identity::Other => {}
                Identity::Unknown => unknown = true,
            }
        }
        if unknown && is_open(host, function) {
            for candidate in candidates.iter().filter(|candidate| candidate.is_group) {
                let Some(fd) = self.duplicate(candidate.number)? else { continue };
                let Ok(group) = GroupFile::new(fd) else { continue };
                if is_group_of(group.fd(), host, function) {
                    return open_by_group(&group, function);
                }
            }
        }
        Err(ClaimError::NotYet(NotYet::NotOpen { pid: self.pid, function }))
    }

    /// Descriptors with names of VFIO's.
    fn candidates(&self, host: &Host) -> Result<Vec<Candidate>, ClaimError> {
        let directory = host.path("proc").join(self.pid.to_string()).join("fd");
        let explain = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => ClaimError::NotYet(NotYet::NotRunning { pid: self.pid }),
            io::ErrorKind::PermissionDenied => {
                ClaimError::Denied { pid: self.pid, operation: "look at the open files of", source: error }
            }
            _ => ClaimError::failed("list the open files of the VMM")(error),
        };
        let mut candidates = Vec::new();
        for entry in fs::read_dir(&directory).map_err(explain)? {
            let entry = entry.map_err(explain)?;
            let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let link = match fs::read_link(entry.path()) {
                Ok(link) => link,
                // Closed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(explain(error)),
            };
            let link = link.to_string_lossy();
            let name = link.strip_prefix("/dev/vfio/");
            let is_group = name.is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
            let is_device = name.is_some_and(|name| name.starts_with("devices/"));
            if is_group || is_device || link == "anon_inode:[vfio-device]" {
                candidates.push(Candidate { number, is_group });
            }
        }
        Ok(candidates)
    }

    /// A copy of a descriptor; `None` if the number is not open any more.
    fn duplicate(&self, number: i32) -> Result<Option<OwnedFd>, ClaimError> {
        match pidfd_getfd(&self.pidfd, number, PidfdGetfdFlags::empty()) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::BADF) => Ok(None),
            Err(Errno::SRCH) => Err(ClaimError::NotYet(NotYet::NotRunning { pid: self.pid })),
            Err(errno @ (Errno::PERM | Errno::ACCESS)) => Err(ClaimError::Denied {
                pid: self.pid,
                operation: "duplicate a descriptor of",
                source: errno.into(),
            }),
            Err(errno) => Err(ClaimError::failed("duplicate a descriptor of the VMM")(errno.into())),
        }
    }
}

/// Whether somebody has the function's device open. The kernel enables a function when VFIO opens it, and disables it when
/// the last one closes it (`vfio_pci_core_enable` and `_disable` in drivers/vfio/pci/vfio_pci_core.c).
fn is_open(host: &Host, function: PciAddress) -> bool {
    fs::read_to_string(host.function(function).join("enable")).is_ok_and(|count| count.trim() != "0")
}

/// Whether an open group is the function's.
fn is_group_of(group: BorrowedFd<'_>, host: &Host, function: PciAddress) -> bool {
    let Ok(link) = fs::read_link(host.function(function).join("iommu_group")) else { return false };
    let Some(number) = link.file_name() else { return false };
    let number = identity::device_number(&host.path("sys/class/vfio").join(number));
    fstat(group).is_ok_and(|stat| Some(stat.st_rdev) == number)
}

fn open_by_group(group: &GroupFile, function: PciAddress) -> Result<VfioDevice, ClaimError> {
    let name = CString::new(function.to_string())
        .map_err(|_| ClaimError::failed("name the function")(io::ErrorKind::InvalidInput.into()))?;
    let open = || VfioDevice::new(group.device(&name)?);
    open().map_err(ClaimError::failed("open the VFIO device through the VMM's group"))
}

fn read_pidfile(path: &Path) -> Result<u32, ClaimError> {
    let not_yet = || ClaimError::NotYet(NotYet::PidFile { path: path.to_owned() });
    // Opening a pipe must not wait for its writer.
    let file = match fs::File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(not_yet()),
        Err(error) => return Err(ClaimError::failed("open the pidfile")(error)),
    };
    let mut content = Vec::new();
    file.take(PIDFILE_LIMIT).read_to_end(&mut content).map_err(ClaimError::failed("read the pidfile"))?;
    let content = String::from_utf8_lossy(&content).into_owned();
    match content.trim() {
        "" => Err(not_yet()),
        text => match text.parse() {
            Ok(pid) if pid != 0 => Ok(pid),
            _ => Err(ClaimError::PidFile { path: path.to_owned(), content }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const FUNCTION: PciAddress = PciAddress { segment: 0, bus: 2, devfn: 0 };

    #[test]
    fn a_process_that_never_was_is_refused_at_once() {
        let error = Process::running(i32::MAX.cast_unsigned(), &Host::here(), FUNCTION).unwrap_err();
        assert!(matches!(error, SupplyError::NoProcess { .. }), "{error}");
    }

    #[test]
    fn a_process_without_the_device_has_it_not_yet() {
        let process = Process::running(std::process::id(), &Host::here(), FUNCTION).unwrap();
        let error = process.claim().unwrap_err();
        assert!(matches!(&error, ClaimError::NotYet(NotYet::NotOpen { function: FUNCTION, .. })), "{error}");
    }

    #[test]
    fn a_process_that_ended_is_recognised_by_its_pidfd() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::running(child.id(), &Host::here(), FUNCTION).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        // Whoever gets the number next is not looked at: duplicating goes through the pidfd.
        let Which::Running(running) = &process.which else { unreachable!() };
        let error = running.duplicate(0).unwrap_err();
        assert!(matches!(error, ClaimError::NotYet(NotYet::NotRunning { .. })), "{error}");
        assert!(process.claim().unwrap_err().is_not_yet());
    }

    #[test]
    fn a_pidfile_may_come_late_and_may_be_wrong() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.pid");
        let process = Process::by_file(&path, &Host::here(), FUNCTION);
        assert!(process.claim().unwrap_err().is_not_yet());
        for (content, is_not_yet) in
            [("", true), ("\n", true), ("x\n", false), ("-3", false), ("0", false), ("2147483647\n", true)]
        {
            fs::write(&path, content).unwrap();
            let error = process.claim().unwrap_err();
            assert_eq!(error.is_not_yet(), is_not_yet, "{content:?}: {error}");
        }
        fs::write(&path, format!("{}\n", std::process::id())).unwrap();
        let error = process.claim().unwrap_err();
        assert!(matches!(error, ClaimError::NotYet(NotYet::NotOpen { .. })), "{error}");
        fs::write(&path, [b'1'; 4096]).unwrap();
        assert!(matches!(process.claim(), Err(ClaimError::PidFile { .. })));
    }

    #[test]
    fn a_function_counts_as_open_by_its_enable_count() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::at(root.path());
        let directory = host.function(FUNCTION);
        fs::create_dir_all(&directory).unwrap();
        assert!(!is_open(&host, FUNCTION));
        fs::write(directory.join("enable"), "0\n").unwrap();
        assert!(!is_open(&host, FUNCTION));
        fs::write(directory.join("enable"), "1\n").unwrap();
        assert!(is_open(&host, FUNCTION));
    }
}
