use std::io::{Read as _, Write as _};

use proptest::prelude::*;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::*;

/// Both ends' configurations.
fn contexts() -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = CertificateDer::from_pem_slice(made.cert.pem().as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(made.signing_key.serialize_pem().as_bytes()).unwrap();
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let server = server.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    (
        Arc::new(server.with_single_cert(vec![certificate], key).unwrap()),
        Arc::new(client.with_root_certificates(roots).with_no_client_auth()),
    )
}

fn pair() -> (Stream, ClientConnection) {
    let (server, client) = contexts();
    (Stream::new(server).unwrap(), ClientConnection::new(client, "localhost".try_into().unwrap()).unwrap())
}

/// Adds to `wire` what it is given.
fn into(wire: &mut Vec<u8>) -> impl FnMut(&[IoSlice<'_>]) {
    |records| records.iter().for_each(|record| wire.extend_from_slice(record))
}

/// What the client has for the wire.
fn output_of(client: &mut ClientConnection) -> Vec<u8> {
    let mut output = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut output).unwrap();
    }
    output
}

/// Gives the client what the wire has for it; what it reads, and whether it was the last.
fn read(client: &mut ClientConnection, mut wire: &[u8]) -> (Vec<u8>, bool) {
    let (mut plain, mut ended) = (Vec::new(), false);
    while !wire.is_empty() {
        client.read_tls(&mut wire).unwrap();
        let state = client.process_new_packets().unwrap();
        let (begin, count) = (plain.len(), state.plaintext_bytes_to_read());
        plain.resize(begin + count, 0);
        client.reader().read_exact(&mut plain[begin..]).unwrap();
        ended = state.peer_has_closed();
    }
    (plain, ended)
}

/// Lets both talk until neither has anything to say; what the server has read.
fn converse(
    server: &mut Stream,
    client: &mut ClientConnection,
    pieces: &[usize],
) -> (Vec<u8>, Vec<Progress>) {
    let (mut plain, mut news) = (Vec::new(), Vec::new());
    let mut pieces = pieces.iter().cycle();
    loop {
        let output = output_of(client);
        let mut rest = &output[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at((*pieces.next().unwrap()).min(rest.len()));
            news.push(server.receive(now, &mut plain).unwrap());
            rest = later;
        }
        let answer = server.take_output();
        read(client, &answer);
        if output.is_empty() && answer.is_empty() {
            return (plain, news);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// However the wire cuts it: the handshake is done once, every byte comes in its order, and the end is told once.
    #[test]
    fn a_stream_is_the_same_however_it_arrives(
        messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40_000), 1..4),
        pieces in proptest::collection::vec(prop_oneof![1usize..40, 1usize..20_000], 1..20),
    ) {
        let (mut server, mut client) = pair();
        prop_assert!(server.is_handshaking());
        // Along with the end of the handshake, as clients do.
        client.writer().write_all(&messages[0]).unwrap();
        let (mut plain, mut news) = converse(&mut server, &mut client, &pieces);
        prop_assert!(!server.is_handshaking());
        for message in &messages[1..] {
            client.writer().write_all(message).unwrap();
            let (more, later) = converse(&mut server, &mut client, &pieces);
            plain.extend(more);
            news.extend(later);
        }
        prop_assert_eq!(&plain, &messages.concat());
        prop_assert_eq!(news.iter().filter(|news| news.established).count(), 1);
        prop_assert!(!news.iter().any(|news| news.ended));
        let parts: Vec<IoSlice<'_>> = messages.iter().map(|message| IoSlice::new(message)).collect();
        let mut wire = Vec::new();
        server.send(&parts, &mut into(&mut wire));
        let (echoed, ended) = read(&mut client, &wire);
        prop_assert_eq!(echoed, plain);
        prop_assert!(!ended);
        client.send_close_notify();
        let mut last = output_of(&mut client);
        // Nobody has sealed this.
        last.extend(b"more");
        let mut nothing = Vec::new();
        let progress = server.receive(&last, &mut nothing).unwrap();
        prop_assert_eq!(progress, Progress { established: false, ended: true });
        prop_assert!(nothing.is_empty());
        wire.clear();
        server.send(&[IoSlice::new(b"answer")], &mut into(&mut wire));
        server.say_goodbye();
        wire.extend(server.take_output());
        prop_assert_eq!(read(&mut client, &wire), (b"answer".to_vec(), true));
    }

    /// Garbage is an error before it is a megabyte, and says so to its sender; nothing is made of it.
    #[test]
    fn garbage_is_refused(bytes in proptest::collection::vec(any::<u8>(), 1..2000), cut in 1usize..300) {
        let (mut server, _) = pair();
        let mut plain = Vec::new();
        let refused = bytes.iter().cycle().copied().take(1 << 20).collect::<Vec<u8>>();
        let result = refused.chunks(cut).try_for_each(|piece| server.receive(piece, &mut plain).map(drop));
        prop_assert!(result.is_err() && plain.is_empty() && server.is_handshaking());
        // An alert, and nothing after it.
        let told = server.take_output();
        server.say_goodbye();
        prop_assert!(told.first().is_none_or(|kind| *kind == 21) && server.take_output().is_empty());
    }
}

/// Bytes of each record's body.
fn records(mut wire: &[u8]) -> Vec<usize> {
    let mut lengths = Vec::new();
    while let [_, _, _, high, low, rest @ ..] = wire {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        lengths.push(length);
        wire = &rest[length..];
    }
    lengths
}

#[test]
fn small_parts_share_a_record_and_large_ones_are_given_out_by_and_by() {
    let (mut server, mut client) = pair();
    converse(&mut server, &mut client, &[1000]);
    let small = [[b'a'; 100], [b'b'; 100], [b'c'; 100]];
    let parts = small.each_ref().map(|part| IoSlice::new(part));
    let mut wire = Vec::new();
    server.send(&parts, &mut into(&mut wire));
    // The tag of 16 bytes, and one for what it is.
    assert_eq!(records(&wire), [300 + 17]);
    assert_eq!(read(&mut client, &wire).0, small.concat());

    let (large, mut given) = (vec![b'd'; 3 * PIECE + 1], Vec::new());
    let mut put =
        |records: &[IoSlice<'_>]| given.push(records.iter().map(|record| record.len()).sum::<usize>());
    server.send(&[IoSlice::new(&large[..PIECE - 1]), IoSlice::new(&large[PIECE - 1..])], &mut put);
    assert!(given.len() > 3 && given.iter().all(|given| *given <= PIECE + 4 * 22), "{given:?}");
}
