//! How the threads of a server share cores that are scarce: with each other, and with strangers.
//!
//! To wake a sleeper on another core costs tens of microseconds of latency and several of CPU time. So threads look for
//! work for a moment before they sleep, and give their core away between two looks ([`Spin`]). With fewer cores than
//! threads this alone makes some clients wait for long: the scheduler lets who is awake and never wakes up wait for its
//! turn, and turns end with a tick (4 ms at 250 Hz). Therefore, where cores are scarce:
//!
//! - a thread gives its core away also while it has work, every [`TURN`];
//! - one whose core was taken for long all the same, by somebody who does not do that, goes elsewhere;
//! - a worker goes to the core of its reactor, so that the two hand over to each other by giving way;
//! - a reactor leaves the core of another one, if there is a core for each: with their workers they would all share one core,
//!   far from half of their clients' memory. (4 KiB, length, 16 requests at a time: they did for 3/4 of the time.)
//!
//! When it goes, [`Berth`] decides. 128 bytes raw, 64 connections that send one request at a time, two reactors and two
//! workers on two cores shared with the load (Linux 6.18, medians of interleaved runs): the 99th percentile went from
//! 4.2 to 0.6-0.9 ms in Base mode and from 3.1-3.9 to 0.7-1.2 ms in Process mode (tokio: 1.0-1.3), at the same CPU per
//! request and about as many requests per second. The kernel's own means did not help: shorter slices
//! (`sched_setattr`), naps of 20 to 100 us instead of yielding, no yielding at all.
//!
//! Where every thread can have a core of its own, or is kept on one (`open_cpu_affinity`), the scheduler needs no help.

mod berth;
mod spin;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::thread::{sched_getcpu, sched_yield};

use berth::{Berth, Move};
pub(crate) use spin::Spin;

use crate::affinity;
use crate::shared::Shared;

/// How long a thread works at most before it lets others have its core. (With 50 us, reactors and workers that share a
/// core hand over twice as often: in Process mode 5 % more CPU per request at 128 B, with depth 1 and 16, and the 99th
/// percentile is no better for it. 400 us are no better than 200.)
const TURN: Duration = Duration::from_micros(200);

/// A thread's way to share its core.
pub(crate) struct Pace {
    /// `None`: there are cores enough.
    scarce: Option<Scarce>,
}

/// Whose core matters to whom.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part {
    /// A worker that is its own reactor, or one that works for all of them.
    Alone,
    /// This reactor tells its workers where it is.
    Reactor(u8),
    /// A worker of this reactor goes where that is.
    WorkerOf(u8),
}

struct Scarce {
    shared: Arc<Shared>,
    part: Part,
    berth: Berth,
    gave_way: Instant,
}

impl Pace {
    pub(crate) fn new(shared: &Arc<Shared>, part: Part) -> Pace {
        let scarce =
            || Scarce { shared: Arc::clone(shared), part, berth: Berth::default(), gave_way: Instant::now() };
        Pace { scarce: shared.placement.is_scarce().then(scarce) }
    }

    /// Something was done: lets others have the core, if it is time for that.
    pub(crate) fn worked(&mut self) {
        if self.scarce.as_ref().is_some_and(|scarce| scarce.gave_way.elapsed() >= TURN) {
            self.give_way();
        }
    }

    /// Lets others have the core.
    pub(crate) fn give_way(&mut self) {
        let Some(scarce) = &mut self.scarce else { return sched_yield() };
        let before = Instant::now();
        sched_yield();
        let now = Instant::now();
        scarce.gave_way = now;
        let shared = &scarce.shared;
        let board = &shared.board;
        if let Part::Reactor(reactor) = scarce.part {
            board.set_core(reactor, sched_getcpu());
        }
        let elsewhere = || match scarce.part {
            Part::WorkerOf(reactor) => {
                board.core(reactor).filter(|core| *core != sched_getcpu()).map(Move::To)
            }
            // The one with the lower number stays.
            Part::Reactor(reactor) if shared.placement.has_core_for_each_reactor() => {
                let own = board.core(reactor);
                (0..reactor).any(|other| board.core(other) == own).then_some(Move::Apart)
            }
            Part::Alone | Part::Reactor(_) => None,
        };
        let moved = match scarce.berth.after(now - before, now, elsewhere) {
            None => return,
            Some(Move::Away) => affinity::leave_cores([sched_getcpu()]),
            Some(Move::To(core)) => affinity::go_to_core(core),
            Some(Move::Apart) => {
                affinity::leave_cores((0..shared.config.reactor_num).filter_map(|other| board.core(other)))
            }
        };
        if let Err(error) = moved {
            tracing::debug!("stays on its core: {error}");
            self.scarce = None;
        }
    }
}
