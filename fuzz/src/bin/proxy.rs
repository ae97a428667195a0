//! PROXY headers: any bytes, any reads.
//!
//! An input: which versions are taken (u8: bit 0 the first, bit 1 the second), and an [`Arrival`], whose limit means
//! nothing here.

#![no_main]

#[path = "../../../crates/swoole-protocol/tests/laws/oracle.rs"]
#[allow(dead_code, reason = "each target asks for the law of its own framer")]
mod oracle;

use swoole_fuzz::{Arrival, Input};
use swoole_protocol::proxy::Versions;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let taken = input.u8();
    let Arrival { sizes, stream, .. } = Arrival::new(input);
    oracle::proxy(Versions { v1: taken & 1 != 0, v2: taken & 2 != 0 }, stream, &sizes);
});
