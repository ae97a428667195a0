//! One sender and one receiver on a private queue.

use std::time::Duration;

use swoole_sys::msg::Wait;

use super::queue::{Queue, Select};
use crate::channel::{Receive, Transmit};
use crate::error::Error;
use crate::fragment::check_size;
use crate::line::Line;

const TYPE: i64 = 1;

/// A one-way channel through a private queue.
///
/// Make it before the fork; then each process drops the half that it does not use. The queue is removed when
/// the receiver is dropped, or the sender if the receiver is gone already. If both are killed it stays (`ipcs
/// -q`), as queues do.
///
/// [`Transmit::try_send`] takes messages up to [`Queue::piece_max`], [`Transmit::send`] cuts larger ones into
/// pieces.
///
/// # Errors
/// As [`Queue::private`] and [`Doorbell::create`](crate::Doorbell::create).
pub fn channel(name: &str) -> Result<(Sender, Receiver), Error> {
    let (ours, theirs) = Line::pair(name)?;
    let (sending, receiving) = Queue::private(name)?.split();
    Ok((Sender { line: ours, queue: sending }, Receiver { line: theirs, queue: receiving, user: None }))
}

/// The half of [`channel()`] that sends.
#[derive(Debug)]
pub struct Sender {
    line: Line,
    queue: Queue,
}

impl Transmit for Sender {
    fn send(&mut self, message: &[u8], timeout: Option<Duration>) -> Result<(), Error> {
        check_size(message)?;
        let Sender { line, queue } = self;
        let mut index = 0;
        line.send(message, queue.piece_max(), timeout, |flags, piece| {
            let pushed = queue.push(TYPE, flags, index, piece, Wait::Never)?;
            index += u32::from(pushed);
            Ok(pushed)
        })
    }

    fn try_send(&mut self, message: &[u8]) -> Result<(), Error> {
        check_size(message)?;
        let Sender { line, queue } = self;
        line.try_send(message, queue.piece_max(), |flags, piece| {
            queue.push(TYPE, flags, 0, piece, Wait::Never)
        })
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if self.line.peer_is_gone().unwrap_or(false) {
            let _ = self.queue.remove();
        }
    }
}

/// The half of [`channel()`] that receives.
#[derive(Debug)]
pub struct Receiver {
    line: Line,
    queue: Queue,
    /// The process that has received: without it nobody reads the queue.
    user: Option<u32>,
}

impl Receive for Receiver {
    fn recv(&mut self, into: &mut Vec<u8>, timeout: Option<Duration>) -> Result<(), Error> {
        self.user.get_or_insert_with(std::process::id);
        let Receiver { line, queue, .. } = self;
        line.recv(timeout, || pull(queue, into))
    }

    fn try_recv(&mut self, into: &mut Vec<u8>) -> Result<(), Error> {
        self.user.get_or_insert_with(std::process::id);
        let Receiver { line, queue, .. } = self;
        line.try_recv(|| pull(queue, into))
    }
}

fn pull(queue: &mut Queue, into: &mut Vec<u8>) -> Result<Option<bool>, Error> {
    let pulled = queue.pull(Select::Type(TYPE), into, Wait::Never)?;
    Ok(pulled.map(|(_, complete)| complete))
}

impl Drop for Receiver {
    /// A copy that was only inherited, or not used before a fork, leaves the queue to the one in use.
    fn drop(&mut self) {
        if self.user == Some(std::process::id()) || self.line.peer_is_gone().unwrap_or(false) {
            let _ = self.queue.remove();
        }
    }
}
