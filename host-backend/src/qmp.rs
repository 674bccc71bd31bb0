// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a running QEMU says of the functions that are assigned to its guest, by its QEMU Machine Protocol.
//!
//! The protocol is a JSON object a line (docs/interop/qmp-spec.rst of QEMU). What is asked for here is as old as QEMU's
//! object model: `query-pci`, `qom-list` and `qom-get`.

use crate::printable::printable;
use crate::sys;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Write};
use std::num::NonZeroI32;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use virtio_irq_proto::{DEVICE_ID, PciAddress};

/// How long QEMU may take for all answers together. Its main loop answers in milliseconds, but not while it starts.
const PATIENCE: Duration = Duration::from_secs(20);

/// Longest line: that of `query-pci` for a few hundred devices has a tenth of it.
const LINE_BYTES: u64 = 1 << 20;

/// Where QEMU keeps the devices of its command line and those that were plugged in: with an id, and without.
const DEVICES: [&str; 2] = ["/machine/peripheral", "/machine/peripheral-anon"];

/// Buses are not nested deeper than they can be numbered.
const DEPTH: usize = 256;

/// What is known of a VMM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vmm {
    /// The process that made the socket: QEMU, unless something else made it for it.
    pub pid: i32,
    /// In the order in which QEMU lists them.
    pub functions: Vec<Assignment>,
    /// The virtio-irq devices that it shows to its guest.
    pub devices: Vec<Shown>,
}

/// A virtio-irq device of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The socket of its backend, as QEMU was told it.
    pub socket: Option<PathBuf>,
    /// Where the guest sees it, if that is known.
    pub guest: Option<PciAddress>,
}

impl Vmm {
    /// The device whose backend listens at `socket`, or any where the socket has no name.
    pub fn device_of(&self, socket: Option<&Path>) -> Option<&Shown> {
        let Some(ours) = socket else { return self.devices.first() };
        self.devices
            .iter()
            .find(|device| device.socket.as_deref().is_some_and(|theirs| is_same(ours, theirs)))
    }
}

/// Whether QEMU means our socket. It can be in another directory or root, where only the last part says something.
fn is_same(ours: &Path, theirs: &Path) -> bool {
    let file = |path: &Path| path.metadata().map(|file| (file.dev(), file.ino()));
    match (file(ours), file(theirs)) {
        (Ok(ours), Ok(theirs)) => ours == theirs,
        _ => ours.file_name() == theirs.file_name(),
    }
}

/// A function that is assigned to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Where it is on the host.
    pub host: PciAddress,
    /// Where the guest sees it. Behind a bridge nobody knows before the guest's firmware has numbered the buses.
    pub guest: Option<PciAddress>,
}

impl Assignment {
    /// It as `--device` has it, of the VMM's process `pid`.
    pub fn spec(&self, pid: i32) -> String {
        let guest = self.guest.map(|guest| format!(",guest={guest}")).unwrap_or_default();
        format!("{}{guest},vfio=pid:{pid}", self.host)
    }
}

/// Why QEMU cannot be asked.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum QmpError {
    #[error("cannot connect to QEMU at {}: {source}; start it with -qmp unix:{},server=on,wait=off", path.display(), path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error(
        "may not connect to QEMU at {}: be the user who owns the file, or of its group where that may write; a confined \
         daemon has no more rights than that as root either", path.display()
    )]
    Permission { path: PathBuf },
    #[error(
        "QEMU at {} runs outside of this process's PID namespace: run both in the same one, or do without --qmp and give \
         --device ADDRESS,guest=ADDRESS,vfio=socket:PATH", path.display()
    )]
    Namespace { path: PathBuf },
    #[error("QEMU at {} does not answer: {source}; QMP serves one client at a time, end the other one", path.display())]
    Connection { path: PathBuf, source: io::Error },
    #[error("what listens at {} is no QMP socket of QEMU: {what}", path.display())]
    Protocol { path: PathBuf, what: String },
    #[error("QEMU at {} refuses {command}: {why}", path.display())]
    Refused { path: PathBuf, command: &'static str, why: String },
}

/// Asks the QEMU whose QMP socket this is, until `stop` is readable.
///
/// # Errors
/// It cannot be asked.
pub fn ask(path: &Path, stop: Option<BorrowedFd<'_>>) -> Result<Vmm, QmpError> {
    let mut qmp = Qmp::open(path, PATIENCE, stop)?;
    qmp.greet()?;
    let pci = qmp.execute("query-pci", json!({}))?;
    let (mut functions, mut devices) = (Vec::new(), Vec::new());
    for parent in DEVICES {
        let children = qmp.execute("qom-list", json!({ "path": parent }))?;
        for child in children.as_array().into_iter().flatten() {
            let (Some(kind), Some(name)) = (child["type"].as_str(), child["name"].as_str()) else { continue };
            let device = format!("{parent}/{name}");
            if kind.starts_with("child<vfio-pci") {
                functions.extend(qmp.assignment(&device, &pci)?);
            } else if kind.starts_with("child<vhost-user") {
                devices.extend(qmp.shown(&device, &pci)?);
            }
        }
    }
    Ok(Vmm { pid: qmp.pid, functions, devices })
}

struct Qmp<'a> {
    stream: BufReader<UnixStream>,
    pid: i32,
    path: PathBuf,
    deadline: Instant,
    stop: Option<BorrowedFd<'a>>,
}

impl<'a> Qmp<'a> {
    fn open(path: &Path, patience: Duration, stop: Option<BorrowedFd<'a>>) -> Result<Self, QmpError> {
        let open = || -> rustix::io::Result<UnixStream> {
            // Connecting waits for room in the queue of a server that takes nobody, unless told not to.
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            connect(&stream, &SocketAddrUnix::new(path)?)?;
            Ok(stream.into())
        };
        let stream = open().map_err(|errno| {
            let (path, source) = (path.to_owned(), errno.into());
            match errno {
                Errno::AGAIN => QmpError::Connection { path, source },
                Errno::ACCESS => QmpError::Permission { path },
                _ => QmpError::Connect { path, source },
            }
        })?;
        let peer = sys::peer_process(stream.as_fd());
        let peer = peer.map_err(|source| QmpError::Connection { path: path.to_owned(), source })?;
        let Some(pid) = peer.map(NonZeroI32::get) else {
            return Err(QmpError::Namespace { path: path.to_owned() });
        };
        let (stream, deadline) = (BufReader::new(stream), Instant::now() + patience);
        Ok(Self { stream, pid, path: path.to_owned(), deadline, stop })
    }

    fn greet(&mut self) -> Result<(), QmpError> {
        let greeting = self.line()?;
        if greeting.get("QMP").is_none() {
            return Err(self.unexpected(&greeting));
        }
        self.execute("qmp_capabilities", json!({})).map(drop)
    }

    fn assignment(&mut self, device: &str, pci: &Value) -> Result<Option<Assignment>, QmpError> {
        // A device that another option than host= named has an empty one.
        let Some(host) = self.get(device, "host")?.and_then(|host| host.as_str()?.parse().ok()) else {
            return Ok(None);
        };
        Ok(Some(Assignment { host, guest: self.place(device, pci)? }))
    }

    /// A vhost-user device, if it is a virtio-irq device.
    fn shown(&mut self, device: &str, pci: &Value) -> Result<Option<Shown>, QmpError> {
        if self.get(device, "virtio-id")?.and_then(|id| id.as_u64()) != Some(DEVICE_ID.into()) {
            return Ok(None);
        }
        let socket = match self.get(device, "chardev")? {
            Some(Value::String(chardev)) => self.get(&format!("/chardevs/{chardev}"), "addr")?,
            _ => None,
        };
        let socket = socket.and_then(|address| address["path"].as_str().map(PathBuf::from));
        Ok(Some(Shown { socket, guest: self.place(device, pci)? }))
    }

    /// Where the guest sees a device, as far as it is known.
    fn place(&mut self, device: &str, pci: &Value) -> Result<Option<PciAddress>, QmpError> {
        let bus = self.bus_of(device, pci, 0)?;
        Ok(bus.zip(self.devfn(device)?).map(|(bus, devfn)| PciAddress { segment: 0, bus, devfn }))
    }

    /// Number of the bus that a device is on, as far as it is known.
    fn bus_of(&mut self, device: &str, pci: &Value, depth: usize) -> Result<Option<u8>, QmpError> {
        let Some(Value::String(bus)) = self.get(device, "parent_bus")? else { return Ok(None) };
        // The bus of a bridge is the bridge's child; that of a host bridge is the child of something without an address.
        let Some((bridge, _)) = bus.rsplit_once('/').filter(|_| depth < DEPTH) else { return Ok(None) };
        let Some(devfn) = self.devfn(bridge)? else { return Ok(Some(0)) };
        let Some(above) = self.bus_of(bridge, pci, depth + 1)? else { return Ok(None) };
        let number = secondary(pci, above, devfn);
        // Not numbered yet.
        Ok(number.filter(|number| *number != 0))
    }

    fn devfn(&mut self, device: &str) -> Result<Option<u8>, QmpError> {
        let addr = self.get(device, "addr")?;
        Ok(addr.and_then(|addr| u8::try_from(addr.as_i64()?).ok()))
    }

    /// A property, if the object has it.
    fn get(&mut self, object: &str, property: &str) -> Result<Option<Value>, QmpError> {
        match self.execute("qom-get", json!({ "path": object, "property": property })) {
            Ok(value) => Ok(Some(value)),
            Err(QmpError::Refused { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn execute(&mut self, command: &'static str, arguments: Value) -> Result<Value, QmpError> {
        let request = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        let written = self.stream.get_mut().write_all(request.as_bytes());
        written.map_err(|source| self.failed(source))?;
        loop {
            let mut answer = self.line()?;
            // Events come when they come.
            if answer.get("event").is_some() {
                continue;
            }
            if let Some(error) = answer.get("error") {
                let why = printable(error["desc"].as_str().unwrap_or("without a reason"));
                return Err(QmpError::Refused { path: self.path.clone(), command, why });
            }
            return match answer.get_mut("return") {
                Some(value) => Ok(value.take()),
                None => Err(self.unexpected(&answer)),
            };
        }
    }

    fn line(&mut self) -> Result<Value, QmpError> {
        let mut line = Vec::new();
        // A server that sends a byte now and then is not waited for longer than one that sends nothing.
        while line.last() != Some(&b'\n') {
            if self.stream.buffer().is_empty() {
                self.wait().map_err(|source| self.failed(source))?;
            }
            let (count, ended) = match self.stream.fill_buf() {
                Ok(some) => {
                    let end = some.iter().position(|byte| *byte == b'\n');
                    let count = end.map_or(some.len(), |end| end + 1);
                    line.extend_from_slice(some.get(..count).unwrap_or(some));
                    (count, count == 0)
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(self.failed(error)),
            };
            self.stream.consume(count);
            if ended {
                return Err(self.failed(io::ErrorKind::UnexpectedEof.into()));
            }
            if line.len() as u64 > LINE_BYTES {
                return Err(self.protocol("a line does not end"));
            }
        }
        serde_json::from_slice(&line).map_err(|error| self.protocol(&error.to_string()))
    }

    /// Until there is more to read.
    fn wait(&self) -> io::Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        let stream = self.stream.get_ref().as_fd();
        let mut fds =
            [Some(stream), self.stop].map(|fd| PollFd::from_borrowed_fd(fd.unwrap_or(stream), PollFlags::IN));
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            Ok(_) if self.stop.is_some() && !fds[1].revents().is_empty() => Err(Errno::CANCELED.into()),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn failed(&self, source: io::Error) -> QmpError {
        QmpError::Connection { path: self.path.clone(), source }
    }

    fn unexpected(&self, answer: &Value) -> QmpError {
        let start: String = answer.to_string().chars().take(80).collect();
        self.protocol(&format!("it says {start}"))
    }

    fn protocol(&self, what: &str) -> QmpError {
        QmpError::Protocol { path: self.path.clone(), what: printable(what) }
    }
}

/// Number of the bus behind the bridge at this place, in the answer to `query-pci`.
fn secondary(pci: &Value, bus: u8, devfn: u8) -> Option<u8> {
    let mut lists: Vec<&Value> = pci.as_array()?.iter().map(|bus| &bus["devices"]).collect();
    while let Some(list) = lists.pop() {
        for device in list.as_array().into_iter().flatten() {
            let bridge = &device["pci_bridge"];
            let place = [&device["bus"], &device["slot"], &device["function"]].map(Value::as_u64);
            let wanted = [u64::from(bus), u64::from(devfn >> 3), u64::from(devfn & 7)];
            if place == wanted.map(Some) {
                return bridge["bus"]["secondary"].as_u64().and_then(|number| u8::try_from(number).ok());
            }
            lists.push(&bridge["devices"]);
        }
    }
    None
}

#[cfg(test)]
pub(crate) mod tests;
