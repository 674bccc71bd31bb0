// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line.

use crate::socket::serve;
use clap::Parser;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use thiserror::Error;
use tracing::info;

/// A model of the WCN6855 Wi-Fi card for QEMU's vfio-user-pci device. Serves one client after another, each with a card
/// that was just switched on, until it is killed.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Cli {
    /// Where to make the socket. One that nobody listens on any more is replaced.
    #[arg(long, value_name = "PATH")]
    socket_path: PathBuf,

    /// How much to log: error, warn, info, debug (every transfer) or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: tracing::Level,
}

/// Why the model does not run.
#[derive(Debug, Error)]
pub enum CliError {
    /// Somebody serves there already.
    #[error("{0}: another process serves there; stop it or choose another path")]
    InUse(PathBuf),
    /// The path is taken by something that is no socket.
    #[error("{0}: is there already and is no socket; choose another path")]
    Taken(PathBuf),
    /// The socket cannot be made or used.
    #[error("{path}: {error}")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl Cli {
    /// Does what the command line says.
    ///
    /// # Errors
    ///
    /// [`CliError`].
    pub fn run(&self) -> Result<(), CliError> {
        tracing_subscriber::fmt().with_writer(io::stderr).with_max_level(self.log_level).init();
        let path = &self.socket_path;
        let failed = |error| CliError::Socket { path: path.clone(), error };
        make_room(path)?;
        let listener = UnixListener::bind(path).map_err(failed)?;
        info!("serving on {}", path.display());
        serve(&listener).map_err(failed)
    }
}

/// Removes the socket of a process that ended.
fn make_room(path: &Path) -> Result<(), CliError> {
    let Ok(metadata) = path.symlink_metadata() else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(CliError::Taken(path.to_owned()));
    }
    if UnixStream::connect(path).is_ok() {
        return Err(CliError::InUse(path.to_owned()));
    }
    std::fs::remove_file(path).map_err(|error| CliError::Socket { path: path.to_owned(), error })
}
