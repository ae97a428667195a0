//! What can go wrong.

use std::io;

use rustix::io::Errno;

use crate::Token;

/// Why a call to the reactor failed.
///
/// What happens to a connection later is no error of a call but an event, [`Event::Failed`].
///
/// [`Event::Failed`]: crate::Event::Failed
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The reactor was made before a `fork(2)` and used in the child. Parent and child would take each
    /// other's events.
    #[error("this reactor belongs to the parent process: make a new one after the fork")]
    Forked,
    /// [`turn`](crate::Reactor::turn) was called from inside a handler, or after a handler had panicked.
    #[error("the reactor is in a turn already: return from the handler instead of turning inside it")]
    Reentered,
    /// The token's source was closed or unwatched.
    #[error("{0:?} names nothing: it was closed")]
    NoSuchToken(Token),
    /// The token names another kind of source than the operation works on.
    #[error("{token:?} is not a {expected}")]
    WrongKind {
        /// The token.
        token: Token,
        /// What would have been right.
        expected: &'static str,
    },
    /// The stream has failed, so it sends nothing more: [`Event::Failed`](crate::Event::Failed) says why,
    /// or will in this turn. (A stream whose peer has only ended its side can still send.)
    #[error("the stream {0:?} has ended")]
    Ended(Token),
    /// The kernel has no room for a datagram now. Datagrams are not queued here: drop it, or try again.
    #[error("send a datagram to {peer}: no room in the socket's buffer, or in the receiver's queue")]
    Busy {
        /// Who would have got it.
        peer: String,
    },
    /// io_uring was asked for, and this system does not offer it.
    #[error("io_uring cannot be used here: {reason}; or use the backend epoll (auto does)")]
    Unavailable {
        /// What is missing or forbids it, and the remedy.
        reason: String,
    },
    /// All 2³² slots are taken.
    #[error("the reactor holds as many sources as it can name")]
    Full,
    /// A system call failed.
    #[error("{operation}: {source}")]
    System {
        /// What was to be done, and the call that failed.
        operation: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`.
    pub(crate) fn system<E: Into<io::Error>>(operation: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::System { operation, source: error.into() }
    }

    /// For a datagram that the kernel did not take.
    pub(crate) fn datagram(error: Errno, peer: &crate::DatagramPeer) -> Self {
        match error {
            Errno::AGAIN | Errno::NOBUFS => Self::Busy { peer: peer.to_string() },
            error => Self::System { operation: "send a datagram (sendto)", source: error.into() },
        }
    }
}
