// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Models whose drivers copy their message into the device, and what is known of them.

use virtio_irq_proto::PciIds;

use Driver::{Ath11k, Ath12k, Sample};

/// A model.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Card {
    vendor: u16,
    device: u16,
    /// What it is sold as, for systems without a database of PCI ids.
    pub(super) name: &'static str,
    driver: Driver,
    /// Whether it has a function-level reset.
    pub(super) resets: bool,
}

/// Its Linux driver; of the Wi-Fi drivers also how many MSI vectors that asks for.
#[derive(Debug, PartialEq, Eq)]
enum Driver {
    Ath11k(u8),
    Ath12k(u8),
    /// The sample of this project.
    Sample,
}

/// Ids and vector counts are those of `ath11k_pci_id_table` and `ath11k_msi_config` in drivers/net/wireless/ath/ath11k
/// and their counterparts in ath12k.
const CARDS: &[Card] = &[
    wifi(0x1101, "Qualcomm QCA6390 Wi-Fi 6", Ath11k(1), true),
    wifi(0x1103, "Qualcomm WCN6855 (QCNFA765) Wi-Fi 6E", Ath11k(32), false),
    wifi(0x1104, "Qualcomm QCN9074 Wi-Fi 6E", Ath11k(16), true),
    wifi(0x1107, "Qualcomm WCN7850 Wi-Fi 7", Ath12k(16), false),
    wifi(0x1109, "Qualcomm QCN9274 Wi-Fi 7", Ath12k(16), true),
    wifi(0x1112, "Qualcomm QCC2072 Wi-Fi 7", Ath12k(16), true),
    Card { vendor: 0x1234, device: 0x11e8, name: "QEMU's educational device", driver: Sample, resets: true },
];

const fn wifi(device: u16, name: &'static str, driver: Driver, resets: bool) -> Card {
    Card { vendor: 0x17cb, device, name, driver, resets }
}

impl Card {
    /// Functions that its driver has only if it asks virtio-irq, by the patches of this project.
    pub(super) fn asks(&self) -> &'static [&'static str] {
        match self.driver {
            Ath11k(_) => &["ath11k_pci_virtio_irq_get", "ath11k_pci_update_msi"],
            Ath12k(_) => &["ath12k_pci_virtio_irq_get", "ath12k_pci_update_msi"],
            Sample => &["edu_host_message"],
        }
    }

    /// What somebody who assigns it should know.
    pub(super) fn known(&self) -> String {
        let (driver, vectors) = match self.driver {
            Ath11k(vectors) => ("ath11k", vectors),
            Ath12k(vectors) => ("ath12k", vectors),
            Sample => {
                return "a device for trying things: its DMA engine can write an MSI message, and the sample driver lets it"
                    .to_owned();
            }
        };
        let wants = if vectors > 1 {
            format!(". It asks for {vectors} vectors and runs with 1")
        } else {
            String::new()
        };
        let reset = if self.resets {
            ""
        } else {
            ". It has no function-level reset: after a crash of the guest it can take a power cycle of the host to revive it"
        };
        format!(
            "its rings write MSI messages that the driver copied: the guest needs virtio-irq and the patched \
             {driver}{wants}{reset}"
        )
    }
}

/// The model with these ids, if it is one of these.
pub(super) fn find(ids: PciIds) -> Option<&'static Card> {
    CARDS.iter().find(|card| (card.vendor, card.device) == (ids.vendor, ids.device))
}
