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
}

/// What a reload is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All groups.
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
