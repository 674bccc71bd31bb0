// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! virtio-drivers' view of a vhost-user session: the registers of a virtio device.

use crate::session::{Ring, Session, SessionError};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{Error, PhysAddr, Result};
use virtio_irq_proto::{Config, QUEUE_COUNT};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A virtio device behind a vhost-user session.
///
/// As with QEMU, the backend hears of features and rings when the driver sets DRIVER_OK, and that they are over when
/// it writes 0 to the status. The trait has no way to report errors; [`VhostUser::check`] has the first one.
#[derive(Debug)]
pub(crate) struct VhostUser {
    session: Session,
    config: [u8; Config::SIZE],
    status: DeviceStatus,
    features: u64,
    rings: [Option<Ring>; QUEUE_COUNT as usize],
    error: Option<SessionError>,
}

impl VhostUser {
    pub(crate) fn new(mut session: Session) -> std::result::Result<Self, SessionError> {
        let config = session.config()?;
        let (status, features) = (DeviceStatus::empty(), 0);
        Ok(Self { session, config, status, features, rings: [None; QUEUE_COUNT as usize], error: None })
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    pub(crate) fn config(&self) -> &[u8] {
        &self.config
    }

    /// The first error since the last call.
    pub(crate) fn check(&mut self) -> std::result::Result<(), SessionError> {
        self.error.take().map_or(Ok(()), Err)
    }

    fn note(&mut self, result: std::result::Result<(), SessionError>) {
        if let Err(error) = result {
            self.error.get_or_insert(error);
        }
    }
}

impl Transport for VhostUser {
    fn device_type(&self) -> DeviceType {
        unreachable!("virtio-drivers has no name for this device, and its queues do not ask")
    }

    fn read_device_features(&mut self) -> u64 {
        self.session.device_features()
    }

    fn write_driver_features(&mut self, features: u64) {
        self.features = features;
    }

    fn max_queue_size(&mut self, _queue: u16) -> u32 {
        // vhost-user cannot ask; a backend that wants less refuses the size.
        1024
    }

    fn notify(&mut self, queue: u16) {
        let kicked = self.session.kick(usize::from(queue));
        self.note(kicked);
    }

    fn get_status(&self) -> DeviceStatus {
        self.status
    }

    fn set_status(&mut self, status: DeviceStatus) {
        let was_running = self.status.contains(DeviceStatus::DRIVER_OK);
        let runs = status.contains(DeviceStatus::DRIVER_OK);
        self.status = status;
        let result = match (was_running, runs, self.rings) {
            (false, true, [Some(requests), Some(events)]) => {
                self.session.start(self.features, &[requests, events])
            }
            (false, true, _) => Err(SessionError::Ring),
            (true, false, _) => self.session.stop(),
            _ => Ok(()),
        };
        if status.is_empty() {
            self.rings = [None; QUEUE_COUNT as usize];
            self.features = 0;
        }
        self.note(result);
    }

    fn set_guest_page_size(&mut self, _size: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        let ring = u16::try_from(size).map(|size| Ring {
            size,
            descriptors,
            available: driver_area,
            used: device_area,
        });
        match (self.rings.get_mut(usize::from(queue)), ring) {
            (Some(slot), Ok(ring)) => *slot = Some(ring),
            _ => self.note(Err(SessionError::Ring)),
        }
    }

    fn queue_unset(&mut self, queue: u16) {
        if let Some(slot) = self.rings.get_mut(usize::from(queue)) {
            *slot = None;
        }
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.rings.get(usize::from(queue)).is_some_and(Option::is_some)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::QUEUE_INTERRUPT
    }

    fn read_config_generation(&self) -> u32 {
        // The space never changes.
        0
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        let bytes = self.config.get(offset..).ok_or(Error::ConfigSpaceTooSmall)?;
        T::read_from_prefix(bytes).map(|(value, _)| value).map_err(|_| Error::ConfigSpaceTooSmall)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, _offset: usize, _value: T) -> Result<()> {
        // Read-only for the driver.
        Err(Error::Unsupported)
    }
}
