// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What C can ask for, without pointers: each is a loop around an operation of the driver core.

use crate::abi::{CONTIGUOUS, REPLY_SIZE, RawSource, RawWanted};
use crate::errno::Errno;
use core::num::NonZeroU16;
use virtio_irq_driver::{Allocation, Block, Device, Fetch, Find, FindError, LIST_PAGE, Progress, Target};
use virtio_irq_proto::{
    Allocate, Delivery, FunctionId, IrqType, Layout, ListFunctions, Message, Request, ResetFunction,
    SourceRange, SourceRequest, VectorRange, read_done, wire,
};
use zerocopy::IntoBytes;

/// Greatest number of messages that fit a reply buffer.
#[allow(clippy::cast_possible_truncation, reason = "the assertion below says that it does not")]
const MAX_VECTORS: NonZeroU16 =
    NonZeroU16::new((REPLY_SIZE / size_of::<wire::Message>() - 1) as u16).unwrap();

/// Greatest number of sources that fit a reply buffer: the head of 16 bytes takes the place of one.
#[allow(clippy::cast_possible_truncation, reason = "smaller than MAX_VECTORS, of which it is asserted")]
const MAX_SOURCES: NonZeroU16 = NonZeroU16::new((REPLY_SIZE / size_of::<wire::Source>() - 1) as u16).unwrap();

// Both reply heads have 16 bytes, as one message has.
const _: () = assert!(REPLY_SIZE >= 16 + size_of::<wire::Function>() * LIST_PAGE.get() as usize);
const _: () = assert!(REPLY_SIZE / size_of::<wire::Message>() <= u16::MAX as usize);

/// Sends requests and waits for their replies.
pub(crate) trait Exchange {
    /// Sends `request` with room for a reply of `reply_size` bytes.
    fn exchange(&mut self, request: &[u8], reply_size: usize) -> Result<&[u8], Errno>;
}

/// Why there is no function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FindFailure {
    /// The exchange failed.
    Exchange(Errno),
    /// The search did.
    Find(FindError),
}

/// The id of the function that is `target`.
pub(crate) fn find(exchange: &mut impl Exchange, target: Target) -> Result<FunctionId, FindFailure> {
    let mut find = Find::new(target);
    loop {
        let request: ListFunctions = find.request();
        let used = exchange
            .exchange(request.to_wire().as_bytes(), request.reply_size())
            .map_err(FindFailure::Exchange)?;
        if let Progress::Done(function) = find.reply(used).map_err(FindFailure::Find)? {
            return Ok(function.id);
        }
    }
}

/// The range that C names with plain numbers.
pub(crate) fn vectors(irq_type: u32, first: u32, count: u32) -> Result<VectorRange, Errno> {
    let irq_type = u8::try_from(irq_type).ok().and_then(IrqType::from_wire).ok_or(Errno::EINVAL)?;
    let first = u16::try_from(first).map_err(|_| Errno::ERANGE)?;
    let count = u16::try_from(count).map_err(|_| Errno::ERANGE)?;
    VectorRange::of_messages(irq_type, first, count).map_err(|_| Errno::EINVAL)
}

/// Gives `sink` the message of each vector, in order.
pub(crate) fn fetch(
    exchange: &mut impl Exchange,
    device: Device,
    function: FunctionId,
    vectors: VectorRange,
    mut sink: impl FnMut(Message),
) -> Result<(), Errno> {
    let device = device.with_vectors_at_most(MAX_VECTORS);
    let mut fetch = Fetch::new(&device, function, vectors);
    loop {
        let request = fetch.request();
        let used = exchange.exchange(request.to_wire().as_bytes(), request.reply_size())?;
        if fetch.reply(used, &mut sink)? == Progress::Done(()) {
            return Ok(());
        }
    }
}

/// The first message of `vectors`, if they form a block.
///
/// Each message is compared with the one before, so that a block of any length needs no memory.
pub(crate) fn fetch_block(
    exchange: &mut impl Exchange,
    device: Device,
    function: FunctionId,
    vectors: VectorRange,
) -> Result<Message, Errno> {
    let mut base = None;
    let mut last: Option<Message> = None;
    let mut contiguous = Ok(());
    fetch(exchange, device, function, vectors, |message| {
        base.get_or_insert(message);
        if let Some(last) = last.replace(message) {
            contiguous = contiguous.and(Block::of(&[last, message]).map(|_| ()));
        }
    })?;
    contiguous?;
    base.ok_or(Errno::EPROTO)
}

/// An allocation that makes sense.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    function: FunctionId,
    irq_type: IrqType,
    layout: Layout,
    first: u16,
    least: NonZeroU16,
    most: NonZeroU16,
}

impl Wanted {
    /// The allocation that C names with plain numbers.
    pub(crate) fn new(raw: &RawWanted) -> Result<Self, Errno> {
        let irq_type = u8::try_from(raw.irq_type).ok().and_then(IrqType::from_wire).ok_or(Errno::EINVAL)?;
        let layout = match raw.flags {
            0 => Layout::Any,
            CONTIGUOUS => Layout::Contiguous,
            _ => return Err(Errno::EINVAL),
        };
        if raw.least == 0 || raw.most < raw.least {
            return Err(Errno::EINVAL);
        }
        let number = |raw| u16::try_from(raw).map_err(|_| Errno::ERANGE);
        let count = |raw| number(raw).and_then(|count| NonZeroU16::new(count).ok_or(Errno::EINVAL));
        Ok(Self {
            function: FunctionId(raw.function),
            irq_type,
            layout,
            first: number(raw.first)?,
            least: count(raw.least)?,
            most: count(raw.most)?,
        })
    }

    /// Greatest number of sources.
    pub(crate) fn most(&self) -> usize {
        self.most.get().into()
    }

    /// The request for the next sources, when there are `got` already and the next useful vector is `first`. A block
    /// has to come in one piece.
    fn piece(&self, device: &Device, got: usize, first: u16) -> Result<Allocation, Errno> {
        let got = u16::try_from(got).unwrap_or(u16::MAX);
        let left = |count: NonZeroU16| NonZeroU16::new(count.get().saturating_sub(got));
        let (least, most) = (left(self.least), left(self.most).ok_or(Errno::ENOSPC)?);
        let fit = NonZeroU16::new(device.max_vectors()).unwrap_or(NonZeroU16::MIN);
        let least = match self.layout {
            Layout::Any => least.unwrap_or(NonZeroU16::MIN).min(fit),
            Layout::Contiguous if self.least > fit => return Err(Errno::ENOSPC),
            Layout::Contiguous => self.least,
        };
        let request = Allocate {
            function: self.function,
            irq_type: self.irq_type,
            layout: self.layout,
            least,
            most: most.min(fit),
            first,
            delivery: Delivery::Event,
        };
        Ok(Allocation::new(device, request))
    }
}

/// What a reply to ALLOCATE gives.
fn take(allocation: &Allocation, used: &[u8], room: &mut [RawSource]) -> Result<usize, Errno> {
    let mut taken = 0_usize;
    let mut free = room.iter_mut();
    allocation.reply(used, |source| {
        if let Some(place) = free.next() {
            *place = source.into();
            taken = taken.saturating_add(1);
        }
    })?;
    Ok(taken)
}

/// Fills `room`, which has a place for each source that can be, and says how many there are.
pub(crate) fn allocate(
    exchange: &mut impl Exchange,
    device: Device,
    wanted: Wanted,
    room: &mut [RawSource],
) -> Result<u32, Errno> {
    let device = device.with_vectors_at_most(MAX_SOURCES);
    let mut got = 0_usize;
    let mut first = wanted.first;
    let mut piece = |got: usize, first: u16, room: &mut [RawSource]| {
        let allocation = wanted.piece(&device, got, first)?;
        let request = allocation.request();
        let used = exchange.exchange(request.to_wire().as_bytes(), request.reply_size())?;
        let taken = take(&allocation, used, room)?;
        Ok((taken, taken == usize::from(request.most.get())))
    };
    let failed = loop {
        let (_, rest) = room.split_at_mut_checked(got).ok_or(Errno::EINVAL)?;
        let (taken, full) = match piece(got, first, rest) {
            Ok(piece) => piece,
            Err(errno) => break Some(errno),
        };
        let next = rest.get(..taken).and_then(<[_]>::last).and_then(|last| last.vector.checked_add(1));
        got = got.saturating_add(taken);
        match next {
            // Sources come with ascending vectors, from the lowest that is to be had.
            Some(next) if full && wanted.layout == Layout::Any && got < wanted.most() => first = next,
            _ => break None,
        }
    };
    match failed {
        Some(errno) if got < usize::from(wanted.least.get()) || errno == Errno::EBADMSG => {
            for source in room.iter().take(got) {
                // What cannot be given back has no remedy here, and the failure is told anyway.
                let _ = change(exchange, FREE, source.id, 1);
            }
            Err(errno)
        }
        _ => u32::try_from(got).map_err(|_| Errno::EINVAL),
    }
}

/// The function that a request to allocate names.
pub(crate) fn function_of(request: &[u8]) -> Result<FunctionId, Errno> {
    match Request::parse(request) {
        Ok(Request::Allocate(allocate)) => Ok(allocate.function),
        _ => Err(Errno::EINVAL),
    }
}

/// What the answer to one request of [`allocate`] gives.
pub(crate) fn allocated(
    device: Device,
    request: &[u8],
    used: &[u8],
    room: &mut [RawSource],
) -> Result<u32, Errno> {
    let Ok(Request::Allocate(request)) = Request::parse(request) else { return Err(Errno::EINVAL) };
    let taken = take(&Allocation::new(&device, request), used, room)?;
    u32::try_from(taken).map_err(|_| Errno::EINVAL)
}

/// `RS_FREE` of C.
const FREE: u32 = 0;

/// Frees, masks or unmasks `count` sources from `first`; `kind` is `enum rs_change` of C.
pub(crate) fn change(exchange: &mut impl Exchange, kind: u32, first: u32, count: u16) -> Result<(), Errno> {
    let kind = match kind {
        FREE => SourceRequest::Free,
        1 => SourceRequest::Mask,
        2 => SourceRequest::Unmask,
        _ => return Err(Errno::EINVAL),
    };
    let sources = SourceRange::new(first, count).map_err(|_| Errno::EINVAL)?;
    let used = exchange.exchange(kind.to_wire(sources).as_bytes(), size_of::<wire::ReplyHead>())?;
    Ok(kind.parse_reply(used)?)
}

/// Frees all sources of a function.
pub(crate) fn reset_function(exchange: &mut impl Exchange, function: FunctionId) -> Result<(), Errno> {
    let request = ResetFunction { function };
    let used = exchange.exchange(request.to_wire().as_bytes(), size_of::<wire::ReplyHead>())?;
    Ok(read_done(used)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_irq_proto::{Function, FunctionFlags, PciAddress, PciIds, Source, SourceId, Status};

    /// Answers requests as a device would that has these messages and one function.
    struct Host {
        messages: Vec<Message>,
        asked: Vec<(u16, u16)>,
        /// Number of sources that can still be allocated, and what an allocation gets when there are too few.
        left: u16,
        otherwise: Vec<u8>,
        allocated: Vec<(u16, u16, u16)>,
        changed: Vec<(SourceRequest, u32, u16)>,
        reply: Vec<u8>,
    }

    const IDS: PciIds =
        PciIds { vendor: 1, device: 2, subsystem_vendor: 3, subsystem_device: 4, class_revision: 5 };

    impl Host {
        fn new(data: impl Iterator<Item = u32>) -> Self {
            let messages = data.map(|data| Message { address: 0xfee0_0578, data, generation: 1 }).collect();
            Self {
                messages,
                asked: Vec::new(),
                left: 0,
                otherwise: Status::NoSpace.to_head().as_bytes().to_vec(),
                allocated: Vec::new(),
                changed: Vec::new(),
                reply: Vec::new(),
            }
        }

        fn with_sources(left: u16) -> Self {
            Self { left, ..Self::new(0..0) }
        }

        fn change(&mut self, kind: SourceRequest, sources: SourceRange) -> Vec<u8> {
            self.changed.push((kind, sources.first.0, sources.count.get()));
            Status::Ok.to_head().as_bytes().to_vec()
        }

        /// Gives sources whose id is their vector plus 1000.
        fn allocate(&mut self, asked: Allocate) -> Vec<u8> {
            assert_eq!(asked.function, FunctionId(6));
            self.allocated.push((asked.first, asked.least.get(), asked.most.get()));
            if asked.least.get() > self.left {
                return self.otherwise.clone();
            }
            let count = asked.most.get().min(self.left);
            self.left = self.left.saturating_sub(count);
            let source = |n: u16| {
                let vector = asked.first.checked_add(n).unwrap();
                Source {
                    id: SourceId(u32::from(vector).checked_add(1000).unwrap()),
                    vector,
                    message: Message { address: 0xfee0_0418, data: u32::from(n), generation: 1 },
                }
            };
            let raw: Vec<_> = (0..count).map(|n| source(n).to_wire()).collect();
            let head = wire::SourceListHead { count: count.into(), ..Default::default() };
            [head.as_bytes(), raw.as_bytes()].concat()
        }
    }

    impl Exchange for Host {
        fn exchange(&mut self, request: &[u8], reply_size: usize) -> Result<&[u8], Errno> {
            assert!(request.len() <= Request::MAX_SIZE);
            assert!(reply_size <= REPLY_SIZE);
            let request = Request::parse(request).unwrap();
            assert_eq!(reply_size, request.reply_size());
            self.reply = match request {
                Request::ListFunctions(_) => {
                    let function = Function {
                        id: FunctionId(6),
                        flags: FunctionFlags::NATIVE,
                        guest_address: None,
                        ids: IDS,
                        intx_count: 0,
                        msi_count: 32,
                        msix_count: 0,
                    };
                    let head = wire::FunctionListHead { count: 1.into(), ..Default::default() };
                    [head.as_bytes(), function.to_wire().as_bytes()].concat()
                }
                Request::GetMessages(get) => {
                    assert_eq!(get.function, FunctionId(6));
                    let (first, count) = (get.vectors.first, get.vectors.count.get());
                    self.asked.push((first, count));
                    match self.messages.get(usize::from(first)..).and_then(|m| m.get(..usize::from(count))) {
                        None => Status::NoVector.to_head().as_bytes().to_vec(),
                        Some(messages) => {
                            let raw: Vec<_> = messages.iter().map(|m| m.to_wire()).collect();
                            let head = wire::MessageListHead { count: count.into(), ..Default::default() };
                            [head.as_bytes(), raw.as_bytes()].concat()
                        }
                    }
                }
                Request::Allocate(allocate) => self.allocate(allocate),
                Request::Free(sources) => self.change(SourceRequest::Free, sources),
                Request::Mask(sources) => self.change(SourceRequest::Mask, sources),
                Request::Unmask(sources) => self.change(SourceRequest::Unmask, sources),
                Request::ResetFunction(reset) => {
                    assert_eq!(reset.function, FunctionId(6));
                    Status::NotReady.to_head().as_bytes().to_vec()
                }
            };
            Ok(&self.reply)
        }
    }

    fn device() -> Device {
        Device::probe(b"VIRQ\x01\x00\0\0\0\0\0\0\xff\xff\0\0", 1).unwrap()
    }

    #[test]
    fn a_function_is_found_by_its_ids() {
        let address = PciAddress { segment: 0, bus: 0, devfn: 0x30 };
        let target = Target { address, ids: IDS, ids_are_unique: true };
        assert_eq!(find(&mut Host::new(0..0), target), Ok(FunctionId(6)));
        let twin = Target { ids_are_unique: false, ..target };
        assert_eq!(find(&mut Host::new(0..0), twin), Err(FindFailure::Find(FindError::Ambiguous)));
    }

    #[test]
    fn requests_never_ask_for_more_than_the_buffer_holds() {
        let mut host = Host::new(100..2148);
        let mut got = Vec::new();
        let range = vectors(2, 5, 300).unwrap();
        fetch(&mut host, device(), FunctionId(6), range, |message| got.push(message.data)).unwrap();
        assert_eq!(host.asked, [(5, 127), (132, 127), (259, 46)]);
        assert_eq!(got, (105..405).collect::<Vec<_>>());
    }

    #[test]
    fn a_block_is_checked_across_requests() {
        let range = vectors(2, 0, 128).unwrap();
        let base = fetch_block(&mut Host::new(64..192), device(), FunctionId(6), range).unwrap();
        assert_eq!((base.address, base.data), (0xfee0_0578, 64));
        let gap = (64..191).chain([192]);
        assert_eq!(fetch_block(&mut Host::new(gap), device(), FunctionId(6), range), Err(Errno::ENOSPC));
        let beyond = vectors(2, 0, 129).unwrap();
        assert_eq!(fetch_block(&mut Host::new(64..192), device(), FunctionId(6), beyond), Err(Errno::ERANGE));
    }

    #[test]
    fn arguments_that_no_function_can_have_are_refused() {
        assert_eq!(vectors(0, 0, 1), Err(Errno::EINVAL));
        assert_eq!(vectors(3, 0, 1), Err(Errno::EINVAL));
        assert_eq!(vectors(0x101, 0, 1), Err(Errno::EINVAL));
        assert_eq!(vectors(1, 4, 0), Err(Errno::EINVAL));
        assert_eq!(vectors(1, 0x1_0000, 1), Err(Errno::ERANGE));
        assert_eq!(vectors(1, 1, 0x1_0001), Err(Errno::ERANGE));
    }

    fn events() -> Device {
        Device::probe(b"VIRQ\x01\x00\0\0\xff\xff\0\0\xff\xff\0\0", 2).unwrap()
    }

    const WANTED: RawWanted =
        RawWanted { irq_type: 2, flags: 0, first: 5, least: 1, most: 200, function: 6, reserved: 0 };

    /// The vectors that an allocation gives.
    fn vectors_of(host: &mut Host, raw: &RawWanted) -> Result<Vec<u16>, Errno> {
        let wanted = Wanted::new(raw).unwrap();
        let mut room = vec![RawSource::default(); wanted.most()];
        let count = allocate(host, events(), wanted, &mut room)?;
        let given = &room[..usize::try_from(count).unwrap()];
        assert!(given.iter().all(|source| source.id == u32::from(source.vector) + 1000));
        Ok(given.iter().map(|source| source.vector).collect())
    }

    #[test]
    fn an_allocation_is_cut_to_what_a_reply_holds() {
        let mut host = Host::with_sources(300);
        let asked = RawWanted { least: 90, ..WANTED };
        assert_eq!(vectors_of(&mut host, &asked), Ok((5..205).collect()));
        assert_eq!(host.allocated, [(5, 84, 84), (89, 6, 84), (173, 1, 32)]);
        assert_eq!(host.changed, []);
    }

    #[test]
    fn an_allocation_ends_with_what_there_is() {
        let mut host = Host::with_sources(84);
        assert_eq!(vectors_of(&mut host, &WANTED), Ok((5..89).collect()));
        let mut host = Host::with_sources(100);
        assert_eq!(vectors_of(&mut host, &WANTED), Ok((5..105).collect()));
        assert_eq!(host.allocated, [(5, 1, 84), (89, 1, 84)]);
    }

    #[test]
    fn fewer_than_the_least_are_given_back() {
        let mut host = Host::with_sources(86);
        let asked = RawWanted { least: 87, ..WANTED };
        assert_eq!(vectors_of(&mut host, &asked), Err(Errno::ENOSPC));
        assert_eq!(host.allocated, [(5, 84, 84), (89, 3, 84)]);
        assert_eq!(host.changed, (5..89).map(|n| (SourceRequest::Free, n + 1000, 1)).collect::<Vec<_>>());
    }

    #[test]
    fn a_block_is_asked_for_at_once_or_not_at_all() {
        let block = RawWanted { flags: CONTIGUOUS, least: 32, most: 100, ..WANTED };
        let mut host = Host::with_sources(300);
        assert_eq!(vectors_of(&mut host, &block), Ok((5..89).collect()));
        assert_eq!(host.allocated, [(5, 32, 84)]);
        let long = RawWanted { least: 85, ..block };
        assert_eq!(vectors_of(&mut host, &long), Err(Errno::ENOSPC));
        assert_eq!(host.allocated.len(), 1);
    }

    #[test]
    fn allocations_that_make_no_sense_are_refused() {
        let refused = |raw: RawWanted| Wanted::new(&raw).map(|_| ());
        assert_eq!(refused(WANTED), Ok(()));
        assert_eq!(refused(RawWanted { irq_type: 0, ..WANTED }), Ok(()));
        assert_eq!(refused(RawWanted { irq_type: 3, ..WANTED }), Err(Errno::EINVAL));
        assert_eq!(refused(RawWanted { irq_type: 0x102, ..WANTED }), Err(Errno::EINVAL));
        assert_eq!(refused(RawWanted { flags: 2, ..WANTED }), Err(Errno::EINVAL));
        assert_eq!(refused(RawWanted { least: 0, ..WANTED }), Err(Errno::EINVAL));
        assert_eq!(refused(RawWanted { least: 201, ..WANTED }), Err(Errno::EINVAL));
        assert_eq!(refused(RawWanted { first: 0x1_0000, ..WANTED }), Err(Errno::ERANGE));
        assert_eq!(refused(RawWanted { most: 0x1_0000, ..WANTED }), Err(Errno::ERANGE));
    }

    #[test]
    fn a_late_answer_is_read_as_one_in_time() {
        let mut host = Host::with_sources(2);
        let raw = Wanted::new(&WANTED).unwrap().piece(&events(), 0, 7).unwrap().request();
        let request = raw.to_wire();
        let reply = host.allocate(raw);
        let mut room = [RawSource::default(); 84];
        assert_eq!(allocated(events(), request.as_bytes(), &reply, &mut room), Ok(2));
        assert_eq!((room[0].id, room[1].id, room[1].vector), (1007, 1008, 8));
        assert_eq!(function_of(request.as_bytes()), Ok(FunctionId(6)));
        let cut = &reply[..reply.len() - 1];
        assert_eq!(allocated(events(), request.as_bytes(), cut, &mut room), Err(Errno::EPROTO));
        let refused = Status::NoSpace.to_head();
        assert_eq!(
            allocated(events(), request.as_bytes(), refused.as_bytes(), &mut room),
            Err(Errno::ENOSPC)
        );
        assert_eq!(allocated(events(), &[17, 0], &reply, &mut room), Err(Errno::EINVAL));
        assert_eq!(function_of(&[17, 0]), Err(Errno::EINVAL));
    }

    #[test]
    fn changes_get_the_numbers_of_the_header() {
        let header = include_str!("../../rust_core.h");
        let enumeration = header.split("enum rs_change {").nth(1).unwrap().split('}').next().unwrap();
        let names: Vec<_> = enumeration.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
        assert_eq!(names, ["RS_FREE = 0", "RS_MASK = 1", "RS_UNMASK = 2"]);
        let mut host = Host::with_sources(0);
        for kind in 0..3 {
            change(&mut host, kind, 7, 3).unwrap();
        }
        let expected = [SourceRequest::Free, SourceRequest::Mask, SourceRequest::Unmask];
        assert_eq!(host.changed, expected.map(|kind| (kind, 7, 3)));
        assert_eq!(change(&mut host, 3, 7, 3), Err(Errno::EINVAL));
        assert_eq!(change(&mut host, FREE, 7, 0), Err(Errno::EINVAL));
        assert_eq!(reset_function(&mut host, FunctionId(6)), Err(Errno::EAGAIN));
    }

    struct Broken;

    impl Exchange for Broken {
        fn exchange(&mut self, _: &[u8], _: usize) -> Result<&[u8], Errno> {
            Err(Errno::from_return(-110))
        }
    }

    #[test]
    fn a_failed_exchange_ends_the_operation_with_its_errno() {
        let range = vectors(1, 0, 1).unwrap();
        let failed = fetch(&mut Broken, device(), FunctionId(6), range, |_| panic!("no message"));
        assert_eq!(failed, Err(Errno::from_return(-110)));
    }
}
