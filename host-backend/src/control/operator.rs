// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What an operator can change while the guest runs.

use super::request::{Code, Refusal, Which};
use crate::admission::{Admission, AttachError, Attached, DeviceSpec};
use crate::bridge::{Bridge, MembershipError};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tracing::info;
use virtio_irq_proto::FunctionFlags;

pub(super) struct Operator {
    bridge: Arc<Bridge>,
    admission: Arc<Admission>,
    /// One change at a time.
    turn: Mutex<()>,
}

impl Operator {
    pub(super) fn new(bridge: Arc<Bridge>, admission: Arc<Admission>) -> Self {
        Self { bridge, admission, turn: Mutex::new(()) }
    }

    /// Opens a function and lists it to the guest.
    pub(super) async fn attach(&self, device: &str) -> Result<Value, Refusal> {
        let spec: DeviceSpec =
            device.parse().map_err(|error| Refusal::new(Code::BadArgument, format!("{device}: {error}")))?;
        let _turn = self.turn.lock().await;
        let (bridge, admission) = (self.bridge.clone(), self.admission.clone());
        blocking(move || attach(&bridge, &spec, &admission)).await
    }

    /// Takes a function away from the guest.
    pub(super) async fn detach(&self, which: Which) -> Result<Value, Refusal> {
        let _turn = self.turn.lock().await;
        let names = self.bridge.names();
        let id = match which {
            Which::Id(id) => id,
            Which::Name(name) => {
                let mut fitting = names.iter().filter(|(_, other)| **other == name).map(|(id, _)| *id);
                match (fitting.next(), fitting.next()) {
                    (Some(id), None) => id,
                    (None, _) => return Err(not_there(&name)),
                    (Some(_), Some(_)) => {
                        let message = format!("several functions have the name {name}: give the id of one");
                        return Err(Refusal::new(Code::BadArgument, message));
                    }
                }
            }
        };
        let Some(name) = names.get(&id).cloned() else { return Err(not_there(&id.to_string())) };
        let bridge = self.bridge.clone();
        blocking(move || {
            let ended = bridge
                .detach_function(id)
                .map_err(|error| Refusal::new(membership_code(&error), error.to_string()))?;
            info!("function {id}: {name} was detached, and {ended} sources of it ended");
            Ok(json!({ "function": id.0, "name": name, "sources": ended }))
        })
        .await
    }

    /// Gives the guest no further source, or does so again.
    pub(super) fn drain(&self, on: bool) -> Value {
        let mut device = self.bridge.device();
        let news = device.is_draining() != on;
        device.drain(on);
        let left = device.source_count();
        drop(device);
        if news && on {
            info!("the guest gets no further source, and holds {left}");
        } else if news {
            info!("the guest gets sources again");
        }
        json!({ "draining": on, "sources": left })
    }
}

fn attach(bridge: &Bridge, spec: &DeviceSpec, admission: &Admission) -> Result<Value, Refusal> {
    let attached = admission.attach(bridge, spec).map_err(|error| {
        let code = match &error {
            AttachError::There { .. } | AttachError::NoId => Code::Exists,
            AttachError::Open(_) | AttachError::Files(_) => Code::CannotOpen,
            AttachError::Membership(error) => membership_code(error),
        };
        Refusal::new(code, error.to_string())
    })?;
    let Attached { name, function } = attached;
    Ok(json!({
        "function": function.id.0,
        "name": name,
        "vectors": { "intx": function.intx_count, "msi": function.msi_count, "msix": function.msix_count },
        "native": function.flags.contains(FunctionFlags::NATIVE),
        "event": function.flags.contains(FunctionFlags::EVENT),
    }))
}

fn not_there(which: &str) -> Refusal {
    Refusal::new(Code::NotFound, format!("there is no function {which}: `status` lists those there are"))
}

fn membership_code(error: &MembershipError) -> Code {
    match error {
        MembershipError::IdTaken(_) => Code::Exists,
        MembershipError::NotThere(_) => Code::NotFound,
    }
}

/// Runs what may wait for the kernel beside the thread that serves clients.
async fn blocking(work: impl FnOnce() -> Result<Value, Refusal> + Send + 'static) -> Result<Value, Refusal> {
    let result = spawn_blocking(work).await;
    result.unwrap_or_else(|_| Err(Refusal::new(Code::Internal, "the operation was broken off: see the log")))
}
