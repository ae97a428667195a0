//! Bytes between processes: shared-memory rings, socketpairs and SysV message queues.

#![cfg_attr(loom, allow(dead_code, reason = "the models run the cursors and the flag, the rest is left out"))]

#[cfg(not(loom))]
pub mod channel;
#[cfg(not(loom))]
mod doorbell;
mod error;
mod flag;
#[cfg(not(loom))]
mod fragment;
#[cfg(not(loom))]
mod line;
#[cfg(not(loom))]
mod memory;
#[cfg(all(test, loom))]
mod model;
#[cfg(not(loom))]
pub mod msgqueue;
pub mod ring;
#[cfg(not(loom))]
pub mod socketpair;
mod sync;
#[cfg(not(loom))]
mod wait;
#[cfg(not(loom))]
pub mod words;

#[cfg(not(loom))]
pub use channel::{MESSAGE_MAX, Receive, Transmit};
#[cfg(not(loom))]
pub use doorbell::Doorbell;
pub use error::{Corrupt, Error, Full, Side};
#[cfg(not(loom))]
pub use ring::{Consumer, Producer, Record, Ring};
