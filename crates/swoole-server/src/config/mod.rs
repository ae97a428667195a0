//! What can be set, where it may be set, and what values make sense.
//!
//! A [`Config`] is built in code, or by [`Config::from_args`] from four layers with the same key names everywhere,
//! each winning over the one before:
//!
//! 1. the defaults (those below, or the program's own: [`Sources::new`]),
//! 2. a TOML file: `--config server.toml` with `worker_num = 4`,
//! 3. the environment: `SWOOLE_WORKER_NUM=4`,
//! 4. flags: `--worker-num 4` or `--worker-num=4`; `--listen` may repeat.
//!
//! Whatever the source, [`Config::validate`] is the one place that says what is allowed, and every error names the
//! key, its value, what would be right, and where the value stands.
//!
//! ```
//! use swoole_server::config::{Config, Sources};
//!
//! let mut config = Config::default();
//! config.listen.push("tcp://127.0.0.1:9501".parse()?);
//! config.worker_num = 2;
//! config.validate()?;
//!
//! let flags = ["--listen", "unix:///tmp/app.sock", "--package-max-length", "4M"].map(Into::into);
//! let config = Sources::new(config).load(flags, [])?;
//! assert_eq!(config.package_max_length, 4 * 1024 * 1024);
//!
//! let error = Sources::new(config).load(["--worker-num=0"].map(Into::into), []).unwrap_err();
//! assert_eq!(error.to_string(), "flag --worker-num: worker_num = 0: must be 1..=1024");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
#![doc = include_str!("options.md")]
//!
#![doc = include_str!("bounds.md")]

mod error;
mod explain;
mod framing;
mod keys;
mod limits;
mod listen;
mod proxy;
mod reread;
mod socket;
mod source;
mod ssl;
mod validate;
mod value;

pub use error::{ConfigError, Origin};
pub(crate) use framing::{Framings, LengthFuncs};
pub(crate) use limits::ByListener;
pub use listen::{Listen, ListenError};
pub(crate) use proxy::ProxyRule;
pub use proxy::{Network, NetworkError, ProxyOptions};
pub use socket::SocketOptions;
pub use source::Sources;
pub(crate) use ssl::CipherSuite;
#[cfg(feature = "tls")]
pub(crate) use ssl::SslProtocol;
pub use ssl::{SniCert, SniCerts};
pub use swoole_protocol::LengthType;
pub use swoole_reactor::Backend;
pub use swoole_reactor::listener::Address;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Everything that can be set about a server. [`Default`] listens nowhere yet.
///
/// Keys have Swoole's names and meanings unless a field says otherwise. Sizes are in bytes; as text they may carry a
/// binary suffix: `512K`, `2M`, `1G`. Values that are out of range may be stored, and are refused by
/// [`validate`](Config::validate), which every server calls before it starts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Config {
    /// Where clients connect: at least one address. Port 0 takes a free port.
    ///
    /// In the environment several are separated by commas. Swoole: the constructor and `listen()`.
    #[serde(deserialize_with = "listen::one_or_many")]
    pub listen: Vec<Listen>,

    /// How the work is divided between processes. Default [`Mode::Process`]. Swoole: the constructor's mode.
    pub mode: Mode,

    /// Worker processes, 1..=1024. Default: the number of cores. Swoole: `worker_num`.
    pub worker_num: u16,

    /// Reactor threads of the master, 1..=64. Default: the number of cores, at most 8. Swoole: `reactor_num`.
    pub reactor_num: u8,

    /// What the reactors wait with. Default [`Backend::Auto`]. (Swoole chooses when it is compiled.)
    #[serde(with = "value::text")]
    pub backend: Backend,

    /// How packets travel between reactors and workers. Default [`Ipc::Ring`]. (Swoole has sockets only.)
    pub ipc: Ipc,

    /// Bytes of one shared-memory ring, of which each pair of reactor and worker has two. A power of two,
    /// 16 KiB..=64 MiB. Default 512 KiB, which stays inside a core's second-level cache. See
    /// [`ring_bytes`](Config::ring_bytes).
    #[serde(with = "value::size")]
    pub ring_size: usize,

    /// Bytes that all rings may take together, 32 KiB..=64 GiB. Default 128 MiB. With many workers and reactors the
    /// rings become smaller than [`ring_size`](Config::ring_size) until they fit.
    #[serde(with = "value::size")]
    pub ring_memory_max: usize,

    /// Where one packet of a stream ends. Default [`Framing::Raw`]. Swoole: `open_eof_check`, `open_length_check`.
    ///
    /// An address may have its own, see [`Listen`]; so it may for the keys below, down to `package_max_length`.
    pub framing: Framing,

    /// With eof framing: whether a packet ends at every delimiter (`true`, default), or only where one ends the
    /// received data (`false`; see [`swoole_protocol::EofOptions`]). Swoole: `open_eof_split`, there `false`.
    pub open_eof_split: bool,

    /// With eof framing: the delimiter, 1..=8 bytes. Default `\r\n`. As text, `\n`, `\r`, `\t`, `\0`, `\xNN` and
    /// `\\` stand for their bytes. Swoole: `package_eof`, there `\r\n\r\n`.
    #[serde(with = "value::escaped")]
    pub package_eof: Vec<u8>,

    /// With length framing: the type of the length field, a letter of PHP's `pack`. Default `N`: 32 bits, network
    /// order. Swoole: `package_length_type`.
    #[serde(with = "value::text")]
    pub package_length_type: LengthType,

    /// With length framing: bytes before the length field, 0..=65535. Default 0. Swoole: `package_length_offset`.
    pub package_length_offset: usize,

    /// With length framing: bytes of a packet that its length does not count, 0..=65535. Default 4, the header of
    /// the default type. Swoole: `package_body_offset`.
    pub package_body_offset: usize,

    /// With length framing: the name of a function that tells how long a packet is, in place of type and offsets. The
    /// program gives it: [`Server::package_length_func`](crate::Server::package_length_func). Default: none. Swoole:
    /// `package_length_func`, which is the function itself, and leaves one reactor thread to the server.
    pub package_length_func: Option<String>,

    /// Bytes of the longest packet that is accepted, with its header, delimiter or line end, 64..=1 GiB. Default 2 MiB. A
    /// connection that sends a longer one is closed. Swoole: `package_max_length`.
    #[serde(with = "value::size")]
    pub package_max_length: usize,

    /// Task worker processes, 0..=1024: they do what workers ask of them ([`Worker::task`](crate::Worker::task)). Default 0.
    /// Swoole: `task_worker_num`.
    pub task_worker_num: u16,

    /// Tasks of one worker that may be under way at one time, 1..=65535: they wait, or a task worker is at them, or their
    /// results wait. Default 1024. To ask for one more is an error, or waits (`task_queue_wait`). Shared memory is set aside
    /// for them, 16 KiB each, of which the system gives out what is used. (In Swoole they wait in the socket, and then in
    /// memory, without limit.)
    pub task_queue_max: usize,

    /// How many seconds [`Worker::task`](crate::Worker::task), `task_to` and `task_wait` wait for room while `task_queue_max`
    /// tasks are under way, 0..=86400. Default 0: that is an error at once. With more, the worker does nothing else while it
    /// waits; what was asked and sent before leaves first, as in `task_wait`. Task workers never wait, as they might for
    /// themselves; nor do the manager and the master, whose callbacks hold up the server. (Swoole waits until the socket takes
    /// it.)
    #[serde(with = "value::seconds")]
    pub task_queue_wait: Duration,

    /// Bytes of memory for payloads and results of more than 8 KiB, of all tasks together, 0..=64 GiB. Default 64 MiB. What it
    /// has no room for is in files (`task_tmpdir`), as is what is to outlive the server (`message_queue_key`), and everything
    /// where files have a limit (`ulimit -f`). Memory is taken as it is needed, and given back when a task is over. (Swoole
    /// has files only.)
    #[serde(with = "value::size")]
    pub task_buffer_size: usize,

    /// How many more task workers begin a task that one has died on, 0..=100. Default 0: it is lost, and its worker is
    /// told ([`TaskError::Lost`](crate::TaskError::Lost)). With more, a task may be begun twice: what it does to the rest
    /// of the world should not mind. (Swoole loses it silently.)
    pub task_retries: u32,

    /// Tasks after which a task worker is due to be replaced, in its turn; 0 (default) for no limit. Above 10, half as many
    /// more by chance, as for `max_request`. Swoole: `task_max_request`.
    pub task_max_request: u64,

    /// A directory for files with payloads and results of more than 8 KiB that `task_buffer_size` has no room for. Default: that
    /// for temporary files (`TMPDIR`, `/tmp`). They are gone when the task is; what a server that was killed has left, the next one removes. So
    /// servers that do not see each other's processes, as in two containers, must not share it.
    /// Swoole: `task_tmpdir`.
    pub task_tmpdir: PathBuf,

    /// How task workers learn of tasks. Default [`TaskIpcMode::Ring`]. Swoole: `task_ipc_mode` (1 is unix, 2 msgqueue, 3
    /// msgqueue_preemptive).
    pub task_ipc_mode: TaskIpcMode,

    /// The key of a System V message queue for tasks that outlives the server (ftok(3); as text also in hex, `0x5377`); 0
    /// (default) for queues that go with it, one for each task worker and one for whoever is free (`kernel.msgmni` bounds how
    /// many there may be). Only with [`TaskIpcMode::Msgqueue`] and [`TaskIpcMode::MsgqueuePreemptive`].
    ///
    /// Tasks that are not done when the server ends, be it by `kill -9` of every process, are done by the next one with
    /// this key and this `task_tmpdir`, as tasks of nobody ([`TaskId::is_foreign`](crate::TaskId::is_foreign)). Those that
    /// somebody has begun are lost at `task_retries = 0`, which the next one logs and counts; with more, each task has a file
    /// in `task_tmpdir`, and they are begun again. Queue and files are one user's. Other programs can push tasks:
    /// [`TaskQueue`](crate::TaskQueue). A task that was taken back may be done by the next server, and one that ended just when
    /// all were killed, twice with `task_retries`.
    ///
    /// A second server with a key that is in use is refused. Swoole: `message_queue_key`.
    pub message_queue_key: u32,

    /// Which worker gets a packet, in Process mode: in Base mode each worker handles what its own clients send. Default
    /// [`DispatchMode::Fixed`], which keeps the order of a connection's packets. Where that is not needed, take
    /// [`DispatchMode::LeastInFlight`]: a packet waits behind another one only if everybody is busy. Under each rule a
    /// connection's `on_connect` comes before all of its packets, and its `on_close` after them. Swoole: `dispatch_mode`,
    /// there a number.
    pub dispatch_mode: DispatchMode,

    /// With `dispatch_mode = consistent_hash`: bytes of a packet before its key, 0..=65535. Default 0. (Swoole has no
    /// such key.)
    pub dispatch_key_offset: usize,

    /// With `dispatch_mode = consistent_hash`: bytes of the key, 0..=65535. Default 0: all to the end of the packet. Of a
    /// key that the packet does not hold whole, what there is of it counts; a packet without any goes to the worker that
    /// hears of its connection's connect. (Swoole has no such key.)
    pub dispatch_key_length: usize,

    /// What becomes of the packet that a worker died on. Default [`OnCrash::Close`], and nothing else in Base mode, where
    /// a worker's connections go with it. An address may have its own, see [`Listen`]. (Swoole loses it silently.)
    pub on_crash: OnCrash,

    /// With `on_crash = retry`: how many more workers get a packet that one has died on, 0..=100. Default 1. A packet
    /// that this many more die on is poison: it is dropped, its connection is closed, and the log names it. An address may
    /// have its own, see [`Listen`].
    pub crash_retries: u32,

    /// Seconds that a worker may be at one packet (or timer), 0..=86400, before the log tells of it once: which worker, the packet's
    /// session and size, and what the worker is at, as a call stack with names. Default 0: never. Found out as
    /// `request_terminate_time` is. The worker writes its stack in a handler of `SIGURG`, by which its system calls may
    /// fail with `EINTR`. php-fpm: `request_slowlog_timeout`.
    #[serde(with = "value::seconds")]
    pub request_slow_time: Duration,

    /// Seconds that a worker may be at one packet (or timer), 0..=86400, before it is killed, and the packet goes the way of
    /// `on_crash`. Default 0: for ever. Found out within an eighth of that time more, a second at most. Counted is what
    /// passes on the clock, also while the handler waits for something or the process is stopped; a worker that starts,
    /// or leaves (`max_wait_time`), is not meant. php-fpm: `request_terminate_timeout`.
    #[serde(with = "value::seconds")]
    pub request_terminate_time: Duration,

    /// Seconds that a worker may take to start (`on_worker_start`), 0..=86400, before it is killed and counts as one that
    /// cannot start: a reload ends there, and the workers that it has not come to go on serving. Default 0: for ever. The
    /// first process of each worker is waited for in any case.
    #[serde(with = "value::seconds")]
    pub worker_start_timeout: Duration,

    /// So many starts of a worker, 1..=1000, that failed within `restart_period` make it a failed one: the next ones are
    /// 5 s apart. Default 10. (Before that they are 0, 50 ms, 100 ms, 200 ms ... apart, each a fifth more or less; a
    /// worker that had started is replaced at once, and within 100 ms if it keeps dying.)
    pub restart_intensity: u32,

    /// See `restart_intensity`: seconds, 1..=86400. Default 60.
    #[serde(with = "value::seconds")]
    pub restart_period: Duration,

    /// Packets after which a worker is due to be replaced; 0 (default) for no limit. It goes on serving until its turn
    /// comes ([`reload_parallel`](Config::reload_parallel)), however many more packets that are; also while there is no
    /// manager, or successors of others fail to start. Swoole: `max_request`, a hard limit.
    pub max_request: u64,

    /// At most so many packets, a random number of them, are added to `max_request`, so that workers that started
    /// together do not retire together. Default: half of `max_request` if that is above 10, else 0; see
    /// [`request_grace`](Config::request_grace). Swoole: `max_request_grace`.
    pub max_request_grace: Option<u64>,

    /// Bytes of private memory, 0..=1024 GiB, above which a worker is due to be replaced, as for `max_request`; the log
    /// names it, with both figures. Default 0: no limit. Private is what the process alone has written or mapped
    /// (`Private_Clean` and `Private_Dirty` in `/proc/PID/smaps_rollup`): not the rings, and not what it shares with others
    /// since the fork. The manager looks at each worker about once a second; where that would take more than a hundredth
    /// of its time, less often. With a limit that a worker exceeds from its start, it is replaced again and again. (Swoole
    /// has no such key. uWSGI: `reload-on-rss`, of all memory.)
    #[serde(with = "value::size")]
    pub max_memory: usize,

    /// How long a worker may take to finish when it is asked to stop, before it is killed: 0.1..=3600 seconds.
    /// Default 3 s. Swoole: `max_wait_time`, whole seconds.
    #[serde(with = "value::seconds")]
    pub max_wait_time: Duration,

    /// When a stop closes the listening sockets. Default [`CloseListen::First`]. (Swoole closes them last.)
    /// Those for datagrams, by which answers leave, are closed last in any case.
    pub close_listen: CloseListen,

    /// Timers of one worker at one time, 1..=1000000. Default 100000. To set another one is an error. (Swoole has no limit.)
    pub max_timer: usize,

    /// Topics that one client may be [subscribed](crate::Worker::subscribe) to, 1..=65536. Default 128. Each takes some hundred
    /// bytes of the reactor that has the client, and the name of a topic, up to 255, once for all who are subscribed there.
    pub max_subscription: usize,

    /// Client connections at one time, 1..=1000000. Default 100000. The process's limit of open files bounds it too:
    /// see [`connection_limit`](Config::connection_limit). Swoole: `max_connection`, there a limit of the
    /// descriptor's number.
    pub max_connection: usize,

    /// Client connections of one IP address at one time, at each address that it connects to, 0..=1000000; 0 (default) for no
    /// limit. One more is closed as soon as it is accepted, and counted
    /// ([`Stats::refuse_count`](crate::Stats::refuse_count)). Of IPv6 the first 64 bits count, which are one customer's; where
    /// `proxy_protocol` is on there is no limit, because everybody comes from the proxy's address. In Base mode each worker counts its own clients, so that an address may have
    /// so many with each worker. An address may have its own, see [`Listen`]. (Swoole has no such key.)
    pub max_connection_per_ip: usize,

    /// Clients that are accepted in a second, 0..=1000000; 0 (default) for no limit. A tenth of it may come at once; the
    /// others wait in the kernel, up to `backlog`, and nobody is refused for it. In Base mode each worker accepts an equal
    /// share. (Swoole has no such key.)
    pub max_accept_rate: u32,

    /// Seconds between two looks for clients whose `heartbeat_idle_time` is over, 0..=86400. Default 0: each is closed when
    /// it is over. Alone, it sets `heartbeat_idle_time` to twice as much. Swoole: `heartbeat_check_interval`, there half of
    /// `heartbeat_idle_time` by default.
    #[serde(with = "value::seconds")]
    pub heartbeat_check_interval: Duration,

    /// Seconds that a client may send nothing, 0..=86400, before it is closed. Default 0: for ever. What counts are bytes from
    /// the client, whether they are a packet or not; it is never the server's delay that counts, as while a packet waits for
    /// room. An address may have its own, see [`Listen`]. Swoole: `heartbeat_idle_time`.
    #[serde(with = "value::seconds")]
    pub heartbeat_idle_time: Duration,

    /// Seconds that nothing may pass between a client and the server, in neither direction, 0..=86400, before the connection is
    /// closed. Default 0: for ever. A client whose packet a worker is at is not idle; one that does not take its replies is.
    /// An address may have its own, see [`Listen`]. Swoole: `max_idle_time`.
    #[serde(with = "value::seconds")]
    pub max_idle_time: Duration,

    /// Seconds that a packet may take from its first byte to its last, 0..=86400, before its sender is closed, however steadily
    /// it sends. Default 0: for ever. Against clients that hold connections with packets that they never end; where packets
    /// are large, the slowest honest client must be able to send one in that time. With raw framing there is nothing to wait
    /// for. An address may have its own, see [`Listen`]. (Swoole has no such key; nginx: `client_header_timeout`.)
    #[serde(with = "value::seconds")]
    pub package_max_time: Duration,

    /// Packets that may be with one worker, waiting or in hand, 0..=1000000 (connects and closes count as well, and the pieces
    /// of large packets); 0 (default) for no limit but room (`ring_size`), at which clients are not read from. One more is shed: the worker answers it with `busy_reply` in its
    /// turn, without running the handler, or closes its connection if there is none. Where any worker will do
    /// (`dispatch_mode`), it is shed when all have so many. Only in Process mode: in Base mode packets wait in the kernel. An
    /// address may have its own, see [`Listen`]. (Swoole has no such key.)
    pub max_queue: usize,

    /// Seconds that a packet may have waited when a worker comes to it, 0..=86400; then it is shed, as at `max_queue`. Default
    /// 0: for ever. A queue that is always there makes every client wait, and nobody more is served for it; where clients give
    /// up after a second, what has waited for longer is work for nobody. So this is the limit that follows from what clients
    /// want, whatever a packet costs, and `max_queue` bounds what waits meanwhile. Only in Process mode. An address may have
    /// its own, see [`Listen`]. (Swoole has no such key.)
    #[serde(with = "value::seconds")]
    pub max_queue_time: Duration,

    /// What a packet that is shed is answered with, as it is, so with the length or the delimiter that clients expect; at
    /// most 4096 bytes, with the escapes of `package_eof`. Default: none, its connection is closed. An address may have its own,
    /// see [`Listen`]. (Swoole has no such key.)
    #[serde(with = "value::escaped")]
    pub busy_reply: Vec<u8>,

    /// Connections that wait in the kernel to be accepted, 1..=65535, per address; the kernel's own limit is
    /// `net.core.somaxconn`. Default 511. An address may have its own, see [`SocketOptions`]; so it may for the keys below,
    /// down to `proxy_timeout`. Swoole: `backlog`, there 512.
    pub backlog: u32,

    /// Whether small replies are sent at once (`TCP_NODELAY`). Default `true`. Swoole: `open_tcp_nodelay`.
    pub open_tcp_nodelay: bool,

    /// Whether TCP clients that are silent are asked by the kernel whether they are still there (`SO_KEEPALIVE`), so that one
    /// that is gone without a word does not stay connected for ever. Default `false`. Swoole: `open_tcp_keepalive`.
    pub open_tcp_keepalive: bool,

    /// With `open_tcp_keepalive`: seconds of silence before a client is asked the first time, 1..=32767. Default 3600.
    /// Swoole: `tcp_keepidle`.
    pub tcp_keepidle: u32,

    /// With `open_tcp_keepalive`: seconds until it is asked again, 1..=32767. Default 60. Swoole: `tcp_keepinterval`.
    pub tcp_keepinterval: u32,

    /// With `open_tcp_keepalive`: so many times without an answer, 1..=127, end the connection. Default 5. Swoole:
    /// `tcp_keepcount`.
    pub tcp_keepcount: u32,

    /// Seconds, 0..=3600, for which the kernel keeps a TCP connection to itself until its client has sent something
    /// (`TCP_DEFER_ACCEPT`): who only connects costs no process anything. Afterwards it is accepted, or dropped, as the kernel
    /// likes. `on_connect` comes later, too: not for servers that speak first. Default 0: not at all. Swoole:
    /// `tcp_defer_accept`.
    pub tcp_defer_accept: u32,

    /// TCP clients, 0..=65535, that may have sent their first bytes with their SYN (`TCP_FASTOPEN`, RFC 7413) and not have
    /// finished the handshake. The kernel may deliver those bytes twice. Needs 2 in `net.ipv4.tcp_fastopen`. Default 0: none.
    /// Swoole: `tcp_fastopen`, where `true` is 1.
    pub tcp_fastopen: u32,

    /// Milliseconds, 0..=86400000, that what was sent to a TCP client may be unacknowledged before the connection ends
    /// (`TCP_USER_TIMEOUT`). Default 0: as long as the kernel tries, which is many minutes. Swoole: `tcp_user_timeout`, there
    /// only with `open_tcp_keepalive`.
    pub tcp_user_timeout: u32,

    /// Whether an IPv6 address takes IPv6 clients only (`IPV6_V6ONLY`). With `false`, `tcp://[::]:9501` takes IPv4 clients as
    /// well, and they are known by their IPv4 addresses. Default `true`, whatever `net.ipv6.bindv6only` says. (Swoole leaves
    /// it to the system.)
    pub ipv6_only: bool,

    /// Whether other servers of the same user may listen on the address as well (`SO_REUSEPORT`): the kernel deals
    /// connections among all that do. All of them must say so. For a server that is to take the place of another one
    /// without a gap. Default `false`: an address that is in use is refused. (In Base mode the workers of one server share
    /// an address in any case.) Swoole: `enable_reuse_port`.
    pub reuse_port: bool,

    /// The mode of a unix socket's file, 0..=777 in octal digits, as text; to connect takes the right to write. The file has
    /// it, whatever the umask, before anybody can connect. Default: what the umask leaves of 777. (Swoole has no such key.)
    #[serde(with = "value::octal")]
    pub unix_mode: Option<u32>,

    /// Who owns a unix socket's file, by name or number; before anybody can connect. Needs `CAP_CHOWN`. Default: who starts
    /// the server. (Swoole has no such key.)
    pub unix_user: Option<String>,

    /// The group of a unix socket's file, by name or number. Another one than those of who starts the server needs
    /// `CAP_CHOWN`. Default: that of who starts the server. (Swoole has no such key.)
    pub unix_group: Option<String>,

    /// Which header a proxy sends before all else, to say for whom it connects. The session has that address then
    /// ([`SessionInfo::peer`](crate::SessionInfo::peer)), also where packets are dispatched by it, and `on_connect` comes after
    /// the header. Default [`ProxyProtocol::Off`]. (Swoole has no such key.)
    ///
    /// The header is demanded: who sends none, or none that can be read, is closed, and so is who is not of `proxy_trusted`,
    /// before anything is read. [`Stats`](crate::Stats) counts both. A header that speaks for nobody (`LOCAL`, `UNKNOWN`:
    /// the proxy's own health checks) leaves the connection's own address.
    pub proxy_protocol: ProxyProtocol,

    /// Whose PROXY headers are believed: networks as `10.0.0.0/8`, `2001:db8::/32` or `192.0.2.1`. In the environment
    /// several are separated by commas. Default: nobody, so `proxy_protocol` needs it; except that who connects to a unix
    /// socket is always believed, as the right to do that is given by the file's mode. (Swoole has no such key.)
    #[serde(deserialize_with = "value::networks::deserialize")]
    pub proxy_trusted: Vec<Network>,

    /// Seconds, 0.1..=3600, that a PROXY header may take to come, before the connection is closed. Default 5. (Swoole has no
    /// such key.)
    #[serde(with = "value::seconds")]
    pub proxy_timeout: Duration,

    /// Bytes of replies that may wait for one slow client, 64 KiB..=1 GiB. Default 8 MiB. A socket for datagrams asks the
    /// kernel for buffers of so many bytes in each direction, of which it gives at most `net.core.rmem_max` and
    /// `net.core.wmem_max`. Swoole: `socket_buffer_size`.
    #[serde(with = "value::size")]
    pub socket_buffer_size: usize,

    /// Bytes of replies that wait for a client when its worker is told so
    /// ([`on_buffer_full`](crate::Handler::on_buffer_full)), at most `socket_buffer_size`. Default 0: four fifths of that.
    /// Swoole: `buffer_high_watermark`.
    #[serde(with = "value::size")]
    pub buffer_high_watermark: usize,

    /// Bytes that are left of them when it is told again ([`on_buffer_empty`](crate::Handler::on_buffer_empty)), less than
    /// `buffer_high_watermark`. Default 0: all were taken. Swoole: `buffer_low_watermark`.
    #[serde(with = "value::size")]
    pub buffer_low_watermark: usize,

    /// Whether nothing is read from a client before a worker, as a rule in or after
    /// [`on_connect`](crate::Handler::on_connect), has [confirmed](crate::Worker::confirm) it. Default `false`. That such a
    /// client leaves is not noticed before either. Not for addresses of TLS or with `proxy_protocol`. Swoole:
    /// `enable_delay_receive`.
    pub enable_delay_receive: bool,

    /// Whether reactors and workers are each kept on a core of their own, a reactor and its workers on neighbouring cores
    /// of one NUMA node. Default `false`: they run where the scheduler puts them, and while there are no more cores than
    /// reactors and workers, one whose core others take for long goes to another one by itself. Which cores there are,
    /// the process's own affinity says (`taskset`). Swoole: `open_cpu_affinity`.
    pub open_cpu_affinity: bool,

    /// Microseconds that an event loop goes on looking for work before it sleeps, 0..=100000. Default 0: 40 us, and
    /// not at all while it has not paid of late. With more it is done always, which takes a core for each reactor and
    /// worker for as long as there is traffic, and saves their clients the time of a wake-up. (Swoole has no such key;
    /// the kernel's socket option of the same name is another thing.)
    pub busy_poll: u32,

    /// Whether a reload replaces one worker after the other or all at once. Default [`ReloadMode::Rolling`].
    /// Swoole: `reload_async`.
    pub reload_mode: ReloadMode,

    /// How many workers may be on their way out or in at once because of a rolling reload, `max_request` and
    /// `max_memory` together, 1..=1024. Default 1. The next one is asked to leave when a successor of one before it has
    /// returned from `on_worker_start`; one whose successor cannot start keeps its turn, so that the others go on serving.
    /// More than `worker_num` is all of them. A reload with `reload_mode = all` does not ask. (Swoole has no such key.)
    pub reload_parallel: u16,

    /// A file that holds the master's process id while the server runs. Default: none. Swoole: `pid_file`.
    pub pid_file: Option<PathBuf>,

    /// Whether the server leaves its terminal and goes on in the background. Default `false`. Swoole: `daemonize`.
    pub daemonize: bool,

    /// The least severe lines that are logged. Default [`LogLevel::Info`]. Swoole: `log_level`, there a number.
    pub log_level: LogLevel,

    /// Where log lines are appended. Default: standard error. Swoole: `log_file`.
    pub log_file: Option<PathBuf>,

    /// Who workers, task workers and user processes are, by name or number: uid, gid and all groups of that account. It is looked up when
    /// the server starts. Master and manager stay who they are. Needs `CAP_SETUID` and `CAP_SETGID`, unless it is the user
    /// that starts the server. Default: that one. Swoole: `user`.
    pub user: Option<String>,

    /// The group of workers, task workers and user processes, by name or number, instead of that of `user`; alone, their only one. A `user`
    /// that is a number without an account needs it. Needs `CAP_SETGID`. Default: that of `user`. Swoole: `group`.
    pub group: Option<String>,

    /// The root directory of workers, task workers and user processes, where they also start. All paths of the configuration are nevertheless
    /// those of the process that starts the server; `task_tmpdir`, if there are task workers, and the paths of the sandbox
    /// must lie in it. Without `user`, a process of root's gets out of it easily. Needs `CAP_SYS_CHROOT`. Default: none.
    /// Swoole: `chroot`.
    pub chroot: Option<PathBuf>,

    /// What workers, task workers and user processes may ask of the kernel. Default [`WorkerSandbox::Off`]. What a sandbox lets a program
    /// do that has taken over a worker, the crate's front page says. (Swoole has no such key.)
    pub worker_sandbox: WorkerSandbox,

    /// With `worker_sandbox = strict`: files, and directories with all below them, that workers may read, list and
    /// execute. Default: none. In the environment several are separated by commas.
    #[serde(deserialize_with = "value::paths::deserialize")]
    pub worker_sandbox_read: Vec<PathBuf>,

    /// With `worker_sandbox = strict`: files, and directories with all below them, that workers may read, change, make
    /// and remove; not execute, unless they are among `worker_sandbox_read`, too. Default: none, but for `task_tmpdir`, if
    /// there are task workers.
    #[serde(deserialize_with = "value::paths::deserialize")]
    pub worker_sandbox_write: Vec<PathBuf>,

    /// With `worker_sandbox = strict`: which sockets workers may open, to connect to others. Default
    /// [`SandboxConnect::None`].
    pub worker_sandbox_connect: SandboxConnect,

    /// TLS is done where the connections are, with the packets in clear between there and the handler. `on_connect` comes
    /// after the handshake, and a client that says its last word (`close_notify`) or ends its stream without one is answered
    /// first. In Base mode a worker that is replaced cannot hand TLS over: its clients of `tls://` take what was sent, and are
    /// closed in order. Tickets (resumption) are good for all reactors, until the next reload; in Base mode for six hours at
    /// most at another worker than the one that has given them. `SessionInfo` counts bytes as they are on the wire.
    ///
    /// The certificate of `tls://` addresses, with those that lead from it to one that clients know: a PEM file. It is read
    /// again at each reload; one that cannot be used leaves the last one in place, and the log says why. Default: none. An
    /// address may have its own, see [`Listen`]; so it may for the keys below, down to `ssl_sni_certs`. Swoole:
    /// `ssl_cert_file`.
    pub ssl_cert_file: Option<PathBuf>,

    /// The private key of that certificate: a PEM file (PKCS #8, PKCS #1 or SEC 1), not encrypted. It must not be open to
    /// all users, nor to its group for writing. In Process mode the master alone reads it, when manager and workers exist
    /// already: no other process ever has it in its memory. In Base mode workers do TLS, and have it. Default: none. Swoole:
    /// `ssl_key_file`.
    pub ssl_key_file: Option<PathBuf>,

    /// The authorities that clients' certificates come from: a PEM file. Default: none. Swoole: `ssl_client_cert_file`.
    pub ssl_client_cert_file: Option<PathBuf>,

    /// Whether clients show certificates. Default [`SslVerifyPeer::Off`]. (Swoole's `true` is `require`.)
    pub ssl_verify_peer: SslVerifyPeer,

    /// The versions of TLS that are spoken, of `TLSv1.2` and `TLSv1.3`: a list, or text with `:`, `,` or blanks between
    /// them. Default: both. Swoole: `ssl_protocols`, there a number.
    #[serde(deserialize_with = "value::words::deserialize")]
    pub ssl_protocols: Vec<String>,

    /// The cipher suites that are used, the best first, whatever order a client has: a list, or text with `:` between them, by OpenSSL's names or those of
    /// RFCs. Of a version of TLS of which none is named, all are used; so names of TLS 1.2 alone do not turn off TLS 1.3.
    /// Default: none, for all. All of them keep past connections secret if the key is lost. Swoole: `ssl_ciphers`.
    #[serde(deserialize_with = "value::words::deserialize")]
    pub ssl_ciphers: Vec<String>,

    /// The protocols that clients may choose from by ALPN, the best first: a list, or text with `:` between them, as
    /// `h2:http/1.1`. A client that offers others only is refused; one that offers none is not. Default: none, when offers are
    /// not looked at. (Swoole sets it by itself.)
    #[serde(deserialize_with = "value::words::deserialize")]
    pub ssl_alpn: Vec<String>,

    /// An OCSP response for `ssl_cert_file`, as DER, for clients that ask for it. Who renews it reloads the server. Default:
    /// none. (Swoole has no such key.)
    pub ssl_stapling_file: Option<PathBuf>,

    /// More certificates, by the name that a client asks for (SNI): `example.org`, or `*.example.org` for all names with one
    /// label in place of the asterisk. A name itself wins over an asterisk; for all other names, and for none, there is
    /// `ssl_cert_file`. A TOML file has a table for each:
    ///
    /// ```toml
    /// [ssl_sni_certs."*.example.org"]
    /// ssl_cert_file = "/etc/ssl/example.pem"
    /// ssl_key_file = "/etc/ssl/example.key"
    /// ```
    ///
    /// A flag has them as text: `*.example.org=/etc/ssl/example.pem:/etc/ssl/example.key;...`. Default: none. Swoole:
    /// `ssl_sni_certs`.
    pub ssl_sni_certs: SniCerts,

    /// How long a client may take from its connect to the end of the TLS handshake, 0.1..=3600 seconds. Default 10. One that
    /// takes longer is reset. No handler hears of it before. (Swoole has no such key.)
    #[serde(with = "value::seconds")]
    pub ssl_handshake_timeout: Duration,

    /// The names of the user processes, which are no key: they come from the program, with their functions
    /// ([`Server::add_process`](crate::Server::add_process)).
    #[serde(skip)]
    pub(crate) user_processes: Vec<String>,
}

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
const GIB: usize = 1024 * MIB;

impl Default for Config {
    fn default() -> Config {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Config {
            listen: Vec::new(),
            mode: Mode::Process,
            worker_num: cores.min(1024) as u16,
            reactor_num: cores.min(8) as u8,
            backend: Backend::Auto,
            ipc: Ipc::Ring,
            ring_size: 512 * KIB,
            ring_memory_max: 128 * MIB,
            framing: Framing::Raw,
            open_eof_split: true,
            package_eof: b"\r\n".to_vec(),
            package_length_type: LengthType::U32Be,
            package_length_offset: 0,
            package_body_offset: 4,
            package_length_func: None,
            package_max_length: 2 * MIB,
            task_worker_num: 0,
            task_queue_max: 1024,
            task_queue_wait: Duration::ZERO,
            task_buffer_size: 64 << 20,
            task_retries: 0,
            task_max_request: 0,
            task_tmpdir: std::env::temp_dir(),
            task_ipc_mode: TaskIpcMode::Ring,
            message_queue_key: 0,
            dispatch_mode: DispatchMode::Fixed,
            dispatch_key_offset: 0,
            dispatch_key_length: 0,
            on_crash: OnCrash::Close,
            crash_retries: 1,
            request_slow_time: Duration::ZERO,
            request_terminate_time: Duration::ZERO,
            worker_start_timeout: Duration::ZERO,
            restart_intensity: 10,
            restart_period: Duration::from_secs(60),
            max_request: 0,
            max_request_grace: None,
            max_memory: 0,
            max_wait_time: Duration::from_secs(3),
            close_listen: CloseListen::First,
            max_timer: 100_000,
            max_subscription: 128,
            max_connection: 100_000,
            max_connection_per_ip: 0,
            max_accept_rate: 0,
            heartbeat_check_interval: Duration::ZERO,
            heartbeat_idle_time: Duration::ZERO,
            max_idle_time: Duration::ZERO,
            package_max_time: Duration::ZERO,
            max_queue: 0,
            max_queue_time: Duration::ZERO,
            busy_reply: Vec::new(),
            backlog: 511,
            open_tcp_nodelay: true,
            open_tcp_keepalive: false,
            tcp_keepidle: 3600,
            tcp_keepinterval: 60,
            tcp_keepcount: 5,
            tcp_defer_accept: 0,
            tcp_fastopen: 0,
            tcp_user_timeout: 0,
            ipv6_only: true,
            reuse_port: false,
            unix_mode: None,
            unix_user: None,
            unix_group: None,
            proxy_protocol: ProxyProtocol::Off,
            proxy_trusted: Vec::new(),
            proxy_timeout: Duration::from_secs(5),
            socket_buffer_size: 8 * MIB,
            buffer_high_watermark: 0,
            buffer_low_watermark: 0,
            enable_delay_receive: false,
            open_cpu_affinity: false,
            busy_poll: 0,
            reload_mode: ReloadMode::Rolling,
            reload_parallel: 1,
            pid_file: None,
            daemonize: false,
            log_level: LogLevel::Info,
            log_file: None,
            user: None,
            group: None,
            chroot: None,
            worker_sandbox: WorkerSandbox::Off,
            worker_sandbox_read: Vec::new(),
            worker_sandbox_write: Vec::new(),
            worker_sandbox_connect: SandboxConnect::None,
            ssl_cert_file: None,
            ssl_key_file: None,
            ssl_client_cert_file: None,
            ssl_verify_peer: SslVerifyPeer::Off,
            ssl_protocols: ["TLSv1.2", "TLSv1.3"].map(Into::into).into(),
            ssl_ciphers: Vec::new(),
            ssl_alpn: Vec::new(),
            ssl_stapling_file: None,
            ssl_sni_certs: SniCerts::default(),
            ssl_handshake_timeout: Duration::from_secs(10),
            user_processes: Vec::new(),
        }
    }
}

impl Config {
    /// The configuration of this process's flags, environment and the file that `--config` names, checked.
    ///
    /// `--help` prints all keys to stdout and ends the process. A program with flags of its own uses [`Sources`].
    ///
    /// # Errors
    /// [`ConfigError`], with where the value stands.
    pub fn from_args() -> Result<Config, ConfigError> {
        Sources::new(Config::default()).load_process()
    }

    /// Every key with its values and its default, as `--help` shows it.
    pub fn help() -> String {
        Sources::new(Config::default()).help()
    }
}

/// The enums below: each variant prints and parses as the text beside it.
macro_rules! choice {
    ($(#[$outer:meta])* $name:ident { $($(#[$inner:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$inner])* #[serde(rename = $text)] $variant),+
        }

        impl $name {
            /// Every one of them.
            pub const ALL: [$name; [$($text),+].len()] = [$($name::$variant),+];
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self { $($name::$variant => $text),+ })
            }
        }
    };
}

choice! {
    /// How the work is divided between processes.
    Mode {
        /// The master's reactor threads do all input and output, worker processes run the handlers: a worker that
        /// dies costs no connection but the one whose packet it died on.
        Process = "process",
        /// Each worker does its own input and output, in one thread with the handlers: there is no master, and the
        /// process that starts the server is the manager. A worker that dies takes its own connections along, and
        /// only those.
        Base = "base",
    }
}

choice! {
    /// How packets travel between reactors and workers.
    Ipc {
        /// Rings in shared memory: no system call under load.
        Ring = "ring",
        /// Unix sockets: each packet is copied into the kernel and out of it, at about twice the CPU per request. For
        /// hosts that let no shared memory be mapped, and for looking at what goes between the processes
        /// (`strace -e sendmsg,recvfrom`).
        SocketPair = "socketpair",
    }
}

choice! {
    /// How task workers learn of tasks. What there is no room for in a socket or a queue goes through shared memory, so that
    /// nobody waits for room.
    TaskIpcMode {
        /// By queues in shared memory: no system call under load.
        Ring = "ring",
        /// By Unix sockets: one for whoever is free, and one of each task worker's.
        Unix = "unix",
        /// By System V message queues, addressed: who asks chooses the task worker, one that is idle if there is one. Without
        /// a [`message_queue_key`](Config::message_queue_key) each task worker has a queue of its own.
        Msgqueue = "msgqueue",
        /// By System V message queues: whoever is free takes the next task, unless it is for a certain task worker.
        MsgqueuePreemptive = "msgqueue_preemptive",
    }
}

choice! {
    /// Where one packet of a stream ends; the details are keys of their own.
    Framing {
        /// What one read gave is a packet.
        Raw = "raw",
        /// Packets end with the delimiter `package_eof`.
        Eof = "eof",
        /// Packets say their length in a header: `package_length_type` and the two offsets, or `package_length_func`.
        /// The handler gets the header, too.
        Length = "length",
        /// The length comes first, as a base-128 varint, and counts what follows it: the delimited streams of Protocol
        /// Buffers. The handler gets a packet without it; [`swoole_protocol::Framing::encode`] puts it before a reply.
        Varint = "varint",
        /// Packets are lines that end with `\n` or `\r\n`, each as its sender likes, of `package_max_length` bytes at
        /// most; the handler does not get the end. (With `eof` there is one delimiter, and what else is before it is the
        /// packet's, as the `\r` of a client that ends lines with `\r\n` where `\n` is expected.)
        Line = "line",
    }
}

choice! {
    /// Which worker gets a packet, and what is promised of the order of one connection's packets.
    DispatchMode {
        /// All packets of a connection go to one worker, to each worker equally many connections. In order. They wait
        /// for that worker, or its successor, whatever others do. Swoole's mode 2.
        Fixed = "fixed",
        /// Each worker in turn, whatever it has to do. No order. Swoole's mode 1.
        RoundRobin = "round_robin",
        /// A worker that has nothing to do, if there is one, and else the one with the fewest packets in flight. No
        /// order. It looks at all workers for each packet. Swoole's mode 3.
        Idle = "idle",
        /// All packets of all connections from one address go to one worker: that of the address's number modulo
        /// `worker_num` (of an IPv6 address, of its hash), or while that does not serve when a client connects, the next
        /// one that does. In order. Clients of a unix socket have no address, and are dealt as under `fixed`. Swoole's mode 4.
        IpHash = "ip_hash",
        /// All packets of the connections that are bound to one user ([`Worker::bind`](crate::Worker::bind)) go to one
        /// worker: that of its number modulo `worker_num`. Those of a connection that is bound to nobody as under `fixed`.
        /// In order, also when it is bound: the first packet for another worker waits for those before it. Swoole's mode 5.
        Uid = "uid",
        /// The one with fewer packets in flight, from whichever reactor, of two workers that are drawn: the least latency
        /// where requests cost unequally, and a price that does not grow with the number of workers. No order. (Swoole's
        /// mode 10 is for HTTP requests, and looks at all workers.)
        LeastInFlight = "least_in_flight",
        /// All packets with the same key go to one worker: bytes of the packet, `dispatch_key_offset` and
        /// `dispatch_key_length`. For workers that keep what belongs to a key. While one does not serve, its keys go to the
        /// others, and no other key moves. In order for each key of a connection, but for that. (Swoole has no such mode.)
        ConsistentHash = "consistent_hash",
        /// As a function of the program's says: [`Server::dispatch`](crate::Server::dispatch). In order as far as it sends
        /// them to the same worker. Swoole: `dispatch_func`.
        Custom = "custom",
    }
}

impl DispatchMode {
    /// Whether all packets of a connection go to one worker for as long as it lasts.
    pub(crate) fn is_by_connection(self) -> bool {
        matches!(self, DispatchMode::Fixed | DispatchMode::IpHash)
    }

    /// Whether any worker will do for a packet.
    pub(crate) fn is_free(self) -> bool {
        matches!(self, DispatchMode::RoundRobin | DispatchMode::Idle | DispatchMode::LeastInFlight)
    }

    /// Whether it looks at what workers have to do.
    pub(crate) fn looks_at_loads(self) -> bool {
        matches!(self, DispatchMode::Idle | DispatchMode::LeastInFlight | DispatchMode::Custom)
    }
}

choice! {
    /// What becomes of the packet that a worker died on. Packets that it had not begun wait for its successor.
    OnCrash {
        /// Its connection is closed.
        Close = "close",
        /// The next worker gets it, before everything that waits behind it, at most `crash_retries` times. So a handler
        /// may begin a packet twice: what it does to the rest of the world should not mind. Its replies go out once, all
        /// of them when it returns; to flush them before that is an error. (What it sends to clients of another reactor
        /// may come twice, if the worker dies in the few instructions between that and the end of the packet.)
        Retry = "retry",
        /// It is lost, and its connection stays: for clients that ask again by themselves.
        Drop = "drop",
    }
}

choice! {
    /// Which header of the PROXY protocol (HAProxy's) has to come before all else.
    ProxyProtocol {
        /// None: what comes is the client's.
        Off = "off",
        /// A line of text, at most 107 bytes: `PROXY TCP4 192.0.2.1 198.51.100.7 56324 443`.
        V1 = "v1",
        /// The binary one, of 16384 bytes at most. What it says beside the addresses is passed over; a checksum, if there is
        /// one, has to be right.
        V2 = "v2",
        /// Either of them.
        Any = "any",
    }
}

choice! {
    /// How a reload replaces the workers.
    ReloadMode {
        /// One after the other, or `reload_parallel` of them at a time: the rest goes on serving.
        Rolling = "rolling",
        /// All at once.
        All = "all",
    }
}

choice! {
    /// When a stop closes the listening sockets. Nobody is accepted once it has begun, in either case.
    CloseListen {
        /// At once: who connects is refused, and can try another server.
        First = "first",
        /// At the end: who connects is not refused but waits in the kernel, up to `backlog`, and is reset at the end,
        /// unless another process has the same socket and accepts from it. For clients that take a refusal for good, and
        /// not a reset.
        Last = "last",
    }
}

choice! {
    /// The least severe lines that are logged.
    LogLevel {
        /// What failed.
        Error = "error",
        /// What should be looked at.
        Warn = "warn",
        /// What the server does: starts, reloads, stops.
        Info = "info",
        /// What it does for single connections and workers.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

choice! {
    /// What workers, task workers and user processes may ask of the kernel. What is refused fails with `EPERM` (`EACCES` for files and
    /// addresses, `ENOSYS` for clone3(2), which the C library then does without); a program that makes system calls of
    /// another architecture is killed.
    WorkerSandbox {
        /// Everything that their user may.
        Off = "off",
        /// No new privileges: set-user-ID programs and file capabilities have no effect. Nor the system calls with
        /// which a process looks into others or changes the system (seccomp(2)): to trace, to read another one's memory
        /// or take its descriptors, to make name spaces, to mount, to load modules, programs or keys into the kernel, to
        /// type into a terminal. Files and sockets are what they were: without `user`, so is what `/proc` shows of other
        /// processes of the same user, their memory included.
        Basic = "basic",
        /// Basic, and beside what is open already: no capabilities; of all files (landlock(7)) only the program and
        /// its libraries, `/dev/null` and `/dev/urandom`, `task_tmpdir` if there are task workers, and those of
        /// `worker_sandbox_read` and `worker_sandbox_write`; no sockets but those of `worker_sandbox_connect`, and no
        /// server among them; no io_uring; no signal to a process that is not its own child, and no look into one. Needs
        /// Linux 6.12, and in Base mode the backend epoll, which `auto` is then: an io_uring knows nothing of seccomp.
        Strict = "strict",
    }
}

choice! {
    /// Which sockets workers may open under `worker_sandbox = strict`.
    SandboxConnect {
        /// None, but connected pairs of their own.
        None = "none",
        /// Those of this machine: `AF_UNIX`, and not abstract ones of other processes.
        Unix = "unix",
        /// Also `AF_INET` and `AF_INET6`. They connect, or send and receive datagrams: a TCP port is not to be had.
        Any = "any",
    }
}

choice! {
    /// Whether the clients of `tls://` addresses show certificates of their own.
    SslVerifyPeer {
        /// They are not asked.
        Off = "off",
        /// They are asked: one that shows none is served, one whose certificate does not come from
        /// `ssl_client_cert_file` is not.
        Request = "request",
        /// Who shows none that comes from there is not served.
        Require = "require",
    }
}

impl From<LogLevel> for tracing::level_filters::LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

#[cfg(test)]
mod tests;
