//! A hash table, atomics and locks in shared memory, for programs that fork.
//!
//! | Type | Is | In Swoole |
//! |---|---|---|
//! | [`Table`] | rows of typed columns by keys of bytes, for every process to read and write | `Table` |
//! | [`Atomic32`], [`Atomic64`] | a number that can be waited for | `Atomic`, `Atomic\Long` |
//! | [`Mutex`], [`RwLock`] | locks that say so when their holder has died | `Lock` |
//!
//! Make them, then fork; what one process writes, all see:
//!
//! ```standalone_crate
//! use rustix::process::{WaitOptions, waitpid};
//! use swoole_sys::process::{self, Fork};
//! use swoole_table::{Bytes, Row, Table};
//!
//! #[derive(Row)]
//! struct Online {
//!     uid: u64,
//!     name: Bytes<32>,
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let table: Table<Online> = Table::create(1000)?;
//! match process::fork()? {
//!     Fork::Child => process::run_child(|| {
//!         let amy = Online { uid: 1, name: "Amy".parse().expect("it fits") };
//!         table.set("amy", &amy).map_or(1, |()| 0)
//!     }),
//!     Fork::Parent(child) => {
//!         waitpid(Some(child), WaitOptions::empty())?;
//!         assert_eq!(table.incr("amy", Online::UID, 1)?, 2);
//!         let amy = table.get("amy")?.expect("the child has set it");
//!         assert_eq!((amy.uid, amy.name.to_str()?), (2, "Amy"));
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # What is promised
//!
//! - **Rows are whole.** Each operation on a row is atomic; a reader sees a row as it was at one moment.
//! - **A death costs nothing.** A process can be killed between any two instructions. The operation that it was at has
//!   happened or has not, its lock is taken over within milliseconds by whoever wants it, and no row is lost.
//! - **Readers take no lock.** They wait only while the very bucket is being written, which takes nanoseconds; for a dead
//!   writer as long as it takes to find out.
//! - **The memory is known in advance** ([`Table::memory_size`]), and so is the capacity: as many rows as were asked for,
//!   whatever their keys are, and a clear error beyond.
//!
//! Where it goes beyond Swoole: no string is cut off in silence, a lock is taken over when its holder is dead, not when it
//! is slow, half-written rows are repaired, an iteration meets each row once, and locks of the dead are not stuck.
//!
//! # What is not
//!
//! A process that can write the memory can write anything into it. Numbers read from it are checked before they lead
//! anywhere, so the worst are wrong rows, errors, and locks that are never given back. Processes that share a table must
//! live in one pid namespace. A table does not grow, has no order, and forgets nothing by itself.
//!
//! # Memory and speed
//!
//! A row takes 32 bytes, the room for a key, and its columns: integers, floats and `bool` 8 bytes each, [`Bytes`] 8 and its
//! length rounded up to 8. A lookup in a large table costs one to two fetches from memory, which are nearly all of its time:
//! `cargo xtask bench table`. [`Options::huge_pages`] makes them cheaper.
//!
//! # Testing
//!
//! - `cargo test -p swoole-table`: against a map (property tests), in memory that holds anything, between processes that
//!   are killed at random, and with a death before every single store to shared memory, of an operation and of its repair.
//!   `SWOOLE_TABLE_SECONDS=10` has the tests that run for a time run so long (1).
//! - The whole table in every order of steps that the memory model allows (loom):
//!
//!   ```text
//!   RUSTFLAGS="--cfg loom" cargo test -p swoole-table --release --lib model
//!   ```

#![cfg_attr(
    loom,
    allow(dead_code, unused_imports, reason = "the models run the table's words, the rest is left out")
)]
#![forbid(unsafe_code)]

// What the derive macro expands to begins with this name, also in this crate's own tests.
extern crate self as swoole_table;

#[cfg(not(loom))]
mod atomic;
mod error;
mod key;
mod layout;
mod lock;
#[cfg(not(loom))]
mod mutex;
#[cfg(not(loom))]
mod rwlock;
mod step;
mod store;
mod sync;
#[cfg(not(loom))]
mod table;
mod value;

#[cfg(not(loom))]
pub use atomic::{Atomic32, Atomic64};
pub use error::{Error, Timeout, TooLong};
pub use layout::{KEY_MAX, ROWS_MAX};
#[cfg(not(loom))]
pub use mutex::{Mutex, MutexGuard};
#[cfg(not(loom))]
pub use rwlock::{RwLock, RwLockGuard};
pub use swoole_table_derive::Row;
#[cfg(not(loom))]
pub use table::{Iter, Options, Table};
pub use value::{Bytes, Cells, Column, Number, Row, Value};

#[cfg(all(test, loom))]
mod model;
#[cfg(all(test, not(loom)))]
mod tests;
