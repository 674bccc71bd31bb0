// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! virtio-serial ports.

use crate::failure;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use virtio_irq_lab_agent::{Failure, Message};

const CLASS: &str = "/sys/class/virtio-ports";

/// Where udev puts ports by name, and QEMU in the machine looks for them.
const BY_NAME: &str = "/dev/virtio-ports";

/// Whether the machine is going down.
pub(crate) static LEAVING: AtomicBool = AtomicBool::new(false);

/// The writing side of the runner's port.
#[derive(Clone)]
pub(crate) struct Port(Arc<Mutex<File>>);

impl Port {
    /// Waits for the port named `name` and opens it, for writing and for reading.
    pub(crate) fn open(name: &str) -> Result<(Self, File), Failure> {
        let open = || {
            wait_for(name)?;
            let file = OpenOptions::new().read(true).write(true).open(Path::new(BY_NAME).join(name))?;
            let mut writer = file.try_clone()?;
            // Ends a line that an earlier life of this machine left unfinished.
            writer.write_all(b"\n")?;
            Ok((Self(Arc::new(Mutex::new(writer))), file))
        };
        open().map_err(|error: io::Error| failure(&format!("open port {name}"), &error))
    }

    /// Sends one message. There is nobody to tell if that fails.
    pub(crate) fn say(&self, message: &Message) {
        let Ok(mut line) = serde_json::to_string(message) else { return };
        line.push('\n');
        let mut port = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A machine on its way down has taken the port away.
        if let Err(error) = port.write_all(line.as_bytes())
            && !LEAVING.load(Ordering::Relaxed)
        {
            eprintln!("lab agent: write to the runner: {error}");
        }
    }
}

/// Waits until the port exists. Its name comes from the device some time after the port itself and is announced by a
/// kernel event.
fn wait_for(name: &str) -> io::Result<()> {
    let events = kernel_events()?;
    let mut event = [0; 4096];
    loop {
        link_ports()?;
        if Path::new(BY_NAME).join(name).exists() {
            return Ok(());
        }
        recv(events.as_raw_fd(), &mut event, MsgFlags::empty())?;
    }
}

fn kernel_events() -> io::Result<OwnedFd> {
    let events = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkKObjectUEvent,
    )?;
    // Group 1: what the kernel says, not udev's echo of it.
    bind(events.as_raw_fd(), &NetlinkAddr::new(0, 1))?;
    Ok(events)
}

/// Links all ports that have a name by that name.
fn link_ports() -> io::Result<()> {
    fs::create_dir_all(BY_NAME)?;
    let entries = match fs::read_dir(CLASS) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let Ok(name) = fs::read_to_string(entry.path().join("name")) else { continue };
        let link = Path::new(BY_NAME).join(name.trim());
        if !name.trim().is_empty() && !link.exists() {
            symlink(PathBuf::from("/dev").join(entry.file_name()), link)?;
        }
    }
    Ok(())
}
