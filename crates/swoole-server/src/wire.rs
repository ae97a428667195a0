//! What travels between a reactor and a worker, byte by byte.
//!
//! One record is one message: a 32-bit tag (kind in the low byte, flags above it), a fixed header,
//! the payload. Both link kinds carry the same records: the ring has a place for the tag of its
//! own, the socketpair puts it in front.
//!
//! | direction | header after the tag | payload |
//! |---|---|---|
//! | request | session: u64, total: u32 (bytes of the whole packet), stamp: u32 (when it came, or 0) | the packet, or a fragment of it |
//! | batch of requests | session: u64, total: u32 (packets), stamp: u32 | what was received, then for each packet in it where it begins and ends: u32, u32 |
//! | reply | session: u64, ack: u64 (requests finished) | bytes for the client; of a bind, the user: u64; or an order ([`crate::audience`]), or a measure ([`crate::measure`]) |
//! | datagram | of its listener; as above | the client's address and the bytes ([`crate::datagram`]), of a reply a piece of that |
//!
//! All integers are little-endian. What comes from a worker is checked before it is believed.

use std::ops::Range;

use crate::audience::Order;
use crate::datagram::PIECE_HEAD;
use crate::measure::Measure;
use crate::session::Session;
use crate::shed::Stamp;

/// Bytes of either header.
pub(crate) const HEADER: usize = 16;

/// What a request record is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum RequestKind {
    /// A whole packet or a fragment of one.
    Packet = 1,
    /// A client has connected.
    Connect = 2,
    /// A connection is gone.
    Close = 3,
    /// Several whole packets of one connection.
    Batch = 4,
    /// As much waits for a client as [`buffer_high_watermark`](crate::Config::buffer_high_watermark) says.
    BufferFull = 5,
    /// And that has gone down.
    BufferEmpty = 6,
    /// A packet that is shed, in its place among the others; without its bytes.
    Shed = 9,
    /// A datagram, or a fragment of one.
    Datagram = 16,
}

impl RequestKind {
    /// Whether it stands for packets: what clients have sent, and a worker is to answer.
    #[inline]
    pub(crate) fn is_packet(self) -> bool {
        use RequestKind::{Batch, Datagram, Packet, Shed};
        matches!(self, Packet | Batch | Shed | Datagram)
    }
}

/// What a reply record asks of the reactor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum ReplyKind {
    /// Nothing: it only carries an ack.
    Ack = 1,
    /// Send the payload to the session.
    Send = 2,
    /// Close the session after what was sent before has gone out.
    Close = 3,
    /// Do something for many clients, or for one's topics: [`Order`].
    Order = 4,
    /// Bind the session to the user that the payload names.
    Bind = 8,
    /// Do something with the session's connection: [`Measure`].
    Measure = 16,
    /// Send a datagram, of which this is a piece.
    Datagram = 32,
}

/// The last fragment of its packet (a whole packet is its own last fragment).
pub(crate) const LAST: u32 = 1 << 8;
/// The first fragment of its packet.
pub(crate) const FIRST: u32 = 1 << 9;
/// Everything up to and with this record stands: the handler has returned, and `ack` is final.
pub(crate) const COMMIT: u32 = 1 << 10;

/// A decoded request header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Request {
    pub(crate) kind: RequestKind,
    pub(crate) first: bool,
    pub(crate) last: bool,
    pub(crate) session: Session,
    /// Bytes of the whole packet; of a batch, how many packets. Less than 4 GiB.
    pub(crate) total: usize,
    /// When it came; 0 where that matters to nobody.
    pub(crate) stamp: Stamp,
}

/// Bytes that say where one packet of a batch stands.
pub(crate) const PLACE: usize = 8;

/// Where a packet stands in the bytes of a batch, to be written behind them.
#[inline]
pub(crate) fn place(packet: &Range<usize>) -> [u8; PLACE] {
    (packet.start as u64 | (packet.end as u64) << 32).to_le_bytes()
}

/// Packet number `index` of a batch of `count`, whose payload this is.
#[inline]
pub(crate) fn packet_of(payload: &[u8], index: usize, count: usize) -> Option<&[u8]> {
    let places = payload.len().checked_sub(count.checked_mul(PLACE)?)?;
    let at = places.checked_add(index.checked_mul(PLACE)?)?;
    let place = u64::from_le_bytes(*payload.get(at..)?.first_chunk()?);
    payload[..places].get(place as u32 as usize..(place >> 32) as usize)
}

/// A decoded reply header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Reply {
    pub(crate) kind: ReplyKind,
    pub(crate) commit: bool,
    pub(crate) session: Session,
    pub(crate) ack: u64,
}

/// The user that a bind names.
pub(crate) fn uid_of(payload: &[u8]) -> u64 {
    payload.first_chunk().map_or(0, |uid| u64::from_le_bytes(*uid))
}

/// A record that no correct peer writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("malformed record: tag {tag:#x}, {len} bytes")]
pub(crate) struct Malformed {
    pub(crate) tag: u32,
    pub(crate) len: usize,
}

#[inline]
fn words(a: u64, b: u64) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(&a.to_le_bytes());
    header[8..].copy_from_slice(&b.to_le_bytes());
    header
}

#[inline]
fn split(tag: u32, record: &[u8]) -> Result<(u64, u64, &[u8]), Malformed> {
    let malformed = Malformed { tag, len: record.len() };
    let (a, rest) = record.split_first_chunk::<8>().ok_or(malformed)?;
    let (b, payload) = rest.split_first_chunk::<8>().ok_or(malformed)?;
    Ok((u64::from_le_bytes(*a), u64::from_le_bytes(*b), payload))
}

impl Request {
    #[inline]
    pub(crate) fn tag(&self) -> u32 {
        self.kind as u32 | if self.first { FIRST } else { 0 } | if self.last { LAST } else { 0 }
    }

    #[inline]
    pub(crate) fn header(&self) -> [u8; HEADER] {
        words(self.session.raw(), self.total as u64 & u64::from(u32::MAX) | u64::from(self.stamp) << 32)
    }

    #[inline]
    pub(crate) fn decode(tag: u32, record: &[u8]) -> Result<(Request, &[u8]), Malformed> {
        let (session, total, payload) = split(tag, record)?;
        let kind = match tag & 0xff {
            1 => RequestKind::Packet,
            2 => RequestKind::Connect,
            3 => RequestKind::Close,
            4 => RequestKind::Batch,
            5 => RequestKind::BufferFull,
            6 => RequestKind::BufferEmpty,
            9 => RequestKind::Shed,
            16 => RequestKind::Datagram,
            _ => return Err(Malformed { tag, len: record.len() }),
        };
        let request = Request {
            kind,
            first: tag & FIRST != 0,
            last: tag & LAST != 0,
            session: Session::from_raw(session),
            total: total as u32 as usize,
            stamp: (total >> 32) as Stamp,
        };
        Ok((request, payload))
    }
}

impl Reply {
    #[inline]
    pub(crate) fn tag(&self) -> u32 {
        self.kind as u32 | if self.commit { COMMIT } else { 0 }
    }

    #[inline]
    pub(crate) fn header(&self) -> [u8; HEADER] {
        words(self.session.raw(), self.ack)
    }

    #[inline]
    pub(crate) fn decode(tag: u32, record: &[u8]) -> Result<(Reply, &[u8]), Malformed> {
        let (session, ack, payload) = split(tag, record)?;
        let kind = match tag & 0xff {
            1 => ReplyKind::Ack,
            2 => ReplyKind::Send,
            3 => ReplyKind::Close,
            kind => rare(kind, payload).ok_or(Malformed { tag, len: record.len() })?,
        };
        Ok((Reply { kind, commit: tag & COMMIT != 0, session: Session::from_raw(session), ack }, payload))
    }
}

/// Kinds that few replies are of, beside those that are on every packet's way.
#[cold]
fn rare(kind: u32, payload: &[u8]) -> Option<ReplyKind> {
    match kind {
        4 if Order::decode(payload).is_some() => Some(ReplyKind::Order),
        8 if payload.len() == size_of::<u64>() => Some(ReplyKind::Bind),
        16 if Measure::decode(payload).is_some() => Some(ReplyKind::Measure),
        32 if payload.len() >= PIECE_HEAD => Some(ReplyKind::Datagram),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_malformed(tag: u32, record in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok((request, payload)) = Request::decode(tag, &record) {
                prop_assert_eq!(payload, &record[HEADER..]);
                let header = request.header();
                prop_assert_eq!(&header[..], &record[..HEADER]);
            }
            if let Ok((reply, payload)) = Reply::decode(tag, &record) {
                prop_assert_eq!(payload, &record[HEADER..]);
                let header = reply.header();
                prop_assert_eq!(&header[..], &record[..HEADER]);
            }
        }
    }

    proptest! {
        #[test]
        fn packets_of_a_batch_stand_where_they_were_put(packets in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..20), 1..20))
        {
            let (mut payload, mut places) = (Vec::new(), Vec::new());
            for packet in &packets {
                places.extend(place(&(payload.len()..payload.len() + packet.len())));
                payload.extend(packet);
            }
            payload.extend(places);
            for (index, packet) in packets.iter().enumerate() {
                prop_assert_eq!(packet_of(&payload, index, packets.len()), Some(&packet[..]));
            }
        }

        #[test]
        fn no_place_lies_outside(payload: Vec<u8>, index: usize, count: usize) {
            let _ = packet_of(&payload, index, count);
        }
    }

    #[test]
    fn headers_survive_the_trip() {
        let request = Request {
            kind: RequestKind::Packet,
            first: true,
            last: false,
            session: Session::new(7, 9),
            total: 1_500_000,
            stamp: 77,
        };
        let mut record = request.header().to_vec();
        record.extend_from_slice(b"abc");
        assert_eq!(Request::decode(request.tag(), &record), Ok((request, &b"abc"[..])));

        let reply = Reply { kind: ReplyKind::Send, commit: true, session: Session::new(0, 1), ack: 42 };
        assert_eq!(Reply::decode(reply.tag(), &reply.header()), Ok((reply, &b""[..])));
    }
}
