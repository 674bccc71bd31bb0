// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether the disk has room for what is to come, said before minutes are spent on what would end in the middle.

use crate::error::{At, Error, Result};
use crate::layout::Layout;
use nix::sys::statvfs::statvfs;
use std::path::Path;

const MIB: u64 = 1 << 20;

/// What a lab takes from nothing to its last scenario: the tree with the kernels' sources, the programs, the boot images.
const WHOLE: u64 = 5120 * MIB;

/// What it still takes when its tree is there.
const REST: u64 = 1024 * MIB;

/// Refuses to begin without room for the rest.
///
/// # Errors
///
/// [`Error::Missing`] with what is needed and what there is.
pub(super) fn check(layout: &Layout) -> Result<()> {
    let lab = layout.lab();
    let there = statvfs(lab).map_err(std::io::Error::from).at(lab)?;
    let free = there.blocks_available().saturating_mul(there.fragment_size());
    let needed = if layout.tree().join("usr/src").exists() { REST } else { WHOLE };
    judge(lab, free, needed)
}

fn judge(lab: &Path, free: u64, needed: u64) -> Result<()> {
    if free >= needed {
        return Ok(());
    }
    Err(Error::Missing {
        missing: format!(
            "the lab takes up to {} MiB more in {}, and {} MiB are free there",
            needed / MIB,
            lab.display(),
            free / MIB
        ),
        remedy: "make room, or work in a checkout on another disk".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_refused_with_what_is_needed_and_what_there_is() {
        let lab = Path::new("target/lab");
        assert!(judge(lab, WHOLE, WHOLE).is_ok());
        let refused = judge(lab, REST - 1, REST).unwrap_err().to_string();
        assert!(refused.contains("up to 1024 MiB more in target/lab, and 1023 MiB are free"), "{refused}");
    }
}
