//! What a storm came to.

use crate::cluster::bed::{Bed, PATIENCE};
use crate::cluster::leavings::Leavings;
use crate::cluster::log::field;
use crate::cluster::matrix::Cx;
use crate::cluster::proc;
use anyhow::Result;
use rustix::process::Signal;
use std::fmt::{self, Display};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a client found wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fault {
    /// So many replies are missing before the one that came.
    Lost {
        count: usize,
    },
    Duplicated,
    Misdelivered,
    /// No reply that this client could have got.
    Wrong,
    /// The server closed the connection, with so many replies still to come.
    Dropped {
        lost: usize,
    },
}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost { count: 0 } => f.write_str("out of order"),
            Self::Lost { count } => write!(f, "{count} replies lost or overtaken"),
            Self::Duplicated => f.write_str("duplicated"),
            Self::Misdelivered => f.write_str("misdelivered"),
            Self::Wrong => f.write_str("wrong"),
            Self::Dropped { lost } => write!(f, "connection closed with {lost} packets unanswered"),
        }
    }
}

impl std::error::Error for Fault {}

/// What the clients counted.
#[derive(Default)]
pub(in crate::cluster::scenarios) struct Counts {
    pub(in crate::cluster::scenarios) sent: AtomicU64,
    pub(in crate::cluster::scenarios) answered: AtomicU64,
    lost: AtomicU64,
    duplicated: AtomicU64,
    misdelivered: AtomicU64,
    wrong: AtomicU64,
    dropped: AtomicU64,
}

impl Counts {
    /// A client has ended with this.
    pub(super) fn add(&self, error: &anyhow::Error) {
        let one = |counter: &AtomicU64, count: usize| _ = counter.fetch_add(count as u64, Ordering::Relaxed);
        match error.downcast_ref::<Fault>() {
            Some(Fault::Lost { count }) => one(&self.lost, (*count).max(1)),
            Some(Fault::Duplicated) => one(&self.duplicated, 1),
            Some(Fault::Misdelivered) => one(&self.misdelivered, 1),
            Some(Fault::Wrong) => one(&self.wrong, 1),
            Some(Fault::Dropped { lost }) => {
                one(&self.dropped, 1);
                one(&self.lost, *lost);
            }
            // A reply that did not come in time, for the most part.
            None => one(&self.lost, 1),
        }
    }
}

/// What the server's processes and the machine hold, before it storms.
pub(super) struct Holdings {
    files: usize,
    mappings: usize,
    machine: Leavings,
}

impl Holdings {
    /// Before there is a client.
    pub(super) fn look(bed: &Bed) -> Result<Self> {
        let master = bed.ready.master;
        let (files, mappings) = (proc::files(master)?.len(), proc::shared_mappings(master)?);
        Ok(Self { files, mappings, machine: Leavings::look() })
    }

    /// Once the clients are gone, stops the server: what there is more than before.
    pub(super) fn compare(self, cx: &Cx, bed: Bed) -> Result<Leaks> {
        let master = bed.ready.master;
        // Workers that have lost their manager are watched by the master, each by a descriptor, for as long as they live.
        bed.signal_master(Signal::USR1)?;
        let more = || -> Result<(usize, usize)> {
            let (files, mappings) = (proc::files(master)?.len(), proc::shared_mappings(master)?);
            Ok((files.saturating_sub(self.files), mappings.saturating_sub(self.mappings)))
        };
        let clean = || more().ok().filter(|more| *more == (0, 0));
        // In vain: then it is a leak, and is told in numbers.
        let _ = proc::until("the master to close what the clients left", PATIENCE, clean);
        let (descriptors, mappings) = more()?;
        let family = [proc::descendants(master), vec![master]].concat();
        let stopped = bed.stop().map_err(|error| format!("{error:#}")).err();
        let processes = || family.iter().filter(|pid| proc::alive(**pid)).count();
        let _ = proc::until("a clean machine", Duration::from_secs(2), || {
            proc::reap_orphans();
            (processes() == 0 && self.machine.new_since(&cx.dir).is_empty()).then_some(())
        });
        let on_machine = self.machine.new_since(&cx.dir);
        let memory = on_machine.iter().filter(|what| !what.starts_with("process ")).count();
        let (processes, others) = (processes(), on_machine.len() - memory);
        Ok(Leaks { descriptors, processes: processes.max(others), memory: mappings + memory, stopped })
    }
}

/// What is left over; all of it is to be nothing.
#[derive(Debug, Default)]
pub(super) struct Leaks {
    /// Of the master, with no client left.
    descriptors: usize,
    /// After the stop.
    processes: usize,
    /// Mappings of the master with no client left; files in /dev/shm and SysV queues after the stop.
    memory: usize,
    /// What went wrong as it stopped.
    stopped: Option<String>,
}

/// The last word on a storm.
pub(super) struct Tally {
    sent: u64,
    answered: u64,
    by_policy: u64,
    lost: u64,
    duplicated: u64,
    misdelivered: u64,
    wrong: u64,
    dropped: u64,
    leaks: Leaks,
}

impl Tally {
    /// `by_policy`: packets that the server has given up, as it says itself.
    pub(super) fn new(counts: &Counts, by_policy: u64, leaks: Leaks) -> Self {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Self {
            sent: read(&counts.sent),
            answered: read(&counts.answered),
            by_policy,
            lost: read(&counts.lost).saturating_sub(by_policy),
            duplicated: read(&counts.duplicated),
            misdelivered: read(&counts.misdelivered),
            wrong: read(&counts.wrong),
            dropped: read(&counts.dropped).saturating_sub(by_policy),
            leaks,
        }
    }

    pub(super) fn is_clean(&self) -> bool {
        let wrong = self.lost + self.duplicated + self.misdelivered + self.wrong + self.dropped;
        let Leaks { descriptors, processes, memory, stopped } = &self.leaks;
        wrong == 0 && descriptors + processes + memory == 0 && stopped.is_none()
    }
}

impl Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { sent, answered, by_policy, lost, duplicated, misdelivered, wrong, dropped, leaks } = self;
        let Leaks { descriptors, processes, memory, stopped } = leaks;
        writeln!(f, "packets: {sent} sent, {answered} answered, {by_policy} lost by policy")?;
        writeln!(
            f,
            "against policy: {lost} packets lost, {duplicated} duplicated, {misdelivered} misdelivered, {wrong} wrong, \
             {dropped} connections dropped"
        )?;
        write!(f, "leaked: {descriptors} descriptors, {processes} processes, {memory} of shared memory")?;
        stopped.iter().try_for_each(|why| write!(f, "\nthe stop: {why}"))
    }
}

/// Packets that the server says it has given up.
pub(super) fn given_up(bed: &Bed) -> u64 {
    let lost = |line: String| field(&line, "requests")?.parse::<u64>().ok();
    bed.worker_errors().into_iter().filter_map(lost).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn a_tally_counts_what_clients_found() {
        let counts = Counts::default();
        counts.sent.store(10, Ordering::Relaxed);
        assert!(Tally::new(&counts, 0, Leaks::default()).is_clean());
        counts.add(&anyhow!(Fault::Dropped { lost: 3 }).context("client 7"));
        counts.add(&anyhow!("waited in vain"));
        counts.add(&anyhow!(Fault::Duplicated));
        let tally = Tally::new(&counts, 1, Leaks { descriptors: 2, ..Leaks::default() });
        assert!(!tally.is_clean());
        let text = tally.to_string();
        for part in
            ["10 sent", "1 lost by policy", "3 packets lost", "1 duplicated", "0 connections", "2 desc"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
