// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernel's log, and what is worth knowing in it.

use super::Tree;
use super::report::Symptom;
use super::symptoms::Known;
use crate::printable::printable;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, read};

/// A record and its dictionary. `/dev/kmsg` refuses shorter buffers (`PRINTK_MESSAGE_MAX` in kernel/printk).
const RECORD: usize = 8192;

/// The ring of a kernel holds less; a file that takes its place may not end.
const MOST_BYTES: usize = 64 << 20;

/// A line, when it was logged and what it says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Line {
    /// Since the kernel's start.
    pub(super) seconds: f64,
    pub(super) text: String,
}

/// Reads all that is in the ring now.
///
/// # Errors
/// Why it cannot be read, and what to do.
pub(super) fn read_all(tree: &Tree) -> Result<Vec<Line>, String> {
    let path = tree.path("dev/kmsg");
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = open(&path, flags, Mode::empty()).map_err(explain)?;
    let mut log = Vec::new();
    let mut buffer = vec![0; RECORD];
    while log.len() < MOST_BYTES {
        match read(&file, &mut buffer) {
            Ok(0) | Err(Errno::AGAIN) => break,
            Ok(length) => log.extend_from_slice(buffer.get(..length).unwrap_or_default()),
            // The ring overtook us; the next read goes on with what is left. EINTR asks for as much.
            Err(Errno::PIPE | Errno::INTR) => {}
            Err(errno) => return Err(explain(errno)),
        }
    }
    Ok(String::from_utf8_lossy(&log).lines().filter_map(parse).collect())
}

fn explain(errno: Errno) -> String {
    match errno {
        Errno::PERM | Errno::ACCESS => {
            "the kernel's log is for root only (the sysctl kernel.dmesg_restrict): run the doctor as root"
                .to_owned()
        }
        errno => format!("cannot read the kernel's log (/dev/kmsg): {}", std::io::Error::from(errno)),
    }
}

/// `6,339,5140900,-;message`: priority, sequence, microseconds, flags. Lines of a record's dictionary begin with a
/// space (Documentation/ABI/testing/dev-kmsg).
fn parse(line: &str) -> Option<Line> {
    if line.starts_with(' ') {
        return None;
    }
    let (head, text) = line.split_once(';')?;
    let microseconds: u64 = head.split(',').nth(2)?.parse().ok()?;
    #[allow(clippy::cast_precision_loss, reason = "seconds for a person")]
    let seconds = microseconds as f64 / 1e6;
    Some(Line { seconds, text: text.to_owned() })
}

/// The lines that mean something, gathered by what they mean, in the order of the table. A line has the first meaning
/// that fits.
pub(super) fn symptoms(lines: &[Line], table: &[Known]) -> Vec<Symptom> {
    let first = |line: &Line| table.iter().position(|known| known.matches(&line.text));
    let of = |(index, known): (usize, &Known)| {
        let matching: Vec<_> = lines.iter().filter(|line| first(line) == Some(index)).collect();
        let newest = matching.last()?;
        Some(Symptom {
            line: printable(&newest.text),
            seconds: newest.seconds,
            count: matching.len(),
            function: address_in(&newest.text),
            meaning: known.meaning,
            advice: known.advice,
        })
    };
    table.iter().enumerate().filter_map(of).collect()
}

/// The first PCI address in a line, in full: `02:00.0` is one of segment 0.
fn address_in(line: &str) -> Option<String> {
    let words = line.split(|end: char| !(end.is_ascii_hexdigit() || matches!(end, ':' | '.')));
    words.map(|word| word.trim_matches([':', '.'])).find_map(|word| {
        // The kernel writes segments with four digits: `12:00:01.5` is a time.
        let is_time = word.matches(':').count() == 2 && word.find(':') != Some(4);
        let address = word.parse::<virtio_irq_proto::PciAddress>().ok()?;
        (!is_time).then(|| address.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::symptoms;

    #[test]
    fn records_are_taken_apart() {
        let line = parse("6,339,5140900,-;vfio-pci 0000:02:00.0: enabling device (0000 -> 0002)").unwrap();
        assert_eq!(line.text, "vfio-pci 0000:02:00.0: enabling device (0000 -> 0002)");
        assert!((line.seconds - 5.1409).abs() < 1e-9);
        assert_eq!(parse(" SUBSYSTEM=pci"), None);
        assert_eq!(parse("no record"), None);
        assert_eq!(parse("6,x,y,-;text"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn the_function_is_found_in_a_line() {
        let found = |line| address_in(line);
        assert_eq!(
            found("DMAR: [INTR-REMAP] Request device [02:00.0] fault index 0x0").as_deref(),
            Some("0000:02:00.0")
        );
        assert_eq!(
            found("vfio-pci 0001:3b:02.5: not ready 65535ms after FLR").as_deref(),
            Some("0001:3b:02.5")
        );
        assert_eq!(found("(XEN) [2026-11-21 12:00:01.5] reason 25"), None);
        assert_eq!(found("::.: . 00.0 5:4"), None);
    }

    #[test]
    fn the_newest_of_equal_symptoms_stands_for_all() {
        let line = |seconds, text: &str| Line { seconds, text: text.to_owned() };
        let blocked = "DMAR: [INTR-REMAP] Request device [02:00.0] fault index 0x0 [fault reason 0x25] Blocked a \
                       compatibility format interrupt request";
        let other = blocked.replace("02:00.0", "03:00.1");
        let lines = [line(1.0, blocked), line(2.0, "nothing"), line(3.0, &format!("{other}\x1b[2J"))];
        let found = symptoms(&lines, symptoms::HOST);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].count, found[0].function.as_deref()), (2, Some("0000:03:00.1")));
        assert!(found[0].line.ends_with(r"\u{1b}[2J"), "{}", found[0].line);
    }
}
