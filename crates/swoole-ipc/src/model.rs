//! The ring's cursors and the doorbell's word under every order of steps that the memory model allows.
//!
//! The bytes of a ring are loom cells, so an access that is not ordered after the other side's is a failure.

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use crate::flag::Flag;
use crate::ring::cursors::{Cursors, RECORD_HEADER, Reader, Writer, footprint};

/// A record with a payload of 8 bytes takes two words.
const RECORD: u64 = 16;

struct SharedRing<const WORDS: usize> {
    cursors: Cursors,
    words: [UnsafeCell<u64>; WORDS],
}

impl<const WORDS: usize> SharedRing<WORDS> {
    const CAPACITY: u64 = WORDS as u64 * 8;

    fn new() -> SharedRing<WORDS> {
        assert_eq!(RECORD, footprint(8));
        SharedRing { cursors: Cursors::new(), words: std::array::from_fn(|_| UnsafeCell::new(0)) }
    }

    fn word(&self, position: u64) -> &UnsafeCell<u64> {
        &self.words[(position % Self::CAPACITY / 8) as usize]
    }

    /// Writes a record if there is room for it.
    fn push(&self, writer: &mut Writer, payload: u64) -> bool {
        if writer.free() < RECORD {
            return false;
        }
        let position = writer.position();
        // SAFETY: loom checks that nobody else accesses the cell meanwhile.
        self.word(position).with_mut(|word| unsafe { *word = 8 });
        // SAFETY: as above.
        self.word(position + RECORD_HEADER).with_mut(|word| unsafe { *word = payload });
        writer.advance(RECORD);
        true
    }

    /// Reads the record at the cursor, if one is published.
    fn pop(&self, reader: &mut Reader) -> Option<u64> {
        let position = reader.cursor();
        let available = reader.available(&self.cursors, position).expect("the model's peer is honest");
        if available == 0 {
            return None;
        }
        // SAFETY: loom checks that nobody writes the cell meanwhile.
        let len = self.word(position).with(|word| unsafe { *word });
        assert!(len == 8 && available >= RECORD);
        // SAFETY: as above.
        let payload = self.word(position + RECORD_HEADER).with(|word| unsafe { *word });
        reader.advance_to(position + RECORD);
        Some(payload)
    }
}

// SAFETY: loom checks each access to the cells, which is the point.
unsafe impl<const WORDS: usize> Sync for SharedRing<WORDS> {}
// SAFETY: the ring owns everything it refers to.
unsafe impl<const WORDS: usize> Send for SharedRing<WORDS> {}

/// Every preemption costs a factor; three find all mistakes that were tried.
fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// Three records through a ring of two: each is overwritten only after it was read.
#[test]
fn consumer_frees() {
    check(|| {
        let ring = Arc::new(SharedRing::<4>::new());
        let producer = {
            let ring = ring.clone();
            thread::spawn(move || {
                let mut writer = Writer::open(&ring.cursors, SharedRing::<4>::CAPACITY).unwrap();
                for payload in 1..=3 {
                    while !ring.push(&mut writer, payload) {
                        writer.refresh(&ring.cursors).unwrap();
                        thread::yield_now();
                    }
                    writer.publish(&ring.cursors);
                }
            })
        };
        let mut reader = Reader::open(&ring.cursors, SharedRing::<4>::CAPACITY).unwrap();
        for expected in 1..=3 {
            let payload = loop {
                match ring.pop(&mut reader) {
                    Some(payload) => break payload,
                    None => thread::yield_now(),
                }
            };
            assert_eq!(payload, expected);
            reader.release(&ring.cursors);
        }
        producer.join().unwrap();
    });
}

/// The acked mode of the server: requests are freed by what the replies say, and by nothing else.
#[test]
fn replies_acknowledge() {
    check(|| {
        let requests = Arc::new(SharedRing::<2>::new());
        let replies = Arc::new(SharedRing::<2>::new());
        let worker = {
            let (requests, replies) = (requests.clone(), replies.clone());
            thread::spawn(move || {
                let mut reader = Reader::open(&requests.cursors, SharedRing::<2>::CAPACITY).unwrap();
                let mut writer = Writer::open(&replies.cursors, SharedRing::<2>::CAPACITY).unwrap();
                for expected in 1..=2 {
                    let request = loop {
                        match requests.pop(&mut reader) {
                            Some(request) => break request,
                            None => thread::yield_now(),
                        }
                    };
                    assert_eq!(request, expected);
                    while !replies.push(&mut writer, reader.cursor()) {
                        writer.refresh(&replies.cursors).unwrap();
                        thread::yield_now();
                    }
                    writer.publish(&replies.cursors);
                }
            })
        };
        let mut writer = Writer::open(&requests.cursors, SharedRing::<2>::CAPACITY).unwrap();
        let mut reader = Reader::open(&replies.cursors, SharedRing::<2>::CAPACITY).unwrap();
        for request in 1..=2 {
            assert!(requests.push(&mut writer, request), "acknowledged space is free");
            writer.publish(&requests.cursors);
            let acked = loop {
                match replies.pop(&mut reader) {
                    Some(acked) => break acked,
                    None => thread::yield_now(),
                }
            };
            reader.release(&replies.cursors);
            writer.release_to(&requests.cursors, acked).unwrap();
        }
        worker.join().unwrap();
    });
}

/// An eventfd: it stays readable until it is read.
struct Event {
    readable: Mutex<bool>,
    changed: Condvar,
}

/// Two producers, one sleeper: whatever was published, the sleeper sees it. A lost wake-up would leave it
/// asleep for ever, which loom reports as a deadlock.
#[test]
fn no_wake_up_is_lost() {
    check(|| {
        let word = Arc::new(AtomicU64::new(0));
        let heads = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
        let event = Arc::new(Event { readable: Mutex::new(false), changed: Condvar::new() });
        let producers = [0, 1].map(|index: usize| {
            let (word, heads, event) = (word.clone(), heads.clone(), event.clone());
            thread::spawn(move || {
                heads[index].store(1, Ordering::Release);
                if Flag(&word).take() {
                    *event.readable.lock().unwrap() = true;
                    event.changed.notify_one();
                }
            })
        });
        let flag = Flag(&word);
        let all_seen = || heads.iter().all(|head| head.load(Ordering::Acquire) == 1);
        while !all_seen() {
            flag.arm();
            if all_seen() {
                flag.disarm();
                break;
            }
            let mut readable = event.readable.lock().unwrap();
            while !*readable {
                readable = event.changed.wait(readable).unwrap();
            }
            *readable = false;
            drop(readable);
            flag.disarm();
        }
        for producer in producers {
            producer.join().unwrap();
        }
    });
}
