// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Registers as 32-bit words.

/// Words at byte offsets that are multiples of 4. Outside, reads give 0 and writes are lost.
#[derive(Clone, Debug)]
pub(crate) struct Words(Vec<u32>);

impl Words {
    /// Zeroes, `bytes` long.
    pub(crate) fn new(bytes: u32) -> Self {
        Self(vec![0; bytes as usize / 4])
    }

    pub(crate) fn get(&self, at: u32) -> u32 {
        self.0.get(at as usize / 4).copied().unwrap_or(0)
    }

    pub(crate) fn set(&mut self, at: u32, value: u32) {
        if let Some(word) = self.0.get_mut(at as usize / 4) {
            *word = value;
        }
    }
}

/// Splits an access of any length at any offset into words: for each, its offset, the first of its bytes that is touched,
/// and which part of the access it is.
pub(crate) fn words(
    offset: u32,
    length: usize,
) -> impl Iterator<Item = (u32, usize, std::ops::Range<usize>)> {
    let mut done: usize = 0;
    std::iter::from_fn(move || {
        if done >= length {
            return None;
        }
        let at = offset.wrapping_add(u32::try_from(done).ok()?);
        let first = (at % 4) as usize;
        let count = length.saturating_sub(done).min(4_usize.saturating_sub(first));
        let part = done..done.saturating_add(count);
        done = part.end;
        Some((at & !3, first, part))
    })
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn an_access_is_split_at_words() {
        let parts: Vec<_> = words(6, 7).collect();
        assert_eq!(parts, [(4, 2, 0..2), (8, 0, 2..6), (12, 0, 6..7)]);
        assert_eq!(words(8, 0).count(), 0);
    }
}
