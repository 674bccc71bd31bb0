// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The wire vectors of the specification against both cores: the device core answers the requests, the driver core
//! reads everything that comes from a device.
#![cfg(test)]

use serde_json::Value;
use vhost_device_irq::device::{Assigned, Device, Quota, Step};
use virtio_irq_driver::{Allocation, Device as Driver, Fetch, Find, FindError, Progress, Target, events};
use virtio_irq_proto::{
    Config, Event, F_EVENT, F_NATIVE, Function, FunctionFlags, FunctionId, PciAddress, PciIds, ReplyError,
    Request, Status,
};
use zerocopy::IntoBytes;

struct Vectors(Value);

impl Vectors {
    fn read() -> Self {
        Self(serde_json::from_str(include_str!("../../spec/vectors.json")).unwrap())
    }

    fn of(&self, kind: &str) -> Vec<&Value> {
        let all = self.0["vectors"].as_array().unwrap();
        let found: Vec<_> = all.iter().filter(|vector| vector["kind"] == kind).collect();
        assert!(!found.is_empty());
        found
    }
}

fn bytes(vector: &Value) -> Vec<u8> {
    let hex = vector["hex"].as_str().unwrap();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn status(name: &str) -> Option<Status> {
    // As in `BUFFER_TOO_SMALL` and `BufferTooSmall`.
    let plain = |name: &str| name.replace('_', "").to_lowercase();
    Status::ALL.into_iter().find(|status| plain(&format!("{status:?}")) == plain(name))
}

/// A device that offers every feature and has no function any more; none of the vectors names the one it had.
fn device() -> Device {
    let id = FunctionId(0xbeef);
    let function = Function {
        id,
        flags: FunctionFlags::NATIVE.with(FunctionFlags::EVENT, true),
        intx_count: 1,
        msi_count: 32,
        ..Function::default()
    };
    let quota = Quota { guest: 64, function: 64 };
    let mut device = Device::new(vec![Assigned { function, refused: false }], quota).unwrap();
    device.function_gone(id);
    device
}

#[test]
fn the_device_core_answers_as_the_vectors_say() {
    for vector in Vectors::read().of("request") {
        let mut device = device();
        let negotiated = |name: &str, bit| {
            u64::from(vector["features"].as_array().unwrap().iter().any(|feature| feature == name)) << bit
        };
        device.negotiated(negotiated("NATIVE", F_NATIVE) | negotiated("EVENT", F_EVENT));
        if let Some(max) = vector["max_vectors"].as_u64() {
            assert_eq!(max, u64::from(Device::MAX_VECTORS));
        }
        let writable = usize::try_from(vector["writable"].as_u64().unwrap()).unwrap();
        let Step::Done(reply) = device.request(&bytes(vector), writable) else {
            panic!("{vector}: there is no function to ask the host about");
        };
        let expected = match vector["expect"].as_str().unwrap() {
            "untouched" => Vec::new(),
            // With status OK and no function, with NO_SOURCE, or with NO_FUNCTION.
            "valid" => match vector["fields"]["type"].as_str().unwrap() {
                "LIST_FUNCTIONS" => vec![0; 16],
                "FREE" | "MASK" | "UNMASK" => vec![10, 0, 0, 0, 0, 0, 0, 0],
                _ => vec![4, 0, 0, 0, 0, 0, 0, 0],
            },
            name => vec![u8::try_from(status(name).unwrap().to_wire()).unwrap(), 0, 0, 0, 0, 0, 0, 0],
        };
        assert_eq!(reply.bytes(), expected, "{vector}");
    }
}

#[test]
fn the_driver_core_uses_the_devices_that_the_vectors_say() {
    for vector in Vectors::read().of("config") {
        let device = Driver::probe(&bytes(vector), 1 << F_NATIVE);
        assert_eq!(device.is_ok(), vector["expect"] == "valid", "{vector}");
    }
}

/// What the driver core makes of a reply, or nothing if it never sends that request.
fn read_reply(request: &Value, max_sources: u32, used: &[u8]) -> Option<Result<(), ReplyError>> {
    match Request::parse(&bytes(request)).unwrap() {
        Request::ListFunctions(list) => {
            let address = PciAddress { segment: 0xffff, bus: 0xff, devfn: 0xff };
            let mut find = Find::new(Target { address, ids: PciIds::default(), ids_are_unique: true });
            if find.request() != list {
                return None;
            }
            match find.reply(used) {
                Err(FindError::Reply(error)) => Some(Err(error)),
                Err(FindError::NoMatch) | Ok(Progress::Again) => Some(Ok(())),
                other => panic!("{other:?}"),
            }
        }
        Request::GetMessages(get) => {
            let device = Driver::probe(b"VIRQ\x01\0\0\0\0\0\0\0\x20\0\0\0", 1 << F_NATIVE).unwrap();
            let mut fetch = Fetch::new(&device, get.function, get.vectors);
            assert_eq!(fetch.request(), get);
            Some(fetch.reply(used, |_| ()).map(|progress| assert_eq!(progress, Progress::Done(()))))
        }
        Request::Allocate(request) => {
            let config = Config { max_sources, max_vectors: Device::MAX_VECTORS }.to_wire();
            let device = Driver::probe(config.as_bytes(), 1 << F_EVENT).unwrap();
            let allocation = Allocation::new(&device, request);
            assert_eq!(allocation.request(), request);
            Some(allocation.reply(used, |_| ()))
        }
        // The driver core has nothing of its own for replies that say nothing.
        Request::Free(_) | Request::Mask(_) | Request::Unmask(_) | Request::ResetFunction(_) => None,
    }
}

#[test]
fn the_driver_core_reads_replies_as_the_vectors_say() {
    let vectors = Vectors::read();
    let requests = vectors.of("request");
    let mut read = 0;
    for vector in vectors.of("reply") {
        let request = requests.iter().find(|request| request["name"] == vector["request"]).unwrap();
        let max_sources = vector["max_sources"].as_u64().map_or(u32::MAX, |max| u32::try_from(max).unwrap());
        let Some(result) = read_reply(request, max_sources, &bytes(vector)) else { continue };
        read += 1;
        match (vector["expect"].as_str().unwrap(), result) {
            ("valid", result) => assert_eq!(result, Ok(()), "{vector}"),
            ("failed", Err(ReplyError::Malformed)) => assert!(vector["status"].is_null(), "{vector}"),
            ("failed", Err(ReplyError::UnknownStatus(raw))) => assert_eq!(vector["status"], raw, "{vector}"),
            (name, result) => {
                assert_eq!(result, Err(ReplyError::Refused(status(name).unwrap())), "{vector}");
            }
        }
    }
    assert!(read > 70);
}

#[test]
fn the_driver_core_reads_events_as_the_vectors_say() {
    for vector in Vectors::read().of("events") {
        let used = bytes(vector);
        let ids: Vec<_> = events(&used)
            .map(|event| match event {
                Event::Interrupt { function, source } => ("INTERRUPT", function.0, Some(source.0)),
                Event::SourceRevoked { function, source } => ("SOURCE_REVOKED", function.0, Some(source.0)),
                Event::MessageChanged { function, .. } => ("MESSAGE_CHANGED", function.0, None),
                Event::FunctionGone { function } => ("FUNCTION_GONE", function.0, None),
            })
            .collect();
        let fields = vector["fields"]["events"].as_array().unwrap();
        let expected: Vec<_> = fields
            .iter()
            .map(|event| {
                let function = event["function"].as_u64().and_then(|id| u16::try_from(id).ok()).unwrap();
                let source = event["source"].as_u64().map(|id| u32::try_from(id).unwrap());
                (event["type"].as_str().unwrap(), function, source)
            })
            .collect();
        assert_eq!(ids, expected, "{vector}");
    }
}
