//! What workers of Base mode send to each other's clients.
//!
//! Each worker has a box: a SEQPACKET socketpair of which it has the reading end, and everybody the writing end. What
//! is sent is first kept by the sender, so that it leaves when the callback has returned, and so that nobody ever waits
//! for a worker that does not read; more than `socket_buffer_size` that one worker has not taken is an error for the
//! sender. A message is one packet or several ([`FIRST`] .. [`LAST`]), of which each names its sender, since the packets
//! of several senders may mix. What lies in the box of a dead worker is its successor's, as is what one that retires has
//! begun to send or to read ([`Mail`]).
//!
//! A packet: `kind: u8 | flags: u8 | sender: u16 | 0: u32 | session: u64 | bytes`, little-endian.

use std::collections::{HashMap, VecDeque};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, RawFd};
use std::rc::Rc;

use swoole_ipc::socketpair::{self, Endpoint, Kind};

use super::Premises;
use crate::error::{Error, Result};
use crate::session::Session;

const HEADER: usize = 16;
/// Bytes of a client's in one packet.
const PIECE: usize = 32 * 1024;
const BUFFER: usize = 512 * 1024;

const SEND: u8 = 1;
const CLOSE: u8 = 2;
/// Flags: the first packet of its message, the last one.
const FIRST: u8 = 1;
const LAST: u8 = 2;

/// All boxes; made before the first fork.
pub(super) struct Mesh {
    /// The writing and the reading end, by worker.
    boxes: Vec<(Endpoint, Endpoint)>,
}

impl Mesh {
    pub(super) fn create(workers: usize) -> Result<Mesh> {
        let create = |worker: usize| {
            let failed =
                |error| Error::setup(format!("make the box of worker {worker} (a socketpair)"), error);
            let (mut write, mut read) = socketpair::pair(Kind::SeqPacket).map_err(failed)?;
            for end in [&mut write, &mut read] {
                end.set_buffer_sizes(BUFFER).map_err(failed)?;
            }
            Ok((write, read))
        };
        Ok(Mesh { boxes: (0..workers).map(create).collect::<Result<_>>()? })
    }

    /// What a worker needs of it.
    pub(super) fn keep(&self, worker: usize) -> Vec<RawFd> {
        let write = self.boxes.iter().map(|(write, _)| write);
        write.chain([&self.boxes[worker].1]).map(|end| end.as_fd().as_raw_fd()).collect()
    }
}

/// What came for a client of this worker.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parcel {
    Send(Session, Vec<u8>),
    Close(Session),
}

/// Messages that a worker leaves in the middle of their way.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Mail {
    /// What has come of each message that has begun, by sender.
    pub(super) begun: Vec<(u16, Vec<u8>)>,
    /// Packets that had no room, with the worker that each is for, in their order.
    pub(super) outgoing: Vec<(u16, Vec<u8>)>,
}

/// What one worker has of the mesh.
pub(crate) struct MeshEnd {
    premises: Rc<Premises>,
    own: u16,
    /// Bytes that may wait for one worker.
    max: usize,
    /// What waits for each worker, and how many bytes that is.
    waiting: Vec<(VecDeque<Box<[u8]>>, usize)>,
    /// Something may wait.
    dirty: bool,
    /// Messages that have begun to arrive, by sender.
    parts: HashMap<u16, Vec<u8>>,
    buffer: Box<[u8]>,
}

impl MeshEnd {
    pub(super) fn new(premises: &Rc<Premises>, own: u16, max: usize) -> MeshEnd {
        MeshEnd {
            waiting: premises.mesh.boxes.iter().map(|_| (VecDeque::new(), 0)).collect(),
            premises: Rc::clone(premises),
            own,
            max,
            dirty: false,
            parts: HashMap::new(),
            buffer: vec![0; HEADER + PIECE].into(),
        }
    }

    /// Leaves what is under way to the successor.
    pub(super) fn leave(&mut self) -> Mail {
        self.dirty = false;
        let queues = self.waiting.iter_mut().zip(0..);
        let outgoing = queues.flat_map(|((queue, waiting), worker)| {
            *waiting = 0;
            queue.drain(..).map(move |packet| (worker, packet.into_vec()))
        });
        Mail { outgoing: outgoing.collect(), begun: self.parts.drain().collect() }
    }

    /// Goes on with what the last worker left.
    pub(super) fn inherit(&mut self, mail: Mail) {
        self.parts = mail.begun.into_iter().collect();
        for (worker, packet) in mail.outgoing {
            let Some((queue, waiting)) = self.waiting.get_mut(usize::from(worker)) else { continue };
            *waiting += packet.len();
            queue.push_back(packet.into());
            self.dirty = true;
        }
    }

    /// Sends when [`pump`](MeshEnd::pump) is called next.
    pub(super) fn send(&mut self, worker: u16, session: Session, bytes: &[u8]) -> Result<()> {
        self.queue(SEND, worker, session, bytes)
    }

    pub(super) fn close(&mut self, worker: u16, session: Session) -> Result<()> {
        self.queue(CLOSE, worker, session, &[])
    }

    fn queue(&mut self, kind: u8, worker: u16, session: Session, bytes: &[u8]) -> Result<()> {
        let (queue, waiting) = &mut self.waiting[usize::from(worker)];
        if *waiting > 0 && *waiting + bytes.len() > self.max {
            return Err(Error::PeerFull { session, worker, waiting: *waiting, max: self.max });
        }
        let pieces = bytes.len().div_ceil(PIECE).max(1);
        for piece in 0..pieces {
            let part = &bytes[piece * PIECE..bytes.len().min((piece + 1) * PIECE)];
            let flags = if piece == 0 { FIRST } else { 0 } | if piece + 1 == pieces { LAST } else { 0 };
            let [low, high] = self.own.to_le_bytes();
            let head = [kind, flags, low, high, 0, 0, 0, 0];
            let packet = [&head, &session.raw().to_le_bytes()[..], part].concat();
            *waiting += packet.len();
            queue.push_back(packet.into());
        }
        self.dirty = true;
        Ok(())
    }

    /// Lets out what waits, as far as there is room.
    pub(super) fn pump(&mut self) {
        if !self.dirty {
            return;
        }
        self.dirty = false;
        for ((queue, waiting), (write, _)) in self.waiting.iter_mut().zip(&self.premises.mesh.boxes) {
            while let Some(packet) = queue.front() {
                match write.send_packet(&[IoSlice::new(packet)]) {
                    Ok(()) => {}
                    Err(swoole_ipc::Error::Full) => {
                        self.dirty = true;
                        break;
                    }
                    // Whatever it is, it will not get better by trying it again.
                    Err(error) => tracing::error!("send to another worker: {error}"),
                }
                *waiting -= packet.len();
                queue.pop_front();
            }
        }
    }

    /// The boxes that were full.
    pub(super) fn blocked(&self) -> impl Iterator<Item = (u16, BorrowedFd<'_>)> {
        let boxes = self.waiting.iter().zip(&self.premises.mesh.boxes).zip(0..);
        boxes
            .filter(|(((queue, _), _), _)| self.dirty && !queue.is_empty())
            .map(|((_, (write, _)), worker)| (worker, write.as_fd()))
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.dirty
    }

    /// Readable when something has come.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.read_end().as_fd()
    }

    fn read_end(&self) -> &Endpoint {
        &self.premises.mesh.boxes[usize::from(self.own)].1
    }

    /// The next thing that has come whole; `None` when there is none now.
    pub(super) fn next(&mut self) -> Option<Parcel> {
        loop {
            let mut buffer = std::mem::take(&mut self.buffer);
            let received = self.read_end().recv_packet(&mut buffer);
            let parcel = match &received {
                Ok(Some(len)) => self.take(&buffer[..*len]),
                Ok(None) => None,
                Err(error) => {
                    tracing::error!("a message from another worker: {error}");
                    None
                }
            };
            self.buffer = buffer;
            match received {
                Ok(None) | Err(swoole_ipc::Error::PeerGone) => return None,
                _ if parcel.is_some() => return parcel,
                _ => {}
            }
        }
    }

    fn take(&mut self, packet: &[u8]) -> Option<Parcel> {
        let Some((&[kind, flags, low, high, ..], rest)) = packet.split_first_chunk::<8>() else {
            return malformed(packet);
        };
        let Some((session, bytes)) = rest.split_first_chunk::<8>() else { return malformed(packet) };
        let session = Session::from_raw(u64::from_le_bytes(*session));
        let sender = u16::from_le_bytes([low, high]);
        match (kind, flags) {
            (CLOSE, _) => Some(Parcel::Close(session)),
            (SEND, flags) if flags & FIRST != 0 && flags & LAST != 0 => {
                Some(Parcel::Send(session, bytes.to_vec()))
            }
            (SEND, flags) if flags & FIRST != 0 => {
                self.parts.insert(sender, bytes.to_vec());
                None
            }
            (SEND, flags) => {
                // Without its beginning it was another generation's: of a sender that died, or sent to one.
                let parts = self.parts.get_mut(&sender)?;
                if parts.len() + bytes.len() > self.max {
                    self.parts.remove(&sender);
                    return malformed(packet);
                }
                parts.extend_from_slice(bytes);
                let whole = if flags & LAST != 0 { self.parts.remove(&sender) } else { None };
                whole.map(|bytes| Parcel::Send(session, bytes))
            }
            _ => malformed(packet),
        }
    }
}

fn malformed(packet: &[u8]) -> Option<Parcel> {
    tracing::error!("a message from another worker is malformed ({} bytes)", packet.len());
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 4 << 20;

    fn mesh(workers: usize) -> Vec<MeshEnd> {
        let premises = Rc::new(Premises { mesh: Mesh::create(workers).unwrap(), estates: Vec::new() });
        (0..workers as u16).map(|own| MeshEnd::new(&premises, own, MAX)).collect()
    }

    fn session(number: u64) -> Session {
        Session::from_raw(number)
    }

    #[test]
    fn messages_of_any_size_arrive_whole_although_senders_mix() {
        let mut ends = mesh(3);
        let [one, two, three] = &mut ends[..] else { unreachable!() };
        let large = vec![7; 300_000];
        one.send(2, session(1), &large).unwrap();
        two.send(2, session(2), &large[..100_000]).unwrap();
        two.send(2, session(3), b"").unwrap();
        two.close(2, session(3)).unwrap();
        let mut came = Vec::new();
        while one.is_blocked() || two.is_blocked() {
            one.pump();
            two.pump();
            came.extend(std::iter::from_fn(|| three.next()));
        }
        let position = |parcel: &Parcel| came.iter().position(|came| came == parcel).unwrap();
        position(&Parcel::Send(session(1), large.clone()));
        let second = position(&Parcel::Send(session(2), large[..100_000].to_vec()));
        let third = position(&Parcel::Send(session(3), Vec::new()));
        assert!(second < third && third < position(&Parcel::Close(session(3))));
        assert_eq!(came.len(), 4);
    }

    #[test]
    fn a_worker_that_does_not_read_costs_the_sender_an_error_and_no_more() {
        let mut ends = mesh(2);
        let mut sent = 0;
        let error = loop {
            match ends[0].send(1, session(9), &[1; 10_000]) {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
            ends[0].pump();
        };
        assert!(matches!(error, Error::PeerFull { worker: 1, .. }), "{error}");
        let mut came = 0;
        while ends[0].is_blocked() {
            came += std::iter::from_fn(|| ends[1].next()).count();
            ends[0].pump();
        }
        came += std::iter::from_fn(|| ends[1].next()).count();
        assert_eq!(came, sent);
        ends[0].send(1, session(9), &[1; 10_000]).unwrap();
    }

    #[test]
    fn messages_under_way_survive_both_ends() {
        let mut ends = mesh(2);
        let large = vec![7; 3_000_000];
        ends[0].send(1, session(1), &large).unwrap();
        ends[0].send(1, session(2), b"behind it").unwrap();
        ends[0].pump();
        assert_eq!(ends[1].next(), None, "it has begun, and there is no room for all of it");
        let premises = Rc::clone(&ends[0].premises);
        for end in &mut ends {
            let mail = end.leave();
            assert!(!end.is_blocked());
            assert!(mail != Mail::default());
            *end = MeshEnd::new(&premises, end.own, MAX);
            end.inherit(mail);
        }
        let mut came = Vec::new();
        while ends[0].is_blocked() {
            ends[0].pump();
            came.extend(std::iter::from_fn(|| ends[1].next()));
        }
        let behind = Parcel::Send(session(2), b"behind it".to_vec());
        assert!(came == [Parcel::Send(session(1), large), behind]);
    }

    #[test]
    fn a_message_whose_beginning_is_not_there_is_nobodys() {
        let mut ends = mesh(2);
        ends[0].send(1, session(5), &vec![1; 3 * PIECE]).unwrap();
        ends[0].waiting[1].0.pop_front();
        ends[0].send(1, session(6), b"whole").unwrap();
        ends[0].pump();
        assert_eq!(ends[1].next(), Some(Parcel::Send(session(6), b"whole".to_vec())));
        assert_eq!(ends[1].next(), None);
    }

    proptest! {
        #[test]
        fn nothing_that_comes_is_believed(packets in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..40), 0..20))
        {
            let mut ends = mesh(1);
            for packet in packets {
                ends[0].take(&packet);
            }
        }
    }
}
