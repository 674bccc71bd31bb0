// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernel's log, from its first line, to the runner.

use crate::failure;
use crate::port::Port;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use virtio_irq_lab_agent::Message;

/// A record and its dictionary: `/dev/kmsg` gives one record a read, and refuses shorter buffers.
const RECORD: usize = 8192;

/// Lines sent at once. A write to the port costs a nested guest milliseconds, and a boot logs hundreds of lines.
const BATCH: usize = 200;

/// Forwards what is logged, from the oldest record on, until the machine ends.
pub(crate) fn forward(port: Port) {
    std::thread::spawn(move || {
        if let Err(error) = follow(&port) {
            eprintln!("lab agent: {}", failure("read /dev/kmsg", &error));
        }
    });
}

fn follow(port: &Port) -> io::Result<()> {
    let mut log = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open("/dev/kmsg")?;
    loop {
        match poll(&mut [PollFd::new(log.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let lines = pending(&mut log)?;
        if !lines.is_empty() {
            port.say(&Message::Kernel { lines });
        }
    }
}

/// What can be read without waiting, up to [`BATCH`] lines.
fn pending(log: &mut File) -> io::Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut buffer = [0; RECORD];
    while lines.len() < BATCH {
        match log.read(&mut buffer) {
            Ok(length) => {
                lines.push(line(&String::from_utf8_lossy(buffer.get(..length).unwrap_or_default())))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            // The ring overtook us; the next read continues with what is left.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(error) => return Err(error),
        }
    }
    Ok(lines)
}

/// `6,1234,5678901,-;text\n KEY=value` as `[    5.678901] text`.
fn line(record: &str) -> String {
    let first = record.lines().next().unwrap_or_default();
    let (head, text) = first.split_once(';').unwrap_or(("", first));
    let microseconds: u64 = head.split(',').nth(2).and_then(|field| field.parse().ok()).unwrap_or(0);
    format!("[{:5}.{:06}] {text}", microseconds / 1_000_000, microseconds % 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::line;

    #[test]
    fn a_record_reads_like_dmesg() {
        let record = "0,512,16897857,-;No irq handler for 0.153\n SUBSYSTEM=pci\n";
        assert_eq!(line(record), "[   16.897857] No irq handler for 0.153");
    }

    #[test]
    fn a_record_of_another_shape_is_kept() {
        assert_eq!(line("text alone"), "[    0.000000] text alone");
    }
}
