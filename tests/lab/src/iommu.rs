// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The IOMMUs that emulated hosts can have, and where one sees what they do with a message.

use crate::error::{At, Error, Result};
use crate::host::Host;
use crate::msi::Pair;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// An IOMMU that remaps interrupts.
#[derive(Debug)]
pub struct Iommu {
    /// What emulates it, as QEMU's `-device` has it.
    pub(crate) device: &'static str,
    /// What the host's kernel has to be told to use it.
    pub(crate) argument: &'static str,
    /// QEMU's trace events of it that go to QEMU's log.
    pub(crate) events: &'static [&'static str],
    /// What the host's kernel logs when it remaps interrupts by it.
    pub(crate) remaps: &'static str,
    /// What shows that a message came whose vector nobody on the host uses.
    pub(crate) unknown: Sign,
    /// What shows that a message came whose vector was given back.
    pub(crate) freed: Sign,
}

/// What shows where a message ended.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sign {
    /// A line of the host's kernel with this in it.
    Kernel(&'static str),
    /// The trace event of QEMU that refuses it, right behind the one by which QEMU takes it.
    Emulator,
}

/// How QEMU's log shows that AMD-Vi takes a message, without its address and data.
const AMDVI_TAKES: &str = "amdvi_ir_remap_msi_req";

/// How it goes on if the message's entry of the table is not valid.
const AMDVI_REFUSES: &str = "amdvi_ir_target_abort RemapEn is disabled";

impl Iommu {
    /// Intel's. QEMU's lets a message in compatibility format through to the processor, where real hardware would block it; there
    /// the kernel says that it has no handler.
    pub const VTD: Self = Self {
        device: "intel-iommu,intremap=on,caching-mode=on",
        argument: "intel_iommu=on",
        events: &[],
        remaps: "Enabled IRQ remapping",
        // Data 0x99 is vector 153.
        unknown: Sign::Kernel("No irq handler for 0.153"),
        // The entry of the table is not present.
        freed: Sign::Kernel("fault reason 0x22"),
    };

    /// AMD's. QEMU's refuses messages as hardware does, and like hardware with DTE.SA unset tells the kernel nothing of it
    /// (`amdvi_mem_ir_write` in hw/i386/amd_iommu.c); so QEMU is asked.
    ///
    /// QEMU looks up whatever has no requester id as 00:14.0, which it has for the IO-APIC's: edu has none, and has to be there.
    /// Since Linux 7.3 the kernel uses interrupt remapping only if the IO-APIC's device is an ISA bridge or SMBus controller
    /// (`check_sb_ioapic` in drivers/iommu/amd/init.c), so it is told that it is the ISA bridge. It then remaps the IO-APIC's
    /// interrupts in the wrong table, and none of them comes; the lab's machines use none.
    pub const AMDVI: Self = Self {
        device: "amd-iommu,intremap=on,dma-remap=on,xtsup=on",
        argument: "ivrs_ioapic=0@0000:00:1f.0",
        events: &[AMDVI_TAKES, "amdvi_ir_target_abort"],
        remaps: "AMD-Vi: Interrupt remapping enabled",
        unknown: Sign::Emulator,
        freed: Sign::Emulator,
    };
}

impl Sign {
    /// What a line of the host's kernel has in it that is this sign.
    pub(crate) fn kernel(self) -> Option<&'static str> {
        match self {
            Self::Kernel(text) => Some(text),
            Self::Emulator => None,
        }
    }
}

/// A time, as the logs of a host have it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    kernel: usize,
    emulator: usize,
}

impl Host {
    /// Now.
    pub(crate) fn mark(&self) -> Result<Mark> {
        Ok(Mark { kernel: self.agent().kernel_mark(), emulator: self.emulator_log()?.len() })
    }

    /// The line that is the `sign` of the message `pair` that a device wrote after `mark`; nothing if there is none within
    /// `limit`.
    pub(crate) fn sign_of(
        &self,
        pair: Pair,
        sign: Sign,
        mark: Mark,
        limit: Duration,
    ) -> Result<Option<String>> {
        match sign {
            Sign::Kernel(text) => match self.agent().kernel_line(mark.kernel, text, limit) {
                Ok(line) => Ok(Some(line)),
                // That it does not come is a finding; the host is well.
                Err(Error::Late { .. }) => Ok(None),
                Err(error) => Err(error),
            },
            // QEMU logs while the device writes, so it is there or does not come.
            Sign::Emulator => {
                Ok(self.emulator_log()?.get(mark.emulator..).and_then(|log| refused(log, pair)))
            }
        }
    }

    fn emulator_log(&self) -> Result<String> {
        let path: PathBuf = self.agent().kernel_log().with_file_name("host-qemu.log");
        // What the machine's firmware writes to it need not be text.
        fs::read(&path).at(&path).map(|log| String::from_utf8_lossy(&log).into_owned())
    }
}

/// The line by which a log says that AMD-Vi refused this message.
fn refused(log: &str, Pair { address, data }: Pair) -> Option<String> {
    let taken = format!("{AMDVI_TAKES} addr {address:#x} data {data:#x} ");
    let (first, second) = (log.lines(), log.lines().skip(1));
    let line = first.zip(second).find(|(line, next)| line.starts_with(&taken) && *next == AMDVI_REFUSES);
    line.map(|(line, next)| format!("{line}, {next}"))
}

#[cfg(test)]
mod tests {
    use super::{Pair, refused};

    #[test]
    fn a_message_is_refused_by_the_line_behind_its_own() {
        let log = "amdvi_ir_remap_msi_req addr 0xfee00000 data 0x9 devid 0xa0\n\
                   amdvi_ir_remap_msi_req addr 0xfee00000 data 0x99 devid 0xa0\n\
                   amdvi_ir_target_abort RemapEn is disabled\n";
        let pair = |data| Pair { address: 0xfee0_0000, data };
        let expected = "amdvi_ir_remap_msi_req addr 0xfee00000 data 0x99 devid 0xa0, amdvi_ir_target_abort RemapEn is disabled";
        assert_eq!(refused(log, pair(0x99)).as_deref(), Some(expected));
        assert_eq!(refused(log, pair(9)), None);
        assert_eq!(refused(log, Pair { address: 0xfee0_1000, data: 0x99 }), None);
    }
}
