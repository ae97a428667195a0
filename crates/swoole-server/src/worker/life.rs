//! A worker's life, from the fork to the exit.

use std::backtrace::Backtrace;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getppid};
use swoole_reactor::{Event, Interest, Options, Reactor, Trigger};
use swoole_supervisor::Child;
use swoole_sys::signal::SignalSet;

use super::Worker;
use crate::board::Phase;
use crate::error::{Error, Result};
use crate::handler::Handler;
use crate::link::{Inbox, Lane, Message, Next, Outlet};
use crate::log::{Identity, Role};
use crate::session::Session;
use crate::shared::Shared;
use crate::spin::Spin;
use crate::wire::RequestKind;

/// Packets taken from one reactor before the next one's turn.
const BUDGET: usize = 64;
/// How long signals may go unseen while there is no reason to sleep, a handler's own time apart.
const LOOK_AFTER: Duration = Duration::from_millis(5);
/// Handlers that take longer are not made to hold back the replies of those before them.
const SLOW: Duration = Duration::from_micros(20);

/// The signals that a worker takes as they come, instead of being hit by them. Ctrl-C reaches the whole process group,
/// but it is the master that is asked to stop.
pub(crate) const SIGNALS: [Signal; 6] =
    [Signal::TERM, Signal::INT, Signal::QUIT, Signal::HUP, Signal::USR1, Signal::USR2];

/// Runs a worker to its end; the exit code.
pub(crate) fn run<H: Handler>(
    handler: &mut H,
    shared: &Arc<Shared>,
    lanes: &[Arc<Lane>],
    mut child: Child,
) -> i32 {
    let id = child.slot;
    crate::log::set_identity(Identity { role: Role::Worker, id: u32::from(id) });
    // A title is a comfort, not a need.
    let _ = swoole_sys::title::set(&format!("swoole: worker {id}"));
    log_panics();
    let mut life = || -> Result<()> {
        let mut life = Life::start(handler, shared, lanes, &child)?;
        if !life.wait_for_start()? {
            return Ok(());
        }
        life.callback("on_worker_start", |handler, worker| handler.on_worker_start(worker))?;
        child.ready();
        life.serve()?;
        life.callback("on_worker_stop", |handler, worker| handler.on_worker_stop(worker))
    };
    match life() {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!("worker {id}: {error}");
            1
        }
    }
}

/// The panic's message and backtrace belong in the log, not on a stream that may lead nowhere.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = Backtrace::force_capture().to_string();
        tracing::error!("{panic}\n{}", of_the_user(&backtrace));
    }));
}

/// The frames between the panic's machinery and this file, which calls the user's code; all of them if they cannot be
/// told apart.
fn of_the_user(backtrace: &str) -> &str {
    let frames = || {
        let (_, below) = backtrace.split_once("rust_begin_unwind")?;
        let (_, below) = below.split_once("panic_fmt")?;
        let (frames, _) = below.split_once(file!())?;
        let (_, frames) = frames.split_once("\n")?;
        // The last of these frames is this file's own.
        let (frames, _) = frames.rsplit_once("\n")?;
        Some(frames.rsplit_once("\n")?.0)
    };
    frames().unwrap_or(backtrace)
}

struct Life<'a, H> {
    handler: &'a mut H,
    worker: Worker,
    inboxes: Vec<Inbox>,
    reactor: Reactor,
    manager: Option<Pid>,
    /// The manager is gone. The master is stopping then, and says by the phase when everything is answered.
    orphan: bool,
    looked: Instant,
    /// Packets after which this worker retires.
    request_limit: u64,
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
        let mut reactor =
            Reactor::new(Options { backend: swoole_reactor::Backend::Epoll, ..Options::default() })
                .map_err(|error| Error::setup("make the worker's event loop", error))?;
        let watch = |error| Error::setup("watch the worker's signals and links", error);
        reactor.signals(&SignalSet::from(SIGNALS)).map_err(watch)?;
        reactor.watch(&shared.bells[id], Interest::READABLE, Trigger::Edge).map_err(watch)?;
        reactor.watch(&shared.lifeline, Interest::READABLE, Trigger::Edge).map_err(watch)?;
        for lane in lanes {
            if let Lane::Socket { worker, .. } = &**lane {
                reactor.watch(worker, Interest::READABLE, Trigger::Edge).map_err(watch)?;
            }
        }
        let claim = |error| Error::setup("take over the links to the reactors", error);
        let inboxes = lanes.iter().zip(0..).map(|(lane, reactor)| Inbox::open(lane, reactor));
        let outlets = lanes.iter().zip(0..).map(|(lane, reactor)| {
            let bell = shared.reactor_bells[usize::from(reactor)].clone();
            Outlet::open(lane, reactor, bell, shared.rooms[id].clone(), shared.lifeline.clone())
        });
        let inboxes = inboxes.collect::<Result<_, _>>().map_err(claim)?;
        let outlets = outlets.collect::<Result<_, _>>().map_err(claim)?;
        Ok(Life {
            handler,
            worker: Worker {
                id: child.slot,
                generation: child.generation,
                handled: 0,
                outlets,
                retiring: false,
                shared: Arc::clone(shared),
            },
            inboxes,
            reactor,
            // Not whoever is the parent now: the manager may be dead already.
            manager: Pid::from_raw(shared.board.manager_pid()),
            orphan: false,
            looked: Instant::now(),
            request_limit: request_limit(shared)?,
            usual: Duration::ZERO,
        })
    }

    /// The callbacks of master and manager come first. False if the server stops before it has begun.
    fn wait_for_start(&mut self) -> Result<bool> {
        let shared = Arc::clone(&self.worker.shared);
        loop {
            match shared.board.phase() {
                Phase::Running => return Ok(true),
                Phase::Stopping => return Ok(false),
                Phase::Booting if self.worker.retiring => return Ok(false),
                Phase::Booting => self.look(None)?,
            }
        }
    }

    fn serve(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.worker.shared);
        let bell = &shared.bells[usize::from(self.worker.id)];
        let mut spin = Spin::default();
        shared.board.set_busy(self.worker.id, true);
        loop {
            let worked = self.pass()?;
            if self.worker.retiring {
                return Ok(());
            }
            if worked {
                continue;
            }
            shared.board.set_busy(self.worker.id, false);
            if !spin.until(|| self.inboxes.iter().any(Inbox::has_news)) {
                bell.arm();
                let wait = self.inboxes.iter().any(Inbox::has_news).then_some(Duration::ZERO);
                self.look(wait)?;
                bell.disarm();
            }
            shared.board.set_busy(self.worker.id, true);
        }
    }

    /// Waits for a doorbell, a link or a signal, and notes what the signals want.
    fn look(&mut self, timeout: Option<Duration>) -> Result<()> {
        let mut asked = false;
        let turn = self.reactor.turn(timeout, |_, event| {
            if let Event::Signal { info } = event {
                match info.signal {
                    Signal::TERM => asked = true,
                    Signal::HUP => crate::log::reopen_or_say(),
                    _ => {}
                }
            }
        });
        turn.map_err(|error| Error::setup("wait for work", error))?;
        self.looked = Instant::now();
        // The kernel asks the same when the manager dies, but then there is no successor to leave anything to.
        self.orphan |= getppid() != self.manager;
        self.worker.retiring |= asked && !self.orphan;
        let shared = &self.worker.shared;
        self.worker.retiring |=
            self.orphan && (shared.lifeline.is_cut() || shared.board.phase() == Phase::Stopping);
        Ok(())
    }

    /// Takes what the reactors have sent, some from each; true if there was anything.
    fn pass(&mut self) -> Result<bool> {
        let mut worked = false;
        for reactor in 0..self.inboxes.len() {
            for _ in 0..BUDGET {
                // To retire is to leave the rest to the successor.
                if self.worker.retiring || !self.step(reactor)? {
                    break;
                }
                worked = true;
            }
            self.worker.outlets[reactor].commit()?;
        }
        self.worker.ring()?;
        if worked && self.looked.elapsed() > LOOK_AFTER {
            self.look(Some(Duration::ZERO))?;
        }
        Ok(worked)
    }

    /// One record of one reactor; false if there is none.
    fn step(&mut self, reactor: usize) -> Result<bool> {
        let inbox = &mut self.inboxes[reactor];
        let record = inbox.current();
        match inbox.next()? {
            Next::Empty => return Ok(false),
            Next::Fragment => self.worker.outlets[reactor].begin(record),
            Next::Message(message) => {
                if self.usual > SLOW {
                    self.worker.ring()?;
                }
                let begun = Instant::now();
                deliver(self.handler, &mut self.worker, reactor, record, &message)?;
                let now = Instant::now();
                self.usual = (self.usual * 7 + (now - begun)) / 8;
                let large = message.payload.len() > BUDGET * 1024;
                if large {
                    self.inboxes[reactor].shed();
                }
                self.worker.retiring |= self.worker.handled >= self.request_limit && !self.orphan;
                if now - self.looked > LOOK_AFTER {
                    self.look(Some(Duration::ZERO))?;
                }
            }
        }
        self.inboxes[reactor].finish();
        Ok(true)
    }

    /// A callback that belongs to no packet.
    fn callback(&mut self, name: &str, run: impl FnOnce(&mut H, &mut Worker) -> Result<()>) -> Result<()> {
        run(self.handler, &mut self.worker).map_err(|error| Error::Start(format!("{name}: {error}")))?;
        self.worker.commit(None)?;
        self.worker.ring()
    }
}

/// Runs the callback for one message and commits what it did.
fn deliver<H: Handler>(
    handler: &mut H,
    worker: &mut Worker,
    reactor: usize,
    record: u64,
    message: &Message<'_>,
) -> Result<()> {
    let origin = Some((reactor, record));
    let session = message.session;
    worker.begin(origin);
    let result = match message.kind {
        RequestKind::Packet => {
            worker.handled += 1;
            worker.shared.board.set_handled(worker.id, worker.handled);
            handler.on_receive(worker, session, message.payload)
        }
        RequestKind::Connect => handler.on_connect(worker, session),
        RequestKind::Close => handler.on_close(worker, session),
    };
    if let Err(error) = result {
        fail(worker, session, &error);
    }
    worker.commit(origin)
}

/// A callback's error costs its session the connection. That the peer has just left is no news.
fn fail(worker: &mut Worker, session: Session, error: &Error) {
    if error.is_departure() {
        tracing::debug!(%session, "{error}");
        return;
    }
    tracing::warn!(%session, "callback failed, its connection is closed: {error}");
    if let Err(error) = worker.close(session) {
        tracing::debug!(%session, "{error}");
    }
}

/// `max_request`, and some more so that workers which started together do not retire together. The seed is drawn
/// here, after the fork: one drawn before it would be the same in every worker.
fn request_limit(shared: &Shared) -> Result<u64> {
    let grace = shared.config.request_grace();
    match shared.config.max_request {
        0 => Ok(u64::MAX),
        limit if grace == 0 => Ok(limit),
        limit => {
            let random =
                getrandom::u64().map_err(|error| Error::setup("draw the jitter of max_request", error))?;
            Ok(limit.saturating_add(random % grace + 1))
        }
    }
}
