// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the daemon costs while a guest is there that asks nothing.

use serde_json::{Value, json};
use std::thread::sleep;
use std::time::{Duration, Instant};
use virtio_irq_tests::Daemon;
use virtio_irq_tests::program::Profile;
use virtio_irq_tests::vitals::{anonymous_kib, children, resident_kib, wakeups};

/// How long it is watched.
pub(crate) const SPAN: Duration = Duration::from_secs(30);

pub(crate) fn measure(daemon: u32, fresh_kib: u64) -> Value {
    let woken = || wakeups(daemon).expect("the daemon is alive");
    // It may still be going to sleep after the last reply.
    sleep(Duration::from_millis(200));
    let (start, before) = (Instant::now(), woken());
    // The time itself is what is measured.
    sleep(SPAN);
    let (after, span) = (woken(), start.elapsed());
    json!({
        "opener": opener(),
        "resident_kib_without_guest": fresh_kib,
        "resident_kib_with_guest": resident_kib(daemon).expect("the daemon is alive"),
        "wakeups": after - before,
        "seconds": span.as_secs_f64(),
        "wakeups_per_minute": (after - before) as f64 * 60.0 / span.as_secs_f64(),
    })
}

/// What the process takes that opens devices for a daemon (`irq-opener`). There is one where functions can be attached.
fn opener() -> Value {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let socket = directory.path().join("ctl.sock");
    let socket = socket.to_str().expect("a path of letters");
    let daemon = Daemon::start_built(Profile::Release, &["--control-socket", socket]);
    let children = children(daemon.id()).unwrap_or_default();
    let [opener] = children[..] else { return Value::Null };
    json!({
        "resident_kib": resident_kib(opener).expect("the daemon keeps it alive"),
        "anonymous_kib": anonymous_kib(opener).expect("the daemon keeps it alive"),
    })
}
