//! One operation after the other.

use super::*;
use crate::{Error, KEY_MAX};

#[test]
fn rows_come_and_go() {
    let table: Table<Online> = Table::with(&options(100)).unwrap();
    assert!(table.is_empty() && table.get("amy").unwrap().is_none());
    table.set("amy", &online(1)).unwrap();
    assert!(!table.insert("amy", &online(2)).unwrap() && table.insert("bob", &online(2)).unwrap());
    assert_eq!(table.get("amy").unwrap(), Some(online(1)));
    table.set("amy", &online(3)).unwrap();
    assert_eq!(table.get("amy").unwrap(), Some(online(3)));
    assert_eq!(table.get_column("amy", Online::NAME).unwrap(), Some(online(3).name));
    assert!(table.set_column("amy", Online::SEEN, &7).unwrap());
    assert!(!table.set_column("nobody", Online::SEEN, &7).unwrap());
    assert_eq!(table.get("amy").unwrap(), Some(Online { seen: 7, ..online(3) }));
    assert!(table.exists("bob").unwrap() && table.len() == 2);
    assert_eq!(table.remove("bob").unwrap(), Some(online(2)));
    assert!(!table.exists("bob").unwrap() && !table.del("bob").unwrap() && table.len() == 1);
    assert!(!table.remove_if("amy", |row| row.seen != 7).unwrap() && table.exists("amy").unwrap());
    assert!(table.remove_if("amy", |row| row.seen == 7).unwrap() && table.is_empty());
    assert!(!table.remove_if("amy", |_| true).unwrap());
    check_capacity(&table);
}

#[test]
fn columns_count() {
    let table: Table<Online> = Table::with(&options(10)).unwrap();
    assert_eq!(table.incr("a", Online::UID, 5).unwrap(), 5);
    assert_eq!(table.get("a").unwrap(), Some(Online { uid: 5, ..Online::default() }));
    assert_eq!(table.incr("a", Online::UID, 5).unwrap(), 10);
    assert_eq!(table.decr("a", Online::UID, 1).unwrap(), 9);
    assert_eq!(table.decr("a", Online::SEEN, 1).unwrap(), -1);
    assert_eq!(table.incr("a", Online::LOAD, 0.5).unwrap(), 0.5);
    let below = table.decr("a", Online::UID, 10).unwrap_err();
    assert!(matches!(below, Error::Overflow { column: "uid", .. }), "{below}");
    assert!(table.incr("a", Online::UID, u64::MAX).is_err());
    assert!(table.decr("new", Online::UID, 1).is_err() && !table.exists("new").unwrap());
    assert_eq!(table.get("a").unwrap(), Some(Online { uid: 9, seen: -1, load: 0.5, ..Online::default() }));
}

#[test]
fn updates_are_by_a_function() {
    let table: Table<Online> = Table::with(&options(10)).unwrap();
    assert_eq!(table.update("a", |_| ()).unwrap(), None);
    let seen = table.upsert("a", online(1), |row| {
        row.uid += 1;
        row.uid
    });
    assert_eq!(seen.unwrap(), 2);
    let seen = table.update("a", |row| {
        assert_eq!(table.get("a").unwrap().unwrap().uid, 2, "readers do not wait");
        assert!(matches!(table.set("a", &online(9)), Err(Error::Nested { .. })));
        assert!(matches!(table.del("other"), Err(Error::Nested { .. })));
        std::mem::replace(row, online(4)).uid
    });
    assert_eq!((seen.unwrap(), table.get("a").unwrap()), (Some(2), Some(online(4))));
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        table.update("a", |row| {
            row.uid = 99;
            panic!("amid an update");
        })
    }));
    assert!(panic.is_err());
    assert_eq!(table.get("a").unwrap(), Some(online(4)), "nothing has changed");
    table.set("a", &online(5)).unwrap();
    check_capacity(&table);
}

#[test]
fn all_rows_can_be_used_whatever_their_keys() {
    for rows in [1, 2, 63, 64, 65, 1000] {
        let table: Table<Online> = Table::with(&options(rows)).unwrap();
        for key in 0..rows as u64 {
            table.set(key.to_le_bytes(), &online(key)).unwrap();
        }
        let full = table.incr("one too many", Online::UID, 1).unwrap_err();
        assert_eq!(
            full.to_string(),
            format!("table \"test\" is full: all {rows} rows are taken; create it with more `rows`")
        );
        assert!((0..rows as u64).all(|key| table.get(key.to_le_bytes()).unwrap() == Some(online(key))));
        table.set(0_u64.to_le_bytes(), &online(7)).unwrap();
        assert_eq!(table.len(), rows);
        let mut keys: Vec<_> = content(&table).into_iter().map(|(key, _)| key).collect();
        keys.dedup();
        assert_eq!(keys.len(), rows);
        for key in 0..rows as u64 {
            assert!(table.del(key.to_le_bytes()).unwrap());
        }
        check_capacity(&table);
    }
}

#[test]
fn keys_have_a_length() {
    let table: Table<Online> = Table::with(&options(10)).unwrap();
    table.set("", &online(1)).unwrap();
    table.set([0], &online(2)).unwrap();
    table.set([0; 24], &online(3)).unwrap();
    assert_eq!(content(&table).len(), 3, "zeros behind the end are no part of a key");
    let long = table.get([0; 25]).unwrap_err();
    assert_eq!(
        long.to_string(),
        "a key of 25 bytes is too long for table \"test\"; create it with a `key_max` above 24"
    );
    for options in [Options::new(0), Options::new(1).key_max(0), Options::new(1).key_max(KEY_MAX + 1)] {
        assert!(matches!(Table::<Online>::with(&options), Err(Error::Size { .. })));
        assert_eq!(options.memory_size::<Online>(), 0);
    }
}

#[test]
fn memory_is_known_in_advance() {
    let options = Options::new(1_000_000).key_max(16);
    let per_row = options.memory_size::<Online>() as f64 / 1e6;
    // State and next, key, columns; a quarter of the bucket's line, and what fills up the block's last; a bit; the stripes.
    let computed = (16 + 16 + 8 * Online::WORDS) as f64 + 16.0 + 0.125;
    assert!((computed..computed + 8.3).contains(&per_row), "{per_row} instead of {computed}");
    assert_eq!(Table::<Online>::memory_size(10), Options::new(10).memory_size::<Online>());
}

#[test]
fn strings_are_bounded() {
    let text: Bytes<5> = "ab\0de".parse().unwrap();
    assert!(&*text == b"ab\0de" && text == *"ab\0de" && text.to_str() == Ok("ab\0de"));
    assert_eq!(format!("{text:?}"), "b\"ab\\x00de\"");
    assert_eq!(
        Bytes::<5>::new("abcdef").unwrap_err().to_string(),
        "a string of 6 bytes does not fit into Bytes<5>"
    );
    assert_eq!(Bytes::<0>::default().len(), 0);
}

#[test]
fn threads_may_use_it_too() {
    let table: Table<Online> = Table::with(&options(64)).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let table = &table;
            scope.spawn(move || {
                for round in 0..2000_u64 {
                    table.incr("shared", Online::UID, 1).unwrap();
                    let key = (thread * 8 + round % 8).to_le_bytes();
                    table.set(key, &online(round)).unwrap();
                    assert_eq!(table.get(key).unwrap(), Some(online(round)));
                    if round % 3 == 0 {
                        assert_eq!(table.remove(key).unwrap(), Some(online(round)));
                    }
                }
            });
        }
    });
    assert_eq!(table.get("shared").unwrap().unwrap().uid, 8000);
    check_capacity(&table);
}

#[test]
fn huge_pages_are_asked_for() {
    let table: Table<Online> = Table::with(&Options::new(64).name("hugely").huge_pages(true)).unwrap();
    table.set("amy", &Online::default()).unwrap();
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let (_, mapping) = maps.split_once("/memfd:hugely").unwrap();
    let flags = mapping.lines().find_map(|line| line.strip_prefix("VmFlags:")).unwrap();
    // A kernel that has none refuses.
    let has_some = std::fs::exists("/sys/kernel/mm/transparent_hugepage").unwrap();
    assert_eq!(flags.split(' ').any(|flag| flag == "hg"), has_some, "{flags}");
}
