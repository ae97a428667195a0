//! Two connected Unix sockets: messages, packets and open descriptors between processes.
//!
//! [`pair`] makes both ends before the fork; each process keeps one. An [`Endpoint`] has two faces; use one
//! of them on a given pair:
//!
//! - *Messages* ([`Transmit`], [`Receive`], [`Endpoint::send_with_fds`]): both directions, any size, with
//!   open descriptors if you like.
//! - *Packets* ([`Endpoint::send_packet`], [`Endpoint::recv_packet`]): exactly one packet of the kernel per
//!   call, never waiting, without a header of ours; for an event loop. Only on [`Kind::SeqPacket`].
//!
//! On the wire a message is one or more pieces, each sent by one call: `size: u32 | flags: u16 | descriptors:
//! u16 | bytes`. On [`Kind::Stream`] a piece is small enough for the kernel to queue it whole or not at all,
//! so a sender that is killed never leaves half a piece.
//!
//! The peer's death is the end of the stream (unix(7)), seen as soon as no process holds the other end.
//!
//! ```
//! use std::io::IoSlice;
//!
//! use swoole_ipc::socketpair::{Kind, pair};
//! use swoole_ipc::{Error, Receive, Transmit};
//!
//! let (mut here, mut there) = pair(Kind::Stream)?;
//! here.send(b"a message", None)?;
//! let mut message = Vec::new();
//! there.recv(&mut message, None)?;
//! assert_eq!(message, b"a message");
//!
//! let (here, there) = pair(Kind::SeqPacket)?;
//! here.send_packet(&[IoSlice::new(b"a pac"), IoSlice::new(b"ket")])?;
//! let mut buffer = [0; 64];
//! assert_eq!(there.recv_packet(&mut buffer)?, Some(8));
//! assert_eq!(there.recv_packet(&mut buffer)?, None, "nothing more is there now");
//! drop(here);
//! assert!(matches!(there.recv_packet(&mut buffer), Err(Error::PeerGone)));
//! # Ok::<(), swoole_ipc::Error>(())
//! ```

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, sendmsg, socketpair, sockopt,
};

use crate::channel::{Receive, Transmit};
use crate::error::{Corrupt, Error};
use crate::fragment::{Assembler, check_size, pieces};
use crate::wait::{Deadline, wait_any};

/// Largest packet that [`Endpoint::send_packet`] promises to take at the default buffer size, bytes: 64 KiB
/// and a header.
pub const PACKET_MAX: usize = PIECE_MAX + 256;

/// Most descriptors in one message.
pub const FDS_MAX: usize = 64;

/// Largest piece of a message on SOCK_SEQPACKET, bytes.
const PIECE_MAX: usize = 64 << 10;
/// Largest piece on SOCK_STREAM: with its header it fits into one buffer of the kernel.
const STREAM_PIECE_MAX: usize = 16 << 10;
const HEADER: usize = 8;
/// What the kernel takes off the send buffer for its own (unix_dgram_sendmsg, unix_stream_sendmsg).
const KERNEL_SHARE: usize = 64;

/// How the kernel carries the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// SOCK_SEQPACKET: the kernel keeps the boundaries.
    SeqPacket,
    /// SOCK_STREAM: boundaries are ours, by a size before each piece.
    Stream,
}

/// Two connected endpoints; each can send and receive.
///
/// # Errors
/// [`Error::Os`] when the kernel has no descriptors or memory left.
pub fn pair(kind: Kind) -> Result<(Endpoint, Endpoint), Error> {
    let (one, other) = socketpair(AddressFamily::UNIX, kind.socket_type(), SocketFlags::CLOEXEC, None)
        .map_err(Error::os("socketpair", kind.name()))?;
    Ok((Endpoint::new(kind, one)?, Endpoint::new(kind, other)?))
}

/// One end of a pair.
///
/// It never switches the socket to non-blocking mode, which both processes would share; each call says itself
/// whether it may wait.
#[derive(Debug)]
pub struct Endpoint {
    socket: OwnedFd,
    kind: Kind,
    /// What the kernel lets us have under way (SO_SNDBUF).
    buffer: usize,
    /// Received, but not yet taken apart: `inbox[taken..filled]`. It has room for the largest piece, once something was received:
    /// many ends only send, or have packets taken from them.
    inbox: Box<[u8]>,
    taken: usize,
    filled: usize,
    descriptors: VecDeque<OwnedFd>,
    assembler: Assembler,
}

impl Endpoint {
    fn new(kind: Kind, socket: OwnedFd) -> Result<Endpoint, Error> {
        let mut endpoint = Endpoint {
            socket,
            kind,
            buffer: 0,
            inbox: Box::default(),
            taken: 0,
            filled: 0,
            descriptors: VecDeque::new(),
            assembler: Assembler::default(),
        };
        endpoint.measure()?;
        Ok(endpoint)
    }

    /// One end of a pair that another process has made, [`pair`] with the same kind, and handed over.
    ///
    /// # Errors
    /// [`Error::NotPackets`] if it is a socket of another kind; [`Error::Os`] if it is none.
    pub fn from_fd(kind: Kind, socket: OwnedFd) -> Result<Endpoint, Error> {
        let found = sockopt::socket_type(&socket).map_err(Error::os("getsockopt(SO_TYPE)", kind.name()))?;
        if found == kind.socket_type() { Endpoint::new(kind, socket) } else { Err(Error::NotPackets) }
    }

    /// Asks the kernel for `bytes` of buffer in each direction (socket(7), SO_SNDBUF; it doubles the number
    /// for its own bookkeeping and limits it to `net.core.wmem_max`). Returns what the direction that leaves
    /// here got, as the kernel counts. What was sent and not received yet is limited by it; smaller buffers
    /// than [`PACKET_MAX`] limit packets, too.
    ///
    /// # Errors
    /// [`Error::Os`] when setsockopt(2) or getsockopt(2) fails.
    pub fn set_buffer_sizes(&mut self, bytes: usize) -> Result<usize, Error> {
        sockopt::set_socket_send_buffer_size(&self.socket, bytes)
            .and_then(|()| sockopt::set_socket_recv_buffer_size(&self.socket, bytes))
            .map_err(Error::os("setsockopt(SO_SNDBUF)", self.kind.name()))?;
        self.measure()
    }

    fn measure(&mut self) -> Result<usize, Error> {
        self.buffer = sockopt::socket_send_buffer_size(&self.socket)
            .map_err(Error::os("getsockopt(SO_SNDBUF)", self.kind.name()))?;
        Ok(self.buffer)
    }

    /// The largest piece that the kernel takes in one call.
    fn piece_max(&self) -> usize {
        match self.kind {
            Kind::SeqPacket => PIECE_MAX.min(self.buffer.saturating_sub(KERNEL_SHARE + HEADER)),
            Kind::Stream => STREAM_PIECE_MAX.min((self.buffer / 2).saturating_sub(KERNEL_SHARE + HEADER)),
        }
        .max(1)
    }

    /// Sends the bytes of `parts` as one packet, without waiting. At least one byte.
    ///
    /// # Errors
    /// [`Error::Full`] when the kernel's buffer has no room now (wait for POLLOUT); [`Error::PeerGone`];
    /// [`Error::TooLarge`] beyond what the buffer can ever hold, which is at least [`PACKET_MAX`] unless it
    /// was made smaller; [`Error::EmptyPacket`]; [`Error::NotPackets`] on a stream.
    pub fn send_packet(&self, parts: &[IoSlice<'_>]) -> Result<(), Error> {
        self.demand_packets()?;
        let size: usize = parts.iter().map(|part| part.len()).sum();
        if size == 0 {
            return Err(Error::EmptyPacket);
        }
        self.transmit(parts, size, &[])
    }

    /// Receives one packet into the front of `buf`, without waiting: its length, or `None` when there is
    /// none.
    ///
    /// # Errors
    /// [`Error::PeerGone`] at the end of the stream; [`Error::Truncated`] when the packet is longer than
    /// `buf` (its end is lost); [`Error::NotPackets`] on a stream; [`Error::Os`].
    pub fn recv_packet(&self, buf: &mut [u8]) -> Result<Option<usize>, Error> {
        self.demand_packets()?;
        loop {
            // TRUNC: tell the true length.
            match recv(&self.socket, &mut *buf, RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
                Ok((_, 0)) => return Err(Error::PeerGone),
                Ok((_, size)) if size > buf.len() => return Err(Error::Truncated { buffer: buf.len() }),
                Ok((_, size)) => return Ok(Some(size)),
                Err(Errno::AGAIN) => return Ok(None),
                // The peer left something of ours unread. Told once, before what it had sent us.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Err(error) => return Err(Error::os("recv", self.kind.name())(error)),
            }
        }
    }

    /// As [`send_packet`](Self::send_packet), with a duplicate of an open descriptor (unix(7), SCM_RIGHTS).
    ///
    /// # Errors
    /// As for that; [`Error::Os`] with ETOOMANYREFS when too many are under way.
    pub fn send_packet_with_fd(&self, packet: &[u8], fd: BorrowedFd<'_>) -> Result<(), Error> {
        self.demand_packets()?;
        if packet.is_empty() {
            return Err(Error::EmptyPacket);
        }
        self.transmit(&[IoSlice::new(packet)], packet.len(), &[fd])
    }

    /// As [`recv_packet`](Self::recv_packet), with the descriptor that came along (close-on-exec), if there was one; further
    /// ones are closed.
    ///
    /// # Errors
    /// As for that.
    pub fn recv_packet_with_fd(&self, buf: &mut [u8]) -> Result<Option<(usize, Option<OwnedFd>)>, Error> {
        self.demand_packets()?;
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            match recvmsg(&self.socket, &mut [IoSliceMut::new(buf)], &mut control, flags) {
                Ok(received) => break received,
                Err(Errno::AGAIN) => return Ok(None),
                // As in recv_packet.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Err(error) => return Err(Error::os("recvmsg", self.kind.name())(error)),
            }
        };
        let descriptors = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        let mut descriptors: Vec<OwnedFd> = descriptors.flatten().collect();
        match received.bytes {
            0 => Err(Error::PeerGone),
            _ if received.flags.contains(ReturnFlags::TRUNC) => Err(Error::Truncated { buffer: buf.len() }),
            size => Ok(Some((size, (!descriptors.is_empty()).then(|| descriptors.swap_remove(0))))),
        }
    }

    /// Sends `message` and duplicates of up to [`FDS_MAX`] open descriptors with it (unix(7), SCM_RIGHTS).
    ///
    /// # Errors
    /// As [`Transmit::send`]; [`Error::TooLarge`] for more descriptors; [`Error::Os`] with ETOOMANYREFS when
    /// too many are under way.
    pub fn send_with_fds(
        &mut self,
        message: &[u8],
        fds: &[BorrowedFd<'_>],
        timeout: Option<Duration>,
    ) -> Result<(), Error> {
        check_size(message)?;
        if fds.len() > FDS_MAX {
            return Err(Error::TooLarge { operation: "send_with_fds", size: fds.len(), limit: FDS_MAX });
        }
        let deadline = Deadline::after(timeout);
        let mut pieces = pieces(message, self.piece_max()).peekable();
        while let Some((flags, piece)) = pieces.next() {
            // With the last piece: a message given up half-way takes no descriptors along.
            let fds = if pieces.peek().is_none() { fds } else { &[] };
            while let Err(error) = self.send_piece(flags, piece, fds) {
                let Error::Full = error else { return Err(error) };
                self.wait(PollFlags::OUT, deadline)?;
            }
        }
        Ok(())
    }

    /// Receives a message as [`Receive::recv`] does, and the descriptors that came with it (close-on-exec).
    ///
    /// # Errors
    /// As [`Receive::recv`].
    pub fn recv_with_fds(
        &mut self,
        into: &mut Vec<u8>,
        timeout: Option<Duration>,
    ) -> Result<Vec<OwnedFd>, Error> {
        let deadline = Deadline::after(timeout);
        loop {
            match self.try_receive(into) {
                Err(Error::Empty) => self.wait(PollFlags::IN, deadline)?,
                result => return result,
            }
        }
    }

    fn try_receive(&mut self, into: &mut Vec<u8>) -> Result<Vec<OwnedFd>, Error> {
        loop {
            if let Some(descriptors) = self.take_piece(into)? {
                return Ok(descriptors);
            }
            self.fill_inbox()?;
        }
    }

    fn send_piece(&self, flags: u32, piece: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let header = Header { size: piece.len() as u32, flags: flags as u16, descriptors: fds.len() as u16 };
        let header = header.to_bytes();
        self.transmit(&[IoSlice::new(&header), IoSlice::new(piece)], HEADER + piece.len(), fds)
    }

    /// One sendmsg(2), whole or not at all.
    fn transmit(&self, parts: &[IoSlice<'_>], size: usize, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Error::TooLarge { operation: "send_with_fds", size: fds.len(), limit: FDS_MAX });
        }
        loop {
            match sendmsg(&self.socket, parts, &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(sent) if sent == size => return Ok(()),
                Ok(sent) => {
                    // Not on any known kernel: it would be half a piece, and the stream past repair.
                    let (value, range) = (sent as u64, size as u64..=size as u64);
                    return Err(Corrupt { what: "bytes taken by sendmsg", value, range }.into());
                }
                Err(Errno::AGAIN) => return Err(Error::Full),
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(Error::PeerGone),
                Err(Errno::MSGSIZE) => {
                    let limit = self.buffer.saturating_sub(KERNEL_SHARE);
                    return Err(Error::TooLarge { operation: "one packet of this pair", size, limit });
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(Error::os("sendmsg", self.kind.name())(error)),
            }
        }
    }

    /// One recvmsg(2) more, with all descriptors that came along.
    fn fill_inbox(&mut self) -> Result<(), Error> {
        if self.inbox.is_empty() {
            self.inbox = vec![0; HEADER + PIECE_MAX].into_boxed_slice();
        }
        self.inbox.copy_within(self.taken..self.filled, 0);
        self.filled -= self.taken;
        self.taken = 0;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut parts = [IoSliceMut::new(&mut self.inbox[self.filled..])];
            match recvmsg(
                &self.socket,
                &mut parts,
                &mut control,
                RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC,
            ) {
                Ok(received) => break received,
                Err(Errno::AGAIN) => return Err(Error::Empty),
                // As in recv_packet.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Err(error) => return Err(Error::os("recvmsg", self.kind.name())(error)),
            }
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.descriptors.extend(fds);
            }
        }
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            let (value, range) = (received.flags.bits().into(), 0..=0);
            return Err(Corrupt { what: "flags of a truncated packet", value, range }.into());
        }
        if received.bytes == 0 {
            return Err(Error::PeerGone);
        }
        self.filled += received.bytes;
        Ok(())
    }

    /// Takes pieces out of the inbox until a message is complete, whose descriptors it returns.
    fn take_piece(&mut self, into: &mut Vec<u8>) -> Result<Option<Vec<OwnedFd>>, Error> {
        while let Some((header, rest)) = self.inbox[self.taken..self.filled].split_first_chunk::<HEADER>() {
            let Header { size, flags, descriptors } = Header::from_bytes(*header);
            let size = size as usize;
            if size > PIECE_MAX {
                let (value, range) = (size as u64, 0..=PIECE_MAX as u64);
                return Err(Corrupt { what: "piece size", value, range }.into());
            }
            let Some(piece) = rest.get(..size) else { break };
            let complete = self.assembler.add(flags.into(), piece, into)?;
            self.taken += HEADER + size;
            let count = usize::from(descriptors);
            if count > self.descriptors.len() {
                let (value, range) = (count as u64, 0..=self.descriptors.len() as u64);
                return Err(Corrupt { what: "count of descriptors", value, range }.into());
            }
            // Those of a piece that completes nothing are closed.
            let descriptors = self.descriptors.drain(..count).collect();
            if complete {
                return Ok(Some(descriptors));
            }
        }
        Ok(None)
    }

    fn wait(&self, events: PollFlags, deadline: Deadline) -> Result<(), Error> {
        let [ready] =
            wait_any([(self.as_fd(), events)], deadline).map_err(Error::os("poll", self.kind.name()))?;
        if ready.is_empty() { Err(Error::Timeout) } else { Ok(()) }
    }

    fn demand_packets(&self) -> Result<(), Error> {
        if self.kind == Kind::SeqPacket { Ok(()) } else { Err(Error::NotPackets) }
    }
}

impl Transmit for Endpoint {
    fn send(&mut self, message: &[u8], timeout: Option<Duration>) -> Result<(), Error> {
        self.send_with_fds(message, &[], timeout)
    }

    fn try_send(&mut self, message: &[u8]) -> Result<(), Error> {
        check_size(message)?;
        let mut pieces = pieces(message, self.piece_max());
        match (pieces.next(), pieces.next()) {
            (Some((flags, piece)), None) => self.send_piece(flags, piece, &[]),
            _ => Err(Error::TooLarge { operation: "try_send", size: message.len(), limit: self.piece_max() }),
        }
    }
}

impl Receive for Endpoint {
    fn recv(&mut self, into: &mut Vec<u8>, timeout: Option<Duration>) -> Result<(), Error> {
        self.recv_with_fds(into, timeout).map(drop)
    }

    fn try_recv(&mut self, into: &mut Vec<u8>) -> Result<(), Error> {
        self.try_receive(into).map(drop)
    }
}

/// For an event loop.
impl AsFd for Endpoint {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Kind {
    fn socket_type(self) -> SocketType {
        match self {
            Kind::SeqPacket => SocketType::SEQPACKET,
            Kind::Stream => SocketType::STREAM,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::SeqPacket => "seqpacket pair",
            Kind::Stream => "stream pair",
        }
    }
}

/// What stands before each piece.
struct Header {
    size: u32,
    flags: u16,
    descriptors: u16,
}

impl Header {
    fn to_bytes(&self) -> [u8; HEADER] {
        let word = u64::from(self.size) | u64::from(self.flags) << 32 | u64::from(self.descriptors) << 48;
        word.to_le_bytes()
    }

    fn from_bytes(bytes: [u8; HEADER]) -> Header {
        let word = u64::from_le_bytes(bytes);
        Header { size: word as u32, flags: (word >> 32) as u16, descriptors: (word >> 48) as u16 }
    }
}
