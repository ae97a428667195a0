//! One client's connection: what its reactor keeps of it.

use std::net::SocketAddr;
use std::time::Duration;

use swoole_protocol::{Cut, FrameError, Framer};
use swoole_reactor::{TimerId, Token};

use super::flow::Level;
use super::idle::Times;
use super::secrecy::Secrecy;
use crate::session::Session;

/// How long a connection that is on its way out may stand still: a client that has shut down its side waits for
/// answers, or one that is being closed takes what was sent before.
pub(super) const LINGER: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) session: Session,
    pub(super) token: Token,
    /// What is between the socket and everything else, where TLS is spoken.
    pub(super) tls: Option<Box<Secrecy>>,
    /// The worker that hears of its connect and close.
    pub(super) home: u16,
    pub(super) framer: Framer,
    /// Received and not yet cut into packets, or cut and not yet taken by a worker.
    pub(super) input: Input,
    /// Bytes that the packet at the front of `input` lacks at the least, and what the last read gave.
    pub(super) missing: usize,
    pub(super) last_read: usize,
    /// Bytes of its packets, as the last ones were.
    pub(super) usual: usize,
    /// Packets that a worker has and has not finished.
    pub(super) in_flight: usize,
    /// Its home worker has been told that it is there, and is done with that.
    pub(super) announced: bool,
    pub(super) greeted: bool,
    /// The user that it was bound to when its packets went to workers last.
    pub(super) uid: u64,
    /// Not read from, because its worker's link is full.
    pub(super) parked: bool,
    /// Not read from, because a worker wants that, or has not confirmed it yet.
    pub(super) paused: bool,
    pub(super) level: Level,
    /// The client will send no more.
    pub(super) ended: bool,
    /// On its way out: nothing more is taken from it or sent to it.
    pub(super) closing: bool,
    /// When it has to be gone, or to have shaken hands, and what waited for the client when that was set: progress puts it off.
    pub(super) linger: Option<(TimerId, u64)>,
    /// Where it came in and from where, if that is counted. Apart, as below, so that it costs those nothing who have no limits.
    pub(super) visit: Option<Box<(u16, Option<SocketAddr>)>>,
    /// What it is about with its time, if that is limited.
    pub(super) times: Option<Box<Times>>,
}

impl Connection {
    /// A new one, which nobody has been told of and which is not read from yet.
    pub(super) fn new(session: Session, token: Token, home: u16, framer: Framer) -> Connection {
        Connection {
            session,
            token,
            tls: None,
            home,
            framer,
            input: Input::default(),
            missing: 0,
            last_read: 0,
            usual: 0,
            in_flight: 0,
            announced: false,
            greeted: false,
            uid: 0,
            parked: true,
            paused: false,
            level: Level::default(),
            ended: false,
            closing: false,
            linger: None,
            visit: None,
            times: None,
        }
    }

    /// So many packets of it are complete: if there is something behind them, it began only now.
    #[inline]
    pub(super) fn cut_off(&mut self, packets: usize) {
        if packets > 0
            && let Some(times) = &mut self.times
        {
            times.pulse.begun = None;
        }
    }

    /// Whether it is read from, when there is nothing else to say: not while somebody wants that it is not, and without room
    /// only if nobody knows of it, until it says something.
    pub(super) fn is_read(&self, draining: bool) -> bool {
        let is_unknown = !self.announced && self.input.is_empty();
        (!self.parked || is_unknown) && !self.paused && !self.ended && !self.closing && !draining
    }

    pub(super) fn client(&self) -> Client {
        let Connection { session, home, greeted, in_flight, uid, .. } = *self;
        Client { session, home, greeted, in_flight, uid, is_clear: greeted && in_flight == 0 }
    }
}

/// Bytes of a connection that wait: taken off at the front, added at the end. Empty, it keeps no memory.
#[derive(Debug, Default)]
pub(super) struct Input {
    bytes: Vec<u8>,
    /// Those before it are taken.
    taken: usize,
}

impl Input {
    pub(super) fn is_empty(&self) -> bool {
        self.taken == self.bytes.len()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    pub(super) fn add(&mut self, bytes: &[u8]) {
        // Moved to the front only when that costs less than what was taken since.
        if self.taken > self.bytes.len() / 2 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Lets `read` add up to `count` bytes; how many it has.
    pub(super) fn fill(&mut self, count: usize, read: impl FnOnce(&mut [u8]) -> usize) -> usize {
        let before = self.bytes.len();
        self.bytes.resize(before + count, 0);
        let read = read(&mut self.bytes[before..]);
        self.bytes.truncate(before + read);
        read
    }

    pub(super) fn take(&mut self, count: usize) {
        self.taken += count;
        if self.is_empty() {
            *self = Input::default();
        }
    }

    pub(super) fn into_bytes(mut self) -> Vec<u8> {
        self.bytes.drain(..self.taken);
        self.bytes
    }
}

impl From<Vec<u8>> for Input {
    fn from(bytes: Vec<u8>) -> Input {
        Input { bytes, taken: 0 }
    }
}

/// What became of a packet that was offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Offer {
    Taken,
    /// Taken, and no other one is wanted from this connection.
    Last,
    /// It is for nobody, and the connection goes on.
    Dropped,
    /// It is for nobody, and the connection is to be closed.
    Refused,
    /// There is no room: the queue to wait in.
    Blocked(usize),
}

/// How far the input was cut.
#[derive(Debug)]
pub(crate) enum Fed {
    /// Everything that is a packet was taken, or all that is wanted. A packet that has begun lacks so many bytes at the
    /// least.
    All { missing: usize },
    /// There is no room for the next packet: the queue to wait in.
    Blocked(usize),
    /// The input is no stream of packets.
    Broken(FrameError),
    /// The connection is to be closed.
    Refused,
}

/// A connection, as whoever takes its packets has to know it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client {
    pub(crate) session: Session,
    /// The worker that hears of its connect and close, and whether that is done with the connect.
    pub(crate) home: u16,
    pub(crate) greeted: bool,
    /// Packets that workers have and have not finished, and the user that it was bound to when they went there.
    pub(crate) in_flight: usize,
    pub(crate) uid: u64,
    /// No worker has anything of it, so that it can be answered at once.
    pub(crate) is_clear: bool,
}

/// Cuts `input` into packets and offers each, until one is not taken or is the last. Yields how many bytes are done
/// with.
pub(crate) fn feed(framer: &mut Framer, input: &[u8], mut offer: impl FnMut(&[u8]) -> Offer) -> (usize, Fed) {
    let mut used = 0;
    while used < input.len() {
        match framer.cut(&input[used..]) {
            Ok(Cut::More { at_least }) => return (used, Fed::All { missing: at_least }),
            Err(error) => return (used, Fed::Broken(error)),
            Ok(Cut::Packet { len, payload }) => {
                let packet = &input[used + payload.start..used + payload.end];
                match offer(packet) {
                    Offer::Taken | Offer::Dropped => used += len,
                    Offer::Refused => return (used, Fed::Refused),
                    Offer::Last => return (used + len, Fed::All { missing: 0 }),
                    Offer::Blocked(queue) => return (used, Fed::Blocked(queue)),
                }
            }
        }
    }
    (used, Fed::All { missing: 0 })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use swoole_protocol::{EofOptions, Framing};

    use super::*;

    proptest! {
        /// However the stream is cut and however often a worker has no room, each packet is taken once, in order.
        #[test]
        fn a_blocked_packet_is_offered_again(
            words in proptest::collection::vec("[a-z]{0,6}", 0..20),
            reads in proptest::collection::vec(1usize..9, 1..40),
            refusals in proptest::collection::vec(any::<bool>(), 1..40),
        ) {
            let stream: Vec<u8> = words.iter().flat_map(|word| [word.as_bytes(), b"\n"].concat()).collect();
            let framing = Framing::Eof(EofOptions::new(b"\n", true).unwrap());
            let mut framer = framing.framer(64);
            let mut refusals = refusals.iter().cycle();
            let mut reads = reads.iter().cycle();
            let (mut taken, mut input, mut rest) = (Vec::new(), Vec::new(), &stream[..]);
            let mut stuck = 0;
            while !(rest.is_empty() && input.is_empty()) && stuck < 10_000 {
                stuck += 1;
                let (now, later) = rest.split_at((*reads.next().unwrap()).min(rest.len()));
                rest = later;
                input.extend_from_slice(now);
                let (used, fed) = feed(&mut framer, &input, |packet| {
                    if stuck < 5_000 && *refusals.next().unwrap() {
                        return Offer::Blocked(3);
                    }
                    taken.push(String::from_utf8(packet.to_vec()).unwrap());
                    Offer::Taken
                });
                let fine = matches!(fed, Fed::All { .. } | Fed::Blocked(3));
                prop_assert!(fine);
                input.drain(..used);
            }
            prop_assert_eq!(taken, words);
        }
    }
}
