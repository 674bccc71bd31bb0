// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where sysfs keeps what.

use super::OpenError;
use crate::opener::Opener;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use virtio_irq_proto::{PciAddress, PciIds};

/// A mounted sysfs, the architecture that it is of, and who may open what in it.
#[derive(Clone, Debug)]
pub struct Sysfs {
    root: PathBuf,
    platform: Platform,
    opener: Option<Opener>,
}

/// Architectures that differ in what isolates interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// Interrupt remapping of VT-d or AMD-Vi.
    X86,
    /// An ITS with an SMMU.
    Arm64,
    /// Anything else: nothing is known about it here.
    Other,
}

impl Platform {
    /// The one that this program runs on.
    pub const HERE: Self = if cfg!(any(target_arch = "x86", target_arch = "x86_64")) {
        Self::X86
    } else if cfg!(target_arch = "aarch64") {
        Self::Arm64
    } else {
        Self::Other
    };
}

/// The directory of one PCI function.
#[derive(Debug)]
pub(super) struct Function {
    address: PciAddress,
    path: PathBuf,
}

impl Sysfs {
    /// This host's.
    pub fn here() -> Self {
        Self::at("/sys", Platform::HERE)
    }

    /// The one under `root`, which may be a copy of another machine's.
    pub fn at(root: impl Into<PathBuf>, platform: Platform) -> Self {
        Self { root: root.into(), platform, opener: None }
    }

    /// The same, with configuration spaces opened by `opener` instead of this process.
    #[must_use]
    pub fn through(self, opener: Option<Opener>) -> Self {
        Self { opener, ..self }
    }

    /// A function's configuration space.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn open_config(&self, address: PciAddress) -> io::Result<File> {
        match &self.opener {
            Some(opener) => opener.config(address),
            None => File::open(self.path_of(address).join("config")),
        }
    }

    fn path_of(&self, address: PciAddress) -> PathBuf {
        self.root.join("bus/pci/devices").join(address.to_string())
    }

    pub(crate) fn platform(&self) -> Platform {
        self.platform
    }

    pub(super) fn join(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    pub(super) fn function(&self, address: PciAddress) -> Result<Function, OpenError> {
        let path = self.path_of(address);
        match fs::metadata(&path) {
            Ok(_) => Ok(Function { address, path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(OpenError::NotFound { address }),
            Err(source) => Err(OpenError::Read { address, path, source }),
        }
    }
}

impl Function {
    pub(super) fn address(&self) -> PciAddress {
        self.address
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// vfio-pci, or one of the drivers for single models that are built on it and have vfio in their names.
    pub(super) fn require_vfio_driver(&self) -> Result<(), OpenError> {
        let driver = self.link_name("driver")?;
        if driver.as_deref().is_some_and(|name| name.contains("vfio")) {
            return Ok(());
        }
        Err(OpenError::NotVfio { address: self.address, driver, path: self.path.display().to_string() })
    }

    /// The kernel's idea of the ids. It knows those of virtual functions, whose registers do not have them.
    pub(super) fn ids(&self) -> Result<PciIds, OpenError> {
        let class: u32 = self.hex("class")?;
        let revision: u32 = self.hex("revision")?;
        Ok(PciIds {
            vendor: self.hex("vendor")?,
            device: self.hex("device")?,
            subsystem_vendor: self.hex("subsystem_vendor")?,
            subsystem_device: self.hex("subsystem_device")?,
            class_revision: class << 8 | revision & 0xff,
        })
    }

    /// Name of what a symbolic link points to; `None` where there is no link.
    pub(super) fn link_name(&self, name: &str) -> Result<Option<String>, OpenError> {
        let path = self.path.join(name);
        match fs::read_link(&path) {
            Ok(target) => Ok(target.file_name().map(|name| name.to_string_lossy().into_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(OpenError::Read { address: self.address, path, source }),
        }
    }

    fn hex<T: TryFrom<u32>>(&self, name: &str) -> Result<T, OpenError> {
        let path = self.path.join(name);
        let content = fs::read_to_string(&path).map_err(|source| OpenError::Read {
            address: self.address,
            path: path.clone(),
            source,
        })?;
        content
            .trim()
            .strip_prefix("0x")
            .and_then(|digits| u32::from_str_radix(digits, 16).ok())
            .and_then(|value| T::try_from(value).ok())
            .ok_or(OpenError::Malformed { address: self.address, path, content })
    }
}
