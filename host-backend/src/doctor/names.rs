// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Names of PCI models, from the system's own database.
//!
//! A crate would carry a copy of the database into the daemon, several times its size.

use super::cards;
use crate::vfio::Host;
use std::fs::File;
use std::io::{BufRead, BufReader};
use virtio_irq_proto::PciIds;

/// Where distributions keep `pci.ids`.
const DATABASES: &[&str] = &["usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids", "usr/share/pci.ids"];

/// What a model is called: by the database, by our own short list, or by what class of device it is.
pub(super) fn of(host: &Host, ids: PciIds) -> String {
    let known = cards::find(ids).map(|card| card.name.to_owned());
    let looked_up =
        || DATABASES.iter().find_map(|path| look_up(BufReader::new(File::open(host.path(path)).ok()?), ids));
    known.or_else(looked_up).unwrap_or_else(|| class(ids.class_revision).to_owned())
}

/// Vendor lines begin at the margin, their devices after one tab, subsystems after two. Class lines, which begin with
/// `C`, come last.
fn look_up(database: impl BufRead, ids: PciIds) -> Option<String> {
    let (vendor, device) = (format!("{:04x}  ", ids.vendor), format!("\t{:04x}  ", ids.device));
    // A database in another encoding ends the search.
    let mut lines = database.lines().map_while(Result::ok);
    let maker = lines.find_map(|line| line.strip_prefix(&vendor).map(str::to_owned))?;
    let model = lines
        .take_while(|line| line.starts_with(['\t', '#']) || line.is_empty())
        .find_map(|line| line.strip_prefix(&device).map(str::to_owned));
    Some(match model {
        Some(model) => format!("{maker} {model}"),
        None => format!("{maker} device {:04x}", ids.device),
    })
}

/// Base classes of the PCI code and ID assignment specification.
fn class(class_revision: u32) -> &'static str {
    match class_revision.to_be_bytes() {
        [0x01, ..] => "storage controller",
        [0x02, 0x80, ..] => "network controller",
        [0x02, ..] => "Ethernet controller",
        [0x03, ..] => "display controller",
        [0x04, ..] => "multimedia device",
        [0x06, ..] => "bridge",
        [0x0c, 0x03, ..] => "USB controller",
        [0x0d, ..] => "wireless controller",
        [0x12, ..] => "processing accelerator",
        _ => "PCI function",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATABASE: &str = "# comment\n17ca  Wrong\n\t1105  Not this\n17cb  Qualcomm Technologies, Inc\n\n\t0001  Other\n\
                            # remark\n\t1105  QCX\n\t\t17aa 9309  Sub\n17cc  Next\n\t1106  Not this either\nC 02  Network\n";

    fn named(vendor: u16, device: u16) -> Option<String> {
        look_up(DATABASE.as_bytes(), PciIds { vendor, device, ..PciIds::default() })
    }

    #[test]
    fn a_model_is_looked_up_under_its_own_vendor() {
        assert_eq!(named(0x17cb, 0x1105).as_deref(), Some("Qualcomm Technologies, Inc QCX"));
        assert_eq!(named(0x17cb, 0x1106).as_deref(), Some("Qualcomm Technologies, Inc device 1106"));
        assert_eq!(named(0x1234, 0x1106), None);
        assert_eq!(named(0x17aa, 0x9309), None);
    }

    #[test]
    fn a_system_without_a_database_has_names_still() {
        let host = Host::at("/nonexistent");
        let ids =
            |vendor, device, class_revision| PciIds { vendor, device, class_revision, ..PciIds::default() };
        assert_eq!(of(&host, ids(0x17cb, 0x1103, 0)), "Qualcomm WCN6855 (QCNFA765) Wi-Fi 6E");
        assert_eq!(of(&host, ids(0x8086, 1, 0x0280_0001)), "network controller");
        assert_eq!(of(&host, ids(0x8086, 1, 0xff00_0000)), "PCI function");
    }
}
