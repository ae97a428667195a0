//! Addresses to listen on.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};
use swoole_reactor::listener::{Address, AddressError};

/// Where clients connect, and whether they speak TLS: `tcp://127.0.0.1:9501`, `tcp://[::1]:9501`,
/// `unix:///run/app.sock`; `tls://`, `udp://` and `unixgram://` are not supported yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Listen {
    /// The address of the socket.
    pub address: Address,
    /// Whether the connections are encrypted: `tls://` in place of `tcp://`.
    pub tls: bool,
}

impl From<Address> for Listen {
    fn from(address: Address) -> Listen {
        Listen { address, tls: false }
    }
}

impl FromStr for Listen {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Listen, AddressError> {
        match text.strip_prefix("tls://") {
            Some(rest) => Ok(Listen { address: format!("tcp://{rest}").parse()?, tls: true }),
            None => text.parse().map(|address| Listen { address, tls: false }),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Tcp(address) if self.tls => write!(f, "tls://{address}"),
            address => address.fmt(f),
        }
    }
}

impl TryFrom<String> for Listen {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Listen, AddressError> {
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
