// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device in this process, so that a test can change what its simulated host does.

use crate::PATIENCE;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use tempfile::TempDir;
use vhost_device_irq::bridge::Bridge;
use vhost_device_irq::device::{Assigned, Quota};
use vhost_device_irq::host::HostFunction;
use vhost_device_irq::host::sim::SimFunction;
use vhost_device_irq::serve::{Stop, Transport, serve};
use virtio_irq_proto::{FunctionFlags, FunctionId};
use virtio_irq_userspace::{Driver, DriverError, Options};

/// What a guest gets: as much as it could ask for in one request.
const QUOTA: Quota = Quota { guest: 2048, function: 2048 };

/// A device that is served by a thread of this process, as the daemon would; it ends when dropped.
pub struct Served {
    socket: PathBuf,
    stop: Stop,
    server: Option<JoinHandle<io::Result<()>>>,
    _directory: TempDir,
}

impl Served {
    /// Serves these functions with native and event delivery; their ids are their positions.
    ///
    /// # Panics
    /// The machine is out of something.
    pub fn start(functions: &[SimFunction]) -> Self {
        Self::start_with(functions, FunctionFlags::NATIVE.with(FunctionFlags::EVENT, true))
    }

    /// Serves these functions, all with these flags; their ids are their positions.
    ///
    /// # Panics
    /// The machine is out of something.
    pub fn start_with(functions: &[SimFunction], flags: FunctionFlags) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let socket = directory.path().join("irq.sock");
        let functions = (0..).map(FunctionId).zip(functions).map(|(id, host)| {
            let function = host.describe().function(id, flags);
            let host: Box<dyn HostFunction> = Box::new(host.clone());
            (Assigned { function, refused: false }, host)
        });
        let bridge = Arc::new(Bridge::new(functions.collect(), QUOTA).expect("the ids differ"));
        let transport = Transport::bind(&socket).expect("a socket can be made");
        let stop = Stop::new().expect("an eventfd can be made");
        let ending = stop.clone();
        let server = Some(thread::spawn(move || serve(&bridge, transport, &ending)));
        Self { socket, stop, server, _directory: directory }
    }

    /// Path of its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A guest, connected and set up.
    ///
    /// # Errors
    /// As [`Driver::connect`].
    pub fn connect(&self) -> Result<Driver, DriverError> {
        Driver::connect(&self.socket, Options { timeout: PATIENCE, ..Options::default() })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.request();
        let served = self.server.take().map(JoinHandle::join);
        if !thread::panicking() {
            assert!(matches!(served, Some(Ok(Ok(())))), "serving ends well: {served:?}");
        }
    }
}
