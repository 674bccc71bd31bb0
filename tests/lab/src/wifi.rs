// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The patched Wi-Fi drivers, and what the model of their card wants to be fed.

use crate::error::{At, Error, Result};
use crate::layout::Layout;
use crate::program::{self, in_tree};
use crate::progress::Stage;
use crate::provision;
use std::fs;
use std::path::{Path, PathBuf};

/// Where they are built, as the tree sees it. Not under [`PATCHES`]: that is a copy of the workspace's.
const BUILD: &str = "/build/wifi";

/// In the tree as in the workspace.
const PATCHES: &str = "guest-driver/linux/patches";
const HEADER: &str = "guest-driver/linux/include/linux/virtio_irq.h";
const SCRIPT: &str = "guest-driver/linux/patches/build.sh";

/// Larger than what MHI takes for a loader alone. The model does not look at it.
const FIRMWARE_SIZE: usize = 600 << 10;
const FIRMWARE: &str = "ath11k/WCN6855/hw2.1/amss.bin";

/// The drivers as the patches make them.
#[derive(Debug)]
pub(crate) struct Drivers {
    /// A directory with the modules.
    pub(crate) modules: PathBuf,
    /// What `build.sh` said of each of its steps.
    pub(crate) steps: Vec<String>,
}

/// Applies the series of patches for the tree's kernel and for the release's own to Debian's sources of them, and builds the
/// drivers, unless that was done before with the same patches. `bend` is what is done to a patch before, for a test of this.
///
/// # Errors
///
/// [`Error::Program`] with what `build.sh` said last: a patch does not apply or please checkpatch, or a driver does not
/// compile without a warning.
pub(crate) fn drivers(layout: &Layout, bend: Option<fn(&str) -> String>) -> Result<Drivers> {
    let _lock = layout.lock()?;
    let tree = layout.tree();
    let serieses = provision::for_drivers(layout)?;
    let all = layout.outside(&Path::new("/build").join(PATCHES));
    if let Some(series) = serieses.iter().find(|series| !all.join(series).is_dir()) {
        let why =
            format!("there are no patches for Linux {series} in {PATCHES}; the newest series is a start");
        return Err(Error::Unexpected(why));
    }
    let series = &serieses[0];
    let patches = all.join(series);
    let built = layout.outside(Path::new(BUILD));
    fs::create_dir_all(&built).at(&built)?;
    let script = Path::new("/build").join(SCRIPT);
    let (stamp, report) = (built.join("stamp"), built.join("report"));
    let inputs = inputs(layout, &all, &serieses, &provision::release(&tree)?)?;
    let modules = built.join(series).join("modules");
    let log = layout.logs("build").join("wifi.log");
    let known = bend.is_none() && fs::read_to_string(&stamp).is_ok_and(|old| old == inputs);
    if !known {
        let stage = Stage::begin("patch and build ath11k and ath12k");
        let _: std::io::Result<()> = fs::remove_file(&stamp);
        let original = bend.map(|bend| bent(&patches, bend)).transpose()?;
        let mut build = in_tree(&tree, "sh");
        build.arg(script).args(["-o", BUILD]).args(if bend.is_some() { &serieses[..1] } else { &serieses });
        let result = program::output("build.sh", &mut build, &log);
        if let Some((path, text)) = original {
            fs::write(&path, text).at(&path)?;
        }
        fs::write(&report, result?).at(&report)?;
        // Without what only a debugger reads, which is more than a guest's memory.
        let mut strip = in_tree(&tree, "strip");
        strip.arg("--strip-debug");
        for module in entries(&modules)? {
            strip.arg(
                Path::new(BUILD).join(series).join("modules").join(module.file_name().unwrap_or_default()),
            );
        }
        program::run("strip the drivers", &mut strip, &log)?;
        if bend.is_none() {
            fs::write(&stamp, inputs).at(&stamp)?;
        }
        stage.done();
    }
    let text = fs::read_to_string(&report).at(&report)?;
    Ok(Drivers { modules, steps: text.lines().map(str::to_owned).collect() })
}

/// A directory that is to be the kernel's place for firmware.
pub(crate) fn firmware(layout: &Layout) -> Result<PathBuf> {
    let directory = layout.lab().join("firmware");
    let file = directory.join(FIRMWARE);
    if let Some(parent) = file.parent() {
        fs::create_dir_all(parent).at(parent)?;
    }
    fs::write(&file, vec![0; FIRMWARE_SIZE]).at(&file)?;
    Ok(directory)
}

/// All that decides what comes out.
fn inputs(layout: &Layout, patches: &Path, serieses: &[String], release: &str) -> Result<String> {
    let mut files = [HEADER, SCRIPT].map(|file| layout.workspace().join(file)).to_vec();
    for series in serieses {
        files.extend(entries(&patches.join(series))?);
    }
    let text = files.iter().map(|file| fs::read_to_string(file).at(file)).collect::<Result<String>>()?;
    Ok(format!("{release}\n{text}"))
}

/// Changes the last patch; returns where it is and what it was.
fn bent(patches: &Path, bend: fn(&str) -> String) -> Result<(PathBuf, String)> {
    let last = entries(patches)?.pop();
    let path = last.ok_or_else(|| Error::Unexpected(format!("{} is empty", patches.display())))?;
    let text = fs::read_to_string(&path).at(&path)?;
    fs::write(&path, bend(&text)).at(&path)?;
    Ok((path, text))
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).at(directory)?.map(|entry| entry.map(|entry| entry.path()));
    let mut entries: Vec<_> = entries.collect::<std::io::Result<_>>().at(directory)?;
    entries.sort();
    Ok(entries)
}
