//! Length framing: any type and offsets, any stream, any reads.

#![no_main]

mod input;
#[path = "../../tests/laws/oracle.rs"]
#[allow(dead_code, reason = "each target asks for the law of its own framer")]
mod oracle;

use swoole_protocol::LengthType;

libfuzzer_sys::fuzz_target!(|given: (u8, u8, u8, input::Input)| {
    let (kind, length_offset, body_offset, input) = given;
    let kind = LengthType::ALL[usize::from(kind) % LengthType::ALL.len()];
    oracle::length(
        kind,
        length_offset.into(),
        body_offset.into(),
        input.max(),
        &input.stream,
        &input.sizes(),
    );
});
