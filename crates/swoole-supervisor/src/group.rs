//! Groups of alike processes, and the slots that they are made of.

use std::fmt;

/// A place for one process: slot `slot` of group `group`, both counted from 0. Processes come and go, the
/// slot stays. Prints as `0.3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId {
    /// Which group, in the order they were given to [`Supervisor::new`](crate::Supervisor::new).
    pub group: u16,
    /// Which slot of the group.
    pub slot: u16,
}

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.group, self.slot)
    }
}

/// A group of processes that do the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupConfig {
    /// What to call it in log lines.
    pub name: String,
    /// How many processes it has. 0 is allowed.
    pub slots: u16,
    /// How long they are meant to stay.
    pub tenure: Tenure,
}

/// How long the processes of a group are meant to stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tenure {
    /// For a time: each is as good as the next one. A reload of all groups replaces them, and one that was ready and ends
    /// with code 0 has had enough.
    #[default]
    Term,
    /// For as long as the supervisor. A reload replaces them only if it is for their group alone, and one that ends by itself
    /// has died, whatever its code and though it was ready: it is back the later the more often that happens. Only one that
    /// was ready for [`stable_after`](crate::Options::stable_after) has a successor at once.
    Permanent,
}

/// What a reload is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All groups whose processes stay [for a term](Tenure::Term).
    All,
    /// One group, by its place in the list. A number that is no group reloads nothing.
    Group(u16),
}

/// How a reload goes about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReloadMode {
    /// One slot after another: its process retires, its successor gets ready, then the next. At most one
    /// slot is out of service, or as many as [`Options::reload_parallel`](crate::Options::reload_parallel) says, and a
    /// successor that cannot start stops the reload before it does more harm.
    #[default]
    Rolling,
    /// All slots at the same time: quick, and nobody serves until the first successor is ready.
    AllAtOnce,
}
