// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The Linux host side against trees that look like sysfs.

use super::*;
use crate::host::Isolation;
use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use tempfile::TempDir;

const ADDRESS: PciAddress = PciAddress { segment: 0x10, bus: 0x3b, devfn: 2 << 3 | 5 };

/// One function in a sysfs.
pub(super) struct Tree {
    sysfs: PathBuf,
    address: PciAddress,
    config: [u8; 256],
    /// Removes it, unless that is another's.
    _root: Option<TempDir>,
}

/// A function with a 64-bit MSI capability for 32 vectors at 0x50 and an MSI-X capability for 5 entries at 0x70,
/// whose table is 0x1040 bytes into BAR 2.
fn tree() -> Tree {
    let root = TempDir::new().unwrap();
    let tree = tree_at(root.path(), ADDRESS);
    Tree { _root: Some(root), ..tree }
}

/// The same at another place.
pub(super) fn tree_at(sysfs: &Path, address: PciAddress) -> Tree {
    let mut config = [0; 256];
    config[..0x10].copy_from_slice(&[
        0xcb, 0x17, 0x03, 0x11, 0x06, 0x04, 0x10, 0x00, 0x01, 0x00, 0x80, 0x02, 0, 0, 0, 0,
    ]);
    config[0x34] = 0x40;
    config[0x3d] = 2;
    config[0x40..0x44].copy_from_slice(&[0x01, 0x50, 0x03, 0x00]);
    config[0x50..0x54].copy_from_slice(&[0x05, 0x70, 0x8a, 0x01]);
    config[0x70..0x7c].copy_from_slice(&[0x11, 0x00, 0x04, 0x00, 0x42, 0x10, 0x00, 0x00, 0x02, 0x20, 0, 0]);
    let tree = Tree { sysfs: sysfs.to_owned(), address, config, _root: None };
    for (name, content) in [
        ("vendor", "0x17cb\n"),
        ("device", "0x1103\n"),
        ("subsystem_vendor", "0x17aa\n"),
        ("subsystem_device", "0x9309\n"),
        ("class", "0x028000\n"),
        ("revision", "0x01\n"),
    ] {
        tree.write(&format!("bus/pci/devices/{address}/{name}"), content);
    }
    tree.write("bus/pci/drivers/vfio-pci/bind", "");
    tree.link("../../drivers/vfio-pci", &format!("bus/pci/devices/{address}/driver"));
    tree.write("kernel/iommu_groups/17/type", "DMA-FQ\n");
    tree.link("../../../../kernel/iommu_groups/17", &format!("bus/pci/devices/{address}/iommu_group"));
    tree.write("kernel/irq/0/chip_name", "IR-IO-APIC\n");
    tree.save();
    tree
}

impl Tree {
    fn path(&self, path: &str) -> PathBuf {
        self.sysfs.join(path)
    }

    fn function(&self, path: &str) -> PathBuf {
        self.path("bus/pci/devices").join(self.address.to_string()).join(path)
    }

    fn write(&self, path: &str, content: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn link(&self, target: &str, path: &str) {
        symlink(target, self.path(path)).unwrap();
    }

    fn save(&self) {
        fs::write(self.function("config"), self.config).unwrap();
    }

    /// Changes registers under a function that is open.
    pub(super) fn poke(&self, offset: u64, bytes: &[u8]) {
        let file = fs::OpenOptions::new().write(true).open(self.function("config")).unwrap();
        file.write_all_at(bytes, offset).unwrap();
    }

    fn sysfs(&self, platform: Platform) -> Sysfs {
        Sysfs::at(&self.sysfs, platform)
    }

    pub(super) fn open(&self) -> Result<LinuxFunction, OpenError> {
        LinuxFunction::open(&self.sysfs(Platform::X86), self.address, None)
    }

    fn isolation(&self, platform: Platform) -> Isolation {
        LinuxFunction::open(&self.sysfs(platform), ADDRESS, None).unwrap().describe().isolation
    }

    /// The registers of MSI that is on with 2^`exponent` vectors.
    pub(super) fn show_msi(&self, exponent: u8) {
        self.poke(0x52, &[0x8b | exponent << 4, 0x01]);
        self.poke(0x54, &[0x78, 0x05, 0xe0, 0xfe, 0x99, 0, 0, 0, 0x20, 0x40]);
    }

    /// The registers of MSI that is off.
    pub(super) fn hide_msi(&self) {
        self.poke(0x52, &[0x8a, 0x01]);
    }

    /// The MSI-X enable bit.
    pub(super) fn show_msix(&self, enabled: bool) {
        self.poke(0x73, &[u8::from(enabled) << 7]);
    }

    /// Messages in these entries of the MSI-X table.
    pub(super) fn fill_table(&self, entries: &[usize]) {
        let mut bar = vec![0; 8192];
        for entry in entries {
            let at = 0x1040 + 16 * entry;
            bar[at..at + 4].copy_from_slice(&(0xfee0_0418u32 | (*entry as u32) << 5).to_le_bytes());
            bar[at + 4] = 0x77;
            bar[at + 8..at + 12].copy_from_slice(&(0xabc0_0000 | *entry as u32).to_le_bytes());
        }
        fs::write(self.function("resource2"), bar).unwrap();
    }

    /// MSI on with 2^`exponent` vectors, and as many interrupts allocated.
    fn enable_msi(&self, exponent: u8) {
        self.show_msi(exponent);
        fs::create_dir_all(self.function("msi_irqs")).unwrap();
        for irq in 0..1 << exponent {
            fs::write(self.function("msi_irqs").join((irq + 128).to_string()), "msi\n").unwrap();
        }
    }
}

fn msi(first: u16, count: u16) -> VectorRange {
    VectorRange::of_messages(IrqType::Msi, first, count).unwrap()
}

fn msix(first: u16, count: u16) -> VectorRange {
    VectorRange::of_messages(IrqType::Msix, first, count).unwrap()
}

#[track_caller]
fn refused(result: Result<LinuxFunction, OpenError>) -> String {
    result.unwrap_err().to_string()
}

mod opening {
    use super::*;

    #[test]
    fn finds_out_what_the_function_is() {
        let function = tree().open().unwrap();
        assert_eq!(function.name(), "0010:3b:02.5");
        let expected = Description {
            ids: virtio_irq_proto::PciIds {
                vendor: 0x17cb,
                device: 0x1103,
                subsystem_vendor: 0x17aa,
                subsystem_device: 0x9309,
                class_revision: 0x0280_0001,
            },
            intx_count: 1,
            msi_count: 32,
            msix_count: 5,
            isolation: Isolation::Isolated,
        };
        assert_eq!(function.describe(), expected);
    }

    #[test]
    fn takes_the_ids_of_a_virtual_function_from_the_kernel() {
        let mut tree = tree();
        tree.config[..4].copy_from_slice(&[0xff; 4]);
        tree.save();
        assert_eq!(tree.open().unwrap().describe().ids.vendor, 0x17cb);
    }

    #[test]
    fn names_a_function_that_is_not_there() {
        let sysfs = tree().sysfs(Platform::X86);
        let other = PciAddress { devfn: 3 << 3, ..ADDRESS };
        assert_eq!(
            refused(LinuxFunction::open(&sysfs, other, None)),
            "there is no PCI function 0010:3b:03.0 on this host: `lspci -D` lists those there are"
        );
    }

    #[test]
    fn names_the_driver_that_has_the_function_and_the_way_out() {
        let tree = tree();
        fs::remove_file(tree.function("driver")).unwrap();
        let message = refused(tree.open());
        assert!(
            message.starts_with("PCI function 0010:3b:02.5 is bound to no driver, not to vfio-pci"),
            "{message}"
        );
        tree.link("../../drivers/ath11k_pci", "bus/pci/devices/0010:3b:02.5/driver");
        let message = refused(tree.open());
        assert!(message.starts_with("PCI function 0010:3b:02.5 is bound to ath11k_pci, not"), "{message}");
        assert!(message.contains("driverctl set-override 0010:3b:02.5 vfio-pci"), "{message}");
    }

    #[test]
    fn takes_drivers_that_are_built_on_vfio_pci() {
        let tree = tree();
        fs::remove_file(tree.function("driver")).unwrap();
        tree.link("../../drivers/mlx5_vfio_pci", "bus/pci/devices/0010:3b:02.5/driver");
        tree.open().unwrap();
    }

    #[test]
    fn says_what_it_may_not_read() {
        let tree = tree();
        // What the kernel gives to a reader without CAP_SYS_ADMIN.
        fs::write(tree.function("config"), &tree.config[..64]).unwrap();
        let message = refused(tree.open());
        assert!(message.contains("only its first 64 bytes"), "{message}");
        assert!(message.contains("CAP_SYS_ADMIN"), "{message}");
    }

    #[test]
    fn recognizes_a_dead_function() {
        let tree = tree();
        fs::write(tree.function("config"), [0xff; 256]).unwrap();
        assert!(refused(tree.open()).starts_with("PCI function 0010:3b:02.5 is dead"));
    }

    #[test]
    fn names_what_is_missing_or_garbled() {
        let tree = tree();
        tree.write("bus/pci/devices/0010:3b:02.5/class", "junk\n");
        assert!(refused(tree.open()).contains("class of PCI function 0010:3b:02.5 is not what sysfs writes"));
        tree.write("bus/pci/devices/0010:3b:02.5/class", "0x028000\n");
        tree.write("bus/pci/devices/0010:3b:02.5/vendor", "0x12345\n");
        assert!(refused(tree.open()).contains("vendor of PCI function"));
        fs::remove_file(tree.function("config")).unwrap();
        assert!(refused(tree.open()).starts_with("cannot read"));
    }
}

mod the_capability_list {
    use super::*;

    fn found(change: impl FnOnce(&mut [u8; 256])) -> (u16, u16) {
        let mut tree = tree();
        change(&mut tree.config);
        tree.save();
        let what = tree.open().unwrap().describe();
        (what.msi_count, what.msix_count)
    }

    #[test]
    fn ends_where_it_loops() {
        assert_eq!(found(|config| config[0x71] = 0x50), (32, 5));
        assert_eq!(found(|config| config[0x41] = 0x40), (0, 0));
    }

    #[test]
    fn ends_where_nothing_answers() {
        assert_eq!(found(|config| config[0x70..].fill(0xff)), (32, 0));
        assert_eq!(found(|config| config[0x40..].fill(0xff)), (0, 0));
        assert_eq!(found(|config| config[0x51] = 0xff), (32, 0));
    }

    #[test]
    fn ends_at_a_pointer_into_the_header() {
        assert_eq!(found(|config| config[0x51] = 0x3c), (32, 0));
        assert_eq!(found(|config| config[0x34] = 0), (0, 0));
    }

    #[test]
    fn has_reserved_bits_in_its_pointers() {
        assert_eq!(found(|config| config[0x34] = 0x43), (32, 5));
    }

    #[test]
    fn may_be_absent() {
        assert_eq!(found(|config| config[6] = 0), (0, 0));
    }

    #[test]
    fn may_put_a_capability_beyond_the_end() {
        // A 64-bit MSI capability has 14 bytes, of which 12 are left.
        assert_eq!(
            found(|config| {
                config[0x34] = 0xf4;
                config[0xf4..0xf8].copy_from_slice(&[0x05, 0x70, 0x8a, 0x01]);
            }),
            (0, 5)
        );
        assert_eq!(found(|config| config[0x34..0x35].copy_from_slice(&[0xfc])), (0, 0));
        // An MSI-X capability with no room for its table's place; the next one in the list is whole.
        assert_eq!(
            found(|config| {
                config[0x34] = 0xfc;
                config[0xfc..].copy_from_slice(&[0x11, 0x50, 0x09, 0x00]);
            }),
            (32, 5)
        );
    }

    #[test]
    fn has_reserved_vector_counts() {
        assert_eq!(found(|config| config[0x52] = 0x8e), (32, 5));
        assert_eq!(found(|config| config[0x52] = 0x80), (1, 5));
        assert_eq!(found(|config| config[0x72..0x74].copy_from_slice(&[0xff, 0x07])), (32, 2048));
    }
}

mod msi_messages {
    use super::*;

    #[test]
    fn are_the_base_with_the_number_in_the_low_bits() {
        let tree = tree();
        let function = tree.open().unwrap();
        tree.enable_msi(5);
        assert_eq!(
            function.read_messages(msi(13, 3)).unwrap(),
            [0x402d, 0x402e, 0x402f].map(|data| Pair { address: 0x99_fee0_0578, data })
        );
        assert_eq!(
            function.read_messages(msi(31, 1)).unwrap(),
            [Pair { address: 0x99_fee0_0578, data: 0x403f }]
        );
    }

    #[test]
    fn of_a_32_bit_capability_have_their_data_elsewhere() {
        let mut tree = tree();
        tree.config[0x52] = 0x04;
        tree.config[0x54..0x60]
            .copy_from_slice(&[0x78, 0x05, 0xe0, 0xfe, 0x34, 0x12, 0x11, 0x11, 0, 0, 0, 0]);
        tree.save();
        let function = tree.open().unwrap();
        assert_eq!(function.describe().msi_count, 4);
        tree.poke(0x52, &[0x25]);
        fs::create_dir(tree.function("msi_irqs")).unwrap();
        for irq in 40..44 {
            fs::write(tree.function("msi_irqs").join(irq.to_string()), "msi\n").unwrap();
        }
        assert_eq!(
            function.read_messages(msi(2, 2)).unwrap(),
            [0x1236, 0x1237].map(|data| Pair { address: 0xfee0_0578, data })
        );
    }

    #[test]
    fn are_not_there_before_the_capability_is_enabled() {
        let tree = tree();
        let function = tree.open().unwrap();
        assert!(matches!(function.read_messages(msi(3, 1)), Err(HostError::NotEnabled)));
        tree.enable_msi(5);
        function.read_messages(msi(3, 1)).unwrap();
        tree.poke(0x52, &[0xda]);
        assert!(matches!(function.read_messages(msi(3, 1)), Err(HostError::NotEnabled)));
    }

    #[test]
    fn are_there_for_the_enabled_vectors_only() {
        let tree = tree();
        let function = tree.open().unwrap();
        tree.enable_msi(3);
        function.read_messages(msi(7, 1)).unwrap();
        function.read_messages(msi(1, 7)).unwrap();
        for range in [msi(8, 1), msi(7, 2), msi(1, 31)] {
            assert!(matches!(function.read_messages(range), Err(HostError::NotEnabled)), "{range:?}");
        }
    }

    #[test]
    fn are_there_for_the_allocated_vectors_only() {
        let tree = tree();
        let function = tree.open().unwrap();
        tree.enable_msi(3);
        // The host had 5, for which the capability has to say 8.
        for irq in 133..136 {
            fs::remove_file(tree.function("msi_irqs").join(irq.to_string())).unwrap();
        }
        function.read_messages(msi(3, 2)).unwrap();
        assert!(matches!(function.read_messages(msi(3, 3)), Err(HostError::NotEnabled)));
        fs::remove_dir_all(tree.function("msi_irqs")).unwrap();
        assert!(matches!(function.read_messages(msi(3, 1)), Err(HostError::NotEnabled)));
    }

    #[test]
    fn of_a_function_that_reads_all_ones_are_gone() {
        let tree = tree();
        let function = tree.open().unwrap();
        tree.poke(0, &[0xff; 256]);
        assert!(matches!(function.read_messages(msi(3, 1)), Err(HostError::Gone)));
        assert!(matches!(function.read_messages(msix(3, 1)), Err(HostError::Gone)));
    }

    #[test]
    fn that_cannot_be_read_are_an_error_with_its_cause() {
        let tree = tree();
        let function = tree.open().unwrap();
        fs::OpenOptions::new().write(true).open(tree.function("config")).unwrap().set_len(80).unwrap();
        let error = function.read_messages(msi(3, 1)).unwrap_err();
        assert!(error.to_string().starts_with("cannot read the configuration space: "), "{error}");
    }
}

mod msix_messages {
    use super::*;

    /// Five entries in BAR 2; entry 3 was never used.
    fn with_table() -> Tree {
        let tree = tree();
        tree.fill_table(&[0, 1, 2, 4]);
        tree
    }

    #[test]
    fn are_those_of_the_table() {
        let tree = with_table();
        let function = tree.open().unwrap();
        tree.show_msix(true);
        assert_eq!(
            function.read_messages(msix(1, 2)).unwrap(),
            [
                Pair { address: 0x77_fee0_0438, data: 0xabc0_0001 },
                Pair { address: 0x77_fee0_0458, data: 0xabc0_0002 },
            ]
        );
    }

    #[test]
    fn are_not_there_before_the_capability_is_enabled() {
        let tree = with_table();
        let function = tree.open().unwrap();
        assert!(matches!(function.read_messages(msix(1, 1)), Err(HostError::NotEnabled)));
    }

    #[test]
    fn of_a_range_with_an_unused_entry_are_not_told() {
        let tree = with_table();
        let function = tree.open().unwrap();
        tree.show_msix(true);
        for range in [msix(3, 1), msix(2, 3)] {
            assert!(matches!(function.read_messages(range), Err(HostError::NotEnabled)), "{range:?}");
        }
        function.read_messages(msix(4, 1)).unwrap();
    }

    #[test]
    fn in_memory_that_does_not_answer_are_not_there() {
        let tree = with_table();
        fs::write(tree.function("resource2"), [0xff; 8192]).unwrap();
        let function = tree.open().unwrap();
        tree.show_msix(true);
        assert!(matches!(function.read_messages(msix(1, 2)), Err(HostError::NotEnabled)));
    }

    #[test]
    fn behind_a_bar_that_is_missing_or_too_short_are_an_error() {
        let tree = with_table();
        let function = tree.open().unwrap();
        tree.show_msix(true);
        fs::OpenOptions::new().write(true).open(tree.function("resource2")).unwrap().set_len(16).unwrap();
        let error = function.read_messages(msix(1, 2)).unwrap_err().to_string();
        assert!(error.starts_with("cannot map the MSI-X table: "), "{error}");
        fs::remove_file(tree.function("resource2")).unwrap();
        let error = function.read_messages(msix(1, 2)).unwrap_err().to_string();
        assert!(error.starts_with("cannot open the BAR of the MSI-X table: "), "{error}");
    }
}

mod isolation {
    use super::*;

    #[test]
    fn on_x86_is_seen_at_the_names_of_the_chips() {
        let tree = tree();
        assert_eq!(tree.isolation(Platform::X86), Isolation::Isolated);
        tree.write("kernel/irq/0/chip_name", "IO-APIC\n");
        tree.write("kernel/irq/24/chip_name", "PCI-MSI-0010:3b:02.5\n");
        assert_eq!(
            tree.isolation(Platform::X86),
            Isolation::Missing("interrupt remapping is off on this host")
        );
    }

    #[test]
    fn of_a_function_that_has_interrupts_is_seen_at_those() {
        let tree = tree();
        tree.write("kernel/irq/24/chip_name", "PCI-MSI-0010:3b:02.5\n");
        tree.write("bus/pci/devices/0010:3b:02.5/msi_irqs/24", "msi\n");
        assert!(matches!(tree.isolation(Platform::X86), Isolation::Missing(_)));
        tree.write("kernel/irq/24/chip_name", "IR-PCI-MSI-0010:3b:02.5\n");
        assert_eq!(tree.isolation(Platform::X86), Isolation::Isolated);
    }

    #[test]
    fn on_arm64_is_the_its() {
        let tree = tree();
        assert_eq!(
            tree.isolation(Platform::Arm64),
            Isolation::Missing("no ITS of this host is seen to check its interrupts")
        );
        tree.write("kernel/irq/24/chip_name", "ITS-PCI-MSIX-0010:3b:02.5\n");
        assert_eq!(tree.isolation(Platform::Arm64), Isolation::Isolated);
        tree.write("kernel/irq/24/chip_name", "GICv2m-PCI-MSI-0010:3b:02.5\n");
        assert!(matches!(tree.isolation(Platform::Arm64), Isolation::Missing(_)));
    }

    /// `msi-map`: requester ids 0x3b00 to 0x3bff go to the controller 0x8002, those from 0x3c00 on to 0x8003.
    #[test]
    fn on_arm64_without_interrupts_is_what_the_device_tree_gives_the_function() {
        const MAP: [u32; 8] = [0x3b00, 0x8002, 0x3b00, 0x100, 0x3c00, 0x8003, 0x3c00, 0x100];
        let tree = tree();
        let cells = |path: &str, cells: &[u32]| {
            tree.write(path, "");
            let bytes: Vec<u8> = cells.iter().flat_map(|cell| cell.to_be_bytes()).collect();
            fs::write(tree.path(path), bytes).unwrap();
        };
        let seen = || tree.isolation(Platform::Arm64) == Isolation::Isolated;
        let its = "firmware/devicetree/base/intc@8000000/its@8080000";
        let frame = "firmware/devicetree/base/intc@8000000/v2m@8020000";
        tree.write(&format!("{its}/compatible"), "arm,gic-v3-its\0");
        cells(&format!("{its}/phandle"), &[0x8002]);
        tree.write(&format!("{frame}/compatible"), "arm,gic-v2m-frame\0");
        cells(&format!("{frame}/phandle"), &[0x8003]);
        let map = format!("bus/pci/devices/{ADDRESS}/of_node/msi-map");
        assert!(!seen());
        cells(&map, &MAP);
        assert!(seen());
        assert!(matches!(tree.isolation(Platform::X86), Isolation::Isolated), "by its chip");

        // The next bus, the frame that checks nothing, and a controller that is switched off.
        cells(&map, &MAP[4..]);
        assert!(!seen());
        cells(&map, &[0x3b00, 0x8003, 0x3b00, 0x100]);
        assert!(!seen());
        cells(&map, &MAP[..4]);
        tree.write(&format!("{its}/status"), "disabled\0");
        assert!(!seen());
        fs::remove_file(tree.path(&format!("{its}/status"))).unwrap();

        // A bridge without a map of its own, below one that has a parent.
        fs::remove_file(tree.path(&map)).unwrap();
        cells("bus/pci/devices/of_node/msi-parent", &[0x8002]);
        assert!(seen());
        // What the function's interrupts go through now is better known.
        tree.write("kernel/irq/24/chip_name", "GICv2m-PCI-MSI-0010:3b:02.5\n");
        tree.write(&format!("bus/pci/devices/{ADDRESS}/msi_irqs/24"), "msi\n");
        assert!(!seen());
    }

    #[test]
    fn needs_an_iommu_group_that_is_one() {
        let tree = tree();
        tree.write("kernel/iommu_groups/17/name", "vfio-noiommu\n");
        assert_eq!(tree.isolation(Platform::X86), Isolation::Missing("it is in a no-IOMMU group"));
        fs::remove_file(tree.function("iommu_group")).unwrap();
        assert_eq!(
            tree.isolation(Platform::X86),
            Isolation::Missing("it is in no IOMMU group: no IOMMU translates for it")
        );
    }

    #[test]
    fn is_not_assumed_where_nothing_is_known() {
        assert!(matches!(tree().isolation(Platform::Other), Isolation::Missing(_)));
    }
}
