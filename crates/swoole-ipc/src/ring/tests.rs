//! The ring against a model, and against a peer that writes anything anywhere.

mod eviction;

use std::collections::VecDeque;

use proptest::prelude::*;

use super::{Producer, Record, Ring};
use crate::error::{Error, Side};
use crate::sync::{AtomicU64, Ordering};

#[derive(Debug, Clone)]
enum Step {
    Push(usize),
    InPlace(usize, usize),
    Publish,
    Read,
    Release,
    Refresh,
    NewProducer,
    NewConsumer,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let size = || prop_oneof![0..40_usize, 0..4200_usize];
    let step = prop_oneof![
        6 => size().prop_map(Step::Push),
        2 => (size(), size()).prop_map(|(a, b)| Step::InPlace(a.max(b), a.min(b))),
        4 => Just(Step::Publish),
        6 => Just(Step::Read),
        3 => Just(Step::Release),
        4 => Just(Step::Refresh),
        1 => Just(Step::NewProducer),
        1 => Just(Step::NewConsumer),
    ];
    prop::collection::vec(step, 1..200)
}

#[derive(Debug, Clone, PartialEq)]
struct Sent {
    tag: u32,
    bytes: Vec<u8>,
    end: u64,
}

impl PartialEq<Sent> for Record<'_> {
    fn eq(&self, sent: &Sent) -> bool {
        (self.tag, self.bytes, self.end) == (sent.tag, &sent.bytes[..], sent.end)
    }
}

fn content(tag: u32, size: usize) -> Vec<u8> {
    (0..size).map(|index| (index as u32).wrapping_mul(31).wrapping_add(tag) as u8).collect()
}

const PAGE: usize = 4096;

/// Bytes that a record takes, by the documentation.
fn takes(size: usize) -> usize {
    8 + size.next_multiple_of(8)
}

proptest! {
    /// Consumer-freed mode, with successors on both sides at any moment.
    #[test]
    fn behaves_as_a_queue(steps in steps()) {
        let ring = Ring::create("model", PAGE).unwrap();
        let (mut producer, mut consumer) = (ring.producer().unwrap(), ring.consumer().unwrap());
        let (mut written, mut published, mut read) = (VecDeque::new(), VecDeque::new(), VecDeque::<Sent>::new());
        // Bytes that the producer may not write to; those that it would be told about by a refresh.
        let (mut used, mut freed) = (0, 0);
        let mut tag = 0;

        for step in steps {
            match step {
                Step::Push(size) | Step::InPlace(_, size) => {
                    let bytes = content(tag, size);
                    let reserved = if let Step::InPlace(reserved, _) = step { reserved } else { size };
                    let fits = takes(reserved) <= PAGE - used;
                    let done = match step {
                        Step::InPlace(..) => match producer.reserve(reserved) {
                            Some(space) => {
                                prop_assert_eq!(space.len(), reserved);
                                space[..size].copy_from_slice(&bytes);
                                producer.commit(tag, size);
                                true
                            }
                            None => false,
                        },
                        _ => {
                            let (one, two) = bytes.split_at(size / 3);
                            producer.push(tag, &[one, &[], two]).is_ok()
                        }
                    };
                    prop_assert_eq!(done, fits);
                    if done {
                        used += takes(size);
                        written.push_back(Sent { tag, bytes, end: producer.position() });
                    }
                    tag += 1;
                }
                Step::Publish => {
                    producer.publish();
                    prop_assert_eq!(producer.published(), producer.position());
                    published.append(&mut written);
                }
                Step::Read => {
                    let start = consumer.position();
                    let record = consumer.next().unwrap();
                    match published.pop_front() {
                        Some(sent) => {
                            prop_assert!(record.is_some_and(|record| record == sent));
                            let again = consumer.peek_at(start).unwrap();
                            prop_assert!(again.is_some_and(|record| record == sent), "readable until released");
                            read.push_back(sent);
                        }
                        None => prop_assert_eq!(record, None),
                    }
                }
                Step::Release => {
                    consumer.release();
                    freed += read.drain(..).map(|sent| takes(sent.bytes.len())).sum::<usize>();
                }
                Step::Refresh => {
                    producer.refresh().unwrap();
                    used -= std::mem::take(&mut freed);
                }
                Step::NewProducer => {
                    drop(producer);
                    producer = ring.producer().unwrap();
                    // What was not published never was; what was released is seen.
                    used -= written.drain(..).map(|sent: Sent| takes(sent.bytes.len())).sum::<usize>();
                    used -= std::mem::take(&mut freed);
                }
                Step::NewConsumer => {
                    drop(consumer);
                    consumer = ring.consumer().unwrap();
                    // What was not released is read again.
                    read.append(&mut published);
                    published = std::mem::take(&mut read);
                }
            }
            prop_assert_eq!(producer.room(), (PAGE - used).saturating_sub(8));
        }
    }

    /// Acked mode: several records borrowed at once, acknowledged one by one, the consumer replaced at any
    /// moment.
    #[test]
    fn acknowledged_records_are_freed_and_no_others(
        rounds in prop::collection::vec((1..6_usize, 0..300_usize, 0..6_usize, any::<bool>()), 1..60)
    ) {
        let ring = Ring::create("model", PAGE).unwrap();
        let (mut producer, mut consumer) = (ring.producer().unwrap(), ring.consumer().unwrap());
        let mut waiting = VecDeque::new();
        let mut start = 0;
        for (tag, (count, size, done, dies)) in (0..).zip(rounds) {
            for _ in 0..count {
                let bytes = content(tag, size);
                let used = (producer.position() - start) as usize;
                let pushed = producer.push(tag, &[&bytes]);
                prop_assert_eq!(pushed.is_ok(), takes(size) <= PAGE - used);
                if pushed.is_ok() {
                    waiting.push_back(Sent { tag, bytes, end: producer.position() });
                }
            }
            producer.publish();
            let mut position = start;
            let mut records = Vec::new();
            while let Some(record) = consumer.peek_at(position).unwrap() {
                position = record.end;
                records.push(record);
            }
            prop_assert_eq!(records.len(), waiting.len());
            prop_assert!(records.iter().zip(&waiting).all(|(record, sent)| record == sent));
            consumer.advance_to(position);

            for sent in waiting.drain(..done.min(waiting.len())) {
                start = sent.end;
            }
            producer.release_to(start).unwrap();
            if dies {
                drop(consumer);
                producer.resume_at(start).unwrap();
                consumer = ring.consumer().unwrap();
                prop_assert_eq!(consumer.position(), start);
            }
        }
    }

    /// A peer that stores any value in any word: errors, never a panic or an access outside.
    #[test]
    fn lies_are_found_out(
        sizes in prop::collection::vec(0..900_usize, 0..8),
        lies in prop::collection::vec((0..8_usize, lie(), 0..PAGE as u64 / 8), 1..12),
    ) {
        let ring = Ring::create("liar", PAGE).unwrap();
        let (mut producer, mut consumer) = (ring.producer().unwrap(), ring.consumer().unwrap());
        for size in sizes {
            let _ = producer.push(7, &[&vec![1; size]]);
        }
        producer.publish();
        for (word, value, at) in lies {
            let cursors = ring.cursors();
            match word {
                0 => cursors.head.store(value, Ordering::Relaxed),
                1 => cursors.tail.store(value, Ordering::Relaxed),
                2 => cursors.resume.store(value, Ordering::Relaxed),
                3 => cursors.closed.store(value as u32, Ordering::Relaxed),
                // SAFETY: the word lies in the ring, and all accesses here are by this thread.
                _ => unsafe { ring.bytes(at * 8).cast::<AtomicU64>().as_ref() }.store(value, Ordering::Relaxed),
            }
            exercise(&ring, &mut producer, value);
            for position in [consumer.position(), value, 0] {
                if let Ok(Some(record)) = consumer.peek_at(position) {
                    check_inside(&ring, record);
                }
            }
            if let Ok(Some(record)) = consumer.next() {
                check_inside(&ring, record);
            }
            consumer.release();
            let _ = consumer.is_closed();
            // Successors have to believe the shared words, if these can be true.
            drop((producer, consumer));
            let (Ok(next_producer), Ok(next_consumer)) = (ring.producer(), ring.consumer()) else {
                return Ok(());
            };
            (producer, consumer) = (next_producer, next_consumer);
        }
    }
}

fn lie() -> impl Strategy<Value = u64> {
    let near = (0..3 * PAGE as u64).prop_map(|value| value & !7);
    let extreme = prop_oneof![
        Just(u64::MAX),
        Just(u64::MAX - 7),
        Just(1 << 63),
        Just(1 << 62),
        Just(u64::from(u32::MAX))
    ];
    prop_oneof![4 => near, 1 => 0..3 * PAGE as u64, 1 => any::<u64>(), 1 => extreme]
}

fn exercise(ring: &Ring, producer: &mut Producer, value: u64) {
    let _ = producer.refresh();
    let _ = producer.release_to(value);
    let _ = producer.resume_at(value);
    let room = producer.room();
    assert!(room <= ring.capacity());
    if let Some(space) = producer.reserve(room) {
        let first = space.as_ptr() as usize - ring.bytes(0).as_ptr() as usize;
        assert!(first + space.len() <= 2 * ring.capacity());
        space.fill(0xAA);
        producer.commit(1, room / 2);
    }
    producer.publish();
}

fn check_inside(ring: &Ring, record: Record<'_>) {
    let first = record.bytes.as_ptr() as usize - ring.bytes(0).as_ptr() as usize;
    assert!(first + record.bytes.len() <= 2 * ring.capacity());
    std::hint::black_box(record.bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>());
}

#[test]
fn capacity_is_rounded_and_limited() {
    assert_eq!(Ring::create("small", 1).unwrap().capacity(), PAGE);
    assert_eq!(Ring::create("odd", PAGE + 1).unwrap().capacity(), 2 * PAGE);
    assert!(matches!(Ring::create("none", 0), Err(Error::Capacity { capacity: 0 })));
    assert!(matches!(Ring::create("huge", super::CAPACITY_MAX + 1), Err(Error::Capacity { .. })));
    assert_eq!(Ring::create("largest", super::CAPACITY_MAX).unwrap().capacity(), super::CAPACITY_MAX);
}

#[test]
fn a_record_may_fill_the_ring_and_never_wraps() {
    let ring = Ring::create("exact", PAGE).unwrap();
    let (mut producer, mut consumer) = (ring.producer().unwrap(), ring.consumer().unwrap());
    for shift in 0..70 {
        producer.push(0, &[&vec![9; shift * 8]]).unwrap();
        producer.publish();
        consumer.next().unwrap().unwrap();
        consumer.release();
        producer.refresh().unwrap();

        assert_eq!(producer.room(), PAGE - 8);
        let full = producer.push(1, &[&vec![0; PAGE - 7]]).unwrap_err();
        assert_eq!((full.needed, full.room), (PAGE - 7, PAGE - 8));
        let bytes = content(shift as u32, PAGE - 8);
        producer.push(1, &[&bytes]).unwrap();
        assert_eq!(producer.room(), 0);
        assert!(producer.push(2, &[]).is_err(), "no room for an empty record either");
        producer.publish();
        assert_eq!(consumer.next().unwrap().unwrap().bytes, bytes);
        consumer.release();
        producer.refresh().unwrap();
    }
}

#[test]
fn a_side_is_held_once() {
    let ring = Ring::create("claims", PAGE).unwrap();
    let mut producer = ring.producer().unwrap();
    let own_pid = std::process::id();
    let taken = ring.clone().producer().unwrap_err();
    assert!(matches!(taken, Error::SideTaken { side: Side::Producer, pid, .. } if pid == own_pid), "{taken}");
    let consumer = ring.consumer().unwrap();
    producer.evict_consumer();
    assert!(ring.consumer().is_err(), "an eviction by mistake makes no second consumer in one process");
    drop(consumer);
    drop(ring.consumer().unwrap());
    drop(producer);
    drop(ring.producer().unwrap());
}

#[test]
fn another_layout_is_refused() {
    let ring = Ring::create("old", PAGE).unwrap();
    // SAFETY: the header's first words are atomics, accessed by this thread only.
    let words =
        unsafe { std::slice::from_raw_parts(ring.bytes(0).sub(PAGE).cast::<AtomicU64>().as_ptr(), 3) };
    for (index, what) in [(0, "magic"), (1, "version"), (2, "capacity")] {
        let right = words[index].fetch_add(1, Ordering::Relaxed);
        for error in [ring.producer().unwrap_err(), ring.consumer().unwrap_err()] {
            assert!(matches!(&error, Error::Corrupt(corrupt) if corrupt.what == what), "{error}");
        }
        words[index].store(right, Ordering::Relaxed);
    }
    drop(ring.producer().unwrap());
}

#[test]
fn rewind_drops_what_nobody_read() {
    let ring = Ring::create("rewind", PAGE).unwrap();
    let (mut producer, mut consumer) = (ring.producer().unwrap(), ring.consumer().unwrap());
    producer.push(1, &[b"read, not released"]).unwrap();
    producer.push(2, &[b"published"]).unwrap();
    producer.publish();
    consumer.next().unwrap().unwrap();
    producer.push(3, &[b"written"]).unwrap();
    drop(consumer);
    assert_eq!(producer.rewind(), producer.published());
    let mut successor = ring.consumer().unwrap();
    assert_eq!(successor.next(), Ok(None));
    producer.publish();
    assert_eq!(successor.next().unwrap().unwrap().tag, 3);
    successor.release();
    producer.refresh().unwrap();
    assert_eq!(producer.room(), PAGE - 8);
}

#[test]
fn closing_comes_after_the_last_record() {
    let ring = Ring::create("close", PAGE).unwrap();
    let (mut producer, mut consumer) = (ring.producer().unwrap(), ring.consumer().unwrap());
    producer.push(1, &[b"last"]).unwrap();
    producer.publish();
    assert!(!consumer.is_closed());
    producer.close();
    assert!(consumer.is_closed());
    assert_eq!(consumer.next().unwrap().unwrap().bytes, b"last");
    assert_eq!(consumer.next(), Ok(None));
}

/// Every byte that the two processes share.
fn shared_bytes(ring: &Ring) -> Vec<u8> {
    // SAFETY: the header page and the ring's bytes are mapped, and only this thread accesses them.
    unsafe { std::slice::from_raw_parts(ring.bytes(0).sub(PAGE).as_ptr(), PAGE + ring.capacity()) }.to_vec()
}

#[test]
fn an_acked_consumer_writes_nothing() {
    let ring = Ring::create("silent", PAGE).unwrap();
    let (mut producer, mut consumer) = (ring.producer().unwrap(), ring.consumer().unwrap());
    for tag in 0..5 {
        producer.push(tag, &[b"request"]).unwrap();
    }
    producer.publish();
    let before = shared_bytes(&ring);
    let first = consumer.peek_at(0).unwrap().unwrap().end;
    consumer.advance_to(first);
    while consumer.next().unwrap().is_some() {}
    assert!(!consumer.is_closed());
    assert!(before == shared_bytes(&ring));
}

#[test]
fn a_tag_changes_until_it_is_published() {
    let ring = Ring::create("retag", PAGE).unwrap();
    let (mut producer, mut consumer) = (ring.producer().unwrap(), ring.consumer().unwrap());
    assert!(!producer.retag(|tag| tag), "there is no record yet");
    producer.push(1, &[b"first"]).unwrap();
    producer.push(2, &[b"last"]).unwrap();
    assert!(producer.retag(|tag| tag | 0x100));
    producer.publish();
    assert!(!producer.retag(|_| 0), "the consumer may have read it");
    let mut tags = Vec::new();
    while let Some(record) = consumer.next().unwrap() {
        tags.push((record.tag, record.bytes.len()));
    }
    assert_eq!(tags, [(1, 5), (0x102, 4)]);
}

#[test]
fn an_impossible_head_is_named() {
    let ring = Ring::create("head", PAGE).unwrap();
    let (mut producer, mut consumer) = (ring.producer().unwrap(), ring.consumer().unwrap());
    producer.push(1, &[b"12345678"]).unwrap();
    producer.publish();
    consumer.next().unwrap().unwrap();
    let right = producer.published();
    // Back, between two words, more than a lap ahead.
    for head in [right - 8, right + 4, right + PAGE as u64 + 8, u64::MAX] {
        ring.cursors().head.store(head, Ordering::Relaxed);
        let lie = consumer.next().unwrap_err();
        assert_eq!((lie.what, lie.value), ("head", head));
        assert_eq!(lie.range, right..=right + PAGE as u64);
    }
    ring.cursors().head.store(right, Ordering::Relaxed);
    assert_eq!(consumer.next(), Ok(None), "nothing of it stays");
}
