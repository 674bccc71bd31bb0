// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The monitor of the emulated host's QEMU: the host's hardware, seen from outside of it.

use crate::error::{At, Error, Result};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// QEMU answers between two of its guest's instructions, however busy this machine is.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to the monitor (QMP, docs/interop/qmp-spec.rst in QEMU).
#[derive(Debug)]
pub(crate) struct Monitor(Mutex<BufReader<UnixStream>>);

impl Monitor {
    /// Over a socket whose other end is QEMU's.
    pub(crate) fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(PATIENCE)).at("monitor")?;
        Ok(Self(Mutex::new(BufReader::new(stream))))
    }

    /// Leaves the state in which QEMU takes no commands.
    pub(crate) fn greet(&self) -> Result<()> {
        self.execute("qmp_capabilities", &serde_json::json!({})).map(drop)
    }

    /// `count` words of physical memory from `address` on, a device's registers included, as the host's processor would load
    /// them.
    pub(crate) fn physical(&self, address: u64, count: usize) -> Result<Vec<u32>> {
        let command = format!("xp /{count}wx {address:#x}");
        let text = self.ask(&command)?;
        let words = words(&text).filter(|words| words.len() == count);
        words.ok_or_else(|| Error::Unexpected(format!("the monitor answered {text:?} to {command}")))
    }

    /// What the monitor for people answers to `command`.
    pub(crate) fn ask(&self, command: &str) -> Result<String> {
        let arguments = serde_json::json!({ "command-line": command });
        let answer = self.execute("human-monitor-command", &arguments)?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    fn execute(&self, command: &str, arguments: &serde_json::Value) -> Result<serde_json::Value> {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let request = serde_json::json!({ "execute": command, "arguments": arguments });
        writeln!(stream.get_mut(), "{request}").at("monitor")?;
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).at("monitor")? == 0 {
                return Err(Error::Unexpected(format!("the monitor closed at {command}")));
            }
            let mut message: serde_json::Value = serde_json::from_str(&line)
                .map_err(|error| Error::Unexpected(format!("the monitor wrote {line:?}: {error}")))?;
            // Besides answers there are a greeting and events.
            if let Some(answer) = message.get_mut("return") {
                return Ok(answer.take());
            }
            if let Some(error) = message.get("error") {
                return Err(Error::Unexpected(format!("the monitor refuses {command}: {error}")));
            }
        }
    }
}

/// `00000000febd0000: 0xfee00418 0x00000000\r\n...`
fn words(text: &str) -> Option<Vec<u32>> {
    let word = |word: &str| u32::from_str_radix(word.strip_prefix("0x")?, 16).ok();
    let mut all = Vec::new();
    for line in text.lines() {
        let (_, values) = line.split_once(": ")?;
        for value in values.split_whitespace() {
            all.push(word(value)?);
        }
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn physical_memory_is_read_past_greetings_and_events() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let peer = std::thread::spawn(move || {
            let mut reader = BufReader::new(theirs);
            writeln!(reader.get_mut(), r#"{{"QMP": {{}}}}"#).unwrap();
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            writeln!(reader.get_mut(), r#"{{"event": "RESUME"}}"#).unwrap();
            let text = r"00000000fe004000: 0xfee00418 0x00000000\r\n00000000fe004008: 0x00000003\r\n";
            writeln!(reader.get_mut(), r#"{{"return": "{text}"}}"#).unwrap();
            line
        });
        let monitor = Monitor::new(ours).unwrap();
        assert_eq!(monitor.physical(0xfe00_4000, 3).unwrap(), [0xfee0_0418, 0, 3]);
        assert!(peer.join().unwrap().contains("xp /3wx 0xfe004000"));
    }

    #[test]
    fn a_refusal_is_an_error() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        writeln!(theirs, r#"{{"error": {{"desc": "no"}}}}"#).unwrap();
        let error = Monitor::new(ours).unwrap().greet().unwrap_err().to_string();
        assert!(error.contains("no"), "{error}");
    }

    #[test]
    fn what_is_not_memory_is_no_words() {
        assert_eq!(words("Cannot access memory"), None);
    }
}
