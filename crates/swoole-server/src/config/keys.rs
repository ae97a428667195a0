//! The one table of keys: their kinds, their ranges and a line of help each.
//!
//! Flags and variables are read by it, [`validate`](super::validate) takes its ranges from it, `--help` prints it.

use super::value::size;
use super::{GIB, KIB, MIB};

/// A key of the configuration.
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) help: &'static str,
}

/// What values a key takes.
pub(super) enum Kind {
    /// A number from .. to.
    Count(u64, u64),
    /// Bytes from .. to.
    Size(usize, usize),
    /// Seconds from .. to.
    Seconds(f64, f64),
    /// On or off.
    Switch,
    /// One of these.
    Choice(&'static [&'static str]),
    /// Text, with its name in the help and what it must be.
    Text(&'static str, &'static str),
    /// Addresses.
    Listen,
    /// Files and directories.
    Paths,
    /// Ranges of addresses.
    Networks,
}

use Kind::{Choice, Count, Listen, Networks, Paths, Seconds, Size, Switch, Text};

const fn key(name: &'static str, kind: Kind, help: &'static str) -> Key {
    Key { name, kind, help }
}

/// In the order of the fields of [`Config`](super::Config).
pub(super) static KEYS: &[Key] = &[
    key("listen", Listen, "where clients connect; may repeat"),
    key("mode", Choice(&["process", "base"]), "how the work is divided between processes"),
    key("worker_num", Count(1, 1024), "worker processes"),
    key("reactor_num", Count(1, 64), "reactor threads of the master"),
    key("backend", Choice(&["auto", "epoll", "io_uring"]), "what the reactors wait with"),
    key("ipc", Choice(&["ring", "socketpair"]), "how packets travel between reactors and workers"),
    key("ring_size", Size(16 * KIB, 64 * MIB), "bytes of one ring, a power of two"),
    key("ring_memory_max", Size(32 * KIB, 64 * GIB), "bytes of all rings together"),
    key("framing", Choice(&["raw", "eof", "length", "varint", "line"]), "where one packet of a stream ends"),
    key("open_eof_split", Switch, "eof: a packet ends at every delimiter"),
    key(
        "package_eof",
        Text("BYTES", "1..=8 bytes, with escapes \\n \\r \\t \\0 \\xNN \\\\"),
        "eof: the delimiter",
    ),
    key(
        "package_length_type",
        Text("LETTER", "one of c C s S n v l L N V q Q J P"),
        "length: the type of the length field, as in PHP's pack",
    ),
    key("package_length_offset", Count(0, 65535), "length: bytes before the length field"),
    key("package_body_offset", Count(0, 65535), "length: bytes that the length does not count"),
    key(
        "package_length_func",
        Text("NAME", "the name of a function that the program gives"),
        "length: a function of the program's that tells the length",
    ),
    key("package_max_length", Size(64, GIB), "bytes of the longest packet"),
    key("task_worker_num", Count(0, 1024), "task worker processes"),
    key("task_queue_max", Count(1, 65535), "tasks of one worker under way at one time"),
    key(
        "task_queue_wait",
        Seconds(0.0, 86400.0),
        "how long a worker that asks for one more waits for room, 0 for not at all",
    ),
    key(
        "task_buffer_size",
        Size(0, 64 * GIB),
        "bytes of memory for tasks of more than 8 KiB, of all together",
    ),
    key("task_retries", Count(0, 100), "how many more task workers begin a task that one has died on"),
    key(
        "task_max_request",
        Count(0, i64::MAX as u64),
        "tasks after which a task worker is replaced in its turn, 0 for no limit",
    ),
    key(
        "task_tmpdir",
        Text("DIR", "a directory"),
        "where tasks of more than 8 KiB lie that task_buffer_size has no room for",
    ),
    key(
        "task_ipc_mode",
        Choice(&["ring", "unix", "msgqueue", "msgqueue_preemptive"]),
        "how task workers learn of tasks",
    ),
    key(
        "message_queue_key",
        Count(0, u32::MAX as u64),
        "msgqueue: the key of a queue that outlives the server, 0 for none",
    ),
    key(
        "dispatch_mode",
        Choice(&[
            "fixed",
            "round_robin",
            "idle",
            "ip_hash",
            "uid",
            "least_in_flight",
            "consistent_hash",
            "custom",
        ]),
        "which worker gets a packet",
    ),
    key("dispatch_key_offset", Count(0, 65535), "consistent_hash: bytes of a packet before its key"),
    key("dispatch_key_length", Count(0, 65535), "consistent_hash: bytes of the key, 0 for all that follow"),
    key("on_crash", Choice(&["close", "retry", "drop"]), "what becomes of the packet that a worker died on"),
    key("crash_retries", Count(0, 100), "on_crash = retry: how many more workers get it"),
    key(
        "request_slow_time",
        Seconds(0.0, 86400.0),
        "how long a worker may be at one packet before the log tells what it is at, 0 for never",
    ),
    key(
        "request_terminate_time",
        Seconds(0.0, 86400.0),
        "how long a worker may be at one packet, 0 for ever; then it is killed",
    ),
    key(
        "worker_start_timeout",
        Seconds(0.0, 86400.0),
        "how long a successor may take to start, 0 for ever; then it is killed",
    ),
    key(
        "restart_intensity",
        Count(1, 1000),
        "failed starts within restart_period that make a worker a failed one",
    ),
    key("restart_period", Seconds(1.0, 86400.0), "see restart_intensity"),
    key(
        "max_request",
        Count(0, i64::MAX as u64),
        "packets after which a worker is replaced in its turn, 0 for no limit",
    ),
    key(
        "max_request_grace",
        Count(0, i64::MAX as u64),
        "at most so many more, by chance; default max_request / 2",
    ),
    key(
        "max_memory",
        Size(0, 1024 * GIB),
        "bytes of private memory above which a worker is replaced in its turn, 0 for no limit",
    ),
    key("max_wait_time", Seconds(0.1, 3600.0), "how long a worker may take to stop"),
    key("close_listen", Choice(&["first", "last"]), "when a stop closes the listening sockets"),
    key("max_timer", Count(1, 1_000_000), "timers of one worker or task worker at one time"),
    key("max_subscription", Count(1, 65_536), "topics that one client may be subscribed to"),
    key("max_connection", Count(1, 1_000_000), "client connections at one time"),
    key("max_connection_per_ip", Count(0, 1_000_000), "client connections of one IP address, 0 for no limit"),
    key("max_accept_rate", Count(0, 1_000_000), "clients accepted in a second, 0 for no limit; others wait"),
    key(
        "heartbeat_check_interval",
        Seconds(0.0, 86400.0),
        "how often to look for clients that send nothing, 0 for at any time",
    ),
    key("heartbeat_idle_time", Seconds(0.0, 86400.0), "how long a client may send nothing, 0 for ever"),
    key(
        "max_idle_time",
        Seconds(0.0, 86400.0),
        "how long nothing may be sent or received on a connection, 0 for ever",
    ),
    key(
        "package_max_time",
        Seconds(0.0, 86400.0),
        "how long a packet may take from its first byte to its last, 0 for ever",
    ),
    key(
        "max_queue",
        Count(0, 1_000_000),
        "packets that may be with one worker, 0 for no limit; more are shed",
    ),
    key(
        "max_queue_time",
        Seconds(0.0, 86400.0),
        "how long a packet may wait for a worker, 0 for ever; then it is shed",
    ),
    key(
        "busy_reply",
        Text("BYTES", "at most 4096 bytes, with escapes \\n \\r \\t \\0 \\xNN \\\\"),
        "what a packet that is shed is answered with; default its connection is closed",
    ),
    key("backlog", Count(1, 65535), "connections that wait in the kernel to be accepted"),
    key("open_tcp_nodelay", Switch, "send small replies at once"),
    key("open_tcp_keepalive", Switch, "ask silent clients whether they are there"),
    key("tcp_keepidle", Count(1, 32_767), "seconds of silence before a client is asked"),
    key("tcp_keepinterval", Count(1, 32_767), "seconds between two such questions"),
    key("tcp_keepcount", Count(1, 127), "questions without an answer that end a connection"),
    key(
        "tcp_defer_accept",
        Count(0, 3600),
        "seconds to wait for a client's first byte before it is accepted, 0 for not at all",
    ),
    key(
        "tcp_fastopen",
        Count(0, 65_535),
        "clients at once that send with their SYN and have not finished the handshake, 0 for none",
    ),
    key(
        "tcp_user_timeout",
        Count(0, 86_400_000),
        "milliseconds that what was sent may be unacknowledged, 0 for as the kernel has it",
    ),
    key("ipv6_only", Switch, "an IPv6 address takes no IPv4 clients"),
    key("reuse_port", Switch, "other servers of the same user may listen there, too"),
    key("unix_mode", Text("MODE", "octal digits as text, 0..=777"), "the mode of a unix socket's file"),
    key("unix_user", Text("USER", "the name or number of a user"), "who owns a unix socket's file"),
    key("unix_group", Text("GROUP", "the name or number of a group"), "whose group a unix socket's file has"),
    key(
        "proxy_protocol",
        Choice(&["off", "v1", "v2", "any"]),
        "which PROXY header says for whom a proxy connects",
    ),
    key("proxy_trusted", Networks, "whose PROXY headers are believed; may repeat"),
    key("proxy_timeout", Seconds(0.1, 3600.0), "how long a PROXY header may take to come"),
    key("socket_buffer_size", Size(64 * KIB, GIB), "bytes of replies that may wait for one slow client"),
    key(
        "buffer_high_watermark",
        Size(0, GIB),
        "bytes that wait for a client when its worker is told, 0 for 4/5 of socket_buffer_size",
    ),
    key("buffer_low_watermark", Size(0, GIB - 1), "bytes that are left when its worker is told again"),
    key("enable_delay_receive", Switch, "read nothing from a client before a worker has confirmed it"),
    key("open_cpu_affinity", Switch, "keep each reactor and worker on one core"),
    key(
        "busy_poll",
        Count(0, 100_000),
        "microseconds to look for work before going to sleep, 0 for a few at times",
    ),
    key("reload_mode", Choice(&["rolling", "all"]), "replace one worker after the other or all at once"),
    key(
        "reload_parallel",
        Count(1, 1024),
        "workers at once that are being replaced by a rolling reload, max_request and max_memory",
    ),
    key("pid_file", Text("FILE", "a path"), "holds the master's process id while the server runs"),
    key("daemonize", Switch, "leave the terminal and go on in the background"),
    key(
        "log_level",
        Choice(&["error", "warn", "info", "debug", "trace"]),
        "the least severe lines that are logged",
    ),
    key("log_file", Text("FILE", "a path"), "where log lines are appended; default standard error"),
    key("user", Text("USER", "the name or number of a user"), "who workers are"),
    key(
        "group",
        Text("GROUP", "the name or number of a group"),
        "whose group workers have; default that of user",
    ),
    key("chroot", Text("DIR", "a directory"), "the root directory of workers"),
    key("worker_sandbox", Choice(&["off", "basic", "strict"]), "what workers may ask of the kernel"),
    key("worker_sandbox_read", Paths, "strict: what workers may read; may repeat"),
    key("worker_sandbox_write", Paths, "strict: what workers may change; may repeat"),
    key("worker_sandbox_connect", Choice(&["none", "unix", "any"]), "strict: which sockets workers may open"),
    key("ssl_cert_file", Text("FILE", "a path"), "tls: the certificate and its chain (PEM)"),
    key("ssl_key_file", Text("FILE", "a path"), "tls: its private key (PEM), readable by nobody else"),
    key("ssl_client_cert_file", Text("FILE", "a path"), "tls: authorities of clients' certificates (PEM)"),
    key(
        "ssl_verify_peer",
        Choice(&["off", "request", "require"]),
        "tls: whether clients have to show certificates",
    ),
    key(
        "ssl_protocols",
        Text("NAMES", "TLSv1.2, TLSv1.3 or both, with `:` between them"),
        "tls: the versions that are spoken",
    ),
    key("ssl_ciphers", Text("NAMES", "names of cipher suites, with `:` between them"), "tls: cipher suites"),
    key(
        "ssl_alpn",
        Text("NAMES", "names of 1..=255 bytes, with `:` between them"),
        "tls: protocols to choose from (ALPN)",
    ),
    key("ssl_stapling_file", Text("FILE", "a path"), "tls: an OCSP response for the certificate (DER)"),
    key(
        "ssl_sni_certs",
        Text("CERTS", "HOST=CERT_FILE:KEY_FILE, with `;` between them; HOST may begin with `*.`"),
        "tls: more certificates, by the name that a client asks for",
    ),
    key("ssl_handshake_timeout", Seconds(0.1, 3600.0), "tls: how long a client's handshake may take"),
];

/// The key of this name.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

impl Key {
    /// Completes "must be ...".
    pub(super) fn expected(&self) -> String {
        match self.kind {
            Count(min, max) => format!("{min}..={max}"),
            Size(min, max) => format!("{}..={}", size::format(min), size::format(max)),
            Seconds(min, max) => format!("{min}..={max} seconds"),
            Switch => "true or false".into(),
            Choice([only]) => (*only).into(),
            Choice(names) => {
                let (last, others) = names.split_last().unwrap_or((&"", &[]));
                format!("{} or {last}", others.join(", "))
            }
            Text(_, expected) => expected.into(),
            Listen => {
                "tcp://IP:PORT, tls://IP:PORT, udp://IP:PORT, unix:///PATH, unixgram:///PATH or fd://NAME"
                    .into()
            }
            Paths => "a file or directory that exists".into(),
            Networks => "networks, as 10.0.0.0/8, 2001:db8::/32 or 192.0.2.1".into(),
        }
    }

    /// The flag, with its dashes.
    pub(super) fn flag(&self) -> String {
        format!("--{}", self.name.replace('_', "-"))
    }

    /// Whether it holds several values, each flag another one.
    pub(super) fn is_list(&self) -> bool {
        matches!(self.kind, Listen | Paths | Networks)
    }

    /// What stands for the value in the help, after the flag.
    fn placeholder(&self) -> String {
        match self.kind {
            Count(..) => " N".into(),
            Size(..) => " SIZE".into(),
            Seconds(..) => " SECONDS".into(),
            Switch => "[=true|false]".into(),
            Choice(names) => format!(" {}", names.join("|")),
            Text(name, _) => format!(" {name}"),
            Listen => " ADDRESS".into(),
            Paths => " PATH".into(),
            Networks => " NETWORK".into(),
        }
    }

    /// What the flags and the environment give as text, as the type that TOML has for it; text that is none stays
    /// text, and is refused with a better error than this place could give.
    pub(super) fn read(&self, text: &str) -> toml::Value {
        let typed = match self.kind {
            // As TOML has it.
            Count(..) => match text.strip_prefix("0x") {
                Some(digits) => i64::from_str_radix(digits, 16).ok(),
                None => text.parse().ok(),
            }
            .map(toml::Value::Integer),
            Seconds(..) => text.parse().ok().map(toml::Value::Float),
            Switch => text.parse().ok().map(toml::Value::Boolean),
            Size(..) | Choice(_) | Text(..) | Listen | Paths | Networks => None,
        };
        typed.unwrap_or_else(|| toml::Value::String(text.into()))
    }

    /// One line of help.
    pub(super) fn help(&self, default: Option<&toml::Value>) -> String {
        let mut notes = match self.kind {
            Count(_, max) if max == i64::MAX as u64 => vec![],
            Count(..) | Size(..) | Seconds(..) | Listen => vec![self.expected()],
            _ => vec![],
        };
        match default {
            Some(toml::Value::Array(none)) if none.is_empty() => {}
            Some(toml::Value::String(none)) if none.is_empty() => {}
            Some(default) => notes.push(format!("default {}", show(default))),
            None => {}
        }
        let notes = if notes.is_empty() { String::new() } else { format!(" [{}]", notes.join(", ")) };
        help_line(&format!("{}{}", self.flag(), self.placeholder()), &format!("{}{notes}", self.help))
    }
}

/// A flag and what it does, in two columns.
pub(super) fn help_line(flag: &str, help: &str) -> String {
    format!("  {flag:<40} {help}\n")
}

/// A value as a person would write it in a flag.
pub(super) fn show(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Array(items) => items.iter().map(show).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}
