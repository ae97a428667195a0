//! Datagrams: who sends them, and what they look like between reactor and worker.
//!
//! A datagram belongs to no connection: it has its sender's address with it, and nothing is kept of who has sent one, so
//! whoever forges addresses costs no memory. Where a packet's record has its session, that of a datagram has the name of
//! its listener ([`Session::of_listener`](crate::session::Session::of_listener)), which is never a session. The payload
//! is the address of the other side, then the bytes:
//!
//! | kind: u8 | address |
//! |---|---|
//! | 0 | none: a unix socket that is bound to nothing |
//! | 1, 2 | a path, a name in the abstract namespace: length: u8, bytes |
//! | 4 | port: u16, 4 bytes |
//! | 6 | port: u16, 16 bytes, flow: u32, scope: u32 |
//!
//! All integers are little-endian. An answer may be larger than a record: it travels in [`pieces`].

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use swoole_reactor::DatagramPeer;

use crate::config::{Address, Listen};
use crate::error::{Error, Result};

/// Bytes of the longest datagram that can be sent: what UDP over IPv4 carries. The same for unix sockets.
pub(crate) const DATAGRAM_MAX: usize = 65_507;
/// Bytes of the longest address.
const ADDRESS_MAX: usize = 2 + PATH_MAX;
/// Bytes of a unix socket's path, and of a name in the abstract namespace (unix(7)).
const PATH_MAX: usize = 107;
/// Bytes of the longest answer with its address.
pub(crate) const PAYLOAD_MAX: usize = ADDRESS_MAX + DATAGRAM_MAX;
/// Bytes before those of a piece: where it begins, and how many bytes the whole has.
pub(crate) const PIECE_HEAD: usize = 8;

/// Who has sent a datagram, and at which of the server's addresses it came in: where an answer goes
/// ([`Worker::send_to`](crate::Worker::send_to)). It is a value like any other, which may be kept, or made from an address
/// that is known otherwise.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct DatagramClient {
    /// The listener: its index in the configuration's `listen`.
    pub listener: u16,
    /// The address of the client's socket. Over UDP anybody can write any address there.
    pub peer: DatagramPeer,
}

impl DatagramClient {
    /// Whoever has this address, by this listener.
    pub fn new(listener: u16, peer: DatagramPeer) -> DatagramClient {
        DatagramClient { listener, peer }
    }

    /// Its IP address; `None` over a unix socket.
    pub fn ip(&self) -> Option<IpAddr> {
        match &self.peer {
            DatagramPeer::Inet(address) => Some(address.ip()),
            _ => None,
        }
    }
}

impl fmt::Display for DatagramClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.peer.fmt(f)
    }
}

/// An answer as it travels, if it can be sent by one of these listeners.
pub(crate) fn answer(addresses: &[Listen], to: &DatagramClient, bytes: &[u8]) -> Result<Vec<u8>> {
    let listen = addresses.get(usize::from(to.listener)).filter(|listen| listen.address.is_datagram());
    let Some(listen) = listen else { return Err(Error::NoSuchListener { listener: to.listener }) };
    if bytes.len() > DATAGRAM_MAX {
        return Err(Error::DatagramTooLong { to: to.clone(), len: bytes.len(), max: DATAGRAM_MAX });
    }
    let is_name = |name: &[u8]| (1..=PATH_MAX).contains(&name.len());
    let fits = match (&listen.address, &to.peer) {
        (_, DatagramPeer::Unnamed) => return Err(Error::Unnamed),
        (Address::Udp(own), DatagramPeer::Inet(peer)) => own.is_ipv4() == peer.is_ipv4(),
        (Address::UnixDatagram(_), DatagramPeer::Unix(path)) => {
            let path = path.as_os_str().as_bytes();
            is_name(path) && !path.contains(&0)
        }
        (Address::UnixDatagram(_), DatagramPeer::Abstract(name)) => is_name(name),
        _ => false,
    };
    if !fits {
        return Err(Error::Unreachable { to: to.clone(), listen: listen.url() });
    }
    let mut payload = Vec::with_capacity(ADDRESS_MAX + bytes.len());
    encode(&to.peer, &mut payload);
    payload.extend_from_slice(bytes);
    Ok(payload)
}

/// Writes an address behind what is there; a name that is longer than any can be, as none.
pub(crate) fn encode(peer: &DatagramPeer, into: &mut Vec<u8>) {
    let mut name = |kind: u8, bytes: &[u8]| {
        into.extend([kind, bytes.len() as u8]);
        into.extend_from_slice(bytes);
    };
    match peer {
        DatagramPeer::Unix(path) if path.as_os_str().len() <= PATH_MAX => {
            name(1, path.as_os_str().as_bytes())
        }
        DatagramPeer::Abstract(bytes) if bytes.len() <= PATH_MAX => name(2, bytes),
        DatagramPeer::Inet(SocketAddr::V4(address)) => {
            into.push(4);
            into.extend(address.port().to_le_bytes());
            into.extend(address.ip().octets());
        }
        DatagramPeer::Inet(SocketAddr::V6(address)) => {
            into.push(6);
            into.extend(address.port().to_le_bytes());
            into.extend(address.ip().octets());
            into.extend(address.flowinfo().to_le_bytes());
            into.extend(address.scope_id().to_le_bytes());
        }
        _ => into.push(0),
    }
}

/// The address and the bytes behind it; `None` for what nobody writes.
pub(crate) fn decode(payload: &[u8]) -> Option<(DatagramPeer, &[u8])> {
    let (kind, rest) = payload.split_first()?;
    let (peer, rest) = match kind {
        0 => (DatagramPeer::Unnamed, rest),
        1 | 2 => {
            let (len, rest) = rest.split_first()?;
            let (name, rest) = rest.split_at_checked((*len).into())?;
            let name = name.to_vec();
            let path = |name| PathBuf::from(OsString::from_vec(name));
            if name.len() > PATH_MAX {
                return None;
            }
            (if *kind == 1 { DatagramPeer::Unix(path(name)) } else { DatagramPeer::Abstract(name) }, rest)
        }
        4 => {
            let (port, rest) = rest.split_first_chunk()?;
            let (octets, rest) = rest.split_first_chunk::<4>()?;
            let address = (Ipv4Addr::from(*octets), u16::from_le_bytes(*port));
            (DatagramPeer::Inet(address.into()), rest)
        }
        6 => {
            let (port, rest) = rest.split_first_chunk()?;
            let (octets, rest) = rest.split_first_chunk::<16>()?;
            let (flow, rest) = rest.split_first_chunk()?;
            let (scope, rest) = rest.split_first_chunk()?;
            let (flow, scope) = (u32::from_le_bytes(*flow), u32::from_le_bytes(*scope));
            let address = SocketAddrV6::new(Ipv6Addr::from(*octets), u16::from_le_bytes(*port), flow, scope);
            (DatagramPeer::Inet(address.into()), rest)
        }
        _ => return None,
    };
    Some((peer, rest))
}

/// Bytes of the datagram in this payload.
pub(crate) fn len_of(payload: &[u8]) -> usize {
    decode(payload).map_or(payload.len(), |(_, bytes)| bytes.len())
}

/// An answer in pieces of at most `max` bytes, each behind its place and the length of the whole: u32, u32.
pub(crate) fn pieces(payload: &[u8], max: usize) -> impl Iterator<Item = Vec<u8>> + '_ {
    let step = max.saturating_sub(PIECE_HEAD).max(1);
    (0..payload.len().max(1)).step_by(step).map(move |start| {
        let piece = &payload[start..payload.len().min(start + step)];
        [&(start as u32).to_le_bytes(), &(payload.len() as u32).to_le_bytes(), piece].concat()
    })
}

/// Puts the pieces of one answer together. They come one behind the other; what does not fit is nobody's.
#[derive(Debug, Default)]
pub(crate) struct Assembly(Vec<u8>);

/// A piece that does not belong where it came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Misplaced;

impl Assembly {
    /// The whole, when this was its last piece.
    pub(crate) fn add<'a>(&'a mut self, piece: &'a [u8]) -> Result<Option<&'a [u8]>, Misplaced> {
        let (start, rest) = piece.split_first_chunk().ok_or(Misplaced)?;
        let (total, bytes) = rest.split_first_chunk().ok_or(Misplaced)?;
        let (start, total) = (u32::from_le_bytes(*start) as usize, u32::from_le_bytes(*total) as usize);
        if start == 0 {
            self.0.clear();
            if bytes.len() == total {
                return Ok(Some(bytes));
            }
        }
        if start != self.0.len() || total > PAYLOAD_MAX || start + bytes.len() > total {
            self.0.clear();
            return Err(Misplaced);
        }
        self.0.extend_from_slice(bytes);
        Ok((self.0.len() == total).then_some(&self.0[..]))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn peer() -> impl Strategy<Value = DatagramPeer> {
        prop_oneof![
            Just(DatagramPeer::Unnamed),
            any::<([u8; 4], u16)>().prop_map(|at| DatagramPeer::Inet(at.into())),
            any::<([u8; 16], u16, u32, u32)>().prop_map(|(ip, port, flow, scope)| {
                DatagramPeer::Inet(SocketAddrV6::new(ip.into(), port, flow, scope).into())
            }),
            proptest::collection::vec(1..=255_u8, 1..=PATH_MAX)
                .prop_map(|path| DatagramPeer::Unix(OsString::from_vec(path).into())),
            proptest::collection::vec(any::<u8>(), 1..=PATH_MAX).prop_map(DatagramPeer::Abstract),
        ]
    }

    proptest! {
        #[test]
        fn addresses_survive_the_trip(peer in peer(), bytes: Vec<u8>) {
            let mut payload = Vec::new();
            encode(&peer, &mut payload);
            prop_assert!(payload.len() <= ADDRESS_MAX);
            payload.extend(&bytes);
            prop_assert_eq!(len_of(&payload), bytes.len());
            prop_assert_eq!(decode(&payload), Some((peer, &bytes[..])));
        }

        #[test]
        fn any_bytes_decode_or_do_not(payload in proptest::collection::vec(any::<u8>(), 0..160)) {
            if let Some((peer, bytes)) = decode(&payload) {
                let mut again = Vec::new();
                encode(&peer, &mut again);
                again.extend(bytes);
                prop_assert_eq!(again, payload);
            }
        }

        #[test]
        fn pieces_make_up_the_whole(payload in proptest::collection::vec(any::<u8>(), 1..3000), max in 9..500_usize) {
            // What another one has left begun does not matter.
            let mut assembly = Assembly(vec![1, 2, 3]);
            let pieces: Vec<Vec<u8>> = pieces(&payload, max).collect();
            for (index, piece) in pieces.iter().enumerate() {
                prop_assert!(piece.len() <= max);
                let whole = assembly.add(piece).unwrap().map(<[u8]>::to_vec);
                prop_assert_eq!(whole, (index + 1 == pieces.len()).then(|| payload.clone()));
            }
        }

        /// A worker may write anything; what it costs is bounded, and nothing comes of half of it.
        #[test]
        fn no_pieces_cost_more_than_one_answer(
            pieces in proptest::collection::vec((0..40_u32, 0..40_u32, 0..20_usize), 0..40),
        ) {
            let mut assembly = Assembly::default();
            for (start, total, len) in pieces {
                let piece = [&start.to_le_bytes()[..], &total.to_le_bytes(), &vec![7; len]].concat();
                if let Ok(Some(whole)) = assembly.add(&piece) {
                    prop_assert_eq!(whole.len(), total as usize);
                }
                prop_assert!(assembly.0.len() <= PAYLOAD_MAX);
            }
        }
    }

    #[test]
    fn what_cannot_be_sent_is_told_why() {
        let addresses: Vec<Listen> =
            ["tcp://127.0.0.1:1", "udp://127.0.0.1:2", "udp://[::1]:3", "unixgram:///run/a"]
                .map(|address| address.parse().unwrap())
                .into();
        let inet = |text: &str| DatagramPeer::Inet(text.parse().unwrap());
        let unix = |len: usize| DatagramPeer::Unix("x".repeat(len).into());
        let refused = |listener, peer| {
            answer(&addresses, &DatagramClient::new(listener, peer), b"x")
                .err()
                .map(|error| error.to_string())
        };
        assert_eq!(refused(1, inet("10.0.0.1:4")), None);
        assert_eq!(refused(2, inet("[::2]:4")), None);
        assert_eq!((refused(3, unix(107)), refused(3, DatagramPeer::Abstract(vec![0; 107]))), (None, None));
        for (listener, peer, complaint) in [
            (0, inet("10.0.0.1:4"), "listener 0 takes no datagrams"),
            (4, inet("10.0.0.1:4"), "listener 4 takes no datagrams"),
            (1, inet("[::2]:4"), "[::2]:4 cannot be reached from udp://127.0.0.1:2"),
            (1, unix(1), "x cannot be reached from udp://127.0.0.1:2"),
            (3, inet("10.0.0.1:4"), "10.0.0.1:4 cannot be reached from unixgram:///run/a"),
            (3, DatagramPeer::Unnamed, "the client's socket is bound to no name, so it cannot be answered"),
        ] {
            assert_eq!(refused(listener, peer).unwrap(), format!("send a datagram: {complaint}"));
        }
        assert!(refused(3, unix(108)).is_some_and(|error| error.ends_with("unixgram:///run/a")));
        let to = DatagramClient::new(1, inet("10.0.0.1:4"));
        assert!(answer(&addresses, &to, &[0; DATAGRAM_MAX]).is_ok());
        assert_eq!(
            answer(&addresses, &to, &[0; DATAGRAM_MAX + 1]).unwrap_err().to_string(),
            "send a datagram to 10.0.0.1:4: 65508 bytes, at most 65507 can be sent at once"
        );
    }
}
