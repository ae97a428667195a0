//! What can go wrong, by name.

/// A string is longer than its column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a string of {len} bytes does not fit into Bytes<{max}>")]
pub struct TooLong {
    /// Its length, bytes.
    pub len: usize,
    /// What the column holds, bytes.
    pub max: usize,
}

/// An operation on a [`Table`](crate::Table) that did not succeed, and has changed nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// All rows are taken. A table does not grow: its memory was laid out before the processes parted.
    #[error("table {table:?} is full: all {rows} rows are taken; create it with more `rows`")]
    Full {
        /// The table's name.
        table: String,
        /// Its capacity.
        rows: usize,
    },
    /// The key is longer than the table's keys may be.
    #[error(
        "a key of {len} bytes is too long for table {table:?}; create it with a `key_max` above {key_max}"
    )]
    Key {
        /// The table's name.
        table: String,
        /// The key's length, bytes.
        len: usize,
        /// Longest key of this table, bytes.
        key_max: usize,
    },
    /// The sum is beyond what the column's type holds.
    #[error(
        "column {column:?} of table {table:?} cannot hold the result: it is beyond the range of its type"
    )]
    Overflow {
        /// The table's name.
        table: String,
        /// The column's name.
        column: &'static str,
    },
    /// A closure that changes a row has tried to change another one, which could wait for itself for ever.
    #[error("table {table:?} is written to from within an update; do it before or after")]
    Nested {
        /// The table's name.
        table: String,
    },
    /// No table can be so large, or so small.
    #[error(
        "a table of {rows} rows with keys of {key_max} bytes is not possible; choose 1 to {} rows, keys of 1 to {} bytes",
        crate::ROWS_MAX,
        crate::KEY_MAX
    )]
    Size {
        /// Rows asked for.
        rows: usize,
        /// Longest key asked for, bytes.
        key_max: usize,
    },
    /// What lies in the memory is not a table of this kind: other rows, other columns, another version of this library.
    #[error("what lies in the memory of table {table:?} is not that table: {what} differ")]
    Other {
        /// The table's name.
        table: String,
        /// What does not agree.
        what: &'static str,
    },
    /// Some process has written into the table what no operation writes. What was done since cannot be relied on.
    #[error("table {table:?} is corrupt: a row number {row} is none of its {rows}; recreate it")]
    Corrupt {
        /// The table's name.
        table: String,
        /// What was found where a row's number should stand.
        row: u64,
        /// Its capacity.
        rows: usize,
    },
    /// There is no memory for it.
    #[error(transparent)]
    #[cfg(not(loom))]
    Memory(#[from] swoole_ipc::Error),
    /// The kernel refused.
    #[error("{operation} for table {table:?} failed: {source}")]
    Os {
        /// The system call.
        operation: &'static str,
        /// The table's name.
        table: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

/// The time given for a lock has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the time given for the lock has passed; process {pid} holds it")]
pub struct Timeout {
    /// Who held it at the end; 0 if nobody did for a moment.
    pub pid: i32,
}
