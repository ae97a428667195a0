//! A worker process, one micro-step at a time: what [`worker::life`](crate::worker) does, in its order, over the real
//! ends of its links.

use std::fmt;
use std::sync::Arc;

use super::ledger::{Act, CLOSE, Ledger, Name};
use super::tally::{Breach, Kind, breach};
use crate::board::{Lease, Phase};
use crate::config::OnCrash;
use crate::link::{Inbox, Lane, Next, Outlets};
use crate::session::Session;
use crate::shared::Shared;
use crate::stats::WorkerState;
use crate::wire::RequestKind;

/// Messages that are taken from one reactor before the next one's turn. So few that turns end often.
const BUDGET: usize = 4;

/// Where in its life a process is, or was when it died.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Moment {
    Starting,
    /// It has done what comes before it serves, and does not serve yet.
    Started,
    Idle,
    /// It has a fragment, and has not said so.
    Fragment,
    /// It has a message, and has not said so.
    Taken,
    /// It has said so, and has sent nothing.
    Begun,
    /// Something is sent, and the next is not begun.
    Replying,
    /// A reply is half written.
    MidReply,
    /// All is written, and not committed.
    Uncommitted,
    /// What is for the clients of another reactor is committed, and what is for those of its own is not.
    Committing,
    /// All is committed; it has not moved on yet.
    Committed,
    /// It was asked to retire, and had nothing in hand.
    Retiring,
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Moment::Starting => "while starting",
            Moment::Started => "before it served",
            Moment::Idle => "between two messages",
            Moment::Fragment => "at a fragment",
            Moment::Taken => "before a message was begun",
            Moment::Begun => "before its replies",
            Moment::Replying => "between two replies",
            Moment::MidReply => "in a reply",
            Moment::Uncommitted => "before the commit",
            Moment::Committing => "in the commit",
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
    /// The slot is its own.
    Taken,
    /// So are the links.
    Claimed,
    Started,
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
    /// What it does next, and how much of that is written.
    act: usize,
    written: usize,
    /// The reactor whose clients' commit comes next, once all is done; the message's own comes last.
    committing: usize,
    committed: bool,
    /// What it has sent and has not let out: to which reactor, and what.
    sent: Vec<(u16, Act)>,
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

fn failed(error: crate::Error) -> Breach {
    Breach { kind: Kind::Fault, what: format!("a worker: {error}") }
}

/// When all of a message's acts are done.
const DONE: usize = usize::MAX;

pub(super) struct Process {
    pub(super) slot: u16,
    pub(super) generation: u32,
    pub(super) pid: i32,
    pub(super) parent: i32,
    /// Of the manager that has forked it, which it believes to be its parent.
    reign: u64,
    believed: i32,
    orphan: bool,
    at: At,
    inboxes: Vec<Inbox>,
    outlets: Option<Outlets>,
    /// Whose turn it is, how many messages it had in it, and whether this pass has found any.
    reactor: usize,
    taken: usize,
    worked: bool,
    asleep: bool,
    /// It was asked to end, by its manager or the kernel, and has not looked yet.
    pub(super) asked: bool,
    /// There is a reason for it to look.
    pub(super) woken: bool,
    /// It serves, and its manager has heard of it.
    pub(super) ready: bool,
    pub(super) told: bool,
    retiring: bool,
    /// It does nothing any more, and does not end either.
    pub(super) stuck: bool,
    /// It is killed, and has not noticed.
    pub(super) doomed: bool,
    bytes: Vec<u8>,
}

impl Process {
    pub(super) fn new((slot, generation): (u16, u32), pid: i32, manager: i32, reign: u64) -> Process {
        Process {
            slot,
            generation,
            pid,
            parent: manager,
            reign,
            believed: manager,
            orphan: false,
            at: At::Forked,
            inboxes: Vec::new(),
            outlets: None,
            reactor: 0,
            taken: 0,
            worked: false,
            asleep: false,
            asked: false,
            woken: false,
            ready: false,
            told: false,
            retiring: false,
            stuck: false,
            doomed: false,
            bytes: Vec::new(),
        }
    }

    /// Whether it has taken the links of its slot.
    pub(super) fn has_links(&self) -> bool {
        self.outlets.is_some()
    }

    /// It dies, and some of what it has in hand is half sent.
    pub(super) fn spill(&mut self, count: usize) {
        if let Some(outlets) = &mut self.outlets {
            outlets.spill(self.reactor, count);
        }
    }

    /// Whether it takes them with its next step.
    pub(super) fn takes_links(&self) -> bool {
        matches!(self.at, At::Taken)
    }

    pub(super) fn moment(&self) -> Moment {
        match &self.at {
            At::Forked | At::Taken | At::Claimed => Moment::Starting,
            At::Started => Moment::Started,
            At::Looking | At::TurnOver if self.retiring => Moment::Retiring,
            At::Looking | At::TurnOver => Moment::Idle,
            At::Fragment => Moment::Fragment,
            At::InHand(hand) if hand.committed => Moment::Committed,
            At::InHand(hand) if !hand.begun => Moment::Taken,
            At::InHand(hand) if hand.written > 0 => Moment::MidReply,
            At::InHand(hand) if hand.act == 0 => Moment::Begun,
            At::InHand(hand) if hand.committing > 0 => Moment::Committing,
            At::InHand(hand) if hand.act == DONE => Moment::Uncommitted,
            At::InHand(_) => Moment::Replying,
        }
    }

    pub(super) fn held(&self) -> Option<Held> {
        let At::InHand(hand) = &self.at else { return None };
        let held = Held { reactor: self.reactor, name: hand.name, session: hand.session };
        (hand.begun && !hand.committed).then_some(held)
    }

    /// Whether it sleeps until somebody wakes it.
    pub(super) fn sleeps(&self, shared: &Shared) -> bool {
        let is_rung = || !shared.bells[usize::from(self.slot)].is_armed();
        self.stuck || self.asleep && !self.woken && !is_rung() && !self.inboxes.iter().any(Inbox::is_readable)
    }

    /// Notes what signals and the board want.
    fn look(&mut self, shared: &Shared) {
        let asked = std::mem::take(&mut self.asked);
        self.woken = false;
        if self.parent == self.believed {
            self.retiring |= asked;
        } else {
            (self.believed, self.orphan) = (self.parent, true);
        }
        if self.orphan {
            let wanted = shared.board.worker_state(self.slot) == WorkerState::Retiring;
            self.retiring |= wanted || shared.board.phase() == Phase::Stopping;
        }
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
        if std::mem::take(&mut self.asleep) {
            shared.bells[usize::from(self.slot)].disarm();
            self.look(shared);
            shared.board.set_busy(self.slot, true);
        }
        match self.outlets {
            Some(_) => self.serve(shared, ledger),
            None => self.start(shared, lanes),
        }
    }

    /// What comes before it can send anything.
    fn start(&mut self, shared: &Shared, lanes: &[Arc<Lane>]) -> Result<Went, Breach> {
        let Process { slot, pid, reign, .. } = *self;
        if matches!(self.at, At::Forked) {
            let (free, taken) = (Lease::Free { reign }, Lease::Taken { pid });
            if !shared.board.move_lease(slot, free, taken) {
                return Ok(Went::Out);
            }
            self.at = At::Taken;
            return Ok(Went::On);
        }
        shared.board.enter(slot, self.generation);
        let failed = |error| Breach { kind: Kind::Fault, what: format!("a worker takes its links: {error}") };
        let inboxes = lanes.iter().zip(0..).map(|(lane, reactor)| Inbox::open(lane, reactor));
        self.inboxes = inboxes.collect::<Result<_, _>>().map_err(failed)?;
        self.outlets = Some(Outlets::open(lanes, shared, slot).map_err(failed)?);
        self.believed = shared.board.manager_pid();
        self.at = At::Claimed;
        Ok(Went::On)
    }

    fn serve(&mut self, shared: &Shared, ledger: &mut Ledger) -> Result<Went, Breach> {
        let Some(outlets) = &mut self.outlets else { return Ok(Went::Nowhere) };
        match &mut self.at {
            At::Forked | At::Taken | At::Claimed => {
                // The server stops before it has begun.
                if shared.board.phase() == Phase::Stopping {
                    return Ok(Went::Out);
                }
                outlets.commit(None).map_err(failed)?;
                self.at = At::Started;
            }
            At::Started => {
                let pid = self.pid;
                if !shared.board.move_lease(self.slot, Lease::Taken { pid }, Lease::Serving { pid }) {
                    return Ok(Went::Out);
                }
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
                // As when it has looked at the clock.
                if self.woken {
                    self.look(shared);
                }
            }
            At::InHand(hand) if !hand.begun => {
                outlets.to(self.reactor as u16).begin(hand.record);
                shared.board.start(self.slot, self.reactor, hand.record);
                hand.begun = true;
            }
            At::InHand(hand) if hand.act != DONE => return self.act(shared, ledger),
            At::InHand(_) => return self.commit(ledger),
        }
        Ok(Went::On)
    }

    /// One thing that the handler does.
    fn act(&mut self, shared: &Shared, ledger: &mut Ledger) -> Result<Went, Breach> {
        let (At::InHand(hand), Some(outlets)) = (&mut self.at, &mut self.outlets) else {
            return Ok(Went::Nowhere);
        };
        let item = ledger.item(hand.name);
        if item.poison == Some(hand.act) && hand.written == 0 {
            return Ok(Went::Dead);
        }
        let Some(&act) = item.acts.get(hand.act) else {
            (hand.act, hand.written) = (DONE, 0);
            return Ok(Went::On);
        };
        let session = match act {
            Act::Reply(_) | Act::Bind(_) => hand.session,
            Act::Note(note) => item.notes[usize::from(note)].session,
            Act::Flush if shared.config.on_crash == OnCrash::Retry => {
                let Err(crate::Error::Uncommitted { .. }) = outlets.flush() else {
                    return breach(Kind::Torn, format!("{:?} is flushed, and may be begun again", hand.name));
                };
                hand.act += 1;
                return Ok(Went::On);
            }
            Act::Flush => {
                if !outlets.may_flush().map_err(failed)? {
                    return Ok(Went::Nowhere);
                }
                outlets.flush().map_err(failed)?;
                ledger.let_out(hand.name, hand.sent.drain(..).map(|(_, act)| act));
                hand.act += 1;
                return Ok(Went::On);
            }
        };
        if let Act::Bind(uid) = act {
            let outlet = outlets.to(shared.sessions.reactor(session));
            if !outlet.may_send(size_of::<u64>()).map_err(failed)? {
                return Ok(Went::Nowhere);
            }
            outlet.bind(session, uid).map_err(failed)?;
            hand.act += 1;
            return Ok(Went::On);
        }
        if hand.written == 0 && !shared.sessions.exists(session) {
            // An error, which is no reason not to tell others.
            ledger.tally.stale += u64::from(matches!(act, Act::Note(_)));
            hand.act += 1;
            return Ok(Went::On);
        }
        if hand.written == 0 {
            ledger.compose(hand.name, act, &mut self.bytes);
        }
        let reactor = shared.sessions.reactor(session);
        let outlet = outlets.to(reactor);
        let rest = &self.bytes[hand.written..];
        let piece = &rest[..rest.len().min(outlet.piece_max())];
        if !outlet.may_send(piece.len()).map_err(failed)? {
            return Ok(Went::Nowhere);
        }
        outlet.send(session, piece).map_err(failed)?;
        hand.written += piece.len();
        if hand.written == self.bytes.len() {
            hand.sent.push((reactor, act));
            (hand.act, hand.written) = (hand.act + 1, 0);
        }
        Ok(Went::On)
    }

    /// The handler has returned. To commit is no single step where clients of several reactors were sent to: those of the
    /// message's own come last.
    fn commit(&mut self, ledger: &mut Ledger) -> Result<Went, Breach> {
        let (At::InHand(hand), Some(outlets)) = (&mut self.at, &mut self.outlets) else {
            return Ok(Went::Nowhere);
        };
        let own = self.reactor;
        // Every other time at once, as the real worker calls it.
        let at_once = hand.record.is_multiple_of(2);
        if hand.committing == own {
            hand.committing += 1;
        }
        if !at_once && hand.committing < self.inboxes.len() {
            let reactor = hand.committing as u16;
            if !outlets.to(reactor).may_commit().map_err(failed)? {
                return Ok(Went::Nowhere);
            }
            let let_out = hand.sent.extract_if(.., |(to, _)| *to == reactor);
            ledger.let_out(hand.name, let_out.map(|(_, act)| act));
            outlets.to(reactor).commit().map_err(failed)?;
            hand.committing += 1;
            return Ok(Went::On);
        }
        if !outlets.may_commit().map_err(failed)? {
            return Ok(Went::Nowhere);
        }
        if self.inboxes[own].record() != hand.content {
            return breach(Kind::Torn, format!("{:?} has changed in its worker's hands", hand.name));
        }
        ledger.let_out(hand.name, hand.sent.drain(..).map(|(_, act)| act));
        outlets.commit(Some(own as u16)).map_err(failed)?;
        hand.committed = true;
        ledger.committed(hand.name)?;
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
                ledger.check_turn(name)?;
                let content = inbox.record().to_vec();
                self.at = At::InHand(Hand {
                    name,
                    session,
                    record,
                    begun: false,
                    act: 0,
                    written: 0,
                    committing: 0,
                    committed: false,
                    sent: Vec::new(),
                    content,
                });
            }
        }
        self.taken += 1;
        self.worked = true;
        Ok(())
    }

    /// Leaves if it is asked to, or sleeps if nobody has anything.
    fn end_of_pass(&mut self, shared: &Shared) -> Went {
        let bell = &shared.bells[usize::from(self.slot)];
        if self.woken {
            self.look(shared);
        }
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
