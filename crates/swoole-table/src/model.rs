//! The whole table under every order of steps that the memory model allows (loom).
//!
//! The words are loom's atomics. A lock that is held is waited for by giving way; deaths are for the other tests.

use loom::model::Builder;
use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::thread;

use crate::key::{Hashing, Key};
use crate::layout::Layout;
use crate::store::Store;

/// Two rows of two words: one bucket, so that all meet.
struct Model {
    words: Vec<AtomicU64>,
    layout: Layout,
}

const HASHING: fn() -> Hashing = || Hashing::new(1);

impl Model {
    fn new() -> Model {
        let layout = Layout::new(2, 8, 2).expect("a small table");
        let words = (0..layout.words).map(|_| AtomicU64::new(0)).collect();
        let model = Model { words, layout };
        model.store().lay_out();
        model
    }

    fn store(&self) -> Store<'_> {
        Store::new(&self.words, &self.layout)
    }

    fn key(&self, name: &'static str) -> Key<'static> {
        Key::new(name.as_bytes(), 8, HASHING()).expect("a short key")
    }

    fn set(&self, name: &'static str, row: [u64; 2]) {
        let key = self.key(name);
        let mut change = self.store().change(key.bucket(&self.layout)).expect("nothing is nested");
        match change.find(key).expect("honest") {
            Some(found) => (0..2).for_each(|at| change.set(found.row, at, row[at])),
            None => change.insert(&key, |put| (0..2).for_each(|at| put(at, row[at]))).expect("room"),
        }
        change.commit();
    }

    /// Adds one to a word of a row that is there.
    fn incr(&self, name: &'static str, at: usize) {
        let key = self.key(name);
        let mut change = self.store().change(key.bucket(&self.layout)).expect("nothing is nested");
        let row = change.find(key).expect("honest").expect("a row").row;
        let old = crate::Cells(self.store().value(row)).word(at);
        change.set(row, at, old + 1);
        change.commit();
    }

    fn del(&self, name: &'static str) {
        let key = self.key(name);
        let mut change = self.store().change(key.bucket(&self.layout)).expect("nothing is nested");
        let found = change.find(key).expect("honest").expect("a row");
        change.remove(found);
        change.commit();
    }

    fn get(&self, name: &'static str) -> Option<[u64; 2]> {
        let (store, key) = (self.store(), self.key(name));
        let read = store.read(key.bucket(&self.layout), || {
            let found = store.find(key)?;
            Ok(found.map(|found| [0, 1].map(|at| crate::Cells(store.value(found.row)).word(at))))
        });
        read.expect("honest")
    }
}

/// Every preemption costs a factor.
fn check(model: impl Fn(Arc<Model>) + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(2);
    builder.max_branches = 10_000;
    builder.check(move || model(Arc::new(Model::new())));
}

#[test]
fn no_reader_sees_half_a_row() {
    check(|model| {
        model.set("a", [1, 1]);
        let writer = thread::spawn({
            let model = model.clone();
            move || model.set("a", [2, 2])
        });
        let row = model.get("a").expect("it is there all the time");
        assert!(row == [1, 1] || row == [2, 2], "{row:?}");
        writer.join().expect("no panic");
        assert_eq!(model.get("a"), Some([2, 2]));
    });
}

/// Changes of one word have no journal; a reader must not see the second without the first either.
#[test]
fn counters_are_seen_in_the_order_of_their_changes() {
    check(|model| {
        model.set("a", [0, 0]);
        let writer = thread::spawn({
            let model = model.clone();
            move || {
                model.incr("a", 0);
                model.incr("a", 1);
            }
        });
        let row = model.get("a").expect("it is there all the time");
        assert!([[0, 0], [1, 0], [1, 1]].contains(&row), "{row:?}");
        writer.join().expect("no panic");
    });
}

#[test]
fn no_increment_is_lost() {
    check(|model| {
        model.set("a", [0, 7]);
        let other = thread::spawn({
            let model = model.clone();
            move || model.incr("a", 0)
        });
        model.incr("a", 0);
        other.join().expect("no panic");
        assert_eq!(model.get("a"), Some([2, 7]));
    });
}

/// A row that is given back and taken again for another key is never seen under the wrong one.
#[test]
fn a_row_that_is_used_again_is_another_ones() {
    check(|model| {
        model.set("b", [9, 9]);
        model.set("a", [1, 1]);
        let writer = thread::spawn({
            let model = model.clone();
            move || {
                model.del("a");
                model.set("c", [3, 3]);
            }
        });
        let row = model.get("a");
        assert!(row.is_none() || row == Some([1, 1]), "{row:?}");
        writer.join().expect("no panic");
        assert_eq!((model.get("a"), model.get("b"), model.get("c")), (None, Some([9, 9]), Some([3, 3])));
        assert_eq!(model.store().len(), 2);
    });
}
