//! The worker's side of a link: takes packets, makes replies.

#[cfg(test)]
mod ready;

use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use swoole_ipc::Doorbell;
use swoole_ipc::socketpair::Endpoint;
use swoole_ipc::{Consumer, Producer};

use super::{FILE_COST, Lane, SOCKET_PACKET, SOCKET_PIECE, UNCOMMITTED_MAX, reply_cost};
use crate::audience::Order;
use crate::breakpoint::{self, Point};
use crate::chute::Ticket;
use crate::crash::{CrashPolicies, CrashPolicy};
use crate::datagram;
use crate::error::Error;
use crate::measure::Measure;
use crate::session::{Session, SessionTable};
use crate::shared::{Lifeline, Shared};
use crate::shed::Stamp;
use crate::wire::{COMMIT, HEADER, Reply, ReplyKind, Request, RequestKind, packet_of};

/// What a reactor has sent.
pub(crate) enum Next<'a> {
    /// Nothing is there.
    Empty,
    /// A part of a packet, put away.
    Fragment,
    Message(Message<'a>),
}

pub(crate) struct Message<'a> {
    pub(crate) kind: RequestKind,
    pub(crate) session: Session,
    pub(crate) payload: &'a [u8],
    /// When it came, if the reactor has said so.
    pub(crate) stamp: Stamp,
}

impl Message<'_> {
    /// Bytes of what the client has sent.
    #[inline]
    pub(crate) fn size(&self) -> usize {
        match self.kind {
            RequestKind::Datagram => datagram::len_of(self.payload),
            _ => self.payload.len(),
        }
    }
}

enum Source {
    Ring {
        ring: Consumer,
        /// Where the record in hand begins.
        at: u64,
    },
    Socket {
        lane: Arc<Lane>,
        /// The record in hand.
        buffer: Box<[u8]>,
        len: usize,
    },
}

/// Packets of one reactor, read in place.
pub(crate) struct Inbox {
    source: Source,
    reactor: u8,
    /// Messages finished by this process.
    finished: u64,
    batch: Option<Batch>,
    assembly: Vec<u8>,
}

/// A batch of which some packets are still to come.
struct Batch {
    session: Session,
    next: usize,
    count: usize,
    stamp: Stamp,
}

impl Inbox {
    pub(crate) fn open(lane: &Arc<Lane>, reactor: u8) -> Result<Inbox, swoole_ipc::Error> {
        let source = match &**lane {
            Lane::Ring { requests, .. } => Source::Ring { ring: requests.consumer()?, at: 0 },
            Lane::Socket { .. } => {
                Source::Socket { lane: Arc::clone(lane), buffer: vec![0; SOCKET_PACKET].into(), len: 0 }
            }
        };
        Ok(Inbox { source, reactor, finished: 0, batch: None, assembly: Vec::new() })
    }

    /// The number of the message that [`Inbox::next`] gave last, or gives next if it is not finished yet, from 1.
    #[inline]
    pub(crate) fn current(&self) -> u64 {
        self.finished + 1
    }

    /// The message that [`Inbox::next`] gave last is finished. Yields how many are.
    #[inline]
    pub(crate) fn finish(&mut self) -> u64 {
        self.finished += 1;
        self.finished
    }

    /// Whether a ring has something; a socket's news come through the event loop.
    #[inline]
    pub(crate) fn has_news(&self) -> bool {
        match &self.source {
            Source::Ring { ring, .. } => {
                self.batch.is_some() || !matches!(ring.peek_at(ring.position()), Ok(None))
            }
            Source::Socket { .. } => false,
        }
    }

    // A call would give its result by way of the stack, in pieces of other widths than it is read in again: a worker of small
    // packets waited for that for a third of its own time.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Result<Next<'_>, Error> {
        if self.batch.is_none() && !self.advance()? {
            return Ok(Next::Empty);
        }
        if self.batch.is_some() {
            return self.next_of_batch();
        }
        let reactor = self.reactor;
        let (tag, record) = match &self.source {
            Source::Ring { ring, at } => match ring.peek_at(*at).map_err(|error| broken(reactor, error))? {
                Some(record) => (record.tag, record.bytes),
                None => return Ok(Next::Empty),
            },
            Source::Socket { buffer, len, .. } => {
                let (tag, record) = buffer[..*len]
                    .split_first_chunk()
                    .ok_or_else(|| broken(reactor, "a packet without a tag"))?;
                (u32::from_le_bytes(*tag), record)
            }
        };
        let (request, payload) = Request::decode(tag, record).map_err(|error| broken(reactor, error))?;
        let Request { kind, session, stamp, .. } = request;
        if request.first && request.last {
            return Ok(Next::Message(Message { kind, session, payload, stamp }));
        }
        if request.first {
            self.assembly = Vec::with_capacity(request.total);
        }
        self.assembly.extend_from_slice(payload);
        if !request.last {
            breakpoint::pass(Point::RequestFragment);
            return Ok(Next::Fragment);
        }
        if self.assembly.len() != request.total {
            return Err(broken(reactor, "fragments that do not make up their packet"));
        }
        Ok(Next::Message(Message { kind, session, payload: &self.assembly, stamp }))
    }

    /// Takes the next record; false if there is none. If it is a batch, its packets come next.
    fn advance(&mut self) -> Result<bool, Error> {
        let reactor = self.reactor;
        match &mut self.source {
            Source::Ring { ring, at } => {
                *at = ring.position();
                let Some(record) = ring.peek_at(*at).map_err(|error| broken(reactor, error))? else {
                    return Ok(false);
                };
                if record.tag & 0xff == RequestKind::Batch as u32 {
                    let (request, _) =
                        Request::decode(record.tag, record.bytes).map_err(|error| broken(reactor, error))?;
                    let Request { session, total: count, stamp, .. } = request;
                    self.batch = Some(Batch { session, next: 0, count, stamp });
                }
                let end = record.end;
                ring.advance_to(end);
                Ok(true)
            }
            Source::Socket { lane, buffer, len } => {
                match socket(lane).map(|socket| socket.recv_packet(buffer)) {
                    Some(Ok(Some(received))) => *len = received,
                    Some(Ok(None)) | None => return Ok(false),
                    Some(Err(error)) => return Err(broken(reactor, error)),
                }
                Ok(true)
            }
        }
    }

    #[inline(always)]
    fn next_of_batch(&mut self) -> Result<Next<'_>, Error> {
        let reactor = self.reactor;
        let (Some(batch), Source::Ring { ring, at }) = (&mut self.batch, &self.source) else {
            return Err(broken(reactor, "a batch without a ring"));
        };
        let Batch { session, next: index, count, stamp } = *batch;
        batch.next += 1;
        if batch.next >= count {
            self.batch = None;
        }
        let record = ring.peek_at(*at).map_err(|error| broken(reactor, error))?;
        let payload = record
            .and_then(|record| record.bytes.get(HEADER..))
            .and_then(|payload| packet_of(payload, index, count))
            .ok_or_else(|| broken(reactor, "a batch whose packets are not there"))?;
        Ok(Next::Message(Message { kind: RequestKind::Packet, session, payload, stamp }))
    }

    /// Gives the memory of a large packet back once it is handled.
    pub(crate) fn shed(&mut self) {
        self.assembly = Vec::new();
    }
}

enum Way {
    Ring(Producer),
    Socket { lane: Arc<Lane>, pending: Vec<Vec<u8>> },
}

/// Replies to one reactor's sessions.
pub(crate) struct Outlet {
    way: Way,
    reactor: u8,
    piece_max: usize,
    /// Request records finished when the present handler returns: what its replies' commit says.
    ack: u64,
    /// What the last commit said.
    committed: u64,
    /// What was pushed since the last commit, by [`reply_cost`]: 0 means nothing.
    uncommitted: usize,
    /// A packet may be begun again (`on_crash = retry`): nothing of it goes out before it is done.
    whole: bool,
    /// Something was committed since the doorbell was last rung.
    unrung: bool,
    bell: Doorbell,
    room: Doorbell,
    lifeline: Lifeline,
}

impl Outlet {
    /// `bell` wakes the reactor; `room` is rung by it when it has made room.
    pub(crate) fn open(
        lane: &Arc<Lane>,
        reactor: u8,
        bell: Doorbell,
        room: Doorbell,
        lifeline: Lifeline,
        whole: bool,
    ) -> Result<Outlet, swoole_ipc::Error> {
        let (way, piece_max) = match &**lane {
            Lane::Ring { replies, .. } => (Way::Ring(replies.producer()?), replies.capacity() / 4 - HEADER),
            Lane::Socket { .. } => {
                (Way::Socket { lane: Arc::clone(lane), pending: Vec::new() }, SOCKET_PIECE)
            }
        };
        Ok(Outlet {
            way,
            reactor,
            piece_max,
            ack: 0,
            committed: 0,
            uncommitted: 0,
            whole,
            unrung: false,
            bell,
            room,
            lifeline,
        })
    }

    /// A handler begins whose return finishes request record `ack` of this link.
    #[inline]
    pub(crate) fn begin(&mut self, ack: u64) {
        self.ack = ack;
    }

    /// Lets out what was sent so far, if it would be too much with so many bytes more.
    #[inline]
    fn bound(&mut self, bytes: usize) -> Result<(), Error> {
        if self.uncommitted > 0 && self.uncommitted + reply_cost(bytes) > UNCOMMITTED_MAX {
            if self.whole {
                return Err(Error::Uncommitted { max: UNCOMMITTED_MAX });
            }
            self.flush()?;
        }
        Ok(())
    }

    #[inline]
    pub(crate) fn send(&mut self, session: Session, bytes: &[u8]) -> Result<(), Error> {
        self.bound(bytes.len())?;
        bytes.chunks(self.piece_max).try_for_each(|piece| {
            self.push(ReplyKind::Send, session, self.ack, piece)?;
            if piece.len() == self.piece_max {
                breakpoint::pass(Point::ReplyFragment);
            }
            Ok(())
        })
    }

    pub(crate) fn order(&mut self, order: &Order<'_>) -> Result<(), Error> {
        self.bound(order.len())?;
        order.encode(self.piece_max).try_for_each(|piece| self.push_order(&piece))
    }

    fn push_order(&mut self, piece: &[u8]) -> Result<(), Error> {
        self.push(ReplyKind::Order, Session::from_raw(0), self.ack, piece)
    }

    pub(crate) fn close(&mut self, session: Session) -> Result<(), Error> {
        self.push(ReplyKind::Close, session, self.ack, &[])
    }

    pub(crate) fn bind(&mut self, session: Session, uid: u64) -> Result<(), Error> {
        self.push(ReplyKind::Bind, session, self.ack, &uid.to_le_bytes())
    }

    pub(crate) fn measure(&mut self, session: Session, measure: Measure) -> Result<(), Error> {
        self.push(ReplyKind::Measure, session, self.ack, &measure.encode())
    }

    /// A datagram with its address, by this listener.
    pub(crate) fn send_to(&mut self, listener: Session, datagram: &[u8]) -> Result<(), Error> {
        self.bound(datagram.len())?;
        let mut pieces = datagram::pieces(datagram, self.piece_max);
        pieces.try_for_each(|piece| self.push(ReplyKind::Datagram, listener, self.ack, &piece))
    }

    /// A file, which has been put into the reactor's chute when `put` has returned.
    pub(crate) fn send_file(
        &mut self,
        session: Session,
        ticket: Ticket,
        put: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.bound(FILE_COST)?;
        put()?;
        self.measure(session, Measure::SendFile(ticket))?;
        self.uncommitted += FILE_COST;
        Ok(())
    }

    /// What was sent so far stands, although its packet is not finished.
    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        if self.uncommitted > 0 {
            self.push(ReplyKind::Ack, Session::from_raw(0), self.committed, &[])?;
            self.publish()?;
        }
        Ok(())
    }

    /// The handler has returned: its replies and the ack become visible together.
    #[inline]
    pub(crate) fn commit(&mut self) -> Result<(), Error> {
        if self.uncommitted == 0 && self.ack == self.committed {
            return Ok(());
        }
        if self.uncommitted == 0 || !self.is_open() {
            self.push(ReplyKind::Ack, Session::from_raw(0), self.ack, &[])?;
        }
        self.committed = self.ack;
        self.publish()
    }

    /// Wakes the reactor if anything was committed since the last time.
    #[inline]
    pub(crate) fn ring(&mut self) -> Result<(), Error> {
        if std::mem::take(&mut self.unrung) && matches!(self.way, Way::Ring(_)) {
            self.bell.ring().map_err(|error| broken(self.reactor, error))?;
            breakpoint::pass(Point::AfterBell);
        }
        Ok(())
    }

    /// Whether the last record can still be marked as the commit.
    #[inline]
    fn is_open(&self) -> bool {
        match &self.way {
            Way::Ring(replies) => replies.position() != replies.published(),
            Way::Socket { pending, .. } => !pending.is_empty(),
        }
    }

    /// Marks the last record as the commit and lets everything out.
    #[inline]
    fn publish(&mut self) -> Result<(), Error> {
        match &mut self.way {
            Way::Ring(replies) => {
                replies.retag(|tag| tag | COMMIT);
                breakpoint::pass(Point::BeforeCommit);
                replies.publish();
            }
            Way::Socket { lane, pending } => {
                if let Some(tag) = pending.last_mut().and_then(|record| record.first_chunk_mut()) {
                    *tag = (u32::from_le_bytes(*tag) | COMMIT).to_le_bytes();
                }
                breakpoint::pass(Point::BeforeCommit);
                send_all(lane, pending, &self.lifeline, self.reactor)?;
            }
        }
        breakpoint::pass(Point::AfterCommit);
        self.uncommitted = 0;
        self.unrung = true;
        Ok(())
    }

    #[inline]
    fn push(&mut self, kind: ReplyKind, session: Session, ack: u64, piece: &[u8]) -> Result<(), Error> {
        let reply = Reply { kind, commit: false, session, ack };
        match &mut self.way {
            Way::Ring(replies) => {
                while replies.push(reply.tag(), &[&reply.header(), piece]).is_err() {
                    let need = HEADER + piece.len();
                    make_room(replies, need, &self.bell, &self.room, &self.lifeline)
                        .map_err(|reason| broken(self.reactor, reason))?;
                }
            }
            Way::Socket { lane, pending } => {
                if self.uncommitted > 4 * SOCKET_PIECE && pending.len() > 1 {
                    send_all(lane, pending, &self.lifeline, self.reactor)?;
                    breakpoint::pass(Point::ReplyStaged);
                }
                pending.push([&reply.tag().to_le_bytes(), &reply.header()[..], piece].concat());
            }
        }
        self.uncommitted += reply_cost(piece.len());
        Ok(())
    }
}

/// The replies of one worker, to all reactors.
pub(crate) struct Outlets {
    outlets: Vec<Outlet>,
    /// What decides on each packet whether it may be begun again.
    policies: CrashPolicies,
    sessions: SessionTable,
    /// What holds for the present callback.
    whole: bool,
}

impl Outlets {
    /// `lanes`: that of this worker to each reactor.
    pub(crate) fn open(
        lanes: &[Arc<Lane>],
        shared: &Shared,
        worker: u16,
    ) -> Result<Outlets, swoole_ipc::Error> {
        let room = &shared.rooms[usize::from(worker)];
        let policies = shared.listening().crash_policies.clone();
        let whole = policies.only().is_some_and(CrashPolicy::retries);
        let outlets = lanes.iter().zip(&shared.reactor_bells).zip(0..).map(|((lane, bell), reactor)| {
            Outlet::open(lane, reactor, bell.clone(), room.clone(), shared.lifeline.clone(), whole)
        });
        let outlets = outlets.collect::<Result<_, _>>()?;
        Ok(Outlets { outlets, policies, sessions: shared.sessions.clone(), whole })
    }

    /// A packet of this client is begun.
    #[inline]
    pub(crate) fn take_up(&mut self, session: Session) {
        let policy = self.policies.of(|| self.sessions.listener(session));
        self.set_whole(policy.retries());
    }

    /// A callback that belongs to no packet is begun: none that can be begun again.
    pub(crate) fn put_down(&mut self) {
        self.set_whole(false);
    }

    #[inline]
    fn set_whole(&mut self, whole: bool) {
        if std::mem::replace(&mut self.whole, whole) != whole {
            self.outlets.iter_mut().for_each(|outlet| outlet.whole = whole);
        }
    }

    /// That to one reactor.
    #[inline]
    pub(crate) fn to(&mut self, reactor: u16) -> &mut Outlet {
        &mut self.outlets[usize::from(reactor)]
    }

    /// To all reactors.
    pub(crate) fn order_all(&mut self, order: &Order<'_>) -> Result<(), Error> {
        // It is for all of them or for none.
        self.outlets.iter_mut().try_for_each(|outlet| outlet.bound(order.len()))?;
        let piece_max = self.outlets.iter().map(|outlet| outlet.piece_max).min().unwrap_or(1);
        for piece in order.encode(piece_max) {
            self.outlets.iter_mut().try_for_each(|outlet| outlet.push_order(&piece))?;
        }
        Ok(())
    }

    /// What was sent so far stands, and leaves now.
    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        if self.outlets.iter().any(|outlet| outlet.whole && outlet.ack != outlet.committed) {
            return Err(Error::Uncommitted { max: UNCOMMITTED_MAX });
        }
        self.outlets.iter_mut().try_for_each(|outlet| {
            outlet.flush()?;
            outlet.ring()
        })
    }

    /// The callback has returned: its effects become visible, those at the reactor whose message it handled last,
    /// because they carry its ack.
    #[inline]
    pub(crate) fn commit(&mut self, origin: Option<u16>) -> Result<(), Error> {
        let origin = origin.map(usize::from);
        for (reactor, outlet) in self.outlets.iter_mut().enumerate() {
            if Some(reactor) != origin {
                outlet.commit()?;
            }
        }
        origin.map_or(Ok(()), |reactor| self.outlets[reactor].commit())
    }

    /// Wakes the reactors that have something to take.
    #[inline]
    pub(crate) fn ring(&mut self) -> Result<(), Error> {
        self.outlets.iter_mut().try_for_each(Outlet::ring)
    }
}

/// Waits until the ring takes a record of `need` bytes. The reactor always drains, so this ends.
fn make_room(
    replies: &mut Producer,
    need: usize,
    bell: &Doorbell,
    room: &Doorbell,
    lifeline: &Lifeline,
) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| error.to_string();
    if ask_for_room(replies, need, bell)? {
        return Ok(());
    }
    loop {
        room.arm();
        replies.refresh().map_err(|error| failed(&error))?;
        if replies.room() >= need {
            room.disarm();
            return Ok(());
        }
        room.wait(Some(Duration::from_secs(1))).map_err(|error| failed(&error))?;
        if lifeline.is_cut() {
            return Err("the server is gone".into());
        }
    }
}

/// Whether there is room for `need` bytes. If not, the reactor is told to take what is there.
fn ask_for_room(replies: &mut Producer, need: usize, bell: &Doorbell) -> Result<bool, String> {
    replies.refresh().map_err(|error| error.to_string())?;
    if replies.room() >= need {
        return Ok(true);
    }
    replies.publish();
    bell.ring().map_err(|error| error.to_string())?;
    breakpoint::pass(Point::ReplyStaged);
    Ok(false)
}

fn send_all(lane: &Lane, pending: &mut Vec<Vec<u8>>, lifeline: &Lifeline, reactor: u8) -> Result<(), Error> {
    let Some(socket) = socket(lane) else { return Ok(()) };
    for record in pending.drain(..) {
        loop {
            match socket.send_packet(&[IoSlice::new(&record)]) {
                Ok(()) => break,
                Err(swoole_ipc::Error::Full) => {}
                Err(error) => return Err(broken(reactor, error)),
            }
            let mut fds = [PollFd::new(socket, PollFlags::OUT), PollFd::new(lifeline, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(broken(reactor, error)),
            }
            if !fds[1].revents().is_empty() {
                return Err(broken(reactor, "the server is gone"));
            }
        }
    }
    Ok(())
}

fn socket(lane: &Lane) -> Option<&Endpoint> {
    match lane {
        Lane::Socket { worker, .. } => Some(worker),
        Lane::Ring { .. } => None,
    }
}

fn broken(reactor: u8, reason: impl ToString) -> Error {
    Error::Link { reactor, reason: reason.to_string() }
}
