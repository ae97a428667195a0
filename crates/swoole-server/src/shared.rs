//! What exists before the first fork and is seen by every process.
//!
//! All of it is memory that stays mapped, or descriptors that a child keeps by name ([`Shared::worker_keep`]).
//! What a child must not have (listening sockets, the master's end of the control channel, the other
//! workers' links) is closed or unmapped in it before user code runs, and what it only reads is made
//! read-only ([`Shared::protect_from`]): a wild write ends the worker, and confuses nobody else.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use swoole_ipc::Doorbell;
use swoole_ipc::socketpair::Endpoint;
use swoole_reactor::Options;

use crate::affinity::Placement;
use crate::board::Board;
use crate::config::{Config, Listen, Mode};
use crate::error::{Error, Result};
use crate::link::Lane;
use crate::session::SessionTable;

pub(crate) struct Shared {
    pub(crate) config: Config,
    /// Where the listeners really listen, in the order of `config.listen`.
    pub(crate) addresses: Vec<Listen>,
    pub(crate) placement: Placement,
    pub(crate) board: Board,
    pub(crate) sessions: SessionTable,
    /// Clients at one time: `max_connection`, or fewer if the process may not have so many descriptors.
    pub(crate) connection_limit: usize,
    /// Wakes a worker that waits for packets, by worker.
    pub(crate) bells: Vec<Doorbell>,
    /// Wakes a worker that waits for room for its replies, by worker.
    pub(crate) rooms: Vec<Doorbell>,
    /// Wakes a reactor that waits for replies, by reactor.
    pub(crate) reactor_bells: Vec<Doorbell>,
    pub(crate) lifeline: Lifeline,
    /// Descriptors of the user's that every process keeps.
    pub(crate) keep: Vec<RawFd>,
}

/// The links: one lane for each worker (outer) and reactor (inner). Apart from the rest, because each
/// process needs another selection of them.
pub(crate) type Lanes = Vec<Vec<Arc<Lane>>>;

impl Shared {
    /// The descriptor is the end of the lifeline that only the master may hold.
    pub(crate) fn create(
        config: Config,
        addresses: Vec<Listen>,
        keep: Vec<RawFd>,
    ) -> Result<(Shared, Lanes, OwnedFd)> {
        // In Base mode each worker is a reactor, and none is linked to any.
        let (workers, reactors) = (usize::from(config.worker_num), config.reactors());
        let links = if config.mode == Mode::Process { reactors } else { 0 };
        let bells = |name: &str, count: usize| {
            Doorbell::several(name, count)
                .map_err(|error| Error::setup(format!("make {count} doorbells ({name})"), error))
        };
        let ring_size = config.ring_bytes();
        let lane = |worker: usize, reactor: usize| {
            Lane::create(config.ipc, &format!("{reactor}-{worker}"), ring_size).map(Arc::new)
        };
        let lanes = (0..workers)
            .map(|worker| (0..links).map(|reactor| lane(worker, reactor)).collect())
            .collect::<Result<Lanes>>()?;
        let connection_limit = config.connection_limit()?;
        let slots = connection_limit.div_ceil(reactors);
        let (lifeline, hold) = Lifeline::create()?;
        let shared = Shared {
            placement: Placement::new(&config)?,
            board: Board::create(workers, reactors, links)?,
            sessions: SessionTable::create(reactors, slots)?,
            connection_limit,
            bells: bells("worker-bells", workers)?,
            rooms: bells("worker-rooms", workers.min(workers * links))?,
            reactor_bells: bells("reactor-bells", links)?,
            lifeline,
            keep,
            addresses,
            config,
        };
        Ok((shared, lanes, hold))
    }

    /// How the event loops that serve clients are made; the same for all.
    pub(crate) fn reactor_options(&self) -> Options {
        Options { backend: self.config.backend, ..Options::default() }
    }

    /// What a worker keeps open besides its standard streams.
    pub(crate) fn worker_keep(&self, worker: u16, lanes: &[Arc<Lane>]) -> Vec<RawFd> {
        let own = [&self.bells, &self.rooms].into_iter().filter_map(|bells| bells.get(usize::from(worker)));
        let bells = own.chain(&self.reactor_bells).map(|bell| bell.as_fd().as_raw_fd());
        bells.chain(lanes.iter().filter_map(|lane| lane.worker_fd())).chain(self.common_keep()).collect()
    }

    /// What the manager keeps open: all that its workers need, and its own end of the control channel.
    pub(crate) fn manager_keep(&self, lanes: &Lanes, control: &Endpoint) -> Vec<RawFd> {
        let own = lanes.iter().zip(0..).flat_map(|(lanes, worker)| self.worker_keep(worker, lanes));
        own.chain([control.as_fd().as_raw_fd()]).collect()
    }

    /// Makes what this worker only reads, and what concerns other workers only, read-only in its process.
    pub(crate) fn protect_from(&self, worker: u16) -> Result<(), swoole_ipc::Error> {
        let reactor = (self.config.mode == Mode::Base).then_some(usize::from(worker));
        self.sessions.protect_from(reactor)?;
        self.board.protect_from(worker, reactor)?;
        Doorbell::protect_others(&self.bells, worker.into())?;
        Doorbell::protect_others(&self.rooms, worker.into())
    }

    /// Lets all workers look at the board: something in it concerns them.
    pub(crate) fn wake_workers(&self) {
        for bell in &self.bells {
            if let Err(error) = bell.force() {
                tracing::error!("wake a worker: {error}");
            }
        }
    }

    fn common_keep(&self) -> impl Iterator<Item = RawFd> + '_ {
        let lifeline = self.lifeline.as_fd().as_raw_fd();
        self.keep.iter().copied().chain([lifeline]).chain(crate::log::descriptor())
    }
}

/// Cut when the master is gone, however it went: the reading end of a pipe that nobody writes to, and whose other end
/// only the master has.
#[derive(Clone, Debug)]
pub(crate) struct Lifeline(Arc<OwnedFd>);

impl Lifeline {
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
