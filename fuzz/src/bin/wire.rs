//! Records between reactor and worker: any bytes are decoded, or malformed.
//!
//! An input is the tag (u32), which packet of how many in a batch is looked for (u8 each, or beyond 250 a u64 behind
//! it), and the record.

#![no_main]

use swoole_fuzz::Input;

fn number(input: &mut Input<'_>) -> usize {
    match input.u8() {
        small @ ..=250 => small.into(),
        _ => input.u64() as usize,
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let tag = input.u32();
    let (index, count) = (number(&mut input), number(&mut input));
    swoole_server::fuzz::wire(tag, input.rest(), index, count);
});
