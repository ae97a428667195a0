//! System V message queues (sysvipc(7)): messages with a type, kept by the kernel.
//!
//! A queue is found by a key, by any program on the machine, and outlives its users: messages survive a
//! restart of both sides. That is its use; for speed between parent and child take a [ring](crate::ring). It
//! is no descriptor, so no event loop can watch it. [`Queue`] is the queue with its types; [`channel()`] is
//! one sender and one receiver on a private queue.
//!
//! # On the queue
//!
//! A kernel message has at most `kernel.msgmax` bytes (8192 by default), a queue `kernel.msgmnb` (16384). So
//! a message travels as one or more pieces, all of its type, in order, little-endian:
//!
//! ```text
//!     sender: u64 | flags: u32 (1 first piece, 2 last piece) | index: u32 | bytes
//! ```
//!
//! `sender` is unique among the living senders (pid, and the number of the handle in its process), so pieces
//! of several senders do not mix. `index` counts the pieces of a message. A first piece tells the receiver to
//! forget what the same sender had begun. A program in another language that puts a 16-byte header with flags
//! 3 and index 0 before its bytes is understood, as long as they fit into one piece.
//!
//! **Several receivers** may take messages of one type as long as each message fits into one piece
//! ([`Queue::piece_max`]). Larger ones would be torn apart, which is noticed
//! ([`Error::Corrupt`](crate::Error)) but not repaired: give each receiver its own type then.
//!
//! # Waiting
//!
//! The kernel's calls wait without a limit or not at all. Without a timeout a [`Queue`] waits in the kernel.
//! With a timeout it looks again at intervals that grow from one to ten milliseconds, since foreign processes
//! can put messages there without telling. The two halves of a [`channel()`] know each other, and wake each
//! other by [doorbells](crate::Doorbell): they never poll, and each notices the other's death.

mod channel;
mod queue;

pub use channel::{Receiver, Sender, channel};
pub use queue::{Queue, Select};
