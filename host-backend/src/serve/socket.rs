// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The sockets that frontends come in by.

use crate::sys;
use rustix::fs::{FileType, Mode, Stat, lstat};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, getsockname, socket_with, sockopt,
};
use rustix::process::umask;
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use tracing::warn;
use vhost::vhost_user::Listener;

/// How frontends come.
#[derive(Debug)]
pub enum Transport {
    /// One after another.
    Listening(Listening),
    /// One is there; no other will come.
    Connected(OwnedFd),
}

/// A listening socket. Its file is removed when this is dropped.
#[derive(Debug)]
pub struct Listening {
    socket: UnixListener,
    /// There is none for a socket that was inherited.
    file: Option<SocketFile>,
}

/// Where it is, for the log.
impl fmt::Display for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => file.path.display().fmt(f),
            None => f.write_str("the inherited socket"),
        }
    }
}

#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// Why there is no socket. Every message names the path or number and what to do.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum SocketError {
    #[error("{} is in use by a running process: stop that one or choose another path", path.display())]
    InUse { path: PathBuf },
    #[error("{} exists and is not a socket: remove it or choose another path", path.display())]
    NotASocket { path: PathBuf },
    #[error("{} is no usable socket path: {source}", path.display())]
    Path { path: PathBuf, source: io::Error },
    #[error("cannot create the socket {}: {source}", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error(
        "may not create the socket {}: confined, the daemon has no more rights than its user and group, as root either; choose \
         a directory that is theirs, such as one below /run", path.display()
    )]
    Denied { path: PathBuf },
    #[error(
        "--fd {number} is not an open Unix stream socket: pass one that the parent process left open: {source}"
    )]
    Descriptor { number: RawFd, source: io::Error },
}

impl Transport {
    /// See [`Listening::bind`].
    ///
    /// # Errors
    /// As there.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        Listening::bind(path).map(Self::Listening)
    }

    /// Where the socket is in the file system, as whoever made it said. An accepted connection has the name of its listener.
    pub fn path(&self) -> Option<PathBuf> {
        let fd = match self {
            Self::Listening(listening) => listening.as_fd(),
            Self::Connected(frontend) => frontend.as_fd(),
        };
        let name = SocketAddrUnix::try_from(getsockname(fd).ok()?).ok()?;
        Some(PathBuf::from(OsStr::from_bytes(name.path_bytes()?)))
    }

    /// Takes over a socket that the process inherited: a connected one, or one that listens.
    ///
    /// # Errors
    /// Nothing is open under the number, or it is not a Unix stream socket.
    pub fn inherit(number: RawFd) -> Result<Self, SocketError> {
        let refuse = |source| SocketError::Descriptor { number, source };
        let fd = sys::inherited(number).map_err(refuse)?;
        let check = || -> io::Result<bool> {
            rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
            let kind = (sockopt::socket_domain(&fd)?, sockopt::socket_type(&fd)?);
            if kind != (AddressFamily::UNIX, SocketType::STREAM) {
                return Err(Errno::PROTOTYPE.into());
            }
            Ok(sockopt::socket_acceptconn(&fd)?)
        };
        let listens = check().map_err(refuse)?;
        rustix::io::ioctl_fionbio(&fd, false).map_err(|errno| refuse(errno.into()))?;
        if listens {
            Ok(Self::Listening(Listening { socket: fd.into(), file: None }))
        } else {
            Ok(Self::Connected(fd))
        }
    }
}

impl Listening {
    /// Listens at `path`, for the owner of the process only. What an earlier process left there is replaced.
    ///
    /// # Errors
    /// A living process listens there, something else than a socket is there, or the file system refuses.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        remove_stale(path)?;
        // The file has its mode from the beginning, so there is no moment in which others can connect.
        let before = umask(Mode::from_raw_mode(0o177));
        let socket = UnixListener::bind(path);
        umask(before);
        let create = |source: io::Error| match source.kind() {
            io::ErrorKind::PermissionDenied => SocketError::Denied { path: path.to_owned() },
            _ => SocketError::Create { path: path.to_owned(), source },
        };
        let socket = socket.map_err(create)?;
        let stat = lstat(path).map_err(|errno| create(errno.into()))?;
        let file = SocketFile { path: path.to_owned(), device: stat.st_dev, inode: stat.st_ino };
        Ok(Self { socket, file: Some(file) })
    }

    /// The socket, for whoever accepts connections itself.
    pub(crate) fn listener_socket(&self) -> io::Result<UnixListener> {
        self.socket.try_clone()
    }

    pub(super) fn listener(&self) -> io::Result<Listener> {
        Ok(Listener::from(self.socket.try_clone()?))
    }
}

impl AsFd for Listening {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody may have put a socket of their own there meanwhile.
        let ours = |stat: Stat| stat.st_dev == self.device && stat.st_ino == self.inode;
        if lstat(&self.path).is_ok_and(ours)
            && let Err(problem) = std::fs::remove_file(&self.path)
        {
            let path = self.path.display();
            warn!("the socket {path} stays behind: {problem}; the next daemon replaces it, if it may");
        }
    }
}

/// Removes a socket that nobody listens at.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let unusable = |errno: Errno| SocketError::Path { path: path.to_owned(), source: errno.into() };
    match lstat(path) {
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(unusable(errno)),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
            return Err(SocketError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    let address = SocketAddrUnix::new(path).map_err(unusable)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(unusable)?;
    match connect(&probe, &address) {
        Err(Errno::CONNREFUSED) => {}
        Err(Errno::NOENT) => return Ok(()),
        // EAGAIN: there is a listener, its queue is full. EPROTOTYPE: a datagram socket in use.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => {
            return Err(SocketError::InUse { path: path.to_owned() });
        }
        Err(errno) => return Err(unusable(errno)),
    }
    std::fs::remove_file(path).map_err(|source| SocketError::Create { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_socket_knows_the_name_that_it_was_given() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("irq.sock");
        let listening = Listening::bind(&path).unwrap();
        let _frontend = UnixStream::connect(&path).unwrap();
        let accepted = listening.listener_socket().unwrap().accept().unwrap().0;
        assert_eq!(Transport::Connected(accepted.into()).path(), Some(path.clone()));
        assert_eq!(Transport::Listening(listening).path(), Some(path));
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert_eq!(Transport::Connected(ours.into()).path(), None);
    }
}
