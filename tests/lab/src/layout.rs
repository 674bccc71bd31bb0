// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where things are.

use crate::error::{At, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The directories of the lab, all under `target/lab` of the workspace.
#[derive(Debug, Clone)]
pub struct Layout {
    workspace: PathBuf,
    lab: PathBuf,
}

impl Layout {
    /// The lab of the workspace whose root directory is `workspace`.
    #[must_use]
    pub fn new(workspace: &Path) -> Self {
        Self { workspace: workspace.to_owned(), lab: workspace.join("target/lab") }
    }

    /// The workspace's root directory.
    #[must_use]
    pub fn workspace(&self) -> &Path {
        &self.workspace
    }

    /// The Debian tree: QEMU runs from it, the module is built in it, the emulated host's root it is.
    #[must_use]
    pub fn tree(&self) -> PathBuf {
        self.lab.join("tree")
    }

    /// The logs of one scenario, or of `provision` and `build`.
    #[must_use]
    pub fn logs(&self, of: &str) -> PathBuf {
        self.lab.join("logs").join(of)
    }

    /// Where `cargo xtask dist` writes what packagers install.
    #[must_use]
    pub fn dist(&self) -> PathBuf {
        self.workspace.join("target/dist")
    }

    pub(crate) fn lab(&self) -> &Path {
        &self.lab
    }

    /// cargo's target directory for the programs that go into the machines.
    pub(crate) fn programs(&self) -> PathBuf {
        self.lab.join("programs")
    }

    /// Uncompressed copies of the kernel modules that machines load.
    pub(crate) fn modules(&self) -> PathBuf {
        self.lab.join("modules")
    }

    /// The boot images of one scenario, as the tree sees the directory: QEMU runs in there.
    pub(crate) fn images(of: &str) -> PathBuf {
        Path::new("/build/images").join(of)
    }

    /// A path of the tree as it is seen from outside.
    pub(crate) fn outside(&self, path: &Path) -> PathBuf {
        self.tree().join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Waits until no other process prepares the lab. The lock goes with the returned file.
    pub(crate) fn lock(&self) -> Result<File> {
        fs::create_dir_all(&self.lab).at(&self.lab)?;
        let path = self.lab.join("lock");
        let file = File::create(&path).at(&path)?;
        file.lock().at(&path)?;
        Ok(file)
    }
}
