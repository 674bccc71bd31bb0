// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the VFIO device of a function comes from.

use super::Host;
use super::cdev::Lender;
use super::claim::{Claim, ClaimError, SupplyError};
use super::process::{Process, ToldProcess};
use super::socket::Mailbox;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use virtio_irq_proto::PciAddress;

/// How the VMM's descriptor of a function is had, as the operator says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceSource {
    /// `pid:N`: duplicated out of the VMM, which runs as this process.
    Process(u32),
    /// `pidfile:PATH`: duplicated out of the VMM, whose process id is in this file (QEMU's `-pidfile`).
    PidFile(PathBuf),
    /// `socket:PATH`: received over a Unix socket at which this process listens; see [`Mailbox`].
    Socket(PathBuf),
    /// `cdev:PATH`: opened here as a character device, and lent to the VMM over a Unix socket at which this process listens.
    CharacterDevice(PathBuf),
}

/// What is wrong with the text of a [`DeviceSource`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum SourceError {
    #[error(
        "{text:?} says not where the VFIO device comes from: use pid:N, pidfile:PATH, socket:PATH or cdev:PATH"
    )]
    Kind { text: String },
    #[error("pid:{text} is no process id: it is a number from 1 to 2147483647")]
    Pid { text: String },
    #[error("{kind}: wants a path behind it")]
    Path { kind: &'static str },
}

impl FromStr for DeviceSource {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        let path = |kind, path: &str| {
            if path.is_empty() { Err(SourceError::Path { kind }) } else { Ok(PathBuf::from(path)) }
        };
        match text.split_once(':') {
            None if text == "cdev" => Err(SourceError::Path { kind: "cdev" }),
            Some(("pid", number)) => match number.parse::<u32>() {
                Ok(pid) if (1..=i32::MAX.cast_unsigned()).contains(&pid) => Ok(Self::Process(pid)),
                _ => Err(SourceError::Pid { text: number.to_owned() }),
            },
            Some(("pidfile", rest)) => path("pidfile", rest).map(Self::PidFile),
            Some(("socket", rest)) => path("socket", rest).map(Self::Socket),
            Some(("cdev", rest)) => path("cdev", rest).map(Self::CharacterDevice),
            _ => Err(SourceError::Kind { text: text.to_owned() }),
        }
    }
}

impl fmt::Display for DeviceSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(pid) => write!(f, "pid:{pid}"),
            Self::PidFile(path) => write!(f, "pidfile:{}", path.display()),
            Self::Socket(path) => write!(f, "socket:{}", path.display()),
            Self::CharacterDevice(path) => write!(f, "cdev:{}", path.display()),
        }
    }
}

/// Hands the device of one function out as often as it is asked.
#[derive(Debug)]
pub struct DeviceSupply(Kind);

#[derive(Debug)]
enum Kind {
    Process(Process),
    Mailbox(Mailbox),
    Lender(Lender),
}

impl DeviceSource {
    /// Gets ready to hand the device of `function` out: opens the socket, sees whether there is a character device, or gets hold of the
    /// process, so that a later process with the same number is not taken for it.
    ///
    /// # Errors
    /// One sentence for the operator. That the VMM does not run yet is none, except for `pid:`.
    pub fn open(&self, host: &Host, function: PciAddress) -> Result<DeviceSupply, SupplyError> {
        Ok(DeviceSupply(match self {
            Self::Process(pid) => Kind::Process(Process::running(*pid, host, function)?),
            Self::PidFile(path) => Kind::Process(Process::by_file(path, host, function)),
            Self::Socket(path) => Kind::Mailbox(Mailbox::open(path, host, function)?),
            Self::CharacterDevice(path) => Kind::Lender(Lender::open(path, host, function)?),
        }))
    }
}

impl DeviceSupply {
    /// The device of `function` out of a process that is told later.
    pub fn out_of(process: &ToldProcess, host: &Host, function: PciAddress) -> Self {
        Self(Kind::Process(Process::told(process, host, function)))
    }

    /// The device, if a VMM has it now. Never waits.
    ///
    /// # Errors
    /// [`ClaimError::NotYet`] if it has not; then ask again when it is needed again.
    pub fn claim(&self) -> Result<Claim, ClaimError> {
        match &self.0 {
            Kind::Process(process) => process.claim(),
            Kind::Mailbox(mailbox) => mailbox.claim(),
            Kind::Lender(lender) => lender.claim(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_understood_and_printed_as_it_was_written() {
        for (text, source) in [
            ("pid:4711", DeviceSource::Process(4711)),
            ("pid:2147483647", DeviceSource::Process(2_147_483_647)),
            ("pidfile:/run/vm 1.pid", DeviceSource::PidFile("/run/vm 1.pid".into())),
            ("socket:/run/a:b", DeviceSource::Socket("/run/a:b".into())),
            ("cdev:/run/vfio", DeviceSource::CharacterDevice("/run/vfio".into())),
        ] {
            assert_eq!(text.parse(), Ok(source.clone()));
            assert_eq!(source.to_string(), text);
        }
    }

    #[test]
    fn what_is_none_of_the_forms_is_refused_with_them() {
        for text in ["", "qemu", "cdev7", "PID:1", "fd:3"] {
            assert_eq!(
                text.parse::<DeviceSource>(),
                Err(SourceError::Kind { text: text.to_owned() }),
                "{text}"
            );
        }
        assert!("x".parse::<DeviceSource>().unwrap_err().to_string().contains("socket:PATH"));
    }

    #[test]
    fn a_process_id_is_a_positive_number_of_31_bits() {
        for text in ["", "0", "-1", "2147483648", "0x10", "1 ", "self"] {
            let error = format!("pid:{text}").parse::<DeviceSource>().unwrap_err();
            assert_eq!(error, SourceError::Pid { text: text.to_owned() });
        }
    }

    #[test]
    fn a_path_is_not_empty() {
        assert_eq!("pidfile:".parse::<DeviceSource>(), Err(SourceError::Path { kind: "pidfile" }));
        assert_eq!("socket:".parse::<DeviceSource>(), Err(SourceError::Path { kind: "socket" }));
        for text in ["cdev", "cdev:"] {
            assert_eq!(text.parse::<DeviceSource>(), Err(SourceError::Path { kind: "cdev" }));
        }
    }
}
