//! Datagrams, which have an address and no session.

use swoole_server::{DatagramClient, DatagramPeer};

use super::command::split_word;

/// A line, and its end if it has one.
pub(crate) fn without_end<'a>(packet: &'a [u8], end: &'a [u8]) -> (&'a [u8], &'a [u8]) {
    match packet.strip_suffix(end) {
        Some(line) => (line, end),
        None => (packet, b""),
    }
}

/// What `session` says of a datagram.
pub(crate) fn describe(from: &DatagramClient) -> Vec<u8> {
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
