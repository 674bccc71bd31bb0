// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How often a source may fire (IRQ-DEV-56).
//!
//! A virtual-scheduling token bucket, which needs one point in time for each source and no timer of its own. The crates that have
//! one read the clock themselves, which the device core does not.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// Interrupts of one source that are delivered without delay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// What one of them takes up.
    each: Duration,
    /// How much can be taken up in advance.
    burst: Duration,
}

/// What one source took up so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Taken(Option<Instant>);

impl RateLimit {
    /// As many in a second in the long run, and as many as that in a tenth of a second (at least one) at once.
    pub fn per_second(count: NonZeroU32) -> Self {
        let each = Duration::from_secs(1).checked_div(count.get()).unwrap_or_default();
        let burst = each.saturating_mul((count.get() / 10).saturating_sub(1));
        Self { each, burst }
    }

    /// Takes up one more at `now`.
    ///
    /// # Errors
    /// When it can be taken up, if that is later.
    pub(super) fn take(&self, taken: &mut Taken, now: Instant) -> Result<(), Instant> {
        let until = taken.0.map_or(now, |until| until.max(now));
        if until.saturating_duration_since(now) > self.burst {
            return Err(until.checked_sub(self.burst).unwrap_or(until));
        }
        taken.0 = Some(until.checked_add(self.each).unwrap_or(until));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn limit(count: u32) -> RateLimit {
        RateLimit::per_second(NonZeroU32::new(count).unwrap())
    }

    #[test]
    fn a_tenth_of_a_second_comes_at_once_and_then_one_after_the_other() {
        let (limit, start) = (limit(100), Instant::now());
        let mut taken = Taken::default();
        for _ in 0..10 {
            assert_eq!(limit.take(&mut taken, start), Ok(()));
        }
        assert_eq!(limit.take(&mut taken, start), Err(start + 10 * MS));
        assert_eq!(limit.take(&mut taken, start + 9 * MS), Err(start + 10 * MS));
        assert_eq!(limit.take(&mut taken, start + 10 * MS), Ok(()));
        assert_eq!(limit.take(&mut taken, start + 10 * MS), Err(start + 20 * MS));
    }

    #[test]
    fn silence_is_saved_up_to_the_burst_and_no_further() {
        let (limit, start) = (limit(100), Instant::now());
        let mut taken = Taken::default();
        limit.take(&mut taken, start).unwrap();
        let later = start + 100_000 * MS;
        let at_once = (0..50).take_while(|_| limit.take(&mut taken, later).is_ok()).count();
        assert_eq!(at_once, 10);
    }

    #[test]
    fn one_in_a_second_and_billions_are_limits_too() {
        let (start, mut taken) = (Instant::now(), Taken::default());
        assert_eq!(limit(1).take(&mut taken, start), Ok(()));
        assert_eq!(limit(1).take(&mut taken, start), Err(start + 1000 * MS));
        let mut taken = Taken::default();
        for _ in 0..100 {
            assert_eq!(limit(u32::MAX).take(&mut taken, start), Ok(()));
        }
    }
}
