//! A cell as a table: medians, their spread, ratios to the first row and to tokio.

use crate::report::{Cell, Row};
use crate::sample::Metric;
use crate::stats::Median;
use crate::subject::RIVAL;

/// Text in rows and columns.
#[derive(Debug, Default, PartialEq)]
pub struct Table {
    /// The first row: what the columns are.
    pub head: Vec<String>,
    /// The others, as long as the first; the first column is text, the others are numbers.
    pub rows: Vec<Vec<String>>,
    /// What does not fit into columns: failures, system calls by name.
    pub notes: Vec<String>,
}

/// What stands where nothing was measured.
const NOTHING: &str = "-";

impl Table {
    /// The table of a cell.
    pub fn of(cell: &Cell) -> Table {
        let metrics = cell.metrics();
        let measured = |row: &&Row| !row.runs.is_empty();
        let first = cell.rows.iter().find(measured);
        let rival = cell.rows.iter().filter(measured).find(|row| row.name == RIVAL);
        // Compared with itself, or with nobody, a row says nothing.
        let several = cell.rows.iter().filter(measured).count() > 1;
        let mut bases: Vec<&Row> = first.into_iter().filter(|_| several).collect();
        bases.extend(rival.filter(|rival| several && first.is_some_and(|first| first.name != rival.name)));

        let mut table = Table { head: vec!["subject".into()], ..Table::default() };
        for metric in &metrics {
            table.head.push(metric.title.into());
            if metric.compared {
                table.head.extend(bases.iter().map(|base| format!("to {}", base.name)));
            }
        }
        for row in &cell.rows {
            let mut cells = vec![row.name.clone()];
            for metric in &metrics {
                let median = row.median(metric);
                cells.push(median.map_or(NOTHING.into(), |median| show(median, metric)));
                if metric.compared {
                    cells.extend(bases.iter().map(|base| ratio(median, base.median(metric))));
                }
            }
            table.rows.push(cells);
        }
        table.notes = notes(cell);
        table
    }

    /// Aligned, for a terminal.
    pub fn to_text(&self) -> String {
        let lines = || std::iter::once(&self.head).chain(&self.rows);
        let width = |column: usize| lines().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let mut text = String::new();
        for line in lines() {
            let mut cells = line.iter().zip(&widths);
            if let Some((name, width)) = cells.next() {
                text += &format!("  {name:<width$}");
            }
            for (cell, width) in cells {
                text += &format!("  {cell:>width$}");
            }
            text.push('\n');
        }
        for note in &self.notes {
            text += &format!("  {note}\n");
        }
        text
    }

    /// As Markdown has it.
    pub fn to_markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let rule: Vec<String> = (0..self.head.len())
            .map(|column| if column == 0 { "---".into() } else { "---:".into() })
            .collect();
        let mut text = line(&self.head) + &line(&rule);
        text.extend(self.rows.iter().map(|row| line(row)));
        for note in &self.notes {
            text += &format!("\n{note}\n");
        }
        text
    }
}

fn notes(cell: &Cell) -> Vec<String> {
    let mut notes = Vec::new();
    for row in &cell.rows {
        if let Some(failure) = &row.failure {
            notes.push(format!("{} failed: {}", row.name, failure.replace('\n', " ")));
        }
    }
    for row in cell.rows.iter().filter(|row| !row.calls.is_empty()) {
        let calls: Vec<_> = row.calls.iter().map(|(name, count)| format!("{name} {count:.3}")).collect();
        notes.push(format!("calls/req of {}: {}", row.name, calls.join(", ")));
    }
    notes
}

/// A median as people read it; with its spread, if it is one to compare.
fn show(median: Median, metric: &Metric) -> String {
    let value = number(median.value, metric.digits);
    match median.spread {
        Some(spread) if metric.compared => format!("{value} ±{:.0}%", spread * 100.0),
        _ => value,
    }
}

fn ratio(median: Option<Median>, base: Option<Median>) -> String {
    let ratio = median.zip(base).and_then(|(median, base)| median.ratio(base));
    ratio.map_or(NOTHING.into(), |ratio| format!("{ratio:.2}"))
}

/// A number with so many digits behind the point, and commas between thousands.
pub fn number(value: f64, digits: usize) -> String {
    let plain = format!("{:.digits$}", value.abs());
    let (whole, fraction) = plain.split_at(plain.find('.').unwrap_or(plain.len()));
    let mut text = String::from(if value < 0.0 { "-" } else { "" });
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text + fraction
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{CPU, P50, REQUESTS};

    fn row(name: &str, rates: &[f64]) -> Row {
        let runs = rates.iter().map(|rate| vec![(&REQUESTS, *rate), (&P50, 1e6 / rate)]).collect();
        Row { name: name.into(), runs, ..Row::default() }
    }

    fn cell(rows: Vec<Row>) -> Cell {
        Cell { title: "t".into(), point: None, rows }
    }

    #[test]
    fn ratios_are_to_the_first_that_was_measured_and_to_the_rival() {
        let mut failed = row("base", &[]);
        failed.failure = Some("refused:\nno".into());
        let table = Table::of(&cell(vec![failed, row("ring", &[900.0, 1100.0]), row("tokio", &[2000.0])]));
        assert_eq!(table.head, ["subject", "requests/s", "to ring", "to tokio", "p50 us"]);
        assert_eq!(table.rows[0], ["base", "-", "-", "-", "-"]);
        assert_eq!(table.rows[1], ["ring", "1,000 ±10%", "1.00", "0.50", "1,010"]);
        assert_eq!(table.rows[2][1..4], ["2,000", "2.00", "1.00"]);
        assert_eq!(table.notes, ["base failed: refused: no"]);
    }

    #[test]
    fn one_alone_is_compared_with_nobody() {
        assert_eq!(Table::of(&cell(vec![row("ring", &[10.0])])).head, ["subject", "requests/s", "p50 us"]);
        let table = Table::of(&cell(vec![row("tokio", &[10.0]), row("ring", &[20.0])]));
        assert_eq!(table.head, ["subject", "requests/s", "to tokio", "p50 us"]);
    }

    #[test]
    fn text_is_aligned_and_markdown_is_markdown() {
        let mut ring = row("ring", &[10.0]);
        ring.calls = vec![("recvfrom".into(), 1.0)];
        let table = Table::of(&cell(vec![ring]));
        let text = table.to_text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0].chars().count(), lines[1].chars().count());
        assert_eq!(lines[2], "  calls/req of ring: recvfrom 1.000");
        assert!(
            table.to_markdown().starts_with("| subject | requests/s | p50 us |\n| --- | ---: | ---: |\n")
        );
    }

    #[test]
    fn numbers_have_commas() {
        for (value, digits, shown) in [
            (1234567.4, 0, "1,234,567"),
            (999.0, 0, "999"),
            (-1234.5, 1, "-1,234.5"),
            (0.126, CPU.digits, "0.13"),
        ] {
            assert_eq!(number(value, digits), shown);
        }
    }
}
