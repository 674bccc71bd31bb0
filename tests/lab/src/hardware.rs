// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a host's hardware and kernel hold for a function, seen past all code that is under test.

use crate::error::{Error, Result};
use crate::host::Host;
use crate::msi::{Capability, ENTRY, Pair, Table, capability, pairs, table};

/// An interrupt that vfio-pci has requested for a function: a line of `/proc/interrupts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requested {
    /// What vfio-pci calls it, such as `vfio-msix[3]`.
    pub name: String,
    /// How often it came, on all processors.
    pub count: u64,
}

impl Host {
    /// The MSI capability that a function really has, from the kernel's own view of its configuration space.
    ///
    /// # Errors
    ///
    /// If it cannot be read or the function has none.
    pub fn msi(&self, function: &str) -> Result<Capability> {
        capability(&self.config(function)?)
            .ok_or_else(|| Error::Unexpected(format!("{function} has no MSI capability")))
    }

    /// The MSI-X capability that a function really has.
    ///
    /// # Errors
    ///
    /// If it cannot be read or the function has none.
    pub fn msix(&self, function: &str) -> Result<Table> {
        table(&self.config(function)?)
            .ok_or_else(|| Error::Unexpected(format!("{function} has no MSI-X capability")))
    }

    /// The messages in a function's own MSI-X table, as the device has them: read by the emulator, without the host's kernel.
    ///
    /// # Errors
    ///
    /// If the function has none.
    pub fn msix_pairs(&self, function: &str) -> Result<Vec<Pair>> {
        let table = self.msix(function)?;
        let path = format!("/sys/bus/pci/devices/{function}/resource");
        let resources = self.agent().read(&path)?;
        let start = resources.lines().nth(table.bar).and_then(|line| {
            let start = line.split(' ').next()?.strip_prefix("0x")?;
            u64::from_str_radix(start, 16).ok().filter(|start| *start != 0)
        });
        let start = start.ok_or_else(|| Error::Unexpected(format!("{path} has no BAR {}", table.bar)))?;
        Ok(pairs(&self.monitor().physical(start + table.offset, table.entries * ENTRY)?))
    }

    /// How often the interrupts of vfio-pci for a function have come on this host.
    ///
    /// # Errors
    ///
    /// If the agent does not answer.
    pub fn vfio_interrupts(&self, function: &str) -> Result<u64> {
        let table = self.agent().read("/proc/interrupts")?;
        Ok(interrupts(&table, &format!("({function})")))
    }

    /// The interrupts that vfio-pci has requested for a function on this host.
    ///
    /// # Errors
    ///
    /// If the agent does not answer.
    pub fn vfio_requested(&self, function: &str) -> Result<Vec<Requested>> {
        Ok(requested(&self.agent().read("/proc/interrupts")?, function))
    }

    fn config(&self, function: &str) -> Result<Vec<u8>> {
        self.agent().read_bytes(&format!("/sys/bus/pci/devices/{function}/config"))
    }
}

/// The sum over all processors of the interrupts whose line in `/proc/interrupts` contains `text`.
#[must_use]
pub fn interrupts(table: &str, text: &str) -> u64 {
    table.lines().filter(|line| line.contains(text)).map(count).sum()
}

fn requested(table: &str, function: &str) -> Vec<Requested> {
    let suffix = format!("({function})");
    let interrupt = |line: &str| {
        let name = line.split_whitespace().last()?.strip_suffix(&suffix)?;
        Some(Requested { name: name.to_owned(), count: count(line) })
    };
    table.lines().filter_map(interrupt).collect()
}

/// Behind the interrupt's number there is a count for each processor.
fn count(line: &str) -> u64 {
    let counts = line.split_whitespace().skip(1).map_while(|word| word.parse::<u64>().ok());
    counts.sum()
}

#[cfg(test)]
mod tests {
    use super::{Requested, interrupts, requested};

    const TABLE: &str = "           CPU0       CPU1\n 26:         70         30  IR-PCI-MSI-0000:00:05.0    0-edge      \
                         vfio-msi[0](0000:00:05.0)\n 27:          5          0  PCI-MSI 1-edge  virtio1\n";

    #[test]
    fn interrupts_are_summed_over_processors() {
        assert_eq!(interrupts(TABLE, "(0000:00:05.0)"), 100);
        assert_eq!(interrupts(TABLE, "absent"), 0);
    }

    #[test]
    fn a_requested_interrupt_has_the_name_that_vfio_gave_it() {
        let expected = Requested { name: "vfio-msi[0]".into(), count: 100 };
        assert_eq!(requested(TABLE, "0000:00:05.0"), [expected]);
        assert_eq!(requested(TABLE, "0000:00:06.0"), []);
    }
}
