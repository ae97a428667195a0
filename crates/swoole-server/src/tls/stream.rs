//! One connection's TLS: ciphertext in, packets' bytes out, and the other way round. No socket is touched here.

use std::io::{self, IoSlice, Read as _, Write};
use std::sync::Arc;

use rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::{Error, HandshakeKind, ServerConfig, ServerConnection, SupportedCipherSuite};

use super::subject::Subject;
use super::{ClientCertificate, Progress, TlsInfo};
use crate::config::CipherSuite;

/// Bytes that are encrypted at once: whole records. So few that they are still in the core's cache when they are sent, and
/// that their memory, which the library asks for anew each time, is never given back to the kernel in between.
const PIECE: usize = 4 * 16 * 1024;

/// One connection's TLS. Nothing of what it has given out stays in here, and of what came in, at most one record that is
/// not whole: 16 KiB, or 64 KiB of a handshake's message.
pub(crate) struct Stream(ServerConnection);

impl Stream {
    pub(super) fn new(context: Arc<ServerConfig>) -> Result<Stream, Error> {
        let mut connection = ServerConnection::new(context)?;
        // It is asked for at once; what waits for the client waits elsewhere, and is bounded there.
        connection.set_buffer_limit(None);
        Ok(Stream(connection))
    }

    /// The client cannot be spoken to yet, and has not said anything.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.0.is_handshaking()
    }

    /// What was agreed on, after the handshake.
    pub(crate) fn info(&self) -> Option<TlsInfo> {
        let connection = &self.0;
        let suite = CipherSuite::of(connection.negotiated_cipher_suite()?)?;
        let shown = connection.peer_certificates().and_then(|chain| chain.first());
        let certificate = shown.map(|certificate| {
            let Subject { common_name, names } = Subject::of(certificate);
            ClientCertificate { sha256: sha256(certificate), common_name, names }
        });
        Some(TlsInfo {
            protocol: suite.protocol.name(),
            cipher: suite.iana,
            // It is one of the configuration's, which are text.
            alpn: connection.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned()),
            server_name: connection.server_name().map(str::to_ascii_lowercase),
            resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
            certificate,
        })
    }

    /// Takes bytes off the wire, and adds to `plain` what they say. There may be output then, also after an error: it tells
    /// the client, and is the last.
    pub(crate) fn receive(&mut self, mut bytes: &[u8], plain: &mut Vec<u8>) -> Result<Progress, Error> {
        let connection = &mut self.0;
        let before = connection.is_handshaking();
        let mut ended = false;
        // What comes behind a client's last word is nothing.
        while !bytes.is_empty() && !ended {
            connection.read_tls(&mut bytes).map_err(|error| Error::General(error.to_string()))?;
            let state = connection.process_new_packets()?;
            let (begin, count) = (plain.len(), state.plaintext_bytes_to_read());
            plain.resize(begin + count, 0);
            connection
                .reader()
                .read_exact(&mut plain[begin..])
                .map_err(|error| Error::General(error.to_string()))?;
            ended = state.peer_has_closed();
        }
        Ok(Progress { established: before && !connection.is_handshaking(), ended })
    }

    /// Encrypts what is for the client, and gives it to `wire`, a few records at a time, behind what was to go to the wire
    /// before. Small parts share a record.
    pub(crate) fn send(&mut self, parts: &[IoSlice<'_>], wire: &mut impl FnMut(&[IoSlice<'_>])) {
        let mut wire = Wire(wire);
        let sum: usize = parts.iter().map(|part| part.len()).sum();
        // It takes all, since there is no limit.
        if sum <= PIECE {
            let _ = self.0.writer().write_vectored(parts);
            return self.drain(&mut wire);
        }
        for piece in parts.iter().flat_map(|part| part.chunks(PIECE)) {
            let _ = self.0.writer().write(piece);
            self.drain(&mut wire);
        }
    }

    /// Tells the client that nothing more comes, so that it knows it has everything.
    pub(crate) fn say_goodbye(&mut self) {
        self.0.send_close_notify();
    }

    /// What is to go to the wire.
    pub(crate) fn take_output(&mut self) -> Vec<u8> {
        let mut output = Vec::new();
        self.drain(&mut output);
        output
    }

    /// `output` takes all: what it is given, it sends or keeps.
    fn drain(&mut self, output: &mut dyn Write) {
        while self.0.wants_write() {
            let _ = self.0.write_tls(output);
        }
    }
}

/// Takes whole records where the library has them, without a copy.
struct Wire<F>(F);

impl<F: FnMut(&[IoSlice<'_>])> Write for Wire<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        (self.0)(parts);
        Ok(parts.iter().map(|part| part.len()).sum())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// That of the library which is there for the handshake.
fn sha256(bytes: &[u8]) -> [u8; 32] {
    let suite = match &TLS13_AES_128_GCM_SHA256 {
        SupportedCipherSuite::Tls13(suite) => &suite.common,
        SupportedCipherSuite::Tls12(suite) => &suite.common,
    };
    let mut whole = [0; 32];
    whole.copy_from_slice(suite.hash_provider.hash(bytes).as_ref());
    whole
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Stream").field(&self.0.protocol_version()).finish()
    }
}

#[cfg(test)]
mod tests;
