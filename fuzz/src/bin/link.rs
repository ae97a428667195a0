//! A reactor whose worker writes what it likes, into its replies and over both rings, and dies when it likes.
//!
//! An input is the kind of link (u8, even: ring, odd: socketpair), `on_crash` (u8), and steps: which one (u8), and what
//! it needs as below.

#![no_main]

use swoole_fuzz::{Input, overwrite};
use swoole_server::fuzz::Link;

static BYTES: [u8; 20_000] = [b'x'; 20_000];

fn step(link: &mut Link, input: &mut Input<'_>) {
    match input.u8() % 10 {
        // Session, and size of the packet.
        0 => link.offer(input.u8().into(), &BYTES[..usize::from(input.u16()) % BYTES.len()]),
        1 => link.tell(input.u8().into(), input.u8() % 2 == 1),
        // Session, how many, and the size of each.
        2 => {
            let (session, count) = (input.u8().into(), input.u8() % 129);
            link.batch(session, input.take(count.into()));
        }
        3 => link.flush(),
        // Kind, whether it is a commit, session, ack as the distance from the last message, and size.
        4 => {
            let (kind, commit, session) = (input.u8(), input.u8() % 2 == 1, input.u8().into());
            let (ack, size) = (input.u8().cast_signed(), usize::from(input.u16()) % 5000);
            link.reply(kind, commit, session, ack, &BYTES[..size]);
        }
        // Tag, and the record behind its length.
        5 => {
            let (tag, len) = (input.u32(), input.u8());
            link.say(tag, input.take(len.into()));
        }
        6 => _ = link.drain(),
        // Which ring, which word of its pages, and what for.
        7 => {
            let (of_replies, word) = (input.u8() % 2 == 1, usize::from(input.u16()));
            let value = input.near(0);
            if let Some((pages, size)) = link.pages(of_replies) {
                overwrite(pages + word * 8 % size, &value.to_le_bytes());
            }
        }
        // The message in hand, as the distance from the last one.
        8 => link.die(input.u8().cast_signed()),
        _ => link.succeed(),
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let mut link = Link::new(input.u8().is_multiple_of(2), input.u8());
    // Enough for everything to happen several times.
    for _ in 0..200 {
        if input.is_empty() {
            break;
        }
        step(&mut link, &mut input);
    }
    link.succeed();
});
