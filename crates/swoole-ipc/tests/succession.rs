//! Doorbells and rings between processes that die, and their successors.

#![allow(clippy::unwrap_used, reason = "tests say what must hold by unwrapping it")]

mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use fastrand::Rng;
use rustix::process::{Signal, getpid, kill_process};
use support::{Process, Test};
use swoole_ipc::words::Words;
use swoole_ipc::{Doorbell, Error, Ring, Side};
use swoole_sys::signal;

const LONG: Option<Duration> = Some(Duration::from_secs(20));
const SHORT: Option<Duration> = Some(Duration::from_millis(20));

fn main() {
    let tests: [(&str, fn()); 6] = [
        ("doorbell_rings_a_sleeper_only", doorbell_rings_a_sleeper_only),
        ("protected_words_can_only_be_read", protected_words_can_only_be_read),
        ("claims_are_not_inherited", claims_are_not_inherited),
        ("killed_producer_leaves_what_it_published", killed_producer_leaves_what_it_published),
        ("every_request_is_answered_once", every_request_is_answered_once),
        (
            "killed_consumer_leaves_what_it_did_not_acknowledge",
            killed_consumer_leaves_what_it_did_not_acknowledge,
        ),
    ];
    support::run(tests.map(|(name, run)| Test { name: name.to_owned(), run: Box::new(run) }).into());
}

fn kill_self() -> ! {
    kill_process(getpid(), Signal::KILL).unwrap();
    unreachable!("SIGKILL is final");
}

fn doorbell_rings_a_sleeper_only() {
    let (bell, ready) = (Doorbell::create("bell").unwrap(), Doorbell::create("ready").unwrap());
    assert!(!bell.ring().unwrap(), "awake");
    assert!(!bell.wait(SHORT).unwrap(), "nothing was written");
    ready.arm();
    let sleeper = Process::spawn(|| {
        bell.arm();
        assert!(ready.ring().unwrap());
        assert!(bell.wait(LONG).unwrap());
        assert!(!bell.is_armed());
    });
    assert!(ready.wait(LONG).unwrap());
    assert!(bell.is_armed());
    assert!(bell.ring().unwrap());
    assert!(!bell.ring().unwrap(), "one write for one sleep");
    sleeper.join();
}

fn protected_words_can_only_be_read() {
    let words = Words::create("words", 600).unwrap();
    let bell = Doorbell::create("bell").unwrap();
    words[599].store(7, Ordering::Relaxed);
    bell.arm();
    let stray: [&dyn Fn(); 3] =
        [&|| words[0].store(1, Ordering::Relaxed), &|| words[599].store(1, Ordering::Relaxed), &|| {
            bell.disarm();
        }];
    for store in stray {
        let mut child = Process::spawn(|| {
            // A sanitizer would make an exit of it.
            signal::default(Signal::SEGV).unwrap();
            words.clone().protect().unwrap();
            bell.clone().protect().unwrap();
            assert_eq!(words[599].load(Ordering::Relaxed), 7);
            assert!(bell.is_armed());
            bell.force().unwrap();
            store();
        });
        let status = child.wait(Duration::from_secs(20)).unwrap();
        assert_eq!(status.terminating_signal(), Some(Signal::SEGV.as_raw()));
        assert_eq!((words[0].load(Ordering::Relaxed), words[599].load(Ordering::Relaxed)), (0, 7));
        assert!(bell.is_armed());
    }
    words[0].store(1, Ordering::Relaxed);
    assert!(bell.ring().unwrap(), "this process writes as ever");
}

fn claims_are_not_inherited() {
    let ring = Ring::create("claims", 4096).unwrap();
    let parent = std::process::id();
    let producer = ring.producer().unwrap();
    let mut copy = Some(producer);
    Process::spawn(|| {
        let taken = ring.producer().unwrap_err();
        assert!(
            matches!(taken, Error::SideTaken { side: Side::Producer, pid, .. } if pid == parent),
            "{taken}"
        );
        drop(copy.take());
        ring.producer().expect_err("dropping the copy gives nothing up");
        drop(ring.consumer().unwrap());
        let consumer = ring.consumer().unwrap();
        std::mem::forget(consumer);
    })
    .join();
    assert!(matches!(ring.consumer(), Err(Error::SideTaken { side: Side::Consumer, .. })), "its holder died");
    copy.unwrap().evict_consumer();
    ring.consumer().unwrap();
}

fn killed_producer_leaves_what_it_published() {
    let ring = Ring::create("producers", 4096).unwrap();
    let mut consumer = ring.consumer().unwrap();
    let mut first = Process::spawn(|| {
        let mut producer = ring.producer().unwrap();
        producer.push(1, &[b"published"]).unwrap();
        producer.publish();
        producer.push(2, &[b"written only"]).unwrap();
        producer.reserve(100).unwrap().fill(0xFF);
        kill_self();
    });
    assert_eq!(first.wait(Duration::from_secs(20)).unwrap().terminating_signal(), Some(9));
    assert!(matches!(ring.producer(), Err(Error::SideTaken { side: Side::Producer, .. })));
    assert_eq!(consumer.next().unwrap().unwrap().bytes, b"published");
    assert_eq!(consumer.next().unwrap(), None);
    consumer.evict_producer();
    Process::spawn(|| {
        let mut producer = ring.producer().unwrap();
        producer.push(3, &[b"successor"]).unwrap();
        producer.publish();
        producer.close();
    })
    .join();
    assert!(consumer.is_closed());
    assert_eq!(consumer.next().unwrap().unwrap().bytes, b"successor");
    assert_eq!(consumer.next().unwrap(), None);
}

fn killed_consumer_leaves_what_it_did_not_acknowledge() {
    let ring = Ring::create("consumers", 4096).unwrap();
    let mut producer = ring.producer().unwrap();
    let mut ends = Vec::new();
    for tag in 0..5 {
        producer.push(tag, &[b"request"]).unwrap();
        ends.push(producer.position());
    }
    producer.publish();
    let mut first = Process::spawn(|| {
        let mut consumer = ring.consumer().unwrap();
        for tag in 0..3 {
            assert_eq!(consumer.next().unwrap().unwrap().tag, tag);
        }
        kill_self();
    });
    first.wait(Duration::from_secs(20)).unwrap();
    // It has acknowledged two (by another way), and was at the third.
    producer.release_to(ends[1]).unwrap();
    producer.resume_at(ends[1]).unwrap();
    let refused = producer.resume_at(ends[0]).unwrap_err();
    assert_eq!((refused.value, refused.range), (ends[0], ends[1]..=ends[4]));
    producer.evict_consumer();
    Process::spawn(|| {
        let mut consumer = ring.consumer().unwrap();
        for tag in 2..5 {
            assert_eq!(consumer.next().unwrap().unwrap().tag, tag);
        }
        assert_eq!(consumer.next().unwrap(), None);
    })
    .join();
}

/// The server's data path in small: a worker acknowledges a request by publishing its reply. It is killed
/// again and again; no reply is lost, doubled or out of order.
fn every_request_is_answered_once() {
    const KILLS: u32 = 100;
    let seed = std::env::var("SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let (requests, replies) =
        (Ring::create("requests", 8192).unwrap(), Ring::create("replies", 8192).unwrap());
    let bell = Doorbell::create("worker").unwrap();
    let worker = || {
        Process::spawn(|| {
            let (mut inbox, mut outbox) = (requests.consumer().unwrap(), replies.producer().unwrap());
            loop {
                let position = inbox.position();
                let Some(request) = inbox.peek_at(position).unwrap() else {
                    bell.arm();
                    if inbox.peek_at(position).unwrap().is_none() {
                        bell.wait(None).unwrap();
                    }
                    bell.disarm();
                    continue;
                };
                let end = request.end;
                while outbox.push(request.tag, &[&end.to_le_bytes(), request.bytes]).is_err() {
                    std::thread::yield_now();
                    outbox.refresh().unwrap();
                }
                inbox.advance_to(end);
                outbox.publish();
            }
        })
    };

    let (mut outbox, mut inbox) = (requests.producer().unwrap(), replies.consumer().unwrap());
    let (mut sent, mut answered, mut acked) = (0_u32, 0_u32, 0);
    let payload = |number: u32| vec![number as u8; Rng::with_seed(number.into()).usize(..600)];
    for _ in 0..KILLS {
        let mut process = worker();
        let until = answered + rng.u32(1..2000);
        let mut dead = false;
        loop {
            while !dead && outbox.push(sent, &[&payload(sent)]).is_ok() {
                sent += 1;
            }
            outbox.publish();
            bell.ring().unwrap();
            while let Some(reply) = inbox.next().unwrap() {
                let (ack, bytes) = reply.bytes.split_first_chunk().unwrap();
                assert_eq!(reply.tag, answered);
                assert!(bytes == payload(answered));
                acked = u64::from_le_bytes(*ack);
                answered += 1;
            }
            inbox.release();
            outbox.release_to(acked).unwrap();
            if dead {
                break;
            }
            if answered >= until {
                process.kill();
                // Once more, for what it had published.
                dead = true;
            } else {
                std::thread::yield_now();
            }
        }
        outbox.resume_at(acked).unwrap();
        outbox.evict_consumer();
        inbox.evict_producer();
    }
    assert!(answered >= KILLS);
}
