//! Bytes in: where they are read to, and how they get on their way.
//!
//! Where the driver reads on demand, what a client sends is read to where it is wanted: whole packets into the memory
//! of who takes them ([`Taker::take_in`]), the rest of a large packet behind its beginning, and only else into a scratch
//! from which it is copied, as what TLS has to be taken off.

use swoole_protocol::Cut;
use swoole_reactor::{Reactor, Token};

use super::connection::{Connection, Fed};
use super::{Desk, Intake, Taker};
use crate::board::Counter;

/// Bytes that are read at once from a connection whose packets do not go elsewhere.
const SCRATCH: usize = 256 * 1024;
/// From so many missing bytes on, the rest of a packet is read to where the packet is, and no more; and at once at most.
const LARGE: usize = 16 * 1024;
const PIECE: usize = 256 * 1024;

impl Desk {
    /// Bytes from a client.
    pub(crate) fn received(
        &mut self,
        reactor: &mut Reactor,
        taker: &mut impl Taker,
        token: Token,
        bytes: &[u8],
    ) {
        let Some(slot) = self.slot_of(token) else { return self.greet(reactor, taker, token, bytes) };
        if self.connections[slot].closing {
            return;
        }
        self.count_received(slot, bytes.len());
        if self.connections[slot].tls.is_some() {
            self.decrypt(reactor, taker, slot, bytes);
        } else {
            self.arrived(reactor, taker, slot, bytes);
        }
    }

    /// Bytes of a client's stream.
    pub(super) fn arrived(
        &mut self,
        reactor: &mut Reactor,
        taker: &mut impl Taker,
        slot: usize,
        bytes: &[u8],
    ) {
        let connection = &mut self.connections[slot];
        let token = connection.token;
        if !connection.parked && connection.input.bytes().len() < LARGE {
            let mut fill = |_: &mut Reactor, space: &mut [u8]| {
                let len = bytes.len().min(space.len());
                space[..len].copy_from_slice(&bytes[..len]);
                len
            };
            if let Some(read) = self.take_in(reactor, taker, slot, bytes.len(), &mut fill) {
                let connection = &mut self.connections[slot];
                if read < bytes.len() && !connection.closing {
                    connection.input.add(&bytes[read..]);
                    if !connection.parked {
                        self.resume(reactor, taker, slot);
                    }
                }
                return;
            }
        }
        let connection = &mut self.connections[slot];
        if !connection.input.is_empty() || connection.parked {
            connection.input.add(bytes);
            if connection.parked {
                reactor.pause(token);
            } else {
                self.resume(reactor, taker, slot);
            }
            return;
        }
        let (used, fed) = self.cut(reactor, taker, slot, bytes);
        let connection = &mut self.connections[slot];
        if !connection.closing {
            connection.input.add(&bytes[used..]);
            self.settle_feed(reactor, slot, fed);
        }
    }

    /// A connection can be read from, and the driver asks where to.
    pub(crate) fn readable(&mut self, reactor: &mut Reactor, taker: &mut impl Taker, token: Token) {
        let Some(slot) = self.slot_of(token) else { return self.guest_readable(reactor, taker, token) };
        let connection = &mut self.connections[slot];
        if connection.closing || connection.paused || connection.parked && connection.announced {
            return reactor.pause(token);
        }
        // Who has waited longer comes first. (They are woken when something that is under way is finished.) Who leaves
        // need not wait for that.
        let leaves = reactor.has_hung_up(token);
        let home = usize::from(connection.home);
        let queue = self.waiting.get(home).filter(|_| !connection.parked);
        if queue.is_some_and(|queue| !queue.is_empty()) && taker.is_busy(home) && !leaves {
            return self.settle_feed(reactor, slot, Fed::Blocked(home));
        }
        self.read(reactor, taker, slot);
    }

    /// Reads once, to where the bytes are wanted.
    pub(super) fn read(&mut self, reactor: &mut Reactor, taker: &mut impl Taker, slot: usize) {
        let connection = &mut self.connections[slot];
        let token = connection.token;
        let (missing, begun) = (connection.missing, connection.input.bytes().len());
        let (last_read, usual) = (connection.last_read, connection.usual);
        // Errors mean that the stream is gone, of which it tells itself.
        let read = |reactor: &mut Reactor, buffer: &mut [u8]| {
            reactor.read(token, buffer).ok().flatten().unwrap_or(0)
        };
        let is_plain = connection.tls.is_none();
        if missing >= LARGE && is_plain {
            let read = connection.input.fill(missing.min(PIECE), |buffer| read(reactor, buffer));
            connection.missing -= read;
            self.count_received(slot, read);
            if missing == read {
                self.hand_over(reactor, taker, slot);
            }
            return;
        }
        if begun < LARGE && is_plain && !connection.parked && !reactor.has_hung_up(token) {
            let taken = self.take_in(reactor, taker, slot, last_read, &mut |reactor, buffer| {
                let whole = whole_packets(begun, buffer.len(), usual);
                read(reactor, &mut buffer[..whole])
            });
            if let Some(read) = taken {
                return self.count_received(slot, read);
            }
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize(SCRATCH, 0);
        let read = read(reactor, &mut scratch);
        if read > 0 {
            self.received(reactor, taker, token, &scratch[..read]);
        }
        self.scratch = scratch;
    }

    /// A large packet is complete.
    fn hand_over(&mut self, reactor: &mut Reactor, taker: &mut impl Taker, slot: usize) {
        let connection = &mut self.connections[slot];
        let len = connection.input.bytes().len();
        let whole = Cut::Packet { len, payload: 0..len };
        connection.usual = len;
        let mut framer = connection.framer.clone();
        if framer.cut(connection.input.bytes()) == Ok(whole) {
            let packet = std::mem::take(&mut connection.input).into_bytes();
            match taker.take_whole(connection.session, connection.home, packet) {
                Ok(()) => {
                    // One that is offered again is cut again.
                    connection.framer = framer;
                    connection.in_flight += 1;
                    connection.cut_off(1);
                    return self.count(Counter::Packets, 1);
                }
                Err(packet) => connection.input = packet.into(),
            }
        }
        self.resume(reactor, taker, slot);
    }

    /// Lets the taker take in what `fill` gives, if it does that: how many bytes.
    fn take_in(
        &mut self,
        reactor: &mut Reactor,
        taker: &mut impl Taker,
        slot: usize,
        least: usize,
        fill: &mut dyn FnMut(&mut Reactor, &mut [u8]) -> usize,
    ) -> Option<usize> {
        let Connection { session, home, ref mut framer, ref input, .. } = self.connections[slot];
        let begun = input.bytes().len();
        let mut fill = |space: &mut [u8]| fill(reactor, space);
        let intake = taker.take_in(session, home, framer, input.bytes(), least, &mut fill)?;
        let Intake { read, packets, rest, fed, cut_short } = intake;
        self.count(Counter::Packets, packets as u64);
        let connection = &mut self.connections[slot];
        connection.in_flight += packets;
        connection.cut_off(packets);
        if let Some(read) = read {
            if let Some(usual) = (begun + read - rest.len()).checked_div(packets) {
                connection.usual = usual;
            }
            connection.input = rest.into();
            connection.last_read = if read > 0 { read } else { connection.last_read };
        }
        if cut_short && !self.connections[slot].input.is_empty() {
            self.resume(reactor, taker, slot);
        } else {
            self.settle_feed(reactor, slot, fed);
        }
        Some(read.unwrap_or(0))
    }

    pub(super) fn count_received(&mut self, slot: usize, bytes: usize) {
        if bytes > 0 {
            self.has_received(slot);
        }
        self.shared.sessions.received(self.connections[slot].session, bytes);
        self.count(Counter::Received, bytes as u64);
    }
}

/// How much of `space` bytes to read behind `begun` ones, where packets of `usual` bytes are likely: as many as are whole,
/// if they are large. What is read beyond has to be copied twice.
fn whole_packets(begun: usize, space: usize, usual: usize) -> usize {
    if usual < LARGE || begun >= usual {
        return space;
    }
    match (begun + space) / usual * usual {
        0 => space,
        whole => whole - begun,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_packets_are_read_whole() {
        let large = 40_000;
        assert_eq!(whole_packets(0, 100_000, large), 80_000);
        assert_eq!(whole_packets(4, 100_000, large), 79_996);
        assert_eq!(whole_packets(0, 39_999, large), 39_999);
        assert_eq!(whole_packets(0, 100_000, 128), 100_000);
        assert_eq!(whole_packets(50_000, 50_000, large), 50_000);
    }
}
