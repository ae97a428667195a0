//! What is done to the server, and when: all of it drawn from the seed.

use super::clients::Common;
use crate::cluster::bed::Bed;
use crate::cluster::disk::Disk;
use crate::cluster::drought::Drought;
use crate::cluster::matrix::Cx;
use crate::cluster::proc;
use anyhow::Result;
use rustix::process::Signal;
use std::fmt::{self, Display};
use std::thread;
use std::time::{Duration, Instant};

/// Between two strikes, on average. Of ten, nine are meant for a worker: one is to die every 50 ms.
const STRIKE: Duration = Duration::from_millis(45);
/// How far strikes may be behind their time; what is older is left out.
const BEHIND: Duration = Duration::from_millis(500);
/// Between two reloads.
const RELOAD: Duration = Duration::from_secs(3);
/// Between two managers' deaths, on average.
const MANAGER: Duration = Duration::from_secs(5);
/// The longest that a process is stopped.
const STOP: Duration = Duration::from_millis(100);
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

#[derive(Default)]
pub(super) struct Struck {
    killed: u32,
    armed: u32,
    managers: u32,
    stopped: u32,
    reloads: u32,
    descriptors: u32,
    disks: u32,
}

impl Display for Struck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Struck { killed, armed, managers, stopped, reloads, descriptors, disks } = self;
        write!(
            f,
            "{killed} workers and {managers} managers killed, {armed} breakpoints armed, {stopped} processes stopped for \
             a while, {reloads} reloads, {descriptors} times no descriptors, {disks} times a full disk"
        )
    }
}

pub(super) struct Harms<'a> {
    cx: &'a Cx,
    bed: &'a Bed,
    disk: &'a Disk,
    common: &'a Common,
    rng: fastrand::Rng,
    points: Vec<&'static str>,
    drought: Option<(Instant, Drought)>,
    full_until: Option<Instant>,
    struck: Struck,
}

impl<'a> Harms<'a> {
    pub(super) fn new(cx: &'a Cx, bed: &'a Bed, disk: &'a Disk, common: &'a Common) -> Self {
        let (rng, points) = (cx.rng(), points(cx));
        let struck = Struck::default();
        Self { cx, bed, disk, common, rng, points, drought: None, full_until: None, struck }
    }

    /// Does harm until the time is up. The seed decides on what and when; whom it meets depends on the machine, too.
    pub(super) fn strike(mut self) -> Result<Struck> {
        let begin = Instant::now();
        let (mut reload, mut next) = (begin + RELOAD, begin);
        while begin.elapsed() < self.cx.storm.length {
            // Strikes are independent of each other, so the pauses are exponential. They are on a clock: what a strike
            // takes, as to stop a process for a while, puts off no other one.
            let pause = STRIKE.mul_f64(-(1.0 - self.rng.f64()).ln());
            next = (next + pause.min(10 * STRIKE)).max(Instant::now() - BEHIND);
            thread::sleep(next.saturating_duration_since(Instant::now()));
            if Instant::now() >= reload {
                self.bed.signal_master(Signal::USR1)?;
                self.struck.reloads += 1;
                reload += RELOAD;
            }
            self.want_descriptors()?;
            self.want_disk()?;
            // None, where one has died and its successor has not begun.
            let manager = self.bed.manager();
            if let Some(manager) = manager.filter(|_| self.is_time(MANAGER)) {
                self.struck.managers += u32::from(proc::signal(manager, Signal::KILL).is_ok());
            }
            match self.rng.u32(0..10) {
                0 => self.halt(manager),
                1..4 => {
                    self.common.arm(self.points[self.rng.usize(0..self.points.len())]);
                    self.struck.armed += 1;
                }
                _ => {
                    if let Some(worker) = self.rng.choice(self.bed.workers()) {
                        // It may have ended this very moment.
                        self.struck.killed += u32::from(proc::signal(worker, Signal::KILL).is_ok());
                    }
                }
            }
        }
        if let Some((_, drought)) = self.drought.take() {
            drought.end(self.bed)?;
        }
        if self.full_until.take().is_some() {
            self.disk.clear()?;
        }
        Ok(self.struck)
    }

    /// Whether this strike is to be one of those that come so often.
    fn is_time(&mut self, every: Duration) -> bool {
        self.rng.f64() < STRIKE.div_duration_f64(every)
    }

    fn halt(&mut self, manager: Option<i32>) {
        let victims = [self.rng.choice(self.bed.workers()), Some(self.bed.ready.master), manager];
        let Some(victim) = self.rng.choice(victims).flatten() else { return };
        if proc::signal(victim, Signal::STOP).is_ok() {
            thread::sleep(STOP.mul_f64(self.rng.f64()));
            let _ = proc::signal(victim, Signal::CONT);
            self.struck.stopped += 1;
        }
    }

    fn shortage_end(&mut self) -> Instant {
        Instant::now() + SHORTAGE_MAX.mul_f64(self.rng.f64())
    }

    fn want_descriptors(&mut self) -> Result<()> {
        if let Some((until, drought)) = self.drought.take() {
            if Instant::now() >= until {
                return drought.end(self.bed);
            }
            self.drought = Some((until, drought));
        } else if self.is_time(SHORTAGE) {
            let holder = self.rng.choice([Some(self.bed.ready.master), self.bed.manager()]).flatten();
            let Some(holder) = holder else { return Ok(()) };
            match Drought::begin(self.bed, holder) {
                Ok(drought) => self.drought = Some((self.shortage_end(), drought)),
                // It has just been killed.
                Err(_) if !proc::alive(holder) => return Ok(()),
                Err(error) => return Err(error),
            }
            self.struck.descriptors += 1;
        }
        Ok(())
    }

    fn want_disk(&mut self) -> Result<()> {
        if let Some(until) = self.full_until {
            if Instant::now() >= until {
                self.full_until = None;
                self.disk.clear()?;
                // A long storm has much to tell.
                self.disk.trim("log")?;
            }
        } else if self.disk.is_small() && self.is_time(SHORTAGE) {
            self.full_until = Some(self.shortage_end());
            self.struck.disks += 1;
            self.disk.fill()?;
        }
        Ok(())
    }
}
