// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reading and writing eventfds of a frontend, which must not wait.
//!
//! The flag that keeps such a call from waiting belongs to the open eventfd, and so to the frontend as well: it can clear the
//! flag and fill or empty the counter, after any look at them, and no call has a flag of its own for this. So a timer watches the
//! thread meanwhile. One that waits gets an eventfd of the daemon's under the number of the frontend's, and the kernel begins
//! the call again with that (SA_RESTART). The frontend has lost its notifications then, and nobody else anything.
//!
//! The timer goes on for a moment when the call is done, so that most calls find it running and cost no system call more.

use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicI16, AtomicI32, AtomicPtr, compiler_fence};

/// A call that takes longer than this waits.
const PATIENCE: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// In the place of a timer. 0 is the first timer of a process.
const NO_TIMER: libc::timer_t = ptr::without_provenance_mut(usize::MAX);

/// An eventfd that nobody else has.
static STAND_IN: OnceLock<OwnedFd> = OnceLock::new();

const ONE: [u8; 8] = 1u64.to_ne_bytes();

/// What the handler of the signal has to know of its own thread.
struct Watched {
    /// The descriptor that is read or written, or -1.
    number: AtomicI32,
    /// What it is to be ready for.
    events: AtomicI16,
    /// Whether the timer runs.
    armed: AtomicBool,
    timer: AtomicPtr<libc::c_void>,
}

thread_local! {
    static WATCHED: Watched = const {
        Watched {
            number: AtomicI32::new(-1),
            events: AtomicI16::new(0),
            armed: AtomicBool::new(false),
            timer: AtomicPtr::new(NO_TIMER),
        }
    };
    /// Apart, because the handler must not meet what has a destructor.
    static TIMER: Option<Timer> = Timer::new().ok();
}

/// Makes what the process needs for this once, and keeps. Otherwise the first call does, and the first frontend seems to leave a
/// descriptor behind.
///
/// # Errors
/// The process is out of descriptors.
pub(crate) fn prepare_stand_in() -> io::Result<()> {
    if STAND_IN.get().is_none() {
        // Another thread may have been faster.
        let _ = STAND_IN.set(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
    }
    Ok(())
}

/// Adds 1 to the counter of an eventfd, unless it is full.
pub(crate) fn signal_event(event: BorrowedFd<'_>) {
    // It fails only if the counter is full, and then there is a notification already.
    watched(event, libc::POLLOUT, || rustix::io::write(event, &ONE).is_ok());
}

/// Sets the counter of an eventfd to 0.
pub(crate) fn consume_event(event: BorrowedFd<'_>) {
    // It fails only if the counter is 0 already.
    watched(event, libc::POLLIN, || rustix::io::read(event, &mut [0; 8]).is_ok());
}

fn watched(event: BorrowedFd<'_>, events: libc::c_short, call: impl FnOnce() -> bool) {
    WATCHED.with(|watched| {
        watched.events.store(events, Relaxed);
        watched.number.store(event.as_raw_fd(), Relaxed);
        // The handler runs in this thread.
        compiler_fence(SeqCst);
        if !watched.armed.load(Relaxed) {
            // Nobody watches what a thread does while it ends.
            let _ = TIMER.try_with(|timer| {
                if let Some(Timer(id)) = timer {
                    watched.timer.store(*id, Relaxed);
                }
            });
            watched.arm();
        }
        let _ = call();
        compiler_fence(SeqCst);
        watched.number.store(-1, Relaxed);
    });
}

impl Watched {
    fn arm(&self) {
        let timer = self.timer.load(Relaxed);
        let never = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let once = libc::itimerspec { it_interval: never, it_value: PATIENCE };
        // Before it can go off.
        self.armed.store(timer != NO_TIMER, Relaxed);
        if timer != NO_TIMER {
            // SAFETY: it is a timer of this thread's, which is deleted when the thread ends and not before; `once` is read only.
            let result = unsafe { libc::timer_settime(timer, 0, &raw const once, ptr::null_mut()) };
            if result != 0 {
                self.armed.store(false, Relaxed);
            }
        }
    }

    /// The timer went off.
    fn look(&self) {
        let number = self.number.load(Relaxed);
        if number < 0 {
            self.armed.store(false, Relaxed);
            return;
        }
        let mut poll = libc::pollfd { fd: number, events: self.events.load(Relaxed), revents: 0 };
        // There is one if there is a timer.
        let stand_in = STAND_IN.get().map_or(-1, AsRawFd::as_raw_fd);
        // SAFETY: one `pollfd` is given and one is there. The number is that of a descriptor which its owner lent to the call that
        // is under way; it stays open, and its owner's, and is another eventfd from then on.
        unsafe {
            if libc::poll(&raw mut poll, 1, 0) == 0 {
                libc::dup3(stand_in, number, libc::O_CLOEXEC);
            }
        }
        self.arm();
    }
}

/// A timer that sends SIGALRM to the thread that made it. Where there is none to be had nobody watches.
struct Timer(libc::timer_t);

impl Timer {
    fn new() -> io::Result<Self> {
        prepare_stand_in()?;
        handle_alarms()?;
        let mut timer = NO_TIMER;
        // SAFETY: all-zero bytes are a valid sigevent, the thread is this one, and `timer` is there to be written.
        let result = unsafe {
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = libc::SIGALRM;
            event.sigev_notify_thread_id = libc::gettid();
            libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer)
        };
        if result == 0 { Ok(Self(timer)) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // A later call of this thread finds no timer, and the handler sets none.
        WATCHED.with(|watched| watched.timer.store(NO_TIMER, Relaxed));
        // SAFETY: the timer was made by `new` and is known to nobody any more.
        unsafe { libc::timer_delete(self.0) };
    }
}

/// In this thread and all others, of which only those with a timer get any.
fn handle_alarms() -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid sigaction (SIG_DFL, empty mask); the handler takes the signal's number and calls only
    // what is safe in a signal handler. sigemptyset initializes the set that it is given, the others use an initialized one.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_alarm as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        if libc::sigaction(libc::SIGALRM, &raw const action, ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        // Whoever started the program may have blocked it.
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGALRM);
        match libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), ptr::null_mut()) {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

extern "C" fn on_alarm(_: libc::c_int) {
    // SAFETY: the C library has an errno for each thread, and what was interrupted may be about to look at it.
    let errno = unsafe { *libc::__errno_location() };
    WATCHED.with(Watched::look);
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    /// As a frontend leaves it behind.
    fn waiting() -> OwnedFd {
        eventfd(0, EventfdFlags::CLOEXEC).unwrap()
    }

    fn ends(call: impl FnOnce() + Send + 'static) {
        let (done, is_done) = channel();
        std::thread::spawn(move || {
            call();
            done.send(()).unwrap();
        });
        is_done.recv_timeout(Duration::from_secs(20)).expect("it waits for ever");
    }

    #[test]
    fn an_eventfd_that_is_full_or_empty_keeps_nobody() {
        let (full, empty) = (waiting(), waiting());
        rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let theirs = full.try_clone().unwrap();
        ends(move || {
            for _ in 0..3 {
                signal_event(full.as_fd());
                consume_event(empty.as_fd());
            }
        });
        let mut count = [0; 8];
        rustix::io::read(&theirs, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), u64::MAX - 1, "what is the frontend's stays as it was");
    }

    #[test]
    fn one_that_is_neither_is_used_for_long() {
        let event = waiting();
        let end = std::time::Instant::now() + Duration::from_millis(300);
        while std::time::Instant::now() < end {
            signal_event(event.as_fd());
            let mut count = [0; 8];
            rustix::io::read(&event, &mut count).unwrap();
            assert_eq!(u64::from_ne_bytes(count), 1);
        }
    }
}
