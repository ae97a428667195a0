//! Where packets end: what the keys of framing come to, at each address.

use std::collections::BTreeMap;
use std::sync::Arc;

use swoole_protocol::{EofOptions, Framer, LengthFunc, LengthOptions};

use super::validate::{check_count, check_size, wrong};
use super::value::size;
use super::{Config, ConfigError, Framing, Listen};

/// The program's own, by the names that `package_length_func` knows them by.
pub(crate) type LengthFuncs = BTreeMap<String, LengthFunc>;

/// How the streams of clients are cut, by where they came in.
#[derive(Clone, Debug)]
pub(crate) struct Framings {
    /// With the most bytes of a packet.
    general: (swoole_protocol::Framing, usize),
    /// In the order of the configuration.
    by_listener: Arc<[(swoole_protocol::Framing, usize)]>,
}

impl Framings {
    /// For a process that has no clients.
    pub(crate) fn none() -> Framings {
        Framings { general: (swoole_protocol::Framing::Raw, 0), by_listener: Arc::new([]) }
    }

    /// For a client who came in by this listener. What is not known is cut by the server's own rule.
    pub(crate) fn framer(&self, listener: Option<u16>) -> Framer {
        let own = listener.and_then(|listener| self.by_listener.get(usize::from(listener)));
        let (framing, max) = own.unwrap_or(&self.general);
        framing.framer(*max)
    }
}

impl Config {
    /// How all streams are cut. The configuration is valid.
    pub(crate) fn framings(&self, functions: &LengthFuncs) -> Result<Framings, ConfigError> {
        let general = (self.framing_with(functions)?, self.package_max_length);
        let own = |listen: &Listen| {
            let own = listen.applied_to(self);
            let framing = own.framing_with(functions).map_err(|error| error.of_address(listen))?;
            Ok((framing, own.package_max_length))
        };
        Ok(Framings { general, by_listener: self.listen.iter().map(own).collect::<Result<_, _>>()? })
    }

    /// Checks the keys of framing, and the options of addresses that are in their place.
    pub(super) fn check_framings(&self) -> Result<(), ConfigError> {
        self.check_framing()?;
        self.listen.iter().try_for_each(|listen| {
            listen.applied_to(self).check_framing().map_err(|error| error.of_address(listen))
        })
    }

    fn check_framing(&self) -> Result<(), ConfigError> {
        check_count("package_length_offset", self.package_length_offset as u64)?;
        check_count("package_body_offset", self.package_body_offset as u64)?;
        check_size("package_max_length", self.package_max_length)?;
        self.plain_framing().map(drop)
    }

    /// The framing, with the options that belong to it; `None` if it takes a function of the program's.
    fn plain_framing(&self) -> Result<Option<swoole_protocol::Framing>, ConfigError> {
        Ok(Some(match self.framing {
            Framing::Raw => swoole_protocol::Framing::Raw,
            Framing::Eof => EofOptions::new(&self.package_eof, self.open_eof_split)
                .map(swoole_protocol::Framing::Eof)
                .map_err(|_| wrong("package_eof", self.package_eof.escape_ascii()))?,
            Framing::Length if self.package_length_func.is_some() => return Ok(None),
            Framing::Length => self.length_options().map(swoole_protocol::Framing::Length)?,
            Framing::Varint => swoole_protocol::Framing::Varint,
            Framing::Line => swoole_protocol::Framing::Line,
        }))
    }

    fn framing_with(&self, functions: &LengthFuncs) -> Result<swoole_protocol::Framing, ConfigError> {
        if let Some(framing) = self.plain_framing()? {
            return Ok(framing);
        }
        let name = self.package_length_func.as_deref().unwrap_or_default();
        let function = functions.get(name).copied().map(swoole_protocol::Framing::LengthFunc);
        function.ok_or_else(|| {
            let known: Vec<&str> = functions.keys().map(String::as_str).collect();
            let reason = if known.is_empty() {
                "the program gives no such function (Server::package_length_func)".into()
            } else {
                format!("must be one of the program's functions: {}", known.join(", "))
            };
            ConfigError::value("package_length_func", name, reason)
        })
    }

    fn length_options(&self) -> Result<LengthOptions, ConfigError> {
        check_count("package_length_offset", self.package_length_offset as u64)?;
        let (length_offset, body_offset) = (self.package_length_offset, self.package_body_offset);
        let options = LengthOptions::new(self.package_length_type, length_offset, body_offset)
            .map_err(|_| wrong("package_body_offset", body_offset))?;
        let header = options.header_len().max(body_offset);
        if header > self.package_max_length {
            let expected =
                format!("must be at least {header}, the header's size, or no packet can be accepted");
            return Err(ConfigError::value(
                "package_max_length",
                size::format(self.package_max_length),
                expected,
            ));
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use swoole_protocol::{Cut, FrameError, Malformed, PackageLength};

    use super::*;

    /// Any two bytes are a packet.
    fn pairs(_: &[u8]) -> PackageLength {
        PackageLength::Bytes(2)
    }

    fn config(listen: &[&str]) -> Config {
        Config { listen: listen.iter().map(|listen| listen.parse().unwrap()).collect(), ..Config::default() }
    }

    #[test]
    fn each_listener_has_its_own() {
        let config = config(&[
            "unix:///raw",
            r"unix:///eof?framing=eof&package_eof=\n",
            "unix:///length?framing=length&package_length_type=C&package_body_offset=1",
            "unix:///func?framing=length&package_length_func=pairs",
            "unix:///varint?framing=varint&package_max_length=64",
            "unix:///line?framing=line",
        ]);
        config.validate().unwrap();
        let functions = LengthFuncs::from([("pairs".into(), LengthFunc::new(pairs))]);
        let framings = config.framings(&functions).unwrap();
        let cut = |listener, input: &[u8]| framings.framer(listener).cut(input);
        let packet = |len, payload| Ok(Cut::Packet { len, payload });
        let stream = b"\x02a\nb\r\nc";
        assert_eq!(cut(Some(0), stream), packet(7, 0..7));
        assert_eq!(cut(Some(1), &stream[3..]), packet(3, 0..2));
        assert_eq!(cut(Some(2), stream), packet(3, 0..3));
        assert_eq!(cut(Some(3), stream), packet(2, 0..2));
        assert_eq!(cut(Some(4), stream), packet(3, 1..3));
        assert_eq!(cut(Some(4), b"\x40"), Err(FrameError::TooLong { len: 65, max: 64 }));
        assert_eq!(cut(Some(5), &stream[3..]), packet(3, 0..1));
        for unknown in [None, Some(6)] {
            assert_eq!(cut(unknown, stream), packet(7, 0..7), "as the server's own");
        }
    }

    #[test]
    fn a_type_of_an_address_is_in_place_of_the_servers_function() {
        let mut config = config(&["unix:///a", "unix:///b?package_length_type=c&package_body_offset=1"]);
        (config.framing, config.package_length_func) = (Framing::Length, Some("pairs".into()));
        let functions = LengthFuncs::from([("pairs".into(), LengthFunc::new(pairs))]);
        let framings = config.framings(&functions).unwrap();
        assert_eq!(framings.framer(Some(0)).cut(b"\xff#"), Ok(Cut::Packet { len: 2, payload: 0..2 }));
        let what = Malformed::NegativeLength { value: -1 };
        assert_eq!(framings.framer(Some(1)).cut(b"\xff#"), Err(FrameError::Malformed { what }));
    }

    #[test]
    fn a_function_that_nobody_gives_is_named() {
        let own = config(&["unix:///a?framing=length&package_length_func=hex"]);
        own.validate().unwrap();
        let error =
            |config: &Config, functions: &LengthFuncs| config.framings(functions).unwrap_err().to_string();
        assert_eq!(
            error(&own, &LengthFuncs::default()),
            "listen = unix:///a?framing=length&package_length_func=hex: package_length_func = hex: the program gives no \
             such function (Server::package_length_func)"
        );
        let general = Config {
            framing: Framing::Length,
            package_length_func: Some("hex".into()),
            ..config(&["unix:///a"])
        };
        let functions = ["pairs", "threes"].map(|name| (name.to_owned(), LengthFunc::new(pairs)));
        assert_eq!(
            error(&general, &functions.into()),
            "package_length_func = hex: must be one of the program's functions: pairs, threes"
        );
    }
}
