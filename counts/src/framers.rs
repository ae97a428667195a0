//! The framers: what it costs to find one packet in a stream.

use std::hint::black_box;

use swoole_protocol::{Cut, EofOptions, Framer, Framing, LengthFunc, LengthOptions, PackageLength};

use crate::Benchmark;

pub(crate) const BENCHMARKS: &[Benchmark] = &[
    ("framer/raw", |times| packets(Framing::Raw, 1, times)),
    ("framer/eof-16-in-a-read", |times| packets(lines(), 16, times)),
    ("framer/length-16-in-a-read", |times| packets(lengths(), 16, times)),
    ("framer/length-1-in-a-read", |times| packets(lengths(), 1, times)),
    ("framer/length-header-in-two", header_in_two),
    ("framer/length-func-16-in-a-read", |times| packets(told_lengths(), 16, times)),
    ("framer/varint-16-in-a-read", |times| packets(Framing::Varint, 16, times)),
    ("framer/line-16-in-a-read", |times| packets(Framing::Line, 16, times)),
];

/// Bytes of a packet, delimiter or header included.
const PACKET: usize = 128;

const PACKAGE_MAX_LENGTH: usize = 64 << 10;

fn lines() -> Framing {
    Framing::Eof(EofOptions::new(b"\r\n", true).expect("two bytes are a delimiter"))
}

fn lengths() -> Framing {
    Framing::Length(LengthOptions::default())
}

/// What `lengths` describes, said by a function.
fn told_lengths() -> Framing {
    Framing::LengthFunc(LengthFunc::new(|begin| match begin.first_chunk() {
        Some(length) => PackageLength::Bytes(4 + u32::from_be_bytes(*length) as usize),
        None => PackageLength::More,
    }))
}

/// A read's worth of packets.
fn stream(framing: &Framing, packets: usize) -> Vec<u8> {
    let (header, overhead): (&[u8], _) = match framing {
        Framing::Raw => (&[], 0),
        Framing::Eof(options) => (&[], options.eof().len()),
        Framing::Length(options) => (&[], options.body_offset()),
        // The function's packets have their header before they are encoded.
        Framing::LengthFunc(_) => (&(PACKET as u32 - 4).to_be_bytes(), 4),
        Framing::Varint | Framing::Line => (&[], 1),
    };
    let payload = [header, &[b'x'; PACKET][overhead..]].concat();
    let mut stream = Vec::new();
    for _ in 0..packets {
        framing.encode(&payload, &mut stream).expect("an ordinary packet");
    }
    assert_eq!(stream.len(), packets * PACKET);
    stream
}

/// The length of the packet that is there.
fn cut(framer: &mut Framer, input: &[u8]) -> usize {
    match framer.cut(input).expect("an ordinary stream") {
        Cut::Packet { len, payload } => {
            black_box(payload);
            len
        }
        Cut::More { .. } => panic!("the packet is whole"),
    }
}

/// So many packets in each read.
fn packets(framing: Framing, in_a_read: usize, times: usize) {
    let stream = stream(&framing, in_a_read);
    let mut framer = black_box(framing).framer(PACKAGE_MAX_LENGTH);
    for _ in 0..times / in_a_read {
        let mut rest = black_box(&stream[..]);
        while !rest.is_empty() {
            rest = &rest[cut(&mut framer, rest)..];
        }
    }
}

/// The first read ends in the middle of the header, the second brings the rest of the packet.
fn header_in_two(times: usize) {
    let stream = stream(&lengths(), 1);
    let mut framer = black_box(lengths()).framer(PACKAGE_MAX_LENGTH);
    for _ in 0..times {
        let first = framer.cut(black_box(&stream[..2])).expect("the beginning of an ordinary stream");
        assert_eq!(first, Cut::More { at_least: 2 });
        cut(&mut framer, black_box(&stream));
    }
}
