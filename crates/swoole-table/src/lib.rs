//! A hash table, atomics and locks in shared memory, for processes that fork.
#![forbid(unsafe_code)]

extern crate self as swoole_table;

mod error;
mod key;
mod layout;
mod lock;
mod step;
mod store;
mod sync;
#[cfg(not(loom))]
mod table;
mod value;

pub use error::{Error, Timeout, TooLong};
pub use layout::{KEY_MAX, ROWS_MAX};
pub use swoole_table_derive::Row;
#[cfg(not(loom))]
pub use table::{Iter, Options, Table};
pub use value::{Bytes, Cells, Column, Number, Row, Value};

#[cfg(all(test, not(loom)))]
mod tests;
