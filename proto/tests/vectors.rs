// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The wire vectors of the specification, in both directions: what this crate makes of the bytes, and which bytes it
//! makes of the meaning.
#![cfg(test)]

use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
use virtio_irq_proto::wire::{
    self, FunctionListHead, MessageListHead, ReplyHead, RequestHead, SourceListHead, request_type,
};
use virtio_irq_proto::{
    Allocate, Config, Delivery, Event, Function, FunctionFlags, FunctionId, FunctionList, GetMessages,
    IrqType, Layout, ListFunctions, Message, MessageList, PciAddress, PciIds, ReplyError, Request,
    ResetFunction, Source, SourceId, SourceList, SourceRange, SourceRequest, Status, VERSION, VectorRange,
    read_done,
};
use zerocopy::{FromBytes, IntoBytes};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(rename = "license")]
    _license: String,
    protocol_version: u16,
    vectors: Vec<Vector>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    name: String,
    kind: Kind,
    direction: Direction,
    meaning: String,
    hex: String,
    expect: String,
    /// False where a reader accepts bytes that a writer would not write.
    #[serde(default = "yes")]
    canonical: bool,
    fields: Option<serde_json::Value>,
    writable: Option<usize>,
    features: Option<Vec<String>>,
    max_vectors: Option<u16>,
    max_sources: Option<u32>,
    request: Option<String>,
    status: Option<u16>,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Config,
    Request,
    Reply,
    Events,
}

#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
enum Direction {
    DriverToDevice,
    DeviceToDriver,
}

#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct ConfigFields {
    max_sources: u32,
    max_vectors: u16,
}

#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields, tag = "type", rename_all = "SCREAMING_SNAKE_CASE")]
enum RequestFields {
    ListFunctions {
        start: u16,
        count: u16,
    },
    GetMessages {
        function: u16,
        irq_type: String,
        first: u16,
        count: u16,
    },
    Allocate {
        function: u16,
        irq_type: String,
        layout: String,
        least: u16,
        most: u16,
        first: u16,
        delivery: String,
    },
    Free {
        first: u32,
        count: u16,
    },
    Mask {
        first: u32,
        count: u16,
    },
    Unmask {
        first: u32,
        count: u16,
    },
    ResetFunction {
        function: u16,
    },
}

#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct ListFields {
    functions: Vec<FunctionFields>,
    remaining: u16,
}

#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct FunctionFields {
    id: u16,
    flags: Vec<String>,
    guest_address: Option<String>,
    vendor: u16,
    device: u16,
    subsystem_vendor: u16,
    subsystem_device: u16,
    class_revision: u32,
    intx_count: u16,
    msi_count: u16,
    msix_count: u16,
}

#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct MessagesFields {
    messages: Vec<MessageFields>,
}

#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct MessageFields {
    /// As text: a 64-bit number does not fit the numbers of every JSON reader.
    address: String,
    data: u32,
    generation: u32,
}

#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct SourcesFields {
    sources: Vec<SourceFields>,
}

#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct SourceFields {
    id: u32,
    vector: u16,
    address: String,
    data: u32,
    generation: u32,
}

/// A reply that says nothing but that it is done.
#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct DoneFields {}

#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct EventsFields {
    events: Vec<EventFields>,
}

#[derive(Deserialize, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields, tag = "type", rename_all = "SCREAMING_SNAKE_CASE")]
enum EventFields {
    Interrupt { function: u16, source: u32 },
    SourceRevoked { function: u16, source: u32 },
    MessageChanged { function: u16, irq_type: String, first: u16, count: u16 },
    FunctionGone { function: u16 },
}

fn yes() -> bool {
    true
}

fn vectors() -> Vec<Vector> {
    let document: Document = serde_json::from_str(include_str!("../../spec/vectors.json")).unwrap();
    assert_eq!(document.protocol_version, VERSION);
    document.vectors
}

fn of_kind(kind: Kind) -> Vec<Vector> {
    let vectors: Vec<_> = vectors().into_iter().filter(|vector| vector.kind == kind).collect();
    assert!(!vectors.is_empty());
    vectors
}

impl Vector {
    fn bytes(&self) -> Vec<u8> {
        let digits: Vec<_> =
            self.hex.chars().map(|c| u8::try_from(c.to_digit(16).unwrap()).unwrap()).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    fn fields<T: serde::de::DeserializeOwned>(&self) -> Option<T> {
        self.fields.clone().map(|value| {
            serde_json::from_value(value).unwrap_or_else(|error| panic!("fields of {}: {error}", self.name))
        })
    }

    fn valid<T: serde::de::DeserializeOwned>(&self) -> Option<T> {
        let fields = self.fields();
        assert_eq!(fields.is_some(), self.expect == "valid", "{}", self.name);
        fields
    }
}

fn status_name(status: Status) -> &'static str {
    match status {
        Status::Ok => "OK",
        Status::Unsupported => "UNSUPPORTED",
        Status::Invalid => "INVALID",
        Status::BufferTooSmall => "BUFFER_TOO_SMALL",
        Status::NoFunction => "NO_FUNCTION",
        Status::NoVector => "NO_VECTOR",
        Status::NotEnabled => "NOT_ENABLED",
        Status::NotIsolated => "NOT_ISOLATED",
        Status::HostError => "HOST_ERROR",
        Status::FunctionGone => "FUNCTION_GONE",
        Status::NoSource => "NO_SOURCE",
        Status::Busy => "BUSY",
        Status::NoSpace => "NO_SPACE",
        Status::NotContiguous => "NOT_CONTIGUOUS",
        Status::NotReady => "NOT_READY",
    }
}

fn irq_type(name: &str) -> IrqType {
    match name {
        "INTX" => IrqType::Intx,
        "MSI" => IrqType::Msi,
        "MSIX" => IrqType::Msix,
        other => panic!("no type of interrupts: {other}"),
    }
}

/// Vectors that have messages.
fn range(name: &str, first: u16, count: u16) -> VectorRange {
    VectorRange::of_messages(irq_type(name), first, count).unwrap()
}

fn sources(first: u32, count: u16) -> SourceRange {
    SourceRange::new(first, count).unwrap()
}

impl RequestFields {
    fn request(&self) -> Request {
        match self {
            Self::ListFunctions { start, count } => Request::ListFunctions(ListFunctions {
                start: FunctionId(*start),
                count: NonZeroU16::new(*count).unwrap(),
            }),
            Self::GetMessages { function, irq_type, first, count } => Request::GetMessages(GetMessages {
                function: FunctionId(*function),
                vectors: range(irq_type, *first, *count),
            }),
            Self::Allocate { function, irq_type: name, layout, least, most, first, delivery } => {
                Request::Allocate(Allocate {
                    function: FunctionId(*function),
                    irq_type: irq_type(name),
                    layout: match layout.as_str() {
                        "ANY" => Layout::Any,
                        "CONTIGUOUS" => Layout::Contiguous,
                        other => panic!("no layout {other}"),
                    },
                    least: NonZeroU16::new(*least).unwrap(),
                    most: NonZeroU16::new(*most).unwrap(),
                    first: *first,
                    delivery: match delivery.as_str() {
                        "EVENT" => Delivery::Event,
                        other => panic!("no delivery {other}"),
                    },
                })
            }
            Self::Free { first, count } => Request::Free(sources(*first, *count)),
            Self::Mask { first, count } => Request::Mask(sources(*first, *count)),
            Self::Unmask { first, count } => Request::Unmask(sources(*first, *count)),
            Self::ResetFunction { function } => {
                Request::ResetFunction(ResetFunction { function: FunctionId(*function) })
            }
        }
    }
}

impl FunctionFields {
    fn function(&self) -> Function {
        let flags = self.flags.iter().fold(FunctionFlags::default(), |flags, name| {
            let flag = match name.as_str() {
                "GUEST_ADDRESS" => FunctionFlags::GUEST_ADDRESS,
                "ISOLATED" => FunctionFlags::ISOLATED,
                "STABLE" => FunctionFlags::STABLE,
                "NATIVE" => FunctionFlags::NATIVE,
                "EVENT" => FunctionFlags::EVENT,
                other => panic!("no flag {other}"),
            };
            flags.with(flag, true)
        });
        Function {
            id: FunctionId(self.id),
            flags,
            guest_address: self.guest_address.as_deref().map(pci_address),
            ids: PciIds {
                vendor: self.vendor,
                device: self.device,
                subsystem_vendor: self.subsystem_vendor,
                subsystem_device: self.subsystem_device,
                class_revision: self.class_revision,
            },
            intx_count: self.intx_count,
            msi_count: self.msi_count,
            msix_count: self.msix_count,
        }
    }
}

fn pci_address(text: &str) -> PciAddress {
    let parts: Vec<_> = text.split([':', '.']).map(|part| u16::from_str_radix(part, 16).unwrap()).collect();
    let &[segment, bus, device, function] = parts.as_slice() else { panic!("no PCI address: {text}") };
    let address = PciAddress {
        segment,
        bus: u8::try_from(bus).unwrap(),
        devfn: u8::try_from(device << 3 | function).unwrap(),
    };
    assert_eq!(address.to_string(), text);
    address
}

fn address(text: &str) -> u64 {
    u64::from_str_radix(text.strip_prefix("0x").unwrap(), 16).unwrap()
}

impl MessageFields {
    fn message(&self) -> Message {
        Message { address: address(&self.address), data: self.data, generation: self.generation }
    }
}

impl SourceFields {
    fn source(&self) -> Source {
        let message =
            Message { address: address(&self.address), data: self.data, generation: self.generation };
        Source { id: SourceId(self.id), vector: self.vector, message }
    }
}

impl EventFields {
    fn event(&self) -> Event {
        match self {
            Self::Interrupt { function, source } => {
                Event::Interrupt { function: FunctionId(*function), source: SourceId(*source) }
            }
            Self::SourceRevoked { function, source } => {
                Event::SourceRevoked { function: FunctionId(*function), source: SourceId(*source) }
            }
            Self::MessageChanged { function, irq_type, first, count } => Event::MessageChanged {
                function: FunctionId(*function),
                vectors: range(irq_type, *first, *count),
            },
            Self::FunctionGone { function } => Event::FunctionGone { function: FunctionId(*function) },
        }
    }
}

fn emit(request: &Request) -> Vec<u8> {
    match request {
        Request::ListFunctions(list) => list.to_wire().as_bytes().to_vec(),
        Request::GetMessages(get) => get.to_wire().as_bytes().to_vec(),
        Request::Allocate(allocate) => allocate.to_wire().as_bytes().to_vec(),
        Request::Free(range) => SourceRequest::Free.to_wire(*range).as_bytes().to_vec(),
        Request::Mask(range) => SourceRequest::Mask.to_wire(*range).as_bytes().to_vec(),
        Request::Unmask(range) => SourceRequest::Unmask.to_wire(*range).as_bytes().to_vec(),
        Request::ResetFunction(reset) => reset.to_wire().as_bytes().to_vec(),
    }
}

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
