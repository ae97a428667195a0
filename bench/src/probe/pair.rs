//! Two processes: this one, and a child that helps to measure.

use crate::account::Snapshot;
use anyhow::{Result, bail, ensure};
use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, waitpid};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::time::{Duration, Instant};
use swoole_sys::process::{Fork, die_with_parent, fork, run_child};

/// The child. Killed if it is dropped before it has ended by itself.
pub(super) struct Child(Option<Pid>);

impl Child {
    /// Forks a child that lives as `life` says, and ends with this process at the latest.
    pub(super) fn fork(life: impl FnOnce() -> Result<()>) -> Result<Child> {
        let parent = getpid();
        match fork()? {
            Fork::Parent(pid) => Ok(Child(Some(pid))),
            Fork::Child => run_child(|| {
                match die_with_parent(Signal::KILL, parent).map_err(Into::into).and_then(|()| life()) {
                    Ok(()) => 0,
                    Err(error) => {
                        eprintln!("child: {error:#}");
                        1
                    }
                }
            }),
        }
    }

    /// Its process id, until it has ended.
    pub(super) fn pid(&self) -> Option<u32> {
        self.0.map(|pid| pid.as_raw_pid().unsigned_abs())
    }

    /// Waits for its end.
    pub(super) fn join(mut self) -> Result<()> {
        let Some(pid) = self.0.take() else { bail!("joined twice") };
        let status = waitpid(Some(pid), WaitOptions::empty())?.and_then(|(_, status)| status.exit_status());
        ensure!(status == Some(0), "the child failed");
        Ok(())
    }

    /// Measures time, and CPU time of both processes, of what `act` does.
    pub(super) fn measure<T>(&self, act: impl FnOnce() -> Result<T>) -> Result<(T, Duration, Duration)> {
        let both: Vec<u32> = [Some(getpid()), self.0]
            .into_iter()
            .flatten()
            .map(|pid| pid.as_raw_pid().unsigned_abs())
            .collect();
        let before = Snapshot::take(&both)?;
        let begin = Instant::now();
        let result = act()?;
        let took = begin.elapsed();
        Ok((result, took, Snapshot::take(&both)?.since(&before).cpu))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // It may have ended by itself meanwhile.
            let _ = kill_process(pid, Signal::KILL);
            let _ = waitpid(Some(pid), WaitOptions::empty());
        }
    }
}

/// Binds the calling process to the `index`th of the cores that it may use.
pub(super) fn bind_to_core(index: usize) -> Result<()> {
    let allowed = sched_getaffinity(None)?;
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).collect();
    ensure!(index < cores.len(), "there are only {} cores", cores.len());
    let mut set = CpuSet::new();
    set.set(cores[index]);
    Ok(sched_setaffinity(None, &set)?)
}
