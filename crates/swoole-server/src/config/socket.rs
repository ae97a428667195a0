//! What is set on a listening socket, and by it on the connections that are accepted from it.

use super::validate::{check_count, wrong};
use super::value::octal;
use super::{Address, Config, ConfigError, Listen};

/// What an address has of its own, in place of the key of the same name in [`Config`](super::Config), which says what it
/// means and is the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct SocketOptions {
    /// [`backlog`](super::Config::backlog).
    pub backlog: Option<u32>,
    /// [`open_tcp_nodelay`](super::Config::open_tcp_nodelay).
    pub open_tcp_nodelay: Option<bool>,
    /// [`open_tcp_keepalive`](super::Config::open_tcp_keepalive).
    pub open_tcp_keepalive: Option<bool>,
    /// [`tcp_keepidle`](super::Config::tcp_keepidle).
    pub tcp_keepidle: Option<u32>,
    /// [`tcp_keepinterval`](super::Config::tcp_keepinterval).
    pub tcp_keepinterval: Option<u32>,
    /// [`tcp_keepcount`](super::Config::tcp_keepcount).
    pub tcp_keepcount: Option<u32>,
    /// [`tcp_defer_accept`](super::Config::tcp_defer_accept).
    pub tcp_defer_accept: Option<u32>,
    /// [`tcp_fastopen`](super::Config::tcp_fastopen).
    pub tcp_fastopen: Option<u32>,
    /// [`tcp_user_timeout`](super::Config::tcp_user_timeout).
    pub tcp_user_timeout: Option<u32>,
    /// [`ipv6_only`](super::Config::ipv6_only).
    pub ipv6_only: Option<bool>,
    /// [`reuse_port`](super::Config::reuse_port).
    pub reuse_port: Option<bool>,
    /// [`unix_mode`](super::Config::unix_mode).
    pub unix_mode: Option<u32>,
    /// [`unix_user`](super::Config::unix_user).
    pub unix_user: Option<String>,
    /// [`unix_group`](super::Config::unix_group).
    pub unix_group: Option<String>,
}

/// The options, in the order in which they are written.
pub(super) const OPTIONS: [&str; 14] = [
    "backlog",
    "open_tcp_nodelay",
    "open_tcp_keepalive",
    "tcp_keepidle",
    "tcp_keepinterval",
    "tcp_keepcount",
    "tcp_defer_accept",
    "tcp_fastopen",
    "tcp_user_timeout",
    "ipv6_only",
    "reuse_port",
    "unix_mode",
    "unix_user",
    "unix_group",
];

/// What of those is settled by whoever has opened a socket that is inherited.
const OPENERS: [&str; 6] = ["backlog", "ipv6_only", "reuse_port", "unix_mode", "unix_user", "unix_group"];

impl SocketOptions {
    /// `None` if the option is none of these, or cannot have this value.
    pub(super) fn read(&mut self, option: &str, value: &str) -> Option<()> {
        match option {
            "backlog" => self.backlog = Some(value.parse().ok()?),
            "open_tcp_nodelay" => self.open_tcp_nodelay = Some(value.parse().ok()?),
            "open_tcp_keepalive" => self.open_tcp_keepalive = Some(value.parse().ok()?),
            "tcp_keepidle" => self.tcp_keepidle = Some(value.parse().ok()?),
            "tcp_keepinterval" => self.tcp_keepinterval = Some(value.parse().ok()?),
            "tcp_keepcount" => self.tcp_keepcount = Some(value.parse().ok()?),
            "tcp_defer_accept" => self.tcp_defer_accept = Some(value.parse().ok()?),
            "tcp_fastopen" => self.tcp_fastopen = Some(value.parse().ok()?),
            "tcp_user_timeout" => self.tcp_user_timeout = Some(value.parse().ok()?),
            "ipv6_only" => self.ipv6_only = Some(value.parse().ok()?),
            "reuse_port" => self.reuse_port = Some(value.parse().ok()?),
            "unix_mode" => self.unix_mode = Some(octal::parse(value)?),
            "unix_user" => self.unix_user = Some(value.into()),
            "unix_group" => self.unix_group = Some(value.into()),
            _ => return None,
        }
        Some(())
    }

    /// The value of an option that is set, as [`read`](SocketOptions::read) takes it.
    pub(super) fn written(&self, option: &str) -> Option<String> {
        match option {
            "open_tcp_nodelay" => self.open_tcp_nodelay.map(|on| on.to_string()),
            "open_tcp_keepalive" => self.open_tcp_keepalive.map(|on| on.to_string()),
            "ipv6_only" => self.ipv6_only.map(|on| on.to_string()),
            "reuse_port" => self.reuse_port.map(|on| on.to_string()),
            "unix_mode" => self.unix_mode.map(octal::format),
            "unix_user" => self.unix_user.clone(),
            "unix_group" => self.unix_group.clone(),
            number => {
                let numbers = self.numbers();
                numbers.into_iter().find(|(name, _)| *name == number)?.1.map(|number| number.to_string())
            }
        }
    }

    fn numbers(&self) -> [(&'static str, Option<u32>); 7] {
        [
            ("backlog", self.backlog),
            ("tcp_keepidle", self.tcp_keepidle),
            ("tcp_keepinterval", self.tcp_keepinterval),
            ("tcp_keepcount", self.tcp_keepcount),
            ("tcp_defer_accept", self.tcp_defer_accept),
            ("tcp_fastopen", self.tcp_fastopen),
            ("tcp_user_timeout", self.tcp_user_timeout),
        ]
    }

    /// Checks ranges, and that each option is one of this address's kind: who writes it down believes in it.
    pub(super) fn check(&self, listen: &Listen) -> Result<(), ConfigError> {
        for (key, number) in self.numbers() {
            let checked = number.map_or(Ok(()), |number| check_count(key, number.into()));
            checked.map_err(|error| error.of_address(listen))?;
        }
        check_mode(self.unix_mode).map_err(|error| error.of_address(listen))?;
        for option in OPTIONS {
            let Some(value) = self.written(option) else { continue };
            let is_unix = option.starts_with("unix_");
            let problem = match &listen.address {
                Address::Inherited(_) if OPENERS.contains(&option) => {
                    "is up to whoever has opened the socket that is inherited"
                }
                Address::Tcp(at) | Address::Udp(at) if option == "ipv6_only" && at.is_ipv4() => {
                    "is for an IPv6 address, as tcp://[::]:9501"
                }
                Address::Tcp(_) | Address::Udp(_) if is_unix => "is for a unix socket",
                Address::Unix(_) | Address::UnixDatagram(_) if !is_unix && option != "backlog" => {
                    "is for TCP"
                }
                _ => continue,
            };
            return Err(ConfigError::value(option_key(option), value, problem).of_address(listen));
        }
        Ok(())
    }
}

fn option_key(option: &str) -> &'static str {
    OPTIONS.into_iter().find(|known| *known == option).unwrap_or("listen")
}

fn check_mode(mode: Option<u32>) -> Result<(), ConfigError> {
    match mode {
        Some(mode) if mode > octal::MAX => Err(wrong("unix_mode", octal::format(mode))),
        _ => Ok(()),
    }
}

impl Config {
    /// Checks the keys of sockets, which all addresses have that do not say otherwise.
    pub(super) fn check_sockets(&self) -> Result<(), ConfigError> {
        check_count("backlog", self.backlog.into())?;
        check_count("tcp_keepidle", self.tcp_keepidle.into())?;
        check_count("tcp_keepinterval", self.tcp_keepinterval.into())?;
        check_count("tcp_keepcount", self.tcp_keepcount.into())?;
        check_count("tcp_defer_accept", self.tcp_defer_accept.into())?;
        check_count("tcp_fastopen", self.tcp_fastopen.into())?;
        check_count("tcp_user_timeout", self.tcp_user_timeout.into())?;
        check_mode(self.unix_mode)
    }
}
