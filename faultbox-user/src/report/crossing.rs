//! A matrix laid out for the width there is.

use super::matrix::{Cell, Grid};
use super::text;
use crate::plan::Outcome;

/// A border and a space on either side of what stands in a column.
const FRAME: usize = 3;

/// A table with the words of its cells.
pub struct Crossing {
    corner: &'static str,
    rows: Vec<String>,
    columns: Vec<String>,
    /// By row, then by column.
    cells: Vec<Vec<String>>,
}

/// As much of a [`Crossing`] as fits beside each other.
pub struct Piece {
    /// The corner, and the heads of the columns.
    pub header: Vec<String>,
    /// The head of the row, and its cells.
    pub rows: Vec<Vec<String>>,
}

impl Crossing {
    /// Scenarios by faults, the baseline first, with how long each took.
    pub fn of(grid: &Grid) -> Crossing {
        let baseline = grid.baseline.then(|| "baseline".to_owned());
        let faults = grid.faults.iter().map(|f| text::clean(f));
        Crossing {
            corner: "scenario",
            rows: grid.rows.iter().map(|r| text::clean(&r.scenario)).collect(),
            columns: baseline.into_iter().chain(faults).collect(),
            cells: grid
                .rows
                .iter()
                .map(|row| {
                    let baseline = grid.baseline.then_some(&row.baseline);
                    baseline.into_iter().chain(&row.cells).map(word).collect()
                })
                .collect(),
        }
    }

    /// One table if there is a way: upright, or lying, when there are many faults and few scenarios. Otherwise as few as possible, each
    /// with the heads of the rows: wrapped cells could not be read.
    pub fn fit(self, width: usize) -> Vec<Piece> {
        let upright = self.cut(width);
        if upright.len() == 1 {
            return upright;
        }
        let lying = self.turned().cut(width);
        if lying.len() < upright.len() {
            lying
        } else {
            upright
        }
    }

    fn turned(&self) -> Crossing {
        let column = |c: usize| self.cells.iter().map(|row| row[c].clone()).collect();
        Crossing {
            corner: "fault",
            rows: self.columns.clone(),
            columns: self.rows.clone(),
            cells: (0..self.columns.len()).map(column).collect(),
        }
    }

    fn cut(&self, width: usize) -> Vec<Piece> {
        let heads = self.rows.iter().map(|r| text::columns(r));
        let first = heads.chain([text::columns(self.corner)]).max();
        let first = (first.unwrap_or(0) + FRAME).min(width / 2) + 1;
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|c| {
                let cells = self.cells.iter().map(|row| text::columns(&row[c]));
                let widest = cells.chain([text::columns(&self.columns[c])]).max();
                widest.unwrap_or(0) + FRAME
            })
            .collect();
        let mut pieces = vec![];
        let mut start = 0;
        while start < widths.len() {
            let mut used = first;
            let fitting = widths[start..].iter().take_while(|w| {
                used += **w;
                used <= width
            });
            let end = start + fitting.count().max(1);
            pieces.push(self.piece(start, end));
            start = end;
        }
        pieces
    }

    fn piece(&self, start: usize, end: usize) -> Piece {
        let line = |head: &str, cells: &[String]| {
            let cells = cells[start..end].iter().cloned();
            std::iter::once(head.to_owned()).chain(cells).collect()
        };
        Piece {
            header: line(self.corner, &self.columns),
            rows: self
                .rows
                .iter()
                .zip(&self.cells)
                .map(|(head, cells)| line(head, cells))
                .collect(),
        }
    }
}

fn word(cell: &Option<Cell>) -> String {
    let Some(cell) = cell else {
        return "-".to_owned();
    };
    // Capitals, because colour is not always there: what did not pass must stand out of the table.
    let word = match cell.outcome {
        Outcome::Passed => "ok".to_owned(),
        other => other.name().to_uppercase(),
    };
    let runs = match cell.runs {
        0 | 1 => String::new(),
        runs => format!(" {} of {runs}", cell.count),
    };
    format!("{word}{runs} {}", text::millis(cell.duration_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crossing(rows: usize, columns: usize) -> Crossing {
        Crossing {
            corner: "scenario",
            rows: (0..rows).map(|i| format!("scenario_{i}")).collect(),
            columns: (0..columns).map(|i| format!("a_fault_{i}")).collect(),
            cells: vec![vec!["ok 12 ms".to_owned(); columns]; rows],
        }
    }

    /// How many columns of cells each piece has, and how many rows.
    fn shape(pieces: &[Piece]) -> Vec<(usize, usize)> {
        let shape = |p: &Piece| (p.header.len() - 1, p.rows.len());
        pieces.iter().map(shape).collect()
    }

    #[test]
    fn what_fits_stands_upright() {
        let pieces = crossing(3, 5).fit(80);
        assert_eq!(shape(&pieces), [(5, 3)]);
        assert_eq!(pieces[0].header[0], "scenario");
    }

    #[test]
    fn many_faults_and_few_scenarios_lie() {
        let pieces = crossing(3, 30).fit(80);
        assert_eq!(shape(&pieces), [(3, 30)]);
        assert_eq!(pieces[0].header[..2], ["fault", "scenario_0"]);
        assert_eq!(pieces[0].rows[29][..2], ["a_fault_29", "ok 12 ms"]);
    }

    #[test]
    fn what_fits_neither_way_is_cut_and_loses_nothing() {
        let pieces = crossing(20, 20).fit(80);
        assert_eq!(shape(&pieces), [(5, 20), (5, 20), (5, 20), (5, 20)]);
        assert_eq!(pieces[3].header[5], "a_fault_19");
    }

    #[test]
    fn a_column_wider_than_the_terminal_stands_alone() {
        let pieces = crossing(1, 1).fit(10);
        assert_eq!(shape(&pieces), [(1, 1)]);
    }
}
