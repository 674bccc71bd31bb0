// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! ITSs that a device tree describes (Documentation/devicetree/bindings/interrupt-controller/arm,gic-v3.yaml in Linux).
//!
//! An ITS has interrupts only once a function uses some. On a machine whose functions all wait for their guests there is none
//! whose chip could be looked at, so it is looked at which controller the device tree gives to the function's messages. This is where
//! the kernel has it from too (drivers/of/irq.c, `of_msi_xlate`).

use super::sysfs::{Function, Sysfs};
use std::fs;
use std::path::{Path, PathBuf};

const COMPATIBLE: &[u8] = b"arm,gic-v3-its";

/// Trees are not deeper; and whoever made this one is not trusted with the stack.
const DEEPEST: usize = 12;

/// The ITS that a function's messages go to, as a path in the device tree.
pub(super) fn of(sysfs: &Sysfs, function: &Function) -> Option<String> {
    let place = function.path().canonicalize().ok()?;
    let requester = u16::from_be_bytes([function.address().bus, function.address().devfn]);
    // The node of the host bridge, or of something in between.
    let phandle = place.ancestors().find_map(|device| {
        let node = device.join("of_node");
        let parent = || word(&fs::read(node.join("msi-parent")).ok()?, 0);
        mapped(&node, requester).or_else(parent)
    })?;
    find(sysfs, |node| word(&fs::read(node.join("phandle")).unwrap_or_default(), 0) == Some(phandle))
}

/// Any ITS of the machine.
pub(super) fn of_machine(sysfs: &Sysfs) -> Option<String> {
    find(sysfs, |_| true)
}

/// The controller that `msi-map` has for a requester id (Documentation/devicetree/bindings/pci/pci-msi.txt): first id, controller,
/// what becomes of the first id there, number of ids.
fn mapped(node: &Path, requester: u16) -> Option<u32> {
    let map = fs::read(node.join("msi-map")).ok()?;
    let mask = fs::read(node.join("msi-map-mask")).ok().and_then(|mask| word(&mask, 0));
    let requester = u32::from(requester) & mask.unwrap_or(u32::MAX);
    let (ranges, _) = map.as_chunks::<16>();
    ranges.iter().find_map(|range| {
        let (first, controller, count) = (word(range, 0)?, word(range, 1)?, word(range, 3)?);
        requester.checked_sub(first).is_some_and(|offset| offset < count).then_some(controller)
    })
}

/// The path of an ITS that `is_it`.
fn find(sysfs: &Sysfs, is_it: impl Fn(&Path) -> bool) -> Option<String> {
    let base = sysfs.join("firmware/devicetree/base");
    let mut nodes: Vec<(PathBuf, usize)> = vec![(base.clone(), 0)];
    while let Some((node, depth)) = nodes.pop() {
        if is_its(&node) && is_it(&node) {
            return Some(format!("/{}", node.strip_prefix(&base).ok()?.display()));
        }
        if depth == DEEPEST {
            continue;
        }
        let children = fs::read_dir(&node).into_iter().flatten().flatten();
        let is_node = |child: &fs::DirEntry| child.file_type().is_ok_and(|kind| kind.is_dir());
        nodes.extend(children.filter(is_node).map(|child| (child.path(), depth.saturating_add(1))));
    }
    None
}

fn is_its(node: &Path) -> bool {
    let compatible = fs::read(node.join("compatible")).unwrap_or_default();
    let status = fs::read(node.join("status")).ok();
    let enabled = status.is_none_or(|status| status.starts_with(b"ok"));
    enabled && compatible.split(|byte| *byte == 0).any(|name| name == COMPATIBLE)
}

/// The cell with this number of a property.
fn word(property: &[u8], index: usize) -> Option<u32> {
    let (cells, _) = property.as_chunks::<4>();
    cells.get(index).map(|cell| u32::from_be_bytes(*cell))
}
