// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Medians and tails.

use serde_json::{Value, json};

pub(crate) fn median(times: &[u64]) -> u64 {
    quantile(times, 50)
}

/// In nanoseconds.
pub(crate) fn summary(times: &[u64]) -> Value {
    json!({
        "median_ns": quantile(times, 50),
        "p99_ns": quantile(times, 99),
        "samples": times.len(),
    })
}

fn quantile(times: &[u64], percent: usize) -> u64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or(0)
}
