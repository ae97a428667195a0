//! What must hold for every stream and every way it may arrive: asked by the property tests and by the fuzz targets.

use swoole_protocol::{
    Cut, EofOptions, FrameError, Framing, LENGTH_FUNC_MAX, LengthFunc, LengthOptions, LengthType, Malformed,
    PackageLength, proxy,
};

/// What a stream was cut into.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Each packet with its delimiter or header.
    pub(crate) packets: Vec<Vec<u8>>,
    /// Bytes that wait for more, or the error after the last packet.
    pub(crate) end: Result<usize, FrameError>,
}

impl Outcome {
    fn stream(&self) -> Vec<u8> {
        self.packets.concat()
    }
}

/// Feeds a framer one read after the other, as a reactor does, and holds it to the contract of [`Cut`].
pub(crate) fn feed<'a>(framing: &Framing, max: usize, reads: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let mut framer = framing.framer(max);
    let (mut buffer, mut packets) = (Vec::new(), Vec::new());
    // The promise of the last `More`: that many bytes are needed, at the least, for a packet.
    let mut needed = 1;
    for read in reads {
        buffer.extend_from_slice(read);
        loop {
            match framer.cut(&buffer) {
                Ok(Cut::Packet { len, payload }) => {
                    assert!(
                        buffer.len() >= needed,
                        "a packet although {needed} bytes were said to be needed"
                    );
                    assert!((1..=max).contains(&len), "{len} bytes of at most {max}");
                    assert_eq!(&buffer[payload], payload_of(framing, &buffer[..len]));
                    packets.push(buffer.drain(..len).collect());
                    needed = 1;
                }
                Ok(Cut::More { at_least }) => {
                    assert!(at_least >= 1);
                    assert!(buffer.len() < max, "{} bytes of at most {max} wait for more", buffer.len());
                    needed = buffer.len() + at_least;
                    break;
                }
                Err(error) => return Outcome { packets, end: Err(error) },
            }
        }
    }
    Outcome { packets, end: Ok(buffer.len()) }
}

/// What the user sees of a packet.
fn payload_of<'a>(framing: &Framing, packet: &'a [u8]) -> &'a [u8] {
    match framing {
        Framing::Eof(options) => packet.strip_suffix(options.eof()).unwrap(),
        Framing::Line => {
            let line = packet.strip_suffix(b"\n").unwrap();
            line.strip_suffix(b"\r").unwrap_or(line)
        }
        Framing::Varint => &packet[1 + packet.iter().position(|byte| *byte < 0x80).unwrap()..],
        Framing::Raw | Framing::Length(_) | Framing::LengthFunc(_) => packet,
    }
}

/// Cuts a stream into reads of the given sizes; the last read is what is left.
pub(crate) fn reads<'a>(mut stream: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
    let mut reads = Vec::new();
    for &size in sizes {
        let (read, rest) = stream.split_at(size.min(stream.len()));
        reads.push(read);
        stream = rest;
    }
    reads.push(stream);
    reads
}

/// Raw framing: every read is a packet, in pieces of `max` bytes.
pub(crate) fn raw(max: usize, stream: &[u8], sizes: &[usize]) {
    let reads = reads(stream, sizes);
    let pieces = reads.iter().flat_map(|read| read.chunks(max)).map(<[u8]>::to_vec).collect();
    assert_eq!(feed(&Framing::Raw, max, reads), Outcome { packets: pieces, end: Ok(0) });
}

/// Eof split: the packets are those of a plain search through the whole stream, however it arrives.
pub(crate) fn eof_split(eof: &[u8], max: usize, stream: &[u8], sizes: &[usize]) {
    let framing = eof_framing(eof, true);
    assert_eq!(feed(&framing, max, reads(stream, sizes)), split_at_each_eof(eof, max, stream));
}

/// Eof check: no byte is lost, every packet ends with the eof, a read that ends with the eof leaves nothing behind
/// (unless it goes over the limit). And if the eof cannot overlap itself, splitting all that came out and the rest
/// gives the packets, and the error, of eof split.
pub(crate) fn eof_check(eof: &[u8], max: usize, stream: &[u8], sizes: &[usize]) {
    let outcome = feed(&eof_framing(eof, false), max, reads(stream, sizes));
    assert!(outcome.packets.iter().all(|packet| packet.ends_with(eof)));
    let cut_off = outcome.stream();
    assert!(stream.starts_with(&cut_off));
    let rest = &stream[cut_off.len()..];
    if let Ok(left) = outcome.end {
        assert_eq!(left, rest.len());
    }
    if !eof[1..].contains(&eof[0]) {
        assert!(outcome.end.is_err() || rest.is_empty() || !stream.ends_with(eof), "an eof was overlooked");
        let mut split = Outcome { packets: Vec::new(), end: Ok(0) };
        for packet in outcome.packets.iter().map(Vec::as_slice).chain([rest]) {
            assert_eq!(split.end, Ok(0));
            let part = split_at_each_eof(eof, max, packet);
            split.packets.extend(part.packets);
            split.end = part.end;
        }
        assert_eq!(split, split_at_each_eof(eof, max, stream));
        assert!(outcome.end.is_ok() || outcome.end == split.end);
    }
}

/// Length: the packets are those of a plain walk through the whole stream, however it arrives; and a reader that
/// never reads more than it was told is missing gets the same.
pub(crate) fn length(
    kind: LengthType,
    length_offset: usize,
    body_offset: usize,
    max: usize,
    stream: &[u8],
    sizes: &[usize],
) {
    let options = LengthOptions::new(kind, length_offset, body_offset).unwrap();
    let framing = Framing::Length(options);
    let expected = walk_lengths(options, max, stream);
    assert_eq!(feed(&framing, max, reads(stream, sizes)), expected);
    assert_eq!(read_as_told(&framing, max, stream), expected);
}

/// Varint: as length.
pub(crate) fn varint(max: usize, stream: &[u8], sizes: &[usize]) {
    let expected = walk_varints(max, stream);
    assert_eq!(feed(&Framing::Varint, max, reads(stream, sizes)), expected);
    assert_eq!(read_as_told(&Framing::Varint, max, stream), expected);
}

/// A function that tells the length: as length, if it keeps its word.
pub(crate) fn length_func(max: usize, stream: &[u8], sizes: &[usize]) {
    let framing = Framing::LengthFunc(LengthFunc::new(netstring));
    let expected = walk_netstrings(max, stream);
    assert_eq!(feed(&framing, max, reads(stream, sizes)), expected);
    assert_eq!(read_as_told(&framing, max, stream), expected);
}

/// Line: the packets are those of a plain search for `\n`, however it arrives.
pub(crate) fn line(max: usize, stream: &[u8], sizes: &[usize]) {
    assert_eq!(feed(&Framing::Line, max, reads(stream, sizes)), split_at_each_eof(b"\n", max, stream));
}

const NO_NUMBER: &str = "no digits in front of the colon";

/// Decimal digits and a colon in front of so many bytes; a `*` says nothing for as long as it likes.
pub(crate) fn netstring(begin: &[u8]) -> PackageLength {
    if begin.starts_with(b"*") {
        return PackageLength::More;
    }
    let mut value: usize = 0;
    for (index, byte) in begin.iter().enumerate() {
        match byte {
            b'0'..=b'9' => value = value.saturating_mul(10).saturating_add(usize::from(byte - b'0')),
            b':' if index > 0 => return PackageLength::Bytes(value.saturating_add(index + 1)),
            // To have no bytes at all is one thing that a function can say, and must not.
            b'~' if index == 0 => return PackageLength::Bytes(0),
            _ => return PackageLength::Malformed(NO_NUMBER),
        }
    }
    PackageLength::More
}

/// Cuts a stream for a reader that never reads more than it was told is missing.
fn read_as_told(framing: &Framing, max: usize, stream: &[u8]) -> Outcome {
    let mut framer = framing.framer(max);
    let (mut begin, mut end, mut packets) = (0, 0, Vec::new());
    let result = loop {
        match framer.cut(&stream[begin..end]) {
            Ok(Cut::Packet { len, .. }) => {
                assert_eq!(len, end - begin, "nothing was read ahead");
                packets.push(stream[begin..end].to_vec());
                begin = end;
            }
            Ok(Cut::More { at_least }) if at_least <= stream.len() - end => end += at_least,
            Ok(Cut::More { .. }) => break Ok(stream.len() - begin),
            Err(error) => break Err(error),
        }
    };
    Outcome { packets, end: result }
}

/// What is encoded comes out again.
pub(crate) fn encode_then_cut(framing: &Framing, payloads: &[Vec<u8>], sizes: &[usize]) {
    let (mut stream, mut packets) = (Vec::new(), Vec::new());
    for payload in payloads {
        let start = stream.len();
        match framing.encode(payload, &mut stream) {
            Ok(()) => packets.push(stream[start..].to_vec()),
            Err(_) => assert_eq!(stream.len(), start),
        }
    }
    assert_eq!(feed(framing, usize::MAX, reads(&stream, sizes)), Outcome { packets, end: Ok(0) });
}

fn eof_framing(eof: &[u8], split: bool) -> Framing {
    Framing::Eof(EofOptions::new(eof, split).unwrap())
}

fn split_at_each_eof(eof: &[u8], max: usize, stream: &[u8]) -> Outcome {
    let (mut rest, mut packets) = (stream, Vec::new());
    loop {
        match rest.windows(eof.len()).position(|window| window == eof) {
            Some(at) if at + eof.len() <= max => {
                packets.push(rest[..at + eof.len()].to_vec());
                rest = &rest[at + eof.len()..];
            }
            None if rest.len() < max => return Outcome { packets, end: Ok(rest.len()) },
            _ => return Outcome { packets, end: Err(FrameError::TooLong { len: max + 1, max }) },
        }
    }
}

fn walk_lengths(options: LengthOptions, max: usize, stream: &[u8]) -> Outcome {
    let (mut rest, mut packets) = (stream, Vec::new());
    let header = options.header_len();
    let end = loop {
        if header > max {
            break Err(FrameError::TooLong { len: header, max });
        }
        if rest.len() < header {
            break Ok(rest.len());
        }
        let value = read_number(options.kind(), &rest[options.length_offset()..header]);
        if let Ok(value @ ..0) = i64::try_from(value) {
            break Err(FrameError::Malformed { what: Malformed::NegativeLength { value } });
        }
        let total = usize::try_from(value + options.body_offset() as i128).unwrap_or(usize::MAX);
        if total < header {
            break Err(FrameError::Malformed { what: Malformed::ShorterThanHeader { total, header } });
        }
        if total > max {
            break Err(FrameError::TooLong { len: total, max });
        }
        if total > rest.len() {
            break Ok(rest.len());
        }
        packets.push(rest[..total].to_vec());
        rest = &rest[total..];
    };
    Outcome { packets, end }
}

/// Cuts off packets of the length that `total` finds at the front of what is left: the length, or what an end there means.
fn walk(stream: &[u8], total: impl Fn(&[u8]) -> Result<Option<usize>, FrameError>, max: usize) -> Outcome {
    let (mut rest, mut packets) = (stream, Vec::new());
    let end = loop {
        match total(rest) {
            Err(error) => break Err(error),
            Ok(None) if rest.len() >= max => break Err(FrameError::TooLong { len: max + 1, max }),
            Ok(Some(len)) if len > max => break Err(FrameError::TooLong { len, max }),
            Ok(Some(len)) if len <= rest.len() => {
                packets.push(rest[..len].to_vec());
                rest = &rest[len..];
            }
            Ok(_) => break Ok(rest.len()),
        }
    };
    Outcome { packets, end }
}

fn walk_varints(max: usize, stream: &[u8]) -> Outcome {
    let total = |rest: &[u8]| {
        let seen = &rest[..rest.len().min(max).min(10)];
        let Some(last) = seen.iter().position(|byte| *byte < 0x80) else {
            let what = Malformed::VarintTooLong;
            return if seen.len() == 10 { Err(FrameError::Malformed { what }) } else { Ok(None) };
        };
        let digits = seen[..=last].iter().rev();
        let value = digits.fold(0_u128, |value, byte| value << 7 | u128::from(byte & 0x7f));
        let what = Malformed::VarintTooLong;
        let value = u64::try_from(value).map_err(|_| FrameError::Malformed { what })?;
        Ok(Some((value as usize).saturating_add(last + 1)))
    };
    walk(stream, total, max)
}

fn walk_netstrings(max: usize, stream: &[u8]) -> Outcome {
    let total = |rest: &[u8]| {
        let malformed = |what| Err(FrameError::Malformed { what });
        let seen = &rest[..rest.len().min(max).min(LENGTH_FUNC_MAX)];
        let digits = seen.iter().take_while(|byte| byte.is_ascii_digit()).count();
        match (digits, seen.get(digits)) {
            (0, Some(b'*')) | (_, None) if seen.len() == LENGTH_FUNC_MAX && max > LENGTH_FUNC_MAX => {
                malformed(Malformed::LengthUnknown)
            }
            (0, Some(b'*')) | (_, None) => Ok(None),
            (0, Some(b'~')) => malformed(Malformed::NoBytes),
            (1.., Some(b':')) => {
                let value = seen[..digits].iter().fold(0_usize, |value, digit| {
                    value.saturating_mul(10).saturating_add(usize::from(digit - b'0'))
                });
                Ok(Some(value.saturating_add(digits + 1)))
            }
            _ => malformed(Malformed::LengthFunc { why: NO_NUMBER }),
        }
    };
    walk(stream, total, max)
}

fn read_number(kind: LengthType, field: &[u8]) -> i128 {
    fn array<const N: usize>(field: &[u8]) -> [u8; N] {
        field.try_into().unwrap()
    }
    match kind {
        LengthType::I8 => i8::from_ne_bytes(array(field)).into(),
        LengthType::U8 => field[0].into(),
        LengthType::I16 => i16::from_ne_bytes(array(field)).into(),
        LengthType::U16 => u16::from_ne_bytes(array(field)).into(),
        LengthType::U16Be => u16::from_be_bytes(array(field)).into(),
        LengthType::U16Le => u16::from_le_bytes(array(field)).into(),
        LengthType::I32 => i32::from_ne_bytes(array(field)).into(),
        LengthType::U32 => u32::from_ne_bytes(array(field)).into(),
        LengthType::U32Be => u32::from_be_bytes(array(field)).into(),
        LengthType::U32Le => u32::from_le_bytes(array(field)).into(),
        LengthType::I64 => i64::from_ne_bytes(array(field)).into(),
        LengthType::U64 => u64::from_ne_bytes(array(field)).into(),
        LengthType::U64Be => u64::from_be_bytes(array(field)).into(),
        LengthType::U64Le => u64::from_le_bytes(array(field)).into(),
    }
}

/// A PROXY header: what the first bytes say, all of them say; what is found ends within them, and says the same of a stream
/// that goes on otherwise.
pub(crate) fn proxy(versions: proxy::Versions, stream: &[u8], sizes: &[usize]) {
    let whole = proxy::parse(stream, versions);
    let mut came = 0;
    for read in reads(stream, sizes) {
        came += read.len();
        let found = proxy::parse(&stream[..came], versions);
        assert!(found == Ok(None) || found == whole, "{found:?} of {came} bytes, {whole:?} of all");
        if let Ok(Some(header)) = found {
            assert!((1..=came).contains(&header.len));
            assert_eq!(proxy::parse(&stream[..header.len], versions), found);
            assert_eq!(proxy::parse(&stream[..header.len - 1], versions), Ok(None));
            assert!(header.len <= if stream[0] == b'P' { proxy::V1_MAX } else { proxy::V2_MAX });
        }
        assert!(found != Ok(None) || came < proxy::V2_MAX, "{came} bytes wait for more");
    }
}
