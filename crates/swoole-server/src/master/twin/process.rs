//! A worker process, one micro-step at a time: what [`worker::life`](crate::worker) does, in its order, over the real
//! ends of its links.

use std::fmt;
use std::sync::Arc;

use super::ledger::{CLOSE, Ledger, Name};
use super::tally::{Breach, Kind, breach};
use crate::link::{Inbox, Lane, Next, Outlets};
use crate::session::Session;
use crate::shared::Shared;
use crate::wire::RequestKind;

/// Messages that are taken from one reactor before the next one's turn. So few that turns end often.
const BUDGET: usize = 4;

/// Where in its life a process is, or was when it died.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Moment {
    Starting,
    Idle,
    /// It has a fragment, and has not said so.
    Fragment,
    /// It has a message, and has not said so.
    Taken,
    /// It has said so, and has sent nothing.
    Begun,
    /// Some replies are written, and the next is not begun.
    Replying,
    /// A reply is half written.
    MidReply,
    /// All is written, and not committed.
    Uncommitted,
    /// All is committed; it has not moved on yet.
    Committed,
    /// It was asked to retire, and had nothing in hand.
    Retiring,
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Moment::Starting => "while starting",
            Moment::Idle => "between two messages",
            Moment::Fragment => "at a fragment",
            Moment::Taken => "before a message was begun",
            Moment::Begun => "before its replies",
            Moment::Replying => "between two replies",
            Moment::MidReply => "in a reply",
            Moment::Uncommitted => "before the commit",
            Moment::Committed => "after the commit",
            Moment::Retiring => "while retiring",
        })
    }
}

/// What became of a micro-step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Went {
    On,
    /// It starts to serve with this step.
    Ready,
    /// It has to wait for somebody.
    Nowhere,
    /// It ends itself, in order.
    Out,
    /// It has come to what it dies on.
    Dead,
}

enum At {
    Forked,
    Claimed,
    /// Looks for the next record of the reactor whose turn it is.
    Looking,
    Fragment,
    InHand(Hand),
    /// The turn of a reactor is over.
    TurnOver,
}

struct Hand {
    name: Name,
    session: Session,
    record: u64,
    begun: bool,
    /// The reply that comes next, and how much of it is written.
    reply: usize,
    written: usize,
    committed: bool,
    /// The record as it was, which stays as it is until it is acknowledged.
    content: Vec<u8>,
}

/// What a process had in hand, and had said so, when it died.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) reactor: usize,
    pub(super) name: Name,
    pub(super) session: Session,
}

pub(super) struct Process {
    pub(super) slot: u16,
    pub(super) generation: u32,
    at: At,
    inboxes: Vec<Inbox>,
    outlets: Option<Outlets>,
    /// Whose turn it is, how many messages it had in it, and whether this pass has found any.
    reactor: usize,
    taken: usize,
    worked: bool,
    asleep: bool,
    /// It serves, and its manager has heard of it.
    pub(super) ready: bool,
    pub(super) told: bool,
    pub(super) retiring: bool,
    /// It does nothing any more, and does not end either.
    pub(super) stuck: bool,
    bytes: Vec<u8>,
}

impl Process {
    pub(super) fn new(slot: u16, generation: u32) -> Process {
        Process {
            slot,
            generation,
            at: At::Forked,
            inboxes: Vec::new(),
            outlets: None,
            reactor: 0,
            taken: 0,
            worked: false,
            asleep: false,
            ready: false,
            told: false,
            retiring: false,
            stuck: false,
            bytes: Vec::new(),
        }
    }

    pub(super) fn moment(&self) -> Moment {
        match &self.at {
            At::Forked | At::Claimed => Moment::Starting,
            At::Looking | At::TurnOver if self.retiring => Moment::Retiring,
            At::Looking | At::TurnOver => Moment::Idle,
            At::Fragment => Moment::Fragment,
            At::InHand(hand) if hand.committed => Moment::Committed,
            At::InHand(hand) if !hand.begun => Moment::Taken,
            At::InHand(hand) if hand.written > 0 => Moment::MidReply,
            At::InHand(hand) if hand.reply == 0 => Moment::Begun,
            At::InHand(hand) if hand.reply == usize::MAX => Moment::Uncommitted,
            At::InHand(_) => Moment::Replying,
        }
    }

    pub(super) fn held(&self) -> Option<Held> {
        let At::InHand(hand) = &self.at else { return None };
        let held = Held { reactor: self.reactor, name: hand.name, session: hand.session };
        (hand.begun && !hand.committed).then_some(held)
    }

    /// Whether it sleeps until somebody rings.
    pub(super) fn sleeps(&self, shared: &Shared) -> bool {
        self.stuck || self.asleep && !self.retiring && shared.bells[usize::from(self.slot)].is_armed()
    }

    pub(super) fn step(
        &mut self,
        shared: &Shared,
        lanes: &[Arc<Lane>],
        ledger: &mut Ledger,
    ) -> Result<Went, Breach> {
        if self.stuck {
            return Ok(Went::Nowhere);
        }
        let failed =
            |what: &dyn fmt::Display| Breach { kind: Kind::Fault, what: format!("a worker: {what}") };
        let bell = &shared.bells[usize::from(self.slot)];
        if std::mem::take(&mut self.asleep) {
            bell.disarm();
            shared.board.set_busy(self.slot, true);
        }
        let Some(outlets) = &mut self.outlets else {
            shared.board.enter(self.slot, self.generation);
            let inboxes = lanes.iter().zip(0..).map(|(lane, reactor)| Inbox::open(lane, reactor));
            self.inboxes = inboxes.collect::<Result<_, _>>().map_err(|error| failed(&error))?;
            let outlets = Outlets::open(lanes, shared, self.slot).map_err(|error| failed(&error))?;
            self.outlets = Some(outlets);
            self.at = At::Claimed;
            return Ok(Went::On);
        };
        let failed = |error: crate::Error| failed(&error);
        match &mut self.at {
            At::Forked | At::Claimed => {
                outlets.commit(None).map_err(failed)?;
                self.ready = true;
                self.at = At::Looking;
                return Ok(Went::Ready);
            }
            At::Looking if self.retiring || self.taken == BUDGET => self.at = At::TurnOver,
            At::Looking => return self.take(ledger).map(|()| Went::On),
            At::Fragment => {
                self.inboxes[self.reactor].finish();
                self.at = At::Looking;
            }
            At::TurnOver => {
                let outlet = outlets.to(self.reactor as u16);
                if !outlet.may_commit().map_err(failed)? {
                    return Ok(Went::Nowhere);
                }
                outlet.commit().map_err(failed)?;
                (self.taken, self.at) = (0, At::Looking);
                self.reactor += 1;
                if self.reactor == self.inboxes.len() {
                    self.reactor = 0;
                    outlets.ring().map_err(failed)?;
                    return Ok(self.end_of_pass(shared));
                }
            }
            At::InHand(hand) if hand.committed => {
                self.inboxes[self.reactor].finish();
                self.at = At::Looking;
            }
            At::InHand(hand) if !hand.begun => {
                outlets.to(self.reactor as u16).begin(hand.record);
                shared.board.start(self.slot, self.reactor, hand.record);
                hand.begun = true;
            }
            At::InHand(hand) if hand.reply < usize::MAX => {
                let item = ledger.item(hand.name);
                if item.poison == Some(hand.reply) && hand.written == 0 {
                    return Ok(Went::Dead);
                }
                let left = !shared.sessions.exists(hand.session);
                if hand.reply == item.replies.len() || hand.written == 0 && left {
                    (hand.reply, hand.written) = (usize::MAX, 0);
                    return Ok(Went::On);
                }
                if hand.written == 0 {
                    ledger.reply(hand.name, hand.reply, &mut self.bytes);
                }
                let outlet = outlets.to(self.reactor as u16);
                let rest = &self.bytes[hand.written..];
                let piece = &rest[..rest.len().min(outlet.piece_max())];
                if !outlet.may_send(piece.len()).map_err(failed)? {
                    return Ok(Went::Nowhere);
                }
                outlet.send(hand.session, piece).map_err(failed)?;
                hand.written += piece.len();
                if hand.written == self.bytes.len() {
                    (hand.reply, hand.written) = (hand.reply + 1, 0);
                }
            }
            At::InHand(hand) => {
                if !outlets.may_commit().map_err(failed)? {
                    return Ok(Went::Nowhere);
                }
                if self.inboxes[self.reactor].record() != hand.content {
                    return breach(Kind::Torn, format!("{:?} has changed in its worker's hands", hand.name));
                }
                outlets.commit(Some(self.reactor as u16)).map_err(failed)?;
                hand.committed = true;
                ledger.committed(hand.name)?;
            }
        }
        Ok(Went::On)
    }

    /// Takes the next record in hand, if there is one.
    fn take(&mut self, ledger: &mut Ledger) -> Result<(), Breach> {
        let inbox = &mut self.inboxes[self.reactor];
        let record = inbox.current();
        match inbox.next().map_err(|error| Breach { kind: Kind::Fault, what: error.to_string() })? {
            Next::Empty => {
                self.at = At::TurnOver;
                return Ok(());
            }
            Next::Fragment => {
                if let Some(outlets) = &mut self.outlets {
                    outlets.to(self.reactor as u16).begin(record);
                }
                self.at = At::Fragment;
            }
            Next::Message(message) => {
                let session = message.session;
                let name = match (message.kind, ledger.of(session)) {
                    (RequestKind::Packet, _) => ledger.read(session, message.payload)?,
                    (RequestKind::Connect, Some(client)) => Name { client, number: 0 },
                    (RequestKind::Close, Some(client)) => Name { client, number: CLOSE },
                    (kind, client) => {
                        let what = format!("a worker gets a {kind:?} of {session:?}, client {client:?}");
                        return breach(Kind::Misdelivered, what);
                    }
                };
                let content = inbox.record().to_vec();
                let (begun, committed) = (false, false);
                let hand = Hand { name, session, record, begun, reply: 0, written: 0, committed, content };
                self.at = At::InHand(hand);
            }
        }
        self.taken += 1;
        self.worked = true;
        Ok(())
    }

    /// Leaves if it is asked to, or sleeps if nobody has anything.
    fn end_of_pass(&mut self, shared: &Shared) -> Went {
        let bell = &shared.bells[usize::from(self.slot)];
        if self.retiring {
            shared.board.set_busy(self.slot, false);
            return Went::Out;
        }
        if std::mem::take(&mut self.worked) {
            return Went::On;
        }
        bell.arm();
        if self.inboxes.iter().any(Inbox::has_news) {
            bell.disarm();
            return Went::On;
        }
        self.asleep = true;
        shared.board.set_busy(self.slot, false);
        Went::Nowhere
    }
}
