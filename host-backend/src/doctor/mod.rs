// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `doctor`: what keeps virtio-irq from working on this machine, and what to do about it.
//!
//! It reads and changes nothing. Everything is read under one root, so that it can be tried on copies of other
//! machines' sysfs and procfs.

mod cards;
mod function;
mod guest;
mod holders;
mod kernel_log;
mod machine;
mod message;
mod names;
mod qemu;
mod report;
mod symptoms;
mod text;

pub use report::{Fact, Facts, Finding, Mark, Report, Subject, Symptom, Verdict};
pub use text::Layout;

use crate::host::linux::{Platform, Sysfs};
use crate::vfio::Host;
use clap::Args;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use virtio_irq_proto::PciAddress;

/// Options of `vhost-device-irq doctor`.
#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    /// Functions to look at; if none is named, all that are bound to vfio-pci, and cards that are known to need virtio-irq
    #[arg(value_name = "ADDRESS")]
    functions: Vec<PciAddress>,

    /// Look from inside of a guest: device, module, and the drivers that should ask
    #[arg(long)]
    guest: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Look at a copy of another machine's files under DIR
    #[arg(long, value_name = "DIR", hide = true)]
    root: Option<PathBuf>,
}

/// The files of the machine that is looked at.
#[derive(Debug)]
struct Tree {
    root: PathBuf,
    host: Host,
    sysfs: Sysfs,
    /// Whether it is the machine that this program runs on.
    is_live: bool,
}

impl DoctorArgs {
    /// Looks, says what it saw, and judges.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn run(&self) -> io::Result<Verdict> {
        let report = self.examine();
        let text = if self.json {
            format!("{}\n", serde_json::to_string_pretty(&report)?)
        } else {
            let mut text = String::new();
            text::write(&mut text, &report, Layout::of_standard_output()).map_err(io::Error::other)?;
            text
        };
        // It leaves the colors out where they are not wanted.
        anstream::stdout().write_all(text.as_bytes())?;
        Ok(report.verdict)
    }

    /// Looks and judges.
    pub fn examine(&self) -> Report {
        let tree = match &self.root {
            Some(root) => Tree::copy(root),
            None => Tree::live(),
        };
        if self.guest { self.examine_guest(&tree) } else { self.examine_host(&tree) }
    }

    fn examine_host(&self, tree: &Tree) -> Report {
        let machine = machine::Machine::examine(tree);
        let mut functions = self.functions.clone();
        if functions.is_empty() {
            functions = tree.functions(|tree, address| {
                let driver = tree.link(&format!("sys/bus/pci/devices/{address}/driver"));
                driver.is_some_and(|driver| driver.contains("vfio")) || tree.card(address).is_some()
            });
        }
        let functions = functions.iter().map(|address| function::examine(tree, &machine, *address)).collect();
        let log = kernel_log::read_all(tree).map(|lines| kernel_log::symptoms(&lines, symptoms::HOST));
        Report::new("host", machine.subject, functions, log)
    }

    fn examine_guest(&self, tree: &Tree) -> Report {
        let machine = guest::machine(tree);
        let mut functions = self.functions.clone();
        if functions.is_empty() {
            functions = tree.functions(|tree, address| tree.card(address).is_some());
        }
        let log = kernel_log::read_all(tree);
        let lines = log.as_deref().ok();
        let examine = |address: &PciAddress| guest::function(tree, *address, machine.verdict, lines);
        let functions = functions.iter().map(examine).collect();
        let symptoms = log.map(|lines| kernel_log::symptoms(&lines, symptoms::GUEST));
        Report::new("guest", machine, functions, symptoms)
    }
}

impl Tree {
    fn live() -> Self {
        Self { root: "/".into(), host: Host::here(), sysfs: Sysfs::here(), is_live: true }
    }

    /// Another machine's, whose processors say of which architecture it is.
    fn copy(root: &Path) -> Self {
        let processors = std::fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default();
        let platform = match () {
            () if processors.contains("vendor_id") => Platform::X86,
            () if processors.contains("CPU implementer") => Platform::Arm64,
            () => Platform::Other,
        };
        let sysfs = Sysfs::at(root.join("sys"), platform);
        Self { root: root.to_owned(), host: Host::at(root), sysfs, is_live: false }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn exists(&self, path: &str) -> bool {
        self.path(path).symlink_metadata().is_ok()
    }

    /// What stands in a file, if it is there and this process may read it.
    fn text(&self, path: &str) -> Option<String> {
        let content = std::fs::read(self.path(path)).ok()?;
        Some(String::from_utf8_lossy(&content).trim().to_owned())
    }

    /// The names in a directory, in order.
    fn list(&self, path: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path(path)) else { return Vec::new() };
        let mut names: Vec<_> =
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// The name of what a symbolic link points to.
    fn link(&self, path: &str) -> Option<String> {
        let target = std::fs::read_link(self.path(path)).ok()?;
        target.file_name().map(|name| name.to_string_lossy().into_owned())
    }

    /// What a program of this machine prints. In a copy the file is no program but what it would print.
    fn output(&self, path: &str, run: impl FnOnce(&Path) -> io::Result<String>) -> io::Result<String> {
        let path = self.path(path);
        if self.is_live { run(&path) } else { std::fs::read_to_string(path) }
    }

    /// The functions for which `choose` holds.
    fn functions(&self, choose: impl Fn(&Self, PciAddress) -> bool) -> Vec<PciAddress> {
        let addresses = self.list("sys/bus/pci/devices");
        let addresses = addresses.iter().filter_map(|name| name.parse().ok());
        addresses.filter(|address| choose(self, *address)).collect()
    }

    fn card(&self, address: PciAddress) -> Option<&'static cards::Card> {
        let id = |name: &str| {
            let text = self.text(&format!("sys/bus/pci/devices/{address}/{name}"))?;
            u16::from_str_radix(text.strip_prefix("0x")?, 16).ok()
        };
        let ids =
            virtio_irq_proto::PciIds { vendor: id("vendor")?, device: id("device")?, ..Default::default() };
        cards::find(ids)
    }
}

impl Layout {
    /// As it suits whatever standard output is.
    fn of_standard_output() -> Self {
        if !io::stdout().is_terminal() {
            return Self { width: None, unicode: false };
        }
        let width = terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
        // The first of these that is set decides (setlocale(3)).
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .into_iter()
            .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
        let unicode = locale.is_some_and(|locale| locale.to_uppercase().replace('-', "").contains("UTF8"));
        Self { width, unicode }
    }
}
