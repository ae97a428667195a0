//! Files that are sent to clients: opened by the worker with its own rights, sent by the reactor.
//!
//! ```text
//!     Worker::send_file ── descriptor ──> chute of the reactor ────┐
//!                       └─ reply record that names it ──> ring ────┴──> Reactor::send_file
//! ```
//!
//! The descriptor goes ahead, through a SEQPACKET socketpair that each reactor of Process mode has, and is nothing but a
//! descriptor until the record that names it is committed with the other replies of its callback: then the reactor takes it
//! out, and it has its place among them. What a worker has sent there and has not committed when it dies is closed when its
//! link is settled. A name has the worker and a number of its own, and counts for one session only.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::{fmt, io};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::io::Errno;
use swoole_reactor::FileRange;

use crate::config::Mode as ServerMode;
use crate::error::{Error, Result};
use crate::link::{FILE_COST, UNCOMMITTED_MAX};
use crate::session::Session;
use crate::shared::Shared;

/// Bytes of a packet: the session, and the file's name.
const PACKET: usize = 16;

/// Files of one worker that a reactor keeps until they are named, beyond what it takes out unasked. Who has more, in front of
/// one that is named, has named something else: what comes in order is named in order.
const HELD_MAX: usize = 1024;

/// Files of one worker that a reactor takes out before they are named: as many as it may leave uncommitted. So there is
/// always room in the end for who waits for some.
const EAGER_MAX: usize = UNCOMMITTED_MAX / FILE_COST;

/// What a committed record says of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ticket {
    /// The worker in the upper 16 bits, and a number that is its own.
    pub(crate) name: u64,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl Ticket {
    pub(crate) fn name(worker: u16, number: u64) -> u64 {
        u64::from(worker) << 48 | number & ((1 << 48) - 1)
    }

    fn worker(name: u64) -> u16 {
        (name >> 48) as u16
    }
}

/// Why a file is not sent: what was to be sent, to whom, and why not.
fn refused(what: &dyn fmt::Display, session: Session, source: impl Into<io::Error>) -> Error {
    Error::SendFile { what: what.to_string(), session, source: source.into() }
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, reason)
}

/// Opens what is to be sent to this session; `None` if that is nothing.
pub(crate) fn open_path(
    session: Session,
    path: &Path,
    offset: u64,
    length: u64,
) -> Result<Option<FileRange>> {
    let what = path.display();
    // What is no file must not make anybody wait.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = open(path, flags, Mode::empty()).map_err(|error| refused(&what, session, error))?;
    range(file, offset, length).map_err(|error| refused(&what, session, error))
}

/// The same for a file that is open.
pub(crate) fn of_open(
    session: Session,
    file: BorrowedFd<'_>,
    offset: u64,
    length: u64,
) -> Result<Option<FileRange>> {
    let copy = file.try_clone_to_owned();
    copy.and_then(|file| range(file, offset, length))
        .map_err(|error| refused(&"an open file", session, error))
}

/// Bytes of a regular file; `None` if it is something else.
fn size_of_regular(file: &OwnedFd) -> io::Result<Option<u64>> {
    let stat = fstat(file)?;
    let is_regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    Ok(is_regular.then_some(stat.st_size.unsigned_abs()))
}

/// Length 0 is all that follows.
fn range(file: OwnedFd, offset: u64, length: u64) -> io::Result<Option<FileRange>> {
    let size = size_of_regular(&file)?.ok_or_else(|| invalid("it is no regular file".into()))?;
    let rest = size.checked_sub(offset);
    let rest = rest.ok_or_else(|| invalid(format!("offset {offset} lies behind its end ({size} bytes)")))?;
    if length > rest {
        return Err(invalid(format!("{length} bytes from {offset} on are more than it has ({size} bytes)")));
    }
    let length = if length == 0 { rest } else { length };
    Ok((length > 0).then_some(FileRange { file, offset, length }))
}

/// The client is another worker's, in Base mode.
pub(crate) fn elsewhere(session: Session) -> Error {
    let reason = "it is another worker's client, to whom no file can be sent in Base mode";
    refused(&"a file", session, io::Error::new(io::ErrorKind::Unsupported, reason))
}

/// The kernel would send what is in the file, as it is.
pub(crate) fn over_tls(session: Session) -> Error {
    let reason = "its client speaks TLS, which the kernel does not";
    refused(&"a file", session, io::Error::new(io::ErrorKind::Unsupported, reason))
}

/// Puts a file into the chute of a reactor, under a name that nobody has used for one of this worker's since. Waits for room:
/// the reactor takes more out than all workers together may leave uncommitted.
pub(crate) fn put(shared: &Shared, reactor: u16, session: Session, name: u64, file: &OwnedFd) -> Result<()> {
    let mut packet = [0; PACKET];
    packet[..8].copy_from_slice(&session.raw().to_le_bytes());
    packet[8..].copy_from_slice(&name.to_le_bytes());
    let (write, _) = shared.boxes.chute(reactor);
    loop {
        match write.send_packet_with_fd(&packet, file.as_fd()) {
            Ok(()) => return Ok(()),
            Err(swoole_ipc::Error::Full) => {}
            Err(error) => return Err(refused(&"a file", session, io::Error::other(error))),
        }
        let mut fds = [PollFd::new(write, PollFlags::OUT), PollFd::new(&shared.lifeline, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(refused(&"a file", session, error)),
        }
        if !fds[1].revents().is_empty() {
            return Err(refused(&"a file", session, io::Error::other("the server is gone")));
        }
    }
}

/// The end of a reactor's chute that is its own.
pub(crate) struct Chute {
    shared: Arc<Shared>,
    reactor: u16,
    /// Taken out, and not named yet: by name, for which session.
    held: HashMap<u64, (Session, OwnedFd)>,
}

impl Chute {
    /// `None` where a worker is its own reactor.
    pub(crate) fn new(shared: &Arc<Shared>, reactor: u16) -> Option<Chute> {
        (shared.config.mode == ServerMode::Process).then(|| Chute {
            shared: Arc::clone(shared),
            reactor,
            held: HashMap::new(),
        })
    }

    /// The file of this name, if there is one for this session.
    pub(crate) fn claim(&mut self, session: Session, name: u64) -> Option<OwnedFd> {
        while !self.held.contains_key(&name) && self.take() {}
        let file = self.held.remove(&name).filter(|(whose, _)| *whose == session).map(|(_, file)| file);
        self.take_eagerly();
        file
    }

    /// Readable when a file has come.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.shared.boxes.chute(self.reactor).1.as_fd()
    }

    /// Makes room for those who wait for it.
    pub(crate) fn take_eagerly(&mut self) {
        let max = EAGER_MAX * usize::from(self.shared.config.worker_num);
        while self.held.len() < max && self.take() {}
    }

    /// The worker is dead: what it has not committed is closed.
    pub(crate) fn forget(&mut self, worker: u16) {
        while self.take() {}
        self.held.retain(|name, _| Ticket::worker(*name) != worker);
    }

    /// Takes out the next one; whether there was one.
    fn take(&mut self) -> bool {
        let mut packet = [0; PACKET];
        let (_, read) = self.shared.boxes.chute(self.reactor);
        match read.recv_packet_with_fd(&mut packet) {
            Ok(None) => false,
            Ok(Some((PACKET, Some(file)))) => {
                let word = |at: usize| packet[at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
                self.hold(Session::from_raw(word(0)), word(8), file);
                true
            }
            Ok(Some((len, _))) => {
                tracing::error!("a file to be sent is malformed ({len} bytes, or no descriptor)");
                true
            }
            Err(swoole_ipc::Error::Truncated { .. }) => true,
            Err(error) => {
                tracing::error!("take a file to be sent: {error}");
                false
            }
        }
    }

    fn hold(&mut self, session: Session, name: u64, file: OwnedFd) {
        let worker = Ticket::worker(name);
        // A worker sends no other; but what is no file could make the reactor wait.
        if !matches!(size_of_regular(&file), Ok(Some(_))) {
            return tracing::error!("worker {worker} has sent a descriptor that is no regular file");
        }
        let max = HELD_MAX + EAGER_MAX * usize::from(self.shared.config.worker_num);
        let of_worker = |name: &&u64| Ticket::worker(**name) == worker;
        if self.held.len() >= max && self.held.keys().filter(of_worker).count() >= max {
            return tracing::error!("worker {worker} has sent {max} files and named none of them");
        }
        self.held.insert(name, (session, file));
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;
    use crate::config::Config;

    /// And what ends everything when it is closed.
    fn shared() -> (Arc<Shared>, OwnedFd) {
        let mut config = Config::default();
        (config.worker_num, config.reactor_num, config.max_connection) = (2, 2, 8);
        let (shared, _links, hold) = Shared::create_for_test(config).unwrap();
        (Arc::new(shared), hold)
    }

    fn file(text: &str) -> OwnedFd {
        let file = rustix::fs::memfd_create("file", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = std::fs::File::from(file);
        file.write_all(text.as_bytes()).unwrap();
        file.into()
    }

    fn text(file: OwnedFd) -> String {
        let range = range(file, 0, 0).unwrap().unwrap();
        let mut text = String::new();
        std::fs::File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&range.file)))
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        text
    }

    #[test]
    fn a_file_is_had_once_by_its_name_for_its_session() {
        let (shared, _hold) = shared();
        let (mut chute, session) = (Chute::new(&shared, 1).unwrap(), Session::new(1, 1));
        for number in 0..40 {
            for worker in [0, 1] {
                let file = file(&format!("{worker} {number}"));
                put(&shared, 1, session, Ticket::name(worker, number), &file).unwrap();
            }
        }
        for number in [7, 3, 39] {
            let name = Ticket::name(1, number);
            assert_eq!(text(chute.claim(session, name).unwrap()), format!("1 {number}"));
            assert!(chute.claim(session, name).is_none());
        }
        assert!(chute.claim(Session::new(1, 2), Ticket::name(1, 1)).is_none(), "another session's");
        assert!(chute.claim(session, Ticket::name(1, 40)).is_none());
        put(&shared, 1, session, Ticket::name(1, 41), &file("late")).unwrap();
        chute.forget(1);
        assert!(chute.claim(session, Ticket::name(1, 5)).is_none());
        assert!(chute.claim(session, Ticket::name(1, 41)).is_none());
        assert_eq!(text(chute.claim(session, Ticket::name(0, 5)).unwrap()), "0 5");
        assert_eq!(chute.held.len(), 39);
    }

    #[test]
    fn a_worker_that_names_nothing_fills_neither_the_socket_nor_the_reactor() {
        let (shared, _hold) = shared();
        let (mut chute, session, file) = (Chute::new(&shared, 0).unwrap(), Session::new(0, 1), file("x"));
        let max = HELD_MAX + 2 * EAGER_MAX;
        for number in 0..2 * max as u64 {
            if number % 64 == 0 {
                while chute.take() {}
            }
            put(&shared, 0, session, Ticket::name(0, number), &file).unwrap();
        }
        while chute.take() {}
        assert_eq!(chute.held.len(), max);
        put(&shared, 0, session, Ticket::name(1, 1), &file).unwrap();
        assert!(chute.claim(session, Ticket::name(1, 1)).is_some(), "another worker's");
    }

    #[test]
    fn what_is_no_file_is_not_taken() {
        let (shared, _hold) = shared();
        let (mut chute, session) = (Chute::new(&shared, 0).unwrap(), Session::new(0, 1));
        let (pipe, _end) = rustix::pipe::pipe().unwrap();
        put(&shared, 0, session, Ticket::name(0, 1), &pipe).unwrap();
        assert!(chute.claim(session, Ticket::name(0, 1)).is_none());
        assert!(chute.held.is_empty());
    }

    #[test]
    fn who_waits_for_room_gets_it() {
        const FILES: u64 = 2000;
        let (shared, _hold) = shared();
        let (mut chute, session) = (Chute::new(&shared, 0).unwrap(), Session::new(0, 1));
        std::thread::scope(|scope| {
            // More than the socket holds, by far.
            let put_all = || {
                (0..FILES).for_each(|number| {
                    put(&shared, 0, session, Ticket::name(1, number), &file("x")).unwrap();
                });
            };
            let worker = scope.spawn(put_all);
            let mut next = 0;
            while next < FILES
                && !(worker.is_finished()
                    && chute.claim(session, u64::MAX).is_none()
                    && chute.held.is_empty())
            {
                chute.take_eagerly();
                next += u64::from(chute.claim(session, Ticket::name(1, next)).is_some());
                std::thread::yield_now();
            }
            worker.join().unwrap();
        });
        assert!(chute.held.is_empty());
    }

    #[test]
    fn what_cannot_be_sent_is_refused_at_once() {
        let session = Session::new(0, 1);
        let missing = open_path(session, Path::new("/nonexistent"), 0, 0).unwrap_err().to_string();
        assert!(
            missing.contains("send /nonexistent to session") && missing.contains("No such file"),
            "{missing}"
        );
        for (path, reason) in [("/", "no regular file"), ("/dev/null", "no regular file")] {
            let error = open_path(session, Path::new(path), 0, 0).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        for (offset, length, expected) in [
            (0, 0, Ok(Some((0, 10)))),
            (3, 0, Ok(Some((3, 7)))),
            (3, 7, Ok(Some((3, 7)))),
            (10, 0, Ok(None)),
            (11, 0, Err("offset 11 lies behind its end (10 bytes)")),
            (3, 8, Err("8 bytes from 3 on are more than it has (10 bytes)")),
            (u64::MAX, u64::MAX, Err("offset 18446744073709551615 lies behind its end (10 bytes)")),
        ] {
            let range = of_open(session, file("0123456789").as_fd(), offset, length);
            let range = range.map(|range| range.map(|range| (range.offset, range.length)));
            match (range, expected) {
                (Ok(range), Ok(expected)) => assert_eq!(range, expected),
                (Err(error), Err(reason)) => assert!(error.to_string().contains(reason), "{error}"),
                (range, expected) => panic!("{range:?} instead of {expected:?}"),
            }
        }
    }
}
