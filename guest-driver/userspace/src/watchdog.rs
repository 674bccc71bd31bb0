// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A limit on how long a vhost-user message may take.
//!
//! The vhost crate waits for an answer without one, and it takes a receive timeout of the socket for a reason to try
//! again. Shutting the socket down is what ends its wait.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

/// Shuts a socket down when an armed deadline passes.
#[derive(Debug)]
pub(crate) struct Watchdog {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Armed(Instant),
    /// The socket is shut down.
    Bitten,
    /// The owner is gone.
    Over,
}

impl Watchdog {
    pub(crate) fn new(socket: UnixStream) -> io::Result<Self> {
        let shared = Arc::new(Shared { state: Mutex::new(State::Idle), changed: Condvar::new() });
        let watched = Arc::clone(&shared);
        let thread = thread::Builder::new().name("watchdog".into()).spawn(move || watched.watch(&socket))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Begins a wait that must end at `deadline`.
    pub(crate) fn arm(&self, deadline: Instant) {
        self.shared.change(|state| match state {
            State::Bitten => State::Bitten,
            _ => State::Armed(deadline),
        });
    }

    /// Ends the wait; whether the deadline passed and the socket is shut down.
    pub(crate) fn disarm(&self) -> bool {
        self.shared.change(|state| match state {
            State::Bitten => State::Bitten,
            _ => State::Idle,
        }) == State::Bitten
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.change(|_| State::Over);
        if let Some(thread) = self.thread.take() {
            // It has no panic to report.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn watch(&self, socket: &UnixStream) {
        let mut state = self.lock();
        loop {
            state = match *state {
                State::Over => return,
                State::Idle | State::Bitten => {
                    self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
                }
                State::Armed(deadline) => match deadline.checked_duration_since(Instant::now()) {
                    Some(left) if !left.is_zero() => {
                        self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                    }
                    _ => {
                        *state = State::Bitten;
                        // It fails only where the other side has closed already, which ends the wait as well.
                        let _ = socket.shutdown(Shutdown::Both);
                        state
                    }
                },
            }
        }
    }

    fn change(&self, next: impl FnOnce(State) -> State) -> State {
        let mut state = self.lock();
        *state = next(*state);
        let now = *state;
        drop(state);
        self.changed.notify_one();
        now
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::time::Duration;

    #[test]
    fn a_wait_beyond_the_deadline_ends() {
        let (mut near, _far) = UnixStream::pair().unwrap();
        let watchdog = Watchdog::new(near.try_clone().unwrap()).unwrap();
        watchdog.arm(Instant::now() + Duration::from_millis(20));
        assert_eq!(near.read(&mut [0]).unwrap(), 0);
        assert!(watchdog.disarm());
        watchdog.arm(Instant::now() + Duration::from_secs(60));
        assert!(watchdog.disarm(), "a socket that was shut down stays so");
    }

    #[test]
    fn a_wait_that_ends_in_time_leaves_the_socket_alone() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let watchdog = Watchdog::new(near.try_clone().unwrap()).unwrap();
        watchdog.arm(Instant::now() + Duration::from_secs(60));
        assert!(!watchdog.disarm());
        drop(watchdog);
        io::Write::write_all(&mut &far, &[7]).unwrap();
        let mut byte = [0];
        near.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [7]);
    }
}
