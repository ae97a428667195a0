//! What all channels for whole messages have in common.
//!
//! A channel is a pair: one half sends, one receives, in two processes or threads. Whatever carries it,
//! this holds, and one test suite checks it on each:
//!
//! - Messages arrive whole, once, in the order sent, and as they were: 0 bytes to [`MESSAGE_MAX`].
//! - A full channel makes [`send`](Transmit::send) wait and [`try_send`](Transmit::try_send) return
//!   [`Error::Full`]; an empty one makes [`recv`](Receive::recv) wait and
//!   [`try_recv`](Receive::try_recv) return [`Error::Empty`].
//! - An operation that fails leaves the channel as it was: the message was not delivered and will not be.
//! - When the sender is gone, the receiver gets what was sent whole before, then [`Error::PeerGone`]. When
//!   the receiver is gone, the sender gets [`Error::PeerGone`] at the latest when the channel is full.
//! - A sender killed at any instruction leaves a prefix of its messages, each of them whole.
//!
//! Both halves are made before the fork; afterwards each process drops the half that it does not use. Only
//! then can the death of one be noticed by the other. A half has descriptors of its own: a child that closes
//! all it does not know must neither use nor drop a half whose descriptors it has closed.

use std::time::Duration;

use crate::error::Error;

/// Largest message of any channel, bytes (8 MiB).
pub const MESSAGE_MAX: usize = 8 << 20;

/// The half of a channel that sends whole messages.
pub trait Transmit {
    /// Sends `message`, waiting for room up to `timeout` (`None`: as long as it takes).
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::PeerGone`], [`Error::TooLarge`]; [`Error::Os`] when the kernel refuses.
    fn send(&mut self, message: &[u8], timeout: Option<Duration>) -> Result<(), Error>;

    /// Sends `message` if that needs no waiting.
    ///
    /// # Errors
    /// [`Error::Full`] when there is no room now; [`Error::TooLarge`] when there can never be enough at once
    /// ([`send`](Transmit::send) may take it in pieces); otherwise as `send`.
    fn try_send(&mut self, message: &[u8]) -> Result<(), Error>;
}

/// The half of a channel that receives whole messages.
pub trait Receive {
    /// Replaces the content of `into` by the next message, waiting for it up to `timeout` (`None`: as long as
    /// it takes).
    ///
    /// # Errors
    /// [`Error::Timeout`]; [`Error::PeerGone`] when nothing is left and nothing can come;
    /// [`Error::Corrupt`]; [`Error::Os`] when the kernel refuses. `into` then holds nothing of use.
    fn recv(&mut self, into: &mut Vec<u8>, timeout: Option<Duration>) -> Result<(), Error>;

    /// Replaces the content of `into` by the next message if it is there.
    ///
    /// # Errors
    /// [`Error::Empty`] when no whole message is there now; otherwise as [`recv`](Receive::recv).
    fn try_recv(&mut self, into: &mut Vec<u8>) -> Result<(), Error>;
}
