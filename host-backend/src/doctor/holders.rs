// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which processes have a function open.

use super::Tree;
use std::path::Path;

/// A process, and what it is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) pid: u32,
    pub(super) name: String,
}

/// Who has a function open, as far as this process may see it.
#[derive(Debug, Default)]
pub(super) struct Holders {
    pub(super) seen: Vec<Holder>,
    /// Number of processes whose files are not for this process to see.
    pub(super) hidden: usize,
}

impl Holders {
    /// Looks through all processes for the group's device file or the function's own. A VFIO device that was opened
    /// by its group keeps the group open, so the group's file tells.
    pub(super) fn of(tree: &Tree, group: &str, device: Option<&str>) -> Self {
        let group = format!("/dev/vfio/{group}");
        let device = device.map(|device| format!("/dev/vfio/devices/{device}"));
        let wanted = |target: &Path| {
            target == Path::new(&group) || device.as_ref().is_some_and(|device| target == Path::new(device))
        };
        let mut found = Self::default();
        for pid in tree.list("proc").iter().filter_map(|name| name.parse::<u32>().ok()) {
            let directory = tree.path(&format!("proc/{pid}/fd"));
            let open = match std::fs::read_dir(directory) {
                Ok(entries) => entries
                    .flatten()
                    .any(|entry| std::fs::read_link(entry.path()).is_ok_and(|to| wanted(&to))),
                Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                    found.hidden += 1;
                    false
                }
                // It ended.
                Err(_) => false,
            };
            if open {
                let name = tree.text(&format!("proc/{pid}/comm")).unwrap_or_else(|| "ended".to_owned());
                found.seen.push(Holder { pid, name });
            }
        }
        found.seen.sort_by_key(|holder| holder.pid);
        found
    }
}
