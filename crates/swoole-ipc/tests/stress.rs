//! Two threads at full speed, for the sanitizers' eyes too (the commands stand in the crate's documentation).

#![allow(clippy::unwrap_used, reason = "helpers and threads of tests are tests")]

use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use swoole_ipc::{Doorbell, Error, Receive, Ring, Transmit, ring};

const COUNT: u32 = 20_000;
/// A wake-up that takes longer was lost.
const LOST: Duration = Duration::from_secs(60);

fn fill(rng: &mut Rng, payload: &mut [u8]) {
    payload.fill_with(|| rng.u8(..));
}

/// The content of record `number`, which both sides can make.
fn expected(number: u32, buffer: &mut [u8]) -> &[u8] {
    let mut rng = Rng::with_seed(number.into());
    let size = rng.usize(..buffer.len() / 4);
    let payload = &mut buffer[..size];
    fill(&mut rng, payload);
    payload
}

#[test]
fn consumer_freed() {
    const CAPACITY: usize = 4096;
    let ring = Ring::create("stress", CAPACITY).unwrap();
    let (data, space) = (Doorbell::create("data").unwrap(), Doorbell::create("space").unwrap());
    let (mut producer, mut consumer) = (ring.producer().unwrap(), ring.consumer().unwrap());
    let (their_data, their_space) = (data.clone(), space.clone());
    let writer = thread::spawn(move || {
        let mut rng = Rng::with_seed(0);
        let mut buffer = [0; CAPACITY];
        let mut number = 0;
        while number < COUNT {
            for _ in 0..rng.u32(1..20) {
                let payload = expected(number, &mut buffer);
                while producer.push(number, &[payload]).is_err() {
                    producer.publish();
                    their_data.ring().unwrap();
                    let before = producer.room();
                    producer.refresh().unwrap();
                    if producer.room() > before {
                        continue;
                    }
                    their_space.arm();
                    producer.refresh().unwrap();
                    if producer.room() == before {
                        assert!(their_space.wait(Some(LOST)).unwrap(), "a wake-up for space was lost");
                    } else {
                        their_space.disarm();
                    }
                }
                number += 1;
            }
            producer.publish();
            their_data.ring().unwrap();
        }
        producer.close();
        their_data.force().unwrap();
        number
    });

    let mut buffer = [0; CAPACITY];
    let mut number = 0;
    loop {
        let closed = consumer.is_closed();
        let before = number;
        while let Some(record) = consumer.next().unwrap() {
            assert_eq!(record.tag, number);
            assert!(record.bytes == expected(number, &mut buffer), "record {number} is another one");
            number += 1;
        }
        consumer.release();
        space.ring().unwrap();
        if number > before {
            continue;
        }
        if closed {
            break;
        }
        data.arm();
        if consumer.is_closed() || consumer.peek_at(consumer.position()).unwrap().is_some() {
            data.disarm();
        } else {
            assert!(data.wait(Some(LOST)).unwrap(), "a wake-up for data was lost");
        }
    }
    assert_eq!(writer.join().unwrap(), number);
}

/// As the server uses it: requests are freed by the acknowledgements in the replies.
#[test]
fn acked() {
    const CAPACITY: usize = 4096;
    let (requests, replies) =
        (Ring::create("requests", CAPACITY).unwrap(), Ring::create("replies", CAPACITY).unwrap());
    let (mut inbox, mut outbox) = (requests.consumer().unwrap(), replies.producer().unwrap());
    let worker = thread::spawn(move || {
        let mut position = inbox.position();
        let deadline = Instant::now() + LOST;
        for _ in 0..COUNT {
            let request = loop {
                match inbox.peek_at(position).unwrap() {
                    Some(request) => break request,
                    None => outbox.publish(),
                }
                assert!(Instant::now() < deadline, "no request came");
                thread::yield_now();
            };
            while outbox.push(request.tag, &[&request.end.to_le_bytes(), request.bytes]).is_err() {
                outbox.publish();
                outbox.refresh().unwrap();
                assert!(Instant::now() < deadline, "no room for a reply came");
                thread::yield_now();
            }
            position = request.end;
            inbox.advance_to(position);
        }
        outbox.publish();
    });

    let (mut producer, mut consumer) = (requests.producer().unwrap(), replies.consumer().unwrap());
    let mut buffer = [0; CAPACITY];
    let (mut sent, mut answered) = (0, 0);
    let deadline = Instant::now() + LOST;
    while answered < COUNT {
        assert!(Instant::now() < deadline, "{answered} of {sent} requests answered");
        while sent < COUNT && producer.push(sent, &[expected(sent, &mut buffer)]).is_ok() {
            sent += 1;
        }
        producer.publish();
        while let Some(reply) = consumer.next().unwrap() {
            let (ack, payload) = reply.bytes.split_first_chunk().unwrap();
            assert_eq!(reply.tag, answered);
            assert!(payload == expected(answered, &mut buffer), "reply {answered} is another one");
            producer.release_to(u64::from_le_bytes(*ack)).unwrap();
            answered += 1;
        }
        consumer.release();
        thread::yield_now();
    }
    worker.join().unwrap();
}

#[test]
fn channel() {
    let (mut sender, mut receiver) = ring::channel("stress", 4096).unwrap();
    let writer = thread::spawn(move || {
        let mut buffer = [0; 4 * 4096];
        for number in 0..COUNT {
            sender.send(expected(number, &mut buffer), Some(LOST)).unwrap();
        }
    });
    let (mut message, mut buffer) = (Vec::new(), [0; 4 * 4096]);
    for number in 0..COUNT {
        receiver.recv(&mut message, Some(LOST)).unwrap();
        assert!(message == expected(number, &mut buffer), "message {number} is another one");
    }
    writer.join().unwrap();
    assert!(matches!(receiver.recv(&mut message, Some(LOST)), Err(Error::PeerGone)));
}
