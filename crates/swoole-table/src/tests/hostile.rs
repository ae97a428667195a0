//! Memory that holds anything at all: wrong answers, but no panic, no endless loop, nothing beyond the table.

use swoole_ipc::Memory;
use swoole_ipc::words::Words;

use super::*;
use crate::sync::Ordering;
use crate::{Error, Value as _};

fn use_all(table: &Table<Online>) {
    for key in ["a", "b", "key 3", "new"] {
        let _ = table.get(key);
        let _ = table.incr(key, Online::UID, 1);
        let _ = table.set(key, &online(2));
        let _ = table.update(key, |row| row.seen = 1);
        let _ = table.del(key);
    }
    let _ = table.iter().count();
    let _ = table.len();
    table.recover();
}

#[test]
fn anything_may_stand_anywhere() {
    let mut random = fastrand::Rng::with_seed(7);
    let options = options(14);
    for _ in 0..400 {
        let memory = Memory::create("hostile", options.memory_size::<Online>()).unwrap();
        let table: Table<Online> = Table::open(&options, &memory, 0).unwrap();
        for index in 0..12 {
            table.set(format!("key {index}"), &online(index)).unwrap();
        }
        let words = Words::open(&memory, 0, 1, options.memory_size::<Online>() / 8).unwrap();
        for _ in 0..random.usize(1..40) {
            // Not the locks: to hold them for ever is what a hostile process may do.
            let at = random.usize(9..words[0].len());
            let is_lock = table.is_lock(at);
            let word = match random.u8(0..4) {
                0 => random.u64(..),
                1 => random.u64(0..40),
                2 => words[0][random.usize(9..words[0].len())].load(Ordering::Relaxed),
                _ => random.u64(..) & 0xFFFF_FFFF_0000_000F,
            };
            words[0][at].store(if is_lock { u64::from(i32::MAX as u32) } else { word }, Ordering::Relaxed);
        }
        use_all(&table);
    }
}

#[test]
fn rows_that_are_none_are_named() {
    let options = options(14);
    let memory = Memory::create("hostile", options.memory_size::<Online>()).unwrap();
    let table: Table<Online> = Table::open(&options, &memory, 0).unwrap();
    table.set("a", &online(1)).unwrap();
    table.break_entries();
    let errors = [
        table.get("a").map(drop),
        table.set("a", &online(1)),
        table.del("a").map(drop),
        table.iter().find_map(Result::err).map_or(Ok(()), Err),
    ];
    for error in errors {
        let error = error.unwrap_err();
        assert!(matches!(error, Error::Corrupt { row: 14, rows: 14, .. }), "{error}");
    }
}

#[test]
fn another_table_is_refused() {
    #[derive(Row)]
    #[allow(dead_code, reason = "only its layout is of interest")]
    struct Other {
        uid: u64,
        name: Bytes<20>,
        load: f64,
        gone: i32,
    }
    assert_eq!(Other::WORDS, Online::WORDS);
    let memory = Memory::create("other", 1 << 20).unwrap();
    let table: Table<Online> = Table::open(&options(14), &memory, 0).unwrap();
    table.set("a", &online(1)).unwrap();
    let same: Table<Online> = Table::open(&options(14), &memory, 0).unwrap();
    assert_eq!(same.get("a").unwrap(), Some(online(1)), "whoever opens it finds the same");
    for (options, differ) in [(options(15), "rows"), (options(14).key_max(20), "key_max")] {
        let error = Table::<Online>::open(&options, &memory, 0).unwrap_err();
        assert!(matches!(error, Error::Other { what, .. } if what == differ), "{error}");
    }
    let error = Table::<Other>::open(&options(14), &memory, 0).unwrap_err();
    assert!(matches!(error, Error::Other { what: "columns", .. }), "{error}");
    assert!(Table::<Online>::open(&options(1 << 20), &memory, 0).is_err(), "there are not so many bytes");
    assert_eq!(u64::WORDS, 1);
}
