// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! On what it was measured.

use serde_json::{Value, json};
use std::fs::read_to_string;

pub(crate) fn describe() -> Value {
    let cpuinfo = read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let virtual_machine =
        field("flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor"));
    let loads = read_to_string("/proc/loadavg").unwrap_or_default();
    json!({
        // Of the last minute: what else this machine did.
        "load": loads.split(' ').next().and_then(|load| load.parse::<f64>().ok()),
        "cpu": field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "virtual": virtual_machine,
        "kernel": read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
    })
}
