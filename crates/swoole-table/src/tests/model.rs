//! The table against a `HashMap`.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::Error;

#[derive(Clone, Debug)]
enum Op {
    Set(u8, u64),
    Insert(u8, u64),
    Incr(u8, u64),
    Decr(u8, u64),
    Update(u8, u64),
    Upsert(u8, u64),
    Column(u8, i32),
    Remove(u8),
    Get(u8),
}

fn op() -> impl Strategy<Value = Op> {
    // Few keys, so that they meet.
    let key = 0..12_u8;
    prop_oneof![
        (key.clone(), 0..50_u64).prop_map(|(key, value)| Op::Set(key, value)),
        (key.clone(), 0..50_u64).prop_map(|(key, value)| Op::Insert(key, value)),
        (key.clone(), 0..50_u64).prop_map(|(key, value)| Op::Incr(key, value)),
        (key.clone(), 0..50_u64).prop_map(|(key, value)| Op::Decr(key, value)),
        (key.clone(), 0..50_u64).prop_map(|(key, value)| Op::Update(key, value)),
        (key.clone(), 0..50_u64).prop_map(|(key, value)| Op::Upsert(key, value)),
        (key.clone(), any::<i32>()).prop_map(|(key, value)| Op::Column(key, value)),
        key.clone().prop_map(Op::Remove),
        key.prop_map(Op::Get),
    ]
}

struct Model {
    rows: HashMap<Vec<u8>, Online>,
    capacity: usize,
}

impl Model {
    /// Whether the key has a row, or there is room for one.
    fn fits(&self, key: &[u8]) -> bool {
        self.rows.contains_key(key) || self.rows.len() < self.capacity
    }

    /// Does the same to both, and compares what they say.
    fn step(&mut self, table: &Table<Online>, op: Op) {
        let name = |key: u8| vec![key; usize::from(key)];
        match op {
            Op::Set(key, value) => {
                let (key, fits) = (name(key), self.fits(&name(key)));
                let done = table.set(&key, &online(value));
                self.agree(fits, done, key, |row| *row = online(value));
            }
            Op::Insert(key, value) => {
                let (key, fits) = (name(key), self.fits(&name(key)));
                let is_new = !self.rows.contains_key(&key);
                let done = table.insert(&key, &online(value)).map(|new| assert_eq!(new, is_new));
                let change = |row: &mut Online| {
                    if is_new {
                        *row = online(value)
                    }
                };
                self.agree(fits, done, key, change);
            }
            Op::Incr(key, by) => {
                let (key, fits) = (name(key), self.fits(&name(key)));
                let sum = self.rows.get(&key).map_or(0, |row| row.uid) + by;
                let done = table.incr(&key, Online::UID, by).map(|new| assert_eq!(new, sum));
                self.agree(fits, done, key, |row| row.uid = sum);
            }
            Op::Decr(key, by) => {
                let (key, fits) = (name(key), self.fits(&name(key)));
                match self.rows.get(&key).map_or(0, |row| row.uid).checked_sub(by) {
                    None => {
                        let error = table.decr(&key, Online::UID, by).unwrap_err();
                        assert!(matches!(error, Error::Overflow { .. }), "{error}");
                    }
                    Some(rest) => {
                        let done = table.decr(&key, Online::UID, by).map(|new| assert_eq!(new, rest));
                        self.agree(fits, done, key, |row| row.uid = rest);
                    }
                }
            }
            Op::Update(key, value) => {
                let old = table.update(name(key), |row| std::mem::replace(row, online(value))).unwrap();
                let expected = self.rows.get_mut(&name(key)).map(|row| std::mem::replace(row, online(value)));
                assert_eq!(old, expected);
            }
            Op::Upsert(key, value) => {
                let (key, fits) = (name(key), self.fits(&name(key)));
                let change = |row: &mut Online| row.load += value as f64;
                let done = table.upsert(&key, Online::default(), change);
                self.agree(fits, done, key, change);
            }
            Op::Column(key, value) => {
                let done = table.set_column(name(key), Online::SEEN, &value).unwrap();
                let row = self.rows.get_mut(&name(key));
                assert_eq!(done, row.is_some());
                row.into_iter().for_each(|row| row.seen = value);
            }
            Op::Remove(key) => assert_eq!(table.remove(name(key)).unwrap(), self.rows.remove(&name(key))),
            Op::Get(key) => assert_eq!(table.get(name(key)).unwrap(), self.rows.get(&name(key)).cloned()),
        }
    }

    fn agree(&mut self, fits: bool, done: Result<(), Error>, key: Vec<u8>, change: impl FnOnce(&mut Online)) {
        match done {
            Ok(()) if fits => change(self.rows.entry(key).or_default()),
            Err(Error::Full { .. }) if !fits => {}
            other => panic!("fits: {fits}, yet {other:?}"),
        }
    }
}

proptest! {
    #[test]
    fn a_table_is_a_map_with_a_limit(capacity in 1..14_usize, ops in prop::collection::vec(op(), 0..120)) {
        let table: Table<Online> = Table::with(&options(capacity)).unwrap();
        let mut model = Model { rows: HashMap::new(), capacity };
        for op in ops {
            model.step(&table, op);
            assert_eq!(table.len(), model.rows.len());
        }
        let mut rows: Vec<_> = model.rows.into_iter().collect();
        rows.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(content(&table), rows);
        check_capacity(&table);
    }
}
