//! The shared-memory table: one operation on a row that is there, on few rows, all of which are in the cache.

use std::hint::black_box;

use swoole_table::{Bytes, Options, Row, Table};

use crate::Benchmark;

pub(crate) const BENCHMARKS: &[Benchmark] = &[
    ("table/get", |times| {
        each(times, |table, key| {
            black_box(table.get(key).expect("an honest table"));
        });
    }),
    ("table/incr", |times| {
        each(times, |table, key| {
            black_box(table.incr(key, Online::UID, 1).expect("an honest table"));
        });
    }),
    ("table/set", |times| {
        let name = [Bytes::new([b'a'; 24]), Bytes::new([b'b'; 24])].map(|name| name.expect("it fits"));
        let mut uid = 0;
        each(times, |table, key| {
            uid += 1;
            table.set(key, &Online { uid, name: name[(uid / ROWS) as usize % 2] }).expect("there is room");
        });
    }),
];

/// As many as one operation after the other meets all of.
const ROWS: u64 = 64;

#[derive(Row)]
struct Online {
    uid: u64,
    name: Bytes<32>,
}

fn each(times: usize, mut operation: impl FnMut(&Table<Online>, &[u8; 16])) {
    // Each table has a seed of its own, so its rows lie otherwise each time: many tables are the same on average.
    const TABLES: usize = 16;
    let keys: Vec<[u8; 16]> = (0..ROWS).map(|row| (u128::from(row) << 64 | 1).to_le_bytes()).collect();
    for _ in 0..TABLES {
        let table = Table::with(&Options::new(2 * ROWS as usize).key_max(16)).expect("memory for a table");
        for key in &keys {
            table.set(key, &Online { uid: 0, name: Bytes::default() }).expect("there is room");
        }
        for index in 0..times / TABLES {
            operation(&table, black_box(&keys[index % keys.len()]));
        }
    }
}
