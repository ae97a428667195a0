//! Replies on their way out of a link: put together for one system call, or held back until their commit comes.

use std::io::IoSlice;

use super::reactor_end::{Fault, ReplySink};
use super::reply_cost;
use crate::measure::Measure;
use crate::session::Session;
use crate::wire::{Reply, ReplyKind, uid_of};

/// Replies to one session that go out in one system call.
const GATHER: usize = 32;

/// Replies that follow each other to one session, until another one's turn.
pub(super) struct Gather<'a> {
    to: Session,
    parts: [IoSlice<'a>; GATHER],
    count: usize,
}

impl Default for Gather<'_> {
    fn default() -> Self {
        Self { to: Session::from_raw(0), parts: [IoSlice::new(&[]); GATHER], count: 0 }
    }
}

impl<'a> Gather<'a> {
    #[inline]
    pub(super) fn take(&mut self, sink: &mut dyn ReplySink, reply: Reply, payload: &'a [u8]) {
        let joins = reply.kind == ReplyKind::Send && self.to == reply.session && self.count < GATHER;
        if !joins {
            self.flush(sink);
        }
        match reply.kind {
            ReplyKind::Ack => {}
            ReplyKind::Close => sink.close(reply.session),
            ReplyKind::Order => sink.order(payload),
            ReplyKind::Bind => sink.bind(reply.session, uid_of(payload)),
            ReplyKind::Measure => measure(sink, reply.session, payload),
            ReplyKind::Datagram => sink.datagram(reply.session, payload),
            ReplyKind::Send => {
                self.parts[self.count] = IoSlice::new(payload);
                self.count += 1;
                self.to = reply.session;
            }
        }
    }

    #[inline]
    pub(super) fn flush(&mut self, sink: &mut dyn ReplySink) {
        if self.count > 0 {
            sink.send(self.to, &self.parts[..self.count]);
            self.count = 0;
        }
    }
}

/// One that cannot be decoded has not come so far.
#[cold]
fn measure(sink: &mut dyn ReplySink, session: Session, payload: &[u8]) {
    if let Some(measure) = Measure::decode(payload) {
        sink.measure(session, measure);
    }
}

/// Replies whose commit has not come yet.
pub(super) struct Staging {
    replies: Vec<(Reply, Vec<u8>)>,
    cost: usize,
    max: usize,
}

impl Staging {
    /// Holds back at most `max` bytes, by their cost.
    pub(super) fn new(max: usize) -> Self {
        Self { replies: Vec::new(), cost: 0, max }
    }

    pub(super) fn push(&mut self, reply: Reply, payload: &[u8]) -> Result<(), Fault> {
        self.cost += reply_cost(payload.len());
        if self.cost > self.max {
            return Err(Fault::Hoarding(self.max));
        }
        self.replies.push((reply, payload.to_vec()));
        Ok(())
    }

    pub(super) fn deliver(&mut self, sink: &mut dyn ReplySink) {
        for (reply, payload) in self.replies.drain(..) {
            match reply.kind {
                ReplyKind::Ack => {}
                ReplyKind::Close => sink.close(reply.session),
                ReplyKind::Order => sink.order(&payload),
                ReplyKind::Bind => sink.bind(reply.session, uid_of(&payload)),
                ReplyKind::Measure => measure(sink, reply.session, &payload),
                ReplyKind::Datagram => sink.datagram(reply.session, &payload),
                ReplyKind::Send => sink.send_owned(reply.session, payload),
            }
        }
        self.cost = 0;
    }

    pub(super) fn clear(&mut self) {
        self.replies.clear();
        self.cost = 0;
    }
}
