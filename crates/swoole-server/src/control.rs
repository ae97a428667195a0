//! What master and manager tell each other: one packet of a socketpair each, beside the data path. A "worker" may be a task
//! worker here: its number is a seat.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use swoole_ipc::socketpair::{self, Endpoint, Kind};
use swoole_supervisor::ExitStatus;

use crate::config::Listen;
use crate::crash::{Fate, PacketInHand};
use crate::error::{Error, Result};
use crate::session::Session;

/// So many are told of one by one: as many as a message has room for. A worker that keeps its own house has one in hand.
pub(crate) const IN_HAND_MAX: usize = 100;
/// Numbers that tell of one.
const IN_HAND_WORDS: usize = 5;
/// Instead of an age.
const AGELESS: u64 = u64::MAX;

/// From the master to the manager.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Order {
    /// `on_start` has returned: the manager's turn.
    Start,
    /// Replace all workers and task workers.
    Reload,
    /// There is one more address: it is asked for as the first one says, and really is the second.
    Address(Box<(Listen, Listen)>),
    /// Replace the task workers.
    ReloadTaskWorkers,
    /// The server is about to stop: ask nobody to leave because it is its turn.
    HoldTurns,
    /// End all workers, kill those that live on after so many milliseconds, and leave.
    Stop { within_ms: u64 },
    /// Every reactor has settled what this worker left. Its successor may come.
    Buried { worker: u16, in_hand: Vec<PacketInHand> },
    /// A worker process that an earlier manager has forked is dead, reaped and settled.
    Ended { worker: u16, generation: u32, status: ExitStatus, in_hand: Vec<PacketInHand> },
}

/// From the manager to the master.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum News {
    /// A worker process exists.
    Forked { worker: u16, generation: u32, pid: i32 },
    /// All of the first generation exist.
    AllForked,
    /// `on_manager_start` has returned; the workers' turn.
    Started,
    /// `on_worker_start` has returned.
    Ready { worker: u16, generation: u32 },
    /// A worker process is dead and reaped.
    Died { worker: u16, generation: u32, status: ExitStatus },
    /// Somebody asked the manager to end the server.
    StopWanted,
    /// Somebody asked the manager to replace all workers.
    ReloadWanted,
    /// A reload of the workers begins.
    Reloading,
    /// It is over, and each worker knows so many addresses.
    Reloaded { known: u16 },
}

/// A message as it travels: what it is, and numbers.
type Packet = (u8, Vec<u64>);

impl Order {
    fn pack(&self) -> Packet {
        match self {
            Order::Start => (1, vec![]),
            Order::Reload => (2, vec![]),
            Order::Stop { within_ms } => (3, vec![*within_ms]),
            Order::HoldTurns => (6, vec![]),
            Order::ReloadTaskWorkers => (7, vec![]),
            Order::Address(both) => (8, pack_texts([&both.0, &both.1].map(Listen::to_string))),
            Order::Buried { worker, in_hand } => {
                let in_hand = in_hand.iter().take(IN_HAND_MAX).flat_map(pack_in_hand);
                (4, [u64::from(*worker)].into_iter().chain(in_hand).collect())
            }
            Order::Ended { worker, generation, status, in_hand } => {
                let head = [u64::from(*worker), u64::from(*generation), pack_status(*status)];
                let in_hand = in_hand.iter().take(IN_HAND_MAX).flat_map(pack_in_hand);
                (5, head.into_iter().chain(in_hand).collect())
            }
        }
    }

    fn unpack((kind, words): Packet) -> Option<Order> {
        Some(match (kind, &words[..]) {
            (1, []) => Order::Start,
            (2, []) => Order::Reload,
            (3, &[within_ms]) => Order::Stop { within_ms },
            (6, []) => Order::HoldTurns,
            (7, []) => Order::ReloadTaskWorkers,
            (8, words) => {
                let [wanted, found] = unpack_texts(words)?;
                Order::Address(Box::new((wanted.parse().ok()?, found.parse().ok()?)))
            }
            (4, [worker, in_hand @ ..]) => {
                Order::Buried { worker: (*worker).try_into().ok()?, in_hand: unpack_all_in_hand(in_hand)? }
            }
            (5, [worker, generation, status, in_hand @ ..]) => Order::Ended {
                worker: (*worker).try_into().ok()?,
                generation: (*generation).try_into().ok()?,
                status: unpack_status(*status)?,
                in_hand: unpack_all_in_hand(in_hand)?,
            },
            _ => return None,
        })
    }
}

/// Each text is its length, and its bytes.
fn pack_texts(texts: [String; 2]) -> Vec<u64> {
    let pack = |text: &String| {
        let (words, rest) = text.as_bytes().as_chunks();
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        [text.len() as u64]
            .into_iter()
            .chain(words.iter().chain([&last]).map(|word| u64::from_le_bytes(*word)))
            .collect()
    };
    texts.iter().flat_map(pack as fn(&String) -> Vec<u64>).collect()
}

fn unpack_texts(mut words: &[u64]) -> Option<[String; 2]> {
    let mut unpack = || {
        let (len, rest) = words.split_first()?;
        let len = usize::try_from(*len).ok()?;
        let (text, rest) = rest.split_at_checked(len.checked_div(8)?.checked_add(1)?)?;
        words = rest;
        let mut bytes: Vec<u8> = text.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.truncate(len);
        String::from_utf8(bytes).ok()
    };
    let texts = [unpack()?, unpack()?];
    words.is_empty().then_some(texts)
}

fn pack_in_hand(packet: &PacketInHand) -> [u64; IN_HAND_WORDS] {
    let PacketInHand { session, size, attempt, age, fate } = *packet;
    let age = age.map_or(AGELESS, |age| age.as_micros() as u64);
    [session.raw(), size, attempt.into(), age, fate as u64]
}

fn unpack_all_in_hand(words: &[u64]) -> Option<Vec<PacketInHand>> {
    let (packets, []) = words.as_chunks() else { return None };
    packets.iter().map(unpack_in_hand).collect()
}

/// What it is in the low byte, its number above, and above that whether there is a core file.
fn pack_status(status: ExitStatus) -> u64 {
    match status {
        ExitStatus::Exited(code) => u64::from(code as u8) << 8,
        ExitStatus::Signaled { signal, core_dumped } => {
            1 | u64::from(signal as u8) << 8 | u64::from(core_dumped) << 16
        }
        ExitStatus::Unknown => 2,
    }
}

fn unpack_status(word: u64) -> Option<ExitStatus> {
    let number = i32::from((word >> 8) as u8);
    Some(match word & 0xff {
        0 => ExitStatus::Exited(number),
        1 => ExitStatus::Signaled { signal: number, core_dumped: word >> 16 != 0 },
        2 => ExitStatus::Unknown,
        _ => return None,
    })
}

fn unpack_in_hand(words: &[u64; IN_HAND_WORDS]) -> Option<PacketInHand> {
    let &[session, size, attempt, age, fate] = words;
    let fates = [Fate::Closed, Fate::Dropped, Fate::Retried, Fate::Poison];
    Some(PacketInHand {
        session: Session::from_raw(session),
        size,
        attempt: attempt.try_into().ok()?,
        age: (age != AGELESS).then(|| Duration::from_micros(age)),
        fate: fates.into_iter().find(|known| *known as u64 == fate)?,
    })
}

impl News {
    fn pack(&self) -> Packet {
        match *self {
            News::Forked { worker, generation, pid } => {
                (1, vec![worker.into(), generation.into(), pid as u64])
            }
            News::AllForked => (2, vec![]),
            News::Started => (3, vec![]),
            News::Ready { worker, generation } => (4, vec![worker.into(), generation.into()]),
            News::Died { worker, generation, status } => {
                (5, vec![worker.into(), generation.into(), pack_status(status)])
            }
            News::StopWanted => (6, vec![]),
            News::Reloading => (7, vec![]),
            News::ReloadWanted => (8, vec![]),
            News::Reloaded { known } => (9, vec![known.into()]),
        }
    }

    fn unpack((kind, words): Packet) -> Option<News> {
        Some(match (kind, &words[..]) {
            (1, &[worker, generation, pid]) => News::Forked {
                worker: worker.try_into().ok()?,
                generation: generation.try_into().ok()?,
                pid: pid.try_into().ok()?,
            },
            (2, []) => News::AllForked,
            (3, []) => News::Started,
            (4, &[worker, generation]) => {
                News::Ready { worker: worker.try_into().ok()?, generation: generation.try_into().ok()? }
            }
            (5, &[worker, generation, status]) => News::Died {
                worker: worker.try_into().ok()?,
                generation: generation.try_into().ok()?,
                status: unpack_status(status)?,
            },
            (6, []) => News::StopWanted,
            (7, []) => News::Reloading,
            (8, []) => News::ReloadWanted,
            (9, &[known]) => News::Reloaded { known: known.try_into().ok()? },
            _ => return None,
        })
    }
}

/// The two ends, made before the fork.
pub(crate) fn pair() -> Result<(Endpoint, Endpoint)> {
    socketpair::pair(Kind::SeqPacket)
        .map_err(|error| Error::setup("make the control channel between master and manager", error))
}

/// The master's end. It never waits for the manager, which may wait for it: what finds no room is kept.
pub(crate) struct Orders {
    end: Endpoint,
    kept: VecDeque<Packet>,
}

impl Orders {
    pub(crate) fn new(end: Endpoint) -> Orders {
        Orders { end, kept: VecDeque::new() }
    }

    pub(crate) fn send(&mut self, order: &Order) -> Result<(), swoole_ipc::Error> {
        self.kept.push_back(order.pack());
        self.flush()
    }

    /// Sends what is kept, as far as there is room.
    pub(crate) fn flush(&mut self) -> Result<(), swoole_ipc::Error> {
        while let Some(packet) = self.kept.front() {
            match send(&self.end, packet) {
                Err(swoole_ipc::Error::Full) => return Ok(()),
                result => {
                    self.kept.pop_front();
                    result?;
                }
            }
        }
        Ok(())
    }

    /// Whether something waits until the descriptor is writable.
    pub(crate) fn is_blocked(&self) -> bool {
        !self.kept.is_empty()
    }

    /// `None` when nothing is there.
    pub(crate) fn next_news(&self) -> Result<Option<News>, swoole_ipc::Error> {
        receive(&self.end, News::unpack)
    }
}

impl AsFd for Orders {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }
}

/// The manager's end. The master always reads, so this does not wait for long.
pub(crate) fn send_news(end: &Endpoint, news: &News) -> Result<(), swoole_ipc::Error> {
    let packet = news.pack();
    loop {
        match send(end, &packet) {
            Err(swoole_ipc::Error::Full) => drop(poll(&mut [PollFd::new(end, PollFlags::OUT)], None)),
            result => return result,
        }
    }
}

/// `None` when nothing is there.
pub(crate) fn next_order(end: &Endpoint) -> Result<Option<Order>, swoole_ipc::Error> {
    receive(end, Order::unpack)
}

fn send(end: &Endpoint, (kind, words): &Packet) -> Result<(), swoole_ipc::Error> {
    let words: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    end.send_packet(&[IoSlice::new(&[*kind]), IoSlice::new(&words)])
}

fn receive<T>(end: &Endpoint, unpack: impl Fn(Packet) -> Option<T>) -> Result<Option<T>, swoole_ipc::Error> {
    // Room for IN_HAND_MAX packets, or for the two texts of an address.
    let mut buffer = vec![0; 64 << 10];
    while let Some(len) = end.recv_packet(&mut buffer)? {
        let Some((&kind, words)) = buffer[..len].split_first() else { continue };
        let (words, rest) = words.as_chunks::<8>();
        let packet = (kind, words.iter().map(|word| u64::from_le_bytes(*word)).collect());
        match unpack(packet).filter(|_| rest.is_empty()) {
            Some(message) => return Ok(Some(message)),
            None => tracing::error!("control channel: malformed message of kind {kind}, {len} bytes"),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(wanted: &str, found: &str) -> Box<(Listen, Listen)> {
        Box::new((wanted.parse().unwrap(), found.parse().unwrap()))
    }

    #[test]
    fn messages_survive_the_trip() {
        let (master, manager) = pair().unwrap();
        let mut master = Orders::new(master);
        let killed = ExitStatus::Signaled { signal: 64, core_dumped: true };
        let (age, fate) = (Some(Duration::from_micros(77)), Fate::Poison);
        let packet = PacketInHand { session: Session::new(1, 3), size: 1 << 40, attempt: 3, age, fate };
        let other = PacketInHand { age: None, fate: Fate::Retried, ..packet };
        let orders = [
            Order::Start,
            Order::Reload,
            Order::Address(address("tcp://[::]:0?name=a", "tcp://[::]:9501?name=a")),
            Order::Address(address(&format!("unix:///{}", "x".repeat(25_000)), "tcp://127.0.0.1:7")),
            Order::HoldTurns,
            Order::Stop { within_ms: 3000 },
            Order::Buried { worker: 1023, in_hand: vec![packet, other] },
            Order::Buried { worker: 0, in_hand: vec![packet; IN_HAND_MAX] },
            Order::Ended { worker: 3, generation: 9, status: killed, in_hand: vec![packet; IN_HAND_MAX] },
            Order::Ended { worker: 3, generation: 9, status: ExitStatus::Exited(255), in_hand: vec![] },
        ];
        let many = Order::Buried { worker: 0, in_hand: vec![packet; 10_000] };
        assert_eq!(many.pack().1.len(), 1 + IN_HAND_WORDS * IN_HAND_MAX);
        for order in &orders {
            master.send(order).unwrap();
        }
        for order in orders {
            assert_eq!(next_order(&manager).unwrap(), Some(order));
        }
        assert_eq!(next_order(&manager).unwrap(), None);
        let all_news = [
            News::Forked { worker: 7, generation: u32::MAX, pid: i32::MAX },
            News::AllForked,
            News::Started,
            News::Ready { worker: 7, generation: 1 },
            News::Died { worker: 7, generation: 1, status: killed },
            News::Died { worker: 7, generation: 1, status: ExitStatus::Unknown },
            News::StopWanted,
            News::Reloading,
            News::ReloadWanted,
            News::Reloaded { known: 1024 },
        ];
        for news in &all_news {
            send_news(&manager, news).unwrap();
        }
        for news in all_news {
            assert_eq!(master.next_news().unwrap(), Some(news));
        }
    }

    #[test]
    fn the_master_keeps_what_finds_no_room() {
        let (master, manager) = pair().unwrap();
        let mut master = Orders::new(master);
        let order = |worker| Order::Buried { worker, in_hand: vec![] };
        let mut sent = 0;
        while !master.is_blocked() || sent < 2000 {
            master.send(&order(sent % 1000)).unwrap();
            sent += 1;
        }
        for worker in 0..sent {
            let received = loop {
                match next_order(&manager).unwrap() {
                    Some(order) => break order,
                    None => master.flush().unwrap(),
                }
            };
            assert_eq!(received, order(worker % 1000));
        }
        assert!(!master.is_blocked());
    }

    #[test]
    fn nonsense_is_passed_over() {
        let (master, manager) = pair().unwrap();
        for packet in [(0, vec![]), (3, vec![]), (4, vec![1, 2]), (4, vec![70_000]), (9, vec![1])] {
            send(&master, &packet).unwrap();
        }
        Orders::new(master).send(&Order::Reload).unwrap();
        assert_eq!(next_order(&manager).unwrap(), Some(Order::Reload));
    }
}
