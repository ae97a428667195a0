//! A ring with its doorbells and a sign of life: a channel for use alone.

use std::time::Duration;

use super::layout::Ring;
use super::{Consumer, Producer};
use crate::channel::{Receive, Transmit};
use crate::error::Error;
use crate::fragment::{Assembler, check_size};
use crate::line::Line;

/// A one-way channel through a ring of `capacity` bytes (see [`Ring::create`]).
///
/// Make it before the fork; then each process drops the half that it does not use, and a half used in one
/// process is not used in another. Each half keeps one end of a socketpair whose other end the other half
/// keeps: when the last process that has it is gone, the kernel hangs up, and that is how a death is noticed.
///
/// [`Transmit::send`] cuts messages larger than a quarter of the ring into pieces.
/// [`Transmit::try_send`] takes what fits into the ring at once, so up to its capacity less 8 bytes.
///
/// ```
/// use swoole_ipc::{Receive, Transmit, ring};
///
/// let (mut sender, mut receiver) = ring::channel("demo", 64 << 10)?;
/// sender.send(b"hello", None)?;
/// let mut message = Vec::new();
/// receiver.recv(&mut message, None)?;
/// assert_eq!(message, b"hello");
/// # Ok::<(), swoole_ipc::Error>(())
/// ```
///
/// # Errors
/// As [`Ring::create`] and [`Doorbell::create`](crate::Doorbell::create).
pub fn channel(name: &str, capacity: usize) -> Result<(Sender, Receiver), Error> {
    let ring = Ring::create(name, capacity)?;
    let (ours, theirs) = Line::pair(name)?;
    let sender = Sender { line: ours, ring: ring.clone(), producer: None };
    let receiver = Receiver { line: theirs, ring, consumer: None, assembler: Assembler::default() };
    Ok((sender, receiver))
}

/// The half of [`channel()`] that sends.
#[derive(Debug)]
pub struct Sender {
    line: Line,
    ring: Ring,
    /// Claimed by the first use, so by the process that sends.
    producer: Option<Producer>,
}

impl Sender {
    fn claim(&mut self) -> Result<(&Line, &mut Producer), Error> {
        let producer = match &mut self.producer {
            Some(producer) => producer,
            unclaimed => unclaimed.insert(self.ring.producer()?),
        };
        Ok((&self.line, producer))
    }
}

fn push(producer: &mut Producer, flags: u32, piece: &[u8]) -> Result<bool, Error> {
    if producer.push(flags, &[piece]).is_err() {
        producer.refresh()?;
        if producer.push(flags, &[piece]).is_err() {
            return Ok(false);
        }
    }
    producer.publish();
    Ok(true)
}

impl Transmit for Sender {
    fn send(&mut self, message: &[u8], timeout: Option<Duration>) -> Result<(), Error> {
        check_size(message)?;
        // So that both sides work at the same time.
        let piece_max = self.ring.capacity() / 4;
        let (line, producer) = self.claim()?;
        line.send(message, piece_max, timeout, |flags, piece| push(producer, flags, piece))
    }

    fn try_send(&mut self, message: &[u8]) -> Result<(), Error> {
        check_size(message)?;
        let piece_max = self.ring.capacity() - 8;
        let (line, producer) = self.claim()?;
        line.try_send(message, piece_max, |flags, piece| push(producer, flags, piece))
    }
}

/// The half of [`channel()`] that receives.
#[derive(Debug)]
pub struct Receiver {
    line: Line,
    ring: Ring,
    /// Claimed by the first use, so by the process that receives.
    consumer: Option<Consumer>,
    assembler: Assembler,
}

impl Receiver {
    fn claim(&mut self) -> Result<(&Line, &mut Consumer, &mut Assembler), Error> {
        let consumer = match &mut self.consumer {
            Some(consumer) => consumer,
            unclaimed => unclaimed.insert(self.ring.consumer()?),
        };
        Ok((&self.line, consumer, &mut self.assembler))
    }
}

fn pull(
    consumer: &mut Consumer,
    assembler: &mut Assembler,
    into: &mut Vec<u8>,
) -> Result<Option<bool>, Error> {
    let Some(record) = consumer.next()? else {
        return Ok(None);
    };
    let complete = assembler.add(record.tag, record.bytes, into)?;
    consumer.release();
    Ok(Some(complete))
}

impl Receive for Receiver {
    fn recv(&mut self, into: &mut Vec<u8>, timeout: Option<Duration>) -> Result<(), Error> {
        let (line, consumer, assembler) = self.claim()?;
        line.recv(timeout, || pull(consumer, assembler, into))
    }

    fn try_recv(&mut self, into: &mut Vec<u8>) -> Result<(), Error> {
        let (line, consumer, assembler) = self.claim()?;
        line.try_recv(|| pull(consumer, assembler, into))
    }
}
