// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The stock kernel's modules: what each needs, and uncompressed copies.

use crate::error::{At, Error, Result};
use crate::layout::Layout;
use crate::program::{self, in_tree};
use crate::provision;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// `wanted` and all that they depend on, in an order in which they load, each as an uncompressed file.
pub(crate) fn closure(layout: &Layout, wanted: &[&str]) -> Result<Vec<PathBuf>> {
    let tree = layout.tree();
    let release = provision::release(&tree)?;
    let directory = tree.join("usr/lib/modules").join(&release);
    let list = directory.join("modules.dep");
    let dependencies = Dependencies::parse(&fs::read_to_string(&list).at(&list)?);
    let copies = layout.modules().join(&release);
    fs::create_dir_all(&copies).at(&copies)?;
    let log = layout.logs("build").join("modules.log");
    let copy = |module: &String| {
        let copy = copies.join(format!("{}.ko", name(module)));
        if !copy.is_file() {
            let packed = Path::new("/usr/lib/modules").join(&release).join(module);
            let mut unpack = in_tree(&tree, if module.ends_with(".xz") { "xz" } else { "cat" });
            if module.ends_with(".xz") {
                unpack.arg("-dc");
            }
            let content = program::output("uncompress a module", unpack.arg(packed), &log)?;
            let part = copy.with_extension("part");
            fs::write(&part, content).and_then(|()| fs::rename(&part, &copy)).at(&copy)?;
        }
        Ok(copy)
    };
    dependencies.order(wanted)?.iter().map(copy).collect()
}

/// `modules.dep`: path of a module → paths of what it needs, the closest first.
struct Dependencies(HashMap<String, (String, Vec<String>)>);

impl Dependencies {
    fn parse(text: &str) -> Self {
        let entry = |line: &str| {
            let (module, needs) = line.split_once(':')?;
            let needs = needs.split_whitespace().map(str::to_owned).collect();
            Some((name(module).replace('-', "_"), (module.to_owned(), needs)))
        };
        Self(text.lines().filter_map(entry).collect())
    }

    fn order(&self, wanted: &[&str]) -> Result<Vec<String>> {
        let mut order: Vec<String> = Vec::new();
        for module in wanted {
            let found = self.0.get(&module.replace('-', "_"));
            let (path, needs) =
                found.ok_or_else(|| Error::Unexpected(format!("the kernel has no module {module}")))?;
            for path in needs.iter().rev().chain([path]) {
                if !order.contains(path) {
                    order.push(path.clone());
                }
            }
        }
        Ok(order)
    }
}

/// `kernel/net/9p/9pnet.ko.xz` → `9pnet`.
fn name(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file)
}

#[cfg(test)]
mod tests {
    use super::Dependencies;

    #[test]
    fn what_a_module_needs_comes_before_it_and_once() {
        let text = "k/vfio-pci.ko.xz: k/vfio-pci-core.ko.xz k/vfio.ko.xz\nk/vfio-pci-core.ko.xz: k/vfio.ko.xz\n\
                    k/vfio.ko.xz:\nk/type1.ko.xz: k/vfio.ko.xz\n";
        let order = Dependencies::parse(text).order(&["vfio_pci", "type1"]).unwrap();
        assert_eq!(order, ["k/vfio.ko.xz", "k/vfio-pci-core.ko.xz", "k/vfio-pci.ko.xz", "k/type1.ko.xz"]);
    }

    #[test]
    fn an_unknown_module_is_named() {
        let error = Dependencies::parse("").order(&["nope"]).unwrap_err().to_string();
        assert!(error.contains("nope"), "{error}");
    }
}
