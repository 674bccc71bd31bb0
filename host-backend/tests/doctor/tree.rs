// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Trees of other machines' files, from the files in `machines`.
//!
//! `text PATH`, `hex PATH`, `link PATH TARGET` and `dir PATH` begin an entry; lines with `|` are its content. `|...` in a
//! `hex` fills up to 256 bytes with zeros.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

pub(crate) struct Tree(TempDir);

impl Tree {
    pub(crate) fn unpack(description: &str) -> Self {
        let tree = Self(TempDir::new().unwrap());
        let mut lines = description.lines().filter(|line| !line.starts_with('#')).peekable();
        while let Some(line) = lines.next() {
            let mut words = line.split(' ');
            let (kind, path) = (words.next().unwrap(), tree.path(words.next().unwrap()));
            let mut content = Vec::new();
            while let Some(line) = lines.next_if(|line| line.starts_with('|')) {
                content.push(&line[1..]);
            }
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match kind {
                "text" => fs::write(path, content.iter().map(|line| format!("{line}\n")).collect::<String>())
                    .unwrap(),
                "hex" => fs::write(path, bytes(&content)).unwrap(),
                "link" => symlink(words.next().unwrap(), path).unwrap(),
                "dir" => fs::create_dir_all(path).unwrap(),
                kind => panic!("{kind:?} begins no entry"),
            }
        }
        tree.make_links_lead_somewhere();
        tree
    }

    pub(crate) fn root(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    /// A recording has the names that links point to, not the whole of sysfs. A function's group is looked into, so its
    /// directory has to be where the link says.
    fn make_links_lead_somewhere(&self) {
        let Ok(functions) = fs::read_dir(self.path("sys/bus/pci/devices")) else { return };
        for function in functions.flatten() {
            let link = function.path().join("iommu_group");
            if let Ok(target) = fs::read_link(&link) {
                let group = self.path("sys/kernel/iommu_groups").join(target.file_name().unwrap());
                fs::remove_file(&link).unwrap();
                symlink(group, link).unwrap();
            }
        }
    }
}

fn bytes(lines: &[&str]) -> Vec<u8> {
    let mut bytes: Vec<u8> = Vec::new();
    for line in lines {
        if *line == "..." {
            bytes.resize(256, 0);
        } else {
            bytes.extend(line.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()));
        }
    }
    bytes
}
