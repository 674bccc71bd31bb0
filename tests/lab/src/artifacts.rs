// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What goes into the machines: the daemon and the agent, built here, and the kernel modules, built in the tree.

use crate::error::{At, Error, Result};
use crate::layout::Layout;
use crate::program::{self, bound, in_tree};
use crate::progress::Stage;
use crate::provision;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What the module is built from, relative to the workspace.
const MODULE_SOURCES: &[&str] = &["Cargo.toml", "proto", "guest-driver", "spec"];

/// What is built of that.
const MODULES: &[&str] = &[
    "virtio_irq.ko",
    "samples/virtio_irq_edu.ko",
    "samples/virtio_irq_vectors.ko",
    "samples/virtio_irq_wcn6855.ko",
];

/// The programs' packages, and the binary of one whose name is needed.
const PACKAGES: &[&str] = &["vhost-device-irq", "virtio-irq-lab-agent", MODEL];
const MODEL: &str = "virtio-irq-wcn6855";

/// Kbuild's products and cargo's: they belong to the place where they were made.
const PRODUCT_SUFFIXES: &[&str] = &["o", "ko", "a", "cmd", "mod", "symvers", "order", "d"];

/// The built programs and modules.
#[derive(Debug, Clone)]
pub struct Artifacts {
    /// The daemon.
    pub daemon: PathBuf,
    /// Process 1 of the machines.
    pub agent: PathBuf,
    /// The guest's driver `virtio_irq.ko` and the sample clients.
    pub guest: Vec<PathBuf>,
    /// The model of a WCN6855, as the tree sees it.
    pub wcn6855: PathBuf,
}

/// Builds everything from the workspace as it is now.
///
/// # Errors
///
/// [`Error::Program`](crate::Error::Program) with the compiler's last words.
pub fn build(layout: &Layout) -> Result<Artifacts> {
    let _lock = layout.lock()?;
    let log = layout.logs("build");
    for name in ["programs.log", "module.log"] {
        // Of this build only: a log that grows for ever helps nobody.
        let _: std::io::Result<()> = fs::remove_file(log.join(name));
    }
    let stage = Stage::begin("build daemon and agent");
    let (daemon, agent, wcn6855) = programs(layout, &log.join("programs.log"))?;
    stage.done();
    let stage = Stage::begin("build kernel modules");
    let guest = modules(layout, &log.join("module.log"))?;
    stage.done();
    Ok(Artifacts { daemon, agent, guest, wcn6855 })
}

/// Builds the daemon's tests against real VFIO devices, and returns where the machines find the program.
///
/// # Errors
///
/// [`Error::Program`](crate::Error::Program) with the compiler's last words.
pub(crate) fn vfio_tests(layout: &Layout) -> Result<PathBuf> {
    const NAME: &str = "vfio_real";
    let _lock = layout.lock()?;
    let stage = Stage::begin("build the tests against VFIO devices");
    let mut command = linked_statically(layout, "test");
    command.args(["--no-run", "--message-format", "json", "--package", "vhost-device-irq", "--test", NAME]);
    let messages = program::output("cargo test", &mut command, &layout.logs("build").join("programs.log"))?;
    let executable = messages.split(|byte| *byte == b'\n').find_map(|line| {
        let message: serde_json::Value = serde_json::from_slice(line).ok()?;
        let is_it = message["target"]["name"] == NAME;
        is_it.then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
    });
    let executable = executable.ok_or_else(|| Error::Unexpected(format!("cargo built no {NAME}")))?;
    // Found through the tree: an image would be unpacked into memory.
    let inside = Path::new("/build").join(NAME);
    let outside = layout.outside(&inside);
    fs::copy(&executable, &outside).at(&outside)?;
    stage.done();
    Ok(inside)
}

/// Linked statically: the agent is process 1 of an initramfs that has no libraries, and the daemon runs in a Debian that
/// may be older than this machine. Static code needs its own target directory, or every build would undo the other.
fn programs(layout: &Layout, log: &Path) -> Result<(PathBuf, PathBuf, PathBuf)> {
    let mut command = linked_statically(layout, "build");
    command.args(PACKAGES.iter().flat_map(|package| ["--package", package]));
    program::run("cargo build", &mut command, log)?;
    let built = layout.programs().join(TARGET).join("release");
    // It serves QEMU, which sees the tree only.
    let model = Path::new("/build").join(MODEL);
    let (from, to) = (built.join(MODEL), layout.outside(&model));
    // A running one cannot be written to, but replaced.
    let _: std::io::Result<()> = fs::remove_file(&to);
    fs::copy(&from, &to).at(&from)?;
    Ok((built.join("vhost-device-irq"), built.join("virtio-irq-lab-agent"), model))
}

fn linked_statically(layout: &Layout, what: &str) -> Command {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut command = bound(&cargo);
    command
        .args([what, "--release", "--target", TARGET, "--target-dir"])
        .arg(layout.programs())
        .current_dir(layout.workspace())
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    command
}

/// Without what only a debugger reads: nine tenths of a module, which every start of a guest would unpack and load.
fn modules(layout: &Layout, log: &Path) -> Result<Vec<PathBuf>> {
    let tree = layout.tree();
    let kernel = provision::release(&tree)?;
    // Says what was built last, so that make need not take seconds to find that there is nothing to do. It is away while
    // anything is copied or built: an interrupted build must not pass for a whole one.
    let stamp = tree.join("build/modules.built");
    let product = format!("{kernel} {}", MODULES.join(" "));
    let whole = fs::read_to_string(&stamp).is_ok_and(|last| last == product);
    if whole {
        fs::remove_file(&stamp).at(&stamp)?;
    }
    let mut changed = false;
    for source in MODULE_SOURCES {
        changed |= mirror(&layout.workspace().join(source), &tree.join("build").join(source))?;
    }
    if changed || !whole {
        make_modules(&tree, &kernel, log)?;
    }
    fs::write(&stamp, product).at(&stamp)?;
    Ok(MODULES.iter().map(|module| layout.outside(&stripped(module))).collect())
}

fn make_modules(tree: &Path, kernel: &str, log: &Path) -> Result<()> {
    let mut make = in_tree(tree, "make");
    make.args(["-C", "/build/guest-driver/linux"]).arg(format!("KDIR=/lib/modules/{kernel}/build"));
    program::run("make the modules", &mut make, log)?;
    for module in MODULES {
        let mut strip = in_tree(tree, "strip");
        strip
            .args(["--strip-debug", "-o"])
            .arg(stripped(module))
            .arg(Path::new("/build/guest-driver/linux").join(module));
        program::run("strip a module", &mut strip, log)?;
    }
    Ok(())
}

/// Where a module goes in the tree, without what only a debugger reads.
fn stripped(module: &str) -> PathBuf {
    Path::new("/build").join(module.rsplit('/').next().unwrap_or(module))
}

/// Makes `to` equal to `from`, but for products, and says whether it was not. A file that is equal already is not touched, so
/// that make and cargo see what changed.
fn mirror(from: &Path, to: &Path) -> Result<bool> {
    if !from.is_dir() {
        let content = fs::read(from).at(from)?;
        if fs::read(to).ok().as_deref() == Some(&content) {
            return Ok(false);
        }
        return fs::copy(from, to).map(|_| true).at(to);
    }
    fs::create_dir_all(to).at(to)?;
    let children = |directory: &Path| -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(directory).at(directory)?;
        let paths: std::io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.path())).collect();
        Ok(paths.at(directory)?.into_iter().filter(|path| !is_product(path)).collect())
    };
    let mut changed = false;
    for child in children(from)? {
        changed |= mirror(&child, &to.join(child.file_name().unwrap_or_default()))?;
    }
    for child in children(to)? {
        let gone = !from.join(child.file_name().unwrap_or_default()).exists();
        // Generated sources look like sources; only what would be picked up unasked must go.
        if gone
            && child.is_file()
            && child.extension().is_some_and(|suffix| suffix == "rs" || suffix == "patch")
        {
            fs::remove_file(&child).at(&child)?;
            changed = true;
        }
    }
    Ok(changed)
}

fn is_product(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let suffix = path.extension().and_then(OsStr::to_str).unwrap_or_default();
    name == "target"
        || name.starts_with('.')
        || name.ends_with(".mod.c")
        || PRODUCT_SUFFIXES.contains(&suffix)
}

#[cfg(test)]
mod tests {
    use super::mirror;
    use std::fs;

    #[test]
    fn mirroring_leaves_products_on_both_sides_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        fs::create_dir_all(from.join("src")).unwrap();
        fs::create_dir_all(from.join("target/debug")).unwrap();
        fs::create_dir_all(to.join("src")).unwrap();
        fs::write(from.join("src/lib.rs"), "new").unwrap();
        fs::write(from.join("x.o"), "theirs").unwrap();
        fs::write(to.join("x.ko"), "ours").unwrap();
        fs::write(to.join("src/gone.rs"), "old").unwrap();
        assert!(mirror(&from, &to).unwrap());
        assert_eq!(fs::read_to_string(to.join("src/lib.rs")).unwrap(), "new");
        assert_eq!(fs::read_to_string(to.join("x.ko")).unwrap(), "ours");
        assert!(!to.join("x.o").exists() && !to.join("target").exists() && !to.join("src/gone.rs").exists());
        assert!(!mirror(&from, &to).unwrap());
    }

    #[test]
    fn an_equal_file_keeps_its_time() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("a"), directory.path().join("b"));
        fs::write(&from, "same").unwrap();
        mirror(&from, &to).unwrap();
        let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        fs::File::options().write(true).open(&to).unwrap().set_modified(old).unwrap();
        mirror(&from, &to).unwrap();
        assert_eq!(fs::metadata(&to).unwrap().modified().unwrap(), old);
    }
}
