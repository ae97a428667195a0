//! A worker's life in Process mode, from the fork to the exit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::getpid;
use swoole_supervisor::Child;

use super::drain::{self, Cause, time_for_work};
use super::{Duty, Lookout, Way, Worker, callbacks};
use crate::board::Lease;
use crate::breakpoint::{self, Point};
use crate::dispatch::reactor_of;
use crate::error::{Error, Result};
use crate::handler::Handler;
use crate::link::{Inbox, Lane, Message, Next, Outlets};
use crate::pace::{Pace, Part, Spin};
use crate::shared::Shared;
use crate::shed;
use crate::wire::RequestKind;

/// Packets taken from one reactor before the next one's turn.
const BUDGET: usize = 64;
/// How long signals may go unseen while there is no reason to sleep, a handler's own time apart.
const LOOK_AFTER: Duration = Duration::from_millis(5);
/// Handlers that take longer are not made to hold back the replies of those before them.
const SLOW: Duration = Duration::from_micros(20);
/// Packets between two looks at the clock while handlers are not slow: here it costs as much as a packet.
const CLOCK_EVERY: u32 = 8;
/// How long what the last callback has sent to other processes may take to be taken.
pub(crate) const LEAVE_WAIT: Duration = Duration::from_millis(100);

/// Runs a worker to its end; the exit code.
pub(crate) fn run<H: Handler>(
    handler: &mut H,
    shared: &Arc<Shared>,
    lanes: Result<Vec<Arc<Lane>>>,
    reign: u64,
    mut child: Child,
) -> i32 {
    let (id, pid) = (child.slot, getpid().as_raw_pid());
    let (free, taken) = (Lease::Free { reign }, Lease::Taken { pid });
    // The manager that has forked it is dead, and the next one fills the slot: there is nobody here.
    if !shared.board.move_lease(id, free, taken) {
        return 0;
    }
    super::introduce(id, shared);
    let life = || -> Result<()> {
        let mut life = Life::start(handler, shared, &lanes?, &child)?;
        crate::confine::enter(shared)?;
        if !life.lookout.wait_for_start(false)? {
            return Ok(());
        }
        life.callback(callbacks::start)?;
        if !shared.board.move_lease(id, taken, Lease::Serving { pid }) {
            return Ok(());
        }
        life.lookout.watch_mail(&life.duty.post)?;
        child.ready();
        // It may have been asked to leave while it started.
        life.look(Some(Duration::ZERO))?;
        life.serve()?;
        drain::finish_work(&mut life, time_for_work(shared.config.max_wait_time))?;
        let stopped = life.callback(callbacks::stop);
        life.duty.post.sender.finish(LEAVE_WAIT);
        stopped
    };
    super::exit_code("worker", id, life())
}

struct Life<'a, H> {
    handler: &'a mut H,
    duty: Duty,
    outlets: Outlets,
    inboxes: Vec<Inbox>,
    lookout: Lookout,
    /// Packets since the clock was read, and when that was; `None` before the first one of a pass.
    untimed: u32,
    timed: Option<Instant>,
    /// One was, when the clock was read.
    timer_due: bool,
    /// Moving average of what a handler takes.
    usual: Duration,
}

impl<'a, H: Handler> Life<'a, H> {
    fn start(
        handler: &'a mut H,
        shared: &Arc<Shared>,
        lanes: &[Arc<Lane>],
        child: &Child,
    ) -> Result<Life<'a, H>> {
        let id = usize::from(child.slot);
        shared.board.enter(child.slot, child.generation);
        shared
            .protect_from(child.slot)
            .map_err(|error| Error::setup("make what other processes own read-only", error))?;
        let mut lookout = Lookout::new(shared, child.slot)?;
        lookout.watch(&shared.bells[id])?;
        for lane in lanes {
            if let Lane::Socket { worker, .. } = &**lane {
                lookout.watch(worker)?;
            }
        }
        let claim = |error| Error::setup("take over the links to the reactors", error);
        let inboxes = lanes.iter().zip(0..).map(|(lane, reactor)| Inbox::open(lane, reactor));
        let inboxes = inboxes.collect::<Result<_, _>>().map_err(claim)?;
        let outlets = Outlets::open(lanes, shared, child.slot).map_err(claim)?;
        Ok(Life {
            handler,
            duty: Duty::new(child.slot, child.generation, shared)?,
            outlets,
            inboxes,
            lookout,
            untimed: 0,
            timed: None,
            timer_due: false,
            usual: Duration::ZERO,
        })
    }

    fn serve(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.duty.shared);
        let config = &shared.config;
        let mut spin = Spin::new(config.busy_poll);
        let spin_always = spin.is_always();
        let reactor = reactor_of(self.duty.id, config.worker_num, config.reactor_num);
        let mut pace = Pace::new(&shared, reactor.map_or(Part::Alone, Part::WorkerOf));
        loop {
            shared.board.set_busy(self.duty.id, true);
            let (handled, told) = (self.pass()?, drain::tell_news(self)?);
            // Timers and tasks alone can keep it from sleeping; where packets do, a look at the clock is part of the pass.
            if told && self.lookout.looked().elapsed() > LOOK_AFTER {
                self.look(Some(Duration::ZERO))?;
            }
            if (handled || told) && !self.duty.retiring {
                pace.worked();
                continue;
            }
            shared.board.set_busy(self.duty.id, false);
            if self.duty.retiring {
                return Ok(());
            }
            // Of what comes by sockets, only they know.
            let is_called = || spin_always && self.lookout.has_something();
            let is_due = || self.inboxes.iter().any(Inbox::has_news) || self.duty.has_news() || is_called();
            if !spin.until(&mut pace, is_due) {
                self.sleep(None, Inbox::has_news)?;
            } else if is_called() {
                self.look(Some(Duration::ZERO))?;
            }
        }
    }

    /// Sleeps until the doorbell is rung, or a timer is due, or for so long; not at all if there is news already, of itself
    /// or in an inbox that `matters`.
    fn sleep(&mut self, longest: Option<Duration>, matters: impl Fn(&Inbox) -> bool) -> Result<()> {
        let shared = Arc::clone(&self.duty.shared);
        let bell = &shared.bells[usize::from(self.duty.id)];
        bell.arm();
        let has_news = self.inboxes.iter().any(matters) || self.duty.has_news();
        let longest = if has_news { Some(Duration::ZERO) } else { longest };
        self.look(self.duty.timers.wait(longest))?;
        bell.disarm();
        Ok(())
    }

    /// Waits for a doorbell, a link or a signal, and notes what the signals want.
    fn look(&mut self, timeout: Option<Duration>) -> Result<()> {
        self.duty.retiring |= self.lookout.look(timeout)?;
        self.lookout.serve(&mut self.duty.post);
        Ok(())
    }

    /// Takes what the reactors have sent, some from each; true if there was anything.
    fn pass(&mut self) -> Result<bool> {
        let mut worked = false;
        self.timed = None;
        for reactor in 0..self.inboxes.len() {
            for _ in 0..BUDGET {
                // To retire is to leave the rest to the successor.
                if self.duty.retiring || !self.step(reactor)? {
                    break;
                }
                worked = true;
                if std::mem::take(&mut self.timer_due) {
                    drain::tell_news(self)?;
                    self.timed = None;
                }
            }
            self.outlets.to(reactor as u16).commit()?;
        }
        self.outlets.ring()?;
        if self.untimed > 0 {
            self.read_clock()?;
        }
        Ok(worked)
    }

    /// One record of one reactor; false if there is none.
    fn step(&mut self, reactor: usize) -> Result<bool> {
        breakpoint::packet_begins();
        let inbox = &mut self.inboxes[reactor];
        let record = inbox.current();
        match inbox.next()? {
            Next::Empty => return Ok(false),
            Next::Fragment => self.outlets.to(reactor as u16).begin(record),
            Next::Message(message) => {
                let slow = self.usual > SLOW;
                if slow {
                    self.outlets.ring()?;
                }
                self.timed.get_or_insert_with(Instant::now);
                deliver(self.handler, &mut self.duty, &mut self.outlets, reactor as u16, record, &message)?;
                let large = message.payload.len() > BUDGET * 1024;
                if large {
                    self.inboxes[reactor].shed();
                }
                self.untimed += 1;
                if slow || self.untimed >= CLOCK_EVERY {
                    self.read_clock()?;
                }
            }
        }
        self.inboxes[reactor].finish();
        Ok(true)
    }

    /// Learns how long handlers take, and whether it is time to look for signals.
    fn read_clock(&mut self) -> Result<()> {
        let now = Instant::now();
        let took = now - self.timed.replace(now).unwrap_or(now);
        self.timer_due = self.duty.timers.next().is_some_and(|due| due <= now);
        self.usual = (self.usual * 7 + took / std::mem::take(&mut self.untimed).max(1)) / 8;
        if now - self.lookout.looked() > LOOK_AFTER {
            self.look(Some(Duration::ZERO))?;
        }
        Ok(())
    }

    /// A callback that belongs to no packet.
    fn callback(&mut self, run: impl FnOnce(&mut H, &mut Worker<'_>) -> Result<()>) -> Result<()> {
        self.outlets.put_down();
        let way = Way::Links(&mut self.outlets);
        run(self.handler, &mut Worker { duty: &mut self.duty, way })?;
        self.outlets.commit(None)?;
        self.duty.post.sender.pump();
        self.outlets.ring()
    }
}

impl<H: Handler> drain::Life for Life<'_, H> {
    fn duty(&mut self) -> &mut Duty {
        &mut self.duty
    }

    fn call(&mut self, cause: Cause) -> Result<()> {
        self.callback(|handler, worker| {
            callbacks::own(handler, worker, cause);
            Ok(())
        })
    }

    fn wait(&mut self, longest: Duration) -> Result<()> {
        // What comes from reactors is the successor's.
        self.sleep(Some(longest), |_| false)?;
        drain::tell_news(self).map(drop)
    }

    fn is_pointless(&self) -> bool {
        self.duty.shared.lifeline.is_cut()
    }
}

/// Runs the callback for one message and commits what it did.
fn deliver<H: Handler>(
    handler: &mut H,
    duty: &mut Duty,
    outlets: &mut Outlets,
    reactor: u16,
    record: u64,
    message: &Message<'_>,
) -> Result<()> {
    outlets.to(reactor).begin(record);
    outlets.take_up(message.session);
    duty.shared.board.start(duty.id, reactor.into(), record);
    duty.shared.board.hold(duty.id, Some((message.session, message.size())));
    breakpoint::pass(Point::Begun);
    let is_late = message.stamp != 0 && message.kind == RequestKind::Packet && is_late(&duty.shared, message);
    let kind = if is_late { RequestKind::Shed } else { message.kind };
    let mut worker = Worker { duty, way: Way::Links(outlets) };
    callbacks::message(handler, &mut worker, kind, message.session, message.payload);
    outlets.commit(Some(reactor))?;
    duty.post.sender.pump();
    Ok(())
}

/// Whether the packet has waited for longer than its client's address allows.
#[cold]
fn is_late(shared: &Shared, message: &Message<'_>) -> bool {
    shared
        .listening()
        .sheds
        .of(|| shared.sessions.listener(message.session))
        .is_late(message.stamp, shed::stamp())
}
