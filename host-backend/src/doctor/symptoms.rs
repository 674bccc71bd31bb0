// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Lines of kernel logs that are known to mean something, and what.

/// Lines with all of these words.
#[derive(Debug)]
pub(super) struct Known {
    words: &'static [&'static str],
    pub(super) meaning: &'static str,
    pub(super) advice: &'static str,
}

impl Known {
    pub(super) fn matches(&self, line: &str) -> bool {
        self.words.iter().all(|word| line.contains(word))
    }
}

const RESET: &str = "shut the guest down; if removing the function (echo 1 > /sys/bus/pci/devices/ADDRESS/remove) and \
                     rescanning (echo 1 > /sys/bus/pci/rescan) does not revive it, switch the host off and on";

/// In a host's log. VT-d's reasons are those of `irq_remap_fault_reasons` in drivers/iommu/intel/dmar.c.
pub(super) const HOST: &[Known] = &[
    Known {
        words: &["INTR-REMAP: reason 25"],
        meaning: "Xen blocked the message that the guest sees: the device wrote it",
        advice: "Xen keeps the messages to itself; use Linux with VFIO and virtio-irq",
    },
    Known {
        words: &["Blocked a compatibility format interrupt request"],
        meaning: "the device wrote the message that its guest sees, which is a fiction, and VT-d blocked it: this is \
                  what virtio-irq cures",
        advice: "see that the guest has the virtio-irq device and module and a driver that asks it: run \
                 `vhost-device-irq doctor --guest` in the guest",
    },
    Known {
        words: &["INTR-REMAP", "Present field in the IRTE entry is clear"],
        meaning: "the device wrote a message that was right once: its vector was disabled or moved since",
        advice: "let the guest's driver ask again after it enables MSI, as the patched ones do; do not write pairs \
                 into drivers by hand",
    },
    Known {
        words: &["INTR-REMAP", "source-id verification failure"],
        meaning: "the device wrote a message that belongs to another function, or one that a bridge in between signs \
                  with its own address",
        advice: "see that guest= of each --device is right and that no conventional PCI bridge is in between",
    },
    Known {
        words: &["INTR-REMAP", "index exceeded the interrupt-remapping table size"],
        meaning: "the device wrote a message with an index that the host never gave out",
        advice: "see that the guest's driver programs exactly what virtio-irq tells it",
    },
    Known {
        words: &["AMD-Vi: Event logged [INVALID_DEVICE_REQUEST"],
        meaning: "AMD-Vi blocked an interrupt message or a DMA access that it could not look up",
        advice: "if the device is assigned: see that its guest has virtio-irq and a driver that asks it",
    },
    Known {
        words: &["AMD-Vi: Event logged [IO_PAGE_FAULT"],
        meaning: "AMD-Vi blocked a DMA access, or an interrupt message that is not in the function's table: with an \
                  address of 0xfee... or 0xfffffffdf8... it is a message, which is what virtio-irq cures",
        advice: "if it is a message: run `vhost-device-irq doctor --guest` in the guest. Otherwise see that the \
                 device's DMA window fits the guest's memory",
    },
    Known {
        words: &["arm-smmu-v3", "F_TRANSLATION"],
        meaning: "the SMMU blocked a DMA access, or an interrupt message: one whose iova= is a doorbell, in the region msi of \
                  the function's group or where its guest has one, is a message, which is what virtio-irq cures",
        advice: "if it is a message: run `vhost-device-irq doctor --guest` in the guest. Otherwise see that the \
                 device's DMA window fits the guest's memory",
    },
    Known {
        words: &["No irq handler for"],
        meaning: "a message raised a vector that nobody uses: an unchecked message of a guest, or one of a vector \
                  that just went",
        advice: "if interrupt remapping is off, switch it on; else it is harmless when it is rare",
    },
    Known {
        words: &["DMAR: [DMA", "fault reason"],
        meaning: "the device accessed memory that its guest did not give it",
        advice: "a matter of the guest's driver or firmware, not of interrupts",
    },
    Known {
        words: &["No interrupt remapping support"],
        meaning: "VFIO refused the group, because nothing checks the messages of its functions",
        advice: "switch interrupt remapping on; what is in the way of it stands with the host above",
    },
    Known {
        words: &["ineligible for IOMMU domain attach due to platform RMRR"],
        meaning: "the firmware wants this function to keep access to memory of its own (an RMRR), so the kernel lets \
                  nobody assign it",
        advice: "look for a switch in the firmware's setup, or use another slot or function",
    },
    Known {
        words: &["chipset that contains an erratum making that"],
        meaning: "the chipset's interrupt remapping is broken, and the kernel left it off",
        advice: "this machine cannot do it safely; an update of its firmware changes nothing about the chipset",
    },
    Known {
        words: &["AMD-Vi", "not in IVRS table"],
        meaning: "the firmware forgot to describe an interrupt controller, and the kernel left interrupt remapping off",
        advice: "update the firmware, or describe it by hand (ivrs_ioapic= on the kernel's command line)",
    },
    Known {
        words: &["AMD-Vi", "No southbridge IOAPIC found"],
        meaning: "the firmware does not describe the interrupt controller of the southbridge, or as a device that is not \
                  the southbridge's, and the kernel left interrupt remapping off",
        advice: "update the firmware, or say where it is: ivrs_ioapic=ID@ADDRESS on the kernel's command line, with \
                 the address of the SMBus controller or ISA bridge that lspci shows",
    },
    Known {
        words: &["can't change power state from D3cold to D0"],
        meaning: "the function does not come back from its sleep: it reads all ones from now on",
        advice: RESET,
    },
    Known {
        words: &["not ready", "ms after", "giving up"],
        meaning: "the function did not survive its reset",
        advice: RESET,
    },
    Known {
        words: &["vfio_bar_restore: reset recovery"],
        meaning: "the function was reset behind VFIO's back: its firmware crashed, or its power went",
        advice: "if it does not work again after the guest's driver was reloaded: shut the guest down and start anew",
    },
    Known {
        words: &["nobody cared"],
        meaning: "an interrupt kept coming that no driver took for its own, and the kernel switched it off",
        advice: "if it is the function's INTx pin: let the guest use MSI",
    },
];

/// In a guest's log.
pub(super) const GUEST: &[Known] = &[
    Known {
        words: &["Service connect timeout"],
        meaning: "the Wi-Fi card's firmware runs, but its interrupts do not arrive: it writes a message that is not \
                  the host's",
        advice: "load virtio_irq and the patched driver, in this order, and load the driver again",
    },
    Known {
        words: &["failed to connect to HTT"],
        meaning: "as above: the first answer of the firmware raised an interrupt that did not arrive",
        advice: "load virtio_irq and the patched driver, in this order, and load the driver again",
    },
    Known {
        words: &["firmware crashed: MHI_CB_EE_RDDM"],
        meaning: "the card's firmware gave up: often after interrupts that did not arrive, or firmware files that do \
                  not fit",
        advice: "cure what stands above first; then see that linux-firmware is as new as the card",
    },
    Known {
        words: &["virtio_irq", "left alone:"],
        meaning: "the module found a device that it cannot use; the line says why",
        advice: "if it speaks of a version: use module and daemon of the same release",
    },
    Known {
        words: &["virtio-irq: the host does not list this function"],
        meaning: "the daemon was not told of this function",
        advice: "start the daemon with a --device for it, and with the guest= that this guest's lspci shows",
    },
    Known {
        words: &["virtio-irq: the host lists another model at this address"],
        meaning: "guest= of a --device names another function",
        advice: "compare guest= of each --device with this guest's lspci",
    },
    Known {
        words: &["virtio-irq: "],
        meaning: "the module could not do what a driver asked; the line says why",
        advice: "run `vhost-device-irq doctor` on the host, and look at the daemon's log",
    },
];

/// What a patched driver says when it was told the message.
pub(super) const TOLD: &str = "MSI message from host:";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_real_kernels_are_known_by_the_right_entry() {
        let known = |table: &[Known], line: &str| {
            table.iter().find(|known| known.matches(line)).map(|known| known.words[0])
        };
        let blocked = "DMAR: [INTR-REMAP] Request device [02:00.0] fault index 0x0 [fault reason 0x25] Blocked a \
                       compatibility format interrupt request";
        assert_eq!(known(HOST, blocked), Some("Blocked a compatibility format interrupt request"));
        let source = "DMAR: [INTR-REMAP] Request device [02:00.0] fault index 0x2b [fault reason 0x26] Blocked an \
                      interrupt request due to source-id verification failure";
        assert_eq!(known(HOST, source), Some("INTR-REMAP"));
        // Xen's own log, which its dom0's does not have: `xl dmesg`.
        let xen = "(XEN) [VT-D]INTR-REMAP: reason 25 - Blocked a compatibility format interrupt request";
        assert_eq!(known(HOST, xen), Some("INTR-REMAP: reason 25"));
        let dma = "DMAR: [DMA Write NO_PASID] Request device [02:00.0] fault addr 0xfffc0000 [fault reason 0x05] PTE \
                   Write access is not set";
        assert_eq!(known(HOST, dma), Some("DMAR: [DMA"));
        let translation = "arm-smmu-v3 9050000.smmuv3: event: F_TRANSLATION client: 0000:00:02.0 sid: 0x10 ssid: 0x0 \
                           iova: 0x8000040 ipa: 0x0";
        assert_eq!(known(HOST, translation), Some("arm-smmu-v3"));
        let southbridge = "AMD-Vi: [Firmware Bug]: : No southbridge IOAPIC found";
        let found = HOST.iter().find(|known| known.matches(southbridge)).map(|known| known.words[1]);
        assert_eq!(found, Some("No southbridge IOAPIC found"));
        assert_eq!(known(HOST, "DMAR-IR: Enabled IRQ remapping in x2apic mode"), None);
        assert_eq!(known(HOST, "vfio-pci 0000:02:00.0: enabling device (0000 -> 0002)"), None);
        assert_eq!(
            known(GUEST, "ath11k_pci 0000:00:06.0: MSI message from host: address 0xfee00578 data 0x0"),
            None
        );
        let unlisted = "ath11k_pci 0000:00:06.0: virtio-irq: the host does not list this function";
        assert_eq!(known(GUEST, unlisted), Some("virtio-irq: the host does not list this function"));
    }

    #[test]
    fn no_entry_matches_every_line() {
        for known in HOST.iter().chain(GUEST) {
            assert!(
                !known.words.is_empty() && known.words.iter().all(|word| word.len() > 5),
                "{:?}",
                known.words
            );
        }
    }
}
