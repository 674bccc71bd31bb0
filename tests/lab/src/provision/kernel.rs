// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernel that the machines boot: Debian's own image, only unpacked.

use crate::error::{At, Error, Result};
use crate::program::{self, in_tree};
use std::fs;
use std::path::Path;

/// Changes when this file makes something else of the tree.
pub(super) const RECIPE: &str = "kernel 1";

/// Where the uncompressed kernel is in the tree.
pub(crate) const IMAGE: &str = "boot/vmlinux";

/// Fetches and unpacks image and modules for the release whose headers are installed. Installing them would build an
/// initramfs and configure boot loaders, none of which is of use here.
pub(super) fn unpack(tree: &Path, suite: &str, log: &Path) -> Result<()> {
    let release = release(tree)?;
    let packages = image_packages(tree, &release, log)?;
    fetch(tree, suite, &packages, log)?;
    program::run("list the modules' dependencies", in_tree(tree, "depmod").arg(&release), log)?;
    uncompress(tree, &release, log)
}

/// Unpacks packages of `suite`, without installing them or what they depend on.
pub(super) fn fetch(tree: &Path, suite: &str, packages: &[String], log: &Path) -> Result<()> {
    let downloads = tree.join("var/tmp");
    for package in packages {
        let mut fetch = in_tree(tree, "sh");
        fetch.args([
            "-ec",
            "cd /var/tmp; apt-get download --target-release \"$1\" \"$2\"",
            "sh",
            suite,
            package,
        ]);
        program::run("fetch a package", &mut fetch, log)?;
    }
    for entry in fs::read_dir(&downloads).at(&downloads)? {
        let archive = entry.at(&downloads)?.path();
        if archive.extension().is_some_and(|extension| extension == "deb") {
            let inside = Path::new("/var/tmp").join(archive.file_name().unwrap_or_default());
            program::run("unpack a package", in_tree(tree, "dpkg-deb").arg("-x").arg(inside).arg("/"), log)?;
            fs::remove_file(&archive).at(&archive)?;
        }
    }
    Ok(())
}

/// The release of the kernel in the tree: that of the headers from backports, which are newer than others that may be there.
pub(crate) fn release(tree: &Path) -> Result<String> {
    releases(tree)?
        .into_iter()
        .max_by_key(|release| numbers(release))
        .ok_or_else(|| Error::Unexpected(format!("no kernel in {}", tree.display())))
}

/// The release of the series `series` whose headers are in the tree.
pub(crate) fn release_of(tree: &Path, wanted: &str) -> Result<String> {
    let found = releases(tree)?.into_iter().find(|release| series(release) == wanted);
    found.ok_or_else(|| Error::Unexpected(format!("no kernel {wanted} in {}", tree.display())))
}

fn releases(tree: &Path) -> Result<Vec<String>> {
    let modules = tree.join("usr/lib/modules");
    let entries = fs::read_dir(&modules).at(&modules)?;
    let name = |entry: std::io::Result<fs::DirEntry>| {
        Ok(entry.at(&modules)?.file_name().to_string_lossy().into_owned())
    };
    entries.map(name).collect()
}

/// `7.3.4+deb13-amd64` → 7, 3, 4, 13, 64: what orders releases.
fn numbers(release: &str) -> Vec<u64> {
    release.split(|char: char| !char.is_ascii_digit()).filter_map(|text| text.parse().ok()).collect()
}

/// `7.3.4+deb13-amd64` → `7.3`, as the packages of the source are named.
pub(crate) fn series(release: &str) -> String {
    release.split('.').take(2).collect::<Vec<_>>().join(".")
}

/// Newer Debian kernels come as two packages, older ones as one.
fn image_packages(tree: &Path, release: &str, log: &Path) -> Result<Vec<String>> {
    let split = [format!("linux-binary-{release}"), format!("linux-modules-{release}")];
    let mut show = in_tree(tree, "apt-cache");
    show.args(["pkgnames", "linux-"]);
    let known = String::from_utf8_lossy(&program::output("list kernels", &mut show, log)?).into_owned();
    let known = |package: &String| known.lines().any(|line| line == package);
    Ok(if split.iter().all(known) { split.to_vec() } else { vec![format!("linux-image-{release}")] })
}

/// Takes the kernel proper out of the image, so that no emulated CPU has to decompress it: a third of the time to boot.
fn uncompress(tree: &Path, release: &str, log: &Path) -> Result<()> {
    let candidates = [format!("usr/lib/modules/{release}/vmlinuz"), format!("boot/vmlinuz-{release}")];
    let path = candidates.iter().map(|path| tree.join(path)).find(|path| path.is_file());
    let path =
        path.ok_or_else(|| Error::Unexpected(format!("the packages of Linux {release} hold no image")))?;
    let image = fs::read(&path).at(&path)?;
    let (tool, payload) = payload(&image)
        .ok_or_else(|| Error::Unexpected(format!("{} is compressed in an unknown way", path.display())))?;
    let packed = tree.join("var/tmp/vmlinux.packed");
    fs::write(&packed, payload).at(&packed)?;
    let mut unpack = in_tree(tree, "sh");
    unpack.args(["-ec", "\"$1\" -dc < /var/tmp/vmlinux.packed > \"/$2\"", "sh", tool, IMAGE]);
    program::run("uncompress the kernel", &mut unpack, log)?;
    fs::remove_file(&packed).at(&packed)
}

/// Finds the compressed kernel by the boot protocol's header (Documentation/arch/x86/boot.rst: `setup_sects`,
/// `payload_offset`, `payload_length`), and the program that decompresses it by its first bytes.
fn payload(image: &[u8]) -> Option<(&'static str, &[u8])> {
    let word =
        |at: usize| Some(u32::from_le_bytes(image.get(at..at.checked_add(4)?)?.try_into().ok()?) as usize);
    let sectors = match *image.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let begin = (sectors + 1) * 512 + word(0x248)?;
    // The last four bytes are the size of the result, which only gzip expects there.
    let end = begin.checked_add(word(0x24c)?)?;
    let payload = image.get(begin..end)?;
    let without_size = payload.get(..payload.len().checked_sub(4)?)?;
    match payload {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(("zstd", without_size)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(("xz", without_size)),
        [0x1f, 0x8b, ..] => Some(("gzip", payload)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::payload;

    fn image(magic: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 4096];
        image[0x1f1] = 2;
        image[0x248..0x24c].copy_from_slice(&0x30_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&24_u32.to_le_bytes());
        image[3 * 512 + 0x30..][..magic.len()].copy_from_slice(magic);
        image
    }

    #[test]
    fn a_zstd_payload_loses_its_size_word() {
        let image = image(&[0x28, 0xb5, 0x2f, 0xfd]);
        let (tool, payload) = payload(&image).unwrap();
        assert_eq!((tool, payload.len()), ("zstd", 20));
    }

    #[test]
    fn releases_are_ordered_by_their_numbers() {
        assert!(super::numbers("10.1.2+deb14-amd64") > super::numbers("7.10.4+deb13-amd64"));
        assert!(super::numbers("7.10.4+deb13-amd64") > super::numbers("7.9.11+deb13-amd64"));
    }

    #[test]
    fn a_series_is_the_first_two_numbers() {
        assert_eq!(super::series("7.3.4+deb13-amd64"), "7.3");
        assert_eq!(super::series("7.10-amd64"), "7.10-amd64");
    }

    #[test]
    fn an_image_that_is_too_short_is_no_panic() {
        let image = image(&[0x1f, 0x8b]);
        for length in [0, 0x1f1, 0x24f, 3 * 512 + 0x30 + 23] {
            assert!(payload(&image[..length]).is_none());
        }
        assert_eq!(payload(&image).unwrap().1.len(), 24);
    }
}
