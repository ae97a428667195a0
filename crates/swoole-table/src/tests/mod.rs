//! What a table promises, in one process and in several that die.

#![allow(clippy::unwrap_used, reason = "tests say what must hold by unwrapping it")]

mod basic;
mod deaths;
mod hostile;
mod model;

use crate::{Bytes, Options, Row, Table};

/// A row of several words, so that it could be seen half written.
#[derive(Row, Clone, Debug, Default, PartialEq)]
struct Online {
    uid: u64,
    name: Bytes<20>,
    load: f64,
    seen: i32,
}

fn online(uid: u64) -> Online {
    let name = "x".repeat((uid % 21) as usize);
    Online { uid, name: Bytes::new(name).unwrap(), load: uid as f64 / 2.0, seen: -(uid as i32) }
}

/// All that is in it, by key.
fn content(table: &Table<Online>) -> Vec<(Vec<u8>, Online)> {
    let mut rows: Vec<_> = table.iter().map(Result::unwrap).collect();
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    rows
}

/// That counts, bits and rows agree: the table takes as many rows more as it says, and no other.
fn check_capacity(table: &Table<Online>) {
    let len = table.len();
    assert_eq!(content(table).len(), len);
    for filler in len..table.capacity() {
        assert!(table.insert(format!("filler {filler}"), &online(1)).unwrap(), "row {filler} is missing");
    }
    let full = table.insert("one too many", &online(1)).unwrap_err();
    assert!(matches!(full, crate::Error::Full { .. }), "{full}");
    for filler in len..table.capacity() {
        assert!(table.del(format!("filler {filler}")).unwrap());
    }
    assert_eq!(table.len(), len);
}

fn options(rows: usize) -> Options {
    Options::new(rows).key_max(24).name("test")
}
