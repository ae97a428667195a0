//! What is done to the server, and when: all of it drawn from the seed.

use super::clients::Common;
use crate::cluster::bed::{Bed, PATIENCE};
use crate::cluster::disk::Disk;
use crate::cluster::drought::Drought;
use crate::cluster::matrix::Cx;
use crate::cluster::proc;
use anyhow::Result;
use rustix::process::Signal;
use std::fmt::{self, Display};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Between two kills of workers, on average.
const KILL: Duration = Duration::from_millis(50);
/// Between two breakpoints that a client arms, on average: each is one more death, if nothing else comes first.
const BREAKPOINT: Duration = Duration::from_millis(150);
/// Between two managers' deaths, on average.
const MANAGER: Duration = Duration::from_secs(5);
/// Between two reloads.
const RELOAD: Duration = Duration::from_secs(3);
/// Between two processes that are stopped, on average, and the longest that one is.
const STOP: Duration = Duration::from_millis(500);
const STOP_MAX: Duration = Duration::from_millis(100);
/// Between two shortages of one kind, on average, and the longest that one lasts.
const SHORTAGE: Duration = Duration::from_secs(4);
const SHORTAGE_MAX: Duration = Duration::from_secs(1);
/// Where a worker may die, as the testbed names it, and whether a socketpair has that point.
pub(in crate::cluster::scenarios) const POINTS: [(&str, bool); 7] = [
    ("request_fragment", true),
    ("begun", true),
    ("reply_fragment", true),
    ("reply_staged", true),
    ("before_commit", true),
    ("after_commit", true),
    ("after_bell", false),
];

/// The points of this run's channel.
pub(in crate::cluster::scenarios) fn points(cx: &Cx) -> Vec<&'static str> {
    let is_ring = cx.setup.ipc == Some("ring");
    POINTS.into_iter().filter(|(_, everywhere)| is_ring || *everywhere).map(|(name, _)| name).collect()
}

/// How often each harm was done.
#[derive(Default)]
pub(super) struct Struck {
    over: Duration,
    killed: AtomicU32,
    armed: AtomicU32,
    managers: AtomicU32,
    stopped: AtomicU32,
    reloads: AtomicU32,
    descriptors: AtomicU32,
    disks: AtomicU32,
}

fn count(counter: &AtomicU32) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Display for Struck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let read = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
        let every = |counter| self.over.as_secs_f64() / f64::from(read(counter));
        let Self { over: _, killed, armed, managers, stopped, reloads, descriptors, disks } = self;
        write!(
            f,
            "{} workers (one every {:.1} ms) and {} managers (one every {:.1} s) killed, {} breakpoints armed, \
             {} processes stopped for a while, {} reloads, {} times no descriptors, {} times a full disk",
            read(killed),
            every(killed) * 1e3,
            read(managers),
            every(managers),
            read(armed),
            read(stopped),
            read(reloads),
            read(descriptors),
            read(disks),
        )
    }
}

/// How long it storms, for all threads that strike.
struct Season {
    end: Instant,
    /// One of the threads has failed.
    broken: Mutex<bool>,
    changed: Condvar,
}

impl Season {
    fn new(length: Duration) -> Self {
        Self { end: Instant::now() + length, broken: Mutex::default(), changed: Condvar::new() }
    }

    /// Sleeps until then; false if it is over before.
    fn lasts_until(&self, then: Instant) -> bool {
        let broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        let left = then.min(self.end).saturating_duration_since(Instant::now());
        let slept = self.changed.wait_timeout_while(broken, left, |broken| !*broken);
        !*slept.unwrap_or_else(PoisonError::into_inner).0 && then < self.end
    }

    fn end_after<T>(&self, outcome: Result<T>) -> Result<T> {
        outcome.inspect_err(|_| {
            *self.broken.lock().unwrap_or_else(PoisonError::into_inner) = true;
            self.changed.notify_all();
        })
    }
}

/// When one kind of harm is done. Such events are independent of each other, so the pauses are exponential. They are on
/// a clock: what one takes, or waits for, puts off no other.
struct Rhythm {
    mean: Duration,
    next: Instant,
}

impl Rhythm {
    fn new(mean: Duration) -> Self {
        Self { mean, next: Instant::now() }
    }

    /// Sleeps until the next one; false if it storms no longer then.
    fn wait(&mut self, season: &Season, rng: &mut fastrand::Rng) -> bool {
        self.next += self.mean.mul_f64(-(1.0 - rng.f64()).ln());
        season.lasts_until(self.next)
    }
}

pub(super) struct Harms<'a> {
    cx: &'a Cx,
    bed: &'a Bed,
    disk: &'a Disk,
    common: &'a Common,
    season: Season,
    struck: Struck,
}

type Harm<'a> = fn(&Harms<'a>, &mut fastrand::Rng) -> Result<()>;

impl<'a> Harms<'a> {
    pub(super) fn new(cx: &'a Cx, bed: &'a Bed, disk: &'a Disk, common: &'a Common) -> Self {
        let struck = Struck { over: cx.storm.length, ..Struck::default() };
        Self { cx, bed, disk, common, season: Season::new(cx.storm.length), struck }
    }

    /// Does harm until the time is up. The seed decides on what and when; whom it meets depends on the machine, too.
    pub(super) fn strike(self) -> Result<Struck> {
        let kinds: [Harm<'a>; 7] = [
            Self::kill_workers,
            Self::arm_breakpoints,
            Self::kill_managers,
            Self::stop_processes,
            Self::reload,
            Self::take_descriptors,
            Self::fill_disk,
        ];
        let mut rng = self.cx.rng();
        thread::scope(|scope| {
            let threads = kinds.map(|harm| {
                let (harms, mut rng) = (&self, rng.fork());
                scope.spawn(move || harms.season.end_after(harm(harms, &mut rng)))
            });
            threads.into_iter().try_for_each(|thread| match thread.join() {
                Ok(outcome) => outcome,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
        Ok(self.struck)
    }

    fn kill_workers(&self, rng: &mut fastrand::Rng) -> Result<()> {
        let mut rhythm = Rhythm::new(KILL);
        while rhythm.wait(&self.season, rng) {
            // Another of them may have ended this very moment.
            let kill = |worker: &i32| proc::signal(*worker, Signal::KILL).is_ok();
            proc::until("a worker to kill", PATIENCE, || rng.choice(self.bed.workers()).filter(kill))?;
            count(&self.struck.killed);
        }
        Ok(())
    }

    fn arm_breakpoints(&self, rng: &mut fastrand::Rng) -> Result<()> {
        let (points, mut rhythm) = (points(self.cx), Rhythm::new(BREAKPOINT));
        while rhythm.wait(&self.season, rng) {
            self.common.arm(points[rng.usize(0..points.len())]);
            count(&self.struck.armed);
        }
        Ok(())
    }

    fn kill_managers(&self, rng: &mut fastrand::Rng) -> Result<()> {
        let mut rhythm = Rhythm::new(MANAGER);
        while rhythm.wait(&self.season, rng) {
            let kill = |manager: &i32| proc::signal(*manager, Signal::KILL).is_ok();
            proc::until("a manager to kill", PATIENCE, || self.bed.manager().filter(kill))?;
            count(&self.struck.managers);
        }
        Ok(())
    }

    fn stop_processes(&self, rng: &mut fastrand::Rng) -> Result<()> {
        let mut rhythm = Rhythm::new(STOP);
        while rhythm.wait(&self.season, rng) {
            let victims = [rng.choice(self.bed.workers()), Some(self.bed.ready.master), self.bed.manager()];
            let Some(victim) = rng.choice(victims).flatten() else { continue };
            if proc::signal(victim, Signal::STOP).is_ok() {
                thread::sleep(STOP_MAX.mul_f64(rng.f64()));
                let _ = proc::signal(victim, Signal::CONT);
                count(&self.struck.stopped);
            }
        }
        Ok(())
    }

    fn reload(&self, _: &mut fastrand::Rng) -> Result<()> {
        let mut next = Instant::now() + RELOAD;
        while self.season.lasts_until(next) {
            self.bed.signal_master(Signal::USR1)?;
            count(&self.struck.reloads);
            next += RELOAD;
        }
        Ok(())
    }

    fn take_descriptors(&self, rng: &mut fastrand::Rng) -> Result<()> {
        let mut rhythm = Rhythm::new(SHORTAGE);
        while rhythm.wait(&self.season, rng) {
            let holder = rng.choice([Some(self.bed.ready.master), self.bed.manager()]).flatten();
            let Some(holder) = holder else { continue };
            let drought = match Drought::begin(self.bed, holder) {
                Ok(drought) => drought,
                // It has just been killed.
                Err(_) if !proc::alive(holder) => continue,
                Err(error) => return Err(error),
            };
            count(&self.struck.descriptors);
            self.last(rng);
            drought.end(self.bed)?;
        }
        Ok(())
    }

    fn fill_disk(&self, rng: &mut fastrand::Rng) -> Result<()> {
        let mut rhythm = Rhythm::new(SHORTAGE);
        while self.disk.is_small() && rhythm.wait(&self.season, rng) {
            self.disk.fill()?;
            count(&self.struck.disks);
            self.last(rng);
            self.disk.clear()?;
            // A long storm has much to tell.
            self.disk.trim("log")?;
        }
        Ok(())
    }

    /// Sleeps for as long as a shortage is to last.
    fn last(&self, rng: &mut fastrand::Rng) {
        self.season.lasts_until(Instant::now() + SHORTAGE_MAX.mul_f64(rng.f64()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_season_ends_in_time_or_with_a_failure() {
        let season = Season::new(Duration::from_millis(20));
        let mut rhythm = Rhythm::new(Duration::from_millis(1));
        let mut rng = fastrand::Rng::with_seed(1);
        assert!(rhythm.wait(&season, &mut rng));
        assert!(!season.lasts_until(Instant::now() + Duration::from_secs(60)));
        let season = Season::new(Duration::from_secs(60));
        assert!(season.lasts_until(Instant::now()));
        assert!(season.end_after::<()>(Err(anyhow::anyhow!("failed"))).is_err());
        assert!(!season.lasts_until(Instant::now() + Duration::from_secs(30)));
    }

    #[test]
    fn pauses_have_the_mean_that_was_asked_for() {
        let season = Season::new(Duration::ZERO);
        let mut rng = fastrand::Rng::with_seed(7);
        let mut rhythm = Rhythm::new(KILL);
        let begin = rhythm.next;
        for _ in 0..10_000 {
            rhythm.wait(&season, &mut rng);
        }
        let mean = (rhythm.next - begin) / 10_000;
        assert!(mean > KILL.mul_f64(0.95) && mean < KILL.mul_f64(1.05), "{mean:?}");
    }
}
