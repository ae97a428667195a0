//! What a callback sends in Base mode. It is kept until the callback returns, or asks for a flush, so that it goes out
//! whole or not at all, and everything for one client in one system call.

use std::io::IoSlice;

use swoole_reactor::Reactor;

use super::mesh::MeshEnd;
use crate::desk::{Desk, Replies};
use crate::error::Result;
use crate::link::{ReplySink as _, UNCOMMITTED_MAX};
use crate::session::Session;

/// Memory that an empty outbox keeps, in bytes.
const KEPT: usize = 1 << 20;

/// What waits for a callback's end, in the order in which it was sent.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    acts: Vec<Act>,
}

#[derive(Debug)]
struct Act {
    session: Session,
    /// Where its bytes end in `bytes`; `None` closes.
    end: Option<usize>,
}

impl Outbox {
    fn send(&mut self, session: Session, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        let end = Some(self.bytes.len());
        match self.acts.last_mut() {
            Some(last) if last.session == session && last.end.is_some() => last.end = end,
            _ => self.acts.push(Act { session, end }),
        }
    }

    fn close(&mut self, session: Session) {
        self.acts.push(Act { session, end: None });
    }

    /// Whether the callback wants this session closed.
    pub(super) fn closes(&self, session: Session) -> bool {
        self.acts.iter().any(|act| act.session == session && act.end.is_none())
    }

    fn deliver(&mut self, desk: &mut Desk, reactor: &mut Reactor) {
        let mut replies = Replies { desk, reactor };
        let mut start = 0;
        for Act { session, end } in self.acts.drain(..) {
            match end {
                Some(end) => {
                    replies.send(session, &[IoSlice::new(&self.bytes[start..end])]);
                    start = end;
                }
                None => replies.close(session),
            }
        }
        self.bytes.clear();
        self.bytes.shrink_to(KEPT);
    }
}

/// Where a callback sends to.
pub(crate) struct Till<'a> {
    pub(super) desk: &'a mut Desk,
    pub(super) reactor: &'a mut Reactor,
    pub(super) outbox: &'a mut Outbox,
    pub(super) mesh: &'a mut MeshEnd,
}

impl Till<'_> {
    /// `owner`: the worker that has the session.
    pub(crate) fn send(&mut self, owner: u16, session: Session, bytes: &[u8]) -> Result<()> {
        if owner != self.desk.id() {
            return self.mesh.send(owner, session, bytes);
        }
        if self.outbox.bytes.len() + bytes.len() > UNCOMMITTED_MAX {
            self.deliver();
        }
        self.outbox.send(session, bytes);
        Ok(())
    }

    pub(crate) fn close(&mut self, owner: u16, session: Session) -> Result<()> {
        if owner != self.desk.id() {
            return self.mesh.close(owner, session);
        }
        self.outbox.close(session);
        Ok(())
    }

    /// Everything so far goes out.
    pub(crate) fn deliver(&mut self) {
        if !self.outbox.acts.is_empty() {
            self.outbox.deliver(self.desk, self.reactor);
        }
        self.mesh.pump();
    }
}
