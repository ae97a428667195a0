//! What is counted, and what must not be.

use std::collections::BTreeMap;
use std::fmt;

use super::process::Moment;

/// A promise that was broken.
#[derive(Debug)]
pub(super) struct Breach {
    pub(super) kind: Kind,
    pub(super) what: String,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Kind {
    /// Lost against policy.
    Lost,
    Duplicated,
    Misdelivered,
    Disordered,
    /// A part of a message was taken for the whole, or one that was not committed for one that was.
    Torn,
    /// What reactors say of a death is not what happened.
    Casualty,
    /// Two live processes in one slot, or a successor before its turn.
    Slot,
    /// A session was given twice.
    Session,
    /// Something stays when all is done.
    Leak,
    /// Something never ends.
    Stuck,
    /// An honest process is not believed.
    Fault,
    Panic,
}

pub(super) fn breach<T>(kind: Kind, what: impl Into<String>) -> Result<T, Breach> {
    Err(Breach { kind, what: what.into() })
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.what)
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) schedules: u64,
    pub(super) steps: u64,
    pub(super) connections: u64,
    pub(super) packets: u64,
    /// By a worker, with or without replies; and by replies that have come to their client.
    pub(super) handled: u64,
    pub(super) answered: u64,
    /// Sent to other clients, and come there; and those whose client had left.
    pub(super) notes: u64,
    pub(super) stale: u64,
    pub(super) retried: u64,
    pub(super) closed: u64,
    pub(super) dropped: u64,
    pub(super) poison: u64,
    /// Given to nobody, by the rule.
    pub(super) passed_over: u64,
    pub(super) processes: u64,
    /// Managers after the first.
    pub(super) successions: u64,
    pub(super) reloads: u64,
    pub(super) deaths: BTreeMap<Moment, u64>,
    /// Of managers, by where they were.
    pub(super) managers: BTreeMap<&'static str, u64>,
    pub(super) breaches: BTreeMap<Kind, u64>,
}

impl Tally {
    pub(super) fn add(&mut self, other: &Tally) {
        for (sum, more) in [
            (&mut self.schedules, other.schedules),
            (&mut self.steps, other.steps),
            (&mut self.connections, other.connections),
            (&mut self.packets, other.packets),
            (&mut self.handled, other.handled),
            (&mut self.answered, other.answered),
            (&mut self.notes, other.notes),
            (&mut self.stale, other.stale),
            (&mut self.retried, other.retried),
            (&mut self.closed, other.closed),
            (&mut self.dropped, other.dropped),
            (&mut self.poison, other.poison),
            (&mut self.passed_over, other.passed_over),
            (&mut self.processes, other.processes),
            (&mut self.successions, other.successions),
            (&mut self.reloads, other.reloads),
        ] {
            *sum += more;
        }
        other.deaths.iter().for_each(|(moment, count)| *self.deaths.entry(*moment).or_default() += count);
        other.managers.iter().for_each(|(state, count)| *self.managers.entry(state).or_default() += count);
        other.breaches.iter().for_each(|(kind, count)| *self.breaches.entry(*kind).or_default() += count);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { schedules, steps, connections, packets, answered, retried, .. } = self;
        let Tally { handled, notes, stale, closed, dropped, poison, processes, reloads, .. } = self;
        let breaches = |kind| self.breaches.get(&kind).copied().unwrap_or(0);
        writeln!(
            f,
            "{schedules} schedules, {steps} steps, {connections} connections, {processes} processes"
        )?;
        writeln!(f, "{packets} packets, {handled} handled, {answered} answered; {reloads} reloads")?;
        writeln!(f, "{notes} notes to other clients, and {stale} to such as had left")?;
        let deaths: u64 = self.deaths.values().sum();
        let moments: Vec<_> = self.deaths.iter().map(|(moment, count)| format!("{count} {moment}")).collect();
        writeln!(f, "{deaths} deaths: {}", moments.join(", "))?;
        let deaths: u64 = self.managers.values().sum();
        let states: Vec<_> = self.managers.iter().map(|(state, count)| format!("{count} {state}")).collect();
        writeln!(f, "{deaths} deaths of managers, {} successors: {}", self.successions, states.join(", "))?;
        writeln!(
            f,
            "by policy: {retried} retried, {closed} closed, {dropped} dropped, {poison} poison; {} given to nobody",
            self.passed_over
        )?;
        writeln!(
            f,
            "against it: {} lost, {} duplicated, {} misdelivered, {} disordered, {} torn",
            breaches(Kind::Lost),
            breaches(Kind::Duplicated),
            breaches(Kind::Misdelivered),
            breaches(Kind::Disordered),
            breaches(Kind::Torn)
        )?;
        let others = self.breaches.iter().filter(|(kind, _)| **kind > Kind::Torn);
        let others: Vec<_> = others.map(|(kind, count)| format!("{count} {kind:?}")).collect();
        write!(f, "otherwise wrong: {}", if others.is_empty() { "nothing".into() } else { others.join(", ") })
    }
}
