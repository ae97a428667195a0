//! The reactor's end of a link, whose worker does what it likes.

use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;

use swoole_ipc::{Doorbell, Producer};

use crate::audience::Order;
use crate::config::{Config, Ipc, OnCrash};
use crate::crash::CrashPolicy;
use crate::link::{Inbox, Lane, Next, Parcel, ReactorEnd, ReplySink, Sent};
use crate::measure::Measure;
use crate::session::Session;
use crate::wire::{COMMIT, HEADER, Reply, ReplyKind, RequestKind};

/// Small, so that it is soon full and gone around.
const RING_SIZE: usize = 16 << 10;
/// Before the first record of a ring: a page for its header, and the record's own.
const RECORD_HEADER: usize = 8;

/// What came back.
#[derive(Default)]
struct Replies {
    /// Bytes for clients.
    bytes: usize,
    /// Packets that are finished.
    packets: usize,
}

impl ReplySink for Replies {
    fn send(&mut self, _: Session, parts: &[IoSlice<'_>]) {
        self.bytes += parts.iter().map(|part| part.len()).sum::<usize>();
    }

    fn send_owned(&mut self, _: Session, bytes: Vec<u8>) {
        self.bytes += bytes.len();
    }

    fn close(&mut self, _: Session) {}

    fn order(&mut self, order: &[u8]) {
        assert!(Order::decode(order).is_some(), "an order that is none");
    }

    fn bind(&mut self, _: Session, _: u64) {}

    fn measure(&mut self, _: Session, _: Measure) {}

    fn datagram(&mut self, _: Session, _: &[u8]) {}

    fn finished(&mut self, sent: &Sent, count: u32) {
        if sent.last && matches!(sent.kind, RequestKind::Packet | RequestKind::Batch) {
            self.packets += count as usize;
        }
    }
}

/// A reactor's end, and what must be true of it: each packet is finished, lost with a worker or still there, nothing
/// goes out that no worker has committed, and a successor finds a link in order.
pub struct Link {
    lane: Arc<Lane>,
    reactor: ReactorEnd,
    replies: Replies,
    policy: CrashPolicy,
    /// The worker's side of a ring.
    worker: Option<Producer>,
    /// Where the shared pages of the rings begin: requests, replies.
    pages: [usize; 2],
    /// Whether the worker has written there.
    overwritten: [bool; 2],
    /// Packets taken from clients, and those that workers have died on.
    taken: usize,
    lost: usize,
    /// Bytes for clients that workers have said; those up to a commit may go out.
    said: usize,
    committed: usize,
}

impl Link {
    /// Over a ring or a socketpair; `on_crash` is an index.
    pub fn new(ring: bool, on_crash: u8) -> Self {
        let ipc = if ring { Ipc::Ring } else { Ipc::SocketPair };
        let lane = Arc::new(Lane::create(ipc, "fuzz", RING_SIZE).expect("memory for a small link"));
        let bell = || Doorbell::create("fuzz").expect("descriptors are left");
        let mut reactor =
            ReactorEnd::open(Arc::clone(&lane), bell(), bell(), 1 << 20).expect("a ring of our own");
        let on_crash = [OnCrash::Close, OnCrash::Drop, OnCrash::Retry][usize::from(on_crash) % 3];
        let config = Config { on_crash, crash_retries: 2, ..Config::default() };
        let mut worker = producer(&lane);
        let page = |record: Option<&mut [u8]>, before: usize| {
            record.map_or(0, |record| record.as_ptr() as usize - before - rustix::param::page_size())
        };
        let pages = [
            page(reactor.space(1), RECORD_HEADER + HEADER),
            page(worker.as_mut().and_then(|worker| worker.reserve(0)), RECORD_HEADER),
        ];
        Self {
            lane,
            reactor,
            replies: Replies::default(),
            policy: CrashPolicy::new(&config),
            worker,
            pages,
            overwritten: [false; 2],
            taken: 0,
            lost: 0,
            said: 0,
            committed: 0,
        }
    }

    /// A packet that the client can be made to wait with.
    pub fn offer(&mut self, session: u64, packet: &[u8]) {
        let taken = self.reactor.offer(RequestKind::Packet, Session::from_raw(session), packet);
        self.taken += usize::from(taken);
        self.check();
    }

    /// Word of a client that has come or gone.
    pub fn tell(&mut self, session: u64, gone: bool) {
        let kind = if gone { RequestKind::Close } else { RequestKind::Connect };
        self.reactor.enqueue(Parcel::new(kind, Session::from_raw(session), Vec::new()));
        self.check();
    }

    /// Packets of these sizes, received as one.
    pub fn batch(&mut self, session: u64, sizes: &[u8]) {
        let mut end = 0;
        let place = |&size: &u8| {
            end += usize::from(size);
            end - usize::from(size)..end
        };
        let places: Vec<Range<usize>> = sizes.iter().map(place).collect();
        if places.is_empty() || end > self.reactor.record_max() {
            return;
        }
        if let Some(space) = self.reactor.space(end) {
            space[..end].fill(7);
            self.reactor.send_batch(Session::from_raw(session), &places);
            self.taken += places.len();
        }
        self.check();
    }

    /// What was taken becomes visible.
    pub fn flush(&mut self) {
        self.reactor.flush();
        self.check();
    }

    /// The worker says this.
    pub fn say(&mut self, tag: u32, record: &[u8]) {
        let sent = match (&mut self.worker, &*self.lane) {
            (Some(worker), _) => {
                let pushed = worker.refresh().is_ok() && worker.push(tag, &[record]).is_ok();
                worker.publish();
                pushed
            }
            (None, Lane::Socket { worker, .. }) => {
                worker.send_packet(&[IoSlice::new(&tag.to_le_bytes()), IoSlice::new(record)]).is_ok()
            }
            (None, Lane::Ring { .. }) => false,
        };
        if sent && let Ok((reply, payload)) = Reply::decode(tag, record) {
            self.said += if reply.kind == ReplyKind::Send { payload.len() } else { 0 };
            if reply.commit {
                self.committed = self.said;
            }
        }
    }

    /// A reply that is well-formed, though it may be a lie: its kind by an index, the ack by its distance from what is
    /// true at the most.
    pub fn reply(&mut self, kind: u8, commit: bool, session: u64, ack: i8, payload: &[u8]) {
        let kind =
            [ReplyKind::Ack, ReplyKind::Send, ReplyKind::Close, ReplyKind::Bind][usize::from(kind) % 4];
        let ack = self.reactor.sent().wrapping_add_signed(ack.into());
        let reply = Reply { kind, commit, session: Session::from_raw(session), ack };
        self.say(reply.tag(), &[&reply.header(), payload].concat());
    }

    /// Takes what has come; whether that could be true.
    pub fn drain(&mut self) -> bool {
        let result = self.reactor.drain(&mut self.replies);
        self.check();
        result.is_ok()
    }

    /// Where the shared pages of a ring begin, the header before the records, and how many bytes they are. For somebody
    /// who writes there as a worker that went wild.
    pub fn pages(&mut self, of_replies: bool) -> Option<(usize, usize)> {
        let index = usize::from(of_replies);
        let size = rustix::param::page_size() + RING_SIZE;
        (self.pages[index] != 0).then(|| {
            self.overwritten[index] = true;
            (self.pages[index], size)
        })
    }

    /// The worker dies, and has said that it had begun the message that is so far from the last one.
    pub fn die(&mut self, started: i8) {
        let started = self.reactor.sent().wrapping_add_signed(started.into());
        self.worker = None;
        let casualties = self.reactor.settle(started, |_| self.policy, &mut self.replies);
        let packets = casualties.iter().filter_map(|casualty| casualty.packet());
        self.lost += packets.filter(|packet| packet.is_lost()).count();
        self.check();
        // A batch that it has written over is one casualty, however many packets it had.
        if std::mem::take(&mut self.overwritten[0]) {
            self.taken = self.replies.packets + self.lost + self.reactor.packets();
        }
        // What went out of a ring that it has written over is what stood there.
        self.overwritten[1] = false;
        (self.said, self.committed) = (self.replies.bytes, self.replies.bytes);
        self.worker = producer(&self.lane);
    }

    /// The worker dies with nothing in its hands, and its successor, which works as it should, finishes everything.
    pub fn succeed(&mut self) {
        self.die(i8::MIN);
        let mut inbox = Inbox::open(&self.lane, 0).expect("the dead worker's side is free");
        // Each turn finishes a record at the least.
        for _ in 0..100_000 {
            self.flush();
            if self.reactor.in_flight() == 0 {
                break;
            }
            let mut finished = 0;
            while !matches!(inbox.next().expect("what the reactor wrote"), Next::Empty) {
                finished = inbox.finish();
            }
            let reply =
                Reply { kind: ReplyKind::Ack, commit: true, session: Session::from_raw(0), ack: finished };
            self.say(reply.tag() | COMMIT, &reply.header());
            assert!(self.drain(), "nobody lies any more");
        }
        assert_eq!((self.reactor.in_flight(), self.reactor.packets()), (0, 0));
        assert_eq!(self.taken, self.replies.packets + self.lost);
    }

    fn check(&self) {
        let known = self.replies.packets + self.lost + self.reactor.packets();
        assert!(
            known == self.taken || self.overwritten[0] && known < self.taken,
            "{known} of {}",
            self.taken
        );
        assert!(self.overwritten[1] || self.replies.bytes <= self.committed, "what nobody has committed");
    }
}

/// The worker's side for its next process, if it is a ring.
fn producer(lane: &Lane) -> Option<Producer> {
    match lane {
        Lane::Ring { replies, .. } => Some(replies.producer().expect("a dead worker's side was taken back")),
        Lane::Socket { .. } => None,
    }
}
