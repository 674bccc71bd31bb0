// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VFIO with character devices for the machines' kernel, which Debian configures without them and without IOMMUFD: modules of that
//! kernel's own source, with those options on. They take the place of the stock ones.

use super::drivers::source;
use super::kernel::release;
use crate::error::{At, Result};
use crate::layout::Layout;
use crate::program::{self, in_tree};
use crate::progress::Stage;
use std::fs;
use std::path::{Path, PathBuf};

/// Where they are built, as the tree sees it.
const BUILD: &str = "/build/cdev";

const SCRIPT: &str = include_str!("cdev.sh");

/// In an order in which they load.
const MODULES: [&str; 4] = ["iommufd", "vfio", "vfio-pci-core", "vfio-pci"];

/// Builds them, unless that was done before, and returns where they are.
///
/// # Errors
///
/// [`Error::Program`](crate::Error::Program) where apt failed, or with the compiler's last words.
pub(crate) fn character_devices(layout: &Layout) -> Result<[PathBuf; 4]> {
    let _lock = layout.lock()?;
    let tree = layout.tree();
    let release = release(&tree)?;
    let built = layout.outside(Path::new(BUILD));
    // Written last: a build that was broken off is none.
    let (stamp, inputs) = (built.join("stamp"), format!("{release}\n{SCRIPT}"));
    if !fs::read_to_string(&stamp).is_ok_and(|last| last == inputs) {
        let stage = Stage::begin("build IOMMUFD and VFIO with character devices");
        let source = source(layout, &release)?;
        let mut build = in_tree(&tree, "sh");
        build.args(["-c", SCRIPT, "cdev.sh", &release]).arg(source).arg(BUILD);
        program::run("build VFIO", &mut build, &layout.logs("build").join("cdev.log"))?;
        fs::write(&stamp, inputs).at(&stamp)?;
        stage.done();
    }
    Ok(MODULES.map(|name| built.join(format!("modules/{name}.ko"))))
}
