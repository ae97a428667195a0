//! What both drivers know of a stream: its send queue and how it ends.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::sendfile;
use rustix::io::{Errno, pread};
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recv, send, sendmsg, shutdown, sockopt,
};

/// How [`Reactor::close`](crate::Reactor::close) ends a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// What is queued goes out first, for as long as the peer takes to read it; a caller who does not want
    /// to wait for ever sets a timer and then closes with [`Now`](Self::Now). Bytes that arrive meanwhile are
    /// discarded, also those already in the kernel when the last byte has left: a socket that is closed with
    /// unread input sends a reset, which could destroy what the peer has not read yet.
    AfterSend,
    /// At once. What is queued is lost; what the kernel has taken is still sent.
    Now,
    /// At once and with a reset (`SO_LINGER` of 0 seconds, `socket(7)`): what the kernel has not yet sent is
    /// lost too, the peer gets `ECONNRESET`, and no TIME_WAIT remains. On a Unix socket the same as
    /// [`Now`](Self::Now).
    Reset,
}

/// Bytes of a file that are to be sent. Its own position in the file plays no part.
#[derive(Debug)]
pub struct FileRange {
    /// The file, open for reading. Anything that has no positions cannot be sent.
    pub file: OwnedFd,
    /// Where they begin.
    pub offset: u64,
    /// How many.
    pub length: u64,
}

/// What is sent of a file in one turn at most, so that other streams have theirs.
const FILE_PIECE: u64 = 256 << 10;

/// What is copied at once where the kernel cannot send from the file itself.
const COPY_PIECE: usize = 64 << 10;

/// A file that has become shorter than what is to be sent of it.
pub(crate) const FILE_ENDED: Errno = Errno::NODATA;

/// Parts handed to the kernel in one call at most; `IOV_MAX` is 1024, and few big parts need no more.
pub(crate) const PARTS_MAX: usize = 64;

/// Shorter buffers are copied behind the last one instead of queued as they are: to copy them is cheaper than
/// one more part in a `sendmsg`.
const COPY_MAX: usize = 4096;

/// Bytes that the kernel has not taken yet, in order.
#[derive(Default)]
pub(crate) struct SendQueue {
    parts: VecDeque<Vec<u8>>,
    /// Bytes of the first part that are sent already.
    sent: usize,
    /// Bytes not sent in all parts, those behind files included.
    len: usize,
    /// To be told when so much is left.
    low: Option<u32>,
    /// Files, and what comes after each of them.
    behind: VecDeque<(FileRange, VecDeque<Vec<u8>>)>,
}

impl SendQueue {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0 && self.behind.is_empty()
    }

    /// From now on somebody waits until so much is left (4 GiB count as the most).
    pub(crate) fn await_low(&mut self, bytes: usize) {
        self.low = Some(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// Whether somebody does.
    pub(crate) fn awaits_low(&self) -> bool {
        self.low.is_some()
    }

    /// Whether it is so far, with so many bytes of the stream's `queued`; then nobody waits any more.
    pub(crate) fn is_low(&mut self, queued: usize) -> bool {
        self.low.take_if(|low| queued <= *low as usize).is_some()
    }

    /// Bytes of files that are not sent.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.behind.iter().map(|(range, _)| range.length).sum()
    }

    /// Whether a file comes next.
    pub(crate) fn is_at_file(&self) -> bool {
        self.parts.is_empty() && !self.behind.is_empty()
    }

    /// Where the next bytes go.
    fn tail(&mut self) -> &mut VecDeque<Vec<u8>> {
        self.behind.back_mut().map_or(&mut self.parts, |(_, parts)| parts)
    }

    /// Appends what is to be sent of a file.
    pub(crate) fn push_file(&mut self, range: FileRange) {
        if range.length > 0 {
            self.behind.push_back((range, VecDeque::new()));
        }
    }

    /// Sends a piece of the file that comes next.
    pub(crate) fn send_file(&mut self, socket: BorrowedFd<'_>) -> Result<(), Errno> {
        let Some((range, _)) = self.behind.front_mut() else { return Ok(()) };
        let taken = transfer(socket, range, range.length.min(FILE_PIECE) as usize)?;
        range.offset += taken as u64;
        range.length -= taken as u64;
        if taken == 0 {
            return Err(FILE_ENDED);
        }
        if range.length == 0
            && let Some((_, parts)) = self.behind.pop_front()
        {
            self.parts = parts;
        }
        Ok(())
    }

    /// Appends a buffer, which is copied only when it is short.
    pub(crate) fn push(&mut self, bytes: Vec<u8>) {
        if bytes.len() <= COPY_MAX && !self.tail().is_empty() {
            return self.push_slice(&bytes);
        }
        if !bytes.is_empty() {
            self.len += bytes.len();
            self.tail().push_back(bytes);
        }
    }

    /// Appends a copy.
    pub(crate) fn push_slice(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.push_slice_to(bytes, || Vec::with_capacity(bytes.len()));
    }

    /// Appends a copy, to `room` where the last part has none.
    fn push_slice_to(&mut self, bytes: &[u8], room: impl FnOnce() -> Vec<u8>) {
        self.len += bytes.len();
        let tail = self.tail();
        match tail.back_mut() {
            Some(last) if last.len() + bytes.len() <= last.capacity().max(COPY_MAX) => {
                last.extend_from_slice(bytes);
            }
            _ => {
                let mut room = room();
                room.extend_from_slice(bytes);
                tail.push_back(room);
            }
        }
    }

    /// Appends copies of what follows the first `skip` bytes of `slices`, as one part if the last has no room.
    pub(crate) fn push_slices(&mut self, slices: &[IoSlice<'_>], mut skip: usize, rooms: &mut Rooms) {
        let mut left = slices.iter().map(|slice| slice.len()).sum::<usize>().saturating_sub(skip);
        for slice in slices {
            let skipped = skip.min(slice.len());
            skip -= skipped;
            let bytes = &slice[skipped..];
            if !bytes.is_empty() {
                self.push_slice_to(bytes, || rooms.take(left));
                left -= bytes.len();
            }
        }
    }

    /// The first parts, to be sent.
    pub(crate) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; PARTS_MAX]) -> usize {
        let mut skip = self.sent;
        let mut count = 0;
        for (slice, part) in slices.iter_mut().zip(&self.parts) {
            *slice = IoSlice::new(&part[skip..]);
            skip = 0;
            count += 1;
        }
        count
    }

    /// Forgets the first `count` bytes, which the kernel has taken.
    pub(crate) fn advance(&mut self, count: usize) {
        self.len -= count;
        self.sent += count;
        while let Some(first) = self.parts.front()
            && self.sent >= first.len()
        {
            self.sent -= first.len();
            self.parts.pop_front();
        }
    }

    /// Takes the first parts out, for an operation that owns them until it is over. Nothing of the first
    /// part may have been sent.
    pub(crate) fn take_parts(&mut self, into: &mut Vec<Vec<u8>>) {
        debug_assert_eq!(self.sent, 0);
        let parts = self.parts.drain(..self.parts.len().min(PARTS_MAX));
        into.extend(parts.inspect(|part| self.len -= part.len()));
    }

    /// All that is not sent: as one, until the first file, and each file with what comes after it.
    pub(crate) fn into_rest(self) -> (Vec<u8>, Vec<(FileRange, Vec<u8>)>) {
        let join = |parts: VecDeque<Vec<u8>>| parts.into_iter().flatten().collect::<Vec<u8>>();
        let mut bytes = join(self.parts);
        bytes.drain(..self.sent);
        (bytes, self.behind.into_iter().map(|(range, parts)| (range, join(parts))).collect())
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Memory for the parts of send queues, to be used again: fresh memory of more than a few KiB costs page faults.
#[derive(Default)]
pub(crate) struct Rooms {
    free: Vec<Vec<u8>>,
    /// That they could hold.
    bytes: usize,
}

impl Rooms {
    /// Bytes that are kept at most.
    const BYTES_MAX: usize = 1 << 20;
    /// Rooms that are kept at most.
    const COUNT_MAX: usize = 256;
    /// The most that a single room may have.
    const ROOM_MAX: usize = 48 << 10;

    /// An empty vector that holds `length` bytes without growing.
    fn take(&mut self, length: usize) -> Vec<u8> {
        let mut room = self.free.pop().unwrap_or_default();
        self.bytes -= room.capacity();
        room.reserve(length);
        room
    }

    /// Keeps the memory of a vector, if it is worth it.
    pub(crate) fn put(&mut self, mut room: Vec<u8>) {
        let capacity = room.capacity();
        let is_small = capacity <= Self::ROOM_MAX && self.bytes + capacity <= Self::BYTES_MAX;
        if is_small && self.free.len() < Self::COUNT_MAX {
            room.clear();
            self.bytes += capacity;
            self.free.push(room);
        }
    }
}

/// Parts that are smaller than this on average are copied together: the kernel takes one part for less than many.
const GATHER_MEAN: usize = 1024;

/// Sends what the kernel takes at once; `gathered` is room for small parts.
pub(crate) fn send_now(
    socket: BorrowedFd<'_>,
    parts: &[IoSlice<'_>],
    gathered: &mut Vec<u8>,
) -> Result<usize, Errno> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    if parts.len() > 1 && len / parts.len() <= GATHER_MEAN {
        gathered.clear();
        parts.iter().for_each(|part| gathered.extend_from_slice(part));
        return send_parts(socket, &[IoSlice::new(gathered)]);
    }
    send_parts(socket, parts)
}

/// One system call, the cheapest for the number of parts.
pub(crate) fn send_parts(socket: BorrowedFd<'_>, parts: &[IoSlice<'_>]) -> Result<usize, Errno> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    match parts {
        [part] => send(socket, part, flags),
        parts => sendmsg(socket, parts, &mut SendAncillaryBuffer::default(), flags),
    }
}

/// Sends up to `count` bytes from the beginning of `range`: how many the kernel has taken; 0 at the end of the file. The
/// socket is nonblocking, and SIGPIPE ignored, as Rust programs have it. Whoever encrypts what it sends has to copy here.
fn transfer(socket: BorrowedFd<'_>, range: &FileRange, count: usize) -> Result<usize, Errno> {
    let mut offset = range.offset;
    match sendfile(socket, &range.file, Some(&mut offset), count) {
        // The file system has no pages to send from.
        Err(Errno::INVAL | Errno::NOSYS) => {}
        taken => return taken,
    }
    let mut copy = vec![0; count.min(COPY_PIECE)];
    match pread(&range.file, &mut copy[..], range.offset)? {
        0 => Ok(0),
        count => send_parts(socket, &[IoSlice::new(&copy[..count])]),
    }
}

/// Bytes that [`finish`] discards at most, so that a peer that keeps sending cannot hold the reactor up.
const DISCARD_MAX: usize = 1 << 20;

/// The end of a stream that was closed with [`Close::AfterSend`]: says end-of-file to the peer, and throws
/// away what it has sent unread, so that the close that follows is not a reset.
pub(crate) fn finish(socket: BorrowedFd<'_>) {
    // A peer that is gone already has nothing to be told.
    let _gone = shutdown(socket, Shutdown::Write);
    let mut scratch = [0; 4096];
    let mut discarded = 0;
    while discarded < DISCARD_MAX {
        match recv(socket, &mut scratch, RecvFlags::DONTWAIT) {
            Ok((_, 0)) => break,
            Ok((_, count)) => discarded += count,
            Err(Errno::INTR) => {}
            Err(_) => break,
        }
    }
}

/// Has the close that follows send a reset.
pub(crate) fn reset(socket: BorrowedFd<'_>) {
    // Fails only on what has no connection to reset.
    let _not_tcp = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn contents(queue: &SendQueue) -> Vec<u8> {
        let mut slices = [IoSlice::new(&[]); PARTS_MAX];
        let count = queue.slices(&mut slices);
        slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect()
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push(usize),
        PushSlices(Vec<usize>, usize),
        Advance(usize),
        Take,
    }

    fn step() -> impl Strategy<Value = Step> {
        let length = || prop_oneof![0..10usize, 4000..6000usize];
        prop_oneof![
            length().prop_map(Step::Push),
            (prop::collection::vec(length(), 0..4), any::<usize>()).prop_map(|(s, n)| Step::PushSlices(s, n)),
            any::<usize>().prop_map(Step::Advance),
            Just(Step::Take),
        ]
    }

    proptest! {
        /// The model is one flat vector.
        #[test]
        fn a_queue_is_a_sequence_of_bytes(steps in prop::collection::vec(step(), 0..40)) {
            let mut queue = SendQueue::default();
            let mut model: Vec<u8> = Vec::new();
            let mut next = 0u8;
            let mut rooms = Rooms::default();
            let mut bytes = |length| -> Vec<u8> {
                std::iter::repeat_with(|| { next = next.wrapping_add(1); next }).take(length).collect()
            };
            for step in steps {
                match step {
                    Step::Push(length) => {
                        let bytes = bytes(length);
                        model.extend(&bytes);
                        queue.push(bytes);
                    }
                    Step::PushSlices(lengths, skip) => {
                        let parts: Vec<Vec<u8>> = lengths.into_iter().map(&mut bytes).collect();
                        let slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
                        let flat = parts.concat();
                        let skip = skip % (flat.len() + 1);
                        model.extend(&flat[skip..]);
                        queue.push_slices(&slices, skip, &mut rooms);
                    }
                    Step::Advance(count) => {
                        let count = count % (contents(&queue).len() + 1);
                        model.drain(..count);
                        queue.advance(count);
                    }
                    Step::Take if queue.sent == 0 => {
                        let mut taken = Vec::new();
                        queue.take_parts(&mut taken);
                        let parts = taken.clone();
                        taken.into_iter().for_each(|part| rooms.put(part));
                        let taken = parts.concat();
                        prop_assert_eq!(&taken[..], &model[..taken.len()]);
                        model.drain(..taken.len());
                    }
                    Step::Take => {}
                }
                prop_assert_eq!(queue.len(), model.len());
                prop_assert_eq!(queue.is_empty(), model.is_empty());
                let contents = contents(&queue);
                prop_assert_eq!(&contents[..], &model[..contents.len()]);
                prop_assert!(!contents.is_empty() || model.is_empty());
            }
            prop_assert_eq!(queue.into_rest().0, model);
        }
    }
}
