//! A message that a worker died on.

use std::time::{Duration, Instant};

use super::window::{Parcel, Sent};
use crate::crash::{CrashPolicy, Fate, PacketInHand};
use crate::datagram;
use crate::session::Session;
use crate::wire::RequestKind;

/// What a worker has died on, and what becomes of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Casualty {
    pub(crate) kind: RequestKind,
    pub(crate) session: Session,
    pub(crate) size: usize,
    /// Which worker in a row that was, from 1; and when the first one got it.
    pub(crate) attempt: u32,
    pub(crate) since: Option<Instant>,
    pub(crate) fate: Fate,
}

impl Casualty {
    /// `sent` was in its hands since `handed`; `parcel` is the message itself, if there is still one.
    pub(super) fn new(
        sent: &Sent,
        parcel: Option<&Parcel>,
        handed: Option<Instant>,
        policy: impl Fn(Session) -> CrashPolicy,
    ) -> Casualty {
        let Some(parcel) = parcel else { return Casualty { since: handed, ..Casualty::lost(sent) } };
        let fate = policy(parcel.session).fate(parcel.attempt);
        let size = match parcel.kind {
            RequestKind::Datagram => datagram::len_of(&parcel.bytes),
            _ => parcel.bytes.len(),
        };
        Casualty {
            kind: parcel.kind,
            session: parcel.session,
            size,
            attempt: parcel.attempt,
            since: parcel.since.or(handed),
            fate: without_connection(parcel.kind, fate),
        }
    }

    /// The message is not there any more: a dying worker has written over it.
    pub(super) fn lost(sent: &Sent) -> Casualty {
        let Sent { kind, session, size, .. } = *sent;
        Casualty {
            kind,
            session,
            size,
            attempt: 1,
            since: None,
            fate: without_connection(kind, Fate::Closed),
        }
    }

    /// What the world is told of it, if it is a packet.
    pub(crate) fn packet(&self) -> Option<PacketInHand> {
        let Casualty { kind, session, size, attempt, since, fate } = *self;
        let age: Option<Duration> = since.map(|since| since.elapsed());
        kind.is_packet().then_some(PacketInHand { session, size: size as u64, attempt, age, fate })
    }
}

/// A datagram has no connection that could be closed.
fn without_connection(kind: RequestKind, fate: Fate) -> Fate {
    if kind == RequestKind::Datagram && fate == Fate::Closed { Fate::Dropped } else { fate }
}
