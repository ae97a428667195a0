//! What exists before the first fork and is seen by every process.
//!
//! All of it is memory that stays mapped, or descriptors that a child keeps by name ([`Shared::worker_keep`]).
//! What a child must not have (listening sockets, the master's end of the control channel, the other
//! workers' links) is closed in it before user code runs, or was never mapped ([`Links`]), and what it only reads is made
//! read-only ([`Shared::protect_from`]): a wild write ends the worker, and confuses nobody else.
//!
//! A process that was not forked puts the same together from descriptors: [`Shared::assemble`].

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use parking_lot::RwLock;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::fstat;
use rustix::io::{Errno, retry_on_intr};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, getpid};
use swoole_ipc::socketpair::Endpoint;
use swoole_ipc::words::Words;
use swoole_ipc::{Doorbell, Memory};
use swoole_reactor::Options;

use crate::affinity::Placement;
use crate::board::{Board, Request};
use crate::config::{Config, Ipc, Mode};
use crate::confine::{self, Account};
use crate::dispatch::Rule;
use crate::error::{Error, Result};
use crate::link::Lane;
use crate::listening::Listening;
use crate::plan::Plan;
use crate::post::Boxes;
use crate::process::Processes;
use crate::session::{Session, SessionTable};
use crate::stats::Stats;
use crate::task::Tasks;
use crate::task::attic::Attic;
use crate::task::courier::{Courier, Record};
use crate::task::spill::Spill;
use crate::tls::{Tls, TlsTable};

pub(crate) struct Shared {
    pub(crate) config: Config,
    /// Where clients come in, and what follows from that. A reload may replace it in master and manager.
    listening: RwLock<Arc<Listening>>,
    /// Who workers are, if not who the manager is.
    pub(crate) account: Option<Account>,
    /// What the master's reactors dispatch by; nobody else uses it.
    pub(crate) rule: Rule,
    /// What TLS needs, in the processes that have clients; empty in all others.
    pub(crate) tls: Tls,
    pub(crate) placement: Placement,
    pub(crate) board: Board,
    pub(crate) sessions: SessionTable,
    pub(crate) tls_infos: TlsTable,
    /// Clients at one time: `max_connection`, or fewer if the process may not have so many descriptors.
    pub(crate) connection_limit: usize,
    /// Wakes a worker that waits for packets, by worker.
    pub(crate) bells: Vec<Doorbell>,
    /// Wakes a worker that waits for room for its replies, by worker.
    pub(crate) rooms: Vec<Doorbell>,
    /// Wakes a reactor that waits for replies, by reactor.
    pub(crate) reactor_bells: Vec<Doorbell>,
    /// Wakes a task worker that waits for tasks, by task worker.
    pub(crate) task_bells: Vec<Doorbell>,
    /// Wakes a user process that waits to be asked to leave, by user process.
    pub(crate) process_bells: Vec<Doorbell>,
    pub(crate) tasks: Tasks,
    pub(crate) boxes: Boxes,
    /// Whether a reload may bring other addresses. Only the first process of the server asks.
    pub(crate) rereads: bool,
    /// What user processes do: those that the configuration names, once the program has brought them.
    pub(crate) processes: Processes,
    pub(crate) manager_bell: ManagerBell,
    pub(crate) lifeline: Lifeline,
    /// Descriptors of the user's that every process keeps.
    pub(crate) keep: Vec<RawFd>,
}

/// The descriptors that all processes have, and memory is mapped from.
pub(crate) struct Parts {
    pub(crate) memory: Memory,
    pub(crate) lifeline: Lifeline,
    pub(crate) manager_bell: OwnedFd,
    /// By worker, by worker, by reactor, by task worker, by user process.
    pub(crate) bells: Vec<OwnedFd>,
    pub(crate) rooms: Vec<OwnedFd>,
    pub(crate) reactor_bells: Vec<OwnedFd>,
    pub(crate) task_bells: Vec<OwnedFd>,
    pub(crate) boxes: Boxes,
    pub(crate) process_bells: Vec<OwnedFd>,
    /// The socketpairs by worker (outer) and reactor, where links are such.
    pub(crate) sockets: Vec<Vec<Arc<Lane>>>,
    /// What letters go by; `None` to make it.
    pub(crate) post: Option<(Option<Record>, Vec<OwnedFd>)>,
    /// Where large tasks are, if in memory.
    pub(crate) attic: Option<OwnedFd>,
}

impl Shared {
    /// The descriptor is the end of the lifeline that only the master may hold.
    pub(crate) fn create(
        config: Config,
        listening: Listening,
        keep: Vec<RawFd>,
    ) -> Result<(Shared, Links, OwnedFd)> {
        let plan = Plan::new(&config, config.connection_limit()?)?;
        let account = confine::check(&config)?;
        let (lifeline, hold) = Lifeline::create()?;
        let bells = |name: &str, count: usize| {
            (0..count)
                .map(|_| Doorbell::event(name))
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| Error::setup(format!("make {count} doorbells ({name})"), error))
        };
        let sockets = |worker: usize| {
            let lanes = (0..plan.links).map(|reactor| Lane::socketpair(&format!("{reactor}-{worker}")));
            lanes.map(|lane| lane.map(Arc::new)).collect()
        };
        let sockets = if config.ipc == Ipc::SocketPair {
            (0..plan.workers).map(sockets).collect::<Result<_>>()?
        } else {
            Vec::new()
        };
        let memory = Memory::create("swoole", plan.size)
            .map_err(|error| Error::setup(format!("make the shared memory ({} bytes)", plan.size), error))?;
        let [worker_bells, rooms, reactor_bells, task_bells, process_bells] = plan.bell_nums();
        let manager_bell = Doorbell::event("manager-bell")
            .map_err(|error| Error::setup("make the manager's bell (an eventfd)", error))?;
        let parts = Parts {
            memory,
            lifeline,
            manager_bell,
            bells: bells("worker-bells", worker_bells)?,
            rooms: bells("worker-rooms", rooms)?,
            reactor_bells: bells("reactor-bells", reactor_bells)?,
            task_bells: bells("task-bells", task_bells)?,
            boxes: Boxes::create(&config)?,
            process_bells: bells("process-bells", process_bells)?,
            sockets,
            post: None,
            attic: Attic::create(plan.tasks_shape, config.task_buffer_size)
                .map_err(|error| Error::setup("make the memory for large tasks (task_buffer_size)", error))?,
        };
        let (shared, links) = Shared::assemble((config, account), listening, keep, getpid(), plan, parts)?;
        Ok((shared, links, hold))
    }

    /// Without any socket.
    #[cfg(test)]
    pub(crate) fn create_for_test(config: Config) -> Result<(Shared, Links, OwnedFd)> {
        let listening = Listening::for_test(&config);
        Shared::create(config, listening, Vec::new())
    }

    /// The same of what another process has created, the `master`: everything but `keep` as that one has it.
    pub(crate) fn assemble(
        (config, account): (Config, Option<Account>),
        listening: Listening,
        keep: Vec<RawFd>,
        master: Pid,
        plan: Plan,
        parts: Parts,
    ) -> Result<(Shared, Links)> {
        let Parts {
            memory,
            lifeline,
            manager_bell,
            bells,
            rooms,
            reactor_bells,
            boxes,
            sockets,
            post,
            attic,
            ..
        } = parts;
        let words = plan.bells(&memory).map_err(|error| Error::setup("map the doorbells", error))?;
        let together = |words: Vec<Words>, events: Vec<OwnedFd>| {
            words.into_iter().zip(events).map(|(word, event)| Doorbell::new(word, event)).collect()
        };
        let [bell_words, room_words, reactor_bell_words, task_bell_words, process_bell_words] = words;
        let store = plan.tasks(&memory).map_err(|error| Error::setup("map the memory for tasks", error))?;
        let inode = fstat(&memory).map_err(std::io::Error::from)?.st_ino;
        let spill = Spill::new(&config.task_tmpdir, master.as_raw_pid(), inode);
        let attic = attic.map(|file| Attic::open(file, plan.tasks_shape, config.task_buffer_size));
        let spill = spill.owned_by(account.as_ref().map(Account::owner)).with_attic(attic);
        let post = match post {
            Some((record, fds)) => record.map(|record| Courier::join(&config, record, fds)).transpose()?,
            None => Courier::create(&config, &spill)?,
        };
        let spill = match &post {
            Some(post) if post.is_kept() => spill.keeping(config.message_queue_key, post.server()),
            _ => spill,
        };
        let tasks = Tasks::new(store, spill, post, config.task_retries);
        let shared = Shared {
            account,
            placement: Placement::new(&config)?,
            board: plan.board(&memory)?,
            sessions: plan.sessions(&memory)?,
            tls_infos: plan.tls(&memory)?,
            connection_limit: plan.connections,
            bells: together(bell_words, bells),
            rooms: together(room_words, rooms),
            reactor_bells: together(reactor_bell_words, reactor_bells),
            task_bells: together(task_bell_words, parts.task_bells),
            process_bells: together(process_bell_words, parts.process_bells),
            tasks,
            boxes,
            processes: Processes::default(),
            rereads: false,
            manager_bell: ManagerBell(manager_bell),
            lifeline,
            keep,
            rule: Rule::new(&config),
            tls: Tls::default(),
            listening: RwLock::new(Arc::new(listening)),
            config,
        };
        Ok((shared, Links { memory: Some(memory), plan, sockets: ManuallyDrop::new(sockets) }))
    }

    /// How the event loops that serve clients are made; the same for all.
    pub(crate) fn reactor_options(&self) -> Options {
        Options { backend: self.config.backend, ..Options::default() }
    }

    /// Where clients come in, as far as this process knows.
    pub(crate) fn listening(&self) -> Arc<Listening> {
        Arc::clone(&self.listening.read())
    }

    /// Processes that are forked from now on know this; in this one, whoever asks again.
    pub(crate) fn set_listening(&self, listening: Arc<Listening>) {
        *self.listening.write() = listening;
    }

    /// What a worker keeps open besides its standard streams and its links.
    pub(crate) fn worker_keep(&self, worker: u16) -> Vec<RawFd> {
        let own = [&self.bells, &self.rooms].into_iter().filter_map(|bells| bells.get(usize::from(worker)));
        let bells = own.chain(&self.reactor_bells).chain(&self.task_bells);
        let bells = bells.map(|bell| bell.as_fd().as_raw_fd());
        let post = self.tasks.courier().map_or_else(Vec::new, Courier::asker_keep);
        bells.chain(self.boxes.keep(worker, false)).chain(self.common_keep()).chain(post).collect()
    }

    /// What a task worker keeps open besides its standard streams.
    pub(crate) fn task_worker_keep(&self, seat: u16) -> Vec<RawFd> {
        let bells = self.bells.iter().chain(&self.task_bells);
        let bells = bells.map(|bell| bell.as_fd().as_raw_fd());
        let post = self.tasks.courier().map_or_else(Vec::new, Courier::task_worker_keep);
        bells.chain(self.boxes.keep(seat, true)).chain(self.common_keep()).chain(post).collect()
    }

    /// What a user process keeps open besides its standard streams.
    pub(crate) fn user_process_keep(&self, id: u16) -> Vec<RawFd> {
        let bells = self.task_bells.iter().chain(self.process_bells.get(usize::from(id)));
        let bells = bells.map(|bell| bell.as_fd().as_raw_fd());
        let seat = self.config.seat_of_user_process(id);
        let post = self.tasks.courier().map_or_else(Vec::new, Courier::asker_keep);
        bells.chain(self.boxes.keep(seat, true)).chain(self.common_keep()).chain(post).collect()
    }

    /// What the manager keeps open: all that its workers need, and its own end of the control channel.
    pub(crate) fn manager_keep(&self, links: &Links, control: &Endpoint) -> Vec<RawFd> {
        let workers = 0..self.config.worker_num;
        let own = workers.flat_map(|worker| [self.worker_keep(worker), links.keep(worker)].concat());
        let boxes = self.boxes.fds().map(|end| end.as_raw_fd());
        let bells = self.task_bells.iter().chain(&self.process_bells).map(|bell| bell.as_fd().as_raw_fd());
        let letters = self.tasks.courier().map_or_else(Vec::new, Courier::task_worker_keep);
        own.chain(boxes).chain(bells).chain(letters).chain([control.as_fd().as_raw_fd()]).collect()
    }

    /// Makes what this worker only reads, and what concerns other workers only, read-only in its process.
    pub(crate) fn protect_from(&self, worker: u16) -> Result<(), swoole_ipc::Error> {
        let reactor = (self.config.mode == Mode::Base).then_some(usize::from(worker));
        self.sessions.protect_from(reactor)?;
        self.tls_infos.protect_from(reactor)?;
        self.board.protect_from(worker, reactor)?;
        self.tasks.store().protect_from(worker)?;
        Doorbell::protect_others(&self.bells, worker.into())?;
        Doorbell::protect_others(&self.rooms, worker.into())
    }

    /// The same for a task worker: it writes to tasks of all workers, and rings all of them.
    pub(crate) fn protect_from_task_worker(&self, seat: u16) -> Result<(), swoole_ipc::Error> {
        self.sessions.protect_from(None)?;
        self.tls_infos.protect_from(None)?;
        self.board.protect_from(seat, None)
    }

    /// The same for a user process: it writes its own tasks, and wakes task workers.
    pub(crate) fn protect_from_user_process(&self, id: u16) -> Result<(), swoole_ipc::Error> {
        let seat = self.config.seat_of_user_process(id);
        self.sessions.protect_from(None)?;
        self.tls_infos.protect_from(None)?;
        self.board.protect_from(seat, None)?;
        self.tasks.store().protect_from(seat)?;
        for bells in [&self.bells, &self.rooms, &self.reactor_bells] {
            Doorbell::protect_others(bells, bells.len())?;
        }
        Doorbell::protect_others(&self.process_bells, id.into())
    }

    /// This process has had its share of work, and goes on until the manager says that it is its turn to leave. If there is
    /// no manager, the next one finds this on the board.
    #[cold]
    pub(crate) fn tell_due(&self, seat: u16, generation: u32) {
        self.board.set_due(seat, generation);
        if let Err(error) = self.manager_bell.ring() {
            tracing::error!("tell the manager that this process is due: {error}");
        }
    }

    /// Asks something of the manager, from this seat. If there is none, the next one finds this on the board.
    pub(crate) fn ask_manager(&self, seat: u16, request: Request) -> Result<()> {
        if !self.board.ask(seat, request) {
            return Err(
                "the manager has not come to what it was asked before: that another worker retires".into()
            );
        }
        self.manager_bell
            .ring()
            .map_err(|error| Error::setup("ring for the manager", std::io::Error::from(error)))
    }

    /// Whether so many bytes may be sent to a session at once.
    #[inline]
    pub(crate) fn check_reply(&self, session: Session, len: usize) -> Result<()> {
        let max = self.config.socket_buffer_size;
        if len > max { Err(Error::ReplyTooLong { session, len, max }) } else { Ok(()) }
    }

    /// The server's counters.
    pub(crate) fn stats(&self) -> Stats {
        Stats { tasks: self.tasks.stats(), ..self.board.stats(&self.config) }
    }

    /// Lets all workers, task workers and user processes look at the board: something in it concerns them.
    pub(crate) fn wake_workers(&self) {
        for bell in [&self.bells, &self.task_bells, &self.process_bells].into_iter().flatten() {
            if let Err(error) = bell.force() {
                tracing::error!("wake a worker: {error}");
            }
        }
    }

    fn common_keep(&self) -> impl Iterator<Item = RawFd> + '_ {
        let own = [self.lifeline.as_fd().as_raw_fd(), self.manager_bell.as_fd().as_raw_fd()];
        let attic = self.tasks.spill().attic().map(|attic| attic.as_fd().as_raw_fd());
        self.keep.iter().copied().chain(own).chain(attic).chain(crate::log::descriptor())
    }
}

/// What the links between reactors and workers are made of: a process opens those that it uses, and no other, so a fork
/// need not copy their mappings.
pub(crate) struct Links {
    /// Where the rings are; `None` in a worker that has opened its own.
    memory: Option<Memory>,
    plan: Plan,
    /// In a process that has closed those of others, their owners stay.
    sockets: ManuallyDrop<Vec<Vec<Arc<Lane>>>>,
}

/// One lane for each worker (outer) and reactor (inner).
pub(crate) type Lanes = Vec<Vec<Arc<Lane>>>;

impl Links {
    /// All of them, for the master.
    pub(crate) fn open_all(&self) -> Result<Lanes> {
        (0..self.plan.workers as u16).map(|worker| self.open(worker)).collect()
    }

    /// Those of this worker, by reactor.
    pub(crate) fn open(&self, worker: u16) -> Result<Vec<Arc<Lane>>> {
        let worker = usize::from(worker);
        if let Some(lanes) = self.sockets.get(worker) {
            return Ok(lanes.clone());
        }
        let Some(memory) = &self.memory else { return Ok(Vec::new()) };
        let lane = |reactor| {
            let (requests, replies) = self
                .plan
                .rings(memory, worker, reactor)
                .map_err(|error| Error::setup(format!("map the rings of link {reactor}-{worker}"), error))?;
            Ok(Arc::new(Lane::Ring { requests, replies }))
        };
        (0..self.plan.links).map(lane).collect()
    }

    /// Those of this worker; it cannot open any other one afterwards.
    pub(crate) fn open_own(&mut self, worker: u16) -> Result<Vec<Arc<Lane>>> {
        let lanes = self.open(worker);
        self.memory = None;
        lanes
    }

    /// The descriptors that this worker needs to open its own.
    pub(crate) fn keep(&self, worker: u16) -> Vec<RawFd> {
        let own = self.sockets.get(usize::from(worker)).into_iter().flatten();
        let memory = self.memory.iter().map(|memory| memory.as_fd().as_raw_fd());
        own.filter_map(|lane| lane.worker_fd()).chain(memory).collect()
    }

    pub(crate) fn memory(&self) -> Option<&Memory> {
        self.memory.as_ref()
    }

    pub(crate) fn sockets(&self) -> &[Vec<Arc<Lane>>] {
        &self.sockets
    }
}

/// Rung by workers that have something to tell their manager, which stands on the board by then: an eventfd(2). It stays
/// rung while there is no manager, for the next one.
#[derive(Debug)]
pub(crate) struct ManagerBell(OwnedFd);

impl ManagerBell {
    pub(crate) fn ring(&self) -> rustix::io::Result<()> {
        match retry_on_intr(|| rustix::io::write(&self.0, &1_u64.to_ne_bytes())) {
            // A full counter is as loud as one more.
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The manager has heard it.
    pub(crate) fn silence(&self) {
        // Nothing to read is nothing to silence.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for ManagerBell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Cut when the master is gone, however it went: the reading end of a pipe that nobody writes to, and whose other end
/// only the master has.
#[derive(Clone, Debug)]
pub(crate) struct Lifeline(Arc<OwnedFd>);

impl Lifeline {
    /// The end that a process which was not forked has received.
    pub(crate) fn new(end: OwnedFd) -> Lifeline {
        Lifeline(Arc::new(end))
    }

    fn create() -> Result<(Lifeline, OwnedFd)> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| {
            Error::setup("make the master's lifeline (a pipe)", std::io::Error::from(error))
        })?;
        Ok((Lifeline(Arc::new(read)), write))
    }

    pub(crate) fn is_cut(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fds = [PollFd::new(self, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&now)), Ok(ready) if ready > 0)
    }
}

/// Readable (hung up) when it is cut.
impl AsFd for Lifeline {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
