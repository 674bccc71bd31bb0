// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files, links and sockets.

use crate::failure;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use virtio_irq_lab_agent::{Answer, Bytes, Failure};

pub(crate) fn read(path: &str) -> Result<Answer, Failure> {
    let content = fs::read(path).map_err(|error| failure(&format!("read {path}"), &error))?;
    Ok(Answer::Content(Bytes(content)))
}

pub(crate) fn write(path: &str, data: &str) -> Result<Answer, Failure> {
    let write = || -> io::Result<()> {
        let mut file: File = OpenOptions::new().write(true).open(path)?;
        // Not `write_all`: an attribute takes its value in one call or not at all.
        if file.write(data.as_bytes())? == data.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    };
    write().map_err(|error| failure(&format!("write {:?} to {path}", data.trim_end()), &error))?;
    Ok(Answer::Done)
}

pub(crate) fn write_at(path: &str, offset: u64, data: &[u8]) -> Result<Answer, Failure> {
    let write = || OpenOptions::new().write(true).open(path)?.write_all_at(data, offset);
    write().map_err(|error| failure(&format!("write {data:02x?} to {path} at {offset:#x}"), &error))?;
    Ok(Answer::Done)
}

pub(crate) fn list(path: &str) -> Result<Answer, Failure> {
    let list = || -> io::Result<Vec<String>> {
        let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
        let mut names: Vec<_> = fs::read_dir(path)?.map(name).collect::<io::Result<_>>()?;
        names.sort();
        Ok(names)
    };
    list().map(Answer::Names).map_err(|error| failure(&format!("list {path}"), &error))
}

pub(crate) fn link(path: &str) -> Result<Answer, Failure> {
    let target = fs::read_link(path).map_err(|error| failure(&format!("read link {path}"), &error))?;
    Ok(Answer::Names(vec![target.to_string_lossy().into_owned()]))
}

pub(crate) fn connect(path: &str) -> Result<Answer, Failure> {
    let stream = UnixStream::connect(Path::new(path))
        .map_err(|error| failure(&format!("connect to {path}"), &error))?;
    // Open until the machine ends is what the runner asked for.
    std::mem::forget(stream);
    Ok(Answer::Done)
}
