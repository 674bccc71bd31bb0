// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Models whose drivers copy their message into the device, and what is known of them.

use virtio_irq_proto::PciIds;

/// A model.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Card {
    vendor: u16,
    device: u16,
    /// What it is sold as, for systems without a database of PCI ids.
    pub(super) name: &'static str,
    /// Functions that its Linux driver has only if it asks virtio-irq, by the patches of this project.
    pub(super) asks: &'static [&'static str],
    /// Whether it has a function-level reset.
    pub(super) resets: bool,
    /// What somebody who assigns it should know.
    pub(super) known: &'static str,
}

const QUALCOMM: u16 = 0x17cb;

/// Ids and vector counts are those of `ath11k_pci_id_table` and `ath11k_msi_config` in drivers/net/wireless/ath/ath11k
/// and their counterparts in ath12k.
const CARDS: &[Card] = &[
    Card {
        vendor: QUALCOMM,
        device: 0x1101,
        name: "Qualcomm QCA6390 Wi-Fi 6",
        asks: &["ath11k_pci_virtio_irq_get", "ath11k_pci_update_msi"],
        resets: true,
        known: "its rings write MSI messages that the driver copied: the guest needs virtio-irq and the patched ath11k",
    },
    Card {
        vendor: QUALCOMM,
        device: 0x1103,
        name: "Qualcomm WCN6855 (QCNFA765) Wi-Fi 6E",
        asks: &["ath11k_pci_virtio_irq_get", "ath11k_pci_update_msi"],
        resets: false,
        known: "its rings write MSI messages that the driver copied: the guest needs virtio-irq and the patched \
                ath11k. It asks for 32 vectors and runs with 1. It has no function-level reset: after a crash of the \
                guest it can take a power cycle of the host to revive it",
    },
    Card {
        vendor: QUALCOMM,
        device: 0x1104,
        name: "Qualcomm QCN9074 Wi-Fi 6E",
        asks: &["ath11k_pci_virtio_irq_get", "ath11k_pci_update_msi"],
        resets: true,
        known: "its rings write MSI messages that the driver copied: the guest needs virtio-irq and the patched \
                ath11k. It asks for 16 vectors and runs with 1",
    },
    Card {
        vendor: QUALCOMM,
        device: 0x1107,
        name: "Qualcomm WCN7850 Wi-Fi 7",
        asks: &["ath12k_pci_virtio_irq_get", "ath12k_pci_update_msi"],
        resets: false,
        known: "its rings write MSI messages that the driver copied: the guest needs virtio-irq and the patched \
                ath12k. It asks for 16 vectors and runs with 1. It has no function-level reset: after a crash of the \
                guest it can take a power cycle of the host to revive it",
    },
    Card {
        vendor: QUALCOMM,
        device: 0x1109,
        name: "Qualcomm QCN9274 Wi-Fi 7",
        asks: &["ath12k_pci_virtio_irq_get", "ath12k_pci_update_msi"],
        resets: true,
        known: "its rings write MSI messages that the driver copied: the guest needs virtio-irq and the patched \
                ath12k. It asks for 16 vectors and runs with 1",
    },
    Card {
        vendor: QUALCOMM,
        device: 0x1112,
        name: "Qualcomm QCC2072 Wi-Fi 7",
        asks: &["ath12k_pci_virtio_irq_get", "ath12k_pci_update_msi"],
        resets: true,
        known: "its rings write MSI messages that the driver copied: the guest needs virtio-irq and the patched \
                ath12k. It asks for 16 vectors and runs with 1",
    },
    Card {
        vendor: 0x1234,
        device: 0x11e8,
        name: "QEMU's educational device",
        asks: &["edu_host_message"],
        resets: true,
        known: "a device for trying things: its DMA engine can write an MSI message, and the sample driver lets it",
    },
];

/// The model with these ids, if it is one of these.
pub(super) fn find(ids: PciIds) -> Option<&'static Card> {
    CARDS.iter().find(|card| (card.vendor, card.device) == (ids.vendor, ids.device))
}
