// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Linux error numbers, and the one place where results become them.

use core::ffi::c_int;
use virtio_irq_driver::{FindError, NotContiguous};
use virtio_irq_proto::{ReplyError, Status};

/// An error number of Linux, positive. `rust_core.h` asserts that the kernel has the same numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Errno(c_int);

impl Errno {
    /// The host refuses.
    pub(crate) const EPERM: Self = Self(1);
    /// The device does not know the sources.
    pub(crate) const ENOENT: Self = Self(2);
    /// The host failed.
    pub(crate) const EIO: Self = Self(5);
    /// The host was told a wrong guest address.
    pub(crate) const ENXIO: Self = Self(6);
    /// The vector is not enabled yet, or the function not handed over.
    pub(crate) const EAGAIN: Self = Self(11);
    /// The function's interrupts are in use otherwise.
    pub(crate) const EBUSY: Self = Self(16);
    /// No device knows the function.
    pub(crate) const ENODEV: Self = Self(19);
    /// The caller's argument makes no sense.
    pub(crate) const EINVAL: Self = Self(22);
    /// The messages do not form a block, or too few sources are left.
    pub(crate) const ENOSPC: Self = Self(28);
    /// The function does not have these vectors.
    pub(crate) const ERANGE: Self = Self(34);
    /// The device's answer makes no sense.
    pub(crate) const EPROTO: Self = Self(71);
    /// The device gave sources, and nobody knows which.
    pub(crate) const EBADMSG: Self = Self(74);
    /// Several functions fit.
    pub(crate) const ENOTUNIQ: Self = Self(76);
    /// The device does not do this.
    pub(crate) const EOPNOTSUPP: Self = Self(95);
    /// The host gives no block of messages.
    pub(crate) const EADDRNOTAVAIL: Self = Self(99);

    /// What a C function returned instead of a length: a negative error number.
    pub(crate) fn from_return(negative: isize) -> Self {
        c_int::try_from(negative).ok().and_then(c_int::checked_neg).map_or(Self::EIO, Self)
    }

    /// What a C function returns for it.
    pub(crate) fn to_return(self) -> c_int {
        self.0.wrapping_neg()
    }
}

impl From<ReplyError> for Errno {
    fn from(error: ReplyError) -> Self {
        match error {
            ReplyError::Refused(status) => match status {
                Status::Unsupported => Self::EOPNOTSUPP,
                // `Ok` is no refusal. The others blame a request or a buffer that this driver is sure of.
                Status::Ok | Status::Invalid | Status::BufferTooSmall => Self::EPROTO,
                Status::NoFunction | Status::FunctionGone => Self::ENODEV,
                Status::NoVector => Self::ERANGE,
                Status::NotEnabled => Self::EAGAIN,
                Status::NotIsolated => Self::EPERM,
                Status::HostError => Self::EIO,
                Status::NoSource => Self::ENOENT,
                Status::Busy => Self::EBUSY,
                Status::NoSpace => Self::ENOSPC,
                Status::NotContiguous => Self::EADDRNOTAVAIL,
                Status::NotReady => Self::EAGAIN,
            },
            ReplyError::UnknownStatus(_) | ReplyError::Malformed => Self::EPROTO,
        }
    }
}

impl From<FindError> for Errno {
    fn from(error: FindError) -> Self {
        match error {
            FindError::NoMatch => Self::ENODEV,
            FindError::Ambiguous => Self::ENOTUNIQ,
            FindError::OtherModel(_) => Self::ENXIO,
            FindError::Reply(error) => error.into(),
        }
    }
}

impl From<NotContiguous> for Errno {
    fn from(_: NotContiguous) -> Self {
        Self::ENOSPC
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_its_errno() {
        let returned = Status::ALL.map(|status| Errno::from(ReplyError::Refused(status)).to_return());
        assert_eq!(returned, [-71, -95, -71, -71, -19, -34, -11, -1, -5, -19, -2, -16, -28, -99, -11]);
        assert_eq!(Errno::from(ReplyError::UnknownStatus(15)).to_return(), -71);
        assert_eq!(Errno::from(ReplyError::Malformed).to_return(), -71);
    }

    #[test]
    fn a_search_without_a_result_has_its_errno() {
        assert_eq!(Errno::from(FindError::NoMatch).to_return(), -19);
        assert_eq!(Errno::from(FindError::Ambiguous).to_return(), -76);
        assert_eq!(Errno::from(FindError::OtherModel(virtio_irq_proto::FunctionId(3))).to_return(), -6);
        assert_eq!(Errno::from(FindError::Reply(ReplyError::Refused(Status::HostError))).to_return(), -5);
    }

    #[test]
    fn an_errno_of_c_comes_back_unchanged() {
        assert_eq!(Errno::from_return(-110).to_return(), -110);
        assert_eq!(Errno::from_return(isize::MIN), Errno::EIO);
    }
}
