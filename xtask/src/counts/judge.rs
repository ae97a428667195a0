//! Holding counts against those that are checked in.

use super::book::{Counted, Entry, Operations};
use std::fmt::Write as _;

/// What became of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    AsExpected,
    /// It takes less, by more than the tolerance.
    Better,
    /// It takes more, by more than the tolerance.
    Worse,
    /// The file does not have it.
    New,
    /// Only the file has it.
    Gone,
}

impl Judgement {
    pub(super) fn fails(self) -> bool {
        !matches!(self, Judgement::AsExpected | Judgement::Better)
    }

    fn word(self) -> &'static str {
        match self {
            Judgement::AsExpected => "",
            Judgement::Better => "better",
            Judgement::Worse => "WORSE",
            Judgement::New => "NEW",
            Judgement::Gone => "GONE",
        }
    }
}

/// One operation.
#[derive(Debug, PartialEq)]
pub(super) struct Row {
    pub(super) name: String,
    /// Instructions per operation, if it still exists.
    pub(super) counted: Option<f64>,
    /// What the file has about it.
    pub(super) expected: Option<Entry>,
    pub(super) judgement: Judgement,
}

/// The smallest difference that counts, in instructions: in an operation of ten, one is more than any tolerance.
const NOISE: f64 = 1.0;

fn judge(counted: f64, expected: Entry) -> Judgement {
    let change = counted - expected.instructions;
    let tolerated = (expected.instructions * expected.tolerance / 100.0).max(NOISE);
    if change > tolerated {
        Judgement::Worse
    } else if change < -tolerated {
        Judgement::Better
    } else {
        Judgement::AsExpected
    }
}

/// `all`: there are no operations but those that were counted.
pub(super) fn rows(counted: &Counted, book: &Operations, all: bool) -> Vec<Row> {
    let row = |(name, instructions): &(String, f64)| {
        let expected = book.get(name).copied();
        let judgement = expected.map_or(Judgement::New, |expected| judge(*instructions, expected));
        Row { name: name.clone(), counted: Some(*instructions), expected, judgement }
    };
    let mut rows: Vec<Row> = counted.iter().map(row).collect();
    let gone = book.iter().filter(|(name, _)| all && counted.iter().all(|(known, _)| known != *name));
    rows.extend(gone.map(|(name, entry)| Row {
        name: name.clone(),
        counted: None,
        expected: Some(*entry),
        judgement: Judgement::Gone,
    }));
    rows
}

/// The rows for people, with a closing line.
pub(super) fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<28} {:>12} {:>9} {:>8} {:>9}\n",
        "instructions per operation", "counted", "expected", "change", "tolerated"
    );
    for Row { name, counted, expected, judgement } in rows {
        let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.1}"));
        let instructions = expected.map(|entry| entry.instructions);
        let change = counted.zip(instructions).map_or("-".to_owned(), |(counted, expected)| {
            let tenths = ((counted - expected) * 1000.0 / expected).round();
            // A sum, because zero may be negative and should not look so.
            format!("{:+.1} %", tenths / 10.0 + 0.0)
        });
        let tolerance = expected.map_or("-".to_owned(), |entry| format!("{} %", entry.tolerance));
        let line = format!(
            "{name:<28} {:>12} {:>9} {change:>8} {tolerance:>9}  {}",
            number(*counted),
            number(instructions),
            judgement.word()
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }
    let failed = rows.iter().filter(|row| row.judgement.fails()).count();
    let _ = writeln!(text, "counts: {} as they should be, {failed} not", rows.len() - failed);
    if rows.iter().any(|row| row.judgement != Judgement::AsExpected) {
        text.push_str(
            "What is meant to be so, `cargo xtask counts --bless` writes into counts/counts.toml.\n",
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const HUNDREDS: Entry = Entry { instructions: 200.0, tolerance: 3.0 };
    const FEW: Entry = Entry { instructions: 5.0, tolerance: 3.0 };

    #[test]
    fn the_tolerance_goes_both_ways() {
        let judged = [193.9, 194.0, 200.0, 206.0, 206.1].map(|counted| judge(counted, HUNDREDS));
        let as_expected = Judgement::AsExpected;
        assert_eq!(judged, [Judgement::Better, as_expected, as_expected, as_expected, Judgement::Worse]);
    }

    #[test]
    fn one_instruction_is_always_tolerated() {
        let judged = [3.9, 4.0, 6.0, 6.1].map(|counted| judge(counted, FEW));
        let as_expected = Judgement::AsExpected;
        assert_eq!(judged, [Judgement::Better, as_expected, as_expected, Judgement::Worse]);
    }

    #[test]
    fn what_only_one_side_has_fails() {
        let book = Operations::from([("a".to_owned(), HUNDREDS), ("old".to_owned(), FEW)]);
        let counted = [("a".to_owned(), 150.0), ("new".to_owned(), 1.0)];
        let judged = |all| rows(&counted, &book, all).iter().map(|row| row.judgement).collect::<Vec<_>>();
        assert_eq!(judged(true), [Judgement::Better, Judgement::New, Judgement::Gone]);
        assert_eq!(judged(false), [Judgement::Better, Judgement::New], "nobody asked for the other");
        assert_eq!(
            [Judgement::Better, Judgement::New, Judgement::Gone].map(Judgement::fails),
            [false, true, true]
        );
    }

    #[test]
    fn the_table_says_what_is_worse() {
        let book = Operations::from([("a".to_owned(), HUNDREDS), ("b".to_owned(), FEW)]);
        let text = table(&rows(&[("a".to_owned(), 250.0), ("b".to_owned(), 5.0)], &book, true));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[1].split_whitespace().collect::<Vec<_>>().join(" "),
            "a 250.0 200.0 +25.0 % 3 % WORSE"
        );
        assert!(lines[2].ends_with("+0.0 %       3 %"), "{text}");
        assert_eq!(lines[3], "counts: 1 as they should be, 1 not");
        assert!(lines[4].contains("--bless"), "{text}");
    }
}
