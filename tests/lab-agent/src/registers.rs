// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Registers of PCI functions, through the files that sysfs has for their BARs.

use crate::failure;
use std::fs::{File, OpenOptions};
use std::io;
use std::sync::atomic::Ordering;
use virtio_irq_lab_agent::{Answer, Failure};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

/// A register.
const WORD: usize = size_of::<u32>();

/// Reads `count` registers from `offset` on, in one load each.
pub(crate) fn load(path: &str, offset: usize, count: usize) -> Result<Answer, Failure> {
    let load = || -> io::Result<Vec<u32>> {
        let bar = map(path)?;
        let registers = bar.as_volatile_slice();
        let register =
            |index| registers.load(offset + index * WORD, Ordering::Relaxed).map_err(io::Error::other);
        (0..count).map(register).collect()
    };
    load()
        .map(Answer::Words)
        .map_err(|error| failure(&format!("load {count} registers at {offset:#x} of {path}"), &error))
}

/// Writes a register, in one store.
pub(crate) fn store(path: &str, offset: usize, value: u32) -> Result<Answer, Failure> {
    let store = || -> io::Result<()> {
        map(path)?.as_volatile_slice().store(value, offset, Ordering::Relaxed).map_err(io::Error::other)
    };
    store().map_err(|error| failure(&format!("store {value:#x} at {offset:#x} of {path}"), &error))?;
    Ok(Answer::Done)
}

/// Maps a whole BAR. Not for long: a driver that claims it takes the mapping away.
fn map(path: &str) -> io::Result<MmapRegion> {
    let file: File = OpenOptions::new().read(true).write(true).open(path)?;
    let size = file.metadata()?.len().try_into().map_err(io::Error::other)?;
    MmapRegion::from_file(FileOffset::new(file, 0), size).map_err(|error| match error {
        vm_memory::mmap::MmapRegionError::Mmap(error) => error,
        error => io::Error::other(error),
    })
}

#[cfg(test)]
mod tests {
    use super::{load, store};
    use virtio_irq_lab_agent::Answer;

    #[test]
    fn a_stored_register_is_loaded_and_its_neighbors_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resource0");
        std::fs::write(&path, [0x11; 16]).unwrap();
        let path = path.to_str().unwrap();
        assert_eq!(store(path, 8, 0xdead_beef), Ok(Answer::Done));
        assert_eq!(load(path, 4, 3), Ok(Answer::Words(vec![0x1111_1111, 0xdead_beef, 0x1111_1111])));
    }

    #[test]
    fn what_is_beyond_the_bar_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("resource0");
        std::fs::write(&path, [0; 16]).unwrap();
        assert!(store(path.to_str().unwrap(), 16, 1).is_err());
        assert!(load(path.to_str().unwrap(), 12, 2).is_err());
    }
}
