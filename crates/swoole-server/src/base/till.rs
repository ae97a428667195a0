//! What a callback sends in Base mode. It is kept until the callback returns, or asks for a flush, so that it goes out
//! whole or not at all, and everything for one client in one system call.

use std::io::IoSlice;

use swoole_reactor::{FileRange, Reactor};

use crate::audience::Order;
use crate::desk::{Desk, Replies};
use crate::link::{FILE_COST, ReplySink as _, UNCOMMITTED_MAX};
use crate::measure::Measure;
use crate::session::Session;

/// Memory that an empty outbox keeps, in bytes.
const KEPT: usize = 1 << 20;
/// From so many bytes on, what is sent is kept by itself, so that what the client does not take at once need not be
/// copied again.
const LARGE: usize = 256 << 10;

/// What waits for a callback's end, in the order in which it was sent.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    /// Bytes that are kept by themselves.
    large: usize,
    acts: Vec<Act>,
}

#[derive(Debug)]
struct Act {
    session: Session,
    what: What,
}

#[derive(Debug)]
enum What {
    /// What ends here in `bytes`.
    Send {
        end: usize,
    },
    Large(Vec<u8>),
    Close,
    /// For many, whoever the session is.
    Order(Vec<u8>),
    Bind(u64),
    Measure(Measure),
    /// By the listener that stands in the session's place.
    Datagram(Vec<u8>),
    File(FileRange),
}

impl Outbox {
    fn send(&mut self, session: Session, bytes: &[u8]) {
        if bytes.len() >= LARGE {
            self.large += bytes.len();
            return self.acts.push(Act { session, what: What::Large(bytes.to_vec()) });
        }
        self.bytes.extend_from_slice(bytes);
        let now = self.bytes.len();
        match self.acts.last_mut() {
            Some(Act { session: last, what: What::Send { end } }) if *last == session => *end = now,
            _ => self.acts.push(Act { session, what: What::Send { end: now } }),
        }
    }

    fn close(&mut self, session: Session) {
        self.acts.push(Act { session, what: What::Close });
    }

    fn order(&mut self, order: Vec<u8>) {
        self.large += order.len();
        self.acts.push(Act { session: Session::from_raw(0), what: What::Order(order) });
    }

    fn bind(&mut self, session: Session, uid: u64) {
        self.acts.push(Act { session, what: What::Bind(uid) });
    }

    fn measure(&mut self, session: Session, measure: Measure) {
        self.acts.push(Act { session, what: What::Measure(measure) });
    }

    fn send_to(&mut self, listener: Session, datagram: Vec<u8>) {
        self.large += datagram.len();
        self.acts.push(Act { session: listener, what: What::Datagram(datagram) });
    }

    /// Whether the callback wants this session closed.
    pub(super) fn closes(&self, session: Session) -> bool {
        let closes = |what: &What| matches!(what, What::Close | What::Measure(Measure::Reset));
        self.acts.iter().any(|act| act.session == session && closes(&act.what))
    }

    fn deliver(&mut self, desk: &mut Desk, reactor: &mut Reactor) {
        let mut replies = Replies { desk, reactor };
        let mut start = 0;
        for Act { session, what } in self.acts.drain(..) {
            match what {
                What::Send { end } => {
                    replies.send(session, &[IoSlice::new(&self.bytes[start..end])]);
                    start = end;
                }
                What::Large(bytes) => replies.send_owned(session, bytes),
                What::Close => replies.close(session),
                What::Order(order) => replies.order(&order),
                What::Bind(uid) => replies.bind(session, uid),
                What::Measure(measure) => replies.measure(session, measure),
                What::Datagram(datagram) => replies.send_to(session, &datagram),
                What::File(range) => replies.send_file(session, range),
            }
        }
        self.large = 0;
        self.bytes.clear();
        self.bytes.shrink_to(KEPT);
    }
}

/// Where a callback sends to.
pub(crate) struct Till<'a> {
    pub(super) desk: &'a mut Desk,
    pub(super) reactor: &'a mut Reactor,
    pub(super) outbox: &'a mut Outbox,
}

impl Till<'_> {
    /// Which worker this is.
    pub(crate) fn id(&self) -> u16 {
        self.desk.id()
    }

    /// For a client of this worker's own, as in [`close`](Till::close).
    pub(crate) fn send(&mut self, session: Session, bytes: &[u8]) {
        self.bound(bytes.len());
        self.outbox.send(session, bytes);
    }

    /// Lets out what was sent so far, if it would be too much with so many bytes more.
    fn bound(&mut self, bytes: usize) {
        if self.outbox.bytes.len() + self.outbox.large + bytes > UNCOMMITTED_MAX {
            self.deliver();
        }
    }

    /// For this worker's own clients.
    pub(crate) fn order(&mut self, order: &Order<'_>) {
        self.bound(order.len());
        order.encode(usize::MAX).for_each(|order| self.outbox.order(order));
    }

    pub(crate) fn close(&mut self, session: Session) {
        self.outbox.close(session);
    }

    pub(crate) fn bind(&mut self, session: Session, uid: u64) {
        self.outbox.bind(session, uid);
    }

    pub(crate) fn measure(&mut self, session: Session, measure: Measure) {
        self.outbox.measure(session, measure);
    }

    /// A datagram with its address, by this worker's socket of that listener.
    pub(crate) fn send_to(&mut self, listener: Session, datagram: Vec<u8>) {
        self.bound(datagram.len());
        self.outbox.send_to(listener, datagram);
    }

    pub(crate) fn send_file(&mut self, session: Session, range: FileRange) {
        self.bound(FILE_COST);
        self.outbox.large += FILE_COST;
        self.outbox.acts.push(Act { session, what: What::File(range) });
    }

    /// What was sent so far leaves now, though the callback goes on.
    pub(crate) fn flush(&mut self) {
        self.deliver();
        self.reactor.submit();
    }

    /// Everything so far goes out.
    pub(crate) fn deliver(&mut self) {
        if !self.outbox.acts.is_empty() {
            self.outbox.deliver(self.desk, self.reactor);
        }
    }
}
