// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Keeps what a guest can cause from filling the log.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing::warn;

/// Lets an action run a few times in a while, and counts what it did not let through.
#[derive(Debug)]
pub(crate) struct Limited(Mutex<Window>);

#[derive(Debug)]
struct Window {
    began: Option<Instant>,
    ran: u32,
    suppressed: u64,
}

impl Limited {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Window { began: None, ran: 0, suppressed: 0 }))
    }

    const LENGTH: Duration = Duration::from_secs(10);
    const MOST: u32 = 10;

    /// Runs `action`, which says something, or suppresses it. Says how many were suppressed before the next that runs.
    pub(crate) fn run(&self, action: impl FnOnce()) {
        let Some(suppressed) = self.admit(Instant::now()) else { return };
        if suppressed > 0 {
            warn!("{suppressed} messages like the next one were suppressed");
        }
        action();
    }

    fn admit(&self, now: Instant) -> Option<u64> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if window.began.is_none_or(|began| now.duration_since(began) >= Self::LENGTH) {
            window.began = Some(now);
            window.ran = 0;
        }
        if window.ran >= Self::MOST {
            window.suppressed += 1;
            return None;
        }
        window.ran += 1;
        Some(std::mem::take(&mut window.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_eleventh_in_ten_seconds_is_suppressed_and_counted() {
        let limited = Limited::new();
        let start = Instant::now();
        for _ in 0..10 {
            assert_eq!(limited.admit(start), Some(0));
        }
        assert_eq!(limited.admit(start + Duration::from_secs(9)), None);
        assert_eq!(limited.admit(start + Duration::from_secs(9)), None);
        assert_eq!(limited.admit(start + Duration::from_secs(10)), Some(2));
        assert_eq!(limited.admit(start + Duration::from_secs(10)), Some(0));
    }
}
