//! Length framing: any type and offsets, any stream, any reads.
//!
//! An input is the type (u8, an index of [`LengthType::ALL`]), the offsets of the length and of the body (u8 each), and
//! an [`Arrival`].

#![no_main]

#[path = "../../../crates/swoole-protocol/tests/laws/oracle.rs"]
#[allow(dead_code, reason = "each target asks for the law of its own framer")]
mod oracle;

use swoole_fuzz::{Arrival, Input};
use swoole_protocol::LengthType;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let kind = LengthType::ALL[usize::from(input.u8()) % LengthType::ALL.len()];
    let (length_offset, body_offset) = (input.u8().into(), input.u8().into());
    let Arrival { max, sizes, stream } = Arrival::new(input);
    oracle::length(kind, length_offset, body_offset, max, stream, &sizes);
});
