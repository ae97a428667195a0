//! A task worker's life, in either mode, from the fork to the exit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::getpid;
use swoole_supervisor::Child;

use super::courier::Courier;
use super::hand::Hand;
use super::mail::Mail;
use super::spill::Part;
use super::store::{CAN_BE_INLINE, Status, Store, Taken};
use super::{Asker, TaskId, TaskWorker};
use crate::board::{Lease, Phase};
use crate::breakpoint;
use crate::config::Mode;
use crate::error::{Error, Result};
use crate::handler::Handler;
use crate::log::{Identity, Role};
use crate::pace::{Pace, Part as PacePart, Spin};
use crate::post::Post;
use crate::shared::Shared;
use crate::worker::drain::{Drain, Step, time_for_work};
use crate::worker::{LEAVE_WAIT, Lookout, Timers, callbacks, exit_code, request_limit};

/// Tasks that are done in one go before somebody else's turn: signals, and askers that sleep.
const BUDGET: usize = 64;
/// After so many tasks that came one at a time, the next will too.
const SINGLES: u32 = 8;
/// How long signals may go unseen while there is no reason to sleep, a handler's own time apart.
const LOOK_AFTER: Duration = Duration::from_millis(5);
/// How long a task worker of Base mode may go on without the manager.
const ORPHAN_WAIT: Duration = Duration::from_millis(600);
/// How long one that leaves waits for messages that are under way.
const POST_WAIT: Duration = Duration::from_millis(250);

/// Runs a task worker to its end; the exit code. `reign`: that of the manager that has forked it, in Process mode.
pub(crate) fn run<H: Handler>(
    handler: &mut H,
    shared: &Arc<Shared>,
    reign: Option<u64>,
    mut child: Child,
) -> i32 {
    let (id, pid) = (child.slot, getpid().as_raw_pid());
    let seat = shared.config.seat_of_task_worker(id);
    let taken = Lease::Taken { pid };
    // The manager that has forked it is dead, and the next one fills the slot: there is nobody here.
    if reign.is_some_and(|reign| !shared.board.move_lease(seat, Lease::Free { reign }, taken)) {
        return 0;
    }
    introduce(id);
    let mut life = || -> Result<()> {
        let mut life = Life::start(handler, shared, &child, seat)?;
        crate::confine::enter(shared)?;
        // In a stop, workers may wait for what its predecessor has left.
        if !life.lookout.wait_for_start(child.generation > 1)? {
            return Ok(());
        }
        let mut worker = TaskWorker { duty: &mut life.duty };
        let started = life.handler.on_task_worker_start(&mut worker);
        started.map_err(|error| Error::Start(format!("on_task_worker_start: {error}")))?;
        if reign.is_some() && !shared.board.move_lease(seat, taken, Lease::Serving { pid }) {
            return Ok(());
        }
        life.lookout.watch_mail(&life.duty.post)?;
        child.ready();
        // It may have been asked to leave while it started.
        life.look(Some(Duration::ZERO))?;
        life.serve()?;
        life.finish_timers()?;
        life.finish_post()?;
        let stopped = life.handler.on_task_worker_stop(&mut TaskWorker { duty: &mut life.duty });
        life.duty.post.sender.finish(LEAVE_WAIT);
        stopped.map_err(|error| Error::Start(format!("on_task_worker_stop: {error}")))
    };
    exit_code("task worker", id, life())
}

fn introduce(id: u16) {
    crate::log::set_identity(Identity { role: Role::TaskWorker, id: u32::from(id) });
    // A title is a comfort, not a need.
    let _ = swoole_sys::title::set(&format!("swoole: task worker {id}"));
    callbacks::log_panics();
}

/// Who a task worker is, and what it has in hand.
pub(super) struct TaskDuty {
    pub(super) id: u16,
    /// Its place among all processes that work.
    pub(super) seat: u16,
    pub(super) generation: u32,
    pub(super) handled: u64,
    /// Tasks after which it is due to be replaced.
    limit: u64,
    pub(super) retiring: bool,
    pub(super) timers: Timers,
    pub(super) shared: Arc<Shared>,
    store: Store,
    hand: Option<(Taken, TaskId)>,
    /// The same, for the next server.
    note: Hand,
    /// Who has a result, and was not woken for it.
    unrung: Option<u16>,
    /// What it asks itself.
    pub(super) asker: Option<Asker>,
    pub(super) post: Post,
}

impl TaskDuty {
    pub(super) fn task(&self) -> Option<TaskId> {
        self.hand.map(|(_, id)| id)
    }

    pub(super) fn finish(&mut self, result: &[u8]) -> Result<()> {
        self.end(Status::Done, result)
            .map_err(|error| Error::setup(format!("keep a result of {} bytes", result.len()), error))?;
        // Now: that is what it is for.
        self.ring()
    }

    /// The task in hand is done.
    fn end(&mut self, status: Status, result: &[u8]) -> std::io::Result<()> {
        let Some((taken, id)) = self.hand else { return Ok(()) };
        if self.store.is_one_way(&taken) {
            self.end_one_way(&taken, status);
            return Ok(());
        }
        let kept = if result.len() > CAN_BE_INLINE {
            let (slot, ticket) = taken.place();
            self.shared.tasks.spill().write(id.asker, slot, ticket, Part::Result, result)?;
            Err(result.len())
        } else {
            Ok(result)
        };
        self.store.finish(&taken, status, kept);
        self.note.ends();
        if self.courier().is_some_and(Courier::is_kept)
            && self.store.payload(&taken, &mut Vec::new()).is_some()
        {
            // A later server would take it for a task that is not done.
            self.forget_payload(&taken);
        }
        self.hand = None;
        self.unrung = Some(taken.asker());
        Ok(())
    }

    /// Nobody waits for it, so nobody would put its file away soon.
    fn end_one_way(&mut self, taken: &Taken, status: Status) {
        // Behind the end the slot may be another task's.
        if self.store.payload(taken, &mut Vec::new()).is_some() {
            self.forget_payload(taken);
        }
        self.store.finish_one_way(taken, status);
        self.note.ends();
        self.hand = None;
    }

    fn courier(&self) -> Option<&Courier> {
        self.shared.tasks.courier()
    }

    fn forget_payload(&self, taken: &Taken) {
        let (slot, ticket) = taken.place();
        self.shared.tasks.spill().give_back(taken.asker(), slot, ticket, Part::Payload);
    }

    /// Wakes those who wait for what is done.
    fn ring(&mut self) -> Result<()> {
        let Some(asker) = self.unrung.take() else { return Ok(()) };
        // Who has none waits for nothing.
        let Some(bell) = self.shared.bells.get(usize::from(asker)) else { return Ok(()) };
        bell.ring().map(drop).map_err(|error| Error::setup(format!("wake worker {asker}"), error))
    }

    fn count(&mut self) {
        self.handled += 1;
        self.shared.board.set_handled(self.seat, self.handled);
        if self.handled == self.limit {
            self.shared.tell_due(self.seat, self.generation);
        }
    }
}

struct Life<'a, H> {
    handler: &'a mut H,
    duty: TaskDuty,
    lookout: Lookout,
    /// Whose task is next.
    turn: u16,
    /// The number of revivals after which nothing was found.
    revivals: u64,
    mail: Mail,
    payload: Vec<u8>,
    /// Tasks that came one at a time since several did.
    singles: u32,
}

impl<'a, H: Handler> Life<'a, H> {
    fn start(handler: &'a mut H, shared: &Arc<Shared>, child: &Child, seat: u16) -> Result<Life<'a, H>> {
        shared.board.enter(seat, child.generation);
        shared
            .protect_from_task_worker(seat)
            .map_err(|error| Error::setup("make what other processes own read-only", error))?;
        let mut lookout = Lookout::new(shared, seat)?;
        lookout.watch(&shared.task_bells[usize::from(child.slot)])?;
        if shared.config.mode == Mode::Base {
            lookout.outlive_manager(ORPHAN_WAIT)?;
        }
        // With retries nothing is lost.
        let forgets = shared.tasks.courier().is_some_and(Courier::ends_files_early);
        let note = shared.tasks.spill().hand(child.slot).filter(|_| forgets);
        let note = note.map_or_else(Hand::default, |path| Hand::open(&path));
        let duty = TaskDuty {
            id: child.slot,
            seat,
            generation: child.generation,
            handled: 0,
            limit: request_limit(
                "task_max_request",
                shared.config.task_max_request,
                shared.config.task_request_grace(),
            )?,
            retiring: false,
            timers: Timers::default(),
            store: shared.tasks.store().clone(),
            shared: Arc::clone(shared),
            hand: None,
            note: note.clone(),
            unrung: None,
            asker: Asker::open(shared, seat, child.generation),
            post: Post::open(shared, seat, child.generation)?,
        };
        let mail = Mail::open(shared, child.slot, seat, child.generation, note);
        Ok(Life {
            handler,
            duty,
            lookout,
            turn: 0,
            revivals: u64::MAX,
            mail,
            payload: Vec::new(),
            singles: 0,
        })
    }

    fn serve(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.duty.shared);
        let seat = self.duty.seat;
        let mut spin = Spin::new(shared.config.busy_poll);
        let spin_always = spin.is_always();
        let mut pace = Pace::new(&shared, PacePart::Alone);
        loop {
            shared.board.set_busy(seat, true);
            let (worked, told) = (self.pass()?, self.tell_timers() | self.read_mail());
            // Timers and messages alone can keep it from sleeping, and tasks have looked.
            if told && self.lookout.looked().elapsed() > LOOK_AFTER {
                self.look(Some(Duration::ZERO))?;
            }
            // Who stops has no successor, and leaves nothing that was asked.
            if self.duty.retiring && !(worked && self.is_stopping()) {
                break;
            }
            spin.worked(worked || told);
            if worked || told {
                pace.worked();
                continue;
            }
            shared.board.set_looking(seat);
            let is_called = || spin_always && self.lookout.has_something();
            let is_due =
                || self.has_work() || self.mail.has_news() || self.duty.timers.is_due() || is_called();
            if !spin_always && self.is_spare() || !spin.until(&mut pace, is_due) {
                // Whoever has not seen this has published before, and what that was is seen before it sleeps.
                shared.board.set_busy(seat, false);
                self.sleep(None, true)?;
            } else if is_called() {
                self.look(Some(Duration::ZERO))?;
            }
        }
        shared.board.set_busy(seat, false);
        Ok(())
    }

    /// Waits for what its timers have to do, as long as there is time. In a stop it goes on with tasks meanwhile, which
    /// timers may have asked for.
    fn finish_timers(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.duty.shared);
        let mut drain = Drain::new(Instant::now(), time_for_work(shared.config.max_wait_time));
        while !self.duty.timers.is_empty() && !shared.lifeline.is_cut() {
            let now = Instant::now();
            drain.heed(now, &shared.board, self.duty.seat);
            match drain.step(now) {
                Step::Call => self.exit(),
                Step::Wait(longest) => {
                    let is_stopping = self.is_stopping();
                    self.sleep(Some(longest), is_stopping)?;
                    let worked = is_stopping && self.pass()?;
                    if self.tell_timers() | self.read_mail() || worked {
                        drain.worked(Instant::now());
                    }
                }
                Step::GiveUp => {
                    self.duty.give_up();
                    break;
                }
            }
        }
        while self.is_stopping() && self.pass()? {}
        Ok(())
    }

    /// Sleeps until the doorbell is rung, or a timer is due, or for so long; not at all if a timer is due, or there is a task
    /// and `tasks` matter.
    fn sleep(&mut self, longest: Option<Duration>, tasks: bool) -> Result<()> {
        let shared = Arc::clone(&self.duty.shared);
        let bell = &shared.task_bells[usize::from(self.duty.id)];
        bell.arm();
        let is_due = self.duty.post.has_mail() || tasks && (self.has_work() || self.mail.has_some());
        let patience = if tasks { self.mail.patience() } else { None };
        let longest = match is_due {
            true => Some(Duration::ZERO),
            false => longest.into_iter().chain(patience).min(),
        };
        self.look(self.duty.timers.wait(longest))?;
        bell.disarm();
        Ok(())
    }

    /// Whether one that comes before it looks for work, where one task came at a time: a second one that looks would only keep
    /// a core from those who ask.
    fn is_spare(&self) -> bool {
        let Shared { board, config, .. } = &*self.duty.shared;
        self.singles > SINGLES
            && (0..self.duty.id).any(|id| board.looks(config.seat_of_task_worker(id)).is_some())
    }

    fn is_stopping(&self) -> bool {
        self.duty.shared.board.phase() == Phase::Stopping
    }

    fn look(&mut self, timeout: Option<Duration>) -> Result<()> {
        self.duty.retiring |= self.lookout.look(timeout)?;
        self.lookout.serve(&mut self.duty.post);
        Ok(())
    }

    /// Calls the user for messages that have come, some of them; true if there was one.
    fn read_mail(&mut self) -> bool {
        let Life { handler, duty, .. } = self;
        for told in 0..BUDGET {
            let Some((from, message)) = duty.post.next_message() else { return told > 0 };
            let result = handler.on_task_worker_pipe_message(&mut TaskWorker { duty }, from, &message);
            callbacks::log_message_error(from, result);
        }
        true
    }

    /// Waits until what it has begun to read is there, and what it has sent is taken.
    fn finish_post(&mut self) -> Result<()> {
        let deadline = Instant::now() + POST_WAIT;
        while self.duty.post.under_way() > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!("a message that has come in part is lost");
                break;
            }
            self.look(Some(left))?;
            self.read_mail();
        }
        Ok(())
    }

    /// Does what there is, some of it; true if there was anything.
    fn pass(&mut self) -> Result<bool> {
        let mut done = 0;
        while done < BUDGET {
            breakpoint::packet_begins();
            let Some(taken) = self.take() else {
                if done == 1 {
                    self.ring_looking()?;
                }
                break;
            };
            // The next one may take any time.
            self.duty.ring()?;
            self.work(taken);
            done += 1;
            let now = Instant::now();
            if now - self.lookout.looked() > LOOK_AFTER {
                self.duty.ring()?;
                self.look(Some(Duration::ZERO))?;
            }
            let is_due = self.duty.timers.next().is_some_and(|due| due <= now);
            if is_due || self.duty.retiring && !self.is_stopping() {
                break;
            }
        }
        self.duty.ring()?;
        match done {
            0 => {}
            1 => self.singles = self.singles.saturating_add(1),
            _ => self.singles = 0,
        }
        Ok(done > 0)
    }

    /// Wakes who waits for the one task that there was. Who wakes may take this core at once and ask for another one, which
    /// nobody else need be woken for: it is looked for before this one sleeps.
    fn ring_looking(&mut self) -> Result<()> {
        let seat = self.duty.seat;
        let was_busy = self.duty.shared.board.is_busy(seat);
        self.duty.shared.board.set_looking(seat);
        self.duty.ring()?;
        // Callbacks of timers and messages may come first.
        self.duty.shared.board.set_busy(seat, was_busy);
        Ok(())
    }

    /// Calls the user for every timer that is due; true if one was. One that a callback sets for at once has its turn after
    /// the tasks that wait.
    fn tell_timers(&mut self) -> bool {
        if !self.duty.timers.is_due() {
            return false;
        }
        let Life { handler, duty, .. } = self;
        let (shared, now) = (Arc::clone(&duty.shared), Instant::now());
        let was_busy = shared.board.is_busy(duty.seat);
        shared.board.set_busy(duty.seat, true);
        while let Some(timer) = duty.timers.take_due(now) {
            if let Err(error) = handler.on_task_worker_timer(&mut TaskWorker { duty }, timer) {
                tracing::warn!("timer {timer}: {error}");
            }
        }
        shared.board.set_busy(duty.seat, was_busy);
        true
    }

    fn exit(&mut self) {
        if let Err(error) = self.handler.on_task_worker_exit(&mut TaskWorker { duty: &mut self.duty }) {
            tracing::warn!("on_task_worker_exit: {error}");
        }
    }

    /// The next task: one that was begun before, or that of the asker whose turn it is.
    fn take(&mut self) -> Option<Taken> {
        let (store, id, askers) = (&self.duty.store, self.duty.id, self.duty.store.shape().askers);
        let revivals = store.revivals();
        if revivals != self.revivals {
            if let Some(taken) = store.take_revived(id, super::now()) {
                return Some(taken);
            }
            self.revivals = revivals;
        }
        if let Some(taken) = self.mail.next() {
            return Some(taken);
        }
        let taken = (0..askers).find_map(|step| {
            let asker = (self.turn + step) % askers;
            store.has_work(asker, id).then(|| store.take(asker, id, super::now())).flatten()
        })?;
        self.turn = (taken.asker() + 1) % askers;
        Some(taken)
    }

    fn has_work(&self) -> bool {
        let (store, id) = (&self.duty.store, self.duty.id);
        let has_mail = self.duty.post.has_mail();
        has_mail
            || store.revivals() != self.revivals
            || (0..store.shape().askers).any(|asker| store.has_work(asker, id))
    }

    fn work(&mut self, taken: Taken) {
        let Life { handler, duty, payload, .. } = self;
        let id = duty.store.id_of(&taken);
        duty.hand = Some((taken, id));
        duty.note.begins(id, duty.store.payload_len(&taken));
        duty.count();
        let whole = duty.payload(&taken, payload);
        let result = whole.and_then(|()| handler.on_task(&mut TaskWorker { duty }, id, payload));
        let is_finished = duty.hand.is_none();
        let ended = match &result {
            Ok(result) => duty.end(Status::Done, result),
            Err(error) => {
                tracing::warn!("task {id}: {error}");
                duty.end(Status::Failed, error.to_string().as_bytes())
            }
        };
        if is_finished && result.is_ok_and(|result| !result.is_empty()) {
            tracing::debug!("task {id} was finished before it has returned another result");
        }
        if let Err(error) = ended {
            tracing::warn!("task {id}: its result could not be kept: {error}");
            // A text of one line has room.
            let _ = duty.end(Status::Failed, format!("its result could not be kept: {error}").as_bytes());
        }
        if payload.capacity() > KEEP {
            *payload = Vec::new();
        }
    }
}

/// Bytes of a payload whose memory is kept for the next one.
const KEEP: usize = 2 * 1024 * 1024;

impl TaskDuty {
    fn payload(&self, taken: &Taken, bytes: &mut Vec<u8>) -> Result<()> {
        let Some(len) = self.store.payload(taken, bytes) else { return Ok(()) };
        let (slot, ticket) = taken.place();
        let spill = self.shared.tasks.spill();
        spill
            .read(taken.asker(), slot, ticket, Part::Payload, len, bytes)
            .map_err(|error| Error::setup("read a large task", error))?;
        if self.courier().is_some_and(Courier::ends_files_early) {
            // From here on it is begun, and nobody begins it again.
            self.forget_payload(taken);
        }
        Ok(())
    }
}
