// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the host side adds to a request: reading what is programmed. The round trips are measured with a simulated
//! host, which reads nothing.

use crate::stats;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io;
use std::num::NonZeroU16;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::time::Instant;
use vhost_device_irq::host::HostFunction;
use vhost_device_irq::host::linux::{LinuxFunction, Platform, Sysfs};
use virtio_irq_proto::{IrqType, PciAddress, VectorRange};

const ADDRESS: PciAddress = PciAddress { segment: 0, bus: 0, devfn: 5 << 3 };
/// Reads of ordinary files.
const READS: usize = 20_000;
/// Reads of real registers, of which each can take a millisecond on a virtual machine.
const REAL_READS: usize = 1_000;
/// Offset of the MSI capability in the imitated configuration space.
const MSI: usize = 0x40;
/// Bytes of an MSI capability with a 64-bit address.
const MSI_SIZE: usize = 14;

pub(crate) fn measure() -> Value {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    imitate(directory.path()).expect("a copy of sysfs can be written");
    let sysfs = Sysfs::at(directory.path(), Platform::X86);
    let function = LinuxFunction::open(&sysfs, ADDRESS, None).expect("the copy is complete");
    let vectors = VectorRange { irq_type: IrqType::Msi, first: 0, count: NonZeroU16::MIN };
    let code = times(READS, || {
        let pairs = function.read_messages(vectors).expect("the copy has MSI enabled");
        assert_eq!(pairs.first().map(|pair| pair.data), Some(0x21));
    });
    json!({
        "msi_message_from_files": stats::summary(&code),
        "real_config": real().map(|(name, times)| json!({ "device": name, "read": stats::summary(&times) })),
    })
}

/// Reads as many bytes as an MSI capability has, twice, as a message is read, from a real configuration space. On a
/// virtual machine each is a trap.
fn real() -> Option<(String, Vec<u64>)> {
    let entry = fs::read_dir("/sys/bus/pci/devices").ok()?.filter_map(Result::ok).next()?;
    let config = File::open(entry.path().join("config")).ok()?;
    let mut bytes = [0; MSI_SIZE];
    // Only root may read this far.
    config.read_exact_at(&mut bytes, MSI as u64).ok()?;
    let times = times(REAL_READS, || {
        for _ in 0..2 {
            config.read_exact_at(&mut bytes, MSI as u64).expect("what could be read can be read again");
        }
    });
    Some((entry.file_name().to_string_lossy().into_owned(), times))
}

fn times(count: usize, mut read: impl FnMut()) -> Vec<u64> {
    (0..count)
        .map(|_| {
            let start = Instant::now();
            read();
            u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
        })
        .collect()
}

/// A function with one MSI vector, as sysfs shows it, in ordinary files.
fn imitate(root: &Path) -> io::Result<()> {
    let function = root.join("bus/pci/devices").join(ADDRESS.to_string());
    fs::create_dir_all(&function)?;
    let mut config = [0_u8; 256];
    config[..4].copy_from_slice(&[0x34, 0x12, 0xe8, 0x11]);
    config[6] = 0x10; // Status: there is a list of capabilities.
    config[0x34] = MSI as u8;
    // MSI, the last one; control: enabled, 64-bit; address, data.
    config[MSI..MSI + 4].copy_from_slice(&[5, 0, 0x81, 0]);
    config[MSI + 4..MSI + 12].copy_from_slice(&0xfee0_0578_u64.to_le_bytes());
    config[MSI + 12] = 0x21;
    fs::write(function.join("config"), config)?;
    for (file, content) in [
        ("vendor", "0x1234\n"),
        ("device", "0x11e8\n"),
        ("subsystem_vendor", "0x1af4\n"),
        ("subsystem_device", "0x1100\n"),
        ("class", "0x00ff00\n"),
        ("revision", "0x10\n"),
    ] {
        fs::write(function.join(file), content)?;
    }
    symlink("../../../bus/pci/drivers/vfio-pci", function.join("driver"))
}
