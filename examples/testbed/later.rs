//! What the testbed has promised to say later.

use std::collections::HashMap;
use std::time::Duration;

use swoole_server::{OpenReply, Result, Session, TimerId, Worker};

/// Promises, by their timers.
#[derive(Default)]
pub(crate) struct Later {
    promises: HashMap<TimerId, Promise>,
    /// Replies that never come.
    forgotten: Vec<OpenReply>,
}

enum Promise {
    /// `timer ID TEXT` to this session, so many times.
    Timer { session: Session, text: Vec<u8>, times: u64 },
    /// This text as the reply.
    Reply { reply: OpenReply, text: Vec<u8> },
}

impl Later {
    pub(crate) fn after(
        &mut self,
        worker: &mut Worker,
        session: Session,
        ms: u64,
        text: &[u8],
    ) -> Result<TimerId> {
        let timer = worker.after(Duration::from_millis(ms))?;
        self.promises.insert(timer, Promise::Timer { session, text: text.into(), times: 1 });
        Ok(timer)
    }

    pub(crate) fn tick(
        &mut self,
        worker: &mut Worker,
        session: Session,
        (ms, times): (u64, u64),
        text: &[u8],
    ) -> Result<TimerId> {
        let timer = worker.tick(Duration::from_millis(ms))?;
        self.promises.insert(timer, Promise::Timer { session, text: text.into(), times });
        Ok(timer)
    }

    pub(crate) fn reply(
        &mut self,
        worker: &mut Worker,
        session: Session,
        ms: u64,
        text: &[u8],
    ) -> Result<()> {
        let timer = worker.after(Duration::from_millis(ms))?;
        let reply = worker.open_reply(session);
        self.promises.insert(timer, Promise::Reply { reply, text: text.into() });
        Ok(())
    }

    pub(crate) fn forget(&mut self, worker: &mut Worker, session: Session) {
        self.forgotten.push(worker.open_reply(session));
    }

    pub(crate) fn clear(&mut self, worker: &mut Worker, timer: TimerId) -> bool {
        self.promises.remove(&timer);
        worker.clear(timer)
    }

    /// What is to be said now that this timer has come, and to whom.
    pub(crate) fn due(&mut self, worker: &mut Worker, timer: TimerId) -> Option<(Session, Vec<u8>)> {
        match self.promises.remove(&timer)? {
            Promise::Timer { session, text, times } => {
                if let Some(ms) = text.strip_prefix(b"sleep ") {
                    let ms = String::from_utf8_lossy(ms).parse().unwrap_or_default();
                    std::thread::sleep(Duration::from_millis(ms));
                }
                let line = [format!("timer {timer} ").as_bytes(), &text].concat();
                if times > 1 {
                    self.promises.insert(timer, Promise::Timer { session, text, times: times - 1 });
                } else {
                    worker.clear(timer);
                }
                Some((session, line))
            }
            Promise::Reply { reply, text } => Some((reply.session(), text)),
        }
    }
}
