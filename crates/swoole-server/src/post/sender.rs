//! What one process sends by post.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::packet::{Header, Kind, PIECE};
use super::{MESSAGE_MAX, Peer};
use crate::audience::Order;
use crate::error::{Error, Result};
use crate::measure::Measure;
use crate::session::Session;
use crate::shared::Shared;

/// What waits for room in one box.
#[derive(Debug, Default)]
struct Queue {
    packets: VecDeque<Box<[u8]>>,
    bytes: usize,
    /// The box is among those that [`Sender::room`] watches.
    watched: bool,
}

pub(crate) struct Sender {
    shared: Arc<Shared>,
    own: u16,
    generation: u32,
    /// By box.
    queues: Vec<Queue>,
    /// Something may wait.
    dirty: bool,
    /// Watches the boxes that were full.
    room: OwnedFd,
}

impl Sender {
    /// That of the process which calls itself so.
    pub(crate) fn open(shared: &Arc<Shared>, own: u16, generation: u32) -> Result<Sender> {
        let room = epoll::create(CreateFlags::CLOEXEC)
            .map_err(|error| Error::setup("watch post boxes (epoll)", std::io::Error::from(error)))?;
        Ok(Sender {
            queues: shared.boxes.ends.iter().map(|_| Queue::default()).collect(),
            shared: Arc::clone(shared),
            own,
            generation,
            dirty: false,
            room,
        })
    }

    /// Readable when a box has room again that had none: time to [`pump`](Sender::pump).
    pub(crate) fn room(&self) -> BorrowedFd<'_> {
        self.room.as_fd()
    }

    /// Bytes for a client of this reactor's; they leave when [`pump`](Sender::pump) is called next.
    pub(crate) fn send(&mut self, reactor: u16, session: Session, bytes: &[u8]) -> Result<()> {
        self.queue(Kind::Send, self.shared.config.box_of_reactor(reactor), session.raw(), bytes)
    }

    /// Closes a client of this reactor's.
    pub(crate) fn close(&mut self, reactor: u16, session: Session) -> Result<()> {
        self.queue(Kind::Close, self.shared.config.box_of_reactor(reactor), session.raw(), &[])
    }

    /// An order for one reactor.
    pub(crate) fn order(&mut self, reactor: u16, order: &Order<'_>) -> Result<()> {
        let number = self.shared.config.box_of_reactor(reactor);
        order.encode(usize::MAX).try_for_each(|order| self.queue(Kind::Order, number, 0, &order))
    }

    /// An order for all reactors that have clients, or all but this one: for each of them, or for none if one has no room.
    pub(crate) fn order_all(&mut self, order: &Order<'_>, but: Option<u16>) -> Result<()> {
        let Shared { config, sessions, .. } = &*self.shared;
        // Nobody may be there to read what is for those that have none.
        let is_meant =
            |reactor: &u16| Some(*reactor) != but && sessions.of_reactor(*reactor).next().is_some();
        let boxes: Vec<u16> = (0..config.reactors() as u16)
            .filter(is_meant)
            .map(|reactor| config.box_of_reactor(reactor))
            .collect();
        boxes.iter().try_for_each(|number| self.check_room(*number, order.len()))?;
        for piece in order.encode(usize::MAX) {
            boxes.iter().try_for_each(|number| self.queue(Kind::Order, *number, 0, &piece))?;
        }
        Ok(())
    }

    /// Binds a client of this reactor's to a user, or to nobody if that is 0.
    pub(crate) fn bind(&mut self, reactor: u16, session: Session, uid: u64) -> Result<()> {
        let number = self.shared.config.box_of_reactor(reactor);
        self.queue(Kind::Bind, number, session.raw(), &uid.to_le_bytes())
    }

    /// Does something with a client of this reactor's.
    pub(crate) fn measure(&mut self, reactor: u16, session: Session, measure: Measure) -> Result<()> {
        self.queue(
            Kind::Measure,
            self.shared.config.box_of_reactor(reactor),
            session.raw(),
            &measure.encode(),
        )
    }

    /// A datagram with its address, by this listener.
    pub(crate) fn send_to(&mut self, listener: u16, datagram: &[u8]) -> Result<()> {
        let config = &self.shared.config;
        let number = config.box_of_reactor(config.reactor_of_listener(listener));
        self.queue(Kind::Datagram, number, Session::of_listener(listener).raw(), datagram)
    }

    pub(crate) fn message(&mut self, to: Peer, message: &[u8]) -> Result<()> {
        if message.len() > MESSAGE_MAX {
            return Err(Error::MessageTooLong { to, len: message.len(), max: MESSAGE_MAX });
        }
        self.queue(Kind::Message, to.seat(&self.shared.config)?, message.len() as u64, message)
    }

    /// Whether so many bytes more may wait for this box.
    fn check_room(&self, number: u16, bytes: usize) -> Result<()> {
        let (waiting, max) = (self.queues[usize::from(number)].bytes, self.shared.config.socket_buffer_size);
        if waiting > 0 && waiting + bytes > max {
            return Err(Error::PeerFull { peer: self.shared.config.name_of_box(number), waiting, max });
        }
        Ok(())
    }

    fn queue(&mut self, kind: Kind, number: u16, about: u64, bytes: &[u8]) -> Result<()> {
        self.check_room(number, bytes.len())?;
        let queue = &mut self.queues[usize::from(number)];
        let pieces = bytes.len().div_ceil(PIECE).max(1);
        for piece in 0..pieces {
            let part = &bytes[piece * PIECE..bytes.len().min((piece + 1) * PIECE)];
            let header = Header {
                kind,
                first: piece == 0,
                last: piece + 1 == pieces,
                sender: self.own,
                generation: self.generation,
                about,
            };
            let packet = [&header.encode(), part].concat();
            queue.bytes += packet.len();
            queue.packets.push_back(packet.into());
        }
        self.dirty = true;
        Ok(())
    }

    /// Lets out what waits, as far as there is room.
    #[inline]
    pub(crate) fn pump(&mut self) {
        if self.dirty {
            self.pump_all();
        }
    }

    fn pump_all(&mut self) {
        self.dirty = false;
        let Sender { shared, queues, room, dirty, .. } = self;
        for (queue, (write, _)) in queues.iter_mut().zip(&shared.boxes.ends) {
            let mut is_full = false;
            while let Some(packet) = queue.packets.front().filter(|_| !is_full) {
                match write.send_packet(&[IoSlice::new(packet)]) {
                    Ok(()) => {}
                    Err(swoole_ipc::Error::Full) => {
                        is_full = true;
                        continue;
                    }
                    // Whatever it is, it will not get better by trying it again.
                    Err(error) => tracing::error!("send to another process: {error}"),
                }
                queue.bytes -= packet.len();
                queue.packets.pop_front();
            }
            *dirty |= is_full;
            if queue.watched == is_full {
                continue;
            }
            queue.watched = is_full;
            let watched = if is_full {
                epoll::add(&*room, write, EventData::new_u64(0), EventFlags::OUT)
            } else {
                epoll::delete(&*room, write)
            };
            if let Err(error) = watched {
                tracing::error!("watch a post box: {error}");
            }
        }
    }

    /// Whether something waits for room.
    pub(crate) fn is_blocked(&self) -> bool {
        self.dirty
    }

    /// Lets out all that waits, and waits for room for so long at most. For a process that leaves.
    pub(crate) fn finish(&mut self, within: Duration) {
        let deadline = Instant::now() + within;
        self.pump();
        while self.dirty {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let bytes: usize = self.queues.iter().map(|queue| queue.bytes).sum();
                return tracing::warn!(
                    "{bytes} bytes for other processes or their clients were not taken in time"
                );
            }
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            // An error ends the wait, which goes on until the deadline.
            let _ = poll(&mut [PollFd::new(&self.room, PollFlags::IN)], Some(&timeout));
            self.pump();
        }
    }

    /// Takes out what waits: each packet with its box.
    pub(super) fn leave(&mut self) -> Vec<(u16, Vec<u8>)> {
        self.dirty = false;
        let queues = self.queues.iter_mut().zip(0..);
        let packets = queues.flat_map(|(queue, number)| {
            queue.bytes = 0;
            queue.packets.drain(..).map(move |packet| (number, packet.into_vec()))
        });
        packets.collect()
    }

    /// Puts that before everything.
    pub(super) fn inherit(&mut self, packets: Vec<(u16, Vec<u8>)>) {
        for (number, packet) in packets {
            let Some(queue) = self.queues.get_mut(usize::from(number)) else { continue };
            queue.bytes += packet.len();
            queue.packets.push_back(packet.into());
            self.dirty = true;
        }
    }
}
