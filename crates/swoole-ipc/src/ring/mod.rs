//! Shared-memory byte ring between one producer and one consumer.
//!
//! A record is a tag and bytes; it lies in one piece (the memory is mapped twice, back to back), so it is
//! written and read in place. Nothing here makes a system call or waits: a [`Doorbell`](crate::Doorbell)
//! wakes who sleeps. [`channel()`] puts both together for use alone.
//!
//! # Two ways to free space
//!
//! *Consumer-freed*: the consumer calls [`Consumer::release`], the producer [`Producer::refresh`].
//!
//! *Acked*: the consumer never writes into the ring. It says by another way (in a record of the ring of the
//! opposite direction, say) how far it is done, and the owner calls [`Producer::release_to`]. Then
//! publishing that other record is the one commit point: a consumer killed before it has done nothing, one
//! killed after it is done.
//!
//! One ring is used in one of the two ways for its whole life.
//!
//! # Death and succession
//!
//! What a killed producer has not published was never there. A killed consumer leaves everything it has
//! not released or acknowledged. Who has reaped the dead process (so that its stores are final) sets the
//! place to go on and lets a successor in. That also repairs the shared header from what the survivor knows
//! by itself, so a dead process that wrote over it harms no successor:
//!
//! ```
//! use swoole_ipc::Ring;
//!
//! let ring = Ring::create("requests", 64 << 10)?;
//! let mut producer = ring.producer()?;
//! let consumer = ring.consumer()?; // in a worker, usually
//! producer.push(1, &[b"first"])?;
//! producer.push(2, &[b"sec", b"ond"])?;
//! producer.publish();
//!
//! let first = consumer.peek_at(consumer.position())?.expect("published");
//! assert_eq!((first.tag, first.bytes), (1, &b"first"[..]));
//! let acked = first.end; // ... the worker acknowledges the first record, and dies:
//! drop(consumer);
//!
//! producer.release_to(acked)?;
//! producer.resume_at(acked)?;
//! producer.evict_consumer();
//! let mut successor = ring.consumer()?;
//! assert_eq!(successor.next()?.expect("not lost").bytes, b"second");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What a hostile peer can do
//!
//! Change bytes, and refuse to work. Each value read from shared memory is checked against private state
//! and answered with [`Corrupt`](crate::Corrupt); no value leads to an access outside the ring or a panic.

#[cfg(not(loom))]
mod channel;
#[cfg(not(loom))]
mod consumer;
pub(crate) mod cursors;
#[cfg(not(loom))]
mod layout;
#[cfg(not(loom))]
mod producer;
#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(not(loom))]
pub use channel::{Receiver, Sender, channel};
#[cfg(not(loom))]
pub use consumer::{Consumer, Record};
#[cfg(not(loom))]
pub use layout::{LAYOUT_VERSION, Ring};
#[cfg(not(loom))]
pub use producer::Producer;

/// Largest capacity of a ring, bytes (1 GiB: lengths in record headers are 32 bits).
pub const CAPACITY_MAX: usize = 1 << 30;
