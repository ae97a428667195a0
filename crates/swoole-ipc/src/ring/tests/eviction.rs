//! Eviction, after the dead process has written anything anywhere in the header.

use proptest::prelude::*;

use super::{PAGE, Sent, content, lie};
use crate::error::{Corrupt, Error};
use crate::ring::{Consumer, Producer, Ring};
use crate::sync::{AtomicU64, Ordering};

/// All that the layout knows of: seven cache lines of 128 bytes.
const HEADER_WORDS: usize = 7 * 128 / 8;

/// What is written over each word of the header, if anything.
type Scribble = Vec<Option<u64>>;

fn scribble() -> impl Strategy<Value = Scribble> {
    prop_oneof![
        4 => prop::collection::vec(prop::option::of(lie()), HEADER_WORDS),
        1 => lie().prop_map(|value| vec![Some(value); HEADER_WORDS]),
        1 => (0..HEADER_WORDS, lie()).prop_map(|(index, value)| {
            let mut words = vec![None; HEADER_WORDS];
            words[index] = Some(value);
            words
        }),
    ]
}

fn apply(ring: &Ring, scribble: &Scribble) {
    // SAFETY: the page before the records is the header's, which is accessed by this thread only.
    let words = unsafe { ring.bytes(0).sub(PAGE).cast::<AtomicU64>().as_ptr() };
    for (index, value) in scribble.iter().enumerate().filter_map(|(index, value)| Some((index, (*value)?))) {
        // SAFETY: as above, and the index stays inside that page.
        unsafe { &*words.add(index) }.store(value, Ordering::Relaxed);
    }
}

/// Pushes a record and tells where it starts and what it is.
fn push(producer: &mut Producer, tag: u32, size: usize) -> Option<(u64, Sent)> {
    let (start, bytes) = (producer.position(), content(tag, size));
    producer.push(tag, &[&bytes]).ok()?;
    Some((start, Sent { tag, bytes, end: producer.position() }))
}

/// The ring carries records of all sizes, a few times around.
fn traffic_flows(producer: &mut Producer, consumer: &mut Consumer, acked: bool) -> Result<(), Corrupt> {
    for tag in 0..40 {
        let (_, sent) = push(producer, tag, tag as usize * 19).expect("room in an empty ring");
        assert_eq!(consumer.next()?, None);
        producer.publish();
        assert!(consumer.next()?.is_some_and(|record| record == sent));
        if acked {
            producer.release_to(sent.end)?;
        } else {
            consumer.release();
            producer.refresh()?;
        }
        assert_eq!(producer.room(), PAGE - 8);
    }
    Ok(())
}

/// The claims of both sides are good, so each can be given up and taken again.
fn sides_change_hands(ring: &Ring, producer: Producer, consumer: Consumer, acked: bool) -> Result<(), Error> {
    drop((producer, consumer));
    let (mut producer, mut consumer) = (ring.producer()?, ring.consumer()?);
    if acked {
        // This consumer starts at what was acknowledged last.
        assert_eq!(consumer.position(), producer.position());
    }
    Ok(traffic_flows(&mut producer, &mut consumer, acked)?)
}

proptest! {
    /// Acked mode: who sends takes back what the dead consumer had not begun, by the positions it knows.
    #[test]
    fn requests_are_read_back(
        rounds in prop::collection::vec(
            (prop::collection::vec(0..600_usize, 0..9), 0..9_usize, 0..9_usize, scribble()), 1..8),
        closes in any::<bool>(),
    ) {
        let ring = Ring::create("requests", PAGE).unwrap();
        let mut producer = ring.producer().unwrap();
        for (sizes, read, acked, scribble) in rounds {
            let mut worker = ring.consumer().unwrap();
            prop_assert_eq!(worker.position(), producer.published());
            prop_assert!(!worker.is_closed());
            let mut sent = Vec::new();
            for (tag, size) in (0..).zip(sizes) {
                // So the last one is only written as yet.
                producer.publish();
                sent.extend(push(&mut producer, tag, size));
            }
            let published = sent.len().saturating_sub(1);
            for (_, sent) in sent[..published].iter().take(read) {
                prop_assert!(worker.next().unwrap().is_some_and(|record| record == *sent));
            }
            let acked = acked.min(published);
            if let Some((_, last)) = sent[..acked].last() {
                producer.release_to(last.end).unwrap();
            }
            drop(worker);
            apply(&ring, &scribble);

            producer.publish();
            producer.evict_consumer();
            let reader = ring.consumer().unwrap();
            for (start, sent) in &sent[acked..] {
                let record = reader.peek_at(*start).unwrap();
                prop_assert!(record.is_some_and(|record| record == *sent));
            }
            drop(reader);
            producer.rewind();
        }
        let mut successor = ring.consumer().unwrap();
        traffic_flows(&mut producer, &mut successor, true).unwrap();
        if closes {
            producer.close();
            drop(successor);
            apply(&ring, &vec![Some(0); HEADER_WORDS]);
            producer.evict_consumer();
            successor = ring.consumer().unwrap();
            prop_assert!(successor.is_closed(), "that is the producer's to say");
        }
        sides_change_hands(&ring, producer, successor, true).unwrap();
    }

    /// Consumer-freed mode: the successor starts at the last release that the producer knows of, or where
    /// the producer says.
    #[test]
    fn a_consumer_is_succeeded(
        rounds in prop::collection::vec(
            (prop::collection::vec(0..600_usize, 0..9), 0..9_usize, 0..9_usize, scribble()), 1..8),
        resumes in any::<bool>(),
    ) {
        let ring = Ring::create("records", PAGE).unwrap();
        let mut producer = ring.producer().unwrap();
        let mut waiting = Vec::new();
        for (sizes, known, released, scribble) in rounds {
            let mut consumer = ring.consumer().unwrap();
            waiting.extend((0..).zip(sizes).filter_map(|(tag, size)| push(&mut producer, tag, size)));
            producer.publish();
            let mut start = consumer.position();
            let mut done = 0;
            for (at, (_, sent)) in waiting.iter().enumerate() {
                prop_assert!(consumer.next().unwrap().is_some_and(|record| record == *sent));
                if at < released {
                    consumer.release();
                }
                if at < known {
                    producer.refresh().unwrap();
                    (start, done) = if at < released { (sent.end, at + 1) } else { (start, done) };
                }
            }
            drop(consumer);
            if resumes && let Some((_, sent)) = waiting.get(done) {
                producer.resume_at(sent.end).unwrap();
                (start, done) = (sent.end, done + 1);
            }
            apply(&ring, &scribble);
            producer.evict_consumer();
            waiting.drain(..done);
            prop_assert_eq!(ring.consumer().unwrap().position(), start);
        }
        let mut consumer = ring.consumer().unwrap();
        for (_, sent) in waiting {
            prop_assert!(consumer.next().unwrap().is_some_and(|record| record == sent));
        }
        consumer.release();
        producer.refresh().unwrap();
        traffic_flows(&mut producer, &mut consumer, false).unwrap();
        sides_change_hands(&ring, producer, consumer, false).unwrap();
    }

    /// A consumer believes what can be true, so it may have read anything of a producer that went wild.
    /// None of that is there for the successor, in either mode.
    #[test]
    fn a_producer_is_succeeded(
        rounds in prop::collection::vec((prop::collection::vec(0..600_usize, 0..9), 0..9_usize, scribble()), 1..8),
        acked in any::<bool>(),
    ) {
        let ring = Ring::create("replies", PAGE).unwrap();
        let mut consumer = ring.consumer().unwrap();
        for (sizes, read, scribble) in rounds {
            let mut worker = ring.producer().unwrap();
            prop_assert_eq!(worker.room(), PAGE - 8);
            let sent: Vec<_> =
                (0..).zip(sizes).filter_map(|(tag, size)| push(&mut worker, tag, size)).collect();
            worker.publish();
            for (_, sent) in sent.iter().take(read) {
                prop_assert!(consumer.next().unwrap().is_some_and(|record| record == *sent));
                if acked {
                    worker.release_to(sent.end).unwrap();
                } else {
                    consumer.release();
                }
            }
            drop(worker);
            apply(&ring, &scribble);
            while let Ok(Some(_)) = consumer.next() {}
            consumer.evict_producer();
            prop_assert_eq!(consumer.next(), Ok(None));
            prop_assert!(!consumer.is_closed());
            if let Some(before) = consumer.position().checked_sub(8) {
                prop_assert_eq!(consumer.peek_at(before).unwrap_err().what, "position", "it is released");
            }
        }
        let mut successor = ring.producer().unwrap();
        traffic_flows(&mut successor, &mut consumer, acked).unwrap();
        sides_change_hands(&ring, successor, consumer, acked).unwrap();
    }
}
