//! What only processes can show: death and succession, descriptors, queues of several.

#![allow(clippy::unwrap_used, reason = "tests say what must hold by unwrapping it")]

mod support;

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::num::NonZeroI32;
use std::time::Duration;

use fastrand::Rng;
use rustix::fd::AsFd;
use rustix::process::{Signal, getpid, kill_process};
use support::{Process, Test};
use swoole_ipc::msgqueue::{self, Queue, Select};
use swoole_ipc::socketpair::{FDS_MAX, Kind, PACKET_MAX, pair};
use swoole_ipc::{Doorbell, Error, Receive, Ring, Side, Transmit};

const LONG: Option<Duration> = Some(Duration::from_secs(20));
const SHORT: Option<Duration> = Some(Duration::from_millis(20));

fn main() {
    let tests: [(&str, fn()); 18] = [
        ("doorbell_rings_a_sleeper_only", doorbell_rings_a_sleeper_only),
        ("claims_are_not_inherited", claims_are_not_inherited),
        ("killed_producer_leaves_what_it_published", killed_producer_leaves_what_it_published),
        (
            "killed_consumer_leaves_what_it_did_not_acknowledge",
            killed_consumer_leaves_what_it_did_not_acknowledge,
        ),
        ("every_request_is_answered_once", every_request_is_answered_once),
        ("descriptors_travel_on_packets", || descriptors_travel(Kind::SeqPacket)),
        ("descriptors_travel_on_a_stream", || descriptors_travel(Kind::Stream)),
        ("tiny_buffers_packets", || tiny_buffers(Kind::SeqPacket)),
        ("tiny_buffers_stream", || tiny_buffers(Kind::Stream)),
        ("packets_keep_their_boundaries", packets_keep_their_boundaries),
        ("packets_fill_and_drain", packets_fill_and_drain),
        ("packets_after_death", packets_after_death),
        ("queue_is_found_by_key", queue_is_found_by_key),
        ("queue_selects_by_type", queue_selects_by_type),
        ("queue_waits_in_the_kernel", queue_waits_in_the_kernel),
        ("queue_senders_do_not_mix", queue_senders_do_not_mix),
        ("queue_removal_ends_the_wait", queue_removal_ends_the_wait),
        ("queue_channel_leaves_nothing_behind", queue_channel_leaves_nothing_behind),
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
    consumer.evict_producer();
    Process::spawn(|| {
        let mut producer = ring.producer().unwrap();
        producer.push(3, &[b"successor"]).unwrap();
        producer.publish();
        producer.close();
    })
    .join();
    assert!(consumer.is_closed());
    assert_eq!(consumer.next().unwrap().unwrap().bytes, b"published");
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

fn descriptors_travel(kind: Kind) {
    let (mut ours, mut theirs) = pair(kind).unwrap();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let ours_ref = &mut ours;
    let child = Process::spawn(move || {
        // Longer than a piece: the descriptors come with the last one.
        for message in [&b""[..], b"short", &[7; 200_000]] {
            ours_ref.send(b"without", LONG).unwrap();
            ours_ref.send_with_fds(message, &[writer.as_fd(), writer.as_fd()], LONG).unwrap();
        }
        ours_ref.send_with_fds(b"unwanted", &[writer.as_fd()], LONG).unwrap();
        let many = vec![writer.as_fd(); FDS_MAX + 1];
        assert!(matches!(
            ours_ref.send_with_fds(b"", &many, LONG),
            Err(Error::TooLarge { limit: FDS_MAX, .. })
        ));
        ours_ref.send_with_fds(b"many", &many[1..], LONG).unwrap();
    });
    drop(ours);
    let mut message = Vec::new();
    for (size, first) in [(0, None), (5, Some(b's')), (200_000, Some(7))] {
        assert!(theirs.recv_with_fds(&mut message, LONG).unwrap().is_empty());
        assert_eq!(message, b"without");
        let fds = theirs.recv_with_fds(&mut message, LONG).unwrap();
        assert_eq!((message.len(), message.first().copied(), fds.len()), (size, first, 2));
        let mut file = File::from(fds.into_iter().next().unwrap());
        file.write_all(b"x").unwrap();
    }
    theirs.recv(&mut message, LONG).unwrap();
    assert_eq!(message, b"unwanted");
    assert_eq!(theirs.recv_with_fds(&mut message, LONG).unwrap().len(), FDS_MAX);
    assert!(matches!(theirs.recv(&mut message, LONG), Err(Error::PeerGone)));
    child.join();
    // All copies are closed, also those that nobody took: the pipe ends after what was written.
    let mut rest = String::new();
    // Only this process's own end is left, which the child's closure has taken with it.
    File::from(reader).read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "xxx");
}

fn tiny_buffers(kind: Kind) {
    let (mut ours, mut theirs) = pair(kind).unwrap();
    let granted = ours.set_buffer_sizes(1).unwrap();
    assert!(granted < 8192, "{granted}");
    let message: Vec<u8> = (0..1_000_000_u32).map(|index| index as u8).collect();
    let (ours_ref, sent) = (&mut ours, &message);
    let child = Process::spawn(move || ours_ref.send(sent, LONG).unwrap());
    drop(ours);
    let mut received = Vec::new();
    theirs.recv(&mut received, LONG).unwrap();
    assert!(received == message);
    child.join();
}

fn packets_keep_their_boundaries() {
    let (ours, theirs) = pair(Kind::SeqPacket).unwrap();
    let mut buffer = vec![0; PACKET_MAX];
    assert!(matches!(theirs.recv_packet(&mut buffer), Ok(None)));
    ours.send_packet(&[IoSlice::new(b"he"), IoSlice::new(b""), IoSlice::new(b"llo")]).unwrap();
    ours.send_packet(&[IoSlice::new(&vec![3; PACKET_MAX])]).unwrap();
    assert!(matches!(theirs.recv_packet(&mut buffer), Ok(Some(5))));
    assert_eq!(&buffer[..5], b"hello");
    assert!(matches!(theirs.recv_packet(&mut buffer), Ok(Some(PACKET_MAX))));
    assert_eq!(buffer, vec![3; PACKET_MAX]);

    ours.send_packet(&[IoSlice::new(b"too long")]).unwrap();
    ours.send_packet(&[IoSlice::new(b"next")]).unwrap();
    assert!(matches!(theirs.recv_packet(&mut buffer[..7]), Err(Error::Truncated { buffer: 7 })));
    assert!(matches!(theirs.recv_packet(&mut buffer[..7]), Ok(Some(4))));
    assert!(matches!(ours.send_packet(&[IoSlice::new(b"")]), Err(Error::EmptyPacket)));
    let huge = vec![0; 16 << 20];
    assert!(matches!(ours.send_packet(&[IoSlice::new(&huge)]), Err(Error::TooLarge { .. })));

    let (stream, _other) = pair(Kind::Stream).unwrap();
    assert!(matches!(stream.send_packet(&[IoSlice::new(b"x")]), Err(Error::NotPackets)));
    assert!(matches!(stream.recv_packet(&mut buffer), Err(Error::NotPackets)));
}

fn packets_fill_and_drain() {
    let (mut ours, theirs) = pair(Kind::SeqPacket).unwrap();
    let before = ours.set_buffer_sizes(64 << 10).unwrap();
    assert!(ours.set_buffer_sizes(128 << 10).unwrap() > before);
    let mut sent = 0_u32;
    while let Ok(()) = ours.send_packet(&[IoSlice::new(&sent.to_le_bytes()), IoSlice::new(&[0; 1000])]) {
        sent += 1;
    }
    assert!(sent > 10);
    assert!(matches!(ours.send_packet(&[IoSlice::new(b"x")]), Err(Error::Full)));
    let mut buffer = [0; 2000];
    for number in 0..sent {
        assert!(matches!(theirs.recv_packet(&mut buffer), Ok(Some(1004))));
        assert_eq!(buffer[..4], number.to_le_bytes());
    }
    assert!(matches!(theirs.recv_packet(&mut buffer), Ok(None)));
    ours.send_packet(&[IoSlice::new(b"x")]).unwrap();
}

fn packets_after_death() {
    let (ours, theirs) = pair(Kind::SeqPacket).unwrap();
    // The child leaves a packet of ours unread, which the kernel reports as a reset: before what it has sent.
    theirs.send_packet(&[IoSlice::new(b"never read")]).unwrap();
    let ours_ref = &ours;
    Process::spawn(move || ours_ref.send_packet(&[IoSlice::new(b"last words")]).unwrap()).join();
    drop(ours);
    let mut buffer = [0; 100];
    assert!(matches!(theirs.recv_packet(&mut buffer), Ok(Some(10))));
    assert!(matches!(theirs.recv_packet(&mut buffer), Err(Error::PeerGone)));
    assert!(matches!(theirs.send_packet(&[IoSlice::new(b"x")]), Err(Error::PeerGone)));
}

/// A key that no other run uses at the same time.
fn key() -> NonZeroI32 {
    NonZeroI32::new(0x5357_0000 | (getpid().as_raw_pid() & 0xFFFF)).unwrap()
}

fn queue_is_found_by_key() {
    assert!(matches!(Queue::open(key()), Err(Error::Os { operation: "msgget", .. })), "nobody has made it");
    let mut queue = Queue::create(key()).unwrap();
    let mut copy = Some(Queue::create(key()).unwrap());
    assert_eq!(copy.as_ref().unwrap().id(), queue.id());
    let by_key = key();
    Process::spawn(|| {
        let mut found = Queue::open(by_key).unwrap();
        found.send(5, b"from a stranger", None).unwrap();
        // Neither a stranger nor a forked copy removes it.
        drop((found, copy.take()));
    })
    .join();
    std::mem::forget(copy);
    let mut message = Vec::new();
    assert_eq!(queue.recv(Select::Any, &mut message, LONG).unwrap(), 5);
    assert_eq!(message, b"from a stranger");
    drop(queue);
    assert!(matches!(Queue::open(key()), Err(Error::Os { .. })), "its owner has removed it");
}

fn queue_selects_by_type() {
    let mut queue = Queue::private("types").unwrap();
    let mut message = Vec::new();
    for mtype in [4, 2, 9, 2] {
        queue.try_send(mtype, &[mtype as u8]).unwrap();
    }
    assert_eq!(queue.try_recv(Select::UpTo(8), &mut message).unwrap(), 2);
    assert_eq!(queue.try_recv(Select::Type(9), &mut message).unwrap(), 9);
    assert_eq!(queue.try_recv(Select::Any, &mut message).unwrap(), 4);
    assert_eq!(message, [4]);
    assert!(matches!(queue.try_recv(Select::Type(9), &mut message), Err(Error::Empty)));
    assert!(matches!(queue.recv(Select::Type(9), &mut message, SHORT), Err(Error::Timeout)));
    assert!(matches!(queue.try_send(0, b""), Err(Error::MessageType { mtype: 0 })));
    assert!(matches!(queue.send(-1, b"", None), Err(Error::MessageType { mtype: -1 })));
    assert!(matches!(queue.try_recv(Select::UpTo(0), &mut message), Err(Error::MessageType { .. })));

    let largest = queue.piece_max();
    queue.try_recv(Select::Any, &mut message).unwrap();
    queue.try_send(1, &vec![8; largest]).unwrap();
    assert!(matches!(queue.try_send(1, &vec![8; largest + 1]), Err(Error::TooLarge { .. })));
    assert!(matches!(queue.send(1, &vec![8; 100 * largest], SHORT), Err(Error::Timeout)));
    queue.recv(Select::Any, &mut message, LONG).unwrap();
    assert_eq!(message.len(), largest);
    assert!(
        matches!(queue.recv(Select::Any, &mut message, SHORT), Err(Error::Timeout)),
        "half a message is none"
    );
}

fn queue_waits_in_the_kernel() {
    let mut queue = Queue::private("waits").unwrap();
    let queue_ref = &mut queue;
    let child = Process::spawn(move || {
        let mut message = Vec::new();
        for number in 0..200_u32 {
            queue_ref.recv(Select::Any, &mut message, None).unwrap();
            assert_eq!(message, vec![number as u8; 3000]);
        }
    });
    for number in 0..200_u32 {
        queue.send(1, &[number as u8; 3000], None).unwrap();
    }
    child.join();
}

fn queue_senders_do_not_mix() {
    const SENDERS: u8 = 3;
    const MESSAGES: usize = 20;
    let mut queue = Queue::private("senders").unwrap();
    let mut senders = Vec::new();
    for sender in 0..SENDERS {
        let queue_ref = &mut queue;
        senders.push(Process::spawn(move || {
            for number in 0..MESSAGES {
                queue_ref.send(1, &vec![sender; 50_000 + number], None).unwrap();
            }
        }));
    }
    let mut counts = [0; SENDERS as usize];
    let mut message = Vec::new();
    for _ in 0..SENDERS as usize * MESSAGES {
        queue.recv(Select::Type(1), &mut message, LONG).unwrap();
        let sender = message[0];
        let count = &mut counts[usize::from(sender)];
        assert_eq!(message.len(), 50_000 + *count);
        assert!(message.iter().all(|&byte| byte == sender));
        *count += 1;
    }
    senders.into_iter().for_each(Process::join);
    assert!(matches!(queue.try_recv(Select::Any, &mut message), Err(Error::Empty)));
}

fn queue_removal_ends_the_wait() {
    let mut queue = Queue::private("removed").unwrap();
    let taken = Doorbell::create("taken").unwrap();
    let (queue_ref, taken_ref) = (&mut queue, &taken);
    taken.arm();
    let child = Process::spawn(move || {
        let mut message = Vec::new();
        queue_ref.recv(Select::Any, &mut message, None).unwrap();
        taken_ref.ring().unwrap();
        assert!(matches!(queue_ref.recv(Select::Any, &mut message, None), Err(Error::PeerGone)));
        assert!(matches!(queue_ref.send(1, b"", None), Err(Error::PeerGone)));
    });
    queue.send(1, b"here we go", LONG).unwrap();
    assert!(taken.wait(LONG).unwrap());
    queue.remove().unwrap();
    queue.remove().unwrap();
    child.join();
}

/// Queues whose last sender was this process (proc(5), /proc/sysvipc/msg: key msqid perms cbytes qnum lspid
/// ...).
fn own_queues() -> usize {
    let table = std::fs::read_to_string("/proc/sysvipc/msg").unwrap();
    let own = getpid().to_string();
    table.lines().skip(1).filter(|line| line.split_whitespace().nth(5) == Some(&own)).count()
}

fn queue_channel_leaves_nothing_behind() {
    let used_here = || {
        let (mut sender, mut receiver) = msgqueue::channel("tidy").unwrap();
        sender.send(b"x", None).unwrap();
        receiver.recv(&mut Vec::new(), None).unwrap();
        (sender, receiver)
    };
    let (sender, receiver) = used_here();
    assert_eq!(own_queues(), 1);
    drop(sender);
    drop(receiver);
    let (sender, receiver) = used_here();
    drop(receiver);
    drop(sender);
    assert_eq!(own_queues(), 0, "either order");

    // The receiver is killed, so only the sender can do it.
    let (mut sender, receiver) = msgqueue::channel("tidy").unwrap();
    sender.send(b"x", None).unwrap();
    let mut receiver = Some(receiver);
    let mut child = Process::spawn(|| {
        let mut receiver = receiver.take().unwrap();
        receiver.recv(&mut Vec::new(), None).unwrap();
        receiver.recv(&mut Vec::new(), None).unwrap();
    });
    drop(receiver);
    assert_eq!(own_queues(), 1, "an unused copy of the receiver removes nothing");
    child.kill();
    drop(sender);
    assert_eq!(own_queues(), 0);
}
