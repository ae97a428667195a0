//! What must hold for whatever a peer says, for the targets of `cargo xtask fuzz` to ask.
//!
//! Compiled with the feature `internals` only: what is asked here is nobody's interface.

mod link;

use std::fmt::Debug;
use std::io::IoSlice;

use swoole_ipc::socketpair::Endpoint;

use crate::control::{self, IN_HAND_MAX, News, Order, Orders};
use crate::wire::{HEADER, PLACE, Reply, Request, packet_of};

pub use link::Link;

/// A record of any bytes, read as each kind that there is, and as the payload of a batch.
pub fn wire(tag: u32, record: &[u8], index: usize, count: usize) {
    let flags = |known: u32| tag & (0xff | known);
    if let Ok((request, payload)) = Request::decode(tag, record) {
        assert_eq!((&request.header()[..], payload), record.split_at(HEADER));
        assert_eq!(request.tag(), flags(crate::wire::FIRST | crate::wire::LAST));
    }
    if let Ok((reply, payload)) = Reply::decode(tag, record) {
        assert_eq!((&reply.header()[..], payload), record.split_at(HEADER));
        assert_eq!(reply.tag(), flags(crate::wire::COMMIT));
    }
    if let Some(packet) = packet_of(record, index, count) {
        // Before the places of all packets, so that none is read as a part of a packet.
        let places = record.as_ptr_range().end as usize - count * PLACE;
        let packet = packet.as_ptr_range();
        assert!(index < count, "packet {index} of {count}");
        assert!(packet.start >= record.as_ptr() && packet.end as usize <= places);
    }
}

/// Any packets on the way from the master to the manager, and from the manager to the master.
pub fn control(packets: &[&[u8]]) {
    let (master, manager) = control::pair().expect("descriptors are left");
    let room = say(&master, packets);
    let mut master = Orders::new(master);
    master.send(&Order::Reload).expect("the manager's end is open");
    let orders = arrived(packets, || control::next_order(&manager));
    assert!(!room || orders.last() == Some(&Order::Reload), "{orders:?}");
    for order in orders {
        // More than there is room for would be cut off.
        if !matches!(&order, Order::Buried { in_hand, .. } if in_hand.len() > IN_HAND_MAX) {
            master.send(&order).expect("the manager's end is open");
            assert_eq!(control::next_order(&manager).expect("a packet of our own"), Some(order));
        }
    }

    let room = say(&manager, packets);
    control::send_news(&manager, &News::StopWanted).expect("the master's end is open");
    let all_news = arrived(packets, || master.next_news());
    assert!(!room || all_news.last() == Some(&News::StopWanted), "{all_news:?}");
    for news in all_news {
        control::send_news(&manager, &news).expect("the master's end is open");
        assert_eq!(master.next_news().expect("a packet of our own"), Some(news));
    }
}

/// Sends packets as they are; whether all of them found room.
fn say(end: &Endpoint, packets: &[&[u8]]) -> bool {
    let mut packets = packets.iter().filter(|packet| !packet.is_empty());
    packets.all(|packet| end.send_packet(&[IoSlice::new(packet)]).is_ok())
}

/// All messages that arrive. What has more bytes than a message can have is an error, and not the end.
fn arrived<T: Debug>(
    packets: &[&[u8]],
    mut next: impl FnMut() -> Result<Option<T>, swoole_ipc::Error>,
) -> Vec<T> {
    let mut messages = Vec::new();
    // Each packet is a message or an error at most, the good one behind them comes, and then there is nothing.
    for _ in 0..packets.len() + 2 {
        match next() {
            Ok(Some(message)) => messages.push(message),
            Ok(None) => return messages,
            Err(error) => assert!(matches!(error, swoole_ipc::Error::Truncated { .. }), "{error}"),
        }
    }
    panic!("more messages than packets: {messages:?}")
}
