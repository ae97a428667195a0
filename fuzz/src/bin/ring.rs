//! The shared-memory ring, both ends, while somebody writes anything over its header and its records.
//!
//! Until that happens the ring must be a queue; from then on, each record must lie where one can lie, and each position
//! must be possible; and when the dead peer is evicted, the ring must be a queue again.
//!
//! An input is the way of freeing space (u8, even: by the consumer, odd: by acks), and steps: which one (u8), and what
//! it needs as below.

#![no_main]

use std::collections::VecDeque;
use std::hint::black_box;

use swoole_fuzz::{Input, overwrite};
use swoole_ipc::{Consumer, Corrupt, Producer, Record, Ring};

/// The least that there is: a page.
const CAPACITY: usize = 4096;
const RECORD_HEADER: u64 = 8;
static BYTES: [u8; 5000] = [b'x'; 5000];

/// Of a record: tag, length, end.
type Known = (u32, usize, u64);

struct Bed {
    ring: Ring,
    acked: bool,
    producer: Producer,
    consumer: Consumer,
    /// Where position 0 is.
    base: usize,
    /// Nobody has written over anything, so that these are in the ring, visible or not.
    honest: bool,
    written: VecDeque<Known>,
    published: VecDeque<Known>,
}

impl Bed {
    fn new(acked: bool) -> Self {
        let ring = Ring::create("fuzz", CAPACITY).expect("memory for a small ring");
        let (mut producer, consumer) = (ring.producer().expect("free"), ring.consumer().expect("free"));
        let first = producer.reserve(0).expect("an empty ring").as_ptr() as usize;
        let base = first - RECORD_HEADER as usize;
        let (written, published) = Default::default();
        Self { ring, acked, producer, consumer, base, honest: true, written, published }
    }

    /// One step; false if the ring is given up.
    fn step(&mut self, input: &mut Input<'_>) -> bool {
        match input.u8() % 13 {
            // Tag and size.
            0 => self.push(input.u8().into(), usize::from(input.u16()) % BYTES.len()),
            // Tag, bytes reserved, and how many of these are committed.
            1 => {
                let (tag, reserved) = (input.u8().into(), usize::from(input.u16()) % BYTES.len());
                self.write_in_place(tag, reserved, usize::from(input.u16()) % (reserved + 1));
            }
            2 => self.publish(),
            3 => self.read(),
            // A position.
            4 => self.peek(input.near(self.consumer.position())),
            5 if !self.acked => self.consumer.release(),
            // The producer hears of what the consumer is done with: of the truth, or of a position.
            5 => {
                let position = self.consumer.position();
                self.hear(position);
            }
            6 if !self.acked => self.refresh(),
            6 => {
                self.honest = false;
                let position = input.near(self.producer.published());
                self.hear(position);
            }
            // Which word of the header page and the records, and what for.
            7 => {
                self.honest = false;
                let word = usize::from(input.u16()) * 8 % (2 * CAPACITY);
                overwrite(self.base - CAPACITY + word, &input.near(self.producer.published()).to_le_bytes());
            }
            8 => {
                let tags = (u32::from(input.u8()) << 8, u32::from(input.u8()) << 8);
                self.retag(tags);
            }
            9 => self.evict_producer(),
            // Whether what is unread is dropped; if not, where the next one starts.
            10 => {
                let resume = (input.u8() % 2 == 1).then(|| input.near(self.producer.published()));
                self.evict_consumer(resume);
            }
            11 => return self.succeed(),
            _ => {
                black_box(self.consumer.is_closed());
            }
        }
        true
    }

    fn push(&mut self, tag: u32, size: usize) {
        let room = self.room();
        let (one, two) = BYTES[..size].split_at(size / 3);
        let pushed = self.producer.push(tag, &[one, two]);
        // Room for nothing may be no room for an empty record either.
        assert!(pushed.is_ok() == (size <= room) || room == 0 && size == 0);
        if pushed.is_ok() {
            self.written.push_back((tag, size, self.producer.position()));
        }
    }

    fn write_in_place(&mut self, tag: u32, reserved: usize, size: usize) {
        let (room, at) = (self.room(), self.payload_at(self.producer.position()));
        let Some(space) = self.producer.reserve(reserved) else {
            assert!(reserved > room || room == 0);
            return;
        };
        assert_eq!((space.as_ptr() as usize, space.len()), (at, reserved));
        space.fill(b'y');
        self.producer.commit(tag, size);
        self.written.push_back((tag, size, self.producer.position()));
    }

    fn room(&self) -> usize {
        let room = self.producer.room();
        assert!(room <= CAPACITY - RECORD_HEADER as usize);
        let unseen = self.producer.position() - self.producer.published();
        assert!(unseen as usize + room <= CAPACITY);
        room
    }

    fn publish(&mut self) {
        self.producer.publish();
        assert_eq!(self.producer.published(), self.producer.position());
        self.published.append(&mut self.written);
    }

    fn read(&mut self) {
        let (start, expected) = (self.consumer.position(), self.published.pop_front());
        let found = match self.consumer.next() {
            Ok(record) => record.map(|record| check(self.base, start, record)),
            Err(corrupt) => {
                assert!(!self.honest && is_true(&corrupt), "{corrupt}");
                // Its own position is always possible: no lie that was believed has come between.
                assert_ne!(corrupt.what, "position");
                None
            }
        };
        assert!(!self.honest || found == expected, "{found:?}, {expected:?}");
        assert_eq!(self.consumer.position(), found.map_or(start, |(.., end)| end));
    }

    fn peek(&self, position: u64) {
        match self.consumer.peek_at(position) {
            Ok(Some(record)) => {
                let (_, _, end) = check(self.base, position, record);
                assert!(end <= self.consumer.position() + CAPACITY as u64);
            }
            Ok(None) => {}
            Err(corrupt) => assert!(is_true(&corrupt), "{corrupt}"),
        }
    }

    fn hear(&mut self, position: u64) {
        if let Err(corrupt) = self.producer.release_to(position) {
            assert!(!self.honest && is_true(&corrupt), "{corrupt}");
        }
        self.room();
    }

    fn refresh(&mut self) {
        let before = self.room();
        if let Err(corrupt) = self.producer.refresh() {
            assert!(!self.honest && is_true(&corrupt), "{corrupt}");
            assert_eq!(self.room(), before);
        }
        assert!(self.room() >= before);
    }

    /// The last record's tag, if it is not published.
    fn retag(&mut self, (set, clear): (u32, u32)) {
        let retagged = self.producer.retag(|tag| tag & !clear | set);
        assert_eq!(retagged, !self.written.is_empty());
        if let Some((tag, ..)) = self.written.back_mut() {
            *tag = *tag & !clear | set;
        }
    }

    /// The producer is dead, and whatever it has left unread is dropped.
    fn evict_producer(&mut self) {
        let Self { ring, producer, consumer, .. } = self;
        drop(std::mem::replace(producer, spare().0));
        // As a reactor does, which takes what it can.
        for _ in 0..=CAPACITY as u64 / RECORD_HEADER {
            if !matches!(consumer.next(), Ok(Some(_))) {
                break;
            }
        }
        consumer.evict_producer();
        assert_eq!(consumer.next(), Ok(None));
        assert!(!consumer.is_closed());
        self.producer = ring.producer().expect("free, and repaired");
        self.is_a_queue_again();
    }

    /// The consumer is dead: its successor starts behind everything, or where it is told to.
    fn evict_consumer(&mut self, resume: Option<u64>) {
        let Self { ring, producer, consumer, .. } = self;
        drop(std::mem::replace(consumer, spare().1));
        producer.publish();
        match resume {
            Some(position) => _ = producer.resume_at(position),
            None => _ = producer.rewind(),
        }
        producer.evict_consumer();
        self.consumer = ring.consumer().expect("free, and repaired");
        if resume.is_none() {
            assert_eq!(self.consumer.position(), self.producer.published());
            return self.is_a_queue_again();
        }
        // What is read now may have been overwritten, or written twice.
        self.written.clear();
        self.honest = false;
    }

    /// Both are gone, and others believe what stands in the header, if it can be true.
    fn succeed(&mut self) -> bool {
        drop(std::mem::replace(&mut self.producer, spare().0));
        drop(std::mem::replace(&mut self.consumer, spare().1));
        let (producer, consumer) = match (self.ring.producer(), self.ring.consumer()) {
            (Ok(producer), Ok(consumer)) => (producer, consumer),
            (Err(error), _) | (_, Err(error)) => {
                assert!(!self.honest, "{error}");
                return false;
            }
        };
        (self.producer, self.consumer) = (producer, consumer);
        // What was read is read again, if it was not released; that is for other tests to follow.
        self.written.clear();
        self.honest = false;
        self.room();
        // Beyond that no ring comes by itself, and the next one would take the truth for a lie.
        self.producer.position() < 1 << 61
    }

    /// Records of several sizes get through, a few times around.
    fn is_a_queue_again(&mut self) {
        self.honest = true;
        (self.written, self.published) = Default::default();
        for size in [0, 1, 2000, 4088, 2000, 8, 4088] {
            assert_eq!(self.room(), CAPACITY - RECORD_HEADER as usize);
            self.push(1, size);
            assert_eq!(self.consumer.next(), Ok(None));
            self.publish();
            self.read();
            if self.acked {
                self.hear(self.consumer.position());
            } else {
                self.consumer.release();
                self.refresh();
            }
        }
        assert!(self.published.is_empty());
    }

    fn payload_at(&self, position: u64) -> usize {
        payload_at(self.base, position)
    }
}

fn payload_at(base: usize, position: u64) -> usize {
    base + (position + RECORD_HEADER) as usize % CAPACITY
}

/// The record lies in the ring, where it was looked for, and ends where it ends.
fn check(base: usize, start: u64, record: Record<'_>) -> Known {
    let Record { tag, bytes, end } = record;
    assert_eq!(bytes.as_ptr() as usize, payload_at(base, start));
    assert!(bytes.len() <= CAPACITY - RECORD_HEADER as usize);
    assert_eq!(end, start + RECORD_HEADER + bytes.len().next_multiple_of(8) as u64);
    // Each byte can be read.
    black_box(bytes.iter().fold(0_u8, |sum, byte| sum ^ byte));
    (tag, bytes.len(), end)
}

/// Whether the value that is called impossible is none of those that are called possible.
fn is_true(corrupt: &Corrupt) -> bool {
    !corrupt.range.contains(&corrupt.value) || !corrupt.value.is_multiple_of(8)
}

/// Both ends of no ring that matters, to stand where a dead one was.
fn spare() -> (Producer, Consumer) {
    let ring = Ring::create("spare", CAPACITY).expect("memory for a small ring");
    (ring.producer().expect("free"), ring.consumer().expect("free"))
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let mut bed = Bed::new(input.u8() % 2 == 1);
    // Enough to go around several times.
    for _ in 0..400 {
        if input.is_empty() || !bed.step(&mut input) {
            break;
        }
    }
});
