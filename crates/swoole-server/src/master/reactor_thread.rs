//! A reactor thread: the event loop around a [`Desk`] and its links to all workers.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use swoole_protocol::Framing;
use swoole_reactor::{Close, Event, Interest, Reactor, TimerId, Token, Trigger};

use super::desk::{Desk, Replies};
use super::mailbox::{Command, Mailbox, Note, Occupancy};
use crate::error::{Error, Result};
use crate::link::{Lane, Parcel, ReactorEnd};
use crate::log::{Identity, Role};
use crate::shared::Shared;
use crate::spin::Spin;
use crate::wire::RequestKind;

/// How long to sleep at first while packets are with workers, and at most. A worker wakes its reactors once per
/// pass; this bounds what a slow packet can hold up of the replies before it.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(128));

/// What a reactor thread is given.
pub(super) struct Seat {
    pub(super) id: u8,
    pub(super) shared: Arc<Shared>,
    pub(super) framing: Framing,
    /// Its lane to each worker.
    pub(super) lanes: Vec<Arc<Lane>>,
    pub(super) main: Arc<Mailbox<Note>>,
    pub(super) occupancy: Arc<Occupancy>,
    /// Somebody waits for a connection to leave.
    pub(super) crowded: Arc<AtomicBool>,
}

/// Runs a reactor thread to its end.
pub(super) fn run(seat: Seat, reactor: Reactor, mail: Arc<Mailbox<Command>>) {
    crate::log::set_thread_identity(Identity { role: Role::Reactor, id: u32::from(seat.id) });
    let (id, main) = (seat.id, Arc::clone(&seat.main));
    let life = || ReactorThread::open(seat, mail).and_then(|mut thread| thread.run(reactor));
    // Its message is out; what matters here is that the main thread hears of it.
    let error = match catch_unwind(AssertUnwindSafe(life)) {
        Ok(result) => result.err().map(|error| error.to_string()),
        Err(_) => Some("it panicked".to_owned()),
    };
    main.post(Note::Ended { reactor: id, error });
}

struct ReactorThread {
    seat: Seat,
    mail: Arc<Mailbox<Command>>,
    desk: Desk,
    links: Vec<ReactorEnd>,
    /// The watch of each link that has a descriptor.
    watches: Vec<Option<Token>>,
    /// Links whose descriptor is readable.
    readable: Vec<bool>,
    /// Links that carry nonsense, until their worker is dead and settled.
    faulty: Vec<bool>,
    /// Links that were told that nothing more will come.
    closed: Vec<bool>,
    /// No new packets are read.
    draining: bool,
    /// One more turn, for what clients have sent already; then no new packets are read.
    last_look: bool,
    /// All workers are gone; runs out when clients have had their time.
    finishing: Option<TimerId>,
}

impl ReactorThread {
    fn open(seat: Seat, mail: Arc<Mailbox<Command>>) -> Result<ReactorThread> {
        let claim =
            |error| Error::setup(format!("reactor {}: take up the links to the workers", seat.id), error);
        let shared = &seat.shared;
        let links = seat.lanes.iter().zip(0..).map(|(lane, worker): (_, usize)| {
            ReactorEnd::open(Arc::clone(lane), shared.bells[worker].clone(), shared.rooms[worker].clone())
        });
        let links = links.collect::<Result<Vec<_>, _>>().map_err(claim)?;
        let workers = links.len();
        Ok(ReactorThread {
            desk: Desk::new(seat.id, Arc::clone(shared), seat.framing),
            mail,
            links,
            watches: vec![None; workers],
            readable: vec![false; workers],
            faulty: vec![false; workers],
            closed: vec![false; workers],
            draining: false,
            last_look: false,
            finishing: None,
            seat,
        })
    }

    fn run(&mut self, mut reactor: Reactor) -> Result<()> {
        let shared = Arc::clone(&self.seat.shared);
        let bell = &shared.reactor_bells[usize::from(self.seat.id)];
        let failed = |error| Error::setup("run a reactor thread", error);
        reactor.watch(bell, Interest::READABLE, Trigger::Edge).map_err(failed)?;
        for (lane, watch) in self.seat.lanes.iter().zip(&mut self.watches) {
            if let Some(fd) = lane.reactor_fd() {
                *watch = Some(reactor.watch(fd, Interest::READABLE, Trigger::Level).map_err(failed)?);
            }
        }
        let mut spin = Spin::default();
        let mut patience = PATIENCE.0;
        loop {
            let worked = self.take_replies(&mut reactor);
            self.hand_over();
            if self.finishing.is_some() && self.desk.is_empty() {
                return Ok(());
            }
            let waiting = self.links.iter().any(|link| link.in_flight() > 0);
            let mut timeout = waiting.then_some(patience);
            let last_look = self.last_look;
            if worked || last_look {
                (timeout, patience) = (Some(Duration::ZERO), PATIENCE.0);
            } else if waiting && spin.until(|| self.has_replies()) {
                continue;
            } else {
                bell.arm();
                if self.has_replies() {
                    timeout = Some(Duration::ZERO);
                }
            }
            let events =
                reactor.turn(timeout, |reactor, event| self.on_event(reactor, event)).map_err(failed)?;
            bell.disarm();
            if last_look {
                self.last_look = false;
                self.draining = true;
                self.desk.drain(&mut reactor);
            }
            if events == 0 {
                patience = (patience * 2).min(PATIENCE.1);
            }
        }
    }

    fn has_replies(&self) -> bool {
        self.links.iter().zip(&self.faulty).any(|(link, faulty)| !faulty && link.has_replies())
    }

    /// Delivers what the workers have committed; true if there was anything.
    fn take_replies(&mut self, reactor: &mut Reactor) -> bool {
        let mut worked = false;
        for worker in 0..self.links.len() {
            let ready = self.watches[worker].is_none() || std::mem::take(&mut self.readable[worker]);
            if self.faulty[worker] || !ready {
                continue;
            }
            let link = &mut self.links[worker];
            match link.drain(&mut Replies { desk: &mut self.desk, reactor }) {
                Ok(false) => {}
                Ok(true) => {
                    worked = true;
                    self.desk.unpark(reactor, &mut self.links, worker);
                }
                Err(fault) => {
                    self.faulty[worker] = true;
                    self.seat.main.post(Note::Fault { worker: worker as u16, reason: fault.to_string() });
                }
            }
        }
        worked
    }

    /// Makes visible to the workers what this pass has for them.
    fn hand_over(&mut self) {
        for (home, session) in self.desk.take_departed() {
            let home = usize::from(home);
            if !self.closed[home] {
                self.links[home].enqueue(Parcel { kind: RequestKind::Close, session, bytes: Vec::new() });
            }
        }
        for (worker, link) in self.links.iter_mut().enumerate() {
            link.flush();
            if self.draining && !self.closed[worker] && self.desk.is_drained(worker) && link.is_clear() {
                link.close();
                self.closed[worker] = true;
            }
        }
    }

    fn on_event(&mut self, reactor: &mut Reactor, event: Event<'_>) {
        match event {
            Event::Data { token, bytes } => self.desk.received(reactor, &mut self.links, token, bytes),
            Event::Eof { token } => self.desk.ended(reactor, token),
            Event::Failed { token, error } => self.desk.failed(reactor, token, &error),
            Event::Closed { token } if self.desk.closed(reactor, token) => self.left(),
            Event::Timer { id } if self.finishing == Some(id) => self.desk.close_all(reactor, Close::Now),
            Event::Timer { id } => self.desk.timer(reactor, id),
            Event::Ready { token, .. } => {
                if let Some(worker) = self.watches.iter().position(|watch| *watch == Some(token)) {
                    self.readable[worker] = true;
                }
            }
            Event::Woken => {
                for command in self.mail.collect() {
                    self.obey(reactor, command);
                }
            }
            _ => {}
        }
    }

    /// A connection is gone: one that waits can come.
    fn left(&self) {
        self.seat.occupancy.leave();
        if self.seat.crowded.swap(false, Ordering::SeqCst) {
            self.seat.main.post(Note::Room);
        }
    }

    fn obey(&mut self, reactor: &mut Reactor, command: Command) {
        match command {
            Command::Adopt { socket, arrival } => {
                if let Err(error) = self.desk.adopt(reactor, &mut self.links, socket, &arrival) {
                    tracing::error!("take a connection on: {error}");
                    self.left();
                }
            }
            Command::Up { worker } => self.desk.set_up(worker, true),
            Command::Settle { worker } => self.settle(reactor, worker),
            Command::Drain => self.last_look = true,
            Command::Finish { within } => {
                self.desk.close_all(reactor, Close::AfterSend);
                self.finishing = Some(reactor.timer(within));
            }
        }
    }

    fn settle(&mut self, reactor: &mut Reactor, worker: u16) {
        let index = usize::from(worker);
        self.desk.set_up(worker, false);
        self.faulty[index] = false;
        let started = self.seat.shared.board.started(worker, usize::from(self.seat.id));
        let link = &mut self.links[index];
        let in_hand = link.settle(started, &mut Replies { desk: &mut self.desk, reactor });
        let lost = in_hand.and_then(|sent| self.desk.mourn(reactor, &sent));
        self.desk.unpark(reactor, &mut self.links, index);
        self.seat.main.post(Note::Settled { worker, lost });
    }
}
