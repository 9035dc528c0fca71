//! Lists as plain tables: headings in capitals, no borders, columns two spaces apart.

use super::printable;
use comfy_table::{CellAlignment, Table, presets};

/// A table in the making.
pub(crate) struct Rows {
    table: Table,
    right: Vec<usize>,
}

impl Rows {
    /// An empty table with these columns; a heading that begins with `>` is right aligned.
    pub(crate) fn new(columns: &[&str]) -> Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(columns.iter().map(|column| column.trim_start_matches('>')));
        let right = (0..columns.len()).filter(|&n| columns[n].starts_with('>')).collect();
        Self { table, right }
    }

    /// Adds a row.
    pub(crate) fn push<const N: usize>(&mut self, cells: [String; N]) {
        self.table.add_row(cells.map(|cell| printable(&cell)));
    }

    /// The text, each line ended.
    pub(crate) fn render(mut self) -> String {
        for column in self.table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        for index in self.right {
            if let Some(column) = self.table.column_mut(index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        self.table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_with_their_text() {
        let mut rows = Rows::new(&["NAME", ">SIZE", "STATE"]);
        rows.push(["web01".to_owned(), "8.0 KiB".to_owned(), "ok".to_owned()]);
        rows.push(["a longer\nname".to_owned(), "1023.9 MiB".to_owned(), String::new()]);
        assert_eq!(
            rows.render(),
            "NAME                 SIZE  STATE\n\
             web01             8.0 KiB  ok\n\
             a longer\u{fffd}name  1023.9 MiB\n"
        );
        assert_eq!(Rows::new(&["A", "B"]).render(), "A  B\n");
    }
}
