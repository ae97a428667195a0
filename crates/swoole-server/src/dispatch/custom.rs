//! A rule that the user gives as a function.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::board::Board;
use crate::datagram::DatagramClient;
use crate::error::Result;
use crate::session::{Session, SessionInfo, SessionTable};

/// Where a packet goes: what a function given to [`Server::dispatch`](crate::Server::dispatch) says.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Choice {
    /// To this worker. A number that is too large stands for its remainder by `worker_num`, so a hash will do. If that
    /// worker does not serve at the moment, the packet waits for its successor.
    Worker(u64),
    /// To the worker that hears of the connection's connect and close.
    Home,
    /// To nobody. The connection goes on, and does not learn of it.
    Drop,
    /// To nobody, and the connection is closed, after the answers that are on their way. For a datagram the same as `Drop`.
    Close,
}

/// A packet that a worker is wanted for, as a function given to [`Server::dispatch`](crate::Server::dispatch) sees it.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Dispatch<'a> {
    /// The connection that it has come by; of a datagram, nobody's.
    pub session: Session,
    /// Who has sent it, if it is a datagram.
    pub from: Option<&'a DatagramClient>,
    /// The worker that hears of that connection's connect and close; of a datagram, one that follows from its sender's
    /// address.
    pub home: u16,
    /// The whole packet.
    pub packet: &'a [u8],
    scene: &'a Scene<'a>,
}

impl Dispatch<'_> {
    /// How many workers there are; they are numbered from 0.
    pub fn worker_num(&self) -> u16 {
        self.scene.worker_num
    }

    /// What is known of the connection: its peer, its listener, the user it is bound to.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchSession`](crate::Error::NoSuchSession) if it is a datagram. Else it does not happen while its packet is
    /// dispatched.
    pub fn info(&self) -> Result<SessionInfo> {
        self.scene.sessions.info(self.session)
    }

    /// Whether this worker serves now. One that has died, or has not started yet, does not; `false` also if there is no
    /// such worker.
    pub fn is_serving(&self, worker: u16) -> bool {
        worker < self.worker_num() && (self.scene.serves)(worker)
    }

    /// Packets, connects and closes that this worker has been given and has not finished; 0 if there is no such worker.
    pub fn in_flight(&self, worker: u16) -> usize {
        if worker < self.worker_num() { (self.scene.in_flight)(worker) } else { 0 }
    }

    /// Whether this worker has nothing to do; `false` if there is no such worker.
    pub fn is_idle(&self, worker: u16) -> bool {
        worker < self.worker_num() && self.scene.board.is_idle(worker)
    }
}

impl fmt::Debug for Dispatch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Dispatch { session, home, packet, .. } = self;
        f.debug_struct("Dispatch")
            .field("session", session)
            .field("home", home)
            .field("packet", &packet.len())
            .finish_non_exhaustive()
    }
}

type Function = dyn Fn(&Dispatch<'_>) -> Choice + Send + Sync;

/// The user's function.
#[derive(Clone)]
pub(crate) struct Custom(Arc<Function>);

impl fmt::Debug for Custom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Custom")
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    Worker(u16),
    Drop,
    Close,
}

/// What the function may ask for.
pub(crate) struct Scene<'a> {
    pub(crate) sessions: &'a SessionTable,
    pub(crate) board: &'a Board,
    pub(crate) in_flight: &'a dyn Fn(u16) -> usize,
    pub(crate) serves: &'a dyn Fn(u16) -> bool,
    pub(crate) worker_num: u16,
}

impl Custom {
    pub(crate) fn new(function: impl Fn(&Dispatch<'_>) -> Choice + Send + Sync + 'static) -> Custom {
        Custom(Arc::new(function))
    }

    /// What the function says. One that panics costs the connection whose packet it was, and nobody else.
    pub(crate) fn ask(
        &self,
        (session, from): (Session, Option<&DatagramClient>),
        home: u16,
        packet: &[u8],
        scene: &Scene<'_>,
    ) -> Verdict {
        let dispatch = Dispatch { session, from, home, packet, scene };
        match catch_unwind(AssertUnwindSafe(|| (self.0)(&dispatch))) {
            Ok(Choice::Worker(worker)) => Verdict::Worker((worker % u64::from(scene.worker_num)) as u16),
            Ok(Choice::Home) => Verdict::Worker(home),
            Ok(Choice::Drop) => Verdict::Drop,
            Ok(Choice::Close) => Verdict::Close,
            Err(_) => {
                match from {
                    Some(from) => {
                        tracing::error!("the function that dispatches has panicked on a datagram of {from}");
                    }
                    None => {
                        tracing::error!(%session, "closed, the function that dispatches has panicked on its packet")
                    }
                }
                Verdict::Close
            }
        }
    }
}
