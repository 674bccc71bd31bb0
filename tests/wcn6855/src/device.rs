// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The card: accesses in, DMA out.

use crate::config::{self, Config, Message};
use crate::memory::{Words, words};
use crate::mhi::{Bus, Environment, Mhi};
use crate::nonsense::Nonsense;
use crate::ring::{ADDRESS_HIGH, ENABLE, RINGS};
use std::collections::VecDeque;
use thiserror::Error;

/// Registers that no card has, at the end of BAR 0, where no driver of a real one looks. For tests.
pub mod test_page {
    /// Offset of the page in BAR 0. What follows are offsets in the page.
    pub const OFFSET: u32 = 0x1f_f000;
    /// Read: [`MAGIC`].
    pub const IDENTITY: u32 = 0x00;
    /// "W685" in memory.
    pub const MAGIC: u32 = u32::from_le_bytes(*b"W685");
    /// Read: number of rings.
    pub const RING_COUNT: u32 = 0x04;
    /// Write: index of the ring that is to fire now, or [`ALL`].
    pub const KICK: u32 = 0x08;
    /// Every ring, in the order of their indexes.
    pub const ALL: u32 = 0xffff_ffff;
    /// Read: messages of rings that were written, since the last reset.
    pub const WRITTEN: u32 = 0x0c;
    /// Read: messages of rings that could not be written.
    pub const FAILED: u32 = 0x10;
    /// Read: kicks of rings that are not enabled, or do not exist.
    pub const IGNORED: u32 = 0x14;
    /// Write, whatever: the firmware crashes.
    pub const CRASH: u32 = 0x18;
    /// Read: what runs on the card: 0 or 1 the boot loaders, 2 the firmware, 3 what is left of it after a crash.
    pub const ENVIRONMENT: u32 = 0x1c;
    /// Read and write: what is wrong with the card, 0 if nothing is. A reset by the driver leaves it.
    pub const NONSENSE: u32 = 0x20;
    /// Read: the card's own address of the first register of ring n is at `RINGS + 4 * n`.
    pub const RINGS: u32 = 0x100;
}

/// Where BAR 0 shows a part of the card's own address space. Below, the two are the same.
const WINDOW: u32 = 0x8_0000;
const WINDOW_SIZE: u32 = 0x8_0000;
const WINDOW_COUNT: usize = 64;

/// Which part that is.
const WINDOW_SELECT: u32 = 0x310c;
const WINDOW_ENABLE: u32 = 1 << 30;
const WINDOW_INDEX: u32 = 0x3f;

const GLOBAL_RESET: u32 = 0x3008;
const GLOBAL_RESET_ON: u32 = 1;

/// Registers of the card that are not 0 after a reset, by its own addresses.
const INITIAL: &[(u32, u32)] = &[
    // Chip version 2.1 (hardware version 2, 0x10), as ath11k's log prints it for a QCNFA765.
    (0x224, 0x400c_0210),
    // The PCIe link is trained.
    (0x1e0_81b0, 0x0000_0111),
];

/// Most transfers that may wait to be sent.
const QUEUE: usize = 1024;

/// What can be accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// BAR 0.
    Bar0,
    /// The configuration space.
    Config,
}

impl Region {
    /// The region with VFIO's number `index`, if the card has it.
    #[must_use]
    pub fn new(index: u32) -> Option<Self> {
        match index {
            0 => Some(Self::Bar0),
            7 => Some(Self::Config),
            _ => None,
        }
    }

    /// Its length in bytes.
    #[must_use]
    pub fn size(self) -> u32 {
        match self {
            Self::Bar0 => config::BAR_SIZE,
            Self::Config => config::SIZE,
        }
    }
}

/// An access does not lie within its region.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{length} bytes at {offset:#x} are not within the region")]
pub struct Outside {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: usize,
}

/// A transfer that the card wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dma {
    /// Write to memory.
    Write {
        /// The card's address of it.
        address: u64,
        /// What.
        data: Vec<u8>,
    },
    /// Read memory.
    Read {
        /// The card's address of it.
        address: u64,
        /// Number of bytes.
        length: u32,
    },
}

/// What a transfer is for; comes back with its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A ring sends its message.
    Ring(usize),
    /// A message of the MSI capability.
    Vector,
    /// MHI's business.
    Interface,
}

/// The card.
#[derive(Debug)]
pub struct Device {
    config: Config,
    /// Registers below the window.
    low: Words,
    /// The parts of the card's address space that the window can show, each made when it is first written.
    parts: Vec<Option<Words>>,
    mhi: Mhi,
    queue: VecDeque<(Purpose, Dma)>,
    counters: Counters,
    nonsense: Nonsense,
}

#[derive(Debug, Default)]
struct Counters {
    written: u32,
    failed: u32,
    ignored: u32,
}

impl Default for Device {
    fn default() -> Self {
        Self::new()
    }
}

impl Device {
    /// A card that was just switched on.
    #[must_use]
    pub fn new() -> Self {
        let mut low = Words::new(WINDOW);
        let mhi = Mhi::new(&mut low);
        let mut device = Self {
            config: Config::new(),
            low,
            parts: vec![None; WINDOW_COUNT],
            mhi,
            queue: VecDeque::new(),
            counters: Counters::default(),
            nonsense: Nonsense::None,
        };
        device.set_initial();
        device
    }

    /// Switches it off and on.
    pub fn reset(&mut self) {
        self.config = Config::new();
        self.counters = Counters::default();
        self.nonsense = Nonsense::None;
        self.queue.retain(|(_, dma)| matches!(dma, Dma::Read { .. }));
        self.reset_chip();
    }

    /// Reads `buffer.len()` bytes.
    ///
    /// # Errors
    ///
    /// [`Outside`]; nothing is read.
    pub fn read(&mut self, region: Region, offset: u64, buffer: &mut [u8]) -> Result<(), Outside> {
        let offset = within(region, offset, buffer.len())?;
        for (at, first, part) in words(offset, buffer.len()) {
            let word = match region {
                Region::Bar0 => self.read_register(at),
                Region::Config => self.config.read(at),
            };
            let bytes = word.to_le_bytes();
            for (to, from) in
                buffer.get_mut(part).unwrap_or_default().iter_mut().zip(bytes.iter().skip(first))
            {
                *to = *from;
            }
        }
        Ok(())
    }

    /// Writes `data`, as one write of each word that it touches.
    ///
    /// # Errors
    ///
    /// [`Outside`]; nothing is written.
    pub fn write(&mut self, region: Region, offset: u64, data: &[u8]) -> Result<(), Outside> {
        let offset = within(region, offset, data.len())?;
        for (at, first, part) in words(offset, data.len()) {
            let new = data.get(part).unwrap_or_default();
            let merge = |old: u32| {
                let mut bytes = old.to_le_bytes();
                for (to, from) in bytes.iter_mut().skip(first).zip(new) {
                    *to = *from;
                }
                u32::from_le_bytes(bytes)
            };
            match region {
                Region::Bar0 => {
                    // What a register reads as is what a write of a part of it leaves of the rest.
                    let value = if new.len() == 4 { merge(0) } else { merge(self.read_register(at)) };
                    self.write_register(at, value);
                }
                Region::Config => {
                    let value = merge(self.config.read(at));
                    for message in self.config.write(at, value) {
                        push(&mut self.queue, send(message));
                    }
                }
            }
        }
        Ok(())
    }

    /// The next transfer to carry out. Transfers must be carried out in the order in which they come.
    pub fn next_dma(&mut self) -> Option<(Purpose, Dma)> {
        self.queue.pop_front()
    }

    /// What runs on the card.
    pub(crate) fn environment(&self) -> Environment {
        self.mhi.environment()
    }

    /// A transfer ended; `data` is what a read brought.
    pub fn dma_done(&mut self, purpose: Purpose, dma: &Dma, data: Option<&[u8]>) {
        match (purpose, dma) {
            (Purpose::Ring(_), _) if data.is_some() => {
                self.counters.written = self.counters.written.wrapping_add(1);
            }
            (Purpose::Ring(_), _) => self.counters.failed = self.counters.failed.wrapping_add(1),
            (Purpose::Interface, Dma::Read { .. }) => {
                let mut port = Port { config: &mut self.config, queue: &mut self.queue };
                self.mhi.read_done(&self.low, data, &mut port);
            }
            (Purpose::Vector | Purpose::Interface, _) => {}
        }
    }

    fn set_initial(&mut self) {
        for &(address, value) in INITIAL {
            self.set(address, value);
        }
    }

    /// What the driver can cause: everything but the configuration space.
    fn reset_chip(&mut self) {
        self.low = Words::new(WINDOW);
        self.parts = vec![None; WINDOW_COUNT];
        self.mhi.reset(&mut self.low);
        self.set_initial();
    }

    /// The register of the card that an offset in BAR 0 is, or nothing.
    fn address(&self, at: u32) -> Option<u32> {
        if at < WINDOW {
            return Some(at);
        }
        let select = self.low.get(WINDOW_SELECT);
        let shown = select & WINDOW_ENABLE != 0 && at < WINDOW.wrapping_add(WINDOW_SIZE);
        shown.then_some(((select & WINDOW_INDEX) << 19) | (at & (WINDOW_SIZE - 1)))
    }

    fn get(&self, address: u32) -> u32 {
        if address < WINDOW {
            return self.low.get(address);
        }
        let part = self.parts.get((address >> 19) as usize);
        part.and_then(Option::as_ref).map_or(0, |part| part.get(address & (WINDOW_SIZE - 1)))
    }

    fn set(&mut self, address: u32, value: u32) {
        if address < WINDOW {
            self.low.set(address, value);
        } else if let Some(part) = self.parts.get_mut((address >> 19) as usize) {
            let part = part.get_or_insert_with(|| Words::new(WINDOW_SIZE));
            part.set(address & (WINDOW_SIZE - 1), value);
        }
    }

    fn read_register(&self, at: u32) -> u32 {
        if let Some(at) = at.checked_sub(test_page::OFFSET) {
            return self.read_test_page(at);
        }
        // What nobody answers reads as all ones.
        self.address(at).map_or(u32::MAX, |address| self.nonsense.read(address, self.get(address)))
    }

    fn write_register(&mut self, at: u32, value: u32) {
        if let Some(at) = at.checked_sub(test_page::OFFSET) {
            return self.write_test_page(at, value);
        }
        if self.nonsense == Nonsense::Gone {
            return;
        }
        let Some(address) = self.address(at) else { return };
        if address == GLOBAL_RESET && value & GLOBAL_RESET_ON != 0 {
            self.reset_chip();
        }
        self.set(address, value);
        if address < WINDOW {
            let mut port = Port { config: &mut self.config, queue: &mut self.queue };
            self.mhi.written(&mut self.low, address, value, &mut port);
        }
    }

    fn read_test_page(&self, at: u32) -> u32 {
        match at {
            test_page::IDENTITY => test_page::MAGIC,
            test_page::RING_COUNT => u32::try_from(RINGS.len()).unwrap_or(0),
            test_page::WRITTEN => self.counters.written,
            test_page::FAILED => self.counters.failed,
            test_page::IGNORED => self.counters.ignored,
            test_page::ENVIRONMENT => self.mhi.environment() as u32,
            test_page::NONSENSE => self.nonsense as u32,
            _ => {
                let index = at.checked_sub(test_page::RINGS).map(|at| at as usize / 4);
                index.and_then(|index| RINGS.get(index)).map_or(0, |ring| ring.register)
            }
        }
    }

    fn write_test_page(&mut self, at: u32, value: u32) {
        match at {
            test_page::KICK if value == test_page::ALL => (0..RINGS.len()).for_each(|index| self.kick(index)),
            test_page::KICK => self.kick(value as usize),
            test_page::NONSENSE => self.nonsense = Nonsense::new(value),
            test_page::CRASH if self.mhi.environment() == Environment::Firmware => {
                let mut port = Port { config: &mut self.config, queue: &mut self.queue };
                self.mhi.crash(&mut self.low, &mut port);
            }
            _ => {}
        }
    }

    /// Lets a ring send its message.
    fn kick(&mut self, index: usize) {
        let message = RINGS.get(index).and_then(|ring| {
            let high = self.get(ring.register.wrapping_add(4));
            let low = self.get(ring.register);
            let data = self.get(ring.register.wrapping_add(8));
            let address = u64::from(low) | u64::from(high & ADDRESS_HIGH) << 32;
            (high & ENABLE != 0).then_some((address, data))
        });
        let Some((address, data)) = message else {
            self.counters.ignored = self.counters.ignored.wrapping_add(1);
            return;
        };
        let dma = Dma::Write { address, data: data.to_le_bytes().to_vec() };
        if !push(&mut self.queue, (Purpose::Ring(index), dma)) {
            self.counters.failed = self.counters.failed.wrapping_add(1);
        }
    }
}

/// The way from MHI to memory.
struct Port<'a> {
    config: &'a mut Config,
    queue: &'a mut VecDeque<(Purpose, Dma)>,
}

impl Bus for Port<'_> {
    fn read(&mut self, address: u64, length: u32) {
        // Never more than one, and MHI waits for it: this one must not get lost.
        self.queue.push_back((Purpose::Interface, Dma::Read { address, length }));
    }

    fn write(&mut self, address: u64, data: &[u8]) {
        push(self.queue, (Purpose::Interface, Dma::Write { address, data: data.to_vec() }));
    }

    fn raise(&mut self, vector: u32) {
        if let Some(message) = self.config.raise(vector) {
            push(self.queue, send(message));
        }
    }
}

fn send(message: Message) -> (Purpose, Dma) {
    let data = message.data.to_le_bytes().to_vec();
    (Purpose::Vector, Dma::Write { address: message.address, data })
}

/// Puts a transfer into the queue, unless that is full.
fn push(queue: &mut VecDeque<(Purpose, Dma)>, transfer: (Purpose, Dma)) -> bool {
    let room = queue.len() < QUEUE;
    if room {
        queue.push_back(transfer);
    }
    room
}

fn within(region: Region, offset: u64, length: usize) -> Result<u32, Outside> {
    let outside = Outside { offset, length };
    let begin = u32::try_from(offset).map_err(|_| Outside { offset, length })?;
    let end = offset.checked_add(length as u64);
    if end.is_some_and(|end| end <= u64::from(region.size())) { Ok(begin) } else { Err(outside) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(device: &mut Device, at: u32) -> u32 {
        let mut bytes = [0; 4];
        device.read(Region::Bar0, at.into(), &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }

    fn write(device: &mut Device, at: u32, value: u32) {
        device.write(Region::Bar0, at.into(), &value.to_le_bytes()).unwrap();
    }

    /// As ath11k writes registers beyond the window.
    fn write_far(device: &mut Device, address: u32, value: u32) {
        write(device, 0x310c, 0x4000_0000 | (address >> 19));
        write(device, 0x8_0000 + (address & 0x7_ffff), value);
    }

    fn transfers(device: &mut Device) -> Vec<(Purpose, Dma)> {
        std::iter::from_fn(|| device.next_dma()).collect()
    }

    fn program(device: &mut Device, ring: usize, address: u64, data: u32) {
        let register = RINGS[ring].register;
        write_far(device, register, address as u32);
        write_far(device, register + 4, (address >> 32) as u32 | 0x100);
        write_far(device, register + 8, data);
    }

    #[test]
    fn a_kicked_ring_writes_its_data_to_its_address() {
        let mut device = Device::new();
        program(&mut device, 9, 0x12_fee0_0578, 0x1f);
        write(&mut device, 0x1f_f008, 9);
        let expected = Dma::Write { address: 0x12_fee0_0578, data: vec![0x1f, 0, 0, 0] };
        assert_eq!(transfers(&mut device), [(Purpose::Ring(9), expected)]);
    }

    #[test]
    fn a_ring_that_is_not_enabled_does_nothing() {
        let mut device = Device::new();
        program(&mut device, 2, 0xfee0_0578, 5);
        write_far(&mut device, RINGS[2].register + 4, 0);
        for index in [2, 3, 17, 0x8000_0000] {
            write(&mut device, 0x1f_f008, index);
        }
        assert_eq!(transfers(&mut device), []);
        assert_eq!(read(&mut device, 0x1f_f014), 4);
    }

    #[test]
    fn nonsense_outlasts_a_reset_by_the_driver_and_ends_when_it_is_told_to() {
        let mut device = Device::new();
        write(&mut device, 0x1f_f020, 1);
        write(&mut device, 0x3008, 1);
        assert_eq!((read(&mut device, 0x224), read(&mut device, 0x1f_f020)), (0xffff_ffff, 1));
        write(&mut device, 0x1f_f020, 4);
        write(&mut device, 0x3008, 1);
        assert_eq!((read(&mut device, 0x224), read(&mut device, 0x28)), (0x400c_0210, 0xffff_fff0));
        write(&mut device, 0x1f_f020, 0);
        assert_eq!(read(&mut device, 0x28), 0x100);
    }

    #[test]
    fn all_rings_fire_in_order() {
        let mut device = Device::new();
        for ring in 0..17 {
            program(&mut device, ring, 0xfee0_0218, ring as u32 + 14);
        }
        write(&mut device, 0x1f_f008, 0xffff_ffff);
        let data = |dma: &Dma| if let Dma::Write { data, .. } = dma { data[0] } else { 0 };
        let sent: Vec<_> = transfers(&mut device).iter().map(|(_, dma)| data(dma)).collect();
        assert_eq!(sent, (14..31).collect::<Vec<u8>>());
    }

    #[test]
    fn the_window_shows_the_part_that_is_selected() {
        let mut device = Device::new();
        write_far(&mut device, 0x1b8_0048, 0x1111_1111);
        write_far(&mut device, 0xa0_0048, 0x2222_2222);
        assert_eq!(read(&mut device, 0x8_0048), 0x2222_2222);
        write(&mut device, 0x310c, 0x4000_0037);
        assert_eq!(read(&mut device, 0x8_0048), 0x1111_1111);
        write(&mut device, 0x310c, 0x37);
        assert_eq!(read(&mut device, 0x8_0048), 0xffff_ffff);
    }

    #[test]
    fn ath11k_finds_a_chip_that_it_knows() {
        let mut device = Device::new();
        let version = read(&mut device, 0x224);
        assert_eq!((version >> 8 & 0xf, version & 0xff), (2, 0x10));
        write(&mut device, 0x310c, 0x4000_0000 | (0x191_0010 >> 19));
        assert_eq!(read(&mut device, 0x8_0000 + (0x191_0010 & 0x7_ffff)), 0);
    }

    #[test]
    fn a_global_reset_forgets_rings_and_firmware_and_not_the_configuration_space() {
        let mut device = Device::new();
        program(&mut device, 0, 0xfee0_0578, 1);
        device.write(Region::Config, 0x10, &0xfe00_0000_u32.to_le_bytes()).unwrap();
        write(&mut device, 0x3008, 1);
        assert_eq!(read(&mut device, 0x3008), 1);
        assert_eq!(read(&mut device, 0x310c), 0);
        write(&mut device, 0x3008, 0);
        write(&mut device, 0x1f_f008, 0);
        assert_eq!(transfers(&mut device), []);
        let mut bar = [0; 4];
        device.read(Region::Config, 0x10, &mut bar).unwrap();
        assert_eq!(bar, 0xfe00_0004_u32.to_le_bytes());
    }

    #[test]
    fn bytes_are_merged_into_words() {
        let mut device = Device::new();
        write(&mut device, 0x4040, 0x4433_2211);
        device.write(Region::Bar0, 0x4042, &[0xaa, 0xbb, 0xcc]).unwrap();
        let mut bytes = [0; 6];
        device.read(Region::Bar0, 0x4041, &mut bytes).unwrap();
        assert_eq!(bytes, [0x22, 0xaa, 0xbb, 0xcc, 0, 0]);
    }

    #[test]
    fn an_access_beyond_the_end_is_refused_as_a_whole() {
        let mut device = Device::new();
        assert!(device.write(Region::Bar0, 0x1f_fffd, &[1; 4]).is_err());
        assert!(device.read(Region::Config, 0xff, &mut [0; 2]).is_err());
        assert!(device.read(Region::Bar0, u64::MAX, &mut [0; 2]).is_err());
        assert!(device.read(Region::Bar0, 1 << 32, &mut [0; 1]).is_err());
        assert!(device.read(Region::Config, 0x100, &mut []).is_ok());
    }

    #[test]
    fn the_ends_of_transfers_are_counted() {
        let mut device = Device::new();
        let dma = Dma::Write { address: 0, data: vec![] };
        device.dma_done(Purpose::Ring(0), &dma, Some(&[]));
        device.dma_done(Purpose::Ring(0), &dma, None);
        device.dma_done(Purpose::Ring(1), &dma, None);
        assert_eq!((read(&mut device, 0x1f_f00c), read(&mut device, 0x1f_f010)), (1, 2));
    }

    #[test]
    fn a_driver_that_kicks_without_end_fills_no_memory() {
        let mut device = Device::new();
        program(&mut device, 0, 0xfee0_0578, 1);
        for _ in 0..5000 {
            write(&mut device, 0x1f_f008, 0);
        }
        assert_eq!(transfers(&mut device).len(), 1024);
        assert_eq!(read(&mut device, 0x1f_f010), 5000 - 1024);
    }
}
