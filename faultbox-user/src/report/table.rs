//! Tables as every report draws them.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::Style;

/// An empty table in a style.
pub fn new(style: &Style) -> Table {
    let mut table = Table::new();
    table.load_preset(if style.unicode {
        presets::UTF8_FULL_CONDENSED
    } else {
        presets::ASCII_FULL_CONDENSED
    });
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(u16::try_from(style.width).unwrap_or(u16::MAX));
    table
}

/// Aligns the columns from `from` on to the right, as numbers are.
pub fn right(table: &mut Table, from: usize) {
    for column in table.column_iter_mut().skip(from) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}
