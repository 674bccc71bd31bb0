// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What clients of the control socket cost the guest: its interrupts and requests, timed with and without them in turns.

use crate::{sources::Firing, stats};
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use virtio_irq_proto::{FunctionId, GetMessages, IrqType, SourceId, VectorRange};
use zerocopy::IntoBytes;

/// Number of clients.
pub(crate) const CLIENTS: usize = 100;
/// Of each kind, in turns.
const ROUNDS: usize = 12;
/// Of a kind in a round: several of [`INTERVAL`].
const SPAN: Duration = Duration::from_millis(500);
/// How often a client that watches is told, in milliseconds: as often as there is.
const INTERVAL: u32 = 100;
/// What clients can do, if there are any.
const KINDS: [&str; 3] = ["none", "connected", "watching"];

pub(crate) fn measure() -> Value {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let socket = directory.path().join("ctl.sock");
    let path = socket.to_str().expect("a path that is text");
    let mut firing = Firing::start(&["--control-socket", path], 1);
    let vectors = VectorRange::of_messages(IrqType::Msix, 0, 1).expect("one vector");
    let request = GetMessages { function: FunctionId(0), vectors };
    firing.guest.prepare(request.to_wire().as_bytes(), request.reply_size());

    let mut times = KINDS.map(|_| [Vec::new(), Vec::new()]);
    for round in 0..=ROUNDS {
        for (kind, [interrupts, requests]) in KINDS.into_iter().zip(&mut times) {
            let clients = match kind {
                "connected" => Some(Clients::connect(&socket, "\n")),
                "watching" => Some(Clients::connect(
                    &socket,
                    &format!("{}\n", json!({ "v": 1, "cmd": "watch", "interval_ms": INTERVAL })),
                )),
                _ => None,
            };
            let start = Instant::now();
            while start.elapsed() < SPAN {
                let interrupt = timed(|| {
                    firing.triggers.fire(SourceId(0));
                    firing.guest.sleep();
                });
                assert_eq!(firing.guest.take_events(), 1, "each interrupt is one event");
                let request = timed(|| assert_eq!(firing.guest.ask(), request.reply_size()));
                // The first round warms up.
                if round > 0 {
                    interrupts.push(interrupt);
                    requests.push(request);
                }
            }
            drop(clients);
            wait_until_alone(&socket);
        }
    }
    let row = |[interrupts, requests]: [Vec<u64>; 2]| json!({ "interrupt": stats::summary(&interrupts), "get_messages": stats::summary(&requests) });
    let mut results: Value = KINDS.into_iter().zip(times.map(row)).collect();
    results["clients"] = json!(CLIENTS);
    results["interval_ms"] = json!(INTERVAL);
    results
}

fn timed(trip: impl FnOnce()) -> u64 {
    let start = Instant::now();
    trip();
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Clients that read what they get until they are dropped.
struct Clients {
    streams: Vec<UnixStream>,
    reader: Option<JoinHandle<()>>,
}

impl Clients {
    /// Each says `line`, and was greeted for it.
    fn connect(socket: &Path, line: &str) -> Self {
        let streams: Vec<_> =
            (0..CLIENTS).map(|_| UnixStream::connect(socket).expect("the daemon listens")).collect();
        for mut stream in &streams {
            stream.write_all(line.as_bytes()).expect("the daemon reads");
            let mut hello = [0; 10];
            stream.read_exact(&mut hello).expect("the daemon answers");
        }
        let read = streams.iter().map(|stream| stream.try_clone().expect("a descriptor")).collect();
        Self { streams, reader: Some(thread::spawn(move || read_all(read))) }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        for stream in &self.streams {
            // It fails only if the daemon closed it.
            let _ = stream.shutdown(Shutdown::Both);
        }
        if let Some(reader) = self.reader.take() {
            reader.join().expect("clients do not fail");
        }
    }
}

fn read_all(mut streams: Vec<UnixStream>) {
    let mut buffer = vec![0; 1 << 16];
    while !streams.is_empty() {
        let mut waiting: Vec<_> = streams.iter().map(|stream| PollFd::new(stream, PollFlags::IN)).collect();
        poll(&mut waiting, None).expect("descriptors can be waited for");
        let ready: Vec<_> = waiting.iter().map(|one| !one.revents().is_empty()).collect();
        let mut ready = ready.into_iter();
        streams.retain_mut(|stream| {
            !ready.next().unwrap_or(false) || stream.read(&mut buffer).is_ok_and(|count| count > 0)
        });
    }
}

/// Those that left still cost something until the daemon has seen it.
fn wait_until_alone(socket: &Path) {
    let mut stream = BufReader::new(UnixStream::connect(socket).expect("the daemon listens"));
    loop {
        stream
            .get_mut()
            .write_all(b"{\"v\":1,\"id\":1,\"cmd\":\"status\",\"window_ms\":0}\n")
            .expect("the daemon reads");
        let mut line = String::new();
        while !line.contains("\"id\":1") {
            line.clear();
            assert_ne!(stream.read_line(&mut line).expect("the daemon answers"), 0);
        }
        let answer: Value = serde_json::from_str(&line).expect("the daemon speaks JSON");
        if answer["ok"]["status"]["daemon"]["control_clients"] == 1 {
            return;
        }
    }
}
