// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The Debian tree.

use super::kernel;
use super::sources::{MIRROR_VARIABLE, mirror};
use super::steps::Steps;
use crate::error::{At, Error, Result};
use crate::layout::Layout;
use crate::program::{self, CA_BUNDLE, enclosed, in_tree};
use crate::progress::Stage;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const SUITE: &str = "trixie";
pub(super) const BACKPORTS: &str = "trixie-backports";

/// From backports, the newest there is. libelf and libdw must come from there too, or the kernel headers' own tools
/// cannot be installed; apt does not find that out by itself.
const FROM_BACKPORTS: &[&str] = &[
    "qemu-system-x86",
    "linux-headers-amd64",
    "libelf1t64",
    "libdw1t64",
    "gcc",
    "make",
    "binutils",
    "ca-certificates",
    "kmod",
    "xz-utils",
    "zstd",
];

/// From the release itself: the compiler that the kernel object has to build with.
const FROM_RELEASE: &[&str] = &["rustc", "cargo", "rust-src"];

/// What the daemon's package needs of a machine, and udev's group for QEMU.
const FOR_SERVICES: &[&str] = &["systemd", "udev"];

/// Builds the module from its source as a user's machine does.
const FOR_MODULES: &[&str] = &["dkms"];

/// The tree is made anew whenever it is wanted, so it need not survive a power cut, and nobody reads manuals in it.
const DPKG: &str = "force-unsafe-io\npath-exclude=/usr/share/doc/*\npath-exclude=/usr/share/man/*\n\
                    path-exclude=/usr/share/locale/*\n";

/// Made for the machines: the module's sources go to the first, a machine's payload is seen at the second.
const DIRECTORIES: &[&str] = &["build", "lab"];

/// The record of what was done to the tree.
pub(super) fn steps(layout: &Layout) -> Result<Steps> {
    let recipe = format!(
        "{SUITE} {BACKPORTS} {FROM_BACKPORTS:?} {FROM_RELEASE:?} {DPKG} {DIRECTORIES:?} {}",
        kernel::RECIPE
    );
    Steps::open(&record(layout), &recipe, || {
        remove(&layout.tree())?;
        remove(&layout.modules())
    })
}

fn record(layout: &Layout) -> PathBuf {
    layout.lab().join("tree.json")
}

pub(super) fn make(layout: &Layout, fresh: bool) -> Result<()> {
    let tree = layout.tree();
    if fresh {
        remove(&record(layout))?;
    }
    let mut steps = steps(layout)?;
    let log = layout.logs("provision").join("tree.log");
    let mut step = |name: &str, what: &str, work: &dyn Fn() -> Result<()>| {
        steps.step(name, || {
            let stage = Stage::begin(what);
            work()?;
            stage.done();
            Ok(())
        })
    };
    step("base", &format!("Debian {SUITE}, the base system"), &|| base(&tree, &log))?;
    step("backports", "QEMU, kernel headers and a C compiler from backports", &|| {
        apt(&tree, &log, &["update"])?;
        let install = ["install", "--yes", "--no-install-recommends", "--target-release", BACKPORTS];
        apt(&tree, &log, &[&install, FROM_BACKPORTS].concat())?;
        // ca-certificates has made a bundle of its own, which lacks what this machine trusts besides.
        trust(&tree)
    })?;
    let add = ["install", "--yes", "--no-install-recommends"];
    step("rust", "Rust", &|| apt(&tree, &log, &[&add, FROM_RELEASE].concat()))?;
    step("kernel", "the kernel that belongs to the headers", &|| kernel::unpack(&tree, BACKPORTS, &log))?;
    step("clean", "what apt leaves behind", &|| {
        apt(&tree, &log, &["clean"])?;
        for directory in DIRECTORIES {
            let directory = tree.join(directory);
            fs::create_dir_all(&directory).at(&directory)?;
        }
        Ok(())
    })?;
    // The last, so that a tree without them gets them and is not made anew.
    for (name, what, packages) in [
        ("systemd", "systemd, for what is installed as a service", FOR_SERVICES),
        ("dkms", "DKMS", FOR_MODULES),
    ] {
        step(name, what, &|| {
            apt(&tree, &log, &["update"])?;
            apt(&tree, &log, &[&add, packages].concat())?;
            apt(&tree, &log, &["clean"])
        })?;
    }
    Ok(())
}

fn base(tree: &Path, log: &Path) -> Result<()> {
    let mirror = std::env::var(MIRROR_VARIABLE).ok().or_else(|| mirror(Path::new("/"))).ok_or_else(|| {
        Error::Missing {
            missing: "apt on this machine is not configured for a Debian mirror".into(),
            remedy: format!("set {MIRROR_VARIABLE} to the URL of one"),
        }
    })?;
    let mut debootstrap = enclosed("debootstrap", None);
    debootstrap.args(["--variant=minbase", SUITE]).arg(tree).arg(&mirror);
    program::run("debootstrap", &mut debootstrap, log)?;

    let write = |path: &str, text: &str| {
        let path = tree.join(path);
        fs::write(&path, text).at(&path)
    };
    remove(&tree.join("etc/apt/sources.list"))?;
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let sources = format!(
        "Types: deb\nURIs: {mirror}\nSuites: {SUITE} {SUITE}-updates {BACKPORTS}\nComponents: main\nSigned-By: {keyring}\n"
    );
    write("etc/apt/sources.list.d/debian.sources", &sources)?;
    write("etc/apt/apt.conf.d/10machine", &acquire_settings()?)?;
    write("etc/apt/apt.conf.d/20lab", "Acquire::Languages \"none\";\n")?;
    write("etc/dpkg/dpkg.cfg.d/lab", DPKG)?;
    for file in ["etc/resolv.conf", "etc/hosts"] {
        let outer = Path::new("/").join(file);
        if outer.exists() {
            // A link in the tree would point to a resolver that does not run there.
            remove(&tree.join(file))?;
            fs::copy(&outer, tree.join(file)).at(&outer)?;
        }
    }
    trust(tree)
}

/// Lets the tree trust whom this machine trusts: some networks have a proxy with a certificate of its own.
fn trust(tree: &Path) -> Result<()> {
    let named = ["CARGO_HTTP_CAINFO", "SSL_CERT_FILE"].into_iter().find_map(std::env::var_os);
    let outer = named.unwrap_or_else(|| CA_BUNDLE.into());
    let (outer, inner) = (Path::new(&outer), tree.join(CA_BUNDLE.trim_start_matches('/')));
    if !outer.is_file() {
        return Ok(());
    }
    if let Some(directory) = inner.parent() {
        fs::create_dir_all(directory).at(directory)?;
    }
    fs::copy(outer, &inner).at(outer)?;
    Ok(())
}

/// How this machine's apt fetches (proxies, time checks), without what depends on files of this machine.
fn acquire_settings() -> Result<String> {
    let output = Command::new("apt-config").args(["dump", "Acquire"]).output().at("apt-config")?;
    Ok(portable(&String::from_utf8_lossy(&output.stdout)))
}

fn portable(dump: &str) -> String {
    const LEFT_OUT: &[&str] =
        &["Acquire::IndexTargets", "Acquire::Changelogs", "Acquire::cdrom", "Acquire::CompressionTypes"];
    let kept = dump.lines().filter(|line| {
        let detection = line.to_ascii_lowercase().contains("proxy-auto-detect");
        let empty = line.ends_with("\"\";");
        !detection && !empty && !LEFT_OUT.iter().any(|prefix| line.starts_with(prefix))
    });
    kept.map(|line| format!("{line}\n")).collect()
}

pub(super) fn apt(tree: &Path, log: &Path, arguments: &[&str]) -> Result<()> {
    program::run("apt-get in the tree", in_tree(tree, "apt-get").args(arguments), log)
}

fn remove(path: &Path) -> Result<()> {
    let result = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    };
    result.at(path)
}

#[cfg(test)]
mod tests {
    use super::portable;

    #[test]
    fn a_proxy_is_taken_along_and_the_machines_own_files_are_not() {
        let dump = "Acquire \"\";\nAcquire::http::Proxy \"http://proxy.example:3128\";\n\
                    Acquire::http::Proxy-Auto-Detect \"/usr/bin/detect\";\nAcquire::Check-Date \"false\";\n\
                    Acquire::IndexTargets::deb::DEP-11::KeepCompressed \"true\";\n";
        let expected =
            "Acquire::http::Proxy \"http://proxy.example:3128\";\nAcquire::Check-Date \"false\";\n";
        assert_eq!(portable(dump), expected);
    }
}
