//! Files that are sent in their place among the bytes.

use std::fs::File;
use std::io::{Read, Write as _};
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use swoole_reactor::{Backend, Close, Detached, FileRange};

use crate::{Bed, Seen, random_bytes};

on_each_backend!(
    files_and_bytes_arrive_in_their_order,
    a_long_file_holds_nobody_up,
    a_file_that_has_become_shorter_ends_the_stream,
    what_closes_after_a_file_sends_it_first,
    files_go_along_with_what_is_detached,
);

fn file(bytes: &[u8]) -> OwnedFd {
    let file = memfd_create("file", MemfdFlags::CLOEXEC).unwrap();
    let mut file = File::from(file);
    file.write_all(bytes).unwrap();
    file.into()
}

fn range(bytes: &[u8], offset: usize, length: usize) -> FileRange {
    FileRange { file: file(bytes), offset: offset as u64, length: length as u64 }
}

/// Reads to the end, or to the expected number of bytes.
fn reader(mut peer: impl Read + Send + 'static, expected: Vec<u8>) -> std::thread::JoinHandle<bool> {
    std::thread::spawn(move || {
        let mut received = vec![0; expected.len()];
        peer.read_exact(&mut received).is_ok() && received == expected
    })
}

fn files_and_bytes_arrive_in_their_order(backend: Backend) {
    for is_tcp in [true, false] {
        let mut bed = Bed::new(backend);
        let whole = random_bytes(3_000_000);
        let (token, peer): (_, Box<dyn Read + Send>) = if is_tcp {
            let (token, peer) = bed.tcp();
            (token, Box::new(peer))
        } else {
            let (token, peer) = bed.unix();
            (token, Box::new(peer))
        };
        let mut expected = Vec::new();
        for round in 0..10 {
            let (offset, length) = (round * 1000, [1, 300_000, 2_000_000][round % 3]);
            let bytes = vec![round as u8; [10, 5000, 100_000][round % 3]];
            bed.reactor.send(token, bytes.clone()).unwrap();
            bed.reactor.send_file(token, range(&whole, offset, length)).unwrap();
            bed.reactor.send_slices(token, &[std::io::IoSlice::new(b"between")]).unwrap();
            bed.reactor.send_file(token, range(&whole, 0, 0)).unwrap();
            expected.extend(bytes);
            expected.extend(&whole[offset..offset + length]);
            expected.extend(b"between");
        }
        assert_eq!(bed.reactor.unsent(token), expected.len() as u64);
        bed.reactor.tell_low(token, 0);
        bed.fence();
        let reader = reader(peer, expected);
        bed.until_seen("Low", |seen| matches!(seen, Seen::Low(of) if *of == token));
        bed.until_seen("Sent", |seen| matches!(seen, Seen::Sent(of) if *of == token));
        assert_eq!((bed.reactor.queued(token), bed.reactor.unsent(token)), (0, 0));
        assert!(reader.join().unwrap());
        bed.fence();
        assert_eq!(bed.count(|seen| matches!(seen, Seen::Sent(_) | Seen::Low(_))), 2);
    }
}

fn a_long_file_holds_nobody_up(backend: Backend) {
    let mut bed = Bed::new(backend);
    let whole = vec![7; 64 << 20];
    let (token, peer) = bed.tcp();
    let reader = reader(peer, whole.clone());
    bed.reactor.send_file(token, range(&whole, 0, whole.len())).unwrap();
    assert_eq!(bed.reactor.queued(token), 0, "it takes no memory");
    bed.fence();
    assert!(bed.reactor.unsent(token) > 32 << 20, "{} bytes are left", bed.reactor.unsent(token));
    bed.until_seen("Sent", |seen| matches!(seen, Seen::Sent(of) if *of == token));
    assert!(reader.join().unwrap());
}

fn a_file_that_has_become_shorter_ends_the_stream(backend: Backend) {
    let mut bed = Bed::new(backend);
    let whole = random_bytes(400_000);
    let (token, mut peer) = bed.tcp();
    let file = file(&whole);
    ftruncate(&file, 300_000).unwrap();
    bed.reactor.send(token, b"before".into()).unwrap();
    bed.reactor.send_file(token, FileRange { file, offset: 0, length: 400_000 }).unwrap();
    let kind = std::io::Error::from(Errno::NODATA).kind();
    bed.until_seen(
        "Failed",
        |seen| matches!(seen, Seen::Failed(of, error) if *of == token && *error == kind),
    );
    bed.reactor.close(token, Close::Now);
    let mut received = Vec::new();
    peer.read_to_end(&mut received).unwrap();
    assert_eq!(&received[..6], b"before");
    assert!(received[6..] == whole[..300_000]);
}

fn what_closes_after_a_file_sends_it_first(backend: Backend) {
    let mut bed = Bed::new(backend);
    let whole = random_bytes(8_000_000);
    let (token, peer) = bed.tcp();
    bed.reactor.send_file(token, range(&whole, 0, whole.len())).unwrap();
    bed.reactor.send(token, b"after".into()).unwrap();
    bed.reactor.close(token, Close::AfterSend);
    bed.fence();
    let reader = reader(peer, [whole, b"after".into()].concat());
    bed.until_seen("Closed", |seen| matches!(seen, Seen::Closed(of) if *of == token));
    assert!(reader.join().unwrap());
}

fn files_go_along_with_what_is_detached(backend: Backend) {
    let (mut bed, mut next) = (Bed::new(backend), Bed::new(backend));
    let whole = random_bytes(9_000_000);
    let (token, peer) = bed.tcp();
    bed.reactor.send(token, b"first".into()).unwrap();
    bed.reactor.send_file(token, range(&whole, 0, whole.len())).unwrap();
    bed.reactor.send(token, b"then".into()).unwrap();
    bed.reactor.send_file(token, range(&whole, 5, 7)).unwrap();
    bed.fence();
    bed.reactor.detach(token).unwrap();
    let Detached { socket, unsent, files, .. } = super::detaching::detached(&mut bed, token);
    assert_eq!(files.len(), 2);
    let token = next.reactor.stream(socket).unwrap();
    next.reactor.send(token, unsent).unwrap();
    for (range, bytes) in files {
        next.reactor.send_file(token, range).unwrap();
        next.reactor.send(token, bytes).unwrap();
    }
    let reader =
        reader(peer, [b"first".into(), whole.clone(), b"then".into(), whole[5..12].to_vec()].concat());
    next.until_seen("Sent", |seen| matches!(seen, Seen::Sent(of) if *of == token));
    assert!(reader.join().unwrap());
}
