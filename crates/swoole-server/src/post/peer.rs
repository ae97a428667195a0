//! Processes, as users name them.

use std::fmt;

use crate::config::Config;
use crate::error::{Error, Result};

/// A process of the server, by what it does. Whichever process is in a slot when a message arrives gets it. Who has sent one
/// is what it has said: a process that somebody else has taken over may lie.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Peer {
    /// The worker in this slot, from 0.
    Worker(u16),
    /// The task worker in this slot, from 0.
    TaskWorker(u16),
    /// The user process in this slot, from 0: the place of its function among those that the program has added.
    UserProcess(u16),
    /// The manager. It sends, and takes no messages.
    Manager,
}

/// `worker 3`, `task worker 0`, `the manager`.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Worker(id) => write!(f, "worker {id}"),
            Peer::TaskWorker(id) => write!(f, "task worker {id}"),
            Peer::UserProcess(id) => write!(f, "user process {id}"),
            Peer::Manager => f.write_str("the manager"),
        }
    }
}

impl Peer {
    /// Who sends as this number.
    pub(super) fn of_sender(sender: u16, config: &Config) -> Option<Peer> {
        if sender == config.asker_of_manager() { Some(Peer::Manager) } else { Peer::of_seat(sender, config) }
    }

    /// Who has this seat.
    pub(crate) fn of_seat(seat: u16, config: &Config) -> Option<Peer> {
        let (task_workers, processes) = (config.seat_of_task_worker(0), config.seat_of_user_process(0));
        match seat {
            id if id < task_workers => Some(Peer::Worker(id)),
            seat if seat < processes => Some(Peer::TaskWorker(seat - task_workers)),
            seat if seat < config.seats() => Some(Peer::UserProcess(seat - processes)),
            _ => None,
        }
    }

    /// The box that messages to it go to.
    pub(crate) fn seat(self, config: &Config) -> Result<u16> {
        match self {
            Peer::Worker(id) if id < config.worker_num => Ok(id),
            Peer::TaskWorker(id) if id < config.task_worker_num => Ok(config.seat_of_task_worker(id)),
            Peer::UserProcess(id) if id < config.user_process_num() => Ok(config.seat_of_user_process(id)),
            _ => Err(Error::NoSuchPeer(self)),
        }
    }
}
