//! What stands where in the memory that all processes of a server share.
//!
//! One memory for all of it: the board, the sessions, the words of the doorbells, the rings. Its parts are laid down from
//! the configuration alone, so that a process which was executed anew, and has inherited nothing but the descriptor,
//! finds them as one that was forked does.

use swoole_ipc::words::Words;
use swoole_ipc::{Memory, Ring};

use crate::board::Board;
use crate::config::{Config, Ipc, Mode};
use crate::error::{Error, Result};
use crate::session::SessionTable;
use crate::task::store::{Shape, Store};
use crate::tls::TlsTable;

/// Which layout this program has, and which meanings of what stands in it: of the parts, of the words in them, and of the
/// records in the rings and the packets of the post. Whoever changes one of them counts this up, so that nobody who knows another one takes part.
pub(crate) const LAYOUT: u32 = 11;

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) workers: usize,
    pub(crate) task_workers: usize,
    user_processes: usize,
    pub(crate) tasks_shape: Shape,
    pub(crate) reactors: usize,
    /// Reactors that every worker is linked to.
    pub(crate) links: usize,
    /// Clients at one time, and sessions of one reactor.
    pub(crate) connections: usize,
    slots: usize,
    /// Bytes of one ring, and of its part; 0 where there are none.
    ring_size: usize,
    ring_part: usize,
    // Where each part begins.
    board: usize,
    sessions: usize,
    bells: usize,
    rooms: usize,
    reactor_bells: usize,
    task_bells: usize,
    process_bells: usize,
    tasks: usize,
    tls: usize,
    rings: usize,
    /// Bytes of all.
    pub(crate) size: usize,
}

impl Plan {
    /// The part that only clients of TLS touch.
    pub(crate) const TLS: &'static str = "what is known of TLS";

    /// `connections` is [`Config::connection_limit`], which depends on the process that asks.
    pub(crate) fn new(config: &Config, connections: usize) -> Result<Plan> {
        // In Base mode each worker is a reactor, and none is linked to any.
        let (workers, reactors) = (usize::from(config.worker_num), config.reactors());
        let links = if config.mode == Mode::Process { reactors } else { 0 };
        let slots = connections.div_ceil(reactors);
        let ring_size = if config.ipc == Ipc::Ring && links > 0 { config.ring_bytes() } else { 0 };
        let ring_part = match ring_size {
            0 => 0,
            size => Ring::size(size).map_err(|error| Error::setup("lay down the rings", error))?,
        };
        let task_workers = usize::from(config.task_worker_num);
        let user_processes = usize::from(config.user_process_num());
        let tasks_shape = Shape {
            askers: config.askers(),
            task_workers: config.task_worker_num,
            slots: config.task_slots(),
        };
        let mut size = 0_usize;
        let mut part = |bytes: usize| {
            let start = size;
            size = size.saturating_add(bytes);
            start
        };
        Ok(Plan {
            board: part(Board::size(config.seats().into(), reactors, links)),
            sessions: part(SessionTable::size(reactors, slots)),
            bells: part(Words::size(workers, 1)),
            rooms: part(Words::size(workers, 1)),
            reactor_bells: part(Words::size(links, 1)),
            task_bells: part(Words::size(task_workers, 1)),
            process_bells: part(Words::size(user_processes, 1)),
            tasks: part(tasks_shape.size()),
            // Also where no address has TLS: a reload may bring one. Nobody touches it before.
            tls: part(TlsTable::size(reactors, tls_slots(slots))),
            rings: part(2 * ring_part * workers * links),
            workers,
            task_workers,
            user_processes,
            tasks_shape,
            reactors,
            links,
            connections,
            slots,
            ring_size,
            ring_part,
            size,
        })
    }

    /// How many bytes each part has, by what stands in it: words of processes, sessions, rings, tasks,
    /// and what is known of TLS.
    pub(crate) fn parts(&self) -> [(&'static str, usize); 5] {
        [
            ("processes and doorbells", self.sessions - self.board + (self.tasks - self.bells)),
            ("sessions", self.bells - self.sessions),
            ("rings", self.size - self.rings),
            ("tasks", self.tls - self.tasks),
            (Plan::TLS, self.rings - self.tls),
        ]
    }

    pub(crate) fn board(&self, memory: &Memory) -> Result<Board> {
        let seats = self.workers + self.task_workers + self.user_processes;
        Board::map(memory, self.board, seats, self.reactors, self.links)
    }

    pub(crate) fn sessions(&self, memory: &Memory) -> Result<SessionTable> {
        SessionTable::map(memory, self.sessions, self.reactors, self.slots)
    }

    pub(crate) fn tls(&self, memory: &Memory) -> Result<TlsTable> {
        TlsTable::map(memory, self.tls, self.reactors, tls_slots(self.slots))
    }

    /// How many bells workers have, how many of them one for room, and how many reactors, task workers and user processes
    /// have one.
    pub(crate) fn bell_nums(&self) -> [usize; 5] {
        let rooms = if self.links > 0 { self.workers } else { 0 };
        [self.workers, rooms, self.links, self.task_workers, self.user_processes]
    }

    /// The words of those.
    pub(crate) fn bells(&self, memory: &Memory) -> Result<[Vec<Words>; 5], swoole_ipc::Error> {
        let [bells, rooms, reactor_bells, task_bells, process_bells] = self.bell_nums();
        Ok([
            Words::open(memory, self.bells, bells, 1)?,
            Words::open(memory, self.rooms, rooms, 1)?,
            Words::open(memory, self.reactor_bells, reactor_bells, 1)?,
            Words::open(memory, self.task_bells, task_bells, 1)?,
            Words::open(memory, self.process_bells, process_bells, 1)?,
        ])
    }

    /// Where tasks are.
    pub(crate) fn tasks(&self, memory: &Memory) -> Result<Store, swoole_ipc::Error> {
        Store::map(memory, self.tasks, self.tasks_shape)
    }

    /// The rings between this worker and this reactor: for requests, and for replies.
    pub(crate) fn rings(
        &self,
        memory: &Memory,
        worker: usize,
        reactor: usize,
    ) -> Result<(Ring, Ring), swoole_ipc::Error> {
        let start = self.rings + 2 * self.ring_part * (worker * self.links + reactor);
        let open = |what: &str, start: usize| {
            Ring::open(memory, start, &format!("{what}-{reactor}-{worker}"), self.ring_size)
        };
        Ok((open("requests", start)?, open("replies", start + self.ring_part)?))
    }
}

/// How many sessions of a reactor may have TLS.
fn tls_slots(slots: usize) -> usize {
    if cfg!(feature = "tls") { slots } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    /// Whoever opens a part changes nothing in another one, and finds it again in a memory of the same descriptor.
    #[test]
    fn parts_lie_beside_each_other() {
        let config = Config { worker_num: 3, reactor_num: 2, ring_size: 16 << 10, ..Config::default() };
        let plan = Plan::new(&config, 10).unwrap();
        let memory = Memory::create("plan", plan.size).unwrap();
        let fill = |memory: &Memory| {
            let board = plan.board(memory).unwrap();
            (0..3).for_each(|worker| board.set_worker_pid(worker, 100 + i32::from(worker)));
            let bells = plan.bells(memory).unwrap();
            for (bells, value) in bells.iter().zip(1..) {
                bells.iter().for_each(|bell| bell[0].store(value, std::sync::atomic::Ordering::Relaxed));
            }
            for (worker, reactor) in [(0, 0), (2, 1)] {
                let (requests, replies) = plan.rings(memory, worker, reactor).unwrap();
                for ring in [requests, replies] {
                    let mut producer = ring.producer().unwrap();
                    producer.push(worker as u32, &[b"packet"]).unwrap();
                    producer.publish();
                }
            }
        };
        fill(&memory);
        let other = Memory::from_fd("plan", memory.as_fd().try_clone_to_owned().unwrap()).unwrap();
        let board = plan.board(&other).unwrap();
        assert_eq!([0, 1, 2].map(|worker| board.worker_pid(worker)), [100, 101, 102]);
        assert_eq!(plan.sessions(&other).unwrap().iter().count(), 0);
        for (worker, reactor, sent) in [(0, 0, true), (0, 1, false), (1, 0, false), (2, 1, true)] {
            let (requests, replies) = plan.rings(&other, worker, reactor).unwrap();
            for ring in [requests, replies] {
                let mut consumer = ring.consumer().unwrap();
                assert_eq!(consumer.next().unwrap().map(|record| record.tag), sent.then_some(worker as u32));
            }
        }
    }
}
