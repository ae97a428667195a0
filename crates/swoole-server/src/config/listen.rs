//! Addresses to listen on, and what is set for one of them only.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};
use swoole_reactor::listener::{Address, AddressError};

use super::proxy::{self, ProxyOptions};
use super::socket::{self, SocketOptions};
use super::value::{escaped, size, words};
use super::{Config, Framing, LengthType, OnCrash, SniCerts, SslVerifyPeer, keys};

/// Where clients connect, and whether they speak TLS: `tcp://127.0.0.1:9501`, `tcp://[::1]:9501`, `tls://0.0.0.0:9443`,
/// `unix:///run/app.sock`; where datagrams go: `udp://127.0.0.1:9501`, `unixgram:///run/app.sock`
/// ([`on_packet`](crate::Handler::on_packet)).
///
/// `fd://web` is a socket that listens already and that the program was given by this name, as systemd does it
/// (`FileDescriptorName=`, sd_listen_fds(3)); `fd://3` is the one of this number. So clients that come while the server is
/// restarted wait, and a server without rights has a port below 1024. The variables `LISTEN_PID`, `LISTEN_FDS` and
/// `LISTEN_FDNAMES` are gone afterwards, descriptors that no address asks for are closed, and the log says so. In Base mode
/// all workers accept from the one socket. Its file, if it is a unix socket, stays when the server ends.
///
/// What is to be otherwise for those who connect here than for the rest of the server is set behind the address, as in a
/// URL: `tcp://127.0.0.1:9502?framing=length&package_max_length=4M&on_crash=retry`. (So the path of a unix socket can have no
/// `?`.) Values are written as anywhere; in a `package_eof`, `&` is `\x26`, and in the environment `,` is `\x2c`. A TOML file
/// may have a table instead:
///
/// ```
/// use swoole_server::config::{Config, Framing, OnCrash};
/// # use swoole_server::config::Sources;
///
/// let text = r#"
///     [[listen]]
///     address = "tcp://127.0.0.1:9501"
///     framing = "eof"
///     package_eof = '\n'
///     package_max_length = "64K"
///
///     [[listen]]
///     address = "unix:///run/orders.sock?framing=varint"
///     on_crash = "retry"
/// "#;
/// # let file = std::env::temp_dir().join(format!("swoole-listen-{}.toml", std::process::id()));
/// # std::fs::write(&file, text)?;
/// # let config = Sources::new(Config::default()).load(["--config".into(), file.clone().into()], []);
/// # std::fs::remove_file(file)?;
/// # let config = config?;
/// let [lines, orders] = &config.listen[..] else { panic!("two addresses") };
/// assert_eq!((lines.framing, lines.package_max_length), (Some(Framing::Eof), Some(64 * 1024)));
/// assert_eq!((orders.framing, orders.on_crash), (Some(Framing::Varint), Some(OnCrash::Retry)));
/// assert_eq!(orders.url(), "unix:///run/orders.sock");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "String")]
#[non_exhaustive]
pub struct Listen {
    /// The address of the socket.
    pub address: Address,
    /// What the program knows it by ([`Ports`](crate::Ports)): 1..=32 ASCII letters, digits, `-`, `_` and `.`. Default: no
    /// name.
    pub name: Option<String>,
    /// Whether the connections are encrypted: `tls://` in place of `tcp://`.
    pub tls: bool,
    /// [`on_crash`](super::Config::on_crash) of this address. Default: the server's.
    pub on_crash: Option<OnCrash>,
    /// [`crash_retries`](super::Config::crash_retries) of this address. Default: the server's.
    pub crash_retries: Option<u32>,
    /// [`framing`](super::Config::framing) of this address. Default, here and below: the server's.
    pub framing: Option<Framing>,
    /// [`open_eof_split`](super::Config::open_eof_split) of this address.
    pub open_eof_split: Option<bool>,
    /// [`package_eof`](super::Config::package_eof) of this address.
    pub package_eof: Option<Vec<u8>>,
    /// [`package_length_type`](super::Config::package_length_type) of this address. It is in place of the server's
    /// `package_length_func`, too.
    pub package_length_type: Option<LengthType>,
    /// [`package_length_offset`](super::Config::package_length_offset) of this address.
    pub package_length_offset: Option<usize>,
    /// [`package_body_offset`](super::Config::package_body_offset) of this address.
    pub package_body_offset: Option<usize>,
    /// [`package_length_func`](super::Config::package_length_func) of this address.
    pub package_length_func: Option<String>,
    /// [`package_max_length`](super::Config::package_max_length) of this address.
    pub package_max_length: Option<usize>,
    /// [`enable_delay_receive`](super::Config::enable_delay_receive) of this address.
    pub enable_delay_receive: Option<bool>,
    /// [`max_connection_per_ip`](super::Config::max_connection_per_ip) of this address.
    pub max_connection_per_ip: Option<usize>,
    /// [`heartbeat_idle_time`](super::Config::heartbeat_idle_time) of this address.
    pub heartbeat_idle_time: Option<Duration>,
    /// [`max_idle_time`](super::Config::max_idle_time) of this address.
    pub max_idle_time: Option<Duration>,
    /// [`package_max_time`](super::Config::package_max_time) of this address.
    pub package_max_time: Option<Duration>,
    /// [`max_queue`](super::Config::max_queue) of this address.
    pub max_queue: Option<usize>,
    /// [`max_queue_time`](super::Config::max_queue_time) of this address.
    pub max_queue_time: Option<Duration>,
    /// [`busy_reply`](super::Config::busy_reply) of this address.
    pub busy_reply: Option<Vec<u8>>,
    /// What is set on the socket.
    pub socket: SocketOptions,
    /// What a proxy has to say first.
    pub proxy: ProxyOptions,
    /// [`ssl_cert_file`](super::Config::ssl_cert_file) of this address.
    pub ssl_cert_file: Option<PathBuf>,
    /// [`ssl_key_file`](super::Config::ssl_key_file) of this address.
    pub ssl_key_file: Option<PathBuf>,
    /// [`ssl_client_cert_file`](super::Config::ssl_client_cert_file) of this address.
    pub ssl_client_cert_file: Option<PathBuf>,
    /// [`ssl_verify_peer`](super::Config::ssl_verify_peer) of this address.
    pub ssl_verify_peer: Option<SslVerifyPeer>,
    /// [`ssl_protocols`](super::Config::ssl_protocols) of this address.
    pub ssl_protocols: Option<Vec<String>>,
    /// [`ssl_ciphers`](super::Config::ssl_ciphers) of this address.
    pub ssl_ciphers: Option<Vec<String>>,
    /// [`ssl_alpn`](super::Config::ssl_alpn) of this address.
    pub ssl_alpn: Option<Vec<String>>,
    /// [`ssl_stapling_file`](super::Config::ssl_stapling_file) of this address.
    pub ssl_stapling_file: Option<PathBuf>,
    /// [`ssl_sni_certs`](super::Config::ssl_sni_certs) of this address.
    pub ssl_sni_certs: Option<SniCerts>,
}

/// The options of an address, in the order in which they are written.
const OPTIONS: [&str; 27] = [
    "on_crash",
    "crash_retries",
    "framing",
    "open_eof_split",
    "package_eof",
    "package_length_type",
    "package_length_offset",
    "package_body_offset",
    "package_length_func",
    "package_max_length",
    "enable_delay_receive",
    "max_connection_per_ip",
    "heartbeat_idle_time",
    "max_idle_time",
    "package_max_time",
    "max_queue",
    "max_queue_time",
    "busy_reply",
    "ssl_cert_file",
    "ssl_key_file",
    "ssl_client_cert_file",
    "ssl_verify_peer",
    "ssl_protocols",
    "ssl_ciphers",
    "ssl_alpn",
    "ssl_stapling_file",
    "ssl_sni_certs",
];

/// What a name must be: the only option that is no key of the server.
pub(super) const NAME: &str = "1..=32 ASCII letters, digits, `-`, `_` and `.`";

pub(super) fn is_name(text: &str) -> bool {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=32).contains(&text.len()) && text.bytes().all(is_fine)
}

/// All that an address may have, in that order.
fn options() -> impl Iterator<Item = &'static str> {
    OPTIONS.into_iter().chain(socket::OPTIONS).chain(proxy::OPTIONS).chain(["name"])
}

/// How an address is written where types can be told apart.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Url(String),
    Table(BTreeMap<String, toml::Value>),
}

/// Why a text is no address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Before the options, if there are any.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// An option that an address does not have.
    #[error("`{text}`: an address has no option `{option}`, only {}", options().collect::<Vec<_>>().join(", "))]
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
    /// A table without an `address`.
    #[error("a table needs an `address`, as \"tcp://127.0.0.1:9501\", beside its options")]
    NoAddress,
}

impl From<Address> for Listen {
    fn from(address: Address) -> Listen {
        Listen {
            address,
            name: None,
            tls: false,
            on_crash: None,
            crash_retries: None,
            framing: None,
            open_eof_split: None,
            package_eof: None,
            package_length_type: None,
            package_length_offset: None,
            package_body_offset: None,
            package_length_func: None,
            package_max_length: None,
            enable_delay_receive: None,
            max_connection_per_ip: None,
            heartbeat_idle_time: None,
            max_idle_time: None,
            package_max_time: None,
            max_queue: None,
            max_queue_time: None,
            busy_reply: None,
            socket: SocketOptions::default(),
            proxy: ProxyOptions::default(),
            ssl_cert_file: None,
            ssl_key_file: None,
            ssl_client_cert_file: None,
            ssl_verify_peer: None,
            ssl_protocols: None,
            ssl_ciphers: None,
            ssl_alpn: None,
            ssl_stapling_file: None,
            ssl_sni_certs: None,
        }
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
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            listen.set(text, name, value)?;
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

    /// Whether one of the options says how packets are cut.
    pub(super) fn has_framing(&self) -> bool {
        let is_framing = |option: &&&str| !matches!(**option, "on_crash" | "crash_retries");
        OPTIONS.iter().filter(is_framing).any(|option| self.written(option).is_some())
    }

    /// One option of the address `text`.
    fn set(&mut self, text: &str, name: &str, value: &str) -> Result<(), ListenError> {
        let Some(option) = options().find(|option| *option == name) else {
            return Err(ListenError::UnknownOption { text: text.into(), option: name.into() });
        };
        self.read(option, value).ok_or_else(|| {
            let expected = keys::find(option).map_or(NAME.into(), keys::Key::expected);
            ListenError::Value { text: text.into(), option, value: value.into(), expected }
        })
    }

    /// `None` if the option cannot have this value.
    fn read(&mut self, option: &str, value: &str) -> Option<()> {
        match option {
            "name" => self.name = Some(is_name(value).then(|| value.to_owned())?),
            "on_crash" => self.on_crash = Some(one_of(&OnCrash::ALL, value)?),
            "crash_retries" => self.crash_retries = Some(value.parse().ok()?),
            "framing" => self.framing = Some(one_of(&Framing::ALL, value)?),
            "open_eof_split" => self.open_eof_split = Some(value.parse().ok()?),
            "package_eof" => self.package_eof = Some(escaped::parse(value).ok()?),
            "package_length_type" => self.package_length_type = Some(value.parse().ok()?),
            "package_length_offset" => self.package_length_offset = Some(value.parse().ok()?),
            "package_body_offset" => self.package_body_offset = Some(value.parse().ok()?),
            "package_length_func" => self.package_length_func = Some(value.into()),
            "package_max_length" => self.package_max_length = Some(size::parse(value)?),
            "enable_delay_receive" => self.enable_delay_receive = Some(value.parse().ok()?),
            "max_connection_per_ip" => self.max_connection_per_ip = Some(value.parse().ok()?),
            "heartbeat_idle_time" => self.heartbeat_idle_time = Some(seconds_of(value)?),
            "max_idle_time" => self.max_idle_time = Some(seconds_of(value)?),
            "package_max_time" => self.package_max_time = Some(seconds_of(value)?),
            "max_queue" => self.max_queue = Some(value.parse().ok()?),
            "max_queue_time" => self.max_queue_time = Some(seconds_of(value)?),
            "busy_reply" => self.busy_reply = Some(escaped::parse(value).ok()?),
            "ssl_cert_file" => self.ssl_cert_file = Some(value.into()),
            "ssl_key_file" => self.ssl_key_file = Some(value.into()),
            "ssl_client_cert_file" => self.ssl_client_cert_file = Some(value.into()),
            "ssl_verify_peer" => self.ssl_verify_peer = Some(one_of(&SslVerifyPeer::ALL, value)?),
            "ssl_protocols" => self.ssl_protocols = Some(words::parse(value)),
            "ssl_ciphers" => self.ssl_ciphers = Some(words::parse(value)),
            "ssl_alpn" => self.ssl_alpn = Some(words::parse(value)),
            "ssl_stapling_file" => self.ssl_stapling_file = Some(value.into()),
            "ssl_sni_certs" => self.ssl_sni_certs = Some(value.parse().ok()?),
            _ => return self.socket.read(option, value).or_else(|| self.proxy.read(option, value)),
        }
        Some(())
    }

    /// The value of an option that is set, as [`read`](Listen::read) takes it.
    fn written(&self, option: &str) -> Option<String> {
        fn text<T: ToString>(value: &Option<T>) -> Option<String> {
            value.as_ref().map(T::to_string)
        }
        let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64().to_string());
        fn path(value: &Option<PathBuf>) -> Option<String> {
            value.as_ref().map(|path| path.display().to_string())
        }
        match option {
            "name" => self.name.clone(),
            "on_crash" => text(&self.on_crash),
            "crash_retries" => text(&self.crash_retries),
            "framing" => text(&self.framing),
            "open_eof_split" => text(&self.open_eof_split),
            "package_eof" => self.package_eof.as_deref().map(in_url),
            "package_length_type" => text(&self.package_length_type),
            "package_length_offset" => text(&self.package_length_offset),
            "package_body_offset" => text(&self.package_body_offset),
            "package_length_func" => self.package_length_func.clone(),
            "package_max_length" => self.package_max_length.map(size::format),
            "enable_delay_receive" => text(&self.enable_delay_receive),
            "max_connection_per_ip" => text(&self.max_connection_per_ip),
            "heartbeat_idle_time" => seconds(self.heartbeat_idle_time),
            "max_idle_time" => seconds(self.max_idle_time),
            "package_max_time" => seconds(self.package_max_time),
            "max_queue" => text(&self.max_queue),
            "max_queue_time" => seconds(self.max_queue_time),
            "busy_reply" => self.busy_reply.as_deref().map(in_url),
            "ssl_cert_file" => path(&self.ssl_cert_file),
            "ssl_key_file" => path(&self.ssl_key_file),
            "ssl_client_cert_file" => path(&self.ssl_client_cert_file),
            "ssl_verify_peer" => text(&self.ssl_verify_peer),
            "ssl_protocols" => self.ssl_protocols.as_deref().map(words::format),
            "ssl_ciphers" => self.ssl_ciphers.as_deref().map(words::format),
            "ssl_alpn" => self.ssl_alpn.as_deref().map(words::format),
            "ssl_stapling_file" => path(&self.ssl_stapling_file),
            "ssl_sni_certs" => text(&self.ssl_sni_certs),
            _ => self.socket.written(option).or_else(|| self.proxy.written(option)),
        }
    }

    /// The configuration as those who connect here find it, as far as framing, limits and TLS go.
    pub(crate) fn applied_to(&self, config: &Config) -> Config {
        fn replace<T: Clone>(general: &mut T, own: &Option<T>) {
            if let Some(own) = own {
                general.clone_from(own);
            }
        }
        let mut applied = config.clone();
        if self.package_length_type.is_some() || self.package_length_func.is_some() {
            applied.package_length_func.clone_from(&self.package_length_func);
        }
        replace(&mut applied.framing, &self.framing);
        replace(&mut applied.open_eof_split, &self.open_eof_split);
        replace(&mut applied.package_eof, &self.package_eof);
        replace(&mut applied.package_length_type, &self.package_length_type);
        replace(&mut applied.package_length_offset, &self.package_length_offset);
        replace(&mut applied.package_body_offset, &self.package_body_offset);
        replace(&mut applied.package_max_length, &self.package_max_length);
        replace(&mut applied.max_connection_per_ip, &self.max_connection_per_ip);
        replace(&mut applied.heartbeat_idle_time, &self.heartbeat_idle_time);
        replace(&mut applied.max_idle_time, &self.max_idle_time);
        replace(&mut applied.package_max_time, &self.package_max_time);
        replace(&mut applied.max_queue, &self.max_queue);
        replace(&mut applied.max_queue_time, &self.max_queue_time);
        replace(&mut applied.busy_reply, &self.busy_reply);
        replace(&mut applied.proxy_protocol, &self.proxy.proxy_protocol);
        for (general, own) in [
            (&mut applied.ssl_cert_file, &self.ssl_cert_file),
            (&mut applied.ssl_key_file, &self.ssl_key_file),
            (&mut applied.ssl_client_cert_file, &self.ssl_client_cert_file),
            (&mut applied.ssl_stapling_file, &self.ssl_stapling_file),
        ] {
            *general = own.clone().or(general.take());
        }
        replace(&mut applied.ssl_verify_peer, &self.ssl_verify_peer);
        replace(&mut applied.ssl_protocols, &self.ssl_protocols);
        replace(&mut applied.ssl_ciphers, &self.ssl_ciphers);
        replace(&mut applied.ssl_alpn, &self.ssl_alpn);
        replace(&mut applied.ssl_sni_certs, &self.ssl_sni_certs);
        applied
    }

    /// Its options that begin like this, which are set.
    pub(super) fn options_of(&self, prefix: &str) -> impl Iterator<Item = &'static str> {
        OPTIONS.into_iter().filter(move |option| option.starts_with(prefix) && self.written(option).is_some())
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
        let written = |option: &str| Some(format!("{option}={}", self.written(option)?));
        let options: Vec<String> = options().filter_map(written).collect();
        if options.is_empty() { Ok(()) } else { write!(f, "?{}", options.join("&")) }
    }
}

impl TryFrom<Written> for Listen {
    type Error = ListenError;

    fn try_from(written: Written) -> Result<Listen, ListenError> {
        let mut table = match written {
            Written::Url(text) => return text.parse(),
            Written::Table(table) => table,
        };
        let address = table.remove("address").ok_or(ListenError::NoAddress)?;
        let text = keys::show(&address);
        let mut listen: Listen = text.parse()?;
        for (option, value) in &table {
            let shown = match value {
                // What was meant for octal digits has become another number.
                toml::Value::Integer(number) if option == "unix_mode" => format!("{number}, no text"),
                // A table, of which there is one kind.
                value => match value.clone().try_into::<SniCerts>() {
                    Ok(certs) if value.is_table() => certs.to_string(),
                    _ => keys::show(value),
                },
            };
            listen.set(&text, option, &shown)?;
        }
        Ok(listen)
    }
}

impl From<Listen> for String {
    fn from(listen: Listen) -> String {
        listen.to_string()
    }
}

fn one_of<T: Copy + fmt::Display>(known: &[T], text: &str) -> Option<T> {
    known.iter().copied().find(|known| known.to_string() == text)
}

fn seconds_of(text: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(text.parse().ok()?).ok()
}

/// Bytes with escapes, also of what ends an option or, in the environment, an address.
fn in_url(bytes: &[u8]) -> String {
    let text = bytes.escape_ascii().to_string();
    text.replace('&', "\\x26").replace(',', "\\x2c").replace(' ', "\\x20")
}

/// Several addresses, or the only one.
pub(super) fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Listen>, D::Error> {
    struct Addresses;

    impl<'de> Visitor<'de> for Addresses {
        type Value = Vec<Listen>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an address or a list of addresses, as \"tcp://127.0.0.1:9501\", or tables of such")
        }

        fn visit_str<E: de::Error>(self, one: &str) -> Result<Vec<Listen>, E> {
            one.parse().map(|one| vec![one]).map_err(E::custom)
        }

        fn visit_map<A: de::MapAccess<'de>>(self, one: A) -> Result<Vec<Listen>, A::Error> {
            Listen::deserialize(de::value::MapAccessDeserializer::new(one)).map(|one| vec![one])
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, many: A) -> Result<Vec<Listen>, A::Error> {
            Vec::deserialize(de::value::SeqAccessDeserializer::new(many))
        }
    }

    deserializer.deserialize_any(Addresses)
}
