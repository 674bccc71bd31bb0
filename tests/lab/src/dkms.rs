// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The module's source as it is given away, and what a user's machine makes of it.

use crate::container::Container;
use crate::error::{At, Error, Result};
use crate::layout::Layout;
use crate::package::System;
use crate::program;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the guest's module is built from.
const SOURCES: &[&str] =
    &["Cargo.toml", "LICENSES", "proto", "guest-driver/core", "guest-driver/linux", "spec"];

/// The crate whose dependencies cargo would fetch, in the source.
const CRATE: &str = "guest-driver/linux/rust";

/// Where a container has the source, and then the module.
const SOURCE: &str = "/root/module";
const MODULE: &str = "/root/virtio_irq.ko";

/// DKMS compresses a module as those of the kernel are, where it has those.
const UNPACK: &str = "if [ -e \"$1.xz\" ]; then xz -dc \"$1.xz\" >\"$2\"; else cp \"$1\" \"$2\"; fi";

/// What cargo keeps of what it has fetched.
const CARGO_HOME: &str = "/root/.cargo";

/// Writes the module's source: the tracked files that it is built from, laid out as in the repository, with `dkms.conf` where DKMS
/// looks for it, and with what cargo would fetch, because DKMS builds where there may be no network.
///
/// # Errors
///
/// [`Error::Program`] where git or cargo failed, [`Error::File`] where a file cannot be written.
pub fn module_source(workspace: &Path, to: &Path, log: &Path) -> Result<()> {
    let mut git = Command::new("git");
    git.current_dir(workspace).args(["ls-files", "-z", "--"]).args(SOURCES);
    let listed = program::output("git ls-files", &mut git, log)?;
    for path in String::from_utf8_lossy(&listed).split_terminator('\0') {
        let (from, target) = (workspace.join(path), to.join(path));
        let parent = target.parent().unwrap_or(to);
        fs::create_dir_all(parent).at(parent)?;
        fs::copy(&from, target).at(&from)?;
    }
    let settings = to.join("guest-driver/linux/dkms.conf");
    fs::copy(&settings, to.join("dkms.conf")).at(&settings)?;

    let package = to.join(CRATE);
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut vendor = Command::new(cargo);
    vendor
        .args(["vendor", "--locked", "--quiet", "--versioned-dirs", "--manifest-path"])
        .arg(package.join("Cargo.toml"))
        .arg(package.join("vendor"));
    program::run("cargo vendor", &mut vendor, log)
}

/// The module as DKMS built and installed it.
#[derive(Debug)]
pub(crate) struct Installed {
    /// A directory with the module, as it is before compression, for the boot image of a guest.
    pub(crate) modules: PathBuf,
    /// The kernel that it is for, and how that is configured.
    pub(crate) vermagic: String,
    /// What DKMS says of it.
    pub(crate) status: String,
}

/// Lets DKMS build the source and install the module for the kernel `release`, in the Debian tree and without a network. `bend` is
/// done to the source before.
pub(crate) fn install(
    layout: &Layout,
    name: &str,
    release: &str,
    bend: impl FnOnce(&Path) -> Result<()>,
) -> Result<Installed> {
    let directory = layout.lab().join("dkms");
    let source = directory.join("source");
    if source.exists() {
        fs::remove_dir_all(&source).at(&source)?;
    }
    let container = &Container::boot(layout, name)?;
    module_source(layout.workspace(), &source, container.log())?;
    bend(&source)?;
    let mut copy = Command::new("cp");
    copy.arg("--recursive").arg(&source).arg(container.outside(SOURCE));
    program::run("cp", &mut copy, container.log())?;
    // What the lab's own builds fetched would do instead of what the source has to bring.
    container.run(&["rm", "-rf", CARGO_HOME])?;
    container.run(&["unshare", "--net", "dkms", "install", SOURCE, "-k", release])?;
    let status = container.run(&["dkms", "status", "-k", release])?;
    let installed = format!("/lib/modules/{release}/updates/dkms/virtio_irq.ko");
    container.run(&["sh", "-ec", UNPACK, "sh", &installed, MODULE])?;
    let vermagic = container.run(&["modinfo", "-F", "vermagic", MODULE])?;

    let (module, modules) = (container.outside(MODULE), directory.join("modules"));
    fs::create_dir_all(&modules).at(&modules)?;
    fs::copy(&module, modules.join("virtio_irq.ko")).at(&module)?;
    Ok(Installed { modules, vermagic: vermagic.trim().to_owned(), status })
}

/// Takes out of the source what cargo would fetch.
pub(crate) fn without_crates(source: &Path) -> Result<()> {
    let vendor = source.join(CRATE).join("vendor");
    fs::remove_dir_all(&vendor).at(&vendor)
}

/// What a module says of the kernel that it is for.
pub(crate) fn vermagic(layout: &Layout, module: &Path, log: &Path) -> Result<String> {
    let inside = module.strip_prefix(layout.tree()).map(|path| Path::new("/").join(path));
    let inside = inside.map_err(|_| Error::Unexpected(format!("{} is not in the tree", module.display())))?;
    let mut modinfo = program::in_tree(&layout.tree(), "modinfo");
    modinfo.args(["-F", "vermagic"]).arg(inside);
    let output = program::output("modinfo", &mut modinfo, log)?;
    Ok(String::from_utf8_lossy(&output).trim().to_owned())
}
