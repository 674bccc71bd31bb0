// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A text that is shown on a terminal again and again.

use terminal_size::{Height, Width, terminal_size};

/// Used where the terminal does not say how large it is.
const USUAL: (usize, usize) = (80, 24);

/// What puts `text` in the place of what the terminal shows. Every line that stays takes the place of the one before, so
/// nothing flickers.
pub(super) fn redraw(text: &str, first: bool) -> String {
    let size = terminal_size().map(|(Width(columns), Height(rows))| (columns.into(), rows.into()));
    draw(text, size.unwrap_or(USUAL), first)
}

fn draw(text: &str, (columns, rows): (usize, usize), first: bool) -> String {
    let lines: Vec<_> = text.lines().collect();
    // The cursor has the last row, so that it does not scroll.
    let room = rows.saturating_sub(1);
    let mut screen = if first { "\x1b[H\x1b[2J" } else { "\x1b[H" }.to_owned();
    let mut put = |line: &str| {
        screen.extend(line.chars().take(columns));
        screen.push_str("\x1b[K\n");
    };
    if lines.len() <= room {
        lines.into_iter().for_each(put);
    } else {
        let shown = room.saturating_sub(1);
        lines.iter().take(shown).for_each(|line| put(line));
        put(&format!("{} more lines: make the terminal higher", lines.len() - shown));
    }
    screen.push_str("\x1b[J");
    screen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_shown_and_what_was_below_is_gone() {
        assert_eq!(draw("one\ntwo\n", (80, 3), true), "\x1b[H\x1b[2Jone\x1b[K\ntwo\x1b[K\n\x1b[J");
    }

    #[test]
    fn what_does_not_fit_neither_wraps_nor_scrolls() {
        assert_eq!(
            draw("eins\nzwei\ndrei\nvier\n", (3, 4), false),
            "\x1b[Hein\x1b[K\nzwe\x1b[K\n2 m\x1b[K\n\x1b[J"
        );
        assert_eq!(draw("a\n", (0, 0), false), "\x1b[H\x1b[K\n\x1b[J");
    }
}
