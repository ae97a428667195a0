//! The one error type of the facade.

use std::{fmt, io};

use rustix::io::Errno;
use swoole_reactor::listener::ListenError;
use swoole_sys::process::ForkError;

use crate::config::ConfigError;
use crate::datagram::DatagramClient;
use crate::post::Peer;
use crate::session::Session;
use crate::task::{TaskError, TaskId};

/// What can go wrong, named by operation, object and remedy.
///
/// Callbacks return it too: `?` works on the standard library's usual errors, and
/// [`Error::other`] takes any other.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A configuration key has a value that cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A listening socket could not be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The manager could not be forked; most often because the process has more than one thread.
    #[error("start the server: {0}")]
    Fork(#[from] ForkError),
    /// Something that every process shares could not be made.
    #[error("{what}: {source}{}", remedy(source.as_ref()))]
    Setup {
        /// The operation and its object.
        what: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The session is not connected (any more). That the peer has just left is no news.
    #[error("no such session: {0}")]
    NoSuchSession(Session),
    /// One reply is larger than the connection's whole output limit.
    #[error("send to session {session}: {len} bytes exceed socket_buffer_size = {max}")]
    ReplyTooLong {
        /// To whom.
        session: Session,
        /// How much was sent at once, in bytes.
        len: usize,
        /// The limit, in bytes.
        max: usize,
    },
    /// A file cannot be sent: it cannot be opened, is no regular file, is shorter than what is to be sent of it, or cannot
    /// be handed to the reactor that has the client.
    #[error("send {what} to session {session}: {source}")]
    SendFile {
        /// Its path.
        what: String,
        /// To whom.
        session: Session,
        /// Why not.
        source: io::Error,
    },
    /// A broadcast is larger than a connection's whole output limit.
    #[error("broadcast: {len} bytes exceed socket_buffer_size = {max}")]
    BroadcastTooLong {
        /// How much was to be sent, in bytes.
        len: usize,
        /// The limit, in bytes.
        max: usize,
    },
    /// No topic can be called so.
    #[error("the name of a topic has {len} bytes: must be 1..={max}")]
    TopicLength {
        /// Its length, in bytes.
        len: usize,
        /// The limit, in bytes.
        max: usize,
    },
    /// A process does not take what this one sends to it, or to its clients; most often it blocks.
    #[error("{peer} does not take what is sent to it: {waiting} bytes wait (socket_buffer_size = {max})")]
    PeerFull {
        /// `worker 3`, `task worker 0`, `reactor 1`.
        peer: String,
        /// What waits already, in bytes.
        waiting: usize,
        /// The limit, in bytes.
        max: usize,
    },
    /// Under `on_crash = retry`, what a callback sends goes out when it returns, not before: another worker may have to
    /// begin it again. Until then it must not be more than this.
    #[error(
        "on_crash = retry: replies go out when the callback returns, and are at most {max} bytes until then"
    )]
    Uncommitted {
        /// The limit, in bytes.
        max: usize,
    },
    /// The worker has as many timers as it may have.
    #[error("set a timer: {max} are set already (max_timer)")]
    TooManyTimers {
        /// The limit.
        max: usize,
    },
    /// No timer can be set for this time.
    #[error(
        "set a timer: {time:?} is no time for it: must be at most ten years, and for a tick more than nothing"
    )]
    TimerTime {
        /// What was asked for.
        time: std::time::Duration,
    },
    /// There are no task workers.
    #[error("there are no task workers: task_worker_num = 0")]
    NoTaskWorkers,
    /// There is no task worker with this id.
    #[error("no such task worker: {task_worker} (task_worker_num = {task_worker_num})")]
    NoSuchTaskWorker {
        /// The id that was asked for.
        task_worker: u16,
        /// How many there are.
        task_worker_num: u16,
    },
    /// So many tasks of this worker are under way as may be.
    #[error("ask for a task: {max} of this worker's are under way (task_queue_max)")]
    TaskQueueFull {
        /// The limit.
        max: usize,
    },
    /// The message queue for tasks has no room ([`TaskQueue`](crate::TaskQueue)).
    #[error("push a task: the message queue {key:#010x} is full (kernel.msgmnb)")]
    MessageQueueFull {
        /// Its key.
        key: u32,
    },
    /// A task that was waited for has no result.
    #[error("wait for a task: {0}")]
    Task(TaskError),
    /// What was asked, or what came of it, cannot be made bytes of.
    #[error("encode {what}: {source}")]
    Encode {
        /// Which kind of job, and which task if it has a name already.
        what: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The bytes of a task are not what its kind of job is made of.
    #[error("decode {what}: {source}")]
    Decode {
        /// Which kind of job, and which task.
        what: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The handler does no jobs of this kind.
    #[error("task {task} is a job of an unknown kind: {name:?}")]
    UnknownJob {
        /// Which task.
        task: TaskId,
        /// The kind.
        name: String,
    },
    /// There is no task in hand that could be finished.
    #[error("finish a task: there is none in hand, or it is finished already")]
    NoTask,
    /// The handler has no [`on_task`](crate::Handler::on_task).
    #[error("the handler has no on_task")]
    NoTaskHandler,
    /// The handler has no [`on_packet`](crate::Handler::on_packet).
    #[error("the handler has no on_packet, which datagrams come to")]
    NoPacketHandler,
    /// No datagram can be sent by this listener: there is none, or it is one for connections.
    #[error("send a datagram: listener {listener} takes no datagrams")]
    NoSuchListener {
        /// Its index in the configuration's `listen`.
        listener: u16,
    },
    /// Longer than any datagram may be.
    #[error("send a datagram to {to}: {len} bytes, at most {max} can be sent at once")]
    DatagramTooLong {
        /// To whom.
        to: DatagramClient,
        /// Its length, in bytes.
        len: usize,
        /// The limit, in bytes.
        max: usize,
    },
    /// A unix datagram client has not bound its socket to a path or an abstract name.
    #[error("send a datagram: the client's socket is bound to no name, so it cannot be answered")]
    Unnamed,
    /// The address is none that the listener's socket can send to: another family, or no name that a unix socket can have.
    #[error("send a datagram: {to} cannot be reached from {listen}")]
    Unreachable {
        /// To whom.
        to: DatagramClient,
        /// The listener's address.
        listen: String,
    },
    /// There is no such process, or it takes no messages.
    #[error("send a message: there is no {0} that takes any")]
    NoSuchPeer(Peer),
    /// Longer than any message may be.
    #[error("send a message to {to}: {len} bytes, at most {max} may be sent at once")]
    MessageTooLong {
        /// To whom.
        to: Peer,
        /// Its length, in bytes.
        len: usize,
        /// The limit, in bytes.
        max: usize,
    },
    /// There is no worker with this id.
    #[error("no such worker: {worker} (worker_num = {worker_num})")]
    NoSuchWorker {
        /// The id that was asked for.
        worker: u16,
        /// How many there are.
        worker_num: u16,
    },
    /// The link to a reactor broke, or what came over it cannot be true.
    #[error("link to reactor {reactor}: {reason}")]
    Link {
        /// Which reactor.
        reactor: u8,
        /// What was seen.
        reason: String,
    },
    /// The manager died while the server started. (Later it gets a successor, or in a stop, is done without.)
    #[error("the manager (pid {pid}) died: {how}; the server was stopped")]
    ManagerDied {
        /// The manager's process id.
        pid: i32,
        /// Its exit status.
        how: String,
    },
    /// The program was executed to be the manager of a server whose shared memory it does not know.
    #[error(
        "take over a server: its shared memory has layout {running}, this program knows layout {ours} only"
    )]
    Layout {
        /// The layout of the server that runs.
        running: i64,
        /// This program's.
        ours: u32,
    },
    /// A user process cannot be had under this name.
    #[error("add user process {name:?}: {reason}")]
    UserProcess {
        /// The name that was asked for.
        name: String,
        /// Why not.
        reason: String,
    },
    /// The program was executed to be the manager of a server that has other user processes than this program adds.
    #[error("take over a server: its user processes are {running:?}, this program has {ours:?}")]
    OtherProcesses {
        /// Those of the server that runs, by their names.
        running: Vec<String>,
        /// This program's.
        ours: Vec<String>,
    },
    /// No first-generation worker could be started, or a start callback failed.
    #[error("start the server: {0}")]
    Start(String),
    /// An input or output operation of the user's program.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Anything else that the user's program reports.
    #[error(transparent)]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

/// As it is displayed: what a `main` that returns it prints is for people.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What helps against the limits that a start can run into.
fn remedy(error: &(dyn std::error::Error + 'static)) -> &'static str {
    let mut chain = std::iter::successors(Some(error), |error| error.source());
    let io = chain.find_map(|error| error.downcast_ref::<io::Error>());
    match io.and_then(io::Error::raw_os_error).map(Errno::from_raw_os_error) {
        Some(Errno::MFILE) => {
            "; raise the limit of open files (`ulimit -n`, LimitNOFILE=), or lower worker_num or reactor_num"
        }
        Some(Errno::NFILE) => "; raise the system's limit of open files (sysctl fs.file-max)",
        Some(Errno::NOMEM) => {
            "; lower ring_size, ring_memory_max or max_connection, or allow more memory (`ulimit -v`)"
        }
        Some(Errno::FBIG) => "; shared memory counts as a file: raise the limit of file sizes (`ulimit -f`)",
        _ => "",
    }
}

/// What callbacks and the server's operations return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Wraps an error of the user's program.
    pub fn other(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::Other(error.into())
    }

    pub(crate) fn setup(
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        Error::Setup { what: what.into(), source: source.into() }
    }

    /// That the peer has just left: logged at debug level only.
    pub(crate) fn is_departure(&self) -> bool {
        matches!(self, Error::NoSuchSession(_))
    }
}

impl From<std::str::Utf8Error> for Error {
    fn from(error: std::str::Utf8Error) -> Error {
        Error::other(error)
    }
}

impl From<std::string::FromUtf8Error> for Error {
    fn from(error: std::string::FromUtf8Error) -> Error {
        Error::other(error)
    }
}

impl From<std::num::ParseIntError> for Error {
    fn from(error: std::num::ParseIntError) -> Error {
        Error::other(error)
    }
}

impl From<std::fmt::Error> for Error {
    fn from(error: std::fmt::Error) -> Error {
        Error::other(error)
    }
}

impl From<String> for Error {
    fn from(message: String) -> Error {
        Error::other(message)
    }
}

impl From<&str> for Error {
    fn from(message: &str) -> Error {
        Error::other(message)
    }
}
