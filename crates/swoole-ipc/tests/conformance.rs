//! The contract of `channel`, checked on every channel.

#![allow(clippy::unwrap_used, reason = "tests say what must hold by unwrapping it")]

mod support;

use std::time::Duration;

use fastrand::Rng;
use support::{Process, Test};
use swoole_ipc::socketpair::Kind;
use swoole_ipc::{Error, MESSAGE_MAX, Receive, Transmit, msgqueue, ring, socketpair};

type Pair = (Box<dyn Transmit>, Box<dyn Receive>);
type Make = fn() -> Pair;
type Check = fn(Pair);

/// Longer than any machine needs, shorter than the limit for a test.
const LONG: Option<Duration> = Some(Duration::from_secs(20));
const SHORT: Option<Duration> = Some(Duration::from_millis(20));

fn ring_pair() -> Pair {
    let (sender, receiver) = ring::channel("conformance", 64 << 10).unwrap();
    (Box::new(sender), Box::new(receiver))
}

fn small_ring_pair() -> Pair {
    let (sender, receiver) = ring::channel("conformance", 1).unwrap();
    (Box::new(sender), Box::new(receiver))
}

fn socket_pair(kind: Kind) -> Pair {
    let (sender, receiver) = socketpair::pair(kind).unwrap();
    (Box::new(sender), Box::new(receiver))
}

fn msgqueue_pair() -> Pair {
    let (sender, receiver) = msgqueue::channel("conformance").unwrap();
    (Box::new(sender), Box::new(receiver))
}

fn main() {
    let channels: [(&str, Make); 5] = [
        ("ring", ring_pair),
        ("ring_of_one_page", small_ring_pair),
        ("seqpacket", || socket_pair(Kind::SeqPacket)),
        ("stream", || socket_pair(Kind::Stream)),
        ("msgqueue", msgqueue_pair),
    ];
    let contract: [(&str, Check); 11] = [
        ("sizes_from_child_to_parent", sizes_from_child_to_parent),
        ("sizes_from_parent_to_child", sizes_from_parent_to_child),
        ("order_of_many", order_of_many),
        ("full", full),
        ("empty", empty),
        ("timeout_delivers_nothing", timeout_delivers_nothing),
        ("too_large", too_large),
        ("sender_gone", sender_gone),
        ("receiver_gone", receiver_gone),
        ("receiver_gone_while_sender_waits", receiver_gone_while_sender_waits),
        ("idle_receiver_is_woken", idle_receiver_is_woken),
    ];
    let mut tests = Vec::new();
    for (channel, make) in channels {
        for (name, check) in contract {
            tests.push(Test { name: format!("{channel}::{name}"), run: Box::new(move || check(make())) });
        }
        tests.push(Test {
            name: format!("{channel}::killed_sender"),
            run: Box::new(move || killed_sender(make)),
        });
        tests.push(Test {
            name: format!("{channel}::ping_pong"),
            run: Box::new(move || ping_pong(make(), make())),
        });
    }
    support::run(tests);
}

/// A message that tells its number and has a content nobody else would send.
fn numbered(number: u64, size: usize) -> Vec<u8> {
    let mut message = number.to_le_bytes().to_vec();
    let mut rng = Rng::with_seed(number);
    message.resize_with(8 + size, || rng.u8(..));
    message
}

fn check_numbered(message: &[u8], number: u64) {
    let size = message.len().checked_sub(8).expect("a number at least");
    assert!(message == numbered(number, size), "message {number} of {size} bytes is another one");
}

const SIZES: [usize; 18] = [
    0,
    1,
    7,
    8,
    9,
    1000,
    1016,
    1017,
    4088,
    4096,
    8176,
    8192,
    16 << 10,
    64 << 10,
    (64 << 10) + 1,
    1 << 20,
    MESSAGE_MAX - 1,
    MESSAGE_MAX,
];

fn send_sizes(sender: &mut dyn Transmit) {
    for size in SIZES {
        let mut message = numbered(size as u64, size);
        message.truncate(size);
        sender.send(&message, LONG).unwrap();
    }
}

fn receive_sizes(receiver: &mut dyn Receive) {
    let mut message = b"what was there before".to_vec();
    for size in SIZES {
        receiver.recv(&mut message, LONG).unwrap();
        let mut expected = numbered(size as u64, size);
        expected.truncate(size);
        assert!(message == expected, "size {size}");
    }
    assert!(matches!(receiver.recv(&mut message, LONG), Err(Error::PeerGone)));
}

fn sizes_from_child_to_parent((mut sender, mut receiver): Pair) {
    let sender_ref = &mut sender;
    let child = Process::spawn(move || send_sizes(&mut **sender_ref));
    drop(sender);
    receive_sizes(&mut *receiver);
    child.join();
}

fn sizes_from_parent_to_child((mut sender, receiver): Pair) {
    let mut halves = Some((sender, receiver));
    let child = {
        let halves = &mut halves;
        Process::spawn(move || {
            let (sender, mut receiver) = halves.take().unwrap();
            drop(sender);
            receive_sizes(&mut *receiver);
        })
    };
    let receiver;
    (sender, receiver) = halves.unwrap();
    drop(receiver);
    send_sizes(&mut *sender);
    drop(sender);
    child.join();
}

fn order_of_many((mut sender, mut receiver): Pair) {
    const COUNT: u64 = 20_000;
    let sender_ref = &mut sender;
    let child = Process::spawn(move || {
        let mut rng = Rng::with_seed(1);
        for number in 0..COUNT {
            sender_ref.send(&numbered(number, rng.usize(..500)), LONG).unwrap();
        }
    });
    drop(sender);
    let mut message = Vec::new();
    for number in 0..COUNT {
        receiver.recv(&mut message, LONG).unwrap();
        check_numbered(&message, number);
    }
    child.join();
}

/// Numbers of what was sent before it was full.
fn fill(sender: &mut dyn Transmit) -> u64 {
    for number in 0.. {
        match sender.try_send(&numbered(number, 900)) {
            Ok(()) => {}
            Err(Error::Full) => return number,
            Err(error) => panic!("{error}"),
        }
    }
    unreachable!("the kernel's and our own memory end");
}

fn full((mut sender, mut receiver): Pair) {
    let count = fill(&mut *sender);
    assert!(count >= 3, "{count} messages of 900 bytes");
    assert!(matches!(sender.try_send(&numbered(count, 900)), Err(Error::Full)));
    assert!(matches!(sender.send(&numbered(count, 900), SHORT), Err(Error::Timeout)));

    let mut message = Vec::new();
    for number in 0..count {
        receiver.try_recv(&mut message).unwrap();
        check_numbered(&message, number);
        if number == 0 {
            sender.try_send(&numbered(count, 900)).expect("room for one more, of the size that was read");
        }
    }
    receiver.try_recv(&mut message).unwrap();
    check_numbered(&message, count);
    assert!(matches!(receiver.try_recv(&mut message), Err(Error::Empty)));
}

fn empty((mut sender, mut receiver): Pair) {
    let mut message = Vec::new();
    assert!(matches!(receiver.try_recv(&mut message), Err(Error::Empty)));
    assert!(matches!(receiver.recv(&mut message, SHORT), Err(Error::Timeout)));
    assert!(matches!(receiver.recv(&mut message, Some(Duration::ZERO)), Err(Error::Timeout)));
    sender.try_send(b"now").unwrap();
    receiver.recv(&mut message, Some(Duration::ZERO)).expect("what is there needs no time");
    assert_eq!(message, b"now");
}

fn timeout_delivers_nothing((mut sender, mut receiver): Pair) {
    sender.send(&numbered(0, 10), LONG).unwrap();
    // Some of its pieces find room, the rest never does.
    assert!(matches!(sender.send(&numbered(1, MESSAGE_MAX / 2), SHORT), Err(Error::Timeout)));
    let mut message = Vec::new();
    receiver.recv(&mut message, LONG).unwrap();
    check_numbered(&message, 0);
    assert!(matches!(receiver.recv(&mut message, SHORT), Err(Error::Timeout)));
    sender.send(&numbered(2, 10), LONG).unwrap();
    receiver.recv(&mut message, LONG).unwrap();
    check_numbered(&message, 2);
}

fn too_large((mut sender, _receiver): Pair) {
    let message = vec![0; MESSAGE_MAX + 1];
    assert!(matches!(sender.send(&message, LONG), Err(Error::TooLarge { limit: MESSAGE_MAX, .. })));
    assert!(matches!(sender.try_send(&message), Err(Error::TooLarge { .. })));
    let Err(Error::TooLarge { limit, .. }) = sender.try_send(&message[..MESSAGE_MAX]) else {
        panic!("8 MiB in one piece?");
    };
    sender.try_send(&message[..limit]).expect("the limit named is right");
}

fn sender_gone((mut sender, mut receiver): Pair) {
    let sender_ref = &mut sender;
    Process::spawn(move || {
        for number in 0..3 {
            sender_ref.send(&numbered(number, 500), LONG).unwrap();
        }
    })
    .join();
    drop(sender);
    let mut message = Vec::new();
    for number in 0..3 {
        receiver.recv(&mut message, LONG).unwrap();
        check_numbered(&message, number);
    }
    for _ in 0..2 {
        assert!(matches!(receiver.recv(&mut message, LONG), Err(Error::PeerGone)));
        assert!(matches!(receiver.try_recv(&mut message), Err(Error::PeerGone)));
    }
}

fn receiver_gone((mut sender, receiver): Pair) {
    drop(receiver);
    let gone = (0..1_000_000).find_map(|number| sender.try_send(&numbered(number, 900)).err());
    assert!(matches!(gone, Some(Error::PeerGone)), "{gone:?}");
    assert!(matches!(sender.send(&numbered(0, 900), LONG), Err(Error::PeerGone)));
}

fn receiver_gone_while_sender_waits((mut sender, receiver): Pair) {
    let mut halves = Some((sender, receiver));
    let child = {
        let halves = &mut halves;
        Process::spawn(move || {
            let (sender, mut receiver) = halves.take().unwrap();
            drop(sender);
            receiver.recv(&mut Vec::new(), LONG).unwrap();
        })
    };
    let receiver;
    (sender, receiver) = halves.unwrap();
    drop(receiver);
    let gone = (0..1_000_000).find_map(|number| sender.send(&numbered(number, 900), None).err());
    assert!(matches!(gone, Some(Error::PeerGone)), "{gone:?}");
    child.join();
}

fn idle_receiver_is_woken((mut sender, mut receiver): Pair) {
    // The receiver most probably sleeps already when the child has come this far.
    let sender_ref = &mut sender;
    let child = Process::spawn(move || sender_ref.send(b"wake up", LONG).unwrap());
    let mut message = Vec::new();
    receiver.recv(&mut message, None).unwrap();
    assert_eq!(message, b"wake up");
    child.join();
}

fn ping_pong(there: Pair, back: Pair) {
    const ROUNDS: u64 = 3_000;
    let mut all = Some((there, back));
    let child = {
        let all = &mut all;
        Process::spawn(move || {
            let ((sender, mut receiver), (mut reply, unused)) = all.take().unwrap();
            drop((sender, unused));
            let mut message = Vec::new();
            while receiver.recv(&mut message, LONG).is_ok() {
                reply.send(&message, LONG).unwrap();
            }
        })
    };
    let ((mut sender, unused), (reply, mut receiver)) = all.unwrap();
    drop((unused, reply));
    let mut message = Vec::new();
    for number in 0..ROUNDS {
        sender.send(&numbered(number, 32), LONG).unwrap();
        receiver.recv(&mut message, LONG).unwrap();
        check_numbered(&message, number);
    }
    drop(sender);
    child.join();
}

fn killed_sender(make: Make) {
    let seed = std::env::var("SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    for _ in 0..30 {
        let (mut sender, mut receiver) = make();
        let sizes = rng.fork();
        let sender_ref = &mut sender;
        let mut child = Process::spawn(move || {
            let mut sizes = sizes;
            for number in 0.. {
                let scale = sizes.u32(0..17);
                sender_ref.send(&numbered(number, sizes.usize(..1 << scale)), None).unwrap();
            }
        });
        drop(sender);
        let before = rng.u64(1..200);
        let mut message = Vec::new();
        let mut received = 0;
        loop {
            match receiver.recv(&mut message, LONG) {
                Ok(()) => check_numbered(&message, received),
                Err(Error::PeerGone) => break,
                Err(error) => panic!("{error}"),
            }
            received += 1;
            if received == before {
                child.kill();
            }
        }
        assert!(received >= before);
    }
}
