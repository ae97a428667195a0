//! Which core runs what, if `open_cpu_affinity` asks for it.
//!
//! A reactor and its own workers share the memory that packets travel through, so they are kept close: the cores are
//! cut into as many runs as there are reactors, neighbours within one NUMA node as far as that goes; each reactor sits on
//! the first core of its run and its workers on those that follow. With as many reactors as cores, a reactor and its
//! workers share one. In Base mode there are workers only, one core after the other.
//!
//! Pinned on two cores shared with the client, a request costs 4 to 31 % less CPU, while the throughput goes either way
//! (-8 to +17 %): an option, therefore. Without it, threads go where the scheduler puts them, and where
//! [`pace`](crate::pace) finds that they had better be.

use std::fs;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::config::{Config, Mode};
use crate::error::Error;

/// Where everybody runs; nowhere in particular without the option.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Placement {
    reactors: Vec<usize>,
    workers: Vec<usize>,
    scarce: bool,
    core_for_each_reactor: bool,
}

impl Placement {
    /// On the cores that this process may use: `taskset(1)` or a cgroup leaves some out.
    pub(crate) fn new(config: &Config) -> Result<Placement, Error> {
        let failed = |error: rustix::io::Errno| {
            Error::setup("learn which cores there are", std::io::Error::from(error))
        };
        let reactors = if config.mode == Mode::Base { 0 } else { usize::from(config.reactor_num) };
        let workers = usize::from(config.worker_num);
        let allowed = sched_getaffinity(None);
        if !config.open_cpu_affinity {
            // Whoever sends to them is likely to be here, too, or else the kernel's own work is. A machine with more cores
            // than can be told of has enough.
            let cores = allowed.map_or(usize::MAX, |allowed| allowed.count() as usize);
            return Ok(Placement {
                scarce: reactors + workers >= cores,
                core_for_each_reactor: reactors <= cores,
                ..Placement::default()
            });
        }
        let allowed = allowed.map_err(failed)?;
        let cores =
            (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).map(|core| (node_of(core), core));
        Ok(place(cores.collect(), reactors, workers))
    }

    /// Whether threads choose their cores, and there is not one for each and another for the rest of the world.
    pub(crate) fn is_scarce(&self) -> bool {
        self.scarce
    }

    /// Whether no two reactors need share a core.
    pub(crate) fn has_core_for_each_reactor(&self) -> bool {
        self.core_for_each_reactor
    }

    /// Pins the calling thread where this reactor belongs.
    pub(crate) fn pin_reactor(&self, reactor: u8) {
        pin(self.reactors.get(usize::from(reactor)));
    }

    /// Pins the calling thread where this worker belongs.
    pub(crate) fn pin_worker(&self, worker: u16) {
        pin(self.workers.get(usize::from(worker)));
    }
}

fn pin(core: Option<&usize>) {
    let Some(&core) = core else { return };
    let mut set = CpuSet::new();
    set.set(core);
    // It serves elsewhere as well as there.
    if let Err(error) = sched_setaffinity(None, &set) {
        tracing::warn!("open_cpu_affinity: core {core}: {error}");
    }
}

/// Goes to one of the cores that the calling thread may use besides these; nowhere if there is none.
pub(crate) fn leave_cores(cores: impl IntoIterator<Item = usize>) -> rustix::io::Result<()> {
    let allowed = sched_getaffinity(None)?;
    let mut others = allowed;
    cores.into_iter().filter(|core| *core < CpuSet::MAX_CPU).for_each(|core| others.unset(core));
    if others.count() > 0 { visit(&others, &allowed) } else { Ok(()) }
}

/// Goes to this core, if the calling thread may use it.
pub(crate) fn go_to_core(core: usize) -> rustix::io::Result<()> {
    let allowed = sched_getaffinity(None)?;
    if core >= CpuSet::MAX_CPU || !allowed.is_set(core) {
        return Ok(());
    }
    let mut one = CpuSet::new();
    one.set(core);
    visit(&one, &allowed)
}

/// Goes to one of `cores`, and may leave it again: the scheduler leaves a thread where it is for as long as that is fair.
fn visit(cores: &CpuSet, allowed: &CpuSet) -> rustix::io::Result<()> {
    sched_setaffinity(None, cores)?;
    sched_setaffinity(None, allowed)
}

/// The NUMA node of a core; 0 where the kernel does not say (sysfs is not mounted, or knows no nodes).
fn node_of(core: usize) -> usize {
    let entries = fs::read_dir(format!("/sys/devices/system/cpu/cpu{core}"));
    let node = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix("node")?.parse().ok();
    entries.ok().and_then(|entries| entries.flatten().find_map(node)).unwrap_or(0)
}

/// `cores`: their nodes and numbers.
fn place(mut cores: Vec<(usize, usize)>, reactors: usize, workers: usize) -> Placement {
    cores.sort_unstable();
    let core = |index: usize| cores[index % cores.len()].1;
    if cores.is_empty() {
        return Placement::default();
    }
    if reactors == 0 {
        return Placement { workers: (0..workers).map(core).collect(), ..Placement::default() };
    }
    // Of this reactor: where its run begins, and how long it is.
    let run = |reactor: usize| {
        let begin = reactor * cores.len() / reactors;
        let end = (reactor + 1) * cores.len() / reactors;
        (begin, (end - begin).max(1))
    };
    let worker = |worker: usize| {
        let (begin, len) = run(worker % reactors);
        // The reactor's core comes last, unless it is the only one.
        core(begin + (worker / reactors + 1) % len)
    };
    Placement {
        reactors: (0..reactors).map(|reactor| core(run(reactor).0)).collect(),
        workers: (0..workers).map(worker).collect(),
        ..Placement::default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use rustix::thread::sched_getcpu;

    use super::*;

    fn one_node(cores: usize) -> Vec<(usize, usize)> {
        (0..cores).map(|core| (0, core)).collect()
    }

    #[test]
    fn a_reactor_and_its_workers_are_neighbours() {
        let Placement { reactors, workers, .. } = place(one_node(2), 2, 2);
        assert_eq!((reactors, workers), (vec![0, 1], vec![0, 1]));
        let Placement { reactors, workers, .. } = place(one_node(8), 2, 6);
        assert_eq!((reactors, workers), (vec![0, 4], vec![1, 5, 2, 6, 3, 7]));
        let Placement { reactors, workers, .. } = place(one_node(1), 3, 2);
        assert_eq!((reactors, workers), (vec![0; 3], vec![0; 2]));
    }

    #[test]
    fn a_run_stays_within_its_node() {
        // Even numbers are one node, odd ones the other, as some machines count.
        let cores = (0..8).map(|core| (core % 2, core)).collect();
        let Placement { reactors, workers, .. } = place(cores, 2, 6);
        assert_eq!((reactors, workers), (vec![0, 1], vec![2, 3, 4, 5, 6, 7]));
    }

    #[test]
    fn base_mode_takes_one_core_after_the_other() {
        assert_eq!(place(one_node(3), 0, 5).workers, [0, 1, 2, 0, 1]);
    }

    #[test]
    fn a_move_leaves_the_choice_of_cores_as_it_was() {
        let (before, core) = (sched_getaffinity(None).unwrap(), sched_getcpu());
        leave_cores([core]).unwrap();
        assert_eq!(sched_getaffinity(None).unwrap(), before);
        go_to_core(core).unwrap();
        go_to_core(CpuSet::MAX_CPU).unwrap();
        assert_eq!(sched_getaffinity(None).unwrap(), before);
    }

    proptest! {
        #[test]
        fn everybody_has_a_core_that_is_there(cores in 1usize..70, reactors in 0usize..64, workers in 1usize..200) {
            let placement = place(one_node(cores), reactors, workers);
            prop_assert_eq!((placement.reactors.len(), placement.workers.len()), (reactors, workers));
            prop_assert!(placement.reactors.iter().chain(&placement.workers).all(|&core| core < cores));
        }
    }
}
