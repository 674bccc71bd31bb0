// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The configuration space of a function, kept open.

use super::OpenError;
use super::capability::{CONFIG_SIZE, MsiBlock, MsiCapability, MsixCapability, Snapshot};
use super::sysfs::{Function, Sysfs};
use crate::host::HostError;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const COMMAND_AND_STATUS: u64 = 0x04;

/// sysfs `config`.
#[derive(Debug)]
pub(super) struct ConfigFile(File);

/// Reading the registers one after the other can meet the kernel while it writes them. Two equal readings in a row
/// are a message that was there; a function that never gives two equal readings has a fault.
const READINGS: usize = 8;

impl ConfigFile {
    pub(super) fn open(sysfs: &Sysfs, function: &Function) -> Result<Self, OpenError> {
        let address = function.address();
        sysfs.open_config(address).map(Self).map_err(|source| OpenError::Read {
            address,
            path: function.path().join("config"),
            source,
        })
    }

    /// Everything, once.
    pub(super) fn snapshot(&self, function: &Function) -> Result<Snapshot, OpenError> {
        let address = function.address();
        let mut bytes = [0xff; CONFIG_SIZE];
        let mut readable = 0;
        while readable < CONFIG_SIZE {
            let count = self.0.read_at(&mut bytes[readable..], readable as u64).map_err(|source| {
                OpenError::Read { address, path: function.path().join("config"), source }
            })?;
            if count == 0 {
                break;
            }
            readable += count;
        }
        if readable < CONFIG_SIZE {
            return Err(OpenError::Unprivileged { address, readable });
        }
        // Reserved bits of the status register are 0. The ids are no sign: those of a virtual function read all ones.
        if bytes[4..8] == [0xff; 4] {
            return Err(OpenError::Dead { address });
        }
        Ok(bytes)
    }

    pub(super) fn read_msi(&self, msi: MsiCapability) -> Result<MsiBlock, HostError> {
        let mut previous = None;
        for _ in 0..READINGS {
            let mut registers = [0; 14];
            let registers = registers.get_mut(..msi.size()).ok_or(HostError::NotEnabled)?;
            self.read(registers, u64::from(msi.offset))?;
            if registers.iter().all(|byte| *byte == 0xff) {
                self.require_alive()?;
            }
            let block = msi.decode(registers).ok_or(HostError::NotEnabled)?;
            if previous == Some(block) {
                return Ok(block);
            }
            previous = Some(block);
        }
        Err(HostError::failed("read the MSI registers twice the same")(io::ErrorKind::InvalidData.into()))
    }

    pub(super) fn msix_is_enabled(&self, msix: MsixCapability) -> Result<bool, HostError> {
        let mut flags = [0; 2];
        self.read(&mut flags, u64::from(msix.offset) + 2)?;
        let flags = u16::from_le_bytes(flags);
        if flags == u16::MAX {
            self.require_alive()?;
        }
        Ok(flags & MsixCapability::ENABLE != 0)
    }

    /// A function that left reads all ones.
    pub(super) fn require_alive(&self) -> Result<(), HostError> {
        let mut bytes = [0; 4];
        self.read(&mut bytes, COMMAND_AND_STATUS)?;
        if bytes == [0xff; 4] { Err(HostError::Gone) } else { Ok(()) }
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), HostError> {
        self.0.read_exact_at(buffer, offset).map_err(|error| match error.raw_os_error() {
            // sysfs, once the function's directory is removed.
            Some(libc::ENODEV | libc::ENOENT) => HostError::Gone,
            _ => HostError::failed("read the configuration space")(error),
        })
    }
}
