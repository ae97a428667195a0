//! Chosen moments of a worker's life at which it can be made to die, to show what its death costs then.
//!
//! With the feature `breakpoints` a worker that is armed kills itself when it comes to the point. Without, [`pass`] is
//! empty, and nothing else of this is compiled: the feature is for tests of real processes, and nobody's interface.

#[cfg(any(test, feature = "breakpoints"))]
use std::cell::Cell;
#[cfg(any(test, feature = "breakpoints"))]
use std::{fmt, str::FromStr};

/// A moment between two steps of a worker or a task worker, in the order in which a packet, and then a task meets them. In
/// Base mode there are only those of task workers.
#[cfg_attr(not(feature = "breakpoints"), expect(unreachable_pub, reason = "exported with the feature only"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// It has put a part of a request away, whose rest is still to come.
    RequestFragment,
    /// It has said which packet it begins, and not called the handler.
    Begun,
    /// The handler has sent a part of a reply, whose rest is still to come.
    ReplyFragment,
    /// A part of a reply is with the reactor, which must not let it out before its commit.
    ReplyStaged,
    /// Replies and ack are written, and nothing of them counts.
    BeforeCommit,
    /// They count, and on a ring the reactor has not been told.
    AfterCommit,
    /// The reactor has been told, and may or may not have freed what the ack has finished. Not on a socketpair, which
    /// has no doorbell.
    AfterBell,
    /// A task is in its queue, behind the end of it: nobody can find it.
    TaskQueued,
    /// It can be found, and nobody was woken for it.
    TaskPublished,
    /// In a task worker: it has a letter, and has not taken what that is about. Not under `task_ipc_mode = ring`.
    TaskReceived,
    /// In a task worker: the task is taken, and still the next one of its queue.
    TaskTaken,
    /// Its result is written, and does not count.
    TaskResult,
    /// It counts, and its asker would not find it.
    TaskDone,
    /// It would, and was not woken for it.
    TaskMarked,
}

/// The worker is at this point.
#[inline(always)]
pub(crate) fn pass(point: Point) {
    #[cfg(feature = "breakpoints")]
    if TRAP.with(|trap| trap.springs(point)) {
        die(point);
    }
    #[cfg(test)]
    visited::tell(point);
    let _ = point;
}

/// The worker is between two packets: what the handler has asked for counts from here on.
#[inline(always)]
pub(crate) fn packet_begins() {
    #[cfg(feature = "breakpoints")]
    TRAP.with(Trap::set);
}

#[cfg(feature = "breakpoints")]
thread_local! {
    static TRAP: Trap = const { Trap { wanted: Cell::new(None), armed: Cell::new(None) } };
}

/// Lets this worker kill itself when it comes to `point`, once the packet that it is at is finished. Only one point at a
/// time is armed.
#[cfg(feature = "breakpoints")]
pub fn arm(point: Point) {
    TRAP.with(|trap| trap.wanted.set(Some(point)));
}

#[cfg(feature = "breakpoints")]
fn die(point: Point) -> ! {
    use rustix::process::{Signal, getpid, kill_process};

    tracing::warn!("breakpoint {point}: pid {} dies", getpid().as_raw_pid());
    loop {
        // It ends this process before it returns.
        let _ = kill_process(getpid(), Signal::KILL);
    }
}

/// Where this thread is to die.
#[cfg(any(test, feature = "breakpoints"))]
struct Trap {
    /// Asked for by the packet in hand, which must not be hit itself: whoever is given it again would ask, too.
    wanted: Cell<Option<Point>>,
    armed: Cell<Option<Point>>,
}

#[cfg(any(test, feature = "breakpoints"))]
impl Trap {
    fn set(&self) {
        if let Some(point) = self.wanted.take() {
            self.armed.set(Some(point));
        }
    }

    fn springs(&self, point: Point) -> bool {
        self.armed.get() == Some(point)
    }
}

#[cfg(any(test, feature = "breakpoints"))]
const NAMES: [(&str, Point); 14] = [
    ("request_fragment", Point::RequestFragment),
    ("begun", Point::Begun),
    ("reply_fragment", Point::ReplyFragment),
    ("reply_staged", Point::ReplyStaged),
    ("before_commit", Point::BeforeCommit),
    ("after_commit", Point::AfterCommit),
    ("after_bell", Point::AfterBell),
    ("task_queued", Point::TaskQueued),
    ("task_published", Point::TaskPublished),
    ("task_received", Point::TaskReceived),
    ("task_taken", Point::TaskTaken),
    ("task_result", Point::TaskResult),
    ("task_done", Point::TaskDone),
    ("task_marked", Point::TaskMarked),
];

#[cfg(any(test, feature = "breakpoints"))]
impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAMES.iter().find(|(_, point)| point == self).map_or("", |(name, _)| name))
    }
}

/// There is no [`Point`] of this name.
#[cfg(any(test, feature = "breakpoints"))]
#[cfg_attr(not(feature = "breakpoints"), expect(unreachable_pub, reason = "exported with the feature only"))]
#[derive(Debug, thiserror::Error)]
#[error("no breakpoint `{0}`")]
pub struct NoSuchPoint(String);

#[cfg(any(test, feature = "breakpoints"))]
impl FromStr for Point {
    type Err = NoSuchPoint;

    fn from_str(text: &str) -> Result<Point, NoSuchPoint> {
        let named = NAMES.iter().find(|(name, _)| *name == text);
        named.map(|(_, point)| *point).ok_or_else(|| NoSuchPoint(text.escape_debug().to_string()))
    }
}

/// What a test does at points, on its own thread.
#[cfg(test)]
pub(crate) mod visited {
    use super::Point;
    use std::cell::Cell;

    thread_local! {
        static DEADLY: Cell<Option<Point>> = const { Cell::new(None) };
    }

    /// Lets `work` panic when it comes to `point`: whether it did.
    pub(crate) fn dies_at(point: Point, work: impl FnOnce()) -> bool {
        DEADLY.set(Some(point));
        let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err();
        let came_there = DEADLY.take().is_none();
        assert_eq!(died, came_there, "it panicked elsewhere than at {point:?}");
        died
    }

    pub(super) fn tell(point: Point) {
        if DEADLY.get() == Some(point) {
            DEADLY.set(None);
            // Not a panic, whose message would look like a failure of the test.
            std::panic::resume_unwind(Box::new(point));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packet_that_arms_is_not_hit() {
        let trap = Trap { wanted: Cell::new(None), armed: Cell::new(None) };
        trap.set();
        assert!(!trap.springs(Point::BeforeCommit));
        trap.wanted.set(Some(Point::BeforeCommit));
        assert!(!trap.springs(Point::BeforeCommit), "it has still to answer");
        trap.set();
        assert!(!trap.springs(Point::AfterCommit));
        trap.set();
        assert!(trap.springs(Point::BeforeCommit), "until it comes there");
    }

    #[test]
    fn another_point_takes_the_place_of_the_last_one() {
        let trap = Trap { wanted: Cell::new(None), armed: Cell::new(Some(Point::Begun)) };
        trap.wanted.set(Some(Point::AfterBell));
        trap.set();
        assert!(!trap.springs(Point::Begun) && trap.springs(Point::AfterBell));
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for (name, point) in NAMES {
            assert_eq!((point.to_string().as_str(), name.parse::<Point>().unwrap()), (name, point));
        }
        assert_eq!("after\n".parse::<Point>().unwrap_err().to_string(), "no breakpoint `after\\n`");
    }
}
