// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The ways in which the double is broken.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vhost_device_irq::bridge::Bridge;
use vhost_device_irq::host::sim::SimFunction;
use virtio_irq_proto::wire::{self, event_type, request_type};
use virtio_irq_proto::{IrqType, SourceId, SourceRange, SourceRequest};
use zerocopy::{FromBytes, IntoBytes};

macro_rules! mutations {
    ($($name:ident $ids:tt,)*) => {
        /// One way to be broken.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Mutation {
            /// In no way.
            None,
            $($name,)*
        }

        /// All of them, each with the requirements that it breaks.
        pub(crate) const ALL: &[(Mutation, &[&str])] = &[$((Mutation::$name, &$ids),)*];
    };
}

mutations! {
    OffersNoVersion1 ["IRQ-DEV-01"],
    OffersAReservedBit ["IRQ-DEV-02"],
    HasFewVectors ["IRQ-DEV-03"],
    HasAnotherMagic ["IRQ-DEV-04"],
    HasAReservedConfigByte ["IRQ-DEV-04"],
    TakesConfigWrites ["IRQ-DEV-05"],
    ChangesItsConfig ["IRQ-DEV-06"],
    LosesChains ["IRQ-DEV-07"],
    ReturnsTwice ["IRQ-DEV-07"],
    OverstatesLength ["IRQ-DEV-08"],
    WritesBeforeItReads ["IRQ-DEV-09"],
    ConfusesStatuses ["IRQ-DEV-10"],
    SetsReservedBytes ["IRQ-DEV-12"],
    SetsUnusedEventFields ["IRQ-DEV-12"],
    HasSourcesWithoutTheFeature ["IRQ-DEV-11"],
    UsesABrokenRing ["IRQ-DEV-13"],
    ReadsOneDescriptor ["IRQ-DEV-14"],
    NeedsTheEventq ["IRQ-DEV-15"],
    HoldsAGrudge ["IRQ-DEV-16"],
    RefusesAtLength ["IRQ-DEV-18"],
    AnswersForStrangers ["IRQ-DEV-10", "IRQ-DEV-19"],
    RenumbersFunctions ["IRQ-DEV-20"],
    ListsFromElsewhere ["IRQ-DEV-21"],
    MiscountsRemaining ["IRQ-DEV-22"],
    ListsTheGone ["IRQ-DEV-23"],
    TellsAnAddressWithoutFlag ["IRQ-DEV-24"],
    FlagsNativeWithoutTheFeature ["IRQ-DEV-27"],
    FlagsEventWithoutTheFeature ["IRQ-DEV-49"],
    TellsFewerMessages ["IRQ-DEV-28"],
    TellsNoBlock ["IRQ-DEV-30"],
    FreezesGenerations ["IRQ-DEV-31", "IRQ-DEV-45"],
    CountsGenerationsUp ["IRQ-DEV-32", "IRQ-DEV-43"],
    RestartsGenerations ["IRQ-DEV-45"],
    GivesGreatIds ["IRQ-DEV-50"],
    KeepsTypesBusy ["IRQ-DEV-51", "IRQ-DEV-67"],
    IgnoresFirst ["IRQ-DEV-58"],
    GivesTheLeast ["IRQ-DEV-59"],
    SkipsVectors ["IRQ-DEV-60"],
    GivesNoBlock ["IRQ-DEV-62"],
    GivesALaterRun ["IRQ-DEV-63"],
    GivesPinsMessages ["IRQ-DEV-64"],
    RemembersInterrupts ["IRQ-DEV-65"],
    LeaksRefusedSources ["IRQ-DEV-67"],
    FreesHalf ["IRQ-DEV-68"],
    DeliversTheFreed ["IRQ-DEV-69"],
    IgnoresMask ["IRQ-DEV-70", "IRQ-DEV-79"],
    ArmsPinsAfterAll ["IRQ-DEV-71"],
    KeepsWhatTheHostKeeps ["IRQ-DEV-72"],
    DropsEventsAtBadBuffers ["IRQ-DEV-35"],
    FillsNoBuffer ["IRQ-DEV-34"],
    ReturnsEmptyEventBuffers ["IRQ-DEV-46"],
    ForgetsWhatFiredWhileMasked ["IRQ-DEV-53"],
    DeliversTwice ["IRQ-DEV-54"],
    DeliversEachEdge ["IRQ-DEV-79"],
    DeliversLastFirst ["IRQ-DEV-55"],
    LeavesPinsArmed ["IRQ-DEV-57"],
    AnnouncesOtherVectors ["IRQ-DEV-37"],
    RevokesTwice ["IRQ-DEV-61"],
    FreesTheRevoked ["IRQ-DEV-73"],
    DeliversInterruptsFirst ["IRQ-DEV-74"],
    SaysGoneTwice ["IRQ-DEV-39"],
    SpeaksOfTheGone ["IRQ-DEV-40"],
    KeepsSourcesOfTheGone ["IRQ-DEV-75"],
    RemembersEventsAcrossResets ["IRQ-DEV-41"],
    MovesMessagesAtResets ["IRQ-DEV-42"],
    TheEventqForgets ["IRQ-DEV-44"],
    KeepsSourcesAcrossResets ["IRQ-DEV-41", "IRQ-DEV-76"],
}

/// What is added to ids that are too great.
const GREAT: u32 = 0x1_0000;

/// Where the fields of requests and replies lie.
const FUNCTION: usize = 8;
const IRQ_TYPE: usize = 10;

/// One mutation, and what it remembers.
pub(crate) struct Twist {
    mutation: Mutation,
    first_function: SimFunction,
    failing: Arc<AtomicBool>,
    pub(crate) written: Option<Vec<u8>>,
    memory: Memory,
}

/// What is forgotten with the frontend.
#[derive(Default)]
struct Memory {
    listed: bool,
    lists: u32,
    refusals: u32,
    previous: u16,
    /// The type of the last sources.
    irq_type: Option<u8>,
    /// What each source that is held belongs to.
    held: BTreeMap<u32, u16>,
    /// Records that come before those of the device.
    injected: Vec<wire::Event>,
    /// How often each source had fired at its last INTERRUPT.
    fired: BTreeMap<u32, u64>,
    /// Sources whose next INTERRUPT is lost.
    swallowed: Vec<u32>,
    freed: bool,
    frees: u32,
    gone: BTreeSet<u16>,
    generation: u32,
    told: BTreeMap<(u16, u16), (u64, u32, u32)>,
    entries: BTreeMap<u16, wire::Function>,
}

impl Twist {
    pub(crate) fn new(mutation: Mutation, first_function: SimFunction, failing: Arc<AtomicBool>) -> Self {
        Self { mutation, first_function, failing, written: None, memory: Memory::default() }
    }

    pub(crate) fn is(&self, mutation: Mutation) -> bool {
        self.mutation == mutation
    }

    /// The frontend left.
    pub(crate) fn forget(&mut self) {
        let entries = std::mem::take(&mut self.memory.entries);
        self.memory = Memory { entries, ..Memory::default() };
        self.written = None;
        // A failure that nothing asked for is not the next check's.
        self.failing.store(false, Ordering::Release);
    }

    pub(crate) fn features(&self, features: u64) -> u64 {
        match self.mutation {
            Mutation::OffersNoVersion1 => features & !(1 << 32),
            Mutation::OffersAReservedBit => features | 1 << 5,
            Mutation::FlagsNativeWithoutTheFeature => features & !1,
            Mutation::FlagsEventWithoutTheFeature | Mutation::HasSourcesWithoutTheFeature => features & !2,
            _ => features,
        }
    }

    pub(crate) fn config(&self, bytes: &[u8]) -> Vec<u8> {
        let mut config = wire::Config::read_from_bytes(bytes).unwrap();
        match self.mutation {
            Mutation::HasFewVectors => config.max_vectors = 16.into(),
            Mutation::HasAnotherMagic => config.magic = 0x5152_4957.into(),
            Mutation::HasAReservedConfigByte => config.reserved1 = [0, 1],
            Mutation::FlagsEventWithoutTheFeature => config.max_sources = 0.into(),
            Mutation::ChangesItsConfig if self.memory.listed => config.max_sources = 255.into(),
            Mutation::TakesConfigWrites => {
                return self.written.clone().unwrap_or_else(|| config.as_bytes().to_vec());
            }
            _ => {}
        }
        config.as_bytes().to_vec()
    }

    /// The queues begin again from 0.
    pub(crate) fn reset(&mut self, bridge: &Bridge) {
        let pending = bridge.device().next_events(usize::MAX);
        match self.mutation {
            Mutation::MovesMessagesAtResets => self.first_function.move_messages(),
            Mutation::KeepsSourcesAcrossResets => return,
            _ => {}
        }
        bridge.reset();
        let (told, generation) = (std::mem::take(&mut self.memory.told), self.memory.generation);
        self.forget();
        self.memory.generation = generation;
        if !self.is(Mutation::RestartsGenerations) {
            self.memory.told = told;
        }
        if self.is(Mutation::RemembersEventsAcrossResets) {
            self.memory.injected = pending;
        }
    }

    /// The reply that goes out.
    pub(crate) fn answer(&mut self, bridge: &Bridge, request: &[u8], room: usize) -> Vec<u8> {
        let kind = request.first_chunk().map_or(0, |bytes| u16::from_le_bytes(*bytes));
        let mut request = request.to_vec();
        if let Some(status) = self.short_cut(bridge, kind, &request) {
            return wire::ReplyHead { status: status.into(), ..Default::default() }.as_bytes().to_vec();
        }
        self.twist_request(kind, &mut request, room);
        let mut reply = bridge.answer(&request, room).bytes().to_vec();
        if reply.len() >= 8 {
            self.twist_reply(bridge, kind, &request, room, &mut reply);
        }
        self.memory.previous = kind;
        reply
    }

    /// Requests that do not get to the device.
    fn short_cut(&mut self, bridge: &Bridge, kind: u16, request: &[u8]) -> Option<u16> {
        let sound = request.len() == 16;
        match (self.mutation, kind) {
            (Mutation::IgnoresMask, request_type::MASK) if sound => {
                let reply = bridge.answer(request, 8);
                let mut unmask = request.to_vec();
                unmask[0] = 19;
                let _ = bridge.answer(&unmask, 8);
                Some(u16::from(reply.bytes()[0]))
            }
            (Mutation::KeepsWhatTheHostKeeps, request_type::FREE)
                if self.failing.swap(false, Ordering::AcqRel) =>
            {
                Some(8)
            }
            (Mutation::KeepsTypesBusy, request_type::ALLOCATE)
                if request.len() == 24
                    && self.memory.freed
                    && self.memory.irq_type.is_some_and(|used| used != request[IRQ_TYPE]) =>
            {
                Some(11)
            }
            (Mutation::KeepsSourcesOfTheGone, request_type::MASK) if sound => {
                let id = u32::from_le_bytes(*request[8..].first_chunk()?);
                let one = request[12] == 1 && request[13] == 0;
                let of_the_gone = self.memory.held.get(&id).is_some_and(|of| self.memory.gone.contains(of));
                (one && of_the_gone).then_some(0)
            }
            _ => None,
        }
    }

    fn twist_request(&mut self, kind: u16, request: &mut [u8], room: usize) {
        match (self.mutation, kind, request.len()) {
            (Mutation::ListsFromElsewhere, request_type::LIST_FUNCTIONS, 16) if request[8] > 0 => {
                request[8] = request[8].saturating_add(1);
            }
            (Mutation::AnswersForStrangers, request_type::GET_MESSAGES, 16)
                if ![3, 5, 6, 9, 12, 20, 21, 40].contains(&request[FUNCTION]) =>
            {
                request[FUNCTION] = 3;
                request[FUNCTION + 1] = 0;
                // Whatever was asked for, vector 0 of MSI is there.
                request[IRQ_TYPE] = 1;
                request[12..16].copy_from_slice(&[0, 0, 1, 0]);
            }
            (Mutation::GivesGreatIds, request_type::FREE..=request_type::UNMASK, 16) => {
                let id = u32::from_le_bytes(*request[8..].first_chunk().unwrap()).wrapping_sub(GREAT);
                request[8..12].copy_from_slice(&id.to_le_bytes());
            }
            (Mutation::IgnoresFirst, request_type::ALLOCATE, 24) if request[16] < 32 && request[17] == 0 => {
                request[16] = 0;
            }
            (Mutation::GivesTheLeast, request_type::ALLOCATE, 24)
                if request[13] == 0
                    && request[15] == 0
                    && request[14] >= request[12]
                    && room >= 16 + 24 * usize::from(request[14]) =>
            {
                request.copy_within(12..14, 14);
            }
            (Mutation::SkipsVectors, request_type::ALLOCATE, 24) if request[12] == 2 && request[16] == 0 => {
                request[16] = 1;
            }
            (Mutation::GivesALaterRun, request_type::ALLOCATE, 24)
                if request[11] == 1 && request[12] == 2 =>
            {
                request[16] = 8;
            }
            _ => {}
        }
    }

    fn twist_reply(&mut self, bridge: &Bridge, kind: u16, request: &[u8], room: usize, reply: &mut Vec<u8>) {
        let status = reply[0];
        if status != 0 {
            self.memory.refusals += 1;
        }
        match self.mutation {
            Mutation::ConfusesStatuses if status == 1 => reply[0] = 2,
            Mutation::SetsReservedBytes => reply[7] = 1,
            Mutation::RefusesAtLength if status != 0 => reply.resize(room.min(16), 0),
            Mutation::LeaksRefusedSources if status == 12 && request.get(11) == Some(&1) => {
                let mut one = request.to_vec();
                one[11..16].copy_from_slice(&[0, 1, 0, 1, 0]);
                let _ = bridge.answer(&one, 64);
            }
            Mutation::FreesHalf if status == 10 && kind == request_type::FREE => {
                let mut one = request.to_vec();
                one[12..14].copy_from_slice(&[1, 0]);
                let _ = bridge.answer(&one, 8);
            }
            Mutation::ArmsPinsAfterAll if status == 8 && kind == request_type::UNMASK => {
                let _ = bridge.answer(request, 8);
            }
            _ => {}
        }
        if status == 9 {
            self.memory.gone.insert(u16::from(request[FUNCTION]));
        }
        if status != 0 {
            return;
        }
        match kind {
            request_type::LIST_FUNCTIONS => self.twist_list(request, reply),
            request_type::GET_MESSAGES => self.twist_messages(request, reply),
            request_type::ALLOCATE => self.twist_sources(request, reply),
            request_type::FREE => {
                let id = u32::from_le_bytes(*request[8..].first_chunk().unwrap());
                let function = self.memory.held.remove(&id).unwrap_or_default();
                self.memory.freed = true;
                self.memory.frees += 1;
                if self.is(Mutation::DeliversTheFreed) && self.memory.previous != request_type::MASK {
                    self.memory.injected.push(record(event_type::INTERRUPT, function, id));
                }
            }
            request_type::UNMASK
                if self.is(Mutation::ForgetsWhatFiredWhileMasked)
                    && self.memory.previous == request_type::MASK =>
            {
                self.memory.swallowed.push(u32::from_le_bytes(*request[8..].first_chunk().unwrap()));
            }
            _ => {}
        }
    }

    fn twist_list(&mut self, request: &[u8], reply: &mut Vec<u8>) {
        self.memory.listed = true;
        self.memory.lists += 1;
        // As the checker asks for it where it wants all of the list.
        let whole = request[8..12] == [0, 0, 0, 1];
        for entry in reply[16..].chunks_mut(32) {
            let (function, _) = wire::Function::mut_from_prefix(entry).unwrap();
            match self.mutation {
                Mutation::HasSourcesWithoutTheFeature => function.flags = (function.flags.get() & !16).into(),
                Mutation::TellsAnAddressWithoutFlag => function.guest_address = 0x30.into(),
                Mutation::RenumbersFunctions if whole => function.vendor = (self.memory.lists as u16).into(),
                _ => {}
            }
            self.memory.entries.insert(function.id.get(), *function);
        }
        match self.mutation {
            Mutation::HoldsAGrudge if self.memory.refusals > 16 && request[10] == 8 => {
                reply.truncate(8);
                reply[0] = 8;
            }
            Mutation::MiscountsRemaining if reply[10] > 0 => reply[10] += 1,
            Mutation::ListsTheGone if whole && self.memory.entries.len() * 32 + 16 > reply.len() => {
                reply[8] = self.memory.entries.len() as u8;
                reply.truncate(16);
                self.memory.entries.values().for_each(|entry| reply.extend(entry.as_bytes()));
            }
            _ => {}
        }
    }

    fn twist_messages(&mut self, request: &[u8], reply: &mut Vec<u8>) {
        let (function, first) = (u16::from(request[FUNCTION]), u16::from(request[12]));
        if self.is(Mutation::TellsFewerMessages) && reply[8] > 1 {
            reply[8] -= 1;
            reply.truncate(reply.len() - 16);
        }
        for (vector, entry) in (first..).zip(reply[16..].chunks_mut(16)) {
            let (message, _) = wire::Message::mut_from_prefix(entry).unwrap();
            match self.mutation {
                Mutation::TellsNoBlock if function == 3 => message.data = (message.data.get() * 2).into(),
                Mutation::FreezesGenerations => message.generation = 1.into(),
                Mutation::CountsGenerationsUp => {
                    self.memory.generation += 1;
                    message.generation = self.memory.generation.into();
                }
                Mutation::RestartsGenerations => {
                    let (address, data) = (message.address.get(), message.data.get());
                    let told = self.memory.told.entry((function, vector)).or_insert((address, data, 1));
                    if (told.0, told.1) != (address, data) {
                        *told = (address, data, told.2 + 1);
                    }
                    message.generation = told.2.into();
                }
                _ => {}
            }
        }
    }

    fn twist_sources(&mut self, request: &[u8], reply: &mut [u8]) {
        let function = u16::from(request[FUNCTION]);
        self.memory.irq_type = Some(request[IRQ_TYPE]);
        let again = std::mem::take(&mut self.memory.freed);
        for (place, entry) in reply[16..].chunks_mut(24).enumerate() {
            let (source, _) = wire::Source::mut_from_prefix(entry).unwrap();
            self.memory.held.insert(source.id.get(), function);
            if again && self.is(Mutation::RemembersInterrupts) {
                self.memory.injected.push(record(event_type::INTERRUPT, function, source.id.get()));
            }
            match self.mutation {
                Mutation::GivesGreatIds => source.id = (source.id.get() + GREAT).into(),
                Mutation::GivesNoBlock if request[11] == 1 && place == 2 => {
                    source.message.data = (source.message.data.get() + 7).into();
                }
                Mutation::GivesPinsMessages if request[IRQ_TYPE] == IrqType::Intx.to_wire() => {
                    source.message.data = 1.into();
                }
                _ => {}
            }
        }
    }

    pub(crate) fn has_events(&self, bridge: &Bridge) -> bool {
        !self.memory.injected.is_empty() || bridge.device().has_events()
    }

    /// Takes events from the device, for a buffer with room for this many.
    pub(crate) fn events(&mut self, bridge: &Bridge, room: usize) -> Vec<wire::Event> {
        if !self.memory.injected.is_empty() {
            let end = self.memory.injected.len().min(room);
            return self.memory.injected.drain(..end).collect();
        }
        let room = if self.is(Mutation::FillsNoBuffer) { 1 } else { room };
        let mut records = {
            let mut device = bridge.device();
            let records = device.next_events(room);
            device.events_taken(records.len());
            records
        };
        self.twist_events(bridge, &mut records);
        records
    }

    fn twist_events(&mut self, bridge: &Bridge, records: &mut Vec<wire::Event>) {
        let of = |kind: u16| move |record: &&wire::Event| record.kind.get() == kind;
        let injected: Vec<_> = match self.mutation {
            Mutation::RevokesTwice => {
                records.iter().filter(of(event_type::SOURCE_REVOKED)).copied().collect()
            }
            Mutation::SaysGoneTwice => {
                records.iter().filter(of(event_type::FUNCTION_GONE)).copied().collect()
            }
            Mutation::SpeaksOfTheGone => {
                let changed = |gone: &wire::Event| wire::Event {
                    kind: event_type::MESSAGE_CHANGED.into(),
                    count: 1.into(),
                    irq_type: 1,
                    ..*gone
                };
                records.iter().filter(of(event_type::FUNCTION_GONE)).map(changed).collect()
            }
            Mutation::DeliversTwice => {
                // Only where nothing but two sources of one function is held.
                let functions: Vec<_> = self.memory.held.values().collect();
                let here = self.memory.frees == 0 && matches!(functions[..], [a, b] if a == b);
                records.iter().filter(of(event_type::INTERRUPT)).filter(|_| here).copied().collect()
            }
            Mutation::DeliversEachEdge => {
                let sources = bridge.device().snapshot().sources;
                let mut more = Vec::new();
                for record in records.iter().filter(of(event_type::INTERRUPT)) {
                    let now = sources.iter().find(|source| source.id.0 == record.source.get());
                    let now = now.map_or(0, |source| source.counts.fired);
                    let before = self.memory.fired.insert(record.source.get(), now).unwrap_or(0);
                    more.extend((1..now.saturating_sub(before)).map(|_| *record));
                }
                more
            }
            _ => Vec::new(),
        };
        self.memory.injected.extend(injected);
        let is_interrupt = |record: &wire::Event| record.kind.get() == event_type::INTERRUPT;
        match self.mutation {
            Mutation::DeliversInterruptsFirst => records.sort_by_key(|record| !is_interrupt(record)),
            Mutation::DeliversLastFirst if records.len() == 4 => records.reverse(),
            Mutation::ForgetsWhatFiredWhileMasked => {
                let swallowed = std::mem::take(&mut self.memory.swallowed);
                records.retain(|record| !is_interrupt(record) || !swallowed.contains(&record.source.get()));
            }
            _ => {}
        }
        for record in records {
            let source = SourceRange::one(SourceId(record.source.get()));
            match (self.mutation, record.kind.get()) {
                (Mutation::SetsUnusedEventFields, event_type::INTERRUPT) => record.count = 1.into(),
                (Mutation::AnnouncesOtherVectors, event_type::MESSAGE_CHANGED) => record.first = 40.into(),
                (Mutation::GivesGreatIds, event_type::INTERRUPT | event_type::SOURCE_REVOKED) => {
                    record.source = (record.source.get() + GREAT).into();
                }
                (Mutation::FreesTheRevoked, event_type::SOURCE_REVOKED) => {
                    let _ = bridge.answer(SourceRequest::Free.to_wire(source).as_bytes(), 8);
                }
                (Mutation::LeavesPinsArmed, event_type::INTERRUPT) => {
                    let _ = bridge.answer(SourceRequest::Unmask.to_wire(source).as_bytes(), 8);
                }
                _ => {}
            }
        }
    }
}

fn record(kind: u16, function: u16, source: u32) -> wire::Event {
    wire::Event { kind: kind.into(), function: function.into(), source: source.into(), ..Default::default() }
}
