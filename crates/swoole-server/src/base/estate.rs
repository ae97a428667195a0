//! What a retiring worker leaves to its successor: its clients and its mail, with every byte under way.
//!
//! A SEQPACKET socketpair for each slot, of which every generation has both ends, holds the clients' descriptors until
//! somebody takes them; an unsealed memfd lists what belongs to each. The list goes last, and alone makes the estate
//! valid: what a worker left that died before it had finished is thrown away by its successor.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use swoole_ipc::socketpair::{self, Endpoint, FDS_MAX, Kind};
use swoole_reactor::FileRange;

use crate::desk::Heirloom;
use crate::error::{Error, Result};
use crate::post::{Mail, Part};
use crate::session::{Arrival, Session};

/// What the kernel is asked to hold; with small messages of [`FDS_MAX`] descriptors each, enough for 100,000 clients.
const BUFFER: usize = 512 * 1024;

/// What each message is about.
const CLIENTS: u8 = 1;
const LIST: u8 = 2;
const FILES: u8 = 3;

const ENDED: u8 = 1;
const CLOSING: u8 = 2;
const GUEST: u8 = 4;

pub(super) struct Estate {
    giver: RefCell<Endpoint>,
    taker: RefCell<Endpoint>,
}

impl Estate {
    pub(super) fn create() -> Result<Estate> {
        let create = || {
            let (mut giver, mut taker) = socketpair::pair(Kind::SeqPacket)?;
            giver.set_buffer_sizes(BUFFER)?;
            taker.set_buffer_sizes(BUFFER)?;
            Ok(Estate { giver: RefCell::new(giver), taker: RefCell::new(taker) })
        };
        create()
            .map_err(|error: swoole_ipc::Error| Error::setup("make a worker's estate (a socketpair)", error))
    }

    pub(super) fn keep(&self) -> Vec<RawFd> {
        [&self.giver, &self.taker].map(|end| end.borrow().as_fd().as_raw_fd()).into()
    }

    /// Leaves these clients and this mail to the successor. Yields the clients for whom there was no room.
    pub(super) fn leave(&self, heirlooms: Vec<Heirloom>, mail: &Mail) -> Result<Vec<Heirloom>> {
        let failed = |error: swoole_ipc::Error| Error::setup("leave the clients to the next worker", error);
        let mut giver = self.giver.borrow_mut();
        let (mut left, mut rest) = (heirlooms, Vec::new());
        if let Err(error) = give_files(&mut giver, &left) {
            tracing::warn!("clients that a file is being sent to are not left to the next worker: {error}");
            (rest, left) = left.into_iter().partition(|heirloom| !heirloom.files.is_empty());
        }
        for begin in (0..left.len()).step_by(FDS_MAX) {
            let batch = &left[begin..left.len().min(begin + FDS_MAX)];
            let sockets: Vec<_> = batch.iter().map(|heirloom| heirloom.socket.as_fd()).collect();
            match giver.send_with_fds(&[CLIENTS], &sockets, Some(Duration::ZERO)) {
                Ok(()) => {}
                // The list comes behind it, so the last batch that went is given up for it.
                Err(error) => {
                    tracing::warn!("of {} clients {begin} are left to the next worker: {error}", left.len());
                    rest.extend(left.split_off(begin));
                    break;
                }
            }
        }
        let list = write(&left, mail)
            .map_err(|error| Error::setup("list the clients for the next worker", error))?;
        giver.send_with_fds(&[LIST], &[list.as_fd()], Some(Duration::ZERO)).map_err(failed)?;
        Ok(rest)
    }

    /// Takes what was left, if it is whole.
    pub(super) fn take(&self) -> Result<(Vec<Heirloom>, Mail)> {
        let mut taker = self.taker.borrow_mut();
        let (mut sockets, mut files, mut message) = (Vec::new(), Vec::new(), Vec::new());
        let (mut heirlooms, mut mail) = (Vec::new(), Mail::default());
        loop {
            let mut came = match taker.recv_with_fds(&mut message, Some(Duration::ZERO)) {
                Ok(came) => came,
                Err(swoole_ipc::Error::Empty | swoole_ipc::Error::Timeout) => {
                    return Ok((heirlooms, mail));
                }
                Err(error) => return Err(Error::setup("take over the last worker's clients", error)),
            };
            match (&message[..], came.pop()) {
                ([CLIENTS], Some(last)) => sockets.extend(came.into_iter().chain([last])),
                ([FILES], Some(last)) => files.extend(came.into_iter().chain([last])),
                ([LIST], Some(list)) => {
                    let (sockets, files) = (std::mem::take(&mut sockets), std::mem::take(&mut files));
                    match read(list.into(), sockets, files) {
                        Ok((left, last)) => {
                            heirlooms.extend(left);
                            mail = last;
                        }
                        Err(error) => tracing::error!("the last worker's list of clients: {error}"),
                    }
                }
                _ => tracing::error!("what the last worker left is malformed"),
            }
        }
    }
}

/// The files that are being sent, in the order of their clients.
fn give_files(giver: &mut Endpoint, heirlooms: &[Heirloom]) -> Result<(), swoole_ipc::Error> {
    let files = heirlooms.iter().flat_map(|heirloom| &heirloom.files);
    let files: Vec<BorrowedFd<'_>> = files.map(|(range, _)| range.file.as_fd()).collect();
    files.chunks(FDS_MAX).try_for_each(|files| giver.send_with_fds(&[FILES], files, Some(Duration::ZERO)))
}

/// The list: the mail, each kind after its number of parts; then for each client its session, flags, how it has come if it
/// is in the lobby, the bytes read and not handled, and made and not sent, the files among them after their number, each
/// with its part and the bytes behind it, and its topics after theirs. All bytes stand after their length.
fn write(heirlooms: &[Heirloom], mail: &Mail) -> io::Result<OwnedFd> {
    let file = memfd_create("swoole-estate", MemfdFlags::CLOEXEC)?;
    let mut list = io::BufWriter::new(File::from(file));
    write_word(&mut list, mail.begun.len() as u64)?;
    for Part { sender, generation, bytes } in &mail.begun {
        write_word(&mut list, u64::from(*sender) | u64::from(*generation) << 16)?;
        write_bytes(&mut list, bytes)?;
    }
    write_word(&mut list, mail.outgoing.len() as u64)?;
    for (number, bytes) in &mail.outgoing {
        write_word(&mut list, u64::from(*number))?;
        write_bytes(&mut list, bytes)?;
    }
    for Heirloom { session, guest, ended, closing, input, output, files, topics, .. } in heirlooms {
        write_word(&mut list, session.raw())?;
        let flags = [(*ended, ENDED), (*closing, CLOSING), (guest.is_some(), GUEST)];
        let flags = flags.into_iter().filter(|(is_set, _)| *is_set).fold(0, |flags, (_, flag)| flags | flag);
        list.write_all(&[flags])?;
        if let Some(Arrival { listener, port, peer, connected_at }) = guest {
            write_word(&mut list, u64::from(*listener) | u64::from(*port) << 16)?;
            write_word(&mut list, *connected_at)?;
            write_bytes(&mut list, peer.map_or(String::new(), |peer| peer.to_string()).as_bytes())?;
        }
        for bytes in [input, output] {
            write_bytes(&mut list, bytes)?;
        }
        write_word(&mut list, files.len() as u64)?;
        for (FileRange { offset, length, .. }, bytes) in files {
            write_word(&mut list, *offset)?;
            write_word(&mut list, *length)?;
            write_bytes(&mut list, bytes)?;
        }
        write_word(&mut list, topics.len() as u64)?;
        topics.iter().try_for_each(|topic| write_bytes(&mut list, topic))?;
    }
    Ok(list.into_inner().map_err(io::IntoInnerError::into_error)?.into())
}

fn write_word(list: &mut impl io::Write, word: u64) -> io::Result<()> {
    list.write_all(&word.to_le_bytes())
}

fn write_bytes(list: &mut impl io::Write, bytes: &[u8]) -> io::Result<()> {
    write_word(list, bytes.len() as u64)?;
    list.write_all(bytes)
}

fn read(mut list: File, sockets: Vec<OwnedFd>, files: Vec<OwnedFd>) -> io::Result<(Vec<Heirloom>, Mail)> {
    list.rewind()?;
    let size = list.metadata()?.len();
    let mut list = io::BufReader::new(list);
    let mut parts = || -> io::Result<Vec<(u64, Vec<u8>)>> {
        let count = read_word(&mut list)?;
        (0..count).map(|_| Ok((read_word(&mut list)?, read_bytes(&mut list, size)?))).collect()
    };
    let begun = parts()?.into_iter().map(|(word, bytes)| Part {
        sender: word as u16,
        generation: (word >> 16) as u32,
        bytes,
    });
    let outgoing = parts()?.into_iter().map(|(number, bytes)| (number as u16, bytes));
    let mail = Mail { begun: begun.collect(), outgoing: outgoing.collect() };
    let (mut heirlooms, mut opened) = (Vec::new(), files.into_iter());
    for socket in sockets {
        let session = Session::from_raw(read_word(&mut list)?);
        let mut flags = [0];
        list.read_exact(&mut flags)?;
        let guest = if flags[0] & GUEST != 0 { Some(read_arrival(&mut list, size)?) } else { None };
        let [input, output] = [read_bytes(&mut list, size), read_bytes(&mut list, size)];
        let (ended, closing) = (flags[0] & ENDED != 0, flags[0] & CLOSING != 0);
        let (input, output, count) = (input?, output?, read_word(&mut list)?);
        let mut file = || -> io::Result<(FileRange, Vec<u8>)> {
            let file = opened.next().ok_or(io::ErrorKind::UnexpectedEof)?;
            let (offset, length) = (read_word(&mut list)?, read_word(&mut list)?);
            Ok((FileRange { file, offset, length }, read_bytes(&mut list, size)?))
        };
        let files = (0..count).map(|_| file()).collect::<io::Result<_>>()?;
        let count = read_word(&mut list)?;
        let topics =
            (0..count).map(|_| Ok(read_bytes(&mut list, size)?.into())).collect::<io::Result<_>>()?;
        let heirloom = Heirloom { session, guest, socket, ended, closing, input, output, files, topics };
        heirlooms.push(heirloom);
    }
    Ok((heirlooms, mail))
}

fn read_arrival(list: &mut impl io::Read, max: u64) -> io::Result<Arrival> {
    let (place, connected_at) = (read_word(list)?, read_word(list)?);
    let peer = read_bytes(list, max)?;
    let peer = std::str::from_utf8(&peer).ok().and_then(|peer| peer.parse().ok());
    Ok(Arrival { listener: place as u16, port: (place >> 16) as u16, peer, connected_at })
}

fn read_word(list: &mut impl io::Read) -> io::Result<u64> {
    let mut word = [0; 8];
    list.read_exact(&mut word)?;
    Ok(u64::from_le_bytes(word))
}

/// `max`: what the whole list holds.
fn read_bytes(list: &mut impl io::Read, max: u64) -> io::Result<Vec<u8>> {
    let len = read_word(list)?;
    if len > max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{len} bytes in a list of {max}")));
    }
    let mut bytes = vec![0; len as usize];
    list.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use super::*;

    /// How every fifth has come, by TCP or by a unix socket.
    fn guest(number: u64) -> Option<Arrival> {
        let peer = ["[2001:db8::1]:443", "no address"][number as usize % 2].parse().ok();
        let arrival = Arrival { listener: 7, port: number as u16, peer, connected_at: u64::MAX - number };
        number.is_multiple_of(5).then_some(arrival)
    }

    fn a_file(number: u64, length: u64) -> (FileRange, Vec<u8>) {
        let file = memfd_create("file", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, number).unwrap();
        (FileRange { file, offset: number, length }, vec![3; length as usize])
    }

    fn client(number: u64) -> (Heirloom, UnixStream) {
        let (socket, peer) = UnixStream::pair().unwrap();
        let heirloom = Heirloom {
            session: Session::from_raw(number),
            guest: guest(number),
            socket: socket.into(),
            ended: number % 2 == 1,
            closing: number % 3 == 1,
            input: vec![1; number as usize],
            output: vec![2; 3 * number as usize],
            files: (0..number % 3).map(|file| a_file(number, file)).collect(),
            topics: (0..number % 4).map(|topic| topic.to_le_bytes().as_slice().into()).collect(),
        };
        (heirloom, peer)
    }

    #[test]
    fn clients_come_over_with_their_bytes() {
        let estate = Estate::create().unwrap();
        assert!(estate.take().unwrap().0.is_empty());
        let (clients, peers): (Vec<_>, Vec<_>) = (1..=700).map(client).unzip();
        let part = Part { sender: 3, generation: 70_000, bytes: b"half".into() };
        let mail = Mail { begun: vec![part], outgoing: vec![(1, b"a".into()), (0, b"b".into())] };
        assert!(estate.leave(clients, &mail).unwrap().is_empty());
        let (taken, its_mail) = estate.take().unwrap();
        assert_eq!(its_mail, mail);
        assert_eq!(taken.len(), 700);
        for ((heirloom, mut peer), number) in taken.into_iter().zip(peers).zip(1..) {
            assert_eq!((heirloom.session.raw(), heirloom.guest), (number, guest(number)));
            assert_eq!((heirloom.ended, heirloom.closing), (number % 2 == 1, number % 3 == 1));
            assert_eq!(heirloom.topics.len() as u64, number % 4);
            assert_eq!(heirloom.files.len() as u64, number % 3);
            for ((range, bytes), file) in heirloom.files.into_iter().zip(0..) {
                assert_eq!((range.offset, range.length, bytes.len() as u64), (number, file, file));
                let metadata = File::from(range.file).metadata().unwrap();
                assert_eq!(metadata.len(), number);
            }
            assert_eq!((heirloom.input.len(), heirloom.output.len() as u64), (number as usize, 3 * number));
            let mut socket = UnixStream::from(heirloom.socket);
            socket.write_all(&number.to_le_bytes()).unwrap();
            let mut word = [0; 8];
            peer.read_exact(&mut word).unwrap();
            assert_eq!(u64::from_le_bytes(word), number);
        }
        assert!(estate.take().unwrap().0.is_empty());
    }

    #[test]
    fn what_was_not_finished_is_closed() {
        let estate = Estate::create().unwrap();
        let (heirloom, mut peer) = client(2);
        estate.giver.borrow_mut().send_with_fds(&[CLIENTS], &[heirloom.socket.as_fd()], None).unwrap();
        drop(heirloom);
        assert!(estate.take().unwrap().0.is_empty());
        assert_eq!(peer.read(&mut [0]).unwrap(), 0, "closed");
    }
}
