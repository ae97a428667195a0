//! What every target needs beside its framing's options.

use arbitrary::Arbitrary;

/// A stream, how it arrives, and the limit.
#[derive(Arbitrary, Debug)]
pub(crate) struct Input {
    limit: u16,
    sizes: Vec<u8>,
    pub(crate) stream: Vec<u8>,
}

impl Input {
    /// The `package_max_length`: small enough that streams reach it.
    pub(crate) fn max(&self) -> usize {
        usize::from(self.limit % 1024) + 1
    }

    /// The sizes of the reads that the stream arrives in.
    pub(crate) fn sizes(&self) -> Vec<usize> {
        self.sizes.iter().copied().map(usize::from).collect()
    }
}
