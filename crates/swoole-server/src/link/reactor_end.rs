//! The reactor's side of a link: offers packets, takes replies, settles a dead worker's estate.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use swoole_ipc::Doorbell;
use swoole_ipc::socketpair::Endpoint;
use swoole_ipc::{Consumer, Producer, Ring};

use super::casualty::Casualty;
use super::replies::{Gather, Staging};
use super::window::{FalseAck, Parcel, Sent, Window};
use super::{Lane, SOCKET_PIECE, UNCOMMITTED_MAX};
use crate::crash::{CrashPolicy, Fate};
use crate::dispatch::Gauge;
use crate::measure::Measure;
use crate::session::Session;
use crate::shed::{self, Stamp};
use crate::wire::{HEADER, Malformed, Reply, Request, RequestKind, packet_of};

/// Packets that are taken from one socket in one go: others wait, too.
const SOCKET_BUDGET: usize = 256;

/// A worker did what no correct worker does. It has to be killed; nobody else is concerned.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error(transparent)]
    Corrupt(#[from] swoole_ipc::Corrupt),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    FalseAck(#[from] FalseAck),
    #[error("it holds back more than {0} bytes of replies")]
    Hoarding(usize),
    #[error(transparent)]
    Channel(#[from] swoole_ipc::Error),
}

/// Who takes what comes back.
pub(crate) trait ReplySink {
    /// Bytes for a client, in order; the parts belong together.
    fn send(&mut self, session: Session, parts: &[IoSlice<'_>]);
    /// The same for bytes that can be kept as they are.
    fn send_owned(&mut self, session: Session, bytes: Vec<u8>);
    /// The worker wants the session closed after what was sent before.
    fn close(&mut self, session: Session);
    /// Something for many clients, or for one's topics: an encoded [`Order`](crate::audience::Order).
    fn order(&mut self, order: &[u8]);
    /// The session belongs to this user from now on, or to nobody if it is 0.
    fn bind(&mut self, session: Session, uid: u64);
    /// Something is to be done with its connection.
    fn measure(&mut self, session: Session, measure: Measure);
    /// A piece of a datagram that this listener is to send; the pieces of one follow each other.
    fn datagram(&mut self, listener: Session, piece: &[u8]);
    /// So many messages of a record are finished; the replies to them have been delivered here before.
    fn finished(&mut self, sent: &Sent, count: u32);
}

pub(super) enum Side {
    Ring { requests: Producer, replies: Consumer },
    Socket { buffer: Box<[u8]> },
}

pub(crate) struct ReactorEnd {
    lane: Arc<Lane>,
    pub(super) side: Side,
    pub(super) window: Window,
    /// What waits for room, with how much of the first one is already on its way.
    pub(super) backlog: VecDeque<(Rc<Parcel>, usize)>,
    staging: Staging,
    /// The worker writes nonsense: nothing is taken from it any more, until it is dead and settled.
    faulty: bool,
    /// What the socket said to the last packet, if it was no lack of room.
    broken: Option<swoole_ipc::Error>,
    /// Records were pushed since the last flush.
    pub(super) dirty: bool,
    pub(super) piece_max: usize,
    bell: Doorbell,
    room: Doorbell,
    /// Where others look how much the worker has to do, if they do.
    gauge: Option<Gauge>,
    /// Whether records say when they came.
    pub(super) stamps: bool,
}

impl ReactorEnd {
    /// `bell` wakes the worker for packets, `room` when it waits for room for its replies; none of these is larger
    /// than `reply_max`.
    pub(crate) fn open(
        lane: Arc<Lane>,
        bell: Doorbell,
        room: Doorbell,
        reply_max: usize,
    ) -> Result<ReactorEnd, swoole_ipc::Error> {
        let (side, piece_max) = match &*lane {
            Lane::Ring { requests, replies } => (
                Side::Ring { requests: requests.producer()?, replies: replies.consumer()? },
                requests.capacity() / 4 - HEADER,
            ),
            Lane::Socket { .. } => {
                (Side::Socket { buffer: vec![0; super::SOCKET_PACKET].into() }, SOCKET_PIECE)
            }
        };
        Ok(ReactorEnd {
            lane,
            side,
            window: Window::default(),
            backlog: VecDeque::new(),
            // One reply may be begun when the worker has almost come to its limit.
            staging: Staging::new(2 * UNCOMMITTED_MAX + 2 * reply_max),
            faulty: false,
            broken: None,
            dirty: false,
            piece_max,
            bell,
            room,
            gauge: None,
            stamps: false,
        })
    }

    /// From now on the worker learns when each message came.
    pub(crate) fn write_stamps(&mut self) {
        self.stamps = true;
    }

    pub(super) fn stamp(&self) -> Stamp {
        if self.stamps { shed::stamp() } else { 0 }
    }

    /// From now on others know how much is in flight here: not less than is, and as much before any answer is out.
    pub(crate) fn show_on(&mut self, gauge: Gauge) {
        self.gauge = Some(gauge);
        self.tell();
    }

    pub(super) fn tell(&mut self) {
        let now = self.in_flight();
        self.gauge.iter_mut().for_each(|gauge| gauge.set(now));
    }

    /// Messages that the worker has not finished, those that still wait for room included.
    pub(crate) fn in_flight(&self) -> usize {
        self.window.in_flight() + self.backlog.len()
    }

    /// The number of the last message that the present worker was sent.
    #[cfg(feature = "internals")]
    pub(crate) fn sent(&self) -> u64 {
        self.window.sent()
    }

    /// Takes a message if there is room for it now; otherwise nothing changes, and the next finished
    /// record makes room. One that needs several records is taken whenever nothing waits.
    pub(crate) fn offer(&mut self, kind: RequestKind, session: Session, packet: &[u8]) -> bool {
        if !self.backlog.is_empty() {
            return false;
        }
        if packet.len() <= self.piece_max {
            let stamp = self.stamp();
            let taken = self.push(kind, session, (true, true), packet, (packet.len(), stamp), None);
            self.tell();
            return taken;
        }
        self.enqueue(Parcel::new(kind, session, packet.to_vec()));
        true
    }

    /// Takes a message in any case: it waits its turn. For what cannot be pushed back on a client.
    pub(crate) fn enqueue(&mut self, mut parcel: Parcel) {
        parcel.stamp = self.stamp();
        self.backlog.push_back((Rc::new(parcel), 0));
        self.pump();
        self.tell();
    }

    /// Moves what waits as far as there is room.
    fn pump(&mut self) {
        while let Some((parcel, offset)) = self.backlog.front() {
            let (parcel, offset) = (Rc::clone(parcel), *offset);
            let size = parcel.bytes.len();
            let end = size.min(offset + self.piece_max);
            let ends = (offset == 0, end == size);
            // What a worker has died on remembers that.
            let kept = (size > self.piece_max || parcel.attempt > 1).then(|| Rc::clone(&parcel));
            let about = (size, parcel.stamp);
            if !self.push(parcel.kind, parcel.session, ends, &parcel.bytes[offset..end], about, kept) {
                return;
            }
            match self.backlog.front_mut() {
                Some((_, offset)) if end < size => *offset = end,
                _ => drop(self.backlog.pop_front()),
            }
        }
    }

    fn push(
        &mut self,
        kind: RequestKind,
        session: Session,
        (first, last): (bool, bool),
        piece: &[u8],
        (size, stamp): (usize, Stamp),
        kept: Option<Rc<Parcel>>,
    ) -> bool {
        let request = Request { kind, first, last, session, total: size, stamp };
        let mut sent = Sent { kind, session, last, size, items: 1, done: 0, start: 0, end: 0, kept };
        match (&mut self.side, &*self.lane) {
            (Side::Ring { requests, .. }, _) => {
                sent.start = requests.position();
                if requests.push(request.tag(), &[&request.header(), piece]).is_err() {
                    return false;
                }
                sent.end = requests.position();
            }
            (Side::Socket { .. }, Lane::Socket { reactor, .. }) => {
                let (tag, header) = (request.tag().to_le_bytes(), request.header());
                let parts = [IoSlice::new(&tag), IoSlice::new(&header), IoSlice::new(piece)];
                match reactor.send_packet(&parts) {
                    Ok(()) => {}
                    Err(swoole_ipc::Error::Full) => return false,
                    Err(error) => {
                        self.broken = Some(error);
                        return false;
                    }
                }
                // The kernel does not give a packet back that a dying worker has read.
                let parcel = || Parcel { stamp, ..Parcel::new(kind, session, piece.to_vec()) };
                sent.kept.get_or_insert_with(|| Rc::new(parcel()));
            }
            (Side::Socket { .. }, Lane::Ring { .. }) => unreachable!("a socket side stands on a socket lane"),
        }
        self.window.push(sent);
        self.dirty = true;
        true
    }

    /// Makes what was offered visible and wakes the worker if it sleeps.
    pub(crate) fn flush(&mut self) {
        if !std::mem::take(&mut self.dirty) {
            return;
        }
        self.window.hand_over(Instant::now());
        if let Side::Ring { requests, .. } = &mut self.side {
            requests.publish();
            ring(&self.bell);
        }
    }

    /// Packets among them.
    pub(crate) fn packets(&self) -> usize {
        let waiting = self.backlog.iter().filter(|(parcel, _)| parcel.kind.is_packet());
        self.window.packets() + waiting.count()
    }

    /// Whether the socket has refused a packet for another reason than want of room: the next drain says so.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// Whether nothing waits for room.
    pub(crate) fn is_clear(&self) -> bool {
        self.backlog.is_empty()
    }

    /// Whether a ring holds replies; a socket's come through the event loop.
    pub(crate) fn has_replies(&self) -> bool {
        match &self.side {
            Side::Ring { replies, .. } => {
                !self.faulty && !matches!(replies.peek_at(replies.position()), Ok(None))
            }
            Side::Socket { .. } => false,
        }
    }

    /// Delivers all committed replies; true if anything came. After a fault, nothing is taken any more.
    pub(crate) fn drain(&mut self, sink: &mut dyn ReplySink) -> Result<bool, Fault> {
        if self.faulty {
            return Ok(false);
        }
        let result = self.take(sink);
        self.faulty = result.is_err();
        result
    }

    fn take(&mut self, sink: &mut dyn ReplySink) -> Result<bool, Fault> {
        if let Some(error) = self.broken.take() {
            return Err(error.into());
        }
        let mut taken = Taken::default();
        let result = match &self.side {
            Side::Ring { .. } => self.drain_ring(sink, &mut taken),
            Side::Socket { .. } => self.drain_socket(sink, &mut taken),
        };
        // Also after a fault: what was delivered is answered, and must not be asked of a successor again.
        if let Some(ack) = taken.ack {
            let freed = self.window.ack(ack, |sent, count| sink.finished(sent, count))?;
            if let (Side::Ring { requests, .. }, Some(end)) = (&mut self.side, freed) {
                requests.release_to(end)?;
            }
            if !self.backlog.is_empty() {
                self.pump();
            }
            self.tell();
        }
        result.map(|()| taken.came)
    }

    /// Straight out of the ring; replies that follow each other to one session go out together.
    fn drain_ring(&mut self, sink: &mut dyn ReplySink, taken: &mut Taken) -> Result<(), Fault> {
        let waiting = self.backlog.len();
        let ReactorEnd { side: Side::Ring { replies, .. }, window, staging, room, gauge, .. } = self else {
            return Ok(());
        };
        let start = replies.position();
        let (mut at, mut from) = (start, start);
        let mut gather = Gather::default();
        let mut deliver = || -> Result<(), Fault> {
            while let Some(record) = replies.peek_at(at)? {
                let (reply, payload) = Reply::decode(record.tag, record.bytes)?;
                let begin = std::mem::replace(&mut at, record.end);
                if !reply.commit {
                    continue;
                }
                window.check(reply.ack)?;
                // Never back: what was delivered once is finished.
                let ack = reply.ack.max(taken.ack.unwrap_or(0));
                taken.ack = Some(ack);
                gauge.iter_mut().for_each(|gauge| gauge.set(window.in_flight_after(ack) + waiting));
                staging.deliver(sink);
                while from < begin {
                    let Some(record) = replies.peek_at(from)? else { break };
                    let (reply, payload) = Reply::decode(record.tag, record.bytes)?;
                    gather.take(sink, reply, payload);
                    from = record.end;
                }
                gather.take(sink, reply, payload);
                from = at;
            }
            Ok(())
        };
        let delivered = deliver();
        // Also before a fault: it is acknowledged.
        gather.flush(sink);
        delivered?;
        if at == start {
            return Ok(());
        }
        taken.came = true;
        while from < at {
            let Some(record) = replies.peek_at(from)? else { break };
            let (reply, payload) = Reply::decode(record.tag, record.bytes)?;
            from = record.end;
            staging.push(reply, payload)?;
        }
        replies.advance_to(from);
        replies.release();
        ring(room);
        Ok(())
    }

    fn drain_socket(&mut self, sink: &mut dyn ReplySink, taken: &mut Taken) -> Result<(), Fault> {
        let (Side::Socket { buffer }, Lane::Socket { reactor, .. }) = (&mut self.side, &*self.lane) else {
            return Ok(());
        };
        for _ in 0..SOCKET_BUDGET {
            let Some(len) = reactor.recv_packet(buffer)? else { break };
            taken.came = true;
            let (tag, record) =
                buffer[..len].split_first_chunk().ok_or(Malformed { tag: 0, len }).map_err(Fault::from)?;
            let (reply, payload) = Reply::decode(u32::from_le_bytes(*tag), record)?;
            self.staging.push(reply, payload)?;
            if reply.commit {
                self.window.check(reply.ack)?;
                taken.ack = Some(reply.ack);
                let rest = self.window.in_flight_after(reply.ack) + self.backlog.len();
                self.gauge.iter_mut().for_each(|gauge| gauge.set(rest));
                self.staging.deliver(sink);
            }
        }
        Ok(())
    }

    /// The worker is dead and reaped; `started` is the last record that it said it had begun.
    ///
    /// Its committed replies go out, the books are closed, and all that it had not begun is on its
    /// way to the successor, the message that it had in hand before the rest if its client's `policy` says so. Yields what is lost, and
    /// what it had in hand.
    pub(crate) fn settle(
        &mut self,
        started: u64,
        policy: impl Fn(Session) -> CrashPolicy,
        sink: &mut dyn ReplySink,
    ) -> Vec<Casualty> {
        self.broken = None;
        loop {
            match self.drain(sink) {
                Ok(true) => {}
                Ok(false) => break,
                Err(fault) => tracing::debug!("what a dead worker left in its link: {fault}"),
            }
        }
        self.faulty = false;
        self.staging.clear();
        let estate = self.window.settle(started);
        let mut unread: VecDeque<Rc<Parcel>> = VecDeque::new();
        let copies = self.reopen();
        let mut casualties = Vec::new();
        if let Some(sent) = estate.in_hand {
            let parcel = sent.kept.as_deref().cloned().or_else(|| {
                let packets = copies.as_ref().and_then(|ring| copy_out(ring, &sent));
                packets.and_then(|packets| packets.into_iter().next())
            });
            let casualty = Casualty::new(&sent, parcel.as_ref(), estate.since, &policy);
            if let Some(parcel) = parcel.filter(|_| casualty.fate == Fate::Retried) {
                let (attempt, since) = (casualty.attempt + 1, casualty.since);
                // It has not waited: somebody was at it.
                let stamp = self.stamp();
                unread.push_back(Rc::new(Parcel { attempt, since, stamp, ..parcel }));
            }
            casualties.push(casualty);
        }
        for sent in estate.unread {
            let copied = || copies.as_ref().and_then(|ring| copy_out(ring, &sent));
            match (&sent.kept, sent.kept.is_none().then(copied).flatten()) {
                (Some(parcel), _) if unread.back().is_some_and(|back| Rc::ptr_eq(back, parcel)) => {}
                (Some(parcel), _) => unread.push_back(Rc::clone(parcel)),
                (None, Some(parcels)) => unread.extend(parcels.into_iter().map(Rc::new)),
                (None, None) => casualties.push(Casualty::lost(&sent)),
            }
        }
        if let Some((front, offset)) = self.backlog.front_mut() {
            *offset = 0;
            if unread.back().is_some_and(|back| Rc::ptr_eq(back, front)) {
                unread.pop_back();
            }
        }
        drop(copies);
        if let Side::Ring { requests, .. } = &mut self.side {
            requests.rewind();
        }
        for parcel in unread.into_iter().rev() {
            self.backlog.push_front((parcel, 0));
        }
        self.pump();
        self.tell();
        self.flush();
        casualties
    }

    /// Takes the dead worker's sides back, whatever it has written there. On a ring, yields a reader of what it left
    /// unread; on a socketpair, throws that away (it is kept here).
    fn reopen(&mut self) -> Option<Consumer> {
        match (&mut self.side, &*self.lane) {
            (Side::Ring { requests, replies }, Lane::Ring { requests: ring, .. }) => {
                requests.publish();
                self.dirty = false;
                requests.evict_consumer();
                replies.evict_producer();
                reader(ring)
            }
            (Side::Socket { buffer }, Lane::Socket { worker, reactor }) => {
                discard(worker, buffer);
                // What a fault has left there.
                discard(reactor, buffer);
                None
            }
            _ => None,
        }
    }
}

/// Empties a socket that nobody writes to any more. What cannot be received whole is gone as well.
fn discard(socket: &Endpoint, buffer: &mut [u8]) {
    // More packets than any socket holds: the bound is for the case that an error lasts.
    for _ in 0..1_000_000 {
        if let Ok(None) = socket.recv_packet(buffer) {
            return;
        }
    }
}

fn reader(ring: &Ring) -> Option<Consumer> {
    ring.consumer().inspect_err(|error| tracing::error!("read back a dead worker's ring: {error}")).ok()
}

/// The packets of a record that are not done.
fn copy_out(ring: &Consumer, sent: &Sent) -> Option<Vec<Parcel>> {
    let copy = ring.peek_at(sent.start).ok().flatten().and_then(|record| {
        let (request, payload) = Request::decode(record.tag, record.bytes).ok()?;
        if sent.kind != RequestKind::Batch {
            return (payload.len() == sent.size).then(|| (vec![payload.to_vec()], request.stamp));
        }
        let packet = |index| packet_of(payload, index as usize, sent.items as usize).map(<[u8]>::to_vec);
        Some(((sent.done..sent.items).map(packet).collect::<Option<_>>()?, request.stamp))
    });
    let Some((packets, stamp)) = copy else {
        tracing::error!(session = %sent.session, "a dead worker has overwritten a packet that it had not read");
        return None;
    };
    let kind = if sent.kind == RequestKind::Batch { RequestKind::Packet } else { sent.kind };
    let parcel = |bytes| Parcel { stamp, ..Parcel::new(kind, sent.session, bytes) };
    Some(packets.into_iter().map(parcel).collect())
}

/// What one drain has taken.
#[derive(Default)]
struct Taken {
    came: bool,
    ack: Option<u64>,
}

fn ring(bell: &Doorbell) {
    // Fails only if the eventfd is gone, which nobody closes; the log is all that is left then.
    if let Err(error) = bell.ring() {
        tracing::error!("ring a worker's doorbell: {error}");
    }
}
