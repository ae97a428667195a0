//! What a turn of the reactor reports.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use bitflags::bitflags;
use swoole_sys::signal::SignalInfo;

use crate::{DatagramPeer, FileRange, TimerId, Token};

/// One thing that happened. Bytes are borrowed from the reactor for the time of the call.
#[derive(Debug)]
pub enum Event<'a> {
    /// A connection was accepted: nonblocking, close-on-exec, and the handler's to keep or drop.
    Accepted {
        /// The listener that [`Reactor::accept`](crate::Reactor::accept) named.
        listener: Token,
        /// The connection. [`Reactor::stream`](crate::Reactor::stream) adopts it.
        socket: OwnedFd,
        /// Who connected; `None` on a Unix socket, and for a peer that is gone already.
        peer: Option<SocketAddr>,
    },
    /// Accepting failed for a reason that another try at once would meet again: no descriptors left
    /// (`EMFILE`, `ENFILE`), no memory. The listener is paused until
    /// [`resume_accept`](crate::Reactor::resume_accept); connections wait in its backlog meanwhile.
    AcceptFailed {
        /// The listener.
        listener: Token,
        /// Why.
        error: io::Error,
    },
    /// Bytes arrived on a stream, at least one.
    Data {
        /// The stream.
        token: Token,
        /// What arrived, in order and without gaps from one event to the next.
        bytes: &'a [u8],
    },
    /// Bytes have arrived, or an end or a failure, on a stream that [`receive_into`](crate::Reactor::receive_into) was
    /// called for: [`read`](crate::Reactor::read) or [`pause`](crate::Reactor::pause) it, or it is reported again.
    Readable {
        /// The stream.
        token: Token,
    },
    /// The peer has shut down its writing side: no more bytes will come. The stream can still send.
    Eof {
        /// The stream.
        token: Token,
    },
    /// The stream is dead (reset by its peer, a send to a closed peer): what was queued is lost, nothing
    /// more can be sent or received. The caller must still [`close`](crate::Reactor::close) it.
    Failed {
        /// The stream, or the datagram socket that cannot receive any more.
        token: Token,
        /// Why.
        error: io::Error,
    },
    /// The send queue of a stream, which held something, is empty: the kernel has taken all. Bytes that
    /// the kernel took at once from [`send_slices`](crate::Reactor::send_slices) were never queued.
    Sent {
        /// The stream.
        token: Token,
    },
    /// No more bytes are queued for a stream than [`tell_low`](crate::Reactor::tell_low) was asked for.
    Low {
        /// The stream.
        token: Token,
    },
    /// The descriptor of a source that [`close`](crate::Reactor::close) was called for is released. The
    /// last event of a token, and after `close` the only one.
    Closed {
        /// What was closed.
        token: Token,
    },
    /// The descriptor of a source that [`detach`](crate::Reactor::detach) was called for is the caller's. The last
    /// event of a token.
    Detached {
        /// What was detached.
        token: Token,
        /// Its descriptor, and what was under way.
        detached: Detached,
    },
    /// A datagram arrived; it may be empty.
    Datagram {
        /// The socket.
        token: Token,
        /// Who sent it.
        peer: DatagramPeer,
        /// The datagram.
        bytes: &'a [u8],
        /// The datagram was longer than [`Options::receive_buffer`](crate::Options::receive_buffer), and
        /// its end is lost. Cannot happen over UDP with the default, which holds the largest datagram.
        truncated: bool,
    },
    /// A watched descriptor is ready. After an error or a hang-up on it, what it is watched for is
    /// reported as ready, so that the next operation finds the error.
    Ready {
        /// What [`watch`](crate::Reactor::watch) named.
        token: Token,
        /// Ready to read, if that was of interest.
        readable: bool,
        /// Ready to write, if that was of interest.
        writable: bool,
    },
    /// A timer's time has come. The timer is gone.
    Timer {
        /// What [`timer`](crate::Reactor::timer) named.
        id: TimerId,
    },
    /// A signal came.
    Signal {
        /// Which, and from whom.
        info: SignalInfo,
    },
    /// A [`Waker`](crate::Waker) was used, once or more often.
    Woken,
}

/// A listener or stream that is no reactor's any more: see [`Reactor::detach`](crate::Reactor::detach).
#[derive(Debug)]
pub struct Detached {
    /// The descriptor.
    pub socket: OwnedFd,
    /// Of a stream: what was read and not delivered, because it was paused. It comes before what is read next.
    pub unread: Vec<u8>,
    /// Of a stream: what was queued and not taken by the kernel. It comes before what is sent next.
    pub unsent: Vec<u8>,
    /// Of a stream: files that were queued behind that, each with what was queued behind it.
    pub files: Vec<(FileRange, Vec<u8>)>,
}

bitflags! {
    /// What to watch a descriptor for.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Interest: u8 {
        /// Something can be read, or end-of-file, or an error is there to be found by reading.
        const READABLE = 1;
        /// Something can be written, or an error is there to be found by writing.
        const WRITABLE = 2;
    }
}

/// When a watched descriptor is reported again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// In each turn as long as it is ready.
    Level,
    /// When it becomes ready anew. The caller reads until `EAGAIN`, or (an eventfd) need not read at all.
    Edge,
}
