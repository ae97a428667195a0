//! Who may say for whom it connects: the PROXY protocol of an address.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::validate::{check_seconds, wrong};
use super::value::networks;
use super::{Address, Config, ConfigError, Listen, ProxyProtocol};

/// What an address has of its own, in place of the key of the same name in [`Config`](super::Config), which says what it
/// means and is the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ProxyOptions {
    /// [`proxy_protocol`](super::Config::proxy_protocol).
    pub proxy_protocol: Option<ProxyProtocol>,
    /// [`proxy_trusted`](super::Config::proxy_trusted); as text, with `+` between several.
    pub proxy_trusted: Option<Vec<Network>>,
    /// [`proxy_timeout`](super::Config::proxy_timeout).
    pub proxy_timeout: Option<Duration>,
}

/// The options, in the order in which they are written.
pub(super) const OPTIONS: [&str; 3] = ["proxy_protocol", "proxy_trusted", "proxy_timeout"];

impl ProxyOptions {
    /// `None` if the option is none of these, or cannot have this value.
    pub(super) fn read(&mut self, option: &str, value: &str) -> Option<()> {
        match option {
            "proxy_protocol" => {
                let known = ProxyProtocol::ALL.into_iter().find(|known| known.to_string() == value);
                self.proxy_protocol = Some(known?);
            }
            "proxy_trusted" => self.proxy_trusted = Some(networks::parse(value)?),
            "proxy_timeout" => {
                let seconds = value.parse().ok()?;
                self.proxy_timeout = Some(Duration::try_from_secs_f64(seconds).ok()?);
            }
            _ => return None,
        }
        Some(())
    }

    /// The value of an option that is set, as [`read`](ProxyOptions::read) takes it.
    pub(super) fn written(&self, option: &str) -> Option<String> {
        match option {
            "proxy_protocol" => self.proxy_protocol.map(|protocol| protocol.to_string()),
            "proxy_trusted" => self.proxy_trusted.as_deref().map(networks::format),
            "proxy_timeout" => self.proxy_timeout.map(|time| time.as_secs_f64().to_string()),
            _ => None,
        }
    }
}

impl Config {
    /// Checks the keys of the PROXY protocol, and the options of addresses that are in their place.
    pub(super) fn check_proxies(&self) -> Result<(), ConfigError> {
        check_seconds("proxy_timeout", self.proxy_timeout.as_secs_f64())?;
        self.listen.iter().try_for_each(|listen| {
            self.check_proxy(listen).map_err(|error| match listen.proxy == ProxyOptions::default() {
                true => error,
                false => error.of_address(listen),
            })
        })
    }

    fn check_proxy(&self, listen: &Listen) -> Result<(), ConfigError> {
        let rule = self.proxy_rule(listen);
        if let Some(time) = listen.proxy.proxy_timeout {
            check_seconds("proxy_timeout", time.as_secs_f64())?;
        }
        if let Some([]) = listen.proxy.proxy_trusted.as_deref() {
            return Err(wrong("proxy_trusted", ""));
        }
        let is_local = matches!(listen.address, Address::Unix(_) | Address::UnixDatagram(_));
        match rule {
            Some(rule) if rule.trusted.is_empty() && !is_local => {
                let reason = "needs proxy_trusted, the networks of the proxies: whoever connects could say that it is \
                              somebody else (0.0.0.0/0 and ::/0 are everybody)";
                Err(ConfigError::value("proxy_protocol", rule.protocol, reason))
            }
            _ => Ok(()),
        }
    }

    /// What holds for those who connect to this address; `None` where no header comes.
    pub(crate) fn proxy_rule(&self, listen: &Listen) -> Option<ProxyRule> {
        let own = &listen.proxy;
        let protocol = own.proxy_protocol.unwrap_or(self.proxy_protocol);
        (protocol != ProxyProtocol::Off).then(|| ProxyRule {
            protocol,
            trusted: own.proxy_trusted.clone().unwrap_or_else(|| self.proxy_trusted.clone()),
            timeout: own.proxy_timeout.unwrap_or(self.proxy_timeout),
        })
    }
}

/// What those who connect have to say first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProxyRule {
    pub(crate) protocol: ProxyProtocol,
    pub(crate) trusted: Vec<Network>,
    pub(crate) timeout: Duration,
}

impl ProxyRule {
    /// Whether what this peer says is believed. Who connects by a unix socket has no address, and had the right to.
    pub(crate) fn trusts(&self, peer: Option<IpAddr>) -> bool {
        peer.is_none_or(|peer| self.trusted.iter().any(|network| network.contains(peer)))
    }
}

/// A range of addresses: `10.0.0.0/8`, `2001:db8::/32`, or a single one, `192.0.2.1`.
///
/// ```
/// use swoole_server::config::Network;
///
/// let network: Network = "10.0.0.0/8".parse()?;
/// assert!(network.contains("10.1.2.3".parse()?) && !network.contains("11.1.2.3".parse()?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    address: IpAddr,
    /// Bits that count.
    prefix: u8,
}

/// A text is no [`Network`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is no network: write 10.0.0.0/8, 2001:db8::/32, or an address alone; no bit may be set behind the prefix"
)]
pub struct NetworkError {
    text: String,
}

impl Network {
    /// Whether the address lies in it. An IPv4 address that is written as an IPv6 one (`::ffff:10.1.2.3`) is taken for what
    /// it is.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => {
                let address = address.to_canonical();
                (bits(self.address) ^ bits(address)) & self.mask() == 0
            }
            _ => false,
        }
    }

    fn mask(&self) -> u128 {
        u128::MAX.checked_shl(u32::from(width(self.address) - self.prefix)).unwrap_or(0)
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Network, NetworkError> {
        let read = || -> Option<Network> {
            let (address, prefix) =
                text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
            let address: IpAddr = address.parse().ok()?;
            let prefix = match prefix {
                Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok()?,
                Some(_) => return None,
                None => width(address),
            };
            let network = (prefix <= width(address)).then_some(Network { address, prefix })?;
            (bits(address) & !network.mask() == 0).then_some(network)
        };
        read().ok_or_else(|| NetworkError { text: text.into() })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)?;
        if self.prefix == width(self.address) { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

impl TryFrom<String> for Network {
    type Error = NetworkError;

    fn try_from(text: String) -> Result<Network, NetworkError> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> String {
        network.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn contains(network: &str, address: &str) -> bool {
        network.parse::<Network>().unwrap().contains(address.parse().unwrap())
    }

    #[test]
    fn a_network_is_its_prefix() {
        assert!(contains("10.0.0.0/8", "10.255.0.1") && !contains("10.0.0.0/8", "11.0.0.1"));
        assert!(contains("192.0.2.1", "192.0.2.1") && !contains("192.0.2.1", "192.0.2.2"));
        assert!(contains("0.0.0.0/0", "203.0.113.9") && !contains("0.0.0.0/0", "2001:db8::1"));
        assert!(contains("::/0", "2001:db8::1") && !contains("::/0", "10.0.0.1"));
        assert!(contains("2001:db8::/32", "2001:db8:ffff::1") && !contains("2001:db8::/32", "2001:db9::1"));
        assert!(contains("10.0.0.0/8", "::ffff:10.1.2.3") && !contains("::/0", "::ffff:10.1.2.3"));
        for nonsense in
            ["", "10.0.0.0/33", "::/129", "10.0.0.1/8", "10.0.0/8", "10.0.0.0/", "10.0.0.0/+8", "x/8"]
        {
            let error = nonsense.parse::<Network>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{nonsense}` is no network")), "{error}");
        }
    }

    proptest! {
        #[test]
        fn a_network_is_read_as_it_is_written(address: IpAddr, prefix in 0..=128_u8) {
            let network = Network { address, prefix: prefix.min(width(address)) };
            let base = bits(address) & network.mask();
            let base = match address {
                IpAddr::V4(_) => IpAddr::from((base as u32).to_be_bytes()),
                IpAddr::V6(_) => IpAddr::from(base.to_be_bytes()),
            };
            let network = Network { address: base, ..network };
            prop_assert_eq!(network.to_string().parse(), Ok(network));
            prop_assert!(network.contains(address) || address.to_canonical() != address);
        }
    }
}
