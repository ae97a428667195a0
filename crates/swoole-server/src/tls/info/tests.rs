use proptest::prelude::*;

use super::*;
use crate::session::Arrival;

fn table(reactors: usize, slots: usize) -> TlsTable {
    let memory = Memory::create("tls", TlsTable::size(reactors, slots)).unwrap();
    TlsTable::map(&memory, 0, reactors, slots).unwrap()
}

fn plain(cipher: &str) -> TlsInfo {
    let suite = CipherSuite::find(cipher).unwrap();
    TlsInfo {
        protocol: suite.protocol.name(),
        cipher: suite.iana,
        alpn: None,
        server_name: None,
        resumed: false,
        certificate: None,
    }
}

prop_compose! {
    /// Of any lengths: some of them find no room.
    fn any_info()(
        number in 1..=9_u64,
        alpn in proptest::option::of(".{0,40}"),
        server_name in proptest::option::of("[a-z.]{0,253}"),
        resumed: bool,
        certificate in proptest::option::of((any::<[u8; 32]>(), proptest::option::of(".{0,80}"), proptest::collection::vec(".{0,300}", 0..6))),
    ) -> TlsInfo {
        let suite = CipherSuite::of_number(number).unwrap();
        let certificate = certificate.map(|(sha256, common_name, names)| ClientCertificate { sha256, common_name, names });
        TlsInfo { alpn, server_name, resumed, certificate, ..plain(suite.iana) }
    }
}

/// What of these finds room, by the lengths alone.
fn bounded(mut info: TlsInfo) -> TlsInfo {
    let mut room = TEXT_MAX;
    let mut fits = |text: &String| {
        let fits = text.len() < 256 && text.len() + 2 <= room;
        room -= if fits { text.len() + 2 } else { 0 };
        fits
    };
    info.server_name = info.server_name.filter(&mut fits);
    info.alpn = info.alpn.filter(&mut fits);
    if let Some(certificate) = &mut info.certificate {
        certificate.common_name = certificate.common_name.take().filter(&mut fits);
        certificate.names.retain(&mut fits);
    }
    info
}

proptest! {
    #[test]
    fn what_is_told_comes_back_as_far_as_there_is_room(info in any_info()) {
        prop_assert_eq!(decode(&encode(&info)), Some(bounded(info)));
    }

    /// Whoever may write there may lie, and confuses nobody.
    #[test]
    fn anything_may_stand_there(
        info in any_info(),
        changes in proptest::collection::vec((0..ENTRY - AGREED, any::<u64>()), 1..8),
    ) {
        let mut told = encode(&info);
        changes.iter().for_each(|(word, value)| told[*word] = *value);
        if let Some(info) = decode(&told) {
            prop_assert_eq!(decode(&encode(&info)), Some(bounded(info)));
        }
    }
}

#[test]
fn each_session_has_its_own_and_no_other() {
    let (sessions, table) = (SessionTable::create(2, 3).unwrap(), table(2, 3));
    let names = [(0, 0), (1, 0), (1, 2)].map(|(reactor, slot)| sessions.name(reactor, slot, 5));
    let ciphers =
        ["TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256", "ECDHE-RSA-AES256-GCM-SHA384"].map(plain);
    for (session, info) in names.iter().zip(&ciphers) {
        table.tell(&sessions, *session, info);
    }
    for (session, info) in names.iter().zip(&ciphers) {
        assert_eq!(table.info(&sessions, *session).as_ref(), Some(info));
    }
    assert_eq!(ciphers.map(|info| info.protocol), ["TLSv1.3", "TLSv1.3", "TLSv1.2"]);
    // Others in that place, one that nobody has told of, and what no place is for.
    for (reactor, slot, generation) in [(0, 0, 4), (0, 0, 6), (0, 1, 1), (1, 3, 1)] {
        assert_eq!(table.info(&sessions, sessions.name(reactor, slot, generation)), None);
    }
    assert_eq!(table.info(&sessions, Session::from_raw(u64::MAX)), None);
}

#[test]
fn a_reader_never_sees_half_of_two_tenants() {
    let (sessions, table) = (SessionTable::create(1, 1).unwrap(), table(1, 1));
    let tenants: Vec<_> = [1, 2]
        .into_iter()
        .map(|number| {
            let certificate = ClientCertificate {
                sha256: [number; 32],
                names: vec![number.to_string()],
                ..Default::default()
            };
            let info = TlsInfo { certificate: Some(certificate), ..plain("TLS_AES_128_GCM_SHA256") };
            (sessions.name(0, 0, number.into()), info)
        })
        .collect();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for round in 0..20_000 {
                let (session, info) = &tenants[round % 2];
                let arrival = Arrival { listener: 0, port: 1, peer: None, connected_at: 1 };
                table.tell(&sessions, *session, info);
                sessions.open(*session, &arrival);
            }
        });
        for _ in 0..20_000 {
            for (session, info) in &tenants {
                let read = table.info(&sessions, *session);
                assert!(read.is_none() || read.as_ref() == Some(info), "{read:?}");
            }
        }
        writer.join().unwrap();
    });
}
