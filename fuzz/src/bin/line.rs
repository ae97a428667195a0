//! Line framing: any stream, any reads.
//!
//! An input is an [`Arrival`].

#![no_main]

#[path = "../../../crates/swoole-protocol/tests/laws/oracle.rs"]
#[allow(dead_code, reason = "each target asks for the law of its own framer")]
mod oracle;

use swoole_fuzz::{Arrival, Input};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Arrival { max, sizes, stream } = Arrival::new(Input::new(bytes));
    oracle::line(max, stream, &sizes);
});
