// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How many files the process may have open: every source costs some.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Of each source: its eventfd, and the directory under /proc by which its handler is known again.
const EACH_SOURCE: u64 = 2;

/// Everything else: the functions, a frontend with its memory and rings, what is open for the moment of a call.
const OTHERS: u64 = 256;

/// The process may not have as many files open as it could need.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{sources} interrupt sources need {needed} open files, and this process may have {allowed}: allow more \
     (LimitNOFILE={needed} in a systemd unit, `ulimit -n {needed}` in a shell of root), or fewer sources with --max-sources"
)]
pub struct TooFewFiles {
    sources: u64,
    needed: u64,
    allowed: u64,
}

/// Lets the process have as many files open as it may, and as `sources` sources need.
///
/// # Errors
/// It may not have that many.
pub(crate) fn allow_files_for(sources: u64) -> Result<(), TooFewFiles> {
    let needed = sources.saturating_mul(EACH_SOURCE).saturating_add(OTHERS);
    let limit = getrlimit(Resource::Nofile);
    // Privileged, a process can raise its hard limit too.
    let enough = limit.maximum.is_some_and(|most| most < needed).then_some(needed);
    let wanted = [enough.or(limit.maximum), limit.maximum];
    let raised = wanted.into_iter().any(|most| {
        let raised = Rlimit { current: most, maximum: most };
        setrlimit(Resource::Nofile, raised).is_ok()
    });
    let limit = if raised { getrlimit(Resource::Nofile) } else { limit };
    match limit.current {
        Some(allowed) if allowed < needed => Err(TooFewFiles { sources, needed, allowed }),
        _ => Ok(()),
    }
}
