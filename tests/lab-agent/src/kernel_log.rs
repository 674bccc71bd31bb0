// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernel's log, from its first line, to the runner.

use crate::port::Port;
use std::fs::File;
use std::io::{ErrorKind, Read};
use virtio_irq_lab_agent::Message;

/// A record and its dictionary: `/dev/kmsg` gives one record a read, and refuses shorter buffers.
const RECORD: usize = 8192;

/// Forwards what is logged, from the oldest record on, until the machine ends.
pub(crate) fn forward(port: Port) {
    std::thread::spawn(move || {
        let mut log = match File::open("/dev/kmsg") {
            Ok(log) => log,
            Err(error) => return eprintln!("lab agent: open /dev/kmsg: {error}"),
        };
        let mut buffer = [0; RECORD];
        loop {
            match log.read(&mut buffer) {
                Ok(length) => {
                    let record = buffer.get(..length).unwrap_or_default();
                    port.say(&Message::Kernel { line: line(&String::from_utf8_lossy(record)) });
                }
                // The ring overtook us; the next read continues with what is left.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(error) => return eprintln!("lab agent: read /dev/kmsg: {error}"),
            }
        }
    });
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
