// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The wire vectors of the specification, in both directions: what this crate makes of the bytes, and which bytes it
//! makes of the meaning.
#![cfg(test)]

#[path = "../common/mod.rs"]
mod common;
mod document;
mod meaning;

use common::emit;
use document::{
    ConfigFields, Direction, DoneFields, EventFields, EventsFields, FunctionFields, Kind, ListFields,
    MessageFields, MessagesFields, RequestFields, SourceFields, SourcesFields, Vector, of_kind, vectors,
};
use meaning::status_name;
use std::collections::{BTreeMap, BTreeSet};
use virtio_irq_proto::wire::{
    self, FunctionListHead, MessageListHead, ReplyHead, RequestHead, SourceListHead, request_type,
};
use virtio_irq_proto::{
    Config, Event, Function, FunctionFlags, FunctionList, Message, MessageList, ReplyError, Request, Source,
    SourceList, Status, read_done,
};
use zerocopy::{FromBytes, IntoBytes};

/// Rows 2 to 8 of the order of checks (IRQ-DEV-10), of which this crate decides all but the two that need to know
/// what was negotiated and the configuration space.
fn outcome(vector: &Vector) -> Result<Request, &'static str> {
    let bytes = vector.bytes();
    let writable = vector.writable.unwrap();
    if writable < size_of::<ReplyHead>() {
        return Err("untouched");
    }
    let features = vector.features.as_ref().unwrap();
    for feature in features {
        assert!(["NATIVE", "EVENT"].contains(&feature.as_str()), "{feature}");
    }
    let needs = match RequestHead::read_from_prefix(&bytes).map_or(0, |(head, _)| head.kind.get()) {
        request_type::GET_MESSAGES => Some("NATIVE"),
        request_type::ALLOCATE..=request_type::RESET_FUNCTION => Some("EVENT"),
        _ => None,
    };
    if needs.is_some_and(|needed| !features.iter().any(|feature| feature == needed)) {
        return Err("UNSUPPORTED");
    }
    let request = Request::parse(&bytes).map_err(status_name)?;
    let vectors = match &request {
        Request::GetMessages(get) => get.vectors.count.get(),
        Request::Allocate(allocate) => allocate.most.get(),
        _ => 0,
    };
    if vector.max_vectors.is_some_and(|max| vectors > max) {
        return Err("INVALID");
    }
    if writable < request.reply_size() { Err("BUFFER_TOO_SMALL") } else { Ok(request) }
}

#[test]
fn names_are_unique_and_directions_follow_from_the_kind() {
    let mut names = BTreeSet::new();
    for vector in vectors() {
        assert!(names.insert(vector.name.clone()), "{} is there twice", vector.name);
        assert!(!vector.meaning.is_empty(), "{}", vector.name);
        let from_driver = vector.kind == Kind::Request;
        assert_eq!(vector.direction == Direction::DriverToDevice, from_driver, "{}", vector.name);
        assert_eq!(vector.request.is_some(), vector.kind == Kind::Reply, "{}", vector.name);
    }
}

#[test]
fn every_status_and_outcome_has_a_vector() {
    let mut seen: BTreeMap<Kind, BTreeSet<String>> = BTreeMap::new();
    for vector in vectors() {
        seen.entry(vector.kind).or_default().insert(vector.expect);
    }
    let expected = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let requests = expected(&["valid", "untouched", "INVALID", "UNSUPPORTED", "BUFFER_TOO_SMALL"]);
    assert_eq!(seen[&Kind::Request], requests);
    let mut replies: BTreeSet<_> = Status::ALL.iter().map(|status| status_name(*status).to_owned()).collect();
    replies.remove("OK");
    replies.extend(expected(&["valid", "failed"]));
    assert_eq!(seen[&Kind::Reply], replies);
    assert_eq!(seen[&Kind::Config], expected(&["valid", "left-alone"]));
    assert_eq!(seen[&Kind::Events], expected(&["valid"]));
}

#[test]
fn configuration_spaces_are_recognized_as_the_vectors_say() {
    for vector in of_kind(Kind::Config) {
        let name = &vector.name;
        let parsed = Config::parse(&vector.bytes()).ok();
        let expected = vector
            .valid::<ConfigFields>()
            .map(|fields| Config { max_sources: fields.max_sources, max_vectors: fields.max_vectors });
        assert_eq!(parsed, expected, "{name}");
        if let Some(config) = expected.filter(|_| vector.canonical) {
            assert_eq!(config.to_wire().as_bytes(), vector.bytes(), "{name}");
        }
    }
}

#[test]
fn requests_get_the_outcome_that_the_vectors_say() {
    for vector in of_kind(Kind::Request) {
        let name = &vector.name;
        match (vector.valid::<RequestFields>(), outcome(&vector)) {
            (Some(fields), Ok(request)) => {
                assert_eq!(request, fields.request(), "{name}");
                assert_eq!(emit(&fields.request()), vector.bytes(), "{name}");
            }
            (None, Err(status)) => assert_eq!(status, vector.expect, "{name}"),
            (_, got) => panic!("{name}: {got:?} instead of {}", vector.expect),
        }
    }
}

#[test]
fn replies_mean_what_the_vectors_say() {
    let requests: BTreeMap<_, _> =
        of_kind(Kind::Request).into_iter().map(|vector| (vector.name.clone(), vector)).collect();
    for vector in of_kind(Kind::Reply) {
        let name = &vector.name;
        let request = outcome(&requests[vector.request.as_ref().unwrap()]).unwrap();
        let bytes = vector.bytes();
        let failure = match request {
            Request::ListFunctions(list) => match list.parse_reply(&bytes) {
                Ok(got) => {
                    let fields =
                        vector.valid::<ListFields>().unwrap_or_else(|| panic!("{name} was accepted"));
                    check_functions(&vector, &got, &fields);
                    continue;
                }
                Err(error) => error,
            },
            Request::GetMessages(get) => match get.parse_reply(&bytes) {
                Ok(got) => {
                    let fields =
                        vector.valid::<MessagesFields>().unwrap_or_else(|| panic!("{name} was accepted"));
                    check_messages(&vector, &got, &fields);
                    continue;
                }
                Err(error) => error,
            },
            Request::Allocate(allocate) => match below_max_sources(&vector, allocate.parse_reply(&bytes)) {
                Ok(got) => {
                    let fields =
                        vector.valid::<SourcesFields>().unwrap_or_else(|| panic!("{name} was accepted"));
                    check_sources(&vector, &got, &fields);
                    continue;
                }
                Err(error) => error,
            },
            Request::Free(_) | Request::Mask(_) | Request::Unmask(_) | Request::ResetFunction(_) => {
                match read_done(&bytes) {
                    Ok(()) => {
                        let DoneFields {} = vector.valid().unwrap_or_else(|| panic!("{name} was accepted"));
                        assert_eq!(vector.canonical, Status::Ok.to_head().as_bytes() == bytes, "{name}");
                        continue;
                    }
                    Err(error) => error,
                }
            }
        };
        match failure {
            ReplyError::Refused(status) => {
                assert_eq!(status_name(status), vector.expect, "{name}");
                if vector.canonical {
                    assert_eq!(status.to_head().as_bytes(), bytes, "{name}");
                }
            }
            ReplyError::UnknownStatus(raw) => {
                assert_eq!((vector.expect.as_str(), Some(raw)), ("failed", vector.status), "{name}");
            }
            ReplyError::Malformed => {
                assert_eq!((vector.expect.as_str(), None), ("failed", vector.status), "{name}");
            }
        }
    }
}

fn check_functions(vector: &Vector, got: &FunctionList<'_>, fields: &ListFields) {
    let name = &vector.name;
    let expected: Vec<_> = fields.functions.iter().map(FunctionFields::function).collect();
    assert_eq!(got.remaining, fields.remaining, "{name}");
    let known = |function: Function| {
        let bits = (0..5).map(|bit| function.flags.bits() & 1 << bit).sum();
        Function { flags: FunctionFlags::from_bits(bits), ..function }
    };
    let parsed: Vec<_> = got.functions.iter().map(|raw| known(Function::from(*raw))).collect();
    assert_eq!(parsed, expected, "{name}");
    if vector.canonical {
        let head = FunctionListHead {
            count: u16::try_from(expected.len()).unwrap().into(),
            remaining: fields.remaining.into(),
            ..Default::default()
        };
        let functions: Vec<_> = expected.iter().map(Function::to_wire).collect();
        assert_eq!([head.as_bytes(), functions.as_bytes()].concat(), vector.bytes(), "{name}");
    }
}

fn check_messages(vector: &Vector, got: &MessageList<'_>, fields: &MessagesFields) {
    let name = &vector.name;
    let expected: Vec<_> = fields.messages.iter().map(MessageFields::message).collect();
    assert_eq!(got.messages.iter().map(|raw| Message::from(*raw)).collect::<Vec<_>>(), expected, "{name}");
    if vector.canonical {
        let count = u16::try_from(expected.len()).unwrap().into();
        let head = MessageListHead { count, ..Default::default() };
        let messages: Vec<_> = expected.iter().map(|message| message.to_wire()).collect();
        assert_eq!([head.as_bytes(), messages.as_bytes()].concat(), vector.bytes(), "{name}");
    }
}

/// The one rule about a reply that needs the configuration space (IRQ-DRV-33).
fn below_max_sources<'a>(
    vector: &Vector,
    list: Result<SourceList<'a>, ReplyError>,
) -> Result<SourceList<'a>, ReplyError> {
    let fits = |id: u32| vector.max_sources.is_none_or(|max| id < max);
    list.and_then(|list| {
        let fit = list.sources.iter().all(|source| fits(source.id.get()));
        if fit { Ok(list) } else { Err(ReplyError::Malformed) }
    })
}

fn check_sources(vector: &Vector, got: &SourceList<'_>, fields: &SourcesFields) {
    let name = &vector.name;
    let expected: Vec<_> = fields.sources.iter().map(SourceFields::source).collect();
    assert_eq!(got.sources.iter().map(|raw| Source::from(*raw)).collect::<Vec<_>>(), expected, "{name}");
    if vector.canonical {
        let count = u16::try_from(expected.len()).unwrap().into();
        let head = SourceListHead { count, ..Default::default() };
        let sources: Vec<_> = expected.iter().map(|source| source.to_wire()).collect();
        assert_eq!([head.as_bytes(), sources.as_bytes()].concat(), vector.bytes(), "{name}");
    }
}

#[test]
fn event_buffers_hold_what_the_vectors_say() {
    for vector in of_kind(Kind::Events) {
        let name = &vector.name;
        let bytes = vector.bytes();
        let parsed: Vec<_> = bytes
            .chunks_exact(Event::SIZE)
            .filter_map(|record| Event::parse(&wire::Event::read_from_bytes(record).unwrap()))
            .collect();
        let fields = vector.valid::<EventsFields>().unwrap();
        let expected: Vec<_> = fields.events.iter().map(EventFields::event).collect();
        assert_eq!(parsed, expected, "{name}");
        if vector.canonical {
            let records: Vec<_> = expected.iter().map(|event| event.to_wire()).collect();
            assert_eq!(records.as_bytes(), bytes, "{name}");
        }
    }
}
