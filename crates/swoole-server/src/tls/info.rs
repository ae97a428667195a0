//! What is known of a client's TLS, for every process: in shared memory, beside the sessions.
//!
//! One entry for each session that there may be, which only the owning reactor writes, once: when the handshake is done,
//! before anybody hears of the session. It is never cleared: it has the session's name in it, and no name is given twice.
//! Like the sessions it is read under a sequence lock. An entry is as long as it is for names that are not told of in every
//! packet; pages of it cost memory where clients of TLS have been, and nowhere else.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use swoole_ipc::Memory;
use swoole_ipc::words::Words;

use crate::config::CipherSuite;
use crate::error::{Error, Result};
use crate::session::{Session, SessionTable, write_locked};

/// What a client and the server have agreed on when they shook hands, and who the client is.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct TlsInfo {
    /// The version, as `ssl_protocols` has it: `TLSv1.2` or `TLSv1.3`.
    pub protocol: &'static str,
    /// The cipher suite by its name in the RFCs, which `ssl_ciphers` takes: `TLS_AES_128_GCM_SHA256`.
    pub cipher: &'static str,
    /// The protocol that was agreed on (ALPN), one of the address's `ssl_alpn`; `None` if either side had none to offer.
    pub alpn: Option<String>,
    /// The host name that the client has asked for (SNI), in lower case; `None` if it has not. Nobody has verified that it is one of the
    /// server's.
    pub server_name: Option<String>,
    /// The client has come again with a ticket: keys and certificate were agreed on before.
    pub resumed: bool,
    /// What the client has shown, verified against `ssl_client_cert_file`; `None` if it has shown nothing, or was not asked.
    /// One that does not verify is never seen here: its client is not let in, whatever `ssl_verify_peer` says.
    pub certificate: Option<ClientCertificate>,
}

/// A client's own certificate, verified. The server keeps who it is for, not the whole of it, which has some KiB.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct ClientCertificate {
    /// SHA-256 of all of it (DER): what `openssl x509 -fingerprint -sha256` says, and no other one has.
    pub sha256: [u8; 32],
    /// The common name of its subject; `None` if it has none, more than one, one with control characters, or one of more
    /// than 255 bytes.
    pub common_name: Option<String>,
    /// The alternative names of its subject, in their order: `DNS:…`, `email:…`, `URI:…`, `IP:…`. Together with the host name, ALPN
    /// and common name they have some 450 bytes; those that find no room any more are missing, as are those with control
    /// characters and those of more than 255 bytes.
    pub names: Vec<String>,
}

// The words of one entry.
const ENTRY: usize = 64;
const SEQUENCE: usize = 0;
const SESSION: usize = 1;
const AGREED: usize = 2; // cipher suite, from 1 | resumed << 8 | certificate << 9 | bytes of text << 16
const SHA256: usize = 3; // four of them
const TEXT: usize = 7; // to the end: kind, length, bytes; and again

const RESUMED: u64 = 1 << 8;
const CERTIFICATE: u64 = 1 << 9;
const TEXT_MAX: usize = (ENTRY - TEXT) * 8;

// Kinds of text, in the order in which they find room.
const SERVER_NAME: u8 = 1;
const ALPN: u8 = 2;
const COMMON_NAME: u8 = 3;
const NAME: u8 = 4;

/// What is known of the TLS of all sessions.
#[derive(Clone)]
pub(crate) struct TlsTable {
    /// One table for each reactor, as of sessions.
    tables: Vec<Words>,
}

impl TlsTable {
    /// Bytes of shared memory for `slots` sessions on each of `reactors` reactors.
    pub(crate) fn size(reactors: usize, slots: usize) -> usize {
        Words::size(reactors, slots * ENTRY)
    }

    /// The tables in the part of `memory` that begins at `start`.
    pub(crate) fn map(memory: &Memory, start: usize, reactors: usize, slots: usize) -> Result<TlsTable> {
        let tables = Words::open(memory, start, reactors, slots * ENTRY).map_err(|error| {
            Error::setup(format!("map what is known of TLS ({reactors} of {slots} sessions)"), error)
        })?;
        Ok(TlsTable { tables })
    }

    /// Makes all tables but that of the reactor `own` read-only in this process.
    pub(crate) fn protect_from(&self, own: Option<usize>) -> Result<(), swoole_ipc::Error> {
        Words::protect_others(&self.tables, own)
    }

    fn entry(&self, sessions: &SessionTable, session: Session) -> Option<&[AtomicU64]> {
        let start = sessions.slot(session) * ENTRY;
        self.tables.get(usize::from(sessions.reactor(session)))?.get(start..start + ENTRY)
    }

    /// The owning reactor tells of a session, before it opens it.
    pub(crate) fn tell(&self, sessions: &SessionTable, session: Session, info: &TlsInfo) {
        let Some(entry) = self.entry(sessions, session) else { return };
        let words = encode(info);
        write_locked(entry, || {
            entry[SESSION].store(session.raw(), Ordering::Relaxed);
            for (word, value) in entry[AGREED..].iter().zip(words) {
                word.store(value, Ordering::Relaxed);
            }
        });
    }

    /// What is known of the TLS of this session; `None` if it has none.
    pub(crate) fn info(&self, sessions: &SessionTable, session: Session) -> Option<TlsInfo> {
        let entry = self.entry(sessions, session)?;
        // As for sessions: a writer is at work for nanoseconds.
        for _ in 0..1_000_000 {
            let before = entry[SEQUENCE].load(Ordering::Acquire);
            let name = entry[SESSION].load(Ordering::Relaxed);
            let words = std::array::from_fn(|word| entry[AGREED + word].load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            if before & 1 == 0 && entry[SEQUENCE].load(Ordering::Relaxed) == before {
                return if name == session.raw() { decode(&words) } else { None };
            }
            std::hint::spin_loop();
        }
        None
    }
}

/// An entry from [`AGREED`] on.
type Told = [u64; ENTRY - AGREED];

fn encode(info: &TlsInfo) -> Told {
    let mut text = Vec::with_capacity(TEXT_MAX);
    let mut add = |kind: u8, part: &str| {
        let Ok(len) = u8::try_from(part.len()) else { return };
        if text.len() + 2 + part.len() <= TEXT_MAX {
            text.extend_from_slice(&[kind, len]);
            text.extend_from_slice(part.as_bytes());
        }
    };
    let certificate = info.certificate.as_ref();
    let common_name = certificate.and_then(|certificate| certificate.common_name.as_ref());
    for (kind, part) in
        [(SERVER_NAME, info.server_name.as_ref()), (ALPN, info.alpn.as_ref()), (COMMON_NAME, common_name)]
    {
        part.into_iter().for_each(|part| add(kind, part));
    }
    certificate.iter().flat_map(|certificate| &certificate.names).for_each(|name| add(NAME, name));
    let mut told = [0; ENTRY - AGREED];
    told[0] = CipherSuite::find(info.cipher).map_or(0, CipherSuite::number)
        | if info.resumed { RESUMED } else { 0 }
        | if certificate.is_some() { CERTIFICATE } else { 0 }
        | (text.len() as u64) << 16;
    let sha256 = certificate.map_or([0; 32], |certificate| certificate.sha256);
    put(&mut told[SHA256 - AGREED..TEXT - AGREED], &sha256);
    put(&mut told[TEXT - AGREED..], &text);
    told
}

/// `None` if it is nothing that [`encode`] makes: nobody takes half of it for who a client is.
fn decode(told: &Told) -> Option<TlsInfo> {
    let bytes: Vec<u8> = told[SHA256 - AGREED..].iter().flat_map(|word| word.to_le_bytes()).collect();
    let (sha256, text) = bytes.split_first_chunk::<32>()?;
    let mut text = text.get(..usize::try_from(told[0] >> 16).ok()?)?;
    let suite = CipherSuite::of_number(told[0] & 0xff)?;
    let (mut server_name, mut alpn, mut common_name, mut names) = (None, None, None, Vec::new());
    while let Some(([kind, len], rest)) = text.split_first_chunk() {
        let (part, rest) = rest.split_at_checked(usize::from(*len))?;
        let part = std::str::from_utf8(part).ok()?.to_owned();
        match *kind {
            SERVER_NAME => server_name = Some(part),
            ALPN => alpn = Some(part),
            COMMON_NAME => common_name = Some(part),
            NAME => names.push(part),
            _ => return None,
        }
        text = rest;
    }
    let certificate = ClientCertificate { sha256: *sha256, common_name, names };
    Some(TlsInfo {
        protocol: suite.protocol.name(),
        cipher: suite.iana,
        alpn,
        server_name,
        resumed: told[0] & RESUMED != 0,
        certificate: (told[0] & CERTIFICATE != 0).then_some(certificate),
    })
}

fn put(words: &mut [u64], bytes: &[u8]) {
    for (word, bytes) in words.iter_mut().zip(bytes.chunks(8)) {
        let mut whole = [0; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_le_bytes(whole);
    }
}

#[cfg(test)]
mod tests;
