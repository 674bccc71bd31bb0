// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One client's conversation with the card: messages in, messages out.

use crate::config::VECTORS;
use crate::device::{Device, Dma, Purpose, Region};
use crate::wire::{
    self, Access, DeviceInfo, DmaAccess, Header, IrqInfo, MAJOR, MINOR, Malformed, RegionInfo, Request,
    SetIrqs, Version, command,
};
use std::collections::BTreeMap;
use thiserror::Error;
use tracing::{debug, info, warn};
use zerocopy::IntoBytes;

/// Transfers that wait for the client's reply at most. The rest waits in the card.
const IN_FLIGHT: usize = 32;

/// VFIO's number of regions and of kinds of interrupts of a PCI device.
const REGIONS: u32 = 9;
const IRQS: u32 = 5;
const INTX: u32 = 0;
const MSI: u32 = 1;

const EINVAL: u32 = 22;
const EOPNOTSUPP: u32 = 95;

/// The client broke the protocol. The conversation is over.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Violation {
    /// A message that is none.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The first message must be the version's.
    #[error("command {0} before the versions were compared")]
    Early(u16),
    /// There is no common version.
    #[error("the client speaks version {0} of the protocol, the card version {MAJOR}")]
    Version(u16),
    /// A reply to nothing.
    #[error("a reply to request {id} with command {command}, of which there is none")]
    Unexpected {
        /// What it repeats.
        id: u16,
        /// What it is of.
        command: u16,
    },
}

/// Messages to send, in this order.
pub type Output = Vec<Vec<u8>>;

/// A conversation.
#[derive(Debug, Default)]
pub struct Session {
    device: Device,
    agreed: bool,
    last_id: u16,
    in_flight: BTreeMap<u16, (Purpose, Dma)>,
}

impl Session {
    /// With a card that was just switched on.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a message that brought `descriptors` descriptors, none of which the card needs.
    ///
    /// The reply comes first, then what the card wants to transfer: the client's processor may stand still until it has
    /// the reply, and the client with it.
    ///
    /// # Errors
    ///
    /// [`Violation`]: nothing more can be said to this client.
    pub fn take(&mut self, header: &Header, body: &[u8], descriptors: usize) -> Result<Output, Violation> {
        let mut output = Vec::new();
        let before = self.device.environment();
        if header.is_reply() {
            self.take_reply(header, body)?;
        } else {
            let request = Request::parse(header.command.get(), body, descriptors)?;
            let reply = self.serve(header, &request)?;
            if header.wants_reply() {
                output.push(reply);
            }
        }
        self.transfer(&mut output);
        let after = self.device.environment();
        if after != before {
            info!("the card runs {after}");
        }
        Ok(output)
    }

    fn serve(&mut self, header: &Header, request: &Request<'_>) -> Result<Vec<u8>, Violation> {
        if let Request::Version(version) = request {
            return self.agree(header, *version);
        }
        if !self.agreed {
            return Err(Violation::Early(header.command.get()));
        }
        let invalid = || wire::failure(header, EINVAL);
        Ok(match request {
            Request::DmaMap(_) => wire::reply(header, &[]),
            Request::DmaUnmap(unmap) => wire::reply(header, &[unmap.as_bytes()]),
            Request::GetInfo => wire::reply(header, &[device_info().as_bytes()]),
            Request::GetRegionInfo(asked) => match region_info(asked.index.get()) {
                Some(info) => wire::reply(header, &[info.as_bytes()]),
                None => invalid(),
            },
            Request::GetIrqInfo(asked) => match irq_info(asked.index.get()) {
                Some(info) => wire::reply(header, &[info.as_bytes()]),
                None => invalid(),
            },
            Request::SetIrqs(set) if can_set(set) => wire::reply(header, &[]),
            Request::SetIrqs(_) => invalid(),
            Request::RegionRead(access) => self.read(header, access).unwrap_or_else(invalid),
            Request::RegionWrite(access, data) => self.write(header, access, data).unwrap_or_else(invalid),
            Request::Reset => {
                self.device.reset();
                wire::reply(header, &[])
            }
            Request::Version(_) | Request::Unknown => wire::failure(header, EOPNOTSUPP),
        })
    }

    fn agree(&mut self, header: &Header, theirs: Version) -> Result<Vec<u8>, Violation> {
        if theirs.major.get() != MAJOR {
            return Err(Violation::Version(theirs.major.get()));
        }
        self.agreed = true;
        let minor = theirs.minor.get().min(MINOR);
        let version = Version { major: MAJOR.into(), minor: minor.into() };
        Ok(wire::reply(header, &[version.as_bytes(), &wire::capabilities()]))
    }

    fn read(&mut self, header: &Header, access: &Access) -> Option<Vec<u8>> {
        let region = Region::new(access.region.get())?;
        let mut data = vec![0; access.count.get() as usize];
        self.device.read(region, access.offset.get(), &mut data).ok()?;
        Some(wire::reply(header, &[access.as_bytes(), &data]))
    }

    fn write(&mut self, header: &Header, access: &Access, data: &[u8]) -> Option<Vec<u8>> {
        let region = Region::new(access.region.get())?;
        self.device.write(region, access.offset.get(), data).ok()?;
        Some(wire::reply(header, &[access.as_bytes()]))
    }

    fn take_reply(&mut self, header: &Header, body: &[u8]) -> Result<(), Violation> {
        let (id, command) = (header.id.get(), header.command.get());
        let unexpected = Violation::Unexpected { id, command };
        let Some((purpose, dma)) = self.in_flight.remove(&id) else { return Err(unexpected) };
        if command != command_of(&dma) {
            return Err(unexpected);
        }
        let data = match (header.failure(), &dma) {
            (Some(errno), _) => {
                warn!("{purpose:?}: errno {errno} for {dma:x?}");
                None
            }
            (None, Dma::Read { length, .. }) => Some(wire::dma_read_reply(body, *length as usize)?),
            (None, Dma::Write { .. }) => {
                wire::dma_write_reply(body)?;
                Some([].as_slice())
            }
        };
        self.device.dma_done(purpose, &dma, data);
        Ok(())
    }

    /// Asks for as many transfers as may be outstanding.
    fn transfer(&mut self, output: &mut Output) {
        while self.in_flight.len() < IN_FLIGHT {
            let Some((purpose, dma)) = self.device.next_dma() else { return };
            debug!("{purpose:?}: {dma:x?}");
            let id = self.free_id();
            output.push(match &dma {
                Dma::Write { address, data } => {
                    let access = DmaAccess { address: (*address).into(), count: (data.len() as u64).into() };
                    wire::request(id, command::DMA_WRITE, &[access.as_bytes(), data])
                }
                Dma::Read { address, length } => {
                    let access = DmaAccess { address: (*address).into(), count: u64::from(*length).into() };
                    wire::request(id, command::DMA_READ, &[access.as_bytes()])
                }
            });
            self.in_flight.insert(id, (purpose, dma));
        }
    }

    /// There is one: fewer are in use than there are.
    fn free_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            if !self.in_flight.contains_key(&self.last_id) {
                return self.last_id;
            }
        }
    }
}

fn command_of(dma: &Dma) -> u16 {
    match dma {
        Dma::Write { .. } => command::DMA_WRITE,
        Dma::Read { .. } => command::DMA_READ,
    }
}

fn size<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(0)
}

/// A PCI device that can be reset. QEMU resets it with the machine; the machine itself has no way to.
fn device_info() -> DeviceInfo {
    DeviceInfo {
        argsz: size::<DeviceInfo>().into(),
        flags: 0b11.into(),
        regions: REGIONS.into(),
        irqs: IRQS.into(),
    }
}

fn region_info(index: u32) -> Option<RegionInfo> {
    if index >= REGIONS {
        return None;
    }
    let region = Region::new(index);
    Some(RegionInfo {
        argsz: size::<RegionInfo>().into(),
        flags: region.map_or(0, |_| 0b11).into(),
        index: index.into(),
        size: region.map_or(0, |region| u64::from(region.size())).into(),
        ..RegionInfo::default()
    })
}

/// The number of vectors of a kind of interrupts.
fn vectors(index: u32) -> u32 {
    match index {
        INTX => 1,
        MSI => VECTORS,
        _ => 0,
    }
}

fn irq_info(index: u32) -> Option<IrqInfo> {
    if index >= IRQS {
        return None;
    }
    let flags: u32 = match index {
        INTX => 0b0111,
        MSI => 0b1001,
        _ => 0,
    };
    Some(IrqInfo {
        argsz: size::<IrqInfo>().into(),
        flags: flags.into(),
        index: index.into(),
        count: vectors(index).into(),
    })
}

/// The card raises its vectors by writing their messages, as hardware does, and never raises INTx. So there is nothing
/// to set up, only something to check.
fn can_set(set: &SetIrqs) -> bool {
    let end = set.start.get().checked_add(set.count.get());
    set.is_defined() && end.is_some_and(|end| end <= vectors(set.index.get()))
}
