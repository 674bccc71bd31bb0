// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `exec`: starts a VMM with devices that the daemon opened.

use super::qemu::object_id;
use clap::Args;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::convert::Infallible;
use std::ffi::OsString;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use virtio_irq_proto::PciAddress;

pub(super) const EXAMPLES: &str = "\
Examples:
  A card that a daemon with --device 02:00.0,guest=00:06.0,vfio=cdev:/run/irq.vfio lends:
    vhost-device-irq exec --vfio /run/irq.vfio,addr=06.0 -- qemu-system-x86_64 ...";

/// Options of `vhost-device-irq exec`.
#[derive(Args, Clone, Debug)]
pub struct ExecArgs {
    /// Borrow the device that a daemon lends at PATH (its vfio=cdev:PATH), and give it to the VMM as a vfio-pci with these
    /// further properties, such as addr=06.0. Repeatable
    #[arg(long = "vfio", value_name = "PATH[,PROPERTY=VALUE]...", required = true)]
    loans: Vec<Wanted>,

    /// Prefix of the QEMU objects' names
    #[arg(long, value_name = "NAME", default_value = "irq", value_parser = object_id)]
    id: String,

    /// QEMU and its arguments. Those that make it use the devices are added behind them
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// A value of `--vfio`.
#[derive(Clone, Debug)]
struct Wanted {
    path: PathBuf,
    /// As they follow QEMU's other properties.
    properties: String,
}

/// Why the VMM was not started.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum ExecError {
    #[error("cannot connect to {}: {source}. Is it the vfio=cdev: of a daemon that runs?", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("no VFIO device is to be had at {}: {source}", path.display())]
    Receive { path: PathBuf, source: io::Error },
    #[error("no VFIO device is to be had at {}: {why}", path.display())]
    Refused { path: PathBuf, why: String },
    #[error("cannot start {}: {source}", program.display())]
    Start { program: PathBuf, source: io::Error },
}

/// A device that a daemon lent.
#[derive(Debug)]
pub(crate) struct Borrowed {
    pub(crate) function: PciAddress,
    pub(crate) device: OwnedFd,
    /// The loan lasts until all copies of it are closed.
    pub(crate) connection: UnixStream,
}

/// The daemon answers at once.
const PATIENCE: Duration = Duration::from_secs(10);

impl std::str::FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, properties) = text.split_once(',').map_or((text, None), |(path, rest)| (path, Some(rest)));
        if path.is_empty() {
            return Err("the path is empty".to_owned());
        }
        let not_theirs = |property: &&str| {
            let name = property.split('=').next().unwrap_or_default();
            ["", "fd", "iommufd", "host", "sysfsdev"].contains(&name)
        };
        if let Some(property) = properties.and_then(|properties| properties.split(',').find(not_theirs)) {
            return Err(format!(
                "{property:?} is no further property: fd= and iommufd= are added, and say which device it is"
            ));
        }
        Ok(Self { path: path.into(), properties: properties.unwrap_or_default().to_owned() })
    }
}

impl ExecArgs {
    /// Becomes the VMM.
    pub(super) fn run(self) -> Result<Infallible, ExecError> {
        let mut arguments = vec!["-object".to_owned(), format!("iommufd,id={}-iommufd", self.id)];
        let mut borrowed = Vec::new();
        for (index, Wanted { path, properties }) in self.loans.iter().enumerate() {
            let loan = borrow_device(path)?;
            let keep = |fd: &dyn std::os::fd::AsFd| fcntl_setfd(fd.as_fd(), FdFlags::empty());
            // Closing its copy of the connection is what the VMM does at its end, however it ends.
            keep(&loan.device)
                .and_then(|()| keep(&loan.connection))
                .map_err(|errno| ExecError::Receive { path: path.clone(), source: errno.into() })?;
            eprintln!("{}: PCI function {}", path.display(), loan.function);
            let (fd, id) = (loan.device.as_raw_fd(), &self.id);
            let mut device = format!("vfio-pci,fd={fd},iommufd={id}-iommufd");
            // QEMU looks for the descriptor of a device by its id, and crashes where there is none (`vfio_device_set_fd` in
            // hw/vfio/device.c, of 11.1).
            if !properties.split(',').any(|property| property.starts_with("id=")) {
                device += &format!(",id={id}-vfio{index}");
            }
            if !properties.is_empty() {
                device += &format!(",{properties}");
            }
            arguments.extend(["-device".to_owned(), device]);
            borrowed.push(loan);
        }
        // There is one: clap sees to it.
        let mut command = self.command.into_iter();
        let program = command.next().unwrap_or_default();
        let source = Command::new(&program).args(command).args(arguments).exec();
        Err(ExecError::Start { program: program.into(), source })
    }
}

/// Borrows the device that a daemon lends at `path`.
pub(crate) fn borrow_device(path: &Path) -> Result<Borrowed, ExecError> {
    let receive = |source| ExecError::Receive { path: path.to_owned(), source };
    let connection =
        UnixStream::connect(path).map_err(|source| ExecError::Connect { path: path.to_owned(), source })?;
    connection.set_read_timeout(Some(PATIENCE)).map_err(receive)?;
    let mut bytes = [0; 1024];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::io::retry_on_intr(|| {
        recvmsg(&connection, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)
    });
    let message = message.map_err(|errno| receive(errno.into()))?;
    let device = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let text = String::from_utf8_lossy(bytes.get(..message.bytes).unwrap_or_default());
    let text = text.trim_end();
    match (text.parse(), device) {
        (Ok(function), Some(device)) => Ok(Borrowed { function, device, connection }),
        (_, _) => {
            let why = text.strip_prefix("error: ").unwrap_or("whoever listens there does not lend devices");
            // From another process: no control characters to the terminal.
            let why = why.chars().filter(|c| !c.is_control()).collect();
            Err(ExecError::Refused { path: path.to_owned(), why })
        }
    }
}
