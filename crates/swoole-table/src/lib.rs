//! A hash table, atomics and locks in shared memory, for processes that fork.
#![forbid(unsafe_code)]

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

#[cfg(all(test, not(loom)))]
mod tests;
#[cfg(all(test, loom))]
mod model;
