//! The post: what processes write to each other, and what those write to clients who have no link to a reactor.
//!
//! ```text
//!     any process ──> Sender ──> box of a worker or task worker ──> Receiver ──> on_pipe_message
//!     task worker, manager ────> box of a reactor ────────────────> Receiver ──> client
//! ```
//!
//! Each worker and task worker has a box, and so has each reactor; in Base mode, where workers are reactors, they have one
//! for both. A box is a SEQPACKET socketpair of which its owner has the reading end, and everybody who may write to it the
//! other one. What is sent is first kept by the sender, so that nobody ever waits for a process that does not read; more
//! than `socket_buffer_size` that one box has not taken is an error for the sender. Per pair of processes the order stays.
//! A parcel is one packet or several, which of several senders may mix. What lies in the box of a dead process is its
//! successor's; of a parcel that has come in part the rest is thrown away.
//!
//! | file | what |
//! |---|---|
//! | `mod` | the boxes, which exist before the first fork |
//! | `packet` | what stands in a packet |
//! | `sender`, `receiver` | the two ends of a process |
//! | `peer` | processes, as users name them |
//! | `role` | what users may send where there is no link |

mod packet;
mod peer;
mod receiver;
pub(crate) mod role;
mod sender;
#[cfg(test)]
mod tests;

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use swoole_ipc::socketpair::{self, Endpoint, Kind};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::shared::Shared;
pub use peer::Peer;
pub(crate) use receiver::{Parcel, Part, Receiver};
pub(crate) use sender::Sender;

/// What the kernel is asked to hold in one box.
const BUFFER: usize = 512 * 1024;

/// Parcels that a reactor takes in one go: clients and replies wait, too.
pub(crate) const POST_BUDGET: usize = 256;

/// Bytes of the longest message: 1 GiB.
pub(crate) const MESSAGE_MAX: usize = 1 << 30;

/// All boxes: those of the seats first, then, unless workers are reactors, those of the reactors, and then their chutes
/// ([`crate::chute`]), which are sockets like the boxes.
#[derive(Debug)]
pub(crate) struct Boxes {
    /// The writing and the reading end.
    ends: Vec<(Endpoint, Endpoint)>,
    /// Those that processes with links to the reactors write to, and chutes.
    seats: usize,
    chutes: usize,
}

impl Boxes {
    pub(crate) fn create(config: &Config) -> Result<Boxes> {
        let failed = |error: swoole_ipc::Error| Error::setup("make the post boxes (socketpairs)", error);
        let create = |_| {
            let (mut write, mut read) = socketpair::pair(Kind::SeqPacket)?;
            for end in [&mut write, &mut read] {
                end.set_buffer_sizes(BUFFER)?;
            }
            Ok((write, read))
        };
        let pairs = (0..config.boxes()).map(create).collect::<Result<Vec<_>, _>>().map_err(failed)?;
        // The writing ends get numbers side by side: each process keeps those, and closes what lies between in one call.
        let mut write = pairs.iter().map(|(write, _)| Ok(write.as_fd().try_clone_to_owned()?));
        let write = write.by_ref().collect::<Result<Vec<OwnedFd>>>()?;
        let ends = write
            .into_iter()
            .zip(pairs)
            .map(|(write, (_, read))| Ok((Endpoint::from_fd(Kind::SeqPacket, write)?, read)));
        let ends = ends.collect::<Result<_, _>>().map_err(failed)?;
        Ok(Boxes { ends, seats: config.seats().into(), chutes: config.chutes() })
    }

    /// Those that another process has made: of each box the writing end, then the reading end.
    pub(crate) fn from_fds(config: &Config, mut next: impl FnMut() -> Result<OwnedFd>) -> Result<Boxes> {
        let mut end = || -> Result<Endpoint> {
            let failed = |error| Error::setup("take up a post box", error);
            Endpoint::from_fd(Kind::SeqPacket, next()?).map_err(failed)
        };
        let ends = (0..config.boxes()).map(|_| Ok((end()?, end()?))).collect::<Result<_>>()?;
        Ok(Boxes { ends, seats: config.seats().into(), chutes: config.chutes() })
    }

    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.ends.iter().flat_map(|(write, read)| [write.as_fd(), read.as_fd()])
    }

    /// A reactor's chute, and both ends of it.
    pub(crate) fn chute(&self, reactor: u16) -> &(Endpoint, Endpoint) {
        &self.ends[self.ends.len() - self.chutes + usize::from(reactor)]
    }

    /// What the process in this seat needs: its own reading end, and the writing ends of those that have a seat, and of all
    /// others' boxes, or of chutes.
    pub(crate) fn keep(&self, seat: u16, all: bool) -> impl Iterator<Item = RawFd> + '_ {
        let (seats, others) = self.ends.split_at(self.seats);
        let (boxes, chutes) = others.split_at(others.len() - self.chutes);
        let write = seats.iter().chain(if all { boxes } else { chutes }).map(|(write, _)| write);
        write.chain([&self.ends[usize::from(seat)].1]).map(|end| end.as_fd().as_raw_fd())
    }
}

/// One process's post: what it sends, and what has come for it. Made after the fork.
pub(crate) struct Post {
    pub(crate) sender: Sender,
    receiver: Receiver,
    shared: Arc<Shared>,
    /// Something may have come.
    has_mail: bool,
    taken: u64,
}

impl Post {
    /// That of the process in this seat.
    pub(crate) fn open(shared: &Arc<Shared>, seat: u16, generation: u32) -> Result<Post> {
        Ok(Post {
            sender: Sender::open(shared, seat, generation)?,
            receiver: Receiver::new(shared, seat),
            shared: Arc::clone(shared),
            has_mail: false,
            taken: 0,
        })
    }

    /// Readable while something has come.
    pub(crate) fn mailbox(&self) -> BorrowedFd<'_> {
        self.receiver.descriptor()
    }

    pub(crate) fn mail_came(&mut self) {
        self.has_mail = true;
    }

    pub(crate) fn has_mail(&self) -> bool {
        self.has_mail
    }

    /// The next thing that has come whole.
    pub(crate) fn next(&mut self) -> Option<Parcel> {
        let parcel = self.receiver.next()?;
        self.taken += 1;
        Some(parcel)
    }

    /// The next message, if mail has come, in a process that gets nothing else.
    pub(crate) fn next_message(&mut self) -> Option<(Peer, Vec<u8>)> {
        while self.has_mail {
            match self.next() {
                Some(Parcel::Message(from, message)) => return Some((from, message)),
                Some(parcel) => tracing::error!("not for a process without clients: {parcel:?}"),
                None => self.has_mail = false,
            }
        }
        None
    }

    /// How many parcels have come.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// Parcels that are under way from here, or have come in part from somebody who is alive: who leaves waits for them.
    pub(crate) fn under_way(&self) -> usize {
        let Shared { board, config, .. } = &*self.shared;
        let is_alive = |sender: u16, generation: u32| {
            sender < config.seats() && board.generation(sender) == generation && board.worker_pid(sender) != 0
        };
        usize::from(self.sender.is_blocked()) + self.receiver.begun(is_alive)
    }

    /// Leaves what is under way to the successor.
    pub(crate) fn leave(&mut self) -> Mail {
        Mail { outgoing: self.sender.leave(), begun: self.receiver.leave() }
    }

    /// Goes on with what the last process has left.
    pub(crate) fn inherit(&mut self, mail: Mail) {
        self.sender.inherit(mail.outgoing);
        self.receiver.inherit(mail.begun);
    }
}

/// Parcels that a process leaves in the middle of their way.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Mail {
    /// What has come of each parcel that has begun.
    pub(crate) begun: Vec<Part>,
    /// Packets that had no room, with the box that each is for, in their order.
    pub(crate) outgoing: Vec<(u16, Vec<u8>)>,
}
