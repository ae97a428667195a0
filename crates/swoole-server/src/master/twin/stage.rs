//! The memory that schedules play in, used by one after another: to map it costs more than to play.

use std::collections::BTreeMap;
use std::sync::Arc;

use fastrand::Rng;
use rustix::fd::OwnedFd;
use swoole_ipc::Ring;
use swoole_ipc::socketpair::Endpoint;

use super::front::SLOTS;
use super::tally::{Breach, Kind, breach};
use crate::board::Phase;
use crate::config::{Config, DispatchMode, Framing, Ipc, OnCrash};
use crate::dispatch::{Choice, Custom, Dispatch};
use crate::link::Lane;
use crate::listening::Listening;
use crate::shared::{Lanes, Shared};
use crate::stats::WorkerState;

/// The smallest that there is, which is full after some packets and smaller than large ones; and one in which a packet
/// in pieces wants more room than a batch does.
const RINGS: [usize; 2] = [4096, 16384];
/// What stands for that where there are sockets: no packet is so large that its replies would fill one.
const SOCKETS: usize = 32 * 1024;

/// The default one most often.
const MODES: [DispatchMode; 11] = [
    DispatchMode::Fixed,
    DispatchMode::Fixed,
    DispatchMode::Fixed,
    DispatchMode::Fixed,
    DispatchMode::IpHash,
    DispatchMode::RoundRobin,
    DispatchMode::Idle,
    DispatchMode::Uid,
    DispatchMode::LeastInFlight,
    DispatchMode::ConsistentHash,
    DispatchMode::Custom,
];

pub(super) struct Stage {
    pub(super) shared: Arc<Shared>,
    pub(super) lanes: Lanes,
    /// Bytes of each ring.
    pub(super) ring: usize,
    _hold: OwnedFd,
}

/// One for each number of reactors and workers, and kind of links.
#[derive(Default)]
pub(super) struct Stages(BTreeMap<(u8, u16, usize), Stage>);

impl Stages {
    /// That of a schedule, as if nobody had been there before.
    pub(super) fn set(&mut self, rng: &mut Rng) -> Result<&mut Stage, Breach> {
        let (reactors, workers) = (rng.u8(1..=2), rng.u16(1..=3));
        let ring = if rng.u8(..16) == 0 { SOCKETS } else { RINGS[rng.usize(..RINGS.len())] };
        let stage = match self.0.entry((reactors, workers, ring)) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(Stage::create(reactors, workers, ring)?)
            }
        };
        let Some(shared) = Arc::get_mut(&mut stage.shared) else {
            return breach(Kind::Leak, "somebody plays there still");
        };
        shared.config.on_crash =
            [OnCrash::Close, OnCrash::Drop, OnCrash::Retry, OnCrash::Retry][rng.usize(..4)];
        shared.config.crash_retries = rng.u32(0..4);
        shared.config.dispatch_mode = MODES[rng.usize(..MODES.len())];
        shared.set_listening(Arc::new(Listening::for_test(&shared.config)));
        stage.clear(rng)?;
        Ok(stage)
    }
}

impl Stage {
    fn create(reactors: u8, workers: u16, ring: usize) -> Result<Stage, Breach> {
        let config = Config {
            reactor_num: reactors,
            worker_num: workers,
            max_connection: SLOTS * usize::from(reactors),
            framing: Framing::Length,
            // A packet's number.
            dispatch_key_offset: 8,
            dispatch_key_length: 4,
            ipc: if ring == SOCKETS { Ipc::SocketPair } else { Ipc::Ring },
            ..Config::default()
        };
        let failed = |error: crate::Error| Breach { kind: Kind::Leak, what: error.to_string() };
        let (mut shared, _, hold) = Shared::create_for_test(config.clone()).map_err(failed)?;
        shared.rule.custom = Some(Custom::new(scatter));
        // Smaller ones than anybody may configure.
        let lane = || Lane::create(config.ipc, "twin", ring).map(Arc::new);
        let of_worker = |_| (0..reactors).map(|_| lane()).collect();
        let lanes = (0..workers).map(of_worker).collect::<Result<_, _>>().map_err(failed)?;
        Ok(Stage { shared: Arc::new(shared), lanes, ring, _hold: hold })
    }

    /// Empties the rings, and lets them begin where the seed says.
    fn clear(&self, rng: &mut Rng) -> Result<(), Breach> {
        for lane in self.lanes.iter().flatten() {
            match &**lane {
                Lane::Ring { requests, replies } => {
                    for ring in [requests, replies] {
                        restart(ring, 8 * rng.usize(..ring.capacity() / 8))
                            .map_err(|error| Breach { kind: Kind::Leak, what: error.to_string() })?;
                    }
                }
                Lane::Socket { reactor, worker } => {
                    for end in [reactor, worker] {
                        while is_full(end) {}
                    }
                }
            }
        }
        let Shared { board, bells, rooms, reactor_bells, .. } = &*self.shared;
        for worker in 0..self.lanes.len() as u16 {
            board.leave(worker);
            board.set_worker_pid(worker, 0);
            board.set_worker_state(worker, WorkerState::Starting);
            board.free_lease(worker);
        }
        board.set_reloading(false);
        board.set_phase(Phase::Running);
        [bells, rooms, reactor_bells].into_iter().flatten().for_each(|bell| bell.disarm());
        Ok(())
    }

    /// Whether all of the rings is free, with nobody at their ends.
    pub(super) fn check_empty(&self) -> Result<(), Breach> {
        for lane in self.lanes.iter().flatten() {
            let (requests, replies) = match &**lane {
                Lane::Ring { requests, replies } => (requests, replies),
                Lane::Socket { reactor, worker } => {
                    if is_full(reactor) || is_full(worker) {
                        return breach(Kind::Leak, "a socket is not empty");
                    }
                    continue;
                }
            };
            for ring in [requests, replies] {
                let room = ring.producer().map(|producer| producer.room());
                if room.as_ref().is_ok_and(|&room| room == ring.capacity() - 8) {
                    continue;
                }
                return breach(Kind::Leak, format!("{} has {room:?} of {}", ring.name(), ring.capacity()));
            }
        }
        Ok(())
    }
}

/// Sends a connection's packets everywhere, some to nobody, and refuses a few.
fn scatter(dispatch: &Dispatch<'_>) -> Choice {
    let number = dispatch.packet.get(8).copied().unwrap_or(0);
    let places = dispatch.session.raw() >> 26;
    match (places + u64::from(number)) % 16 {
        0 => Choice::Drop,
        1 if number > 6 => Choice::Close,
        2..5 => Choice::Home,
        choice => Choice::Worker(choice),
    }
}

/// Whether there was something in this end of a socket, of which a part is gone now.
fn is_full(end: &Endpoint) -> bool {
    !matches!(end.recv_packet(&mut [0; 16]), Ok(None))
}

/// Empties a ring whose sides nobody has; its next record is `offset` bytes behind the first one's place.
fn restart(ring: &Ring, offset: usize) -> Result<(), swoole_ipc::Error> {
    let mut producer = ring.producer()?;
    producer.rewind();
    let capacity = ring.capacity();
    let size = (capacity + offset - producer.position() as usize % capacity) % capacity;
    if size > 0 && producer.reserve(size - 8).is_some() {
        producer.commit(0, size - 8);
        producer.publish();
        producer.rewind();
    }
    Ok(())
}
