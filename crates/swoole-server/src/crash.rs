//! What becomes of the packet that a worker died on. Pure.

use std::fmt;
use std::time::Duration;

use crate::config::{Config, OnCrash};
use crate::session::Session;

/// What has become of a packet that a worker had in hand when it died.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Fate {
    /// It is lost, and its connection was closed (`on_crash = close`, and always in Base mode).
    Closed,
    /// It is lost, and its connection stays (`on_crash = drop`).
    Dropped,
    /// The next worker gets it (`on_crash = retry`).
    Retried,
    /// `1 + crash_retries` workers have died on it: it is lost, and its connection was closed (`on_crash = retry`).
    Poison,
}

/// A packet that a worker had in hand when it died.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct PacketInHand {
    /// Whose packet it was.
    pub session: Session,
    /// Its size in bytes.
    pub size: u64,
    /// Which worker in a row that was, from 1.
    pub attempt: u32,
    /// Since it was first handed to a worker. `None` in Base mode, where no clock is read for that.
    pub age: Option<Duration>,
    /// What has become of it.
    pub fate: Fate,
}

impl PacketInHand {
    /// Whether nobody will handle it any more.
    pub fn is_lost(&self) -> bool {
        self.fate != Fate::Retried
    }
}

impl fmt::Display for PacketInHand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PacketInHand { session, size, attempt, age, fate } = self;
        let what = match fate {
            Fate::Closed => "lost",
            Fate::Dropped => "dropped",
            Fate::Retried => "will be retried:",
            Fate::Poison => "poison, lost after all its retries:",
        };
        write!(f, "{what} a packet of {size} bytes of session {session}")?;
        if *attempt > 1 || *fate == Fate::Retried {
            write!(f, " (attempt {attempt})")?;
        }
        age.map_or(Ok(()), |age| write!(f, ", {age:.1?} old"))
    }
}

/// The configuration's word on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CrashPolicy {
    on_crash: OnCrash,
    retries: u32,
}

impl CrashPolicy {
    pub(crate) fn new(config: &Config) -> CrashPolicy {
        CrashPolicy { on_crash: config.on_crash, retries: config.crash_retries }
    }

    /// What becomes of a packet that so many workers in a row have died on.
    pub(crate) fn fate(self, attempt: u32) -> Fate {
        match self.on_crash {
            OnCrash::Close => Fate::Closed,
            OnCrash::Drop => Fate::Dropped,
            OnCrash::Retry if attempt <= self.retries => Fate::Retried,
            OnCrash::Retry => Fate::Poison,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_counted() {
        let policy = CrashPolicy { on_crash: OnCrash::Retry, retries: 2 };
        assert_eq!(
            (1..=4).map(|attempt| policy.fate(attempt)).collect::<Vec<_>>(),
            [Fate::Retried, Fate::Retried, Fate::Poison, Fate::Poison]
        );
        assert_eq!(CrashPolicy { retries: 0, ..policy }.fate(1), Fate::Poison);
        assert_eq!(CrashPolicy { on_crash: OnCrash::Drop, ..policy }.fate(1), Fate::Dropped);
        assert_eq!(CrashPolicy { on_crash: OnCrash::Close, ..policy }.fate(1), Fate::Closed);
    }

    #[test]
    fn the_log_tells_what_became_of_it() {
        let packet =
            PacketInHand { session: Session::new(5, 3), size: 7, attempt: 1, age: None, fate: Fate::Closed };
        let session = packet.session;
        assert_eq!(packet.to_string(), format!("lost a packet of 7 bytes of session {session}"));
        let retried = PacketInHand { fate: Fate::Retried, age: Some(Duration::from_millis(12)), ..packet };
        assert_eq!(
            retried.to_string(),
            format!("will be retried: a packet of 7 bytes of session {session} (attempt 1), 12.0ms old")
        );
    }
}
