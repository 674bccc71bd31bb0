// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `exec`: starts a VMM with devices that the daemon opened.

use super::qemu::object_id;
use crate::vfio::{BorrowError, Borrowed};
use clap::Args;
use rustix::io::{FdFlags, fcntl_setfd};
use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

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
    #[error(transparent)]
    Borrow(#[from] BorrowError),
    #[error("cannot start {}: {source}", program.display())]
    Start { program: PathBuf, source: io::Error },
}

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
            let loan = Borrowed::at(path)?;
            let keep = |fd: &dyn std::os::fd::AsFd| fcntl_setfd(fd.as_fd(), FdFlags::empty());
            // Closing its copy of the connection is what the VMM does at its end, however it ends.
            keep(&loan.device)
                .and_then(|()| keep(&loan.connection))
                .map_err(|errno| BorrowError::Receive { path: path.clone(), source: errno.into() })?;
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
