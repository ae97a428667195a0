//! What clients of each listener speak, by its framing, and a `package_length_func`.

use swoole_protocol::Framing as Wire;
use swoole_server::config::{Config, Framing, Listen};
use swoole_server::{PackageLength, Result, Session, Worker};

/// What the packets of a listener are, and how it is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Speech {
    /// Lines: commands.
    Commands,
    /// Anything, which is echoed as it came.
    Echo,
    /// The same, behind its length.
    EchoVarint,
}

impl Speech {
    fn of(framing: Framing) -> Speech {
        match framing {
            Framing::Eof | Framing::Line => Speech::Commands,
            Framing::Varint => Speech::EchoVarint,
            Framing::Raw | Framing::Length => Speech::Echo,
        }
    }
}

/// By listener, and whether datagrams are no commands.
pub(crate) struct Speeches(Vec<Speech>, bool);

impl Speeches {
    pub(crate) fn new(config: &Config) -> Speeches {
        let framing = |listen: &Listen| listen.framing.unwrap_or(config.framing);
        let speeches = config.listen.iter().map(|listen| Speech::of(framing(listen)));
        Speeches(speeches.collect(), Speech::of(config.framing) != Speech::Commands)
    }

    /// Whether datagrams are echoed as they came, or are commands.
    pub(crate) fn echoes_datagrams(&self) -> bool {
        self.1
    }

    /// Echoes the packet, unless it is a command: whether it did.
    pub(crate) fn echo(&self, worker: &mut Worker, client: Session, packet: &[u8]) -> Result<bool> {
        let speech = match self.0[..] {
            [only] => only,
            // A client may have left meanwhile.
            _ => match worker.session(client) {
                Ok(info) => self.0[usize::from(info.listener)],
                Err(_) => return Ok(true),
            },
        };
        match speech {
            Speech::Commands => return Ok(false),
            Speech::Echo => worker.send(client, packet)?,
            Speech::EchoVarint => {
                let mut reply = Vec::with_capacity(packet.len() + 10);
                Wire::Varint.encode(packet, &mut reply).map_err(swoole_server::Error::other)?;
                worker.send(client, &reply)?;
            }
        }
        Ok(true)
    }
}

/// What ends the lines of those who speak in commands.
pub(crate) fn line_end(config: &Config) -> Vec<u8> {
    if config.framing == Framing::Line { b"\n".to_vec() } else { config.package_eof.clone() }
}

/// Four hexadecimal digits say how many bytes follow them. It panics about `!`.
pub(crate) fn hex4(begin: &[u8]) -> PackageLength {
    assert!(!begin.starts_with(b"!"), "a client wants it");
    let digits = &begin[..begin.len().min(4)];
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return PackageLength::Malformed("it does not begin with four hexadecimal digits");
    }
    let body = std::str::from_utf8(digits).ok().and_then(|digits| usize::from_str_radix(digits, 16).ok());
    match body {
        Some(body) if digits.len() == 4 => PackageLength::Bytes(4 + body),
        _ => PackageLength::More,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_digits_count_what_follows() {
        assert_eq!(hex4(b""), PackageLength::More);
        assert_eq!(hex4(b"00f"), PackageLength::More);
        assert_eq!(hex4(b"00fF"), PackageLength::Bytes(4 + 255));
        assert_eq!(hex4(b"0000and more"), PackageLength::Bytes(4));
        assert!(matches!(hex4(b"+001"), PackageLength::Malformed(_)));
    }

    #[test]
    fn each_listener_has_its_speech() {
        let mut config = Config::default();
        for listen in ["unix:///a", "unix:///b?framing=varint", "unix:///c?framing=line"] {
            config.listen.push(listen.parse().unwrap());
        }
        config.framing = Framing::Length;
        assert_eq!(Speeches::new(&config).0, [Speech::Echo, Speech::EchoVarint, Speech::Commands]);
    }
}
