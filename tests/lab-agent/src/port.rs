// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! virtio-serial ports.

use crate::failure;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::MsgFlags;
use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use virtio_irq_lab_agent::{Failure, Message};

const CLASS: &str = "/sys/class/virtio-ports";

const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_console";

/// Where udev puts ports by name, and QEMU in the machine looks for them.
const BY_NAME: &str = "/dev/virtio-ports";

/// Whether the machine is going down.
pub(crate) static LEAVING: AtomicBool = AtomicBool::new(false);

/// The writing side of the runner's port.
#[derive(Clone)]
pub(crate) struct Port(Arc<Shared>);

struct Shared {
    name: String,
    writer: Mutex<File>,
    /// The port was taken away and will be back.
    away: AtomicBool,
    /// What it is read by from then on.
    back: Sender<File>,
}

/// The reading side.
pub(crate) struct Requests {
    shared: Arc<Shared>,
    reader: BufReader<File>,
    back: Receiver<File>,
}

impl Port {
    /// Waits for the port named `name` and opens it, for writing and for reading.
    pub(crate) fn open(name: &str) -> Result<(Self, Requests), Failure> {
        let open = || {
            let (reader, mut writer) = open_both(name)?;
            // Ends a line that an earlier life of this machine left unfinished.
            writer.write_all(b"\n")?;
            let (back, comes_back) = channel();
            let (name, writer, away) = (name.to_owned(), Mutex::new(writer), AtomicBool::new(false));
            let shared = Arc::new(Shared { name, writer, away, back });
            let reader = BufReader::new(reader);
            Ok((Self(Arc::clone(&shared)), Requests { shared, reader, back: comes_back }))
        };
        open().map_err(|error: io::Error| failure(&format!("open port {name}"), &error))
    }

    /// Sends one message. There is nobody to tell if that fails.
    pub(crate) fn say(&self, message: &Message) {
        let Ok(mut line) = serde_json::to_string(message) else { return };
        line.push('\n');
        // A machine on its way down has taken the port away.
        if let Err(error) = self.writer().write_all(line.as_bytes())
            && !LEAVING.load(Ordering::Relaxed)
        {
            eprintln!("lab agent: write to the runner: {error}");
        }
    }

    /// Does something without the port, for which the machine sleeps.
    ///
    /// Linux's driver forgets that the other side has the port open when it resumes, and hears of it no more: from 7.3 on it asks
    /// before it has given the device buffers for the answer (`virtcons_restore`). Then nothing can be written, and what is read
    /// ends. It also forgets what was on the way out. So the driver leaves the device before, and finds it anew after.
    pub(crate) fn without<T>(&self, act: impl FnOnce() -> T) -> Result<T, Failure> {
        let mut writer = self.writer();
        let take_away = || -> io::Result<String> {
            // All was written: the driver has one buffer on its way at a time.
            poll(&mut [PollFd::new(writer.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE)?;
            let device = device_of(&self.0.name)?;
            self.0.away.store(true, Ordering::Release);
            fs::write(Path::new(DRIVER).join("unbind"), &device)
                .inspect_err(|_| self.0.away.store(false, Ordering::Release))?;
            Ok(device)
        };
        let device = take_away().map_err(|error| failure("take the runner's port away", &error))?;
        let result = act();
        let mut bring_back = || -> io::Result<()> {
            fs::remove_file(Path::new(BY_NAME).join(&self.0.name))?;
            fs::write(Path::new(DRIVER).join("bind"), &device)?;
            let reader;
            (reader, *writer) = open_both(&self.0.name)?;
            self.0.back.send(reader).map_err(io::Error::other)
        };
        bring_back().map_err(|error| failure("bring the runner's port back", &error))?;
        Ok(result)
    }

    fn writer(&self) -> MutexGuard<'_, File> {
        self.0.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Requests {
    /// Waits for the next line; none when the runner has closed the port.
    pub(crate) fn next(&mut self) -> io::Result<Option<String>> {
        loop {
            let mut line = String::new();
            let read = self.reader.read_line(&mut line);
            if matches!(read, Ok(1..)) {
                return Ok(Some(line));
            }
            if !self.shared.away.load(Ordering::Acquire) {
                return read.map(|_| None);
            }
            self.reader = BufReader::new(self.back.recv().map_err(io::Error::other)?);
            self.shared.away.store(false, Ordering::Release);
        }
    }
}

/// The port for reading and for writing.
fn open_both(name: &str) -> io::Result<(File, File)> {
    wait_for(name)?;
    let file = OpenOptions::new().read(true).write(true).open(Path::new(BY_NAME).join(name))?;
    let writer = file.try_clone()?;
    Ok((file, writer))
}

/// The virtio device that the port is of.
fn device_of(name: &str) -> io::Result<String> {
    let port = fs::read_link(Path::new(BY_NAME).join(name))?;
    let device = fs::read_link(Path::new(CLASS).join(port.file_name().unwrap_or_default()).join("device"))?;
    Ok(device.file_name().unwrap_or_default().to_string_lossy().into_owned())
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
