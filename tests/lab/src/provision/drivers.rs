// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What patched drivers are built from: the kernels' sources, of the kernel that the machines boot and of the release's own, and
//! the headers of the latter. Only who builds drivers needs it.

use super::kernel::{fetch, release, series};
use super::tree::{BACKPORTS, apt, steps};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::program::{self, in_tree};
use crate::progress::Stage;
use std::path::{Path, PathBuf};

/// What the build and the check of patches need besides a compiler.
const TOOLS: &[&str] = &["patch", "perl"];

/// Depends on the headers of the newest kernel, in each suite.
const META: &str = "linux-headers-amd64";

/// Puts it into the tree, unless it is there, and returns the series of the kernels, such as `7.3`: first that which the machines
/// boot.
///
/// # Errors
///
/// [`Error::Program`] where apt failed.
pub(crate) fn for_drivers(layout: &Layout) -> Result<[String; 2]> {
    let tree = layout.tree();
    let log = layout.logs("provision").join("drivers.log");
    let own = release(&tree)?;
    steps(layout)?.step(&format!("drivers {TOOLS:?}"), || {
        let stage = Stage::begin("sources of kernels, to build drivers");
        apt(&tree, &log, &["update"])?;
        apt(&tree, &log, &[&["install", "--yes", "--no-install-recommends"], TOOLS].concat())?;
        let other = other(&tree, &own, &log)?;
        let common = other.trim_end_matches("-amd64");
        source(layout, &own)?;
        // Installing the headers would install the kernel as well.
        let headers = [format!("linux-headers-{other}"), format!("linux-headers-{common}-common")];
        let rest = [format!("linux-kbuild-{common}"), format!("linux-source-{}", series(&other))];
        fetch(&tree, BACKPORTS, &[headers, rest].concat(), &log)?;
        stage.done();
        Ok(())
    })?;
    let other = other(&tree, &own, &log)?;
    Ok([series(&own), series(&other)])
}

/// Puts the source of the machines' kernel `release` into the tree, unless it is there, and returns where the tree sees it.
pub(super) fn source(layout: &Layout, release: &str) -> Result<PathBuf> {
    let (tree, log) = (layout.tree(), layout.logs("provision").join("drivers.log"));
    let package = format!("linux-source-{}", series(release));
    let archive = Path::new("/usr/src").join(format!("{package}.tar.xz"));
    if !layout.outside(&archive).is_file() {
        apt(&tree, &log, &["update"])?;
        fetch(&tree, BACKPORTS, &[package], &log)?;
    }
    Ok(archive)
}

/// The kernel that apt knows besides the one in the tree.
fn other(tree: &Path, own: &str, log: &Path) -> Result<String> {
    let mut show = in_tree(tree, "apt-cache");
    show.args(["show", "--all-versions", META]);
    let text = program::output("list kernels", &mut show, log)?;
    other_in(&String::from_utf8_lossy(&text), &series(own))
        .ok_or_else(|| Error::Unexpected(format!("apt knows no {META} but that of Linux {own}")))
}

fn other_in(text: &str, own: &str) -> Option<String> {
    let depends = text.lines().filter_map(|line| line.strip_prefix("Depends: "));
    let mut packages = depends.flat_map(|line| line.split(", ")).filter_map(|it| it.split(' ').next());
    let release = packages
        .find_map(|package| package.strip_prefix("linux-headers-").filter(|release| series(release) != own));
    release.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::other_in;

    #[test]
    fn the_other_kernel_is_that_of_another_series() {
        let text = "Package: linux-headers-amd64\nDepends: linux-base-amd64 (= 7.3.4-1), \
                    linux-headers-7.3.4+deb13-amd64 (= 7.3.4-1)\n\nPackage: linux-headers-amd64\nDepends: \
                    linux-headers-6.12.107+deb13-amd64 (= 6.12.107-1)\n";
        assert_eq!(other_in(text, "7.3").unwrap(), "6.12.107+deb13-amd64");
        assert_eq!(other_in(text, "6.12").unwrap(), "7.3.4+deb13-amd64");
        assert_eq!(other_in("Depends: linux-headers-7.3.4+deb13-amd64", "7.3"), None);
    }
}
