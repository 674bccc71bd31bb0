// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Looks at the daemon for everybody who wants to know.
//!
//! However many clients ask, the thread that serves the guest makes one snapshot for all of them, and not more often than
//! every [`INTERVAL`].

use super::status::{Sample, Surroundings};
use super::{About, patch};
use crate::bridge::{Bridge, Observer};
use crate::counters::Frontend;
use crate::device::Snapshot;
use crate::log::Log;
use serde_json::json;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, mpsc};
use tokio::time::{sleep, timeout};

/// Between two snapshots, at least.
const INTERVAL: Duration = Duration::from_millis(20);

/// How long the thread that serves the guest may be busy with a call to the host before its snapshot is made for it.
const PATIENCE: Duration = Duration::from_millis(250);

pub(super) struct Sampler {
    bridge: Arc<Bridge>,
    log: Log,
    about: About,
    started: Instant,
    pub(super) clients: AtomicUsize,
    state: Mutex<State>,
}

struct State {
    snapshots: mpsc::Receiver<Snapshot>,
    last: Option<Arc<Sample>>,
    delta: Option<Delta>,
}

/// The difference of two samples, as all clients get it that have seen the one and are to see the other.
struct Delta {
    before: Arc<Sample>,
    after: Arc<Sample>,
    text: Arc<str>,
}

impl Sampler {
    /// Registers with `bridge`, which is to be done once, before a frontend is served.
    pub(super) fn new(bridge: Arc<Bridge>, log: Log, about: About) -> io::Result<Self> {
        let (sender, snapshots) = mpsc::channel(1);
        // Where the channel is full there is a snapshot already that nobody took.
        let publish = move |snapshot| drop(sender.try_send(snapshot));
        bridge.set_observer(Observer::new(Box::new(publish))?);
        Ok(Self {
            bridge,
            log,
            about,
            started: Instant::now(),
            clients: AtomicUsize::new(0),
            state: Mutex::new(State { snapshots, last: None, delta: None }),
        })
    }

    /// The daemon as it is now: all that happened before the call is in it.
    pub(super) async fn sample(&self) -> Arc<Sample> {
        self.sample_since(Instant::now()).await
    }

    /// The daemon as it is now, or was a moment ago: for those who ask again and again.
    pub(super) async fn recent_sample(&self) -> Arc<Sample> {
        let now = Instant::now();
        self.sample_since(now.checked_sub(INTERVAL).unwrap_or(now)).await
    }

    async fn sample_since(&self, oldest: Instant) -> Arc<Sample> {
        let mut state = self.state.lock().await;
        if let Some(last) = &state.last {
            if last.at >= oldest {
                return last.clone();
            }
            sleep(INTERVAL.saturating_sub(last.at.elapsed())).await;
        }
        let at = Instant::now();
        let device = self.snapshot(&mut state.snapshots).await;
        let around = Surroundings {
            uptime: self.started.elapsed(),
            clients: self.clients.load(Ordering::Relaxed),
            log_level: self.log.level(),
            confinement: self.about.confinement,
            vmm: self.about.vmm.clone(),
            problems: self.log.problems(),
        };
        let sample =
            Arc::new(Sample::new(at, device, self.bridge.counters().read(), self.bridge.names(), around));
        state.last = Some(sample.clone());
        sample
    }

    async fn snapshot(&self, snapshots: &mut mpsc::Receiver<Snapshot>) -> Snapshot {
        if self.bridge.counters().frontend() != Frontend::None {
            // One that came too late for whoever asked for it.
            let _ = snapshots.try_recv();
            self.bridge.ring();
            if let Ok(Some(snapshot)) = timeout(PATIENCE, snapshots.recv()).await {
                return snapshot;
            }
        }
        self.bridge.device().snapshot()
    }

    /// What a client that has seen `before` is to be told of `after`: the inside of a JSON object.
    pub(super) async fn delta(&self, before: &Arc<Sample>, after: &Arc<Sample>) -> Arc<str> {
        let mut state = self.state.lock().await;
        if let Some(delta) = &state.delta
            && Arc::ptr_eq(&delta.before, before)
            && Arc::ptr_eq(&delta.after, after)
        {
            return delta.text.clone();
        }
        let difference = json!(patch::diff(&before.document, &after.document));
        let text: Arc<str> = format!("\"patch\":{difference},\"rates\":{}", after.rates(before)).into();
        state.delta = Some(Delta { before: before.clone(), after: after.clone(), text: text.clone() });
        text
    }

    pub(super) fn started(&self) -> Instant {
        self.started
    }

    pub(super) fn log(&self) -> &Log {
        &self.log
    }
}
