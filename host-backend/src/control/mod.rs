// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control socket: what there is and what happens, for the operator, and a few things to do about it.
//!
//! A client connects, sends a JSON object a line and gets one a line. With its first line it gets a `hello` that says what
//! the daemon is; an empty line asks for nothing else. A request is `{"v":1,"id":ID,"cmd":COMMAND,...}` with any string
//! or number as `ID`, or none. Its answer has the same `id` and either `ok` or `error`, a `code` that does not change and a
//! `message` for people:
//!
//! | command | arguments | what is in `ok` |
//! | --- | --- | --- |
//! | `status` | `window_ms`: what rates are measured over, 0 to 10000, 250 unless said | `status`, and `rates` unless the window is 0 |
//! | `watch` | `interval_ms`: 100 to 60000, 1000 unless said | the interval; then an `"event":"status"` with all of it, and in each interval an `"event":"delta"` with `patch`, a merge patch (RFC 7396) to what was sent before, and `rates` |
//! | `attach` | `device`: what `--device` takes | `function`, its id |
//! | `detach` | `function`: an id or a name | `sources`, how many ended |
//! | `drain` | `on`: true unless said | `draining`, and how many `sources` are left |
//! | `log-level` | `level`, or nothing to ask for it | `level` |
//!
//! A first line that is an HTTP request for `/metrics` is answered with the counts as OpenMetrics text.
//!
//! All of this runs in a thread of its own. What serves the guest never waits for it: see [`crate::bridge::Observer`].

mod client;
mod lines;
mod metrics;
mod operator;
pub(crate) mod patch;
mod request;
mod sampler;
mod status;

use crate::admission::Admission;
use crate::bridge::Bridge;
use crate::log::Log;
use crate::sandbox::Confinement;
use crate::serve::{Listening, SocketError};
use crate::vmm::Findings;
use client::serve_client;
use operator::Operator;
use request::{Code, Refusal};
use sampler::Sampler;
use serde_json::Value;
use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tracing::{error, info, warn};

/// Version of what goes over the socket.
pub(crate) const VERSION: u64 = 1;

/// Greatest number of clients at one time.
const CLIENTS: usize = 128;

/// Greatest length of a line from a client, in bytes.
const LINE_BYTES: usize = 64 << 10;

/// How long a client may take to make room for what it gets.
const WRITE_TIME: Duration = Duration::from_secs(5);

/// How long to wait after the process ran out of descriptors.
const PAUSE: Duration = Duration::from_millis(500);

/// How long an operation that is under way may go on when the daemon ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// The control socket, which is served until this is dropped.
#[derive(Debug)]
pub struct Control {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// Its file goes last.
    _socket: Listening,
}

/// What clients are told beside the device.
#[derive(Clone, Debug)]
pub struct About {
    /// What the daemon gave up, if it is confined.
    pub confinement: Option<Confinement>,
    /// What is known of the VMM, if somebody asks it.
    pub vmm: Option<Findings>,
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ControlError {
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("cannot serve the control socket: {0}")]
    Start(#[from] io::Error),
}

impl Control {
    /// Serves clients at `path`, which only the user of the process can connect to. To be started before a frontend is
    /// served. `admission` opens the functions that clients attach, and `about` is what they are told beside the device.
    ///
    /// # Errors
    /// The socket cannot be had, or the process is out of threads or descriptors.
    pub fn start(
        path: &Path,
        bridge: Arc<Bridge>,
        log: Log,
        admission: Arc<Admission>,
        about: About,
    ) -> Result<Self, ControlError> {
        let socket = Listening::bind(path)?;
        let listener = socket.listener_socket()?;
        listener.set_nonblocking(true)?;
        // Functions can be attached later.
        bridge.device().expect_functions();
        let sampler = Sampler::new(bridge.clone(), log, about)?;
        let operator = Operator::new(bridge, admission);
        let mut runtime = Builder::new_current_thread();
        // Operators seldom ask for what takes its time: that thread does not wait for more of it.
        runtime.enable_io().enable_time().max_blocking_threads(1).thread_keep_alive(Duration::ZERO);
        let runtime = runtime.build()?;
        let (stop, stopped) = oneshot::channel();
        info!("control socket at {socket}");
        let thread = std::thread::Builder::new().name("control".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    result = accept(listener, Arc::new(sampler), Arc::new(operator)) => {
                        if let Err(problem) = result {
                            error!("the control socket is not served any more: {problem}");
                        }
                    }
                    _ = stopped => {}
                }
            });
            runtime.shutdown_timeout(FAREWELL);
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread), _socket: socket })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It does not panic; were it to, the daemon ends all the same.
            let _ = thread.join();
        }
    }
}

async fn accept(listener: StdListener, sampler: Arc<Sampler>, operator: Arc<Operator>) -> io::Result<()> {
    let listener = UnixListener::from_std(listener)?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => match Place::take(&sampler) {
                Some(place) => {
                    let operator = operator.clone();
                    tokio::spawn(async move { serve_client(stream, &place.0, &operator).await });
                }
                None => turn_away(&stream),
            },
            Err(problem) => {
                warn!("cannot accept a control client, trying again: {problem}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// One of the [`CLIENTS`] places.
struct Place(Arc<Sampler>);

impl Place {
    fn take(sampler: &Arc<Sampler>) -> Option<Self> {
        // All of this happens in one thread.
        if sampler.clients.load(Ordering::Relaxed) >= CLIENTS {
            return None;
        }
        sampler.clients.fetch_add(1, Ordering::Relaxed);
        Some(Self(sampler.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.clients.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Says why, if that can be said without waiting.
fn turn_away(stream: &UnixStream) {
    let refusal = Refusal::new(
        Code::TooManyClients,
        format!("{CLIENTS} clients are connected, which is as many as there may be: end one of them"),
    );
    let _ = stream.try_write(refusal.line(&Value::Null).as_bytes());
}
