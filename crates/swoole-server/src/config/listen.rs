//! Addresses to listen on, and what is set for one of them only.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};
use swoole_reactor::listener::{Address, AddressError};

use super::{Config, OnCrash, keys};

/// Where clients connect, and whether they speak TLS: `tcp://127.0.0.1:9501`, `tcp://[::1]:9501`,
/// `unix:///run/app.sock`; `tls://`, `udp://` and `unixgram://` are not supported yet.
///
/// What is to be otherwise for those who connect here than for the rest of the server is set behind the address, as in a
/// URL: `tcp://127.0.0.1:9502?on_crash=retry&crash_retries=3`. (So the path of a unix socket can have no `?`.)
///
/// ```
/// use swoole_server::config::{Listen, OnCrash};
///
/// let listen: Listen = "unix:///run/orders.sock?on_crash=retry".parse()?;
/// assert_eq!(listen.on_crash, Some(OnCrash::Retry));
/// assert_eq!(listen.url(), "unix:///run/orders.sock");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub struct Listen {
    /// The address of the socket.
    pub address: Address,
    /// Whether the connections are encrypted: `tls://` in place of `tcp://`.
    pub tls: bool,
    /// [`on_crash`](super::Config::on_crash) of this address. Default: the server's.
    pub on_crash: Option<OnCrash>,
    /// [`crash_retries`](super::Config::crash_retries) of this address. Default: the server's.
    pub crash_retries: Option<u32>,
}

/// Why a text is no address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Before the options, if there are any.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// An option that an address does not have.
    #[error("`{text}`: an address has no option `{option}`, only on_crash and crash_retries")]
    UnknownOption {
        /// The whole text.
        text: String,
        /// What stands where an option should.
        option: String,
    },
    /// A value that an option cannot have.
    #[error("`{text}`: {option} = {value}: must be {expected}")]
    Value {
        /// The whole text.
        text: String,
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        expected: String,
    },
}

impl From<Address> for Listen {
    fn from(address: Address) -> Listen {
        Listen { address, tls: false, on_crash: None, crash_retries: None }
    }
}

impl FromStr for Listen {
    type Err = ListenError;

    fn from_str(text: &str) -> Result<Listen, ListenError> {
        let (url, options) = text.split_once('?').unwrap_or((text, ""));
        let mut listen = match url.strip_prefix("tls://") {
            Some(rest) => Listen { tls: true, ..Listen::from(format!("tcp://{rest}").parse::<Address>()?) },
            None => Listen::from(url.parse::<Address>()?),
        };
        for option in options.split('&').filter(|option| !option.is_empty()) {
            listen.set(text, option)?;
        }
        Ok(listen)
    }
}

impl Listen {
    /// The address alone, as a client writes it.
    pub fn url(&self) -> String {
        match &self.address {
            Address::Tcp(address) if self.tls => format!("tls://{address}"),
            address => address.to_string(),
        }
    }

    /// One option, `name=value`, of the address `text`.
    fn set(&mut self, text: &str, option: &str) -> Result<(), ListenError> {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let wrong = |option| {
            let expected = keys::find(option).map(keys::Key::expected).unwrap_or_default();
            ListenError::Value { text: text.into(), option, value: value.into(), expected }
        };
        match name {
            "on_crash" => {
                let known = [OnCrash::Close, OnCrash::Retry, OnCrash::Drop];
                let found = known.into_iter().find(|known| known.to_string() == value);
                self.on_crash = Some(found.ok_or_else(|| wrong("on_crash"))?);
            }
            "crash_retries" => {
                let retries: u32 = value.parse().map_err(|_| wrong("crash_retries"))?;
                self.crash_retries = Some(retries);
            }
            _ => return Err(ListenError::UnknownOption { text: text.into(), option: name.into() }),
        }
        Ok(())
    }

    /// What becomes of a packet of those who connect here that a worker died on.
    pub(crate) fn on_crash(&self, config: &Config) -> OnCrash {
        self.on_crash.unwrap_or(config.on_crash)
    }

    /// And how many more workers get it.
    pub(crate) fn crash_retries(&self, config: &Config) -> u32 {
        self.crash_retries.unwrap_or(config.crash_retries)
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url())?;
        let on_crash = self.on_crash.map(|policy| format!("on_crash={policy}"));
        let retries = self.crash_retries.map(|retries| format!("crash_retries={retries}"));
        let options: Vec<String> = on_crash.into_iter().chain(retries).collect();
        if options.is_empty() { Ok(()) } else { write!(f, "?{}", options.join("&")) }
    }
}

impl TryFrom<String> for Listen {
    type Error = ListenError;

    fn try_from(text: String) -> Result<Listen, ListenError> {
        text.parse()
    }
}

impl From<Listen> for String {
    fn from(listen: Listen) -> String {
        listen.to_string()
    }
}

/// Several addresses, or the only one.
pub(super) fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Listen>, D::Error> {
    struct Addresses;

    impl<'de> Visitor<'de> for Addresses {
        type Value = Vec<Listen>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an address or a list of addresses, as \"tcp://127.0.0.1:9501\"")
        }

        fn visit_str<E: de::Error>(self, one: &str) -> Result<Vec<Listen>, E> {
            one.parse().map(|one| vec![one]).map_err(E::custom)
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, many: A) -> Result<Vec<Listen>, A::Error> {
            Vec::deserialize(de::value::SeqAccessDeserializer::new(many))
        }
    }

    deserializer.deserialize_any(Addresses)
}
