//! TLS, where it is spoken: between a connection's socket and everything else about it.
//!
//! Nobody hears of a client before the handshake is done: until then it has no session that could be found, and no
//! `on_connect`. What is read and sent is counted as it is on the wire, so that it compares with what the kernel has.

use std::io::IoSlice;

use swoole_reactor::{Close, Reactor};

use super::replies::Output;
use super::{Desk, Taker};
use crate::error::{Error, Result};
use crate::session::Arrival;
use crate::shared::Shared;
use crate::tls::Stream;

/// The TLS of one connection.
#[derive(Debug)]
pub(super) struct Secrecy {
    stream: Stream,
    /// Who it is, to be told of after the handshake.
    arrival: Arrival,
}

impl Secrecy {
    pub(super) fn new(stream: Stream, arrival: Arrival) -> Secrecy {
        Secrecy { stream, arrival }
    }
}

impl Desk {
    /// Whether it is not known yet who is there.
    pub(super) fn is_handshaking(&self, slot: usize) -> bool {
        self.connections[slot].tls.as_ref().is_some_and(|tls| tls.stream.is_handshaking())
    }

    /// The TLS of a new connection; `None` if its address has none. One that should have it never goes without.
    pub(super) fn begin_tls(&self, arrival: &Arrival) -> Result<Option<Stream>> {
        let stream = self.shared.tls.stream(arrival.listener)?;
        match self.listening.address(arrival.listener) {
            Some(listen) if listen.tls && stream.is_none() => {
                Err(Error::setup(format!("begin TLS on {}", listen.url()), "no certificate is loaded"))
            }
            _ => Ok(stream),
        }
    }

    /// A new connection has so long to become one.
    pub(super) fn await_handshake(&mut self, reactor: &mut Reactor, slot: usize) {
        self.bound(reactor, slot, self.shared.config.ssl_handshake_timeout);
        let token = self.connections[slot].token;
        if let Err(error) = self.listen(reactor, token) {
            self.failed(reactor, token, &error);
        }
    }

    /// Bytes off the wire.
    pub(super) fn decrypt(
        &mut self,
        reactor: &mut Reactor,
        taker: &mut impl Taker,
        slot: usize,
        bytes: &[u8],
    ) {
        let mut plain = std::mem::take(&mut self.plain);
        self.decrypt_into(reactor, taker, slot, bytes, &mut plain);
        plain.clear();
        self.plain = plain;
    }

    fn decrypt_into(
        &mut self,
        reactor: &mut Reactor,
        taker: &mut impl Taker,
        slot: usize,
        bytes: &[u8],
        plain: &mut Vec<u8>,
    ) {
        let connection = &mut self.connections[slot];
        let token = connection.token;
        let Some(tls) = &mut connection.tls else { return };
        let arrival = tls.arrival;
        let progress = tls.stream.receive(bytes, plain);
        let output = tls.stream.take_output();
        if !output.is_empty() {
            self.transmit(reactor, slot, Output::Whole(output));
        }
        let is_open = |desk: &Desk| !desk.connections[slot].closing;
        let progress = match progress {
            Ok(progress) => progress,
            Err(error) if is_open(self) => {
                match arrival.peer {
                    Some(peer) => tracing::info!("{peer} is closed, TLS fails: {error}"),
                    None => tracing::info!("a client is closed, TLS fails: {error}"),
                }
                return self.close(reactor, slot, Close::AfterSend);
            }
            Err(_) => return,
        };
        if progress.established && is_open(self) {
            self.tell_of_tls(slot);
            self.introduce(reactor, slot, &arrival);
            self.unbound(reactor, slot);
            self.resume(reactor, taker, slot);
        }
        if !plain.is_empty() && is_open(self) {
            self.arrived(reactor, taker, slot, plain);
        }
        if progress.ended && is_open(self) {
            reactor.pause(token);
            self.ended(reactor, token);
        }
    }

    /// Lets every process know what was agreed on; before the session is known, so that nobody asks too early.
    fn tell_of_tls(&self, slot: usize) {
        let connection = &self.connections[slot];
        if let Some(info) = connection.tls.as_ref().and_then(|tls| tls.stream.info()) {
            let Shared { tls_infos, sessions, .. } = &*self.shared;
            tls_infos.tell(sessions, connection.session, &info);
        }
    }

    /// Sends what is for a client, as it goes to the wire.
    pub(super) fn encrypt(&mut self, reactor: &mut Reactor, slot: usize, output: &Output<'_>) {
        if !self.admits(reactor, slot, output.len()) {
            return;
        }
        // Nobody asks for it meanwhile, and the slot is this connection's until the reactor says that it is gone.
        let Some(mut tls) = self.connections[slot].tls.take() else { return };
        let mut wire = |records: &[IoSlice<'_>]| {
            if !self.connections[slot].closing {
                let records = Output::Parts(records);
                let len = records.len();
                self.put(reactor, slot, records, len);
            }
        };
        match output {
            Output::Parts(parts) => tls.stream.send(parts, &mut wire),
            Output::Whole(bytes) => tls.stream.send(&[IoSlice::new(bytes)], &mut wire),
        }
        self.connections[slot].tls = Some(tls);
    }

    /// Nothing more will be sent, and the client is told so: it can tell the end from a cut.
    pub(super) fn say_goodbye(&mut self, reactor: &mut Reactor, slot: usize) {
        let connection = &mut self.connections[slot];
        let Some(tls) = &mut connection.tls else { return };
        tls.stream.say_goodbye();
        // Of one that is gone nobody minds.
        let _ = reactor.send(connection.token, tls.stream.take_output());
    }
}
