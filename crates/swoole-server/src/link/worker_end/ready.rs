//! For a worker that may not wait, because who makes room has its turn on the same thread.

use std::io::IoSlice;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use swoole_ipc::socketpair::Endpoint;

use super::{HEADER, Inbox, Outlet, Outlets, Source, Way, ask_for_room, broken, socket};
use crate::error::Error;

impl Inbox {
    /// Whether a socket has something.
    pub(crate) fn is_readable(&self) -> bool {
        match &self.source {
            Source::Ring { .. } => false,
            Source::Socket { lane, .. } => socket(lane).is_some_and(|it| is_ready(it, PollFlags::IN)),
        }
    }

    /// The record that was taken last, as it stands in the ring or in the buffer now.
    pub(crate) fn record(&self) -> &[u8] {
        match &self.source {
            Source::Ring { ring, at } => ring.peek_at(*at).ok().flatten().map_or(&[], |record| record.bytes),
            Source::Socket { buffer, len, .. } => &buffer[..*len],
        }
    }
}

impl Outlet {
    /// Bytes of a reply that one record holds.
    pub(crate) fn piece_max(&self) -> usize {
        self.piece_max
    }

    /// Whether [`send`](Self::send) would not wait for room for this piece. If it would, it has begun to. A socket that
    /// takes anything is three quarters empty, which is more than the replies to a message.
    pub(crate) fn may_send(&mut self, piece: usize) -> Result<bool, Error> {
        let replies = match &mut self.way {
            Way::Ring(replies) => replies,
            Way::Socket { lane, .. } => return Ok(socket(lane).is_none_or(|it| is_ready(it, PollFlags::OUT))),
        };
        let need = HEADER + piece;
        if replies.room() >= need {
            return Ok(true);
        }
        ask_for_room(replies, need, &self.bell).map_err(|reason| broken(self.reactor, reason))
    }

    /// The same for [`commit`](Self::commit).
    pub(crate) fn may_commit(&mut self) -> Result<bool, Error> {
        let nothing = self.uncommitted == 0 && self.ack == self.committed;
        let needs_no_room = matches!(self.way, Way::Ring(_)) && self.uncommitted > 0 && self.is_open();
        if nothing || needs_no_room { Ok(true) } else { self.may_send(0) }
    }
}

impl Outlets {
    /// Dies amid a commit to this reactor: so many records are in the socket, but not the last one, which says that it is
    /// one. In a ring, all become visible together.
    pub(crate) fn spill(&mut self, reactor: usize, count: usize) {
        let Way::Socket { lane, pending } = &self.outlets[reactor].way else { return };
        let Some(socket) = socket(lane).filter(|it| is_ready(it, PollFlags::OUT)) else { return };
        for record in pending.iter().take(count.min(pending.len().saturating_sub(1))) {
            // What finds no room is not sent: that, too, can be where it dies.
            let _ = socket.send_packet(&[IoSlice::new(record)]);
        }
    }

    /// Whether [`commit`](Self::commit) would not wait for room.
    pub(crate) fn may_commit(&mut self) -> Result<bool, Error> {
        self.outlets.iter_mut().try_fold(true, |may, outlet| Ok(outlet.may_commit()? && may))
    }

    /// Whether [`flush`](Self::flush) would not wait for room; see [`Outlet::may_send`].
    pub(crate) fn may_flush(&mut self) -> Result<bool, Error> {
        let outlets = self.outlets.iter_mut().filter(|outlet| outlet.uncommitted > 0);
        outlets.into_iter().try_fold(true, |may, outlet| Ok(outlet.may_send(0)? && may))
    }
}

fn is_ready(socket: &Endpoint, what: PollFlags) -> bool {
    let mut fds = [PollFd::new(socket, what)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}
