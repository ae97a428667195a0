//! Property tests: the laws of `oracle.rs` for streams of packets and for hostile bytes, in any reads.

#![allow(clippy::unwrap_used, reason = "the strategies and the oracle say what must hold by unwrapping it")]

mod oracle;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use swoole_protocol::proxy::Versions;
use swoole_protocol::{EofOptions, Framing, LengthFunc, LengthOptions, LengthType};

/// Bytes of few kinds, so that eofs, halves of eofs and small lengths are frequent.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(prop_oneof![3 => select(b"ab\0\x01\x02\x05".as_slice()), 1 => any::<u8>()], 0..200)
}

/// Bytes that are often a varint, or most of one.
fn varint_bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(prop_oneof![4 => select(b"\0\x01\x05\x80\x81\xff".as_slice()), 1 => any::<u8>()], 0..200)
}

/// Bytes that are often the header of a netstring, or nearly.
fn netstring_bytes() -> impl Strategy<Value = Vec<u8>> {
    let one = prop_oneof![
        6 => "[0-2]?[0-9]:", 3 => "[0-9a]{0,9}", 1 => "[0-9]{20,30}:", 1 => "[*~:]", 1 => "[*0]{80}",
    ];
    vec(one, 0..30).prop_map(|parts| parts.concat().into_bytes())
}

/// Bytes that are often a PROXY header, or nearly, and something behind it.
fn proxy_bytes() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        2 => "PROXY TCP4 (192\\.0\\.2\\.[0-9]{1,3} ){2}[0-9]{1,5} [0-9]{1,5}\r?\n",
        1 => "PROXY TCP6 (2001:db8::[0-9a-f]{1,4} ){2}[0-9]{1,5} [0-9]{1,5}\r\n",
        1 => "PROXY UNKNOWN[ -~]{0,100}\r\n",
        1 => "PRO?XY [ -~]{0,120}",
    ];
    let fields = (select(b"\x20\x21\x22".as_slice()), select(b"\x00\x11\x12\x21\x31\x41".as_slice()));
    let tlvs = vec((select(b"\x02\x04\x20".as_slice()), vec(any::<u8>(), 0..30)), 0..4);
    let binary = (fields, vec(any::<u8>(), 0..40), tlvs, any::<bool>()).prop_map(
        |((command, family), addresses, tlvs, is_exact)| {
            let mut rest = addresses;
            let exact = match family >> 4 {
                1 => 12,
                2 => 36,
                3 => 216,
                _ => 0,
            };
            if is_exact {
                rest.resize(exact, 7);
            }
            for (kind, value) in tlvs {
                rest.extend([kind, 0, value.len() as u8]);
                rest.extend(value);
            }
            let len = (rest.len() as u16).to_be_bytes();
            [b"\r\n\r\n\0\r\nQUIT\n".as_slice(), &[command, family], &len, &rest].concat()
        },
    );
    let header = prop_oneof![line.prop_map(String::into_bytes), binary, vec(any::<u8>(), 0..30)];
    (header, vec(any::<u8>(), 0..40)).prop_map(|(header, rest)| [header, rest].concat())
}

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![vec(0..40_usize, 0..20), Just(vec![1; 200])]
}

fn eof() -> impl Strategy<Value = Vec<u8>> {
    vec(select(b"ab".as_slice()), 1..=8)
}

fn length_options() -> impl Strategy<Value = (LengthType, usize, usize)> {
    (select(LengthType::ALL.as_slice()), 0..12_usize, 0..20_usize)
}

fn framing() -> impl Strategy<Value = Framing> {
    prop_oneof![
        (eof(), any::<bool>()).prop_map(|(eof, split)| Framing::Eof(EofOptions::new(&eof, split).unwrap())),
        length_options()
            .prop_map(|(kind, at, body)| Framing::Length(LengthOptions::new(kind, at, body).unwrap())),
        Just(Framing::LengthFunc(LengthFunc::new(oracle::netstring))),
        Just(Framing::Varint),
        Just(Framing::Line),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1_000) })]

    #[test]
    fn raw_gives_every_read(max in 1..50_usize, stream in bytes(), sizes in sizes()) {
        oracle::raw(max, &stream, &sizes);
    }

    #[test]
    fn eof_split_does_not_depend_on_the_reads(
        eof in eof(), max in 1..250_usize, stream in bytes(), sizes in sizes()
    ) {
        oracle::eof_split(&eof, max, &stream, &sizes);
    }

    #[test]
    fn eof_check_joins_what_eof_split_finds(
        eof in prop_oneof![eof(), Just(b"a".to_vec()), Just(b"ab".to_vec())],
        max in 1..250_usize,
        stream in bytes(),
        sizes in sizes(),
    ) {
        oracle::eof_check(&eof, max, &stream, &sizes);
    }

    #[test]
    fn length_does_not_depend_on_the_reads(
        (kind, length_offset, body_offset) in length_options(),
        max in 1..250_usize,
        stream in bytes(),
        sizes in sizes(),
    ) {
        oracle::length(kind, length_offset, body_offset, max, &stream, &sizes);
    }

    #[test]
    fn length_func_does_not_depend_on_the_reads(
        max in prop_oneof![1..250_usize, 1..20_000_usize], stream in netstring_bytes(), sizes in sizes()
    ) {
        oracle::length_func(max, &stream, &sizes);
    }

    #[test]
    fn varint_does_not_depend_on_the_reads(
        max in prop_oneof![1..20_usize, 1..250_usize], stream in varint_bytes(), sizes in sizes()
    ) {
        oracle::varint(max, &stream, &sizes);
    }

    #[test]
    fn line_does_not_depend_on_the_reads(
        max in 1..250_usize,
        stream in vec(prop_oneof![3 => select(b"ab\r\n".as_slice()), 1 => any::<u8>()], 0..200),
        sizes in sizes(),
    ) {
        oracle::line(max, &stream, &sizes);
    }

    #[test]
    fn a_proxy_header_does_not_depend_on_the_reads(
        (v1, v2) in (any::<bool>(), any::<bool>()), stream in proxy_bytes(), sizes in sizes()
    ) {
        oracle::proxy(Versions { v1, v2 }, &stream, &sizes);
        oracle::proxy(Versions::ANY, &stream, &vec![1; stream.len()]);
    }

    #[test]
    fn packets_come_out_as_they_went_in(
        framing in framing(),
        mut payloads in vec(vec(any::<u8>(), 0..200), 0..20),
        sizes in sizes(),
    ) {
        if matches!(framing, Framing::LengthFunc(_)) {
            payloads.iter_mut().for_each(|payload| {
                payload.splice(..0, format!("{}:", payload.len()).into_bytes());
            });
        }
        if !matches!(framing, Framing::Eof(options) if !options.split()) {
            oracle::encode_then_cut(&framing, &payloads, &sizes);
        }
    }

    #[test]
    fn eof_check_gives_one_packet_a_read_when_reads_are_packets(
        eof in eof(), payloads in vec(vec(any::<u8>(), 0..200), 0..20)
    ) {
        let framing = Framing::Eof(EofOptions::new(&eof, false).unwrap());
        let packets: Vec<Vec<u8>> = payloads.into_iter().map(|payload| [payload, eof.clone()].concat()).collect();
        let outcome = oracle::feed(&framing, 250, packets.iter().map(Vec::as_slice));
        prop_assert_eq!(outcome, oracle::Outcome { packets, end: Ok(0) });
    }
}

/// A caller that breaks the contract gets wrong packets, but neither a panic nor a range outside its input.
#[test]
fn nothing_panics_on_seeded_random_bytes_and_unrelated_inputs() {
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..2_000 {
        let mut letters = random.clone();
        let eof: Vec<u8> = (0..random.usize(1..=8)).map(|_| letters.u8(0..2)).collect();
        let kind = LengthType::ALL[round % LengthType::ALL.len()];
        let offsets = (random.usize(0..10), random.usize(0..10));
        for framing in [
            Framing::Raw,
            Framing::Eof(EofOptions::new(&eof, true).unwrap()),
            Framing::Eof(EofOptions::new(&eof, false).unwrap()),
            Framing::Length(LengthOptions::new(kind, offsets.0, offsets.1).unwrap()),
            Framing::LengthFunc(LengthFunc::new(oracle::netstring)),
            Framing::Varint,
            Framing::Line,
        ] {
            let mut framer = framing.framer(random.usize(0..100));
            for _ in 0..20 {
                let input: Vec<u8> = (0..random.usize(0..120)).map(|_| random.u8(0..3)).collect();
                if let Ok(swoole_protocol::Cut::Packet { len, payload }) = framer.cut(&input) {
                    assert!(
                        len >= 1 && len <= input.len() && payload.start <= payload.end && payload.end <= len
                    );
                }
            }
        }
    }
}
