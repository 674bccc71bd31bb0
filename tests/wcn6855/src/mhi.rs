// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! MHI, the modem host interface: how the card gets its firmware and tells the host what state it is in.
//!
//! As much of it as Linux' `drivers/bus/mhi/host` needs to bring the card into mission mode and to start channels. No
//! image is looked at and no channel carries anything. Of the event rings, only the first is used.

use crate::memory::Words;
use std::collections::VecDeque;
use std::fmt;

/// Where the groups of registers are in BAR 0. MHI lets the card choose. That of BHIe follows from ath11k's `mhi.h`, the
/// others are guesses.
const CHANNEL_DOORBELLS: u32 = 0x400;
const EVENT_DOORBELLS: u32 = 0x800;
const BHI: u32 = 0x100;
const BHIE: u32 = 0x324;

const VERSION: u32 = 0x08;
const CHANNEL_DOORBELL_OFFSET: u32 = 0x18;
const EVENT_DOORBELL_OFFSET: u32 = 0x20;
pub(crate) const BHI_OFFSET: u32 = 0x28;
const BHIE_OFFSET: u32 = 0x2c;
const CONTROL: u32 = 0x38;
pub(crate) const STATUS: u32 = 0x48;
const EVENT_CONTEXTS: u32 = 0x60;
const COMMAND_CONTEXTS: u32 = 0x68;
const COMMAND_DOORBELL: u32 = 0x70;

const CONTROL_RESET: u32 = 1 << 1;
const STATUS_READY: u32 = 1 << 0;
const STATUS_SYSTEM_ERROR: u32 = 1 << 2;
const STATE_SHIFT: u32 = 8;

const BHI_IMAGE_SIZE: u32 = BHI + 0x10;
const BHI_IMAGE_DOORBELL: u32 = BHI + 0x18;
const BHI_VECTOR: u32 = BHI + 0x20;
pub(crate) const BHI_ENVIRONMENT: u32 = BHI + 0x28;
pub(crate) const BHI_STATUS: u32 = BHI + 0x2c;
const BHI_SERIAL: u32 = BHI + 0x40;
const BHIE_IMAGE_DOORBELL: u32 = BHIE + 0x3c;
const BHIE_IMAGE_STATUS: u32 = BHIE + 0x44;
const BHIE_DUMP_DOORBELL: u32 = BHIE + 0x70;
const BHIE_DUMP_STATUS: u32 = BHIE + 0x78;

/// In doorbells and status registers of images: which transfer.
const SEQUENCE: u32 = 0x3fff_ffff;
const TRANSFER_DONE: u32 = 2 << 30;
pub(crate) const TRANSFER_FAILED: u32 = 3 << 30;

const STATE_READY: u32 = 1;
const STATE_M0: u32 = 2;
const STATE_M3: u32 = 5;
const STATE_SYSTEM_ERROR: u32 = 0xff;

/// What the status register holds after a crash.
pub(crate) const SYSTEM_ERROR: u32 = STATE_SYSTEM_ERROR << STATE_SHIFT | STATUS_SYSTEM_ERROR;

const EVENT_STATE: u32 = 0x20;
const EVENT_COMMAND: u32 = 0x21;
const EVENT_ENVIRONMENT: u32 = 0x40;
const SUCCESS: u32 = 1;

/// A context says where a ring is; event and command contexts have the same form.
const CONTEXT: u32 = 44;
const CONTEXT_READ_POINTER: u64 = 28;
/// An element of a ring.
const ELEMENT: u32 = 16;
/// No sane ring is larger.
const LONGEST_RING: u64 = 1 << 20;

/// What can wait: the completions of a full command ring and more. A driver that never takes events loses the rest.
const JOBS: usize = 256;

/// What runs on the card (execution environment).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Environment {
    /// The primary boot loader, after a reset. Takes the first image.
    PrimaryLoader = 0,
    /// The secondary boot loader. Takes the firmware.
    SecondaryLoader = 1,
    /// The firmware: mission mode.
    Firmware = 2,
    /// What remains after a crash.
    Crashed = 3,
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PrimaryLoader => "its primary loader",
            Self::SecondaryLoader => "its secondary loader",
            Self::Firmware => "its firmware",
            Self::Crashed => "nothing: the firmware crashed",
        })
    }
}

/// What MHI wants of the rest of the card.
pub(crate) trait Bus {
    /// Reads memory; the bytes come to [`Mhi::read_done`]. One read is outstanding at most.
    fn read(&mut self, address: u64, length: u32);
    /// Writes memory, after everything that was written before.
    fn write(&mut self, address: u64, data: &[u8]);
    /// Sends the message of an MSI vector, after everything that was written before.
    fn raise(&mut self, vector: u32);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    /// Put an element into the event ring.
    Event([u8; ELEMENT as usize]),
    /// Execute what is in the command ring.
    Commands,
}

/// What the outstanding read is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Idle,
    EventContext([u8; ELEMENT as usize]),
    CommandContext,
    Command(Ring),
}

/// A ring in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ring {
    vector: u32,
    base: u64,
    length: u64,
    /// The card's place.
    read: u64,
    /// The driver's place.
    write: u64,
}

impl Ring {
    fn parse(context: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(context.get(at..)?.first_chunk().copied()?));
        let long = |at: usize| Some(u64::from_le_bytes(context.get(at..)?.first_chunk().copied()?));
        let ring =
            Self { vector: word(8)?, base: long(12)?, length: long(20)?, read: long(28)?, write: long(36)? };
        let element = u64::from(ELEMENT);
        let end = ring.base.checked_add(ring.length)?;
        let inside = |place: u64| {
            (ring.base..end).contains(&place) && place.wrapping_sub(ring.base).is_multiple_of(element)
        };
        let whole = ring.length.is_multiple_of(element) && ring.length <= LONGEST_RING;
        (whole && inside(ring.read) && inside(ring.write)).then_some(ring)
    }

    /// The place behind `read`.
    fn next(&self) -> u64 {
        let next = self.read.wrapping_add(ELEMENT.into());
        if next == self.base.wrapping_add(self.length) { self.base } else { next }
    }
}

/// The state that is not in registers.
#[derive(Debug)]
pub(crate) struct Mhi {
    environment: Environment,
    jobs: VecDeque<Job>,
    step: Step,
    /// The read that is outstanding was for a life before a reset.
    stale: bool,
    /// The event ring was full; the driver will ring its doorbell when it is not.
    full: bool,
}

impl Mhi {
    /// After a reset of the card, whose registers are all 0.
    pub(crate) fn new(registers: &mut Words) -> Self {
        registers.set(VERSION, 0x0100_0000);
        registers.set(CHANNEL_DOORBELL_OFFSET, CHANNEL_DOORBELLS);
        registers.set(EVENT_DOORBELL_OFFSET, EVENT_DOORBELLS);
        registers.set(BHI_OFFSET, BHI);
        registers.set(BHIE_OFFSET, BHIE);
        registers.set(BHI_SERIAL, 0x0000_0001);
        Self {
            environment: Environment::PrimaryLoader,
            jobs: VecDeque::new(),
            step: Step::Idle,
            stale: false,
            full: false,
        }
    }

    /// A reset of the card.
    pub(crate) fn reset(&mut self, registers: &mut Words) {
        let outstanding = self.outstanding();
        *self = Self::new(registers);
        self.stale = outstanding;
    }

    pub(crate) fn environment(&self) -> Environment {
        self.environment
    }

    /// The driver wrote the register at `at`, which holds `value` already.
    pub(crate) fn written(&mut self, registers: &mut Words, at: u32, value: u32, bus: &mut impl Bus) {
        match at {
            CONTROL if value & CONTROL_RESET != 0 => self.reset_interface(registers),
            CONTROL => self.enter(registers, (value >> STATE_SHIFT) & 0xff),
            BHI_IMAGE_DOORBELL if value & SEQUENCE != 0 => self.take_loader(registers, bus),
            BHIE_IMAGE_DOORBELL if value & SEQUENCE != 0 => self.take_firmware(registers, value, bus),
            COMMAND_DOORBELL => self.add(Job::Commands),
            EVENT_DOORBELLS => self.full = false,
            // What the card tells cannot be written.
            BHI_ENVIRONMENT => registers.set(at, self.environment as u32),
            VERSION => registers.set(at, 0x0100_0000),
            CHANNEL_DOORBELL_OFFSET => registers.set(at, CHANNEL_DOORBELLS),
            EVENT_DOORBELL_OFFSET => registers.set(at, EVENT_DOORBELLS),
            BHI_OFFSET => registers.set(at, BHI),
            BHIE_OFFSET => registers.set(at, BHIE),
            _ => {}
        }
        self.proceed(registers, bus);
    }

    /// The firmware crashes.
    pub(crate) fn crash(&mut self, registers: &mut Words, bus: &mut impl Bus) {
        self.set_environment(registers, Environment::Crashed);
        registers.set(STATUS, SYSTEM_ERROR);
        // The dump is empty.
        let sequence = registers.get(BHIE_DUMP_DOORBELL) & SEQUENCE;
        registers.set(BHIE_DUMP_STATUS, TRANSFER_DONE | sequence);
        bus.raise(registers.get(BHI_VECTOR));
    }

    /// The outstanding read ended.
    pub(crate) fn read_done(&mut self, registers: &Words, data: Option<&[u8]>, bus: &mut impl Bus) {
        let step = std::mem::replace(&mut self.step, Step::Idle);
        if std::mem::take(&mut self.stale) {
            return self.proceed(registers, bus);
        }
        // A ring that cannot be read, or that makes no sense: nothing can be done with it until the driver sets it up.
        match (step, data) {
            (Step::EventContext(element), Some(context)) => {
                self.post(registers, element, Ring::parse(context), bus);
            }
            (Step::CommandContext, Some(context)) => {
                if let Some(ring) = Ring::parse(context) {
                    self.execute_next(ring, bus);
                }
            }
            (Step::Command(ring), Some(_)) => {
                // Whatever the command was: a channel is started, stopped or reset.
                self.event(ring.read, SUCCESS << 24, EVENT_COMMAND << 16);
                let ring = Ring { read: ring.next(), ..ring };
                let context = long(registers, COMMAND_CONTEXTS);
                bus.write(context.wrapping_add(CONTEXT_READ_POINTER), &ring.read.to_le_bytes());
                self.execute_next(ring, bus);
            }
            (_, None) | (Step::Idle, _) => {}
        }
        self.proceed(registers, bus);
    }

    fn outstanding(&self) -> bool {
        self.stale || self.step != Step::Idle
    }

    fn set_environment(&mut self, registers: &mut Words, environment: Environment) {
        self.environment = environment;
        registers.set(BHI_ENVIRONMENT, environment as u32);
    }

    fn reset_interface(&mut self, registers: &mut Words) {
        self.stale = self.outstanding();
        self.step = Step::Idle;
        self.full = false;
        self.jobs.clear();
        registers.set(CONTROL, 0);
        // The primary loader knows nothing of MHI yet.
        let ready = self.environment != Environment::PrimaryLoader;
        registers.set(STATUS, if ready { STATE_READY << STATE_SHIFT | STATUS_READY } else { 0 });
    }

    fn enter(&mut self, registers: &mut Words, state: u32) {
        if !matches!(state, STATE_M0 | STATE_M3) || registers.get(STATUS) & STATUS_READY == 0 {
            return;
        }
        registers.set(STATUS, state << STATE_SHIFT | STATUS_READY);
        self.event(0, state << 24, EVENT_STATE << 16);
        if state == STATE_M0 && self.environment == Environment::SecondaryLoader {
            self.tell_environment();
        }
    }

    fn take_loader(&mut self, registers: &mut Words, bus: &mut impl Bus) {
        if self.environment != Environment::PrimaryLoader {
            return;
        }
        if registers.get(BHI_IMAGE_SIZE) == 0 {
            registers.set(BHI_STATUS, TRANSFER_FAILED);
        } else {
            registers.set(BHI_STATUS, TRANSFER_DONE);
            self.set_environment(registers, Environment::SecondaryLoader);
            registers.set(STATUS, STATE_READY << STATE_SHIFT | STATUS_READY);
        }
        bus.raise(registers.get(BHI_VECTOR));
    }

    fn take_firmware(&mut self, registers: &mut Words, sequence: u32, bus: &mut impl Bus) {
        if self.environment != Environment::SecondaryLoader {
            return;
        }
        registers.set(BHIE_IMAGE_STATUS, TRANSFER_DONE | (sequence & SEQUENCE));
        self.set_environment(registers, Environment::Firmware);
        bus.raise(registers.get(BHI_VECTOR));
        self.tell_environment();
    }

    fn tell_environment(&mut self) {
        self.event(0, (self.environment as u32) << 24, EVENT_ENVIRONMENT << 16);
    }

    fn event(&mut self, pointer: u64, first: u32, second: u32) {
        let mut element = [0; ELEMENT as usize];
        let bytes = pointer.to_le_bytes().into_iter().chain(first.to_le_bytes()).chain(second.to_le_bytes());
        for (to, from) in element.iter_mut().zip(bytes) {
            *to = from;
        }
        self.add(Job::Event(element));
    }

    fn add(&mut self, job: Job) {
        if self.jobs.len() < JOBS {
            self.jobs.push_back(job);
        }
    }

    /// Begins the next job, if there is one and none is being done.
    fn proceed(&mut self, registers: &Words, bus: &mut impl Bus) {
        if self.outstanding() || self.full {
            return;
        }
        let Some(job) = self.jobs.pop_front() else { return };
        let contexts = match job {
            Job::Event(element) => {
                self.step = Step::EventContext(element);
                EVENT_CONTEXTS
            }
            Job::Commands => {
                self.step = Step::CommandContext;
                COMMAND_CONTEXTS
            }
        };
        bus.read(long(registers, contexts), CONTEXT);
    }

    fn post(
        &mut self,
        registers: &Words,
        element: [u8; ELEMENT as usize],
        ring: Option<Ring>,
        bus: &mut impl Bus,
    ) {
        let Some(ring) = ring else { return };
        if ring.read == ring.write {
            self.full = true;
            self.jobs.push_front(Job::Event(element));
            return;
        }
        let context = long(registers, EVENT_CONTEXTS);
        bus.write(ring.read, &element);
        bus.write(context.wrapping_add(CONTEXT_READ_POINTER), &ring.next().to_le_bytes());
        bus.raise(ring.vector);
    }

    fn execute_next(&mut self, ring: Ring, bus: &mut impl Bus) {
        if ring.read != ring.write {
            self.step = Step::Command(ring);
            bus.read(ring.read, ELEMENT);
        }
    }
}

/// A 64-bit register.
fn long(registers: &Words, at: u32) -> u64 {
    u64::from(registers.get(at)) | u64::from(registers.get(at.wrapping_add(4))) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const CONTEXTS: u64 = 0x1_0000;
    const EVENTS: u64 = 0x2_0000;
    const COMMANDS: u64 = 0x3_0000;

    /// Memory, and a driver's side of MHI.
    #[derive(Default)]
    struct Host {
        memory: BTreeMap<u64, u8>,
        reads: VecDeque<(u64, u32)>,
        raised: Vec<u32>,
    }

    impl Bus for Host {
        fn read(&mut self, address: u64, length: u32) {
            self.reads.push_back((address, length));
        }
        fn write(&mut self, address: u64, data: &[u8]) {
            self.memory.extend((address..).zip(data.iter().copied()));
        }
        fn raise(&mut self, vector: u32) {
            self.raised.push(vector);
        }
    }

    impl Host {
        fn bytes(&self, address: u64, length: u32) -> Vec<u8> {
            (address..).take(length as usize).map(|at| self.memory.get(&at).copied().unwrap_or(0)).collect()
        }

        fn context(&mut self, at: u64, vector: u32, base: u64, elements: u64, write: u64) {
            let words = [0, 0, vector].map(u32::to_le_bytes).concat();
            let longs = [base, elements * 16, base, write].map(u64::to_le_bytes).concat();
            self.write(at, &[words, longs].concat());
        }
    }

    struct Card {
        mhi: Mhi,
        registers: Words,
        host: Host,
    }

    impl Card {
        fn new() -> Self {
            let mut registers = Words::new(0x1000);
            Self { mhi: Mhi::new(&mut registers), registers, host: Host::default() }
        }

        fn write(&mut self, at: u32, value: u32) {
            self.registers.set(at, value);
            self.mhi.written(&mut self.registers, at, value, &mut self.host);
            while let Some((address, length)) = self.host.reads.pop_front() {
                assert!(self.host.reads.is_empty(), "more than one read is outstanding");
                let data = self.host.bytes(address, length);
                self.mhi.read_done(&self.registers, Some(&data), &mut self.host);
            }
        }

        /// As far as the driver goes before it waits for the secondary loader.
        fn load(events: u64) -> Self {
            let mut card = Self::new();
            card.write(BHI_IMAGE_SIZE, 0x8_0000);
            card.write(BHI_IMAGE_DOORBELL, 0x1234);
            card.host.context(CONTEXTS, 1, EVENTS, events, EVENTS + (events - 1) * 16);
            card.write(EVENT_CONTEXTS, CONTEXTS as u32);
            card
        }

        fn event(&self, index: u64) -> (u64, u32, u32) {
            let bytes = self.host.bytes(EVENTS + index * 16, 16);
            let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            (u64::from_le_bytes(bytes[..8].try_into().unwrap()), word(8), word(12))
        }
    }

    #[test]
    fn the_card_goes_from_the_loader_to_the_firmware() {
        let mut card = Card::load(32);
        assert_eq!(card.registers.get(BHI_STATUS) >> 30, 2);
        assert_eq!(card.registers.get(BHI_ENVIRONMENT), 1);
        assert_eq!(card.registers.get(STATUS) & 1, 1);
        card.write(CONTROL, 2 << 8);
        assert_eq!(card.event(0), (0, 2 << 24, 0x20 << 16));
        assert_eq!(card.event(1), (0, 1 << 24, 0x40 << 16));
        card.write(BHIE_IMAGE_DOORBELL, 0x77);
        assert_eq!(card.registers.get(BHIE_IMAGE_STATUS), 0x8000_0077);
        assert_eq!(card.registers.get(BHI_ENVIRONMENT), 2);
        assert_eq!(card.event(2), (0, 2 << 24, 0x40 << 16));
        assert_eq!(card.host.bytes(CONTEXTS + 28, 8), (EVENTS + 48).to_le_bytes());
        assert_eq!(card.host.raised, [0, 1, 1, 0, 1]);
    }

    #[test]
    fn an_image_without_length_is_refused() {
        let mut card = Card::new();
        card.write(BHI_IMAGE_DOORBELL, 1);
        assert_eq!((card.registers.get(BHI_STATUS) >> 30, card.registers.get(BHI_ENVIRONMENT)), (3, 0));
    }

    #[test]
    fn events_wait_for_room_in_the_ring() {
        let mut card = Card::load(2);
        card.write(CONTROL, 2 << 8);
        assert_eq!(card.event(0), (0, 2 << 24, 0x20 << 16));
        assert_eq!(card.host.raised, [0, 1]);
        // The driver took the first event.
        card.host.write(CONTEXTS + 36, &EVENTS.to_le_bytes());
        card.write(EVENT_DOORBELLS, EVENTS as u32);
        assert_eq!(card.event(1), (0, 1 << 24, 0x40 << 16));
        assert_eq!(card.host.bytes(CONTEXTS + 28, 8), EVENTS.to_le_bytes());
        assert_eq!(card.host.raised, [0, 1, 1]);
    }

    #[test]
    fn every_command_is_completed_by_its_address() {
        let mut card = Card::load(32);
        card.write(CONTROL, 2 << 8);
        card.host.context(CONTEXTS + 0x100, 0, COMMANDS, 4, COMMANDS + 32);
        card.write(COMMAND_CONTEXTS, CONTEXTS as u32 + 0x100);
        card.write(COMMAND_DOORBELL, COMMANDS as u32 + 32);
        assert_eq!(card.event(2), (COMMANDS, 1 << 24, 0x21 << 16));
        assert_eq!(card.event(3), (COMMANDS + 16, 1 << 24, 0x21 << 16));
        assert_eq!(card.event(4), (0, 0, 0));
        assert_eq!(card.host.bytes(CONTEXTS + 0x100 + 28, 8), (COMMANDS + 32).to_le_bytes());
    }

    #[test]
    fn rings_that_make_no_sense_are_left_alone() {
        for (base, elements, read, write) in [
            (EVENTS, 0, EVENTS, EVENTS),
            (EVENTS, 4, EVENTS + 64, EVENTS),
            (EVENTS, 4, EVENTS + 8, EVENTS),
            (u64::MAX - 15, 4, u64::MAX - 15, u64::MAX - 15),
            (EVENTS, 1 << 20, EVENTS, EVENTS + 16),
            (EVENTS, 4, EVENTS, 0),
        ] {
            let mut card = Card::load(32);
            card.host.context(CONTEXTS, 1, base, elements, write);
            card.host.write(CONTEXTS + 28, &read.to_le_bytes());
            let before = card.host.memory.clone();
            card.write(CONTROL, 2 << 8);
            assert_eq!(card.host.memory, before, "{base:x} {elements} {read:x} {write:x}");
        }
    }

    #[test]
    fn a_reset_forgets_what_was_outstanding() {
        let mut card = Card::load(32);
        card.registers.set(CONTROL, 2 << 8);
        card.mhi.written(&mut card.registers, CONTROL, 2 << 8, &mut card.host);
        let (address, length) = card.host.reads.pop_front().unwrap();
        card.write(CONTROL, 2);
        assert_eq!(card.registers.get(CONTROL), 0);
        let data = card.host.bytes(address, length);
        card.mhi.read_done(&card.registers, Some(&data), &mut card.host);
        assert_eq!(card.event(0), (0, 0, 0));
        card.write(CONTROL, 2 << 8);
        assert_eq!(card.event(0), (0, 2 << 24, 0x20 << 16));
    }

    #[test]
    fn a_crash_is_told_by_the_loaders_vector() {
        let mut card = Card::load(32);
        card.host.raised.clear();
        card.mhi.crash(&mut card.registers, &mut card.host);
        assert_eq!((card.registers.get(STATUS), card.registers.get(BHI_ENVIRONMENT)), (0xff04, 3));
        assert_eq!(card.host.raised, [0]);
    }
}
