//! Shared memory as somebody else writes it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;

static MEMORY: LazyLock<File> = LazyLock::new(|| {
    OpenOptions::new().write(true).open("/proc/self/mem").expect("a process may write its own memory")
});

/// Writes `bytes` at an address of memory that processes share.
///
/// By the kernel's hand, as the store of a peer would come: behind the back of every reference, so that the code under
/// test is compiled for nothing but what it may expect of a peer.
pub fn overwrite(address: usize, bytes: &[u8]) {
    MEMORY.write_all_at(bytes, address as u64).expect("the address is mapped and writable");
}
