//! The worker process: user code, one thread, no client socket.
//!
//! | file | what |
//! |---|---|
//! | `mod` | [`Worker`]: what a callback may do |
//! | `life` | from the fork to the exit: start, serve, retire |

mod life;

use std::sync::Arc;

use rustix::process::{Signal, getpid};

use crate::error::{Error, Result};
use crate::handler::common;
use crate::link::Outlet;
use crate::session::{Session, SessionInfo};
use crate::shared::Shared;

pub(crate) use life::{SIGNALS, run};

/// A worker process, as its callbacks see it.
pub struct Worker {
    id: u16,
    generation: u32,
    handled: u64,
    outlets: Vec<Outlet>,
    retiring: bool,
    shared: Arc<Shared>,
}

common!(Worker);

impl Worker {
    /// This worker's slot, from 0. A successor has the same.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// This process's id.
    pub fn pid(&self) -> i32 {
        getpid().as_raw_pid()
    }

    /// Which process of its slot this is, from 1.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Packets that this process has begun to handle, the present one included.
    pub fn handled(&self) -> u64 {
        self.handled
    }

    /// Sends `bytes` to a client, whichever reactor or worker it belongs to, after all that this worker has sent to
    /// it before. They leave when the callback returns, or at [`flush`](Worker::flush).
    ///
    /// Does not wait for the client: what it does not take is kept for it, up to `socket_buffer_size`; a client that
    /// falls further behind is closed.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchSession`] if the client has left. [`Error::ReplyTooLong`] if `bytes` alone exceed
    /// `socket_buffer_size`. Nothing was sent then.
    pub fn send(&mut self, session: Session, bytes: &[u8]) -> Result<()> {
        let max = self.shared.config.socket_buffer_size;
        if bytes.len() > max {
            return Err(Error::ReplyTooLong { session, len: bytes.len(), max });
        }
        self.outlet(session)?.send(session, bytes)
    }

    /// Closes a client's connection, after what was sent to it before has gone out.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchSession`] if it is gone already.
    pub fn close(&mut self, session: Session) -> Result<()> {
        self.outlet(session)?.close(session)
    }

    /// Lets out what this callback has sent so far, before it returns. If the worker dies later in the same callback,
    /// this much has been sent all the same. Waits for a reactor that has no room at the moment, for no client.
    ///
    /// # Errors
    ///
    /// [`Error::Link`] if the link to a reactor is broken: the worker is of no use then, so return it.
    pub fn flush(&mut self) -> Result<()> {
        for outlet in &mut self.outlets {
            outlet.flush()?;
            outlet.ring()?;
        }
        Ok(())
    }

    /// Whether the session is connected.
    pub fn exists(&self, session: Session) -> bool {
        self.shared.sessions.exists(session)
    }

    /// What is known of a session.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchSession`] if it is not connected.
    pub fn session(&self, session: Session) -> Result<SessionInfo> {
        self.shared.sessions.info(session)
    }

    /// Every session of the server. Those that come or go meanwhile may or may not be among them.
    pub fn sessions(&self) -> impl Iterator<Item = Session> + '_ {
        self.shared.sessions.iter()
    }

    /// Lets a worker retire and be replaced: this one (`None`), after the present callback, or another one.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchWorker`] if there is no such slot; another error if there is no process in it at the moment.
    pub fn retire(&mut self, worker: Option<u16>) -> Result<()> {
        let worker_num = self.shared.config.worker_num;
        match worker {
            Some(worker) if worker >= worker_num => Err(Error::NoSuchWorker { worker, worker_num }),
            Some(worker) if worker != self.id => {
                crate::handler::signal(self.shared.board.worker_pid(worker), Signal::TERM)
            }
            _ => {
                self.retiring = true;
                Ok(())
            }
        }
    }

    fn outlet(&mut self, session: Session) -> Result<&mut Outlet> {
        if !self.shared.sessions.exists(session) {
            return Err(Error::NoSuchSession(session));
        }
        self.outlets.get_mut(usize::from(session.reactor())).ok_or(Error::NoSuchSession(session))
    }

    /// A callback begins; `origin` is the reactor whose record it handles, and that record's number.
    fn begin(&mut self, origin: Option<(usize, u64)>) {
        if let Some((reactor, record)) = origin {
            self.outlets[reactor].begin(record);
            self.shared.board.start(self.id, reactor, record);
        }
    }

    /// The callback has returned: its effects become visible, the ack of its record last.
    fn commit(&mut self, origin: Option<(usize, u64)>) -> Result<()> {
        let origin = origin.map(|(reactor, _)| reactor);
        for (reactor, outlet) in self.outlets.iter_mut().enumerate() {
            if Some(reactor) != origin {
                outlet.commit()?;
            }
        }
        match origin {
            Some(reactor) => self.outlets[reactor].commit(),
            None => Ok(()),
        }
    }

    /// Wakes the reactors that have something to take.
    fn ring(&mut self) -> Result<()> {
        self.outlets.iter_mut().try_for_each(Outlet::ring)
    }
}
