//! The board: small facts that every process may read, one word each, in shared memory.
//!
//! Task workers and user processes have rows as workers have, behind theirs: the number of a row is a seat.
//!
//! Each word has one writer at a time: a worker's row is that worker's (it is cleared when the worker is gone), a
//! reactor's row is that reactor's, which in Base mode is the worker's own, the rest (process ids among it) is the
//! master's and the manager's. In a worker, all but its own rows is read-only. Readers take the words as they are: no
//! fact here decides about memory safety, or about the life of another process than the one that wrote it
//! ([`Board::progress`]), and the reactors check what workers write ([`Board::started`]) against their own books.

mod deadline;
mod lease;
mod request;

use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::Signal;
use swoole_ipc::Memory;
use swoole_ipc::words::Words;
use swoole_sys::stack;

use crate::config::Config;
use crate::crash::{Fate, PacketInHand};
use crate::error::{Error, Result};
use crate::session::Session;
use crate::stats::{Stats, UserProcessStats, WorkerState, WorkerStats};
use crate::task::TaskStats;
pub(crate) use deadline::monotonic;
pub(crate) use lease::Lease;
pub(crate) use request::Request;

/// Where the server is in its life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u64)]
pub(crate) enum Phase {
    /// Processes exist, no callback has run in a worker yet.
    Booting = 0,
    /// Workers start; from now on one that retires leaves its unread packets to its successor.
    Running = 1,
    /// Base mode: all have started or have failed to, clients are accepted.
    Serving = 2,
    /// Everything that was accepted is answered, or its time is over: whoever has no manager to say so leaves now. In
    /// Base mode: answer what has come, and leave.
    Stopping = 3,
}

/// Whose the clients of a worker's slot are, in Base mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub(crate) enum Clients {
    /// There are none.
    None = 0,
    /// The worker's: they go with it if it dies.
    Own = 1,
    /// The worker is about to leave them to its successor.
    Leaving = 2,
    /// They wait for the successor.
    Left = 3,
}

// A worker's row. One cache line for what it writes per packet, then one word per reactor.
const GENERATION: usize = 0;
// Whether it has something to do; whether it has nothing to do and looks for it; above that, passes over what there is to do.
const BUSY: usize = 1;
const IS_BUSY: u64 = 1;
const LOOKS: u64 = 2;
const PASS: u64 = 4;
const HANDLED: usize = 2;
// The packet in hand; session 0 for none. In Process mode it stays when it is done.
const SESSION: usize = 3;
const SIZE: usize = 4;
// Base mode: see `Clients`.
const CLIENTS: usize = 5;
// Process mode: see `Lease`.
const LEASE: usize = 6;
// The generation that has had its share of packets; a process of any other one has not.
const DUE: usize = 7;
// Process mode: the record in hand, by reactor. Behind it, the stack of the worker; see `swoole_sys::stack`. Then a word for
// what it asks of the manager; see `ask`. Then the packets that the slot's workers have shed.
const STARTED: usize = 8;

// A reactor's row.
const ACCEPTED: usize = 0;
const CLOSED: usize = 1;
const PACKETS: usize = 2;
const RECEIVED: usize = 3;
const SENT: usize = 4;
const LOST: usize = 5;
// The core that it was on last, plus 1; 0 before it has said so.
const CORE: usize = 6;
const RETRIED: usize = 7;
const IDLE: usize = 8;
const SLOW: usize = 9;
const REFUSED: usize = 10;
const SHED: usize = 11;
// Connections that were refused for what they did not say in a PROXY header.
const BAD_PROXY: usize = 12;
const DATAGRAMS: usize = 13;
const DATAGRAMS_SENT: usize = 14;
const DATAGRAMS_DROPPED: usize = 15;
const DATAGRAMS_TRUNCATED: usize = 16;
const DATAGRAMS_UNSENT: usize = 17;
const REACTOR_ROW: usize = 24;

// The head: the phase, then when the server started, then the pids of master and manager. Behind it, three words for each
// worker slot: the process in it, its state, and when it has to be gone, if it was asked to leave (as below).
const HEAD: usize = 9;
const PHASE: usize = 0;
const STARTED_AT: usize = 1;
const MASTER: usize = 2;
const MANAGER: usize = 3;
const RESPAWNS: usize = 4;
// How many managers have died, and whether the present one is at a reload.
const REIGN: usize = 5;
const RELOADING: usize = 6;
// When a stop has to be over, in nanoseconds of CLOCK_MONOTONIC; 0 if there is none.
const STOP_AT: usize = 7;
// Clients that the master has not taken; see `Counter::Refused`.
const REFUSED_THERE: usize = 8;
const SLOT: usize = 3;

/// A worker that gets on has another one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Progress {
    generation: u64,
    passes: u64,
    handled: u64,
    started: u64,
}

#[derive(Clone)]
pub(crate) struct Board {
    facts: Words,
    /// One for each worker, and one for each reactor, on pages of their own.
    workers: Vec<Words>,
    reactors: Vec<Words>,
    /// Reactors that every worker is linked to.
    links: usize,
}

impl Board {
    /// Bytes of shared memory for so many workers and reactors.
    pub(crate) fn size(workers: usize, reactors: usize, links: usize) -> usize {
        Board::parts(workers, reactors, links).iter().map(|(rows, count)| Words::size(*rows, *count)).sum()
    }

    /// The rows of each part, and the words of a row: facts, workers, reactors.
    fn parts(workers: usize, reactors: usize, links: usize) -> [(usize, usize); 3] {
        [(1, HEAD + SLOT * workers), (workers, STARTED + links + stack::WORDS + 2), (reactors, REACTOR_ROW)]
    }

    /// The board in the part of `memory` that begins at `start`, for so many workers, each of which is linked to the
    /// first `links` reactors.
    pub(crate) fn map(
        memory: &Memory,
        mut start: usize,
        workers: usize,
        reactors: usize,
        links: usize,
    ) -> Result<Board> {
        let parts = Board::parts(workers, reactors, links).map(|(rows, count)| {
            let words = Words::open(memory, start, rows, count);
            start += Words::size(rows, count);
            words.map_err(|error| {
                Error::setup(
                    "map the board (a page of shared memory, and one for each worker and reactor)",
                    error,
                )
            })
        });
        let [facts, workers, reactors] = parts;
        Ok(Board { facts: facts?.swap_remove(0), workers: workers?, reactors: reactors?, links })
    }

    /// A board in memory of its own.
    #[cfg(test)]
    pub(crate) fn create(workers: usize, reactors: usize, links: usize) -> Result<Board> {
        let memory = Memory::create("board", Board::size(workers, reactors, links)).unwrap();
        Board::map(&memory, 0, workers, reactors, links)
    }

    /// Makes everything but the rows of this worker, and of the reactor that it is itself if it is one, read-only in
    /// this process.
    pub(crate) fn protect_from(&self, worker: u16, reactor: Option<usize>) -> Result<(), swoole_ipc::Error> {
        self.facts.protect()?;
        Words::protect_others(&self.workers, Some(worker.into()))?;
        Words::protect_others(&self.reactors, reactor)
    }

    #[inline]
    fn worker(&self, worker: u16, word: usize) -> &AtomicU64 {
        &self.workers[usize::from(worker)][word]
    }

    #[inline]
    fn reactor(&self, reactor: usize, word: usize) -> &AtomicU64 {
        &self.reactors[reactor][word]
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.facts[PHASE].load(Ordering::Acquire) {
            0 => Phase::Booting,
            1 => Phase::Running,
            2 => Phase::Serving,
            _ => Phase::Stopping,
        }
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.facts[PHASE].store(phase as u64, Ordering::Release);
    }

    pub(crate) fn set_server(&self, master: i32, started_at: u64) {
        self.facts[MASTER].store(master as u64, Ordering::Relaxed);
        self.facts[STARTED_AT].store(started_at, Ordering::Relaxed);
    }

    pub(crate) fn set_manager(&self, manager: i32) {
        self.facts[MANAGER].store(manager as u64, Ordering::Relaxed);
    }

    pub(crate) fn master_pid(&self) -> i32 {
        self.facts[MASTER].load(Ordering::Relaxed) as i32
    }

    pub(crate) fn manager_pid(&self) -> i32 {
        self.facts[MANAGER].load(Ordering::Relaxed) as i32
    }

    /// The master has not taken a client, as there were too many of one address.
    pub(crate) fn count_refused(&self) {
        self.facts[REFUSED_THERE].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_respawn(&self) {
        self.facts[RESPAWNS].fetch_add(1, Ordering::Relaxed);
    }

    /// How many managers have died before the present one.
    pub(crate) fn reign(&self) -> u64 {
        self.facts[REIGN].load(Ordering::Acquire)
    }

    /// The manager is dead. The next one's reign begins, and what the last one was at is at an end.
    pub(crate) fn next_reign(&self) {
        self.set_manager(0);
        self.facts[REIGN].fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn set_reloading(&self, reloading: bool) {
        self.facts[RELOADING].store(reloading.into(), Ordering::Relaxed);
    }

    pub(crate) fn is_reloading(&self) -> bool {
        self.facts[RELOADING].load(Ordering::Relaxed) != 0
    }

    /// Which process of its slot the worker says it is.
    pub(crate) fn generation(&self, worker: u16) -> u32 {
        self.worker(worker, GENERATION).load(Ordering::Relaxed) as u32
    }

    fn pid(&self, worker: u16) -> &AtomicU64 {
        &self.facts[HEAD + SLOT * usize::from(worker)]
    }

    /// The manager's word on the slot.
    pub(crate) fn set_worker_state(&self, worker: u16, state: WorkerState) {
        self.facts[HEAD + SLOT * usize::from(worker) + 1].store(state as u64, Ordering::Relaxed);
    }

    pub(crate) fn worker_state(&self, worker: u16) -> WorkerState {
        match self.facts[HEAD + SLOT * usize::from(worker) + 1].load(Ordering::Relaxed) {
            1 => WorkerState::Running,
            2 => WorkerState::Retiring,
            3 => WorkerState::BackingOff,
            4 => WorkerState::Failed,
            _ => WorkerState::Starting,
        }
    }

    /// The manager's word on who is in this slot; 0 for nobody.
    pub(crate) fn set_worker_pid(&self, worker: u16, pid: i32) {
        self.pid(worker).store(pid as u64, Ordering::Relaxed);
    }

    /// The worker introduces itself, before its first callback.
    pub(crate) fn enter(&self, worker: u16, generation: u32) {
        self.worker(worker, GENERATION).store(u64::from(generation), Ordering::Relaxed);
        self.worker(worker, HANDLED).store(0, Ordering::Relaxed);
    }

    /// The worker says that it has had its share of packets.
    pub(crate) fn set_due(&self, worker: u16, generation: u32) {
        self.worker(worker, DUE).store(generation.into(), Ordering::Release);
    }

    /// Which process of its slot was the last to say so; 0 for none.
    pub(crate) fn due(&self, worker: u16) -> u32 {
        self.worker(worker, DUE).load(Ordering::Acquire) as u32
    }

    fn asked(&self, worker: u16) -> &AtomicU64 {
        self.worker(worker, STARTED + self.links + stack::WORDS)
    }

    fn shed(&self, worker: u16) -> &AtomicU64 {
        self.worker(worker, STARTED + self.links + stack::WORDS + 1)
    }

    /// The worker has shed a packet.
    pub(crate) fn count_shed(&self, worker: u16) {
        let word = self.shed(worker);
        word.store(word.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// The worker asks something of the manager, which it may not signal. False if it has asked before for what cannot be
    /// asked twice, and the manager has not come to that.
    pub(crate) fn ask(&self, worker: u16, request: Request) -> bool {
        let add = |asked| request::add(asked, request);
        self.asked(worker).fetch_update(Ordering::Release, Ordering::Relaxed, add).is_ok()
    }

    /// What this worker has asked for since the last time. Whatever it has written there: nothing that it could not ask for.
    pub(crate) fn take_requests(&self, worker: u16) -> Vec<Request> {
        match self.asked(worker).load(Ordering::Relaxed) {
            0 => Vec::new(),
            _ => request::all(self.asked(worker).swap(0, Ordering::Acquire)),
        }
    }

    /// The worker's process id; 0 while there is none.
    pub(crate) fn worker_pid(&self, worker: u16) -> i32 {
        self.pid(worker).load(Ordering::Relaxed) as i32
    }

    /// What a dead worker left behind is settled.
    pub(crate) fn leave(&self, worker: u16) {
        for word in [BUSY, SESSION] {
            self.worker(worker, word).store(0, Ordering::Relaxed);
        }
        for reactor in 0..self.links {
            self.worker(worker, STARTED + reactor).store(0, Ordering::Relaxed);
        }
    }

    /// The worker takes request record number `record` (from 1) of `reactor` in hand.
    #[inline]
    pub(crate) fn start(&self, worker: u16, reactor: usize, record: u64) {
        self.worker(worker, STARTED + reactor).store(record, Ordering::Release);
    }

    /// The last request record that the worker says it took in hand; 0 when none.
    pub(crate) fn started(&self, worker: u16, reactor: usize) -> u64 {
        self.worker(worker, STARTED + reactor).load(Ordering::Acquire)
    }

    /// The worker takes a packet of its own client in hand, or with `None` puts it down.
    #[inline]
    pub(crate) fn hold(&self, worker: u16, packet: Option<(Session, usize)>) {
        let (session, size) = packet.map_or((0, 0), |(session, size)| (session.raw(), size as u64));
        self.worker(worker, SIZE).store(size, Ordering::Relaxed);
        self.worker(worker, SESSION).store(session, Ordering::Release);
    }

    /// The packet that the worker says it has in hand.
    pub(crate) fn held(&self, worker: u16) -> Option<PacketInHand> {
        let session = self.worker(worker, SESSION).load(Ordering::Acquire);
        let size = self.worker(worker, SIZE).load(Ordering::Relaxed);
        let session = (session != 0).then(|| Session::from_raw(session))?;
        let fate = if session.listener().is_some() { Fate::Dropped } else { Fate::Closed };
        Some(PacketInHand { session, size, attempt: 1, age: None, fate })
    }

    /// Has this process, a worker, write its stack to the board when it gets this signal.
    pub(crate) fn write_stack_on(&self, worker: u16, signal: Signal) -> rustix::io::Result<()> {
        // For as long as the process lives: a signal may come at any time.
        let row: &'static Words = Box::leak(Box::new(self.workers[usize::from(worker)].clone()));
        stack::write_on_signal(signal, &row[STARTED + self.links..])
    }

    /// How many stacks the processes in this slot have written, and the last one.
    pub(crate) fn stack(&self, worker: u16) -> (u64, Vec<u64>) {
        stack::read(&self.workers[usize::from(worker)][STARTED + self.links..])
    }

    pub(crate) fn set_clients(&self, worker: u16, clients: Clients) {
        self.worker(worker, CLIENTS).store(clients as u64, Ordering::Release);
    }

    pub(crate) fn clients(&self, worker: u16) -> Clients {
        match self.worker(worker, CLIENTS).load(Ordering::Acquire) {
            1 => Clients::Own,
            2 => Clients::Leaving,
            3 => Clients::Left,
            _ => Clients::None,
        }
    }

    /// All connections of this reactor are gone, those on their way out included.
    pub(crate) fn close_all(&self, reactor: usize) {
        let accepted = self.reactor(reactor, ACCEPTED).load(Ordering::Relaxed);
        self.reactor(reactor, CLOSED).store(accepted, Ordering::Relaxed);
    }

    /// The worker begins another pass over what there is to do, or has nothing to do.
    #[inline]
    pub(crate) fn set_busy(&self, worker: u16, busy: bool) {
        let word = self.worker(worker, BUSY);
        let passes = word.load(Ordering::Relaxed) & !(IS_BUSY | LOOKS);
        word.store(if busy { passes.wrapping_add(PASS) | IS_BUSY } else { passes }, Ordering::Relaxed);
    }

    /// The worker has nothing to do, and looks for something: until it says something else, nobody need wake it.
    pub(crate) fn set_looking(&self, worker: u16) {
        let word = self.worker(worker, BUSY);
        word.store(word.load(Ordering::Relaxed) & !IS_BUSY | LOOKS, Ordering::Relaxed);
    }

    /// Whether it does so; if it does, another number than at any time before. To be asked behind a full fence, after what it
    /// is to find was published.
    pub(crate) fn looks(&self, worker: u16) -> Option<u64> {
        let word = self.worker(worker, BUSY).load(Ordering::Relaxed);
        (word & LOOKS != 0).then_some(word)
    }

    pub(crate) fn is_busy(&self, worker: u16) -> bool {
        self.worker(worker, BUSY).load(Ordering::Relaxed) & IS_BUSY != 0
    }

    pub(crate) fn is_idle(&self, worker: u16) -> bool {
        !self.is_busy(worker) && self.worker_pid(worker) != 0
    }

    /// What the worker is at; `None` if it has nothing to do.
    pub(crate) fn progress(&self, worker: u16) -> Option<Progress> {
        let word = |word| self.worker(worker, word).load(Ordering::Relaxed);
        self.is_busy(worker).then(|| Progress {
            generation: word(GENERATION),
            passes: word(BUSY),
            handled: word(HANDLED),
            started: (0..self.links).map(|reactor| word(STARTED + reactor)).fold(0, u64::wrapping_add),
        })
    }

    #[inline]
    pub(crate) fn set_handled(&self, worker: u16, handled: u64) {
        self.worker(worker, HANDLED).store(handled, Ordering::Relaxed);
    }

    /// The reactor says on which core it is.
    pub(crate) fn set_core(&self, reactor: u8, core: usize) {
        let (word, core) = (self.reactor(reactor.into(), CORE), core as u64 + 1);
        if word.load(Ordering::Relaxed) != core {
            word.store(core, Ordering::Relaxed);
        }
    }

    /// Where the reactor was last.
    pub(crate) fn core(&self, reactor: u8) -> Option<usize> {
        self.reactor(reactor.into(), CORE).load(Ordering::Relaxed).checked_sub(1).map(|core| core as usize)
    }

    /// The reactor's own counters: it is their only writer, so plain stores are enough.
    #[inline]
    pub(crate) fn count(&self, reactor: usize, counter: Counter, more: u64) {
        let word = self.reactor(reactor, counter as usize);
        word.store(word.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }

    /// All but the tasks. Who sits where, the configuration says.
    pub(crate) fn stats(&self, config: &Config) -> Stats {
        let row = |seat, id| WorkerStats {
            id,
            pid: self.worker_pid(seat),
            state: self.worker_state(seat),
            generation: self.worker(seat, GENERATION).load(Ordering::Relaxed) as u32,
            idle: self.is_idle(seat),
            handled: self.worker(seat, HANDLED).load(Ordering::Relaxed),
        };
        let process = |(id, name): (u16, &String)| {
            let WorkerStats { id, pid, state, generation, .. } = row(config.seat_of_user_process(id), id);
            UserProcessStats { id, name: name.clone(), pid, state, generation }
        };
        let sum = |counter: Counter| {
            (0..self.reactors.len())
                .map(|reactor| self.reactor(reactor, counter as usize).load(Ordering::Relaxed))
                .sum()
        };
        let accepted: u64 = sum(Counter::Accepted);
        let closed: u64 = sum(Counter::Closed);
        let of_workers: u64 =
            (0..config.worker_num).map(|worker| self.shed(worker).load(Ordering::Relaxed)).sum();
        Stats {
            start_time: self.facts[STARTED_AT].load(Ordering::Relaxed),
            master_pid: self.master_pid(),
            manager_pid: self.manager_pid(),
            reactor_num: self.reactors.len() as u16,
            connection_num: accepted.saturating_sub(closed),
            accept_count: accepted,
            close_count: closed,
            packet_count: sum(Counter::Packets),
            lost_count: sum(Counter::Lost),
            retry_count: sum(Counter::Retried),
            idle_count: sum(Counter::Idle),
            slow_count: sum(Counter::Slow),
            refuse_count: sum(Counter::Refused) + self.facts[REFUSED_THERE].load(Ordering::Relaxed),
            shed_count: sum(Counter::Shed) + of_workers,
            bad_proxy_count: sum(Counter::BadProxy),
            received_bytes: sum(Counter::Received),
            sent_bytes: sum(Counter::Sent),
            datagram_count: sum(Counter::Datagrams),
            datagram_sent_count: sum(Counter::DatagramsSent),
            datagram_dropped_count: sum(Counter::DatagramsDropped),
            datagram_truncated_count: sum(Counter::DatagramsTruncated),
            datagram_unsent_count: sum(Counter::DatagramsUnsent),
            respawn_count: self.facts[RESPAWNS].load(Ordering::Relaxed),
            workers: (0..config.worker_num).map(|id| row(id, id)).collect(),
            task_workers: (0..config.task_worker_num)
                .map(|id| row(config.seat_of_task_worker(id), id))
                .collect(),
            user_processes: (0..).zip(&config.user_processes).map(process).collect(),
            tasks: TaskStats::default(),
        }
    }
}

/// What a reactor counts.
#[derive(Clone, Copy)]
#[repr(usize)]
pub(crate) enum Counter {
    Accepted = ACCEPTED,
    Closed = CLOSED,
    Packets = PACKETS,
    Received = RECEIVED,
    Sent = SENT,
    Lost = LOST,
    Retried = RETRIED,
    /// Connections that were closed because nothing came, or a packet took too long.
    Idle = IDLE,
    Slow = SLOW,
    /// Clients that were not taken, as there were too many of one address; in Base mode.
    Refused = REFUSED,
    /// Packets that a reactor has shed by itself.
    Shed = SHED,
    /// Connections that were closed for what they did not say in a PROXY header.
    BadProxy = BAD_PROXY,
    Datagrams = DATAGRAMS,
    DatagramsSent = DATAGRAMS_SENT,
    DatagramsDropped = DATAGRAMS_DROPPED,
    DatagramsTruncated = DATAGRAMS_TRUNCATED,
    DatagramsUnsent = DATAGRAMS_UNSENT,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_do_not_overlap() {
        let board = Board::create(3, 10, 10).unwrap();
        for worker in 0..3 {
            board.enter(worker, 7);
            board.set_worker_pid(worker, 100 + i32::from(worker));
            for reactor in 0..10 {
                board.start(worker, reactor, u64::from(worker) * 100 + reactor as u64);
            }
        }
        for reactor in 0..10 {
            board.count(reactor, Counter::Lost, 1 << reactor);
        }
        for worker in 0..3 {
            assert_eq!(board.worker_pid(worker), 100 + i32::from(worker));
            for reactor in 0..10 {
                assert_eq!(board.started(worker, reactor), u64::from(worker) * 100 + reactor as u64);
            }
        }
        let config = Config { worker_num: 1, task_worker_num: 1, ..Config::default() };
        let stats = board.stats(&Config { user_processes: vec!["third".into()], ..config });
        assert_eq!((stats.lost_count, stats.workers[0].pid, stats.task_workers[0].pid), (1023, 100, 101));
        assert_eq!((stats.user_processes[0].pid, &*stats.user_processes[0].name), (102, "third"));
        let session = Session::new(5, 3);
        board.hold(1, Some((session, 77)));
        assert_eq!(board.held(1).map(|held| (held.session, held.size)), Some((session, 77)));
        assert_eq!((board.held(0), board.held(2)), (None, None));
        board.leave(1);
        assert_eq!(board.held(1), None);
        board.set_due(2, 7);
        assert_eq!([0, 1, 2].map(|worker| board.due(worker)), [0, 0, 7]);
        board.set_core(4, 0);
        assert_eq!((board.core(4), board.core(5)), (Some(0), None));
        assert_eq!((board.started(1, 9), board.started(2, 9), board.worker_pid(1)), (0, 209, 101));
    }
}
