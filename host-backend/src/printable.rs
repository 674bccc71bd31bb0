// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Text from outside on its way to a terminal or a log.

use std::fmt::{self, Write};

/// The text with everything escaped that could act on a terminal: control characters, and those beyond ASCII that are
/// not letters or digits, among them the ones that turn the direction of writing.
pub(crate) fn printable(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    // A string takes all that is written to it.
    let _ = Printable(&mut result).write_str(text);
    result
}

/// Writes as [`printable`] returns.
pub(crate) struct Printable<W>(pub(crate) W);

impl<W: Write> Write for Printable<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|character| {
            if character.is_control() || !(character.is_ascii() || character.is_alphanumeric()) {
                write!(self.0, "{}", character.escape_unicode())
            } else {
                self.0.write_char(character)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_acts_on_a_terminal_gets_through() {
        assert_eq!(printable("a\x1b[31mred\x07\r\nb"), r"a\u{1b}[31mred\u{7}\u{d}\u{a}b");
        assert_eq!(printable("\u{9b}2J \u{202e}evil \u{200b}"), r"\u{9b}2J \u{202e}evil \u{200b}");
        assert_eq!(printable("Gerät ½ B{x}\\"), "Gerät ½ B{x}\\");
    }
}
