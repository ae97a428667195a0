//! Eof framing, split and check: any eof, any stream, any reads.

#![no_main]

mod input;
#[path = "../../tests/laws/oracle.rs"]
#[allow(dead_code, reason = "each target asks for the law of its own framer")]
mod oracle;

libfuzzer_sys::fuzz_target!(|given: (u64, u8, input::Input)| {
    let (eof, len, input) = given;
    let eof = &eof.to_le_bytes()[..usize::from(len) % swoole_protocol::EOF_MAX + 1];
    oracle::eof_split(eof, input.max(), &input.stream, &input.sizes());
    oracle::eof_check(eof, input.max(), &input.stream, &input.sizes());
});
