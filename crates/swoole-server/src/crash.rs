//! What becomes of the packet that a worker died on. Pure.

use std::fmt;
use std::time::Duration;

use crate::config::{Config, Listen, OnCrash};
use crate::session::Session;

/// What has become of a packet that a worker had in hand when it died.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Fate {
    /// It is lost, and its connection was closed (`on_crash = close`, and always in Base mode).
    Closed,
    /// It is lost, and its connection stays (`on_crash = drop`). Of a datagram, which has none, also under `on_crash = close`.
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
    /// Whose packet it was; of a datagram, nobody's ([`listener`](PacketInHand::listener)).
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
    /// The listener that it came in by, if it is a datagram; `session` is nobody's, then.
    pub fn listener(&self) -> Option<u16> {
        self.session.listener()
    }

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
        match self.listener() {
            Some(listener) => {
                write!(f, "{what} a datagram of {size} bytes that came in by listener {listener}")?
            }
            None => write!(f, "{what} a packet of {size} bytes of session {session}")?,
        }
        if *attempt > 1 || *fate == Fate::Retried {
            write!(f, " (attempt {attempt})")?;
        }
        age.map_or(Ok(()), |age| write!(f, ", {age:.1?} old"))
    }
}

/// The configuration's word on it, for those who connect at one address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CrashPolicy {
    on_crash: OnCrash,
    retries: u32,
}

impl CrashPolicy {
    /// For an address that has no word of its own.
    pub(crate) fn new(config: &Config) -> CrashPolicy {
        CrashPolicy { on_crash: config.on_crash, retries: config.crash_retries }
    }

    /// Whether a packet may be begun again, so that nothing of it may go out before it is done.
    #[inline]
    pub(crate) fn retries(self) -> bool {
        self.on_crash == OnCrash::Retry
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

/// Those of all addresses.
#[derive(Clone, Debug)]
pub(crate) struct CrashPolicies {
    /// Of clients that have left, so that nobody knows any more where they came in.
    general: CrashPolicy,
    /// By listener; empty if they are all the same.
    by_listener: Vec<CrashPolicy>,
}

impl CrashPolicies {
    pub(crate) fn new(config: &Config, addresses: &[Listen]) -> CrashPolicies {
        let own = |listen: &Listen| CrashPolicy {
            on_crash: listen.on_crash(config),
            retries: listen.crash_retries(config),
        };
        let by_listener: Vec<CrashPolicy> = addresses.iter().map(own).collect();
        match by_listener.first() {
            Some(first) if by_listener.iter().all(|policy| policy == first) => {
                CrashPolicies { general: *first, by_listener: Vec::new() }
            }
            _ => CrashPolicies { general: CrashPolicy::new(config), by_listener },
        }
    }

    /// The only one, if all addresses have the same.
    pub(crate) fn only(&self) -> Option<CrashPolicy> {
        self.by_listener.is_empty().then_some(self.general)
    }

    /// That of a client who came in by this listener, if that is known.
    #[inline]
    pub(crate) fn of(&self, listener: impl FnOnce() -> Option<u16>) -> CrashPolicy {
        let own = |listener: u16| self.by_listener.get(usize::from(listener)).copied();
        self.only().or_else(|| listener().and_then(own)).unwrap_or(self.general)
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
    fn an_address_may_have_its_own() {
        let config = Config { on_crash: OnCrash::Drop, crash_retries: 4, ..Config::default() };
        let policies = |listen: &[&str]| {
            let addresses: Vec<Listen> = listen.iter().map(|listen| listen.parse().unwrap()).collect();
            CrashPolicies::new(&config, &addresses)
        };
        let general = CrashPolicy::new(&config);
        let same = policies(&["unix:///a", "unix:///b?on_crash=drop"]);
        assert_eq!((same.only(), same.of(|| unreachable!("all are the same"))), (Some(general), general));
        let only = policies(&["unix:///a?on_crash=close"]);
        assert_eq!(only.only().map(|only| only.on_crash), Some(OnCrash::Close));
        let mixed =
            policies(&["unix:///a", "unix:///b?on_crash=retry", "unix:///c?on_crash=retry&crash_retries=7"]);
        assert_eq!((mixed.only(), mixed.of(|| Some(0)), mixed.of(|| None)), (None, general, general));
        assert_eq!(mixed.of(|| Some(9)), general, "no such listener");
        let retry = |retries| CrashPolicy { on_crash: OnCrash::Retry, retries };
        assert_eq!((mixed.of(|| Some(1)), mixed.of(|| Some(2))), (retry(4), retry(7)));
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
