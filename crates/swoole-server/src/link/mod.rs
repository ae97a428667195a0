//! The link between one reactor and one worker, over which every packet and every reply goes.
//!
//! Both kinds keep the same promises (`--ipc ring` and `--ipc socketpair` differ in speed only):
//!
//! - Requests are delivered in order, whole, any size up to `package_max_length`.
//! - **One commit point.** What a handler sends becomes visible to clients together with the ack of
//!   its packet, when the handler returns: the last record carries [`COMMIT`](crate::wire::COMMIT).
//!   Before it nothing has happened; after it the packet is answered, although its author may be
//!   dead. Replies too large for the way are staged at the reactor until their commit arrives.
//! - **Succession.** When the worker is known to be dead, [`ReactorEnd::settle`] closes the books:
//!   committed replies have gone out, uncommitted ones are dropped, the packet in hand is named
//!   and goes the way of `on_crash`, and all that was not begun waits for the successor in its order. The successor is forked only
//!   after every reactor has settled, so no two processes ever share a side.
//! - The reactor believes no byte that a worker wrote: a record, a position or an ack that cannot
//!   be true is a [`Fault`](reactor_end::Fault), and costs the worker its life. Settling writes the ring's header
//!   anew, so that nothing of it outlives the worker.
//!
//! | file | what |
//! |---|---|
//! | `window` | the reactor's books of what is in flight; pure |
//! | `reactor_end` | the reactor's side: offers packets, takes replies |
//! | `casualty` | what a worker has died on |
//! | `batch` | the same for packets that are received straight into the ring |
//! | `worker_end` | the worker's side: takes packets, makes replies |

mod batch;
mod casualty;
mod reactor_end;
mod replies;
mod window;
mod worker_end;

use rustix::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use swoole_ipc::Ring;
use swoole_ipc::socketpair::{self, Endpoint, Kind};

#[cfg(any(test, feature = "internals"))]
use crate::config::Ipc;
use crate::error::{Error, Result};
pub(crate) use batch::BATCH_MAX;
pub(crate) use casualty::Casualty;
pub(crate) use reactor_end::{ReactorEnd, ReplySink};
#[cfg(feature = "internals")]
pub(crate) use window::Window;
pub(crate) use window::{Parcel, Sent};
pub(crate) use worker_end::{Inbox, Message, Next, Outlets};

/// The largest payload of one socketpair packet.
const SOCKET_PIECE: usize = 32 * 1024;
/// The largest socketpair packet: tag, header, piece.
const SOCKET_PACKET: usize = size_of::<u32>() + crate::wire::HEADER + SOCKET_PIECE;

/// What the kernel is asked to hold for one direction of a socketpair; it may give less, never less than a packet.
const SOCKET_BUFFER: usize = 512 * 1024;

/// Replies that a handler may leave uncommitted, by [`reply_cost`]; beyond, they are committed as they are.
pub(crate) const UNCOMMITTED_MAX: usize = 32 << 20;

/// What a file counts against it, so that there are few descriptors under way.
pub(crate) const FILE_COST: usize = 1 << 20;

/// What a reply counts against the limits of what is uncommitted, in bytes: its payload, and what it takes to keep it.
fn reply_cost(payload: usize) -> usize {
    payload + 64
}

/// What both ends are made of; exists before the first fork.
#[derive(Debug)]
pub(crate) enum Lane {
    Ring { requests: Ring, replies: Ring },
    Socket { reactor: Endpoint, worker: Endpoint },
}

impl Lane {
    /// One by itself, for whoever looks at a link alone.
    #[cfg(any(test, feature = "internals"))]
    pub(crate) fn create(ipc: Ipc, name: &str, ring_size: usize) -> Result<Lane> {
        let ring = |what: &str| {
            Ring::create(&format!("{what}-{name}"), ring_size)
                .map_err(|error| Error::setup(format!("make the ring of link {name}"), error))
        };
        match ipc {
            Ipc::Ring => Ok(Lane::Ring { requests: ring("requests")?, replies: ring("replies")? }),
            Ipc::SocketPair => Lane::socketpair(name),
        }
    }

    pub(crate) fn socketpair(name: &str) -> Result<Lane> {
        let create = || {
            let (mut reactor, mut worker) = socketpair::pair(Kind::SeqPacket)?;
            for end in [&mut reactor, &mut worker] {
                end.set_buffer_sizes(SOCKET_BUFFER)?;
            }
            Ok(Lane::Socket { reactor, worker })
        };
        create().map_err(|error: swoole_ipc::Error| {
            Error::setup(format!("make the socketpair of link {name}"), error)
        })
    }

    /// The ends that another process has made: the reactor's, and the worker's.
    pub(crate) fn from_fds(reactor: OwnedFd, worker: OwnedFd) -> Result<Lane, swoole_ipc::Error> {
        Ok(Lane::Socket {
            reactor: Endpoint::from_fd(Kind::SeqPacket, reactor)?,
            worker: Endpoint::from_fd(Kind::SeqPacket, worker)?,
        })
    }

    /// Both ends, the reactor's first; none of a ring.
    pub(crate) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Lane::Ring { .. } => Vec::new(),
            Lane::Socket { reactor, worker } => vec![reactor.as_fd(), worker.as_fd()],
        }
    }

    /// The descriptor that a worker needs for its side.
    pub(crate) fn worker_fd(&self) -> Option<RawFd> {
        match self {
            Lane::Ring { .. } => None,
            Lane::Socket { worker, .. } => Some(worker.as_fd().as_raw_fd()),
        }
    }

    /// Readable when the worker has sent something; the ring has a doorbell for that.
    pub(crate) fn reactor_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Lane::Ring { .. } => None,
            Lane::Socket { reactor, .. } => Some(reactor.as_fd()),
        }
    }
}

#[cfg(test)]
mod tests;
