//! What was received from one client, straight into the ring: many packets, one record, no copy.

use std::ops::Range;

use super::ReactorEnd;
use super::reactor_end::Side;
use super::window::Sent;
use crate::session::Session;
use crate::shed;
use crate::wire::{HEADER, PLACE, Request, RequestKind, place};

/// Packets of one batch, which bounds the room that their places take.
pub(crate) const BATCH_MAX: usize = 128;

impl ReactorEnd {
    /// Bytes that a record holds at most.
    pub(crate) fn record_max(&self) -> usize {
        self.piece_max
    }

    /// Free memory of the ring to receive into, as much as a record may hold. `None` without a ring, and when there is
    /// no room for `least` bytes, or for as many as a record may hold.
    pub(crate) fn space(&mut self, least: usize) -> Option<&mut [u8]> {
        let most = self.piece_max;
        let Side::Ring { requests, .. } = &mut self.side else { return None };
        if !self.backlog.is_empty() {
            return None;
        }
        let room = requests.room().checked_sub(HEADER + BATCH_MAX * PLACE)?.min(most);
        if room < least.clamp(1, most) {
            return None;
        }
        requests.reserve(HEADER + room).map(|record| &mut record[HEADER..])
    }

    /// Makes a record of these packets, at most [`BATCH_MAX`], which stand in what [`space`](Self::space) gave last.
    pub(crate) fn send_batch(&mut self, session: Session, packets: &[Range<usize>]) {
        let (Some(last), Side::Ring { requests, .. }) = (packets.last(), &mut self.side) else { return };
        let bytes = last.end;
        let (kind, places, total) = match packets {
            // Where its framing has put something before it, its place must be told.
            [only] if only.start == 0 => (RequestKind::Packet, 0, only.len()),
            many => (RequestKind::Batch, many.len(), many.len()),
        };
        let stamp = if self.stamps { shed::stamp() } else { 0 };
        let request = Request { kind, first: true, last: true, session, total, stamp };
        let size = HEADER + bytes + places * PLACE;
        let Some(record) = requests.reserve(size) else { return };
        record[..HEADER].copy_from_slice(&request.header());
        for (at, packet) in record[HEADER + bytes..].chunks_exact_mut(PLACE).zip(packets) {
            at.copy_from_slice(&place(packet));
        }
        let start = requests.position();
        requests.commit(request.tag(), size);
        let (items, end) = (packets.len() as u32, requests.position());
        self.dirty = true;
        self.window.push(Sent {
            kind,
            session,
            last: true,
            size: bytes,
            items,
            done: 0,
            start,
            end,
            kept: None,
        });
        self.tell();
    }
}
