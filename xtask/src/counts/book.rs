//! The file of counts that are checked in.

use super::conditions::Conditions;
use crate::shell;
use anyhow::{Context, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Where it lies, from the workspace's root.
const PATH: &str = "counts/counts.toml";

const HEAD: &str = "\
# Instructions per operation, and how many percent more are tolerated. `cargo xtask counts` compares with them;
# `cargo xtask counts --bless` writes this file, and keeps the tolerances that it finds.
";

/// What a new operation may take more, in percent.
const TOLERANCE: f64 = 3.0;

/// What the file says.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Book {
    pub(super) conditions: Conditions,
    pub(super) operations: Operations,
}

/// By name.
pub(super) type Operations = BTreeMap<String, Entry>;

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub(super) instructions: f64,
    /// Percent.
    pub(super) tolerance: f64,
}

/// What was counted: names, and instructions per operation.
pub(super) type Counted = [(String, f64)];

impl Book {
    pub(super) fn read() -> Result<Self> {
        let text =
            std::fs::read_to_string(shell::root().join(PATH)).with_context(|| format!("read {PATH}"))?;
        toml::from_str(&text).with_context(|| format!("understand {PATH}"))
    }

    pub(super) fn write(&self) -> Result<()> {
        std::fs::write(shell::root().join(PATH), self.text()).with_context(|| format!("write {PATH}"))
    }

    /// Takes over what was counted. `all`: there are no operations but those.
    pub(super) fn bless(&mut self, counted: &Counted, all: bool) {
        let old = self.operations.clone();
        if all {
            self.operations.clear();
        }
        for (name, instructions) in counted {
            let tolerance = old.get(name).map_or(TOLERANCE, |entry| entry.tolerance);
            self.operations.insert(name.clone(), Entry { instructions: *instructions, tolerance });
        }
    }

    fn text(&self) -> String {
        let mut text = format!("{HEAD}\n[conditions]\n");
        for (what, value) in self.conditions.named() {
            let _ = writeln!(text, "{what} = {value:?}");
        }
        text.push_str("\n[operations]\n");
        for (name, Entry { instructions, tolerance }) in &self.operations {
            let _ =
                writeln!(text, "{name:?} = {{ instructions = {instructions:.1}, tolerance = {tolerance} }}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book(operations: &[(&str, f64, f64)]) -> Book {
        let conditions = Conditions {
            rustc: "1.95.0 (abc 2026-01-01)".to_owned(),
            cpu: "x86_64".to_owned(),
            libc: String::new(),
            valgrind: "3.19.0".to_owned(),
        };
        let entry = |&(name, instructions, tolerance): &(&str, f64, f64)| {
            (name.to_owned(), Entry { instructions, tolerance })
        };
        Book { conditions, operations: operations.iter().map(entry).collect() }
    }

    #[test]
    fn what_is_written_is_read() {
        let book = book(&[("a/b-1", 12.5, 3.0), ("c", 1000.0, 0.5)]);
        assert!(book.text().contains("\"a/b-1\" = { instructions = 12.5, tolerance = 3 }\n"));
        assert_eq!(toml::from_str::<Book>(&book.text()).unwrap(), book);
    }

    #[test]
    fn blessing_keeps_tolerances() {
        let counted = [("a".to_owned(), 11.0), ("new".to_owned(), 5.0)];
        let mut some = book(&[("a", 10.0, 7.0), ("other", 1.0, 3.0)]);
        some.bless(&counted, false);
        assert_eq!(some, book(&[("a", 11.0, 7.0), ("new", 5.0, TOLERANCE), ("other", 1.0, 3.0)]));
        let mut all = book(&[("a", 10.0, 7.0), ("gone", 1.0, 3.0)]);
        all.bless(&counted, true);
        assert_eq!(all, book(&[("a", 11.0, 7.0), ("new", 5.0, TOLERANCE)]));
    }
}
