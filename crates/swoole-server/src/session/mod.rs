//! Sessions: how a client is known in every process.
//!
//! A [`Session`] says where the server keeps the connection and which tenant of that place it is. It is never given
//! twice within a server's life, so a stale one can only miss, never hit somebody else.
//!
//! What a worker may ask about a connection stands in shared memory, in the [`SessionTable`].

mod divisor;
mod table;

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::{Address, Listen};
pub(crate) use table::{Generations, SessionTable, write_locked};

/// A client's connection, from its accept to its close.
///
/// 64 bits: 26 of its place, which is the slot times the number of reactors plus the reactor, and 38 of the place's
/// generation, which begins at 1. The text form is the number; 0 is never a session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Session(u64);

const PLACE_BITS: u32 = 26;

/// The last tenant of a place: after 2^38 of them (half a year of 20,000 a second in one place) it is given to nobody
/// any more.
const GENERATION_MAX: u64 = u64::MAX >> PLACE_BITS;

impl Session {
    pub(crate) fn new(place: u32, generation: u64) -> Session {
        debug_assert!(place >> PLACE_BITS == 0 && generation <= GENERATION_MAX);
        Session(generation << PLACE_BITS | u64::from(place))
    }

    #[inline]
    pub(crate) const fn from_raw(raw: u64) -> Session {
        Session(raw)
    }

    #[inline]
    pub(crate) fn raw(self) -> u64 {
        self.0
    }

    /// What stands in a session's place where datagrams of this listener are concerned. It has the generation that no
    /// session has.
    pub(crate) const fn of_listener(listener: u16) -> Session {
        Session(listener as u64 + 1)
    }

    /// The listener, if it is that of datagrams.
    #[inline]
    pub(crate) fn listener(self) -> Option<u16> {
        if self.generation() > 0 { None } else { u16::try_from(self.0.checked_sub(1)?).ok() }
    }

    #[inline]
    fn place(self) -> u32 {
        self.0 as u32 & ((1 << PLACE_BITS) - 1)
    }

    fn generation(self) -> u64 {
        self.0 >> PLACE_BITS
    }

    /// Whether its place will have no other tenant.
    pub(crate) fn is_last(self) -> bool {
        self.generation() == GENERATION_MAX
    }
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({} = place {}, #{})", self.0, self.place(), self.generation())
    }
}

impl FromStr for Session {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Session, Self::Err> {
        text.parse().map(Session)
    }
}

/// What is known of a connected session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct SessionInfo {
    /// The session itself.
    pub session: Session,
    /// The reactor that owns it, from 0: a thread of the master, or in Base mode the worker of the same number.
    pub reactor: u16,
    /// The listener it came in by: its index in the configuration's `listen`.
    pub listener: u16,
    /// The listener's port; 0 for a unix socket.
    pub port: u16,
    /// The client's address, as a trusted proxy has told it if there is one
    /// ([`proxy_protocol`](crate::Config::proxy_protocol)); `None` for a unix socket. An IPv4 one is one, also where the
    /// listener is for IPv6, too.
    pub peer: Option<SocketAddr>,
    /// When it was accepted: milliseconds since the Unix epoch.
    pub connected_at: u64,
    /// Bytes received from the client so far.
    pub received: u64,
    /// Bytes handed to the socket for the client so far.
    pub sent: u64,
    /// The user that it is bound to ([`Worker::bind`](crate::Worker::bind)), 1..; `None` if to nobody.
    pub uid: Option<u64>,
    /// When it was read from last, and sent to last: milliseconds since the Unix epoch, as exact as the kernel's tick (1 to
    /// 10 ms); `None` if never.
    pub received_at: Option<u64>,
    /// See `received_at`.
    pub sent_at: Option<u64>,
    /// Bytes of replies that its reactor had for it, and the kernel had not taken, when it was last sent to, or when all
    /// of them were taken: what counts against `socket_buffer_size`.
    pub pending: u64,
    /// It is not read from ([`Worker::pause`](crate::Worker::pause), or `enable_delay_receive`).
    pub paused: bool,
    /// Limits on how long a client may be silent do not apply to it ([`Worker::protect`](crate::Worker::protect)).
    pub protected: bool,
}

/// What holds for a session or does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub(crate) enum Flag {
    /// Its client is not read from.
    Paused = 1,
    /// Limits on how long a client may be silent do not apply to it.
    Protected = 2,
    /// Its home worker was told that too much waits for it.
    High = 4,
}

/// What the reactor knows when it opens a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Arrival {
    pub(crate) listener: u16,
    pub(crate) port: u16,
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) connected_at: u64,
}

impl Arrival {
    /// A connection that was accepted just now, on the listener of this number.
    pub(crate) fn new(listen: &Listen, listener: u16, peer: Option<SocketAddr>) -> Arrival {
        let port = match listen.address {
            Address::Tcp(address) => address.port(),
            _ => 0,
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let connected_at = now.as_millis() as u64;
        Arrival { listener, port, peer: None, connected_at }.of(peer)
    }

    /// The same, of a client with this address. Who comes by IPv4 to an address for both has its own, not what the kernel
    /// makes of it.
    pub(crate) fn of(self, peer: Option<SocketAddr>) -> Arrival {
        let peer = peer.map(|peer| SocketAddr::new(peer.ip().to_canonical(), peer.port()));
        Arrival { peer, ..self }
    }
}
