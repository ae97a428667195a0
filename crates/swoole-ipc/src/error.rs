//! What can go wrong, by name.

use std::io;
use std::ops::RangeInclusive;

/// A value read from shared memory, or from a peer, that cannot be true.
///
/// Whoever wrote it is broken or hostile. Nothing was read or written outside the ring and the state on
/// this side is unchanged, but the peer's word is worth nothing any more: give the channel up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the peer lies: {what} is {value}, and only {start} to {end} can be true; give this channel up",
        start = range.start(), end = range.end())]
pub struct Corrupt {
    /// The field that was read, as the layout names it.
    pub what: &'static str,
    /// The value found.
    pub value: u64,
    /// The values that would have been possible (multiples of 8 for positions in a ring).
    pub range: RangeInclusive<u64>,
}

/// A ring has no room for the record now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the ring has room for {room} more bytes of payload, the record has {needed}")]
pub struct Full {
    /// Payload of the refused record, bytes.
    pub needed: usize,
    /// Largest payload that would be taken now, bytes.
    pub room: usize,
}

/// The two ends of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The end that writes.
    Producer,
    /// The end that reads.
    Consumer,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Side::Producer => "producer",
            Side::Consumer => "consumer",
        })
    }
}

/// An operation on a channel that did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No room now. The message was not taken; try again when the receiver has read something.
    #[error("the channel is full; wait until the receiver has read something")]
    Full,
    /// No message now.
    #[error("the channel is empty")]
    Empty,
    /// The time given has passed. The message was not delivered and will not be; none was received.
    #[error("the time given for the operation has passed")]
    Timeout,
    /// The other process is gone or has dropped its half. What it had sent before has been received.
    #[error("the process at the other end is gone")]
    PeerGone,
    /// The message is larger than the operation can ever take.
    #[error("the message has {size} bytes, {operation} takes at most {limit}")]
    TooLarge {
        /// The operation that refused.
        operation: &'static str,
        /// Size of the message, bytes.
        size: usize,
        /// Largest size taken, bytes.
        limit: usize,
    },
    /// The packet that came is larger than the buffer; its end is lost.
    #[error("a packet was larger than the buffer of {buffer} bytes; receive with at least PACKET_MAX bytes")]
    Truncated {
        /// Size of the buffer, bytes.
        buffer: usize,
    },
    /// A descriptor is not memory that nobody can shrink any more.
    #[error(
        "{name:?}: the descriptor is not sealed shared memory (memfd_create(2), F_SEAL_SHRINK and F_SEAL_GROW)"
    )]
    NotShared {
        /// What it was meant to be.
        name: String,
    },
    /// There is no such part in a [`Memory`](crate::Memory).
    #[error(
        "memory {name:?} has {size} bytes, {len} from {start} on are no part of it (parts begin at a page)"
    )]
    NoSuchPart {
        /// The name of the memory.
        name: String,
        /// Where the part would begin, bytes.
        start: usize,
        /// Its size, bytes.
        len: usize,
        /// Size of the memory, bytes.
        size: usize,
    },
    /// Empty packets cannot be told from the end of the stream (recv(2)).
    #[error("an empty packet cannot be told from the end of the stream; put a header before it")]
    EmptyPacket,
    /// Only packets have boundaries of the kernel's making.
    #[error("single packets need a pair of Kind::SeqPacket")]
    NotPackets,
    /// The kernel keeps 0 and below for itself (msgop(2)).
    #[error("message type {mtype} is not possible; types are 1 or more")]
    MessageType {
        /// The type asked for.
        mtype: i64,
    },
    /// A limit of System V message queues stands in the way.
    #[error(
        "message queue {name:?} is not possible with kernel.msgmax={}, kernel.msgmnb={}, kernel.msgmni={}: {remedy}",
        limits.message_bytes_max, limits.queue_bytes_max, limits.queues_max
    )]
    QueueLimit {
        /// The queue.
        name: String,
        /// The kernel's limits at that time.
        limits: swoole_sys::msg::Limits,
        /// Which of them, and what to do about it.
        remedy: &'static str,
    },
    /// Another process (or another value in this process) holds this side of the ring.
    #[error("the {side} side of ring {name:?} is held by process {pid}; evict it when it is dead")]
    SideTaken {
        /// The ring.
        name: String,
        /// The side that was asked for.
        side: Side,
        /// Process that holds it.
        pid: u32,
    },
    /// The peer, or its shared memory, said something that cannot be true.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    /// The capacity asked for is outside what a ring supports.
    #[error("a ring of {capacity} bytes is not possible; choose 1 to {limit}", limit = crate::ring::CAPACITY_MAX)]
    Capacity {
        /// The capacity asked for, bytes.
        capacity: usize,
    },
    /// The kernel refused.
    #[error("{operation} of {object:?} failed: {source}")]
    Os {
        /// The system call or step.
        operation: &'static str,
        /// The channel it was for.
        object: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: the operation and object that the kernel's answer belongs to.
    pub(crate) fn os<E: Into<io::Error>>(operation: &'static str, object: &str) -> impl FnOnce(E) -> Error {
        move |source| Error::Os { operation, object: object.to_owned(), source: source.into() }
    }
}
