//! Eof framing, split and check: any eof, any stream, any reads.
//!
//! An input is the length of the eof less 1 (u8, modulo what an eof may have), the eof, and an [`Arrival`].

#![no_main]

#[path = "../../../crates/swoole-protocol/tests/laws/oracle.rs"]
#[allow(dead_code, reason = "each target asks for the law of its own framer")]
mod oracle;

use swoole_fuzz::{Arrival, Input};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let len = usize::from(input.u8()) % swoole_protocol::EOF_MAX + 1;
    let eof = input.take(len);
    if eof.is_empty() {
        return;
    }
    let arrival = Arrival::new(input);
    oracle::eof_split(eof, arrival.max, arrival.stream, &arrival.sizes);
    oracle::eof_check(eof, arrival.max, arrival.stream, &arrival.sizes);
});
