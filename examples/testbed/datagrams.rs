//! Datagrams, which have an address and no session.

use swoole_server::{DatagramClient, DatagramPeer, Error, Result, Worker};

use super::Testbed;
use super::command::{Command, split_word};

impl Testbed {
    /// Does what a datagram wants, and answers it if there is an answer.
    pub(crate) fn take_datagram(
        &mut self,
        worker: &mut Worker,
        from: &DatagramClient,
        packet: &[u8],
    ) -> Result<()> {
        let Some(answer) = self.answer(worker, from, packet)? else { return Ok(()) };
        match worker.send_to(from, &answer) {
            Err(error @ Error::DatagramTooLong { .. }) => {
                worker.send_to(from, format!("error: {error}").as_bytes())
            }
            sent => sent,
        }
    }

    fn answer(
        &mut self,
        worker: &mut Worker,
        from: &DatagramClient,
        packet: &[u8],
    ) -> Result<Option<Vec<u8>>> {
        if self.speeches.echoes_datagrams() {
            return Ok(Some(packet.to_vec()));
        }
        let line_end = self.line_end.clone();
        let (line, end) = without_end(packet, &line_end);
        let reply = match Command::parse(line) {
            Ok(Command::Session(None)) => Ok(Some(describe(from))),
            // It has no session, so what is about one is about nobody's.
            Ok(command) => self.obey(worker, "0".parse().map_err(Error::other)?, command),
            Err(complaint) => Err(Error::from(complaint)),
        };
        let reply = reply.unwrap_or_else(|error| Some(format!("error: {error}").into_bytes()));
        Ok(reply.map(|reply| [&reply, end].concat()))
    }
}

/// A line, and its end if it has one.
fn without_end<'a>(packet: &'a [u8], end: &'a [u8]) -> (&'a [u8], &'a [u8]) {
    match packet.strip_suffix(end) {
        Some(line) => (line, end),
        None => (packet, b""),
    }
}

/// What `session` says of a datagram.
fn describe(from: &DatagramClient) -> Vec<u8> {
    format!("listener={} peer={from}", from.listener).into_bytes()
}

/// `LISTENER ADDRESS TEXT`: to whom, and what. The address is `IP:PORT`, `/PATH`, or `@NAME` in the abstract namespace.
pub(crate) fn parse(text: &[u8]) -> Option<(DatagramClient, &[u8])> {
    let (listener, rest) = split_word(text);
    let (address, text) = split_word(rest);
    let address = std::str::from_utf8(address).ok()?;
    let peer = match address.as_bytes() {
        [b'/', ..] => DatagramPeer::Unix(address.into()),
        [b'@', name @ ..] => DatagramPeer::Abstract(name.to_vec()),
        _ => DatagramPeer::Inet(address.parse().ok()?),
    };
    Some((DatagramClient::new(std::str::from_utf8(listener).ok()?.parse().ok()?, peer), text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_every_kind() {
        for (text, peer) in [
            ("127.0.0.1:5", DatagramPeer::Inet("127.0.0.1:5".parse().unwrap())),
            ("[::1]:5", DatagramPeer::Inet("[::1]:5".parse().unwrap())),
            ("/run/a", DatagramPeer::Unix("/run/a".into())),
            ("@a", DatagramPeer::Abstract(b"a".into())),
        ] {
            let expected = Some((DatagramClient::new(7, peer), &b"a b"[..]));
            assert_eq!(parse(format!("7 {text} a b").as_bytes()), expected);
        }
        assert_eq!((parse(b"x 127.0.0.1:5 a"), parse(b"0 localhost:5 a")), (None, None));
    }

    #[test]
    fn a_line_end_is_no_part_of_a_line() {
        assert_eq!(without_end(b"echo\n", b"\n"), (&b"echo"[..], &b"\n"[..]));
        assert_eq!(without_end(b"echo", b"\n"), (&b"echo"[..], &b""[..]));
    }
}
