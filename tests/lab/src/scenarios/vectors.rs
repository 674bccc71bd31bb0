// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The sample driver that holds vectors of any function, by its sysfs attributes.

use super::SOON;
use super::functions::Function;
use crate::agent::Agent;
use crate::checks::Unmet;
use crate::error::{Error, Result};
use crate::hardware::Requested;
use crate::msi::{ENTRY, Pair, Table, pairs, table};
use std::time::Instant;

/// Its module.
pub(super) const MODULE: &str = "virtio_irq_vectors";

/// A vector that the driver holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Vector {
    /// `native` or `event`.
    pub(super) how: String,
    /// The index of the vector.
    pub(super) number: usize,
    /// The message that virtio-irq tells, or the errno with which it refuses.
    pub(super) told: Result<Pair, i32>,
    /// How often its handler ran.
    pub(super) count: u64,
    /// `on`, `masked` or what became of it.
    pub(super) state: String,
}

/// The driver, bound to a function.
pub(super) struct Vectors<'a> {
    guest: &'a Agent,
    function: Function,
}

impl<'a> Vectors<'a> {
    /// Binds the driver to a function that no driver has.
    pub(super) fn bind(guest: &'a Agent, function: Function) -> Result<Self> {
        guest.write(&function.in_guest("driver_override"), MODULE)?;
        guest.write("/sys/bus/pci/drivers_probe", function.guest)?;
        Ok(Self { guest, function })
    }

    /// `msi N`, `msix N` or `off`: vectors of the guest's own capability.
    pub(super) fn enable(&self, what: &str) -> Result<()> {
        self.write("enable", what)
    }

    /// Lets virtio-irq allocate vectors: `TYPE any|contiguous LEAST MOST FIRST`.
    pub(super) fn allocate(&self, what: &str) -> Result<()> {
        self.write("allocate", what)
    }

    /// Frees what virtio-irq allocated: `count` vectors from `first` on.
    pub(super) fn free(&self, first: usize, count: usize) -> Result<()> {
        self.write("free", &format!("{first} {count}"))
    }

    /// Masks a vector, in the host too if it is a source.
    pub(super) fn mask(&self, vector: usize) -> Result<()> {
        self.write("mask", &vector.to_string())
    }

    /// Unmasks a vector.
    pub(super) fn unmask(&self, vector: usize) -> Result<()> {
        self.write("unmask", &vector.to_string())
    }

    /// The vectors that it holds, in ascending order.
    pub(super) fn held(&self) -> Result<Vec<Vector>> {
        let text = self.guest.read(&self.function.in_guest(&format!("{MODULE}/vectors")))?;
        let mut held = text.lines().map(parse).collect::<Result<Vec<_>>>()?;
        // The driver has them by allocation.
        held.sort_by_key(|vector| vector.number);
        Ok(held)
    }

    /// How often the handler of each ran.
    pub(super) fn counts(&self) -> Result<Vec<u64>> {
        Ok(self.held()?.into_iter().map(|vector| vector.count).collect())
    }

    /// Waits until the counts are `expected`, and returns them, or what they are instead when it has been long enough.
    pub(super) fn counts_becoming(&self, expected: &[u64]) -> Result<Vec<u64>> {
        becoming(expected.to_vec(), || self.counts())
    }

    /// The messages that virtio-irq tells; where it refuses one, its refusal.
    pub(super) fn told(&self) -> Result<Result<Vec<Pair>, i32>> {
        Ok(self.held()?.into_iter().map(|vector| vector.told).collect())
    }

    /// The MSI-X capability that the guest sees.
    pub(super) fn msix(&self) -> Result<Table> {
        table(&self.guest.read_bytes(&self.function.in_guest("config"))?)
            .ok_or_else(|| Error::Unexpected(format!("{} has no MSI-X capability", self.function.guest)))
    }

    /// The messages in the MSI-X table that the guest sees.
    pub(super) fn guest_pairs(&self) -> Result<Vec<Pair>> {
        let table = self.msix()?;
        let path = self.function.in_guest(&format!("resource{}", table.bar));
        let offset = usize::try_from(table.offset).unwrap_or(usize::MAX);
        Ok(pairs(&self.guest.load(&path, offset, table.entries * ENTRY)?))
    }

    /// Sets and clears bits in 16 bits of configuration space, behind the back of the guest's kernel.
    pub(super) fn change_config(&self, offset: usize, set: u16, clear: u16) -> Result<()> {
        self.function.change_config(self.guest, offset, set, clear)
    }

    fn write(&self, attribute: &str, value: &str) -> Result<()> {
        self.guest.write(&self.function.in_guest(&format!("{MODULE}/{attribute}")), value)
    }
}

/// `counts` with `more` added at `index`.
pub(super) fn added(counts: &[u64], index: usize, more: u64) -> Vec<u64> {
    let count = |(at, count): (usize, &u64)| count + if at == index { more } else { 0 };
    counts.iter().enumerate().map(count).collect()
}

/// Looks until it sees `expected`, and returns what it sees, also when that took too long.
pub(super) fn becoming<T: PartialEq>(expected: T, look: impl Fn() -> Result<T>) -> Result<T> {
    until(|seen| *seen == expected, look)
}

/// Looks until what it sees is `enough`, and returns that, also when that took too long.
pub(super) fn until<T>(enough: impl Fn(&T) -> bool, look: impl Fn() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        let seen = look()?;
        if enough(&seen) || start.elapsed() > SOON {
            return Ok(seen);
        }
    }
}

/// Raises each of the first `count` vectors: its handler has to run once, and no other.
pub(super) fn raise_each(
    vectors: &Vectors<'_>,
    count: usize,
    raise: impl Fn(usize) -> Result<()>,
) -> Result<(), Unmet> {
    for vector in 0..count {
        let before = vectors.counts()?;
        let expected = added(&before, vector, 1);
        raise(vector)?;
        let after = vectors.counts_becoming(&expected)?;
        if after != expected {
            let seen =
                format!("vector {vector} raised: handlers ran {before:?} times before, {after:?} after");
            return Err(Unmet::Seen(seen));
        }
    }
    Ok(())
}

/// Messages as text: the first two and the last of many.
pub(super) fn listed(pairs: &[Pair]) -> String {
    match pairs {
        [first, second, .., last] if pairs.len() > 3 => {
            format!("{first} {second} … {last} ({} messages)", pairs.len())
        }
        few => few.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
    }
}

/// The names, beginning with `kind`, of interrupts that vfio-pci requested.
pub(super) fn names(requested: &[Requested], kind: &str) -> Vec<String> {
    requested.iter().map(|it| it.name.clone()).filter(|name| name.starts_with(kind)).collect()
}

/// `native msix 3 45 fee00418/0003 7 12 on`, or with a negative errno and `-` instead of message and generation.
fn parse(line: &str) -> Result<Vector> {
    let vector = || {
        let words: Vec<_> = line.split(' ').collect();
        let [how, _irq_type, number, _irq, told, _generation, count, state] = words[..] else { return None };
        Some(Vector {
            how: how.to_owned(),
            number: number.parse().ok()?,
            told: match told.strip_prefix('-') {
                Some(errno) => Err(errno.parse().ok()?),
                None => Ok(told.parse().ok()?),
            },
            count: count.parse().ok()?,
            state: state.to_owned(),
        })
    };
    vector().ok_or_else(|| Error::Unexpected(format!("a vector reads {line:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_is_read_with_its_message_or_the_refusal() {
        let vector = parse("native msix 3 45 fee00418/0003 7 12 on").unwrap();
        assert_eq!((vector.number, vector.count, vector.state.as_str()), (3, 12, "on"));
        assert_eq!(vector.told.unwrap().to_string(), "fee00418/0003");
        assert_eq!(parse("event msi 15 60 -11 - 0 masked").unwrap().told, Err(11));
        assert!(parse("native msix 3").is_err());
    }

    #[test]
    fn more_is_added_at_its_place() {
        assert_eq!(added(&[5, 6, 7], 1, 2), [5, 8, 7]);
    }
}
