//! Descriptors, packets and hostile peers on socketpairs.

#![allow(clippy::unwrap_used, reason = "tests say what must hold by unwrapping it")]

mod support;

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::time::Duration;

use fastrand::Rng;
use rustix::fd::AsFd;
use rustix::net::SendFlags;
use support::{Process, Test};
use swoole_ipc::socketpair::{FDS_MAX, Kind, PACKET_MAX, pair};
use swoole_ipc::{Error, Receive, Transmit};

const LONG: Option<Duration> = Some(Duration::from_secs(20));

fn main() {
    let tests: [(&str, fn()); 9] = [
        ("descriptors_travel_on_packets", || descriptors_travel(Kind::SeqPacket)),
        ("descriptors_travel_on_a_stream", || descriptors_travel(Kind::Stream)),
        ("tiny_buffers_packets", || tiny_buffers(Kind::SeqPacket)),
        ("tiny_buffers_stream", || tiny_buffers(Kind::Stream)),
        ("packets_keep_their_boundaries", packets_keep_their_boundaries),
        ("packets_fill_and_drain", packets_fill_and_drain),
        ("packets_after_death", packets_after_death),
        ("garbage_on_packets", || garbage_is_found_out(Kind::SeqPacket)),
        ("garbage_on_a_stream", || garbage_is_found_out(Kind::Stream)),
    ];
    support::run(tests.map(|(name, run)| Test { name: name.to_owned(), run: Box::new(run) }).into());
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
    // The parent's end went with the closure, so the pipe ends: all copies are closed, also those nobody took.
    let mut rest = String::new();
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

fn garbage_is_found_out(kind: Kind) {
    let mut rng = Rng::with_seed(7);
    let mut message = Vec::new();
    for round in 0..2000 {
        let (ours, mut theirs) = pair(kind).unwrap();
        // Sizes, flags and counts that are possible more often than chance would have it.
        let mut packet = vec![0; rng.usize(1..200)];
        packet.fill_with(|| rng.u8(..));
        for (at, byte) in packet.iter_mut().take(8).enumerate() {
            *byte = match at {
                0 if rng.bool() => rng.u8(..200),
                4 => rng.u8(..5),
                _ if rng.u8(..8) > 0 => 0,
                _ => rng.u8(..),
            };
        }
        rustix::net::send(&ours, &packet, SendFlags::empty()).unwrap();
        drop(ours);
        // Three times, for what may follow a first message or error.
        for _ in 0..3 {
            match theirs.recv(&mut message, LONG) {
                Ok(()) => assert!(message.len() <= packet.len() - 8, "round {round}"),
                Err(Error::Corrupt(_) | Error::PeerGone) => {}
                Err(error) => panic!("round {round}: {error}"),
            }
        }
    }
}
