//! What comes to one box.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use swoole_ipc::socketpair::Endpoint;

use super::packet::{HEADER, Header, Kind, PIECE};
use super::{MESSAGE_MAX, Peer};
use crate::audience::ORDER_HEAD_MAX;
use crate::datagram::PAYLOAD_MAX;
use crate::measure::Measure;
use crate::session::Session;
use crate::shared::Shared;

/// What has come whole.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parcel {
    /// For a client.
    Send(Session, Vec<u8>),
    /// A client's connection is to be closed.
    Close(Session),
    /// For many clients: an [`Order`](crate::audience::Order).
    Order(Vec<u8>),
    /// It is bound to this user, or to nobody if that is 0.
    Bind(Session, u64),
    /// Its connection is to be treated so.
    Measure(Session, Measure),
    /// To be sent by this listener: [`datagram`](crate::datagram).
    Datagram(Session, Vec<u8>),
    /// For this process.
    Message(Peer, Vec<u8>),
}

/// What has come of a parcel that is not whole yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Part {
    pub(crate) sender: u16,
    pub(crate) generation: u32,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) struct Receiver {
    shared: Arc<Shared>,
    number: u16,
    /// By sender, of which each has one under way.
    parts: HashMap<u16, Part>,
    /// Empty until something comes.
    buffer: Box<[u8]>,
}

impl Receiver {
    /// That of the box with this number.
    pub(crate) fn new(shared: &Arc<Shared>, number: u16) -> Receiver {
        Receiver { shared: Arc::clone(shared), number, parts: HashMap::new(), buffer: Box::default() }
    }

    /// Readable while something has come.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.end().as_fd()
    }

    fn end(&self) -> &Endpoint {
        &self.shared.boxes.ends[usize::from(self.number)].1
    }

    /// The next thing that has come whole; `None` when there is none now.
    pub(crate) fn next(&mut self) -> Option<Parcel> {
        loop {
            let mut buffer = std::mem::take(&mut self.buffer);
            if buffer.is_empty() {
                buffer = vec![0; HEADER + PIECE].into();
            }
            let received = self.end().recv_packet(&mut buffer);
            let parcel = match &received {
                Ok(Some(len)) => self.take(&buffer[..*len]),
                Ok(None) => None,
                Err(error) => {
                    tracing::error!("a parcel from another process: {error}");
                    None
                }
            };
            self.buffer = buffer;
            match received {
                Ok(None) | Err(swoole_ipc::Error::PeerGone) => return None,
                _ if parcel.is_some() => return parcel,
                _ => {}
            }
        }
    }

    /// What is whole with this packet.
    pub(super) fn take(&mut self, packet: &[u8]) -> Option<Parcel> {
        let Some((header, bytes)) = Header::decode(packet) else { return malformed(packet) };
        let Header { kind, first, last, sender, generation, about } = header;
        let config = &self.shared.config;
        let Some(peer) = Peer::of_sender(sender, config) else { return malformed(packet) };
        let max = match kind {
            Kind::Close => return Some(Parcel::Close(Session::from_raw(about))),
            Kind::Bind => match bytes.try_into() {
                Ok(uid) => return Some(Parcel::Bind(Session::from_raw(about), u64::from_le_bytes(uid))),
                Err(_) => return malformed(packet),
            },
            Kind::Measure => match Measure::decode(bytes) {
                Some(measure) => return Some(Parcel::Measure(Session::from_raw(about), measure)),
                None => return malformed(packet),
            },
            Kind::Send => config.socket_buffer_size,
            Kind::Order => config.socket_buffer_size + ORDER_HEAD_MAX,
            Kind::Message => MESSAGE_MAX,
            Kind::Datagram => PAYLOAD_MAX,
        };
        let whole = if first && last {
            bytes.to_vec()
        } else {
            let part = Part { sender, generation, bytes: Vec::new() };
            if first {
                self.parts.insert(sender, part);
            }
            // Without its beginning it was another generation's: of a sender that died, or sent to one.
            let part = self.parts.get_mut(&sender).filter(|part| part.generation == generation)?;
            if part.bytes.len() + bytes.len() > max {
                self.parts.remove(&sender);
                return malformed(packet);
            }
            part.bytes.extend_from_slice(bytes);
            if !last {
                return None;
            }
            self.parts.remove(&sender)?.bytes
        };
        Some(match kind {
            Kind::Message if whole.len() as u64 != about => return malformed(packet),
            Kind::Message => Parcel::Message(peer, whole),
            Kind::Order => Parcel::Order(whole),
            Kind::Datagram => Parcel::Datagram(Session::from_raw(about), whole),
            _ => Parcel::Send(Session::from_raw(about), whole),
        })
    }

    /// How many parcels have come in part, of senders that are alive.
    pub(super) fn begun(&self, is_alive: impl Fn(u16, u32) -> bool) -> usize {
        self.parts.values().filter(|part| is_alive(part.sender, part.generation)).count()
    }

    /// Takes out what has come in part.
    pub(super) fn leave(&mut self) -> Vec<Part> {
        self.parts.drain().map(|(_, part)| part).collect()
    }

    /// Goes on with that.
    pub(super) fn inherit(&mut self, parts: Vec<Part>) {
        self.parts = parts.into_iter().map(|part| (part.sender, part)).collect();
    }
}

fn malformed(packet: &[u8]) -> Option<Parcel> {
    tracing::error!("a packet from another process is malformed ({} bytes)", packet.len());
    None
}
