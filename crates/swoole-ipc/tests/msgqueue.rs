//! Queues with types, keys, strangers and several senders.

#![allow(clippy::unwrap_used, reason = "tests say what must hold by unwrapping it")]

mod support;

use std::num::NonZeroI32;
use std::time::Duration;

use rustix::process::getpid;
use support::{Process, Test};
use swoole_ipc::msgqueue::{self, Queue, Select};
use swoole_ipc::{Doorbell, Error, Receive, Transmit};
use swoole_sys::msg;

const LONG: Option<Duration> = Some(Duration::from_secs(20));
const SHORT: Option<Duration> = Some(Duration::from_millis(20));

fn main() {
    let tests: [(&str, fn()); 7] = [
        ("understands_strangers", understands_strangers),
        ("is_found_by_key", is_found_by_key),
        ("selects_by_type", selects_by_type),
        ("waits_in_the_kernel", waits_in_the_kernel),
        ("senders_do_not_mix", senders_do_not_mix),
        ("removal_ends_the_wait", removal_ends_the_wait),
        ("channel_leaves_nothing_behind", channel_leaves_nothing_behind),
    ];
    support::run(tests.map(|(name, run)| Test { name: name.to_owned(), run: Box::new(run) }).into());
}

/// The layout on the queue is a promise to programs in other languages.
fn understands_strangers() {
    let mut queue = Queue::create(key()).unwrap();
    let stranger = msg::Queue::open(msg::Key::Shared(key()), msg::Open::Existing, 0).unwrap();
    let mut message = Vec::new();

    let header = [&7_u64.to_le_bytes()[..], &3_u32.to_le_bytes(), &0_u32.to_le_bytes()].concat();
    stranger.send(4, &[&header[..], b"bonjour"].concat(), msg::Wait::Never).unwrap();
    assert_eq!(queue.try_recv(Select::Any, &mut message).unwrap(), 4);
    assert_eq!(message, b"bonjour");

    for garbage in [&b""[..], b"short", &[0xFF; 16], &[0xFF; 1000]] {
        stranger.send(1, garbage, msg::Wait::Never).unwrap();
        assert!(matches!(queue.try_recv(Select::Any, &mut message), Err(Error::Corrupt(_))));
    }
    // The second of three pieces went to somebody else.
    for (flags, index) in [(1_u32, 0_u32), (2, 2)] {
        let piece = [&7_u64.to_le_bytes()[..], &flags.to_le_bytes(), &index.to_le_bytes()].concat();
        stranger.send(1, &piece, msg::Wait::Never).unwrap();
    }
    let torn = queue.try_recv(Select::Any, &mut message).unwrap_err();
    assert!(matches!(&torn, Error::Corrupt(corrupt) if corrupt.value == 2), "{torn}");

    queue.send(9, b"ca va?", LONG).unwrap();
    let mut buffer = [0; 100];
    assert_eq!(stranger.receive(0, &mut buffer, msg::Wait::Never).unwrap(), (9, 22));
    assert_eq!((&buffer[8..16], &buffer[16..22]), (&[3, 0, 0, 0, 0, 0, 0, 0][..], &b"ca va?"[..]));
}

/// A key that no other run uses at the same time.
fn key() -> NonZeroI32 {
    NonZeroI32::new(0x5357_0000 | (getpid().as_raw_pid() & 0xFFFF)).unwrap()
}

fn is_found_by_key() {
    assert!(matches!(Queue::open(key()), Err(Error::Os { operation: "msgget", .. })), "nobody has made it");
    let mut queue = Queue::create(key()).unwrap();
    let mut copy = Some(Queue::create(key()).unwrap());
    assert_eq!(copy.as_ref().unwrap().id(), queue.id());
    let by_key = key();
    Process::spawn(|| {
        let mut found = Queue::open(by_key).unwrap();
        found.send(5, b"from a stranger", None).unwrap();
        // Neither a stranger nor a forked copy removes it.
        drop((found, copy.take()));
    })
    .join();
    std::mem::forget(copy);
    let mut message = Vec::new();
    assert_eq!(queue.recv(Select::Any, &mut message, LONG).unwrap(), 5);
    assert_eq!(message, b"from a stranger");
    drop(queue);
    assert!(matches!(Queue::open(key()), Err(Error::Os { .. })), "its owner has removed it");
}

fn selects_by_type() {
    let mut queue = Queue::private("types").unwrap();
    let mut message = Vec::new();
    for mtype in [4, 2, 9, 2] {
        queue.try_send(mtype, &[mtype as u8]).unwrap();
    }
    assert_eq!(queue.try_recv(Select::UpTo(8), &mut message).unwrap(), 2);
    assert_eq!(queue.try_recv(Select::Type(9), &mut message).unwrap(), 9);
    assert_eq!(queue.try_recv(Select::Any, &mut message).unwrap(), 4);
    assert_eq!(message, [4]);
    assert!(matches!(queue.try_recv(Select::Type(9), &mut message), Err(Error::Empty)));
    assert!(matches!(queue.recv(Select::Type(9), &mut message, SHORT), Err(Error::Timeout)));
    assert!(matches!(queue.try_send(0, b""), Err(Error::MessageType { mtype: 0 })));
    assert!(matches!(queue.send(-1, b"", None), Err(Error::MessageType { mtype: -1 })));
    assert!(matches!(queue.try_recv(Select::UpTo(0), &mut message), Err(Error::MessageType { .. })));

    let largest = queue.piece_max();
    queue.try_recv(Select::Any, &mut message).unwrap();
    queue.try_send(1, &vec![8; largest]).unwrap();
    assert!(matches!(queue.try_send(1, &vec![8; largest + 1]), Err(Error::TooLarge { .. })));
    assert!(matches!(queue.send(1, &vec![8; 100 * largest], SHORT), Err(Error::Timeout)));
    queue.recv(Select::Any, &mut message, LONG).unwrap();
    assert_eq!(message.len(), largest);
    assert!(
        matches!(queue.recv(Select::Any, &mut message, SHORT), Err(Error::Timeout)),
        "half a message is none"
    );
}

fn waits_in_the_kernel() {
    let mut queue = Queue::private("waits").unwrap();
    let queue_ref = &mut queue;
    let child = Process::spawn(move || {
        let mut message = Vec::new();
        for number in 0..200_u32 {
            queue_ref.recv(Select::Any, &mut message, None).unwrap();
            assert_eq!(message, vec![number as u8; 3000]);
        }
    });
    for number in 0..200_u32 {
        queue.send(1, &[number as u8; 3000], None).unwrap();
    }
    child.join();
}

fn senders_do_not_mix() {
    const SENDERS: u8 = 3;
    const MESSAGES: usize = 20;
    let mut queue = Queue::private("senders").unwrap();
    let mut senders = Vec::new();
    for sender in 0..SENDERS {
        let queue_ref = &mut queue;
        senders.push(Process::spawn(move || {
            for number in 0..MESSAGES {
                queue_ref.send(1, &vec![sender; 50_000 + number], None).unwrap();
            }
        }));
    }
    let mut counts = [0; SENDERS as usize];
    let mut message = Vec::new();
    for _ in 0..SENDERS as usize * MESSAGES {
        queue.recv(Select::Type(1), &mut message, LONG).unwrap();
        let sender = message[0];
        let count = &mut counts[usize::from(sender)];
        assert_eq!(message.len(), 50_000 + *count);
        assert!(message.iter().all(|&byte| byte == sender));
        *count += 1;
    }
    senders.into_iter().for_each(Process::join);
    assert!(matches!(queue.try_recv(Select::Any, &mut message), Err(Error::Empty)));
}

fn removal_ends_the_wait() {
    let mut queue = Queue::private("removed").unwrap();
    let taken = Doorbell::create("taken").unwrap();
    let (queue_ref, taken_ref) = (&mut queue, &taken);
    taken.arm();
    let child = Process::spawn(move || {
        let mut message = Vec::new();
        queue_ref.recv(Select::Any, &mut message, None).unwrap();
        taken_ref.ring().unwrap();
        assert!(matches!(queue_ref.recv(Select::Any, &mut message, None), Err(Error::PeerGone)));
        assert!(matches!(queue_ref.send(1, b"", None), Err(Error::PeerGone)));
    });
    queue.send(1, b"here we go", LONG).unwrap();
    assert!(taken.wait(LONG).unwrap());
    queue.remove().unwrap();
    queue.remove().unwrap();
    child.join();
}

/// Queues whose last sender was this process (proc(5), /proc/sysvipc/msg: key msqid perms cbytes qnum lspid
/// ...).
fn own_queues() -> usize {
    let table = std::fs::read_to_string("/proc/sysvipc/msg").unwrap();
    let own = getpid().to_string();
    table.lines().skip(1).filter(|line| line.split_whitespace().nth(5) == Some(&own)).count()
}

fn channel_leaves_nothing_behind() {
    let used_here = || {
        let (mut sender, mut receiver) = msgqueue::channel("tidy").unwrap();
        sender.send(b"x", None).unwrap();
        receiver.recv(&mut Vec::new(), None).unwrap();
        (sender, receiver)
    };
    let (sender, receiver) = used_here();
    assert_eq!(own_queues(), 1);
    drop(sender);
    drop(receiver);
    let (sender, receiver) = used_here();
    drop(receiver);
    drop(sender);
    assert_eq!(own_queues(), 0, "either order");

    // The receiver is killed, so only the sender can do it.
    let (mut sender, receiver) = msgqueue::channel("tidy").unwrap();
    sender.send(b"x", None).unwrap();
    let mut receiver = Some(receiver);
    let mut child = Process::spawn(|| {
        let mut receiver = receiver.take().unwrap();
        receiver.recv(&mut Vec::new(), None).unwrap();
        receiver.recv(&mut Vec::new(), None).unwrap();
    });
    drop(receiver);
    assert_eq!(own_queues(), 1, "an unused copy of the receiver removes nothing");
    child.kill();
    drop(sender);
    assert_eq!(own_queues(), 0);
}
