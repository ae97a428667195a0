//! Messages between master and manager: any packets are decoded or passed over, and the next good one arrives.
//!
//! An input is packets, each behind its length (u16, modulo 5000: more than a message has).

#![no_main]

use swoole_fuzz::Input;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let mut packets = Vec::new();
    while !input.is_empty() && packets.len() < 16 {
        let len = input.u16() % 5000;
        packets.push(input.take(len.into()));
    }
    swoole_server::fuzz::control(&packets);
});
