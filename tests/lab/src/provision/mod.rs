// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the lab needs and this machine does not have: a Debian tree with the newest backported QEMU and kernel.
//!
//! The tree is made once, in steps. A step counts when it is complete; a tree whose step was broken off is thrown away, so
//! that nothing half-made is ever used.

mod cdev;
mod drivers;
mod kernel;
mod room;
mod sources;
mod steps;
mod tree;

pub(crate) use cdev::character_devices;
pub(crate) use drivers::for_drivers;
pub(crate) use kernel::{IMAGE, release, release_of};

use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::program;
use crate::progress::Stage;
use std::path::Path;
use std::process::Command;

/// Programs that are run outside of the tree, and the Debian packages that have them.
const PROGRAMS: &[(&str, &str)] = &[
    ("debootstrap", "debootstrap"),
    ("setpriv", "util-linux"),
    ("unshare", "util-linux"),
    ("chroot", "coreutils"),
    ("cc", "gcc libc6-dev"),
    ("python3", "python3"),
];

/// Makes the tree unless it is there already. `fresh` throws an existing one away first, which is how a newer QEMU or
/// kernel comes in.
///
/// # Errors
///
/// [`Error::Missing`] where this machine cannot have a lab, with the remedy; [`Error::Program`] where apt or
/// debootstrap failed.
pub fn provision(layout: &Layout, fresh: bool) -> Result<()> {
    able(layout)?;
    let _lock = layout.lock()?;
    room::check(layout)?;
    tree::make(layout, fresh)
}

/// Checks what no installation can mend, and installs what can be installed.
fn able(layout: &Layout) -> Result<()> {
    let missing =
        |missing: &str, remedy: &str| Error::Missing { missing: missing.into(), remedy: remedy.into() };
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Err(missing("the lab runs on x86-64 Linux only", "run it on such a machine"));
    }
    if !nix::unistd::geteuid().is_root() {
        let arguments: Vec<_> = std::env::args().skip(1).collect();
        let remedy = format!("sudo -E env \"PATH=$PATH\" cargo xtask {}", arguments.join(" "));
        return Err(missing(
            "the lab makes a Debian tree and runs programs in it, which needs root",
            &remedy,
        ));
    }
    let absent: Vec<_> = PROGRAMS.iter().filter(|(name, _)| !on_path(name)).collect();
    if absent.is_empty() {
        return Ok(());
    }
    let names = absent.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let packages: Vec<_> = absent.iter().flat_map(|(_, packages)| packages.split(' ')).collect();
    if !on_path("apt-get") {
        let remedy = format!("install what Debian calls {}", packages.join(", "));
        return Err(missing(&format!("not found: {names}"), &remedy));
    }
    let stage = Stage::begin(format!("install {}", packages.join(", ")));
    let log = layout.logs("provision").join("host.log");
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        program::run("apt-get", &mut command, &log)
    };
    apt(&["update"])?;
    apt(&[&["install", "--yes", "--no-install-recommends"], &packages[..]].concat())?;
    stage.done();
    Ok(())
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin"].map(Path::new).map(Path::to_path_buf);
    std::env::split_paths(&path).chain(extra).any(|directory| directory.join(program).is_file())
}
