// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What there is and what happens, as JSON.

use super::{CLIENTS, LINE_BYTES};
use crate::counters::{Counts, EVENTS, REPLIES, REQUESTS};
use crate::device::{FunctionState, Snapshot, SourceState};
use crate::log::{LogLevel, Problem};
use crate::sandbox::Confinement;
use crate::vmm::Findings;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant, UNIX_EPOCH};
use virtio_irq_proto::{
    F_EVENT, F_NATIVE, FunctionFlags, FunctionId, IrqType, Message, PciAddress, VERSION as PROTOCOL_VERSION,
};

/// The daemon at one moment.
#[derive(Debug)]
pub(super) struct Sample {
    /// When it was asked for.
    pub(super) at: Instant,
    pub(super) counts: Counts,
    pub(super) device: Snapshot,
    pub(super) names: BTreeMap<FunctionId, String>,
    pub(super) document: Map<String, Value>,
}

/// What is known beside the device.
pub(super) struct Surroundings {
    pub(super) uptime: Duration,
    pub(super) clients: usize,
    pub(super) log_level: LogLevel,
    /// None unless the daemon is confined.
    pub(super) confinement: Option<Confinement>,
    /// None unless it is asked by QMP.
    pub(super) vmm: Option<Findings>,
    pub(super) problems: Vec<Problem>,
}

impl Sample {
    pub(super) fn new(
        at: Instant,
        device: Snapshot,
        counts: Counts,
        names: BTreeMap<FunctionId, String>,
        around: Surroundings,
    ) -> Self {
        let document = document(&device, &counts, &names, around);
        Self { at, counts, device, names, document }
    }

    /// What happened a second since `before`: of the whole device, and of each source that did something.
    pub(super) fn rates(&self, before: &Self) -> Value {
        let seconds = self.at.duration_since(before.at).as_secs_f64();
        // To three digits: more would only look exact.
        let rate = |now: u64, then: u64| match now.saturating_sub(then) as f64 / seconds {
            rate if rate.is_finite() => (rate * 1000.0).round() / 1000.0,
            _ => 0.0,
        };
        let sum = |counts: &[u64]| counts.iter().sum::<u64>();
        let interrupts = |counts: &Counts| counts.events.first().copied().unwrap_or(0);
        let earlier: BTreeMap<_, _> =
            before.device.sources.iter().map(|source| (source.id, source.counts.fired)).collect();
        let sources = self.device.sources.iter().filter_map(|source| {
            let then = earlier.get(&source.id).copied().unwrap_or(0);
            // One that has an earlier one's id begins anew.
            let fired = if source.counts.fired < then {
                rate(source.counts.fired, 0)
            } else {
                rate(source.counts.fired, then)
            };
            (fired > 0.0).then(|| (source.id.0.to_string(), json!(fired)))
        });
        json!({
            "seconds": (seconds * 1000.0).round() / 1000.0,
            "requests": rate(sum(&self.counts.requests), sum(&before.counts.requests)),
            "events": rate(sum(&self.counts.events), sum(&before.counts.events)),
            "interrupts": rate(interrupts(&self.counts), interrupts(&before.counts)),
            "sources": sources.collect::<Map<_, _>>(),
        })
    }
}

fn document(
    device: &Snapshot,
    counts: &Counts,
    names: &BTreeMap<FunctionId, String>,
    around: Surroundings,
) -> Map<String, Value> {
    let functions = device.functions.iter().map(|function| {
        let id = function.assigned.function.id;
        let held = device.sources.iter().filter(|source| source.function == id).count();
        (id.0.to_string(), describe_function(function, names.get(&id), held))
    });
    let sources = device.sources.iter().map(|source| (source.id.0.to_string(), describe_source(source)));
    let document = json!({
        "daemon": {
            "version": env!("CARGO_PKG_VERSION"),
            "protocol": PROTOCOL_VERSION,
            "pid": std::process::id(),
            "uptime_ms": u64::try_from(around.uptime.as_millis()).unwrap_or(u64::MAX),
            "control_clients": around.clients,
            "log_level": around.log_level.name(),
            "sandbox": around.confinement.map(|confinement| json!({
                "capabilities": [],
                "no_new_privileges": true,
                "landlock": confinement.file_system,
                "seccomp": confinement.system_calls,
            })),
        },
        "frontend": {
            "state": counts.frontend.name(),
            "connections": counts.frontends,
            "offered": features(device.features),
            "negotiated": features(device.negotiated),
            "events_pending": device.events_pending,
        },
        "vmm": around.vmm.map(|findings| describe_vmm(&findings)),
        "draining": device.draining,
        "limits": {
            "max_sources": device.quota.guest,
            "max_sources_per_function": device.quota.function,
            "control_clients": CLIENTS,
            "control_line_bytes": LINE_BYTES,
        },
        "counts": {
            "requests": by_name(REQUESTS.map(|(name, _)| name), counts.requests),
            "replies": by_name(REPLIES, counts.replies),
            "events": by_name(EVENTS.map(|(name, _)| name), counts.events),
            "host_failures": counts.host_failures,
            "sources": device.sources.len(),
        },
        "functions": functions.collect::<Map<_, _>>(),
        "sources": sources.collect::<Map<_, _>>(),
        "problems": around.problems.iter().map(describe_problem).collect::<Vec<_>>(),
    });
    match document {
        Value::Object(document) => document,
        _ => Map::new(),
    }
}

fn by_name<const N: usize>(names: [&str; N], counts: [u64; N]) -> Map<String, Value> {
    names.iter().zip(counts).map(|(name, count)| ((*name).to_owned(), json!(count))).collect()
}

fn features(bits: u64) -> Vec<&'static str> {
    let named = [(F_NATIVE, "native"), (F_EVENT, "event")];
    named.iter().filter(|(bit, _)| bits & 1 << *bit != 0).map(|(_, name)| *name).collect()
}

/// As the specification and people name it.
pub(super) fn type_name(irq_type: IrqType) -> &'static str {
    match irq_type {
        IrqType::Intx => "INTx",
        IrqType::Msi => "MSI",
        IrqType::Msix => "MSI-X",
    }
}

fn describe_function(state: &FunctionState, name: Option<&String>, held: usize) -> Value {
    let function = &state.assigned.function;
    let flags = [
        (FunctionFlags::ISOLATED, "isolated"),
        (FunctionFlags::STABLE, "stable"),
        (FunctionFlags::NATIVE, "native"),
        (FunctionFlags::EVENT, "event"),
    ];
    let flags = flags.iter().filter(|(flag, _)| function.flags.contains(*flag)).map(|(_, name)| *name);
    let mut object = json!({
        "state": if state.gone { "gone" } else { "present" },
        "ids": format!("{:04x}:{:04x}", function.ids.vendor, function.ids.device),
        "flags": flags.collect::<Vec<_>>(),
        "vectors": { "intx": function.intx_count, "msi": function.msi_count, "msix": function.msix_count },
        "sources": held,
        "messages": blocks(&state.told),
    });
    if let Some(object) = object.as_object_mut() {
        if let Some(name) = name {
            object.insert("name".to_owned(), json!(name));
        }
        if let Some(address) = function.guest_address {
            object.insert("guest".to_owned(), json!(PciAddress::to_string(&address)));
        }
    }
    object
}

fn describe_vmm(findings: &Findings) -> Value {
    let answer = findings.answer();
    json!({
        "qmp": findings.qmp().to_string_lossy(),
        "process": answer.pid,
        "device": answer.device.map(|device| device.to_string()),
        "problems": answer.problems,
    })
}

fn describe_source(source: &SourceState) -> Value {
    json!({
        "function": source.function.0,
        "type": type_name(source.irq_type),
        "vector": source.vector,
        "masked": source.masked,
        "pending": source.pending,
        "revoked": source.revoked,
        "held_back": source.held_back,
        "fired": source.counts.fired,
        "delivered": source.counts.delivered,
    })
}

fn describe_problem(problem: &Problem) -> Value {
    let since = problem.time.duration_since(UNIX_EPOCH).unwrap_or_default();
    json!({
        "unix_ms": u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        "level": problem.level,
        "message": problem.message,
    })
}

/// The messages that the driver was told. Those of consecutive vectors at one address whose data count up are one line,
/// which is what a whole MSI capability has.
fn blocks(told: &[((IrqType, u16), Message)]) -> Vec<Value> {
    let follows = |a: &((IrqType, u16), Message), b: &((IrqType, u16), Message)| {
        let ((type_a, vector_a), a) = a;
        let ((type_b, vector_b), b) = b;
        type_a == type_b
            && vector_a.checked_add(1) == Some(*vector_b)
            && (a.address, a.generation) == (b.address, b.generation)
            && a.data.checked_add(1) == Some(b.data)
    };
    let describe = |run: &[((IrqType, u16), Message)]| {
        let ((irq_type, first), message) = run.first()?;
        Some(json!({
            "type": type_name(*irq_type),
            "first": first,
            "count": run.len(),
            "address": format!("{:#010x}", message.address),
            "data": format!("{:#06x}", message.data),
            "generation": message.generation,
        }))
    };
    told.chunk_by(follows).filter_map(describe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_a_block_are_one_line_and_others_their_own() {
        let message = |address, data| Message { address, data, generation: 3 };
        let told = [
            ((IrqType::Msi, 2), message(0xfee0_0578, 2)),
            ((IrqType::Msi, 3), message(0xfee0_0578, 3)),
            ((IrqType::Msi, 5), message(0xfee0_0578, 5)),
            ((IrqType::Msix, 6), message(0xfee0_0578, 6)),
            ((IrqType::Msix, 7), message(0xfee0_0598, 7)),
        ];
        let blocks = blocks(&told);
        let brief: Vec<_> = blocks
            .iter()
            .map(|block| format!("{} {}+{}", block["type"], block["first"], block["count"]))
            .collect();
        assert_eq!(brief, ["\"MSI\" 2+2", "\"MSI\" 5+1", "\"MSI-X\" 6+1", "\"MSI-X\" 7+1"]);
        assert_eq!(
            blocks[0],
            json!({"type": "MSI", "first": 2, "count": 2, "address": "0xfee00578", "data": "0x0002", "generation": 3})
        );
    }
}
