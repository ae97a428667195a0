//! Raw framing gives every read back, whatever the limit.

#![no_main]

mod input;
#[path = "../../tests/laws/oracle.rs"]
#[allow(dead_code, reason = "each target asks for the law of its own framer")]
mod oracle;

libfuzzer_sys::fuzz_target!(|input: input::Input| {
    oracle::raw(input.max(), &input.stream, &input.sizes());
});
