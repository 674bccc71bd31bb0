// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Serving frontends: one after another on a listening socket, or the one at the other end of a connected one.

mod relay;
mod socket;
mod stop;

pub use socket::{Listening, SocketError, Transport};
pub use stop::Stop;
use stop::Waited;

use crate::bridge::Bridge;
use crate::sys;
use crate::vhost_user::Session;
use rustix::event::Timespec;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use tracing::{error, info, warn};
use vhost::vhost_user::{Error as VhostError, Listener};
use vhost_user_backend::Error as DaemonError;

/// How long to wait after the process ran out of something that a frontend needs.
const PAUSE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Serves until `stop`, or, on a connected socket, until the frontend leaves.
///
/// # Errors
/// Waiting for a frontend failed for good. What a frontend does is never an error.
pub fn serve(bridge: &Arc<Bridge>, transport: Transport, stop: &Stop) -> io::Result<()> {
    sys::prepare_stand_in()?;
    match transport {
        Transport::Listening(socket) => serve_each(bridge, &socket, stop),
        Transport::Connected(frontend) => serve_one(bridge, frontend, stop),
    }
}

/// One frontend at a time: the next one waits in the socket's queue.
fn serve_each(bridge: &Arc<Bridge>, socket: &Listening, stop: &Stop) -> io::Result<()> {
    let mut listener = socket.listener()?;
    // Last of all: whoever reads this finds the daemon as it is when it waits.
    info!("waiting for a frontend at {socket}");
    while stop.wait_for(socket)? == Waited::Ready {
        if let Err(problem) = serve_next(bridge, &mut listener, stop) {
            error!("cannot serve a frontend, trying again in a second: {problem}");
            stop.wait(&PAUSE)?;
        }
    }
    Ok(())
}

/// A frontend waits at `listener`: serves it until it leaves, or until `stop`.
fn serve_next(bridge: &Arc<Bridge>, listener: &mut Listener, stop: &Stop) -> io::Result<()> {
    let (session, mut daemon) = Session::new(Arc::clone(bridge))?;
    let started = daemon.start(listener).map_err(|error| io::Error::other(error.to_string()));
    let left = started.is_ok().then(|| {
        info!("a frontend connected");
        bridge.counters().frontend_came();
        let _watch = daemon.shutdown_handle().map(|handle| stop.watch(handle));
        daemon.wait()
    });
    Session::end(session, daemon);
    // Last of all: whoever reads it finds nothing of the frontend any more.
    if let Some(left) = left {
        report(left);
    }
    started
}

/// Serves the frontend at the other end of `frontend`.
fn serve_one(bridge: &Arc<Bridge>, frontend: OwnedFd, stop: &Stop) -> io::Result<()> {
    // vhost-user-backend takes connections only out of a listening socket.
    let (mut listener, near) = relay::private_connection()?;
    std::thread::scope(|scope| {
        let relaying = std::thread::Builder::new()
            .name("relay".to_owned())
            .spawn_scoped(scope, || relay::run(frontend.as_fd(), near.as_fd()))?;
        let served = serve_next(bridge, &mut listener, stop);
        relay::end(frontend.as_fd(), near.as_fd());
        if let Ok(Err(problem)) = relaying.join() {
            warn!("the connection to the frontend failed: {problem}");
        }
        served
    })
}

fn report(result: Result<(), DaemonError>) {
    match result {
        Ok(()) | Err(DaemonError::HandleRequest(VhostError::Disconnected)) => info!("the frontend left"),
        Err(DaemonError::HandleRequest(VhostError::PartialMessage)) => {
            warn!("the frontend left in the middle of a message");
        }
        Err(problem) => warn!("the frontend was disconnected: {problem}"),
    }
}
