//! What a worker has begun and not ended when a callback returns: timers, tasks, and replies that come later.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use slab::Slab;

use super::Worker;
use crate::config::Mode;
use crate::session::Session;
use crate::task::Asker;

/// How many open replies are named.
const NAMED: usize = 3;

/// The promise of a reply that is not made before its callback returns. As long as it is kept, a worker that is to leave
/// waits for it, see [`Handler::on_worker_exit`](crate::Handler::on_worker_exit).
///
/// ```no_run
/// # use std::collections::HashMap;
/// # use std::time::Duration;
/// # use swoole_server::*;
/// #[derive(Default)]
/// struct Later {
///     waiting: HashMap<TimerId, OpenReply>,
/// }
///
/// impl Handler for Later {
///     fn on_receive(&mut self, worker: &mut Worker, client: Session, _: &[u8]) -> Result<()> {
///         let timer = worker.after(Duration::from_secs(1))?;
///         self.waiting.insert(timer, worker.open_reply(client));
///         Ok(())
///     }
///
///     fn on_timer(&mut self, worker: &mut Worker, timer: TimerId) -> Result<()> {
///         let Some(reply) = self.waiting.remove(&timer) else { return Ok(()) };
///         worker.send(reply.session(), b"now\n")
///     }
/// }
/// ```
///
/// It says nothing to the client, and keeps nothing open but the worker. If that dies, the reply is lost: its packet was
/// done when the callback returned, and is not handled again under `on_crash = retry`.
#[must_use = "the reply is open for as long as this is kept"]
pub struct OpenReply {
    session: Session,
    key: usize,
    replies: OpenReplies,
}

impl OpenReply {
    /// Who waits for it.
    pub fn session(&self) -> Session {
        self.session
    }
}

impl Drop for OpenReply {
    fn drop(&mut self) {
        self.replies.0.borrow_mut().remove(self.key);
    }
}

impl fmt::Debug for OpenReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OpenReply").field(&self.session).finish()
    }
}

/// Those of a worker, each with the time since when it is open.
#[derive(Clone, Default)]
pub(crate) struct OpenReplies(Rc<RefCell<Slab<(Session, Instant)>>>);

impl OpenReplies {
    fn open(&self, session: Session, now: Instant) -> OpenReply {
        let key = self.0.borrow_mut().insert((session, now));
        OpenReply { session, key, replies: self.clone() }
    }

    fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// The oldest first.
    fn list(&self, now: Instant) -> Vec<(Session, Duration)> {
        let age = |(_, (session, since)): (usize, &(Session, Instant))| (*session, now - *since);
        let mut list: Vec<_> = self.0.borrow().iter().map(age).collect();
        list.sort_by_key(|(_, age)| std::cmp::Reverse(*age));
        list
    }
}

/// What a worker has yet to finish.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Unfinished {
    /// Timers that come once.
    pub timers: usize,
    /// Timers that come again and again.
    pub ticks: usize,
    /// Who waits for a reply, and since when; the longest first.
    pub replies: Vec<(Session, Duration)>,
    /// Tasks of which no result has come yet.
    pub tasks: usize,
    /// Messages that have come in part, and processes that have not taken all that was sent to them.
    pub messages: usize,
}

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Unfinished { timers, ticks, replies, tasks, messages } = self;
        let counts = [
            (*timers, "timer", "timers"),
            (*ticks, "tick", "ticks"),
            (*tasks, "task", "tasks"),
            (*messages, "message", "messages"),
            (replies.len(), "open reply", "open replies"),
        ];
        let some = counts.iter().filter(|(count, ..)| *count > 0);
        let some = some.map(|(count, one, more)| format!("{count} {}", if *count == 1 { one } else { more }));
        let some: Vec<_> = some.collect();
        f.write_str(if some.is_empty() { "nothing" } else { "" })?;
        f.write_str(&some.join(", "))?;
        if !replies.is_empty() {
            let name = |(session, age): &(Session, Duration)| format!("session {session} for {age:.1?}");
            let names: Vec<_> = replies.iter().take(NAMED).map(name).collect();
            let more = if replies.len() > NAMED { ", ..." } else { "" };
            write!(f, " ({}{more})", names.join(", "))?;
        }
        Ok(())
    }
}

impl Worker<'_> {
    /// Says that this client will get a reply later, from another callback: a worker that is to leave waits for it, for
    /// as long as the [`OpenReply`] is kept.
    pub fn open_reply(&mut self, session: Session) -> OpenReply {
        self.duty.replies.open(session, Instant::now())
    }

    /// What this worker has begun and not ended: what it waits for when it is to leave.
    pub fn unfinished(&self) -> Unfinished {
        self.duty.unfinished()
    }
}

impl super::Duty {
    /// Whether nothing is left to wait for.
    pub(crate) fn is_finished(&self) -> bool {
        let is_quiet = self.timers.is_empty() && self.replies.is_empty() && self.tasks_under_way() == 0;
        is_quiet && self.messages_under_way() == 0
    }

    /// In Base mode a successor goes on with them.
    fn messages_under_way(&self) -> usize {
        let are_left = self.shared.config.mode == Mode::Base && self.has_heir;
        if are_left { 0 } else { self.post.under_way() }
    }

    /// What is left is left to nobody.
    pub(crate) fn give_up(&self) {
        tracing::warn!(
            "worker {} leaves at the end of its time (max_wait_time = {:?}), with {} unfinished",
            self.id,
            self.shared.config.max_wait_time,
            self.unfinished()
        );
    }

    pub(crate) fn unfinished(&self) -> Unfinished {
        let ticks = self.timers.ticks();
        let (timers, tasks) = (self.timers.len() - ticks, self.tasks_under_way());
        let replies = self.replies.list(Instant::now());
        Unfinished { timers, ticks, replies, tasks, messages: self.messages_under_way() }
    }

    fn tasks_under_way(&self) -> usize {
        self.tasks.as_ref().map_or(0, Asker::unfinished)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_open_while_it_is_kept() {
        let (replies, now) = (OpenReplies::default(), Instant::now());
        let [first, second] = [1, 2].map(|slot| Session::new(slot, 7));
        let one = replies.open(first, now);
        let other = replies.open(second, now + Duration::from_secs(1));
        let age = Duration::from_secs(3);
        assert_eq!(replies.list(now + age), [(first, age), (second, Duration::from_secs(2))]);
        drop(one);
        assert_eq!((other.session(), replies.list(now).len()), (second, 1));
        drop(other);
        assert!(replies.is_empty());
    }

    #[test]
    fn it_is_told_in_words() {
        let told = |timers, ticks, replies| {
            let reply = |slot| (Session::from_raw(slot as u64 + 1), Duration::from_millis(1500));
            let replies = (0..replies).map(reply).collect();
            Unfinished { timers, ticks, replies, tasks: 0, messages: 0 }.to_string()
        };
        assert_eq!(told(0, 0, 0), "nothing");
        assert_eq!(told(1, 0, 0), "1 timer");
        assert_eq!(told(2, 1, 0), "2 timers, 1 tick");
        assert_eq!(told(0, 0, 1), "1 open reply (session 1 for 1.5s)");
        assert_eq!(
            told(0, 3, 4),
            "3 ticks, 4 open replies (session 1 for 1.5s, session 2 for 1.5s, session 3 for 1.5s, ...)"
        );
    }
}
