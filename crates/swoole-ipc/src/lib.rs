//! Bytes between processes: shared-memory rings, socketpairs and System V message queues.
//!
//! For a program that forks, and wants its processes to talk:
//!
//! | Module         | Carries                                   | Take it for                                      |
//! |----------------|-------------------------------------------|--------------------------------------------------|
//! | [`ring`]       | records in place in shared memory, one way | speed: no system call while both sides are awake |
//! | [`socketpair`] | messages, packets, open descriptors        | control; event loops; whatever has a descriptor  |
//! | [`msgqueue`]   | typed messages that the kernel keeps       | strangers who know a key; surviving a restart    |
//! | [`words`]      | 64-bit numbers that stay where they are    | counters and states that every process may read  |
//!
//! The first three carry whole messages of up to [`MESSAGE_MAX`] bytes by the same two traits, [`Transmit`] and
//! [`Receive`], and keep the same contract ([`channel`]). Make a channel, fork, and let each process drop the
//! half that it does not use:
//!
//! ```standalone_crate
//! use swoole_ipc::{Error, Receive, Transmit, ring};
//! use swoole_sys::process::{self, Fork};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (mut sender, mut receiver) = ring::channel("greetings", 64 << 10)?;
//! match process::fork()? {
//!     Fork::Child => process::run_child(|| {
//!         drop(receiver);
//!         sender.send(b"hello from the child", None).map_or(1, |()| 0)
//!     }),
//!     Fork::Parent(_) => {
//!         drop(sender);
//!         let mut message = Vec::new();
//!         receiver.recv(&mut message, None)?;
//!         assert_eq!(message, b"hello from the child");
//!         assert!(matches!(receiver.recv(&mut message, None), Err(Error::PeerGone)));
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Below that lie the parts, for a program with an event loop and its own idea of messages: [`Ring`] with its
//! [`Producer`] and [`Consumer`], [`Doorbell`] to wake a sleeper, and the packets of
//! [`socketpair::Endpoint`].
//!
//! # A peer may die, and may lie
//!
//! A process can be killed between any two instructions. Nothing half-written is ever seen: a ring publishes
//! by one store, a socket and a queue take a piece whole or not at all. The other side learns of the death
//! and goes on; on a ring, a successor can take the dead one's place.
//!
//! Memory that another process can write may hold anything. Each number read from it is checked against what
//! this process knows by itself, and refused as [`Corrupt`]; the worst that a hostile peer achieves is wrong
//! bytes in its own messages, and silence. It does not outlive the peer: evicting a dead one repairs what it
//! has left ([`ring`], "Death and succession"), and words that it need not write can be kept from it
//! ([`words::Words::protect`]).
//!
//! # Unsafe code
//!
//! Confined to `memory`, which maps pages, and to the two places that turn shared pages into references:
//! [`ring`], and one cast in [`words`]. (The loom models, which only tests see, have cells in place of pages.)
//!
//! # Testing
//!
//! - `cargo test -p swoole-ipc`: the contract on every channel, succession under kills, the ring against a
//!   model and against a peer that writes anything anywhere. A failure under random kills prints its `SEED`;
//!   set that variable to repeat it.
//! - Every order of steps that the memory model allows, for the ring's cursors and the doorbell (loom, a
//!   second):
//!
//!   ```text
//!   RUSTFLAGS="--cfg loom" cargo test -p swoole-ipc --release --lib model
//!   ```
//! - AddressSanitizer over all tests, ThreadSanitizer over two threads at full speed. Both are compiler
//!   features not yet stable, hence the first variable; the standard library is not instrumented, hence the
//!   others:
//!
//!   ```text
//!   RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address" \
//!       cargo test -p swoole-ipc --lib --tests --target x86_64-unknown-linux-gnu
//!   TSAN_OPTIONS="suppressions=$PWD/crates/swoole-ipc/tests/tsan.supp" \
//!   RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer" \
//!       cargo test -p swoole-ipc --test stress --target x86_64-unknown-linux-gnu
//!   ```
//!
//!   Give each its own `CARGO_TARGET_DIR`, or all is built anew each time.

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
pub use memory::Memory;
#[cfg(not(loom))]
pub use ring::{Consumer, Producer, Record, Ring};
