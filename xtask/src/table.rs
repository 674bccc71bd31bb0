// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tables, for a terminal or for a file.

use comfy_table::{ContentArrangement, Table, presets};
use std::io::IsTerminal;

/// A table for standard output: with lines on a terminal, Markdown elsewhere.
pub(crate) fn new(header: &[&str]) -> Table {
    if !std::io::stdout().is_terminal() {
        return markdown(header);
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header);
    table
}

/// A table for a Markdown file.
pub(crate) fn markdown(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(header);
    table
}
