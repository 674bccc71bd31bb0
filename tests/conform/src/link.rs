// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A vhost-user frontend that sends exactly what it is told to, right or wrong.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use vhost::vhost_user::message::FrontendReq;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Version 1 in the flags of a message.
pub const VERSION: u32 = 1;
/// Flag of a message that answers another one.
pub const REPLY: u32 = 1 << 2;
/// Flag of a message that wants to be acknowledged.
pub const NEED_REPLY: u32 = 1 << 3;
/// The feature bit that announces protocol features.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;

const MQ: u64 = 1;
const REPLY_ACK: u64 = 1 << 3;
const CONFIG: u64 = 1 << 9;

/// The connection of a frontend.
#[derive(Debug)]
pub struct Link {
    stream: UnixStream,
    /// Whether the backend acknowledges what has no answer of its own. Until that was agreed on it is assumed.
    acknowledges: bool,
}

/// One region of a memory table.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// Guest-physical address.
    pub guest: u64,
    /// Size in bytes.
    pub size: u64,
    /// Address at which the frontend says to map it.
    pub user: u64,
    /// Offset in the file.
    pub offset: u64,
    /// The file.
    pub fd: RawFd,
}

/// Why a message has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The backend closed the connection.
    #[error("the backend closed the connection")]
    Closed,
    /// The backend acknowledged with this number, which is not 0.
    #[error("the backend refused with {0}")]
    Refused(u64),
    /// The backend has no configuration space to read.
    #[error("the backend offers no protocol features, or not CONFIG (bit 9) among them")]
    NoConfig,
    /// The backend answered something else.
    #[error("the backend answered another message")]
    Other,
    /// The operating system failed, or the backend did not answer in time.
    #[error(transparent)]
    System(#[from] io::Error),
}

impl Link {
    /// Connects to a backend that answers within [`PATIENCE`](crate::PATIENCE).
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(path: &Path) -> io::Result<Self> {
        Self::connect_within(path, crate::PATIENCE)
    }

    /// Connects to a backend, each of whose answers may take `patience`, which is not zero.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect_within(path: &Path, patience: Duration) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self { stream, acknowledges: true })
    }

    /// The message header for a request.
    pub fn header(request: u32, flags: u32, size: u32) -> [u8; 12] {
        let mut header = [0; 12];
        for (at, value) in header.chunks_exact_mut(4).zip([request, flags, size]) {
            at.copy_from_slice(&value.to_ne_bytes());
        }
        header
    }

    /// Sends bytes, with descriptors.
    ///
    /// # Errors
    /// The backend closed the connection.
    pub fn send(&self, bytes: &[u8], fds: &[RawFd]) -> io::Result<()> {
        let sent = self.stream.send_with_fds(&[bytes], fds).map_err(io::Error::from)?;
        if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Receives one message: its request, flags and payload.
    ///
    /// # Errors
    /// None comes.
    pub fn receive(&mut self) -> Result<(u32, u32, Vec<u8>), LinkError> {
        let mut header = [0; 12];
        self.read(&mut header)?;
        let field =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (request, flags, size) = (field(0), field(4), field(8));
        let mut payload = vec![0; usize::try_from(size).map_err(|_| LinkError::Other)?.min(1 << 16)];
        self.read(&mut payload)?;
        Ok((request, flags, payload))
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<(), LinkError> {
        self.stream.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                LinkError::Closed
            }
            _ => LinkError::System(error),
        })
    }

    /// Waits until the backend has closed the connection, whatever it says before.
    ///
    /// # Errors
    /// It keeps it open.
    pub fn wait_closed(&mut self) -> io::Result<()> {
        let mut bytes = [0; 256];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Says that no more messages will come.
    ///
    /// # Errors
    /// The connection is closed.
    pub fn finish(&self) -> io::Result<()> {
        self.stream.shutdown(std::net::Shutdown::Write)
    }

    /// Sends a request and returns the payload of its reply.
    ///
    /// # Errors
    /// The backend does not answer it.
    pub fn ask(&mut self, request: FrontendReq, payload: &[u8]) -> Result<Vec<u8>, LinkError> {
        self.message(request, VERSION, payload, &[])?;
        self.reply(request)
    }

    /// Sends a request and waits for its acknowledgement, if the backend gives any.
    ///
    /// # Errors
    /// The backend refuses it.
    pub fn tell(&mut self, request: FrontendReq, payload: &[u8], fds: &[RawFd]) -> Result<(), LinkError> {
        if !self.acknowledges {
            return Ok(self.message(request, VERSION, payload, fds)?);
        }
        self.message(request, VERSION | NEED_REPLY, payload, fds)?;
        match u64_of(&self.reply(request)?)? {
            0 => Ok(()),
            refused => Err(LinkError::Refused(refused)),
        }
    }

    /// Sends a request and nothing else.
    ///
    /// # Errors
    /// The backend closed the connection.
    pub fn message(&self, request: FrontendReq, flags: u32, payload: &[u8], fds: &[RawFd]) -> io::Result<()> {
        let size = u32::try_from(payload.len()).map_err(io::Error::other)?;
        let header = Self::header(request as u32, flags, size);
        self.send(&[&header, payload].concat(), fds)
    }

    fn reply(&mut self, request: FrontendReq) -> Result<Vec<u8>, LinkError> {
        let (answered, flags, payload) = self.receive()?;
        if answered == request as u32 && flags & REPLY != 0 { Ok(payload) } else { Err(LinkError::Other) }
    }

    /// Sends a request that is answered with one number.
    ///
    /// # Errors
    /// The backend does not answer it.
    pub fn ask_number(&mut self, request: FrontendReq) -> Result<u64, LinkError> {
        u64_of(&self.ask(request, &[])?)
    }

    /// The feature bits that the backend offers.
    ///
    /// # Errors
    /// The backend does not answer.
    pub fn features(&mut self) -> Result<u64, LinkError> {
        self.ask_number(FrontendReq::GET_FEATURES)
    }

    /// Agrees on features and protocol features, up to where rings can be set up. From here on [`Link::tell`] works.
    ///
    /// # Errors
    /// The backend refuses, or has no configuration space.
    pub fn negotiate(&mut self, features: u64) -> Result<(), LinkError> {
        self.features()?;
        let protocol = self.ask_number(FrontendReq::GET_PROTOCOL_FEATURES)?;
        if protocol & CONFIG == 0 {
            return Err(LinkError::NoConfig);
        }
        let taken = protocol & (MQ | REPLY_ACK | CONFIG);
        self.message(FrontendReq::SET_PROTOCOL_FEATURES, VERSION, &taken.to_ne_bytes(), &[])?;
        self.message(FrontendReq::SET_OWNER, VERSION, &[], &[])?;
        self.acknowledges = taken & REPLY_ACK != 0;
        // The library behind our backend only looks at SET_FEATURES for whether acknowledgements are on.
        let features = features | PROTOCOL_FEATURES;
        self.tell(FrontendReq::SET_FEATURES, &features.to_ne_bytes(), &[])
    }

    /// Reads bytes of the configuration space: at most 256 of them, which is what one message carries.
    ///
    /// # Errors
    /// The backend does not answer with as many.
    pub fn config(&mut self, offset: u32, size: u32) -> Result<Vec<u8>, LinkError> {
        let mut payload = config_header(offset, size);
        payload.resize(payload.len() + size as usize, 0);
        let reply = self.ask(FrontendReq::GET_CONFIG, &payload)?;
        match reply.split_at_checked(CONFIG_HEADER) {
            Some((_, bytes)) if bytes.len() == size as usize => Ok(bytes.to_vec()),
            _ => Err(LinkError::Other),
        }
    }

    /// Writes bytes of the configuration space, as a driver does.
    ///
    /// # Errors
    /// The backend refuses it.
    pub fn set_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), LinkError> {
        let size = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.tell(FrontendReq::SET_CONFIG, &[&config_header(offset, size), bytes].concat(), &[])
    }

    /// Sets the memory table.
    ///
    /// # Errors
    /// The backend refuses it.
    pub fn memory(&mut self, regions: &[Region]) -> Result<(), LinkError> {
        let fds: Vec<_> = regions.iter().map(|region| region.fd).collect();
        self.tell(FrontendReq::SET_MEM_TABLE, &Region::table(regions), &fds)
    }

    /// A request about one queue with one number.
    ///
    /// # Errors
    /// The backend refuses it.
    pub fn vring(&mut self, request: FrontendReq, queue: u32, number: u32) -> Result<(), LinkError> {
        self.tell(request, &pair(queue, number), &[])
    }

    /// Takes a queue from the backend, and returns how far it came.
    ///
    /// # Errors
    /// The backend refuses.
    pub fn vring_base(&mut self, queue: u32) -> Result<u32, LinkError> {
        let reply = self.ask(FrontendReq::GET_VRING_BASE, &pair(queue, 0))?;
        let number = reply.get(4..8).and_then(|bytes| bytes.try_into().ok()).ok_or(LinkError::Other)?;
        Ok(u32::from_ne_bytes(number))
    }

    /// Says where a ring is, by addresses of the frontend.
    ///
    /// # Errors
    /// The backend refuses it.
    pub fn vring_address(&mut self, queue: u32, desc: u64, avail: u64, used: u64) -> Result<(), LinkError> {
        let mut payload = pair(queue, 0).to_vec();
        // The order of struct vhost_vring_addr: descriptors, used, available, log.
        for address in [desc, used, avail, 0] {
            payload.extend(address.to_ne_bytes());
        }
        self.tell(FrontendReq::SET_VRING_ADDR, &payload, &[])
    }

    /// Hands an eventfd of a queue to the backend.
    ///
    /// # Errors
    /// The backend refuses it.
    pub fn vring_fd(&mut self, request: FrontendReq, queue: u64, fd: &impl AsRawFd) -> Result<(), LinkError> {
        self.tell(request, &queue.to_ne_bytes(), &[fd.as_raw_fd()])
    }
}

impl Region {
    /// The payload of SET_MEM_TABLE.
    pub fn table(regions: &[Self]) -> Vec<u8> {
        let count = u32::try_from(regions.len()).unwrap_or(u32::MAX);
        let mut payload = pair(count, 0).to_vec();
        for region in regions {
            for field in [region.guest, region.size, region.user, region.offset] {
                payload.extend(field.to_ne_bytes());
            }
        }
        payload
    }
}

/// Two 32-bit numbers as they lie in a message.
pub fn pair(first: u32, second: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    let (low, high) = bytes.split_at_mut(4);
    low.copy_from_slice(&first.to_ne_bytes());
    high.copy_from_slice(&second.to_ne_bytes());
    bytes
}

/// Size of what precedes the bytes in messages about the configuration space.
const CONFIG_HEADER: usize = 12;

/// Offset, size, and flags that are 0.
fn config_header(offset: u32, size: u32) -> Vec<u8> {
    [pair(offset, size).as_slice(), &[0; 4]].concat()
}

fn u64_of(payload: &[u8]) -> Result<u64, LinkError> {
    payload.try_into().map(u64::from_ne_bytes).map_err(|_| LinkError::Other)
}
