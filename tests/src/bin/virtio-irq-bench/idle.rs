// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the daemon costs while a guest is there that asks nothing.

use serde_json::{Value, json};
use std::thread::sleep;
use std::time::{Duration, Instant};
use virtio_irq_tests::vitals::{resident_kib, wakeups};

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
        "resident_kib_without_guest": fresh_kib,
        "resident_kib_with_guest": resident_kib(daemon).expect("the daemon is alive"),
        "wakeups": after - before,
        "seconds": span.as_secs_f64(),
        "wakeups_per_minute": (after - before) as f64 * 60.0 / span.as_secs_f64(),
    })
}
