// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Boot images: the agent as process 1 and what the scenario wants in the machine.

use crate::error::{At, Error, Result};
use cpio::newc::{Builder, trailer};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use virtio_irq_lab_agent::PAYLOAD;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// Writes an image to `to`. `payload` is found under [`PAYLOAD`] by its file names; directories bring all that is in them.
pub(crate) fn write(to: &Path, agent: &Path, payload: &[PathBuf]) -> Result<()> {
    let mut image = Image { bytes: Vec::new(), inode: 0 };
    let built = (|| -> Result<()> {
        for directory in ["dev", "proc", "sys", "root", PAYLOAD.trim_start_matches('/')] {
            image.entry(directory, DIRECTORY, (0, 0), &[]).at(to)?;
        }
        // The kernel opens it for process 1 before anything is mounted.
        image.entry("dev/console", CHARACTER_DEVICE, (5, 1), &[]).at(to)?;
        image.entry("init", PROGRAM, (0, 0), &fs::read(agent).at(agent)?).at(to)?;
        image.add(payload, Path::new(PAYLOAD.trim_start_matches('/')), to)
    })();
    built?;
    let bytes = trailer(image.bytes).at(to)?;
    if let Some(directory) = to.parent() {
        fs::create_dir_all(directory).at(directory)?;
    }
    fs::write(to, bytes).at(to)
}

struct Image {
    bytes: Vec<u8>,
    inode: u32,
}

impl Image {
    /// Adds files and directories to the directory `into`.
    fn add(&mut self, payload: &[PathBuf], into: &Path, to: &Path) -> Result<()> {
        for file in payload {
            let name = file.file_name().and_then(|name| name.to_str());
            let name = name.ok_or_else(|| Error::Unexpected(format!("{} has no name", file.display())))?;
            let path = into.join(name);
            if file.is_dir() {
                self.entry(&path.to_string_lossy(), DIRECTORY, (0, 0), &[]).at(to)?;
                let children = fs::read_dir(file).at(file)?.map(|child| child.map(|child| child.path()));
                let children: io::Result<Vec<_>> = children.collect();
                self.add(&children.at(file)?, &path, to)?;
            } else {
                self.entry(&path.to_string_lossy(), PROGRAM, (0, 0), &fs::read(file).at(file)?).at(to)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        // Equal inode numbers would be hard links to each other.
        self.inode += 1;
        let mut writer = Builder::new(name)
            .ino(self.inode)
            .mode(mode)
            .nlink(1)
            .rdev_major(device.0)
            .rdev_minor(device.1)
            .write(std::mem::take(&mut self.bytes), size);
        writer.write_all(content)?;
        self.bytes = writer.finish()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::write;
    use cpio::newc::Reader;
    use std::fs;
    use std::io::Read;

    #[test]
    fn an_image_holds_the_agent_as_init_and_the_payload_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let (agent, extra, to) = (
            directory.path().join("agent"),
            directory.path().join("x.ko"),
            directory.path().join("sub/image"),
        );
        fs::write(&agent, "agent").unwrap();
        fs::write(&extra, "module").unwrap();
        write(&to, &agent, &[extra]).unwrap();
        let bytes = fs::read(&to).unwrap();
        let mut rest = bytes.as_slice();
        let mut found = Vec::new();
        loop {
            let mut reader = Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut content = String::new();
            reader.read_to_string(&mut content).unwrap();
            rest = reader.finish().unwrap();
            found.push((name, mode, content));
        }
        assert!(found.contains(&("init".to_owned(), 0o100_755, "agent".to_owned())));
        assert!(found.contains(&("lab/x.ko".to_owned(), 0o100_755, "module".to_owned())));
        assert!(found.contains(&("dev/console".to_owned(), 0o020_600, String::new())));
    }
}
