//! Opens the sockets of a server: an address as text, what stands in the way as an error that says what to do.

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::io::{Errno, FdFlags, fcntl_setfd, ioctl_fionbio};
use rustix::net::{
    AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, bind, connect, getsockname,
    listen as start_listening, socket_with, sockopt,
};

mod options;

use options::Refused;
pub use options::{Keepalive, TcpOptions, UnixOptions};

/// Where a server listens.
///
/// ```
/// use swoole_reactor::listener::Address;
///
/// let address: Address = "tcp://[::1]:9501".parse()?;
/// assert!(matches!(address, Address::Tcp(at) if at.port() == 9501));
/// assert_eq!("unix:///run/app.sock".parse::<Address>()?.to_string(), "unix:///run/app.sock");
/// # Ok::<(), swoole_reactor::listener::AddressError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// `tcp://127.0.0.1:9501`, `tcp://[::1]:9501`. Port 0 is any free one.
    Tcp(SocketAddr),
    /// `udp://127.0.0.1:9501`.
    Udp(SocketAddr),
    /// A Unix stream socket: `unix:///run/app.sock`. At most 107 bytes of path (`unix(7)`).
    Unix(PathBuf),
    /// A Unix datagram socket: `unixgram:///run/app.sock`.
    UnixDatagram(PathBuf),
    /// A socket that listens already, and that this process was given: `fd://web` by name, `fd://3` by number. Where it
    /// listens, [`inherit`] finds out.
    Inherited(String),
}

impl Address {
    /// Whether what is listened to are datagrams, not connections.
    pub fn is_datagram(&self) -> bool {
        matches!(self, Self::Udp(_) | Self::UnixDatagram(_))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::Udp(address) => write!(f, "udp://{address}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::UnixDatagram(path) => write!(f, "unixgram://{}", path.display()),
            Self::Inherited(name) => write!(f, "fd://{name}"),
        }
    }
}

/// The text is no [`Address`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no address to listen on: {problem}")]
pub struct AddressError {
    text: String,
    problem: &'static str,
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = |problem| AddressError { text: text.to_owned(), problem };
        let inet = |rest: &str| {
            rest.parse()
                .map_err(|_| error("it takes a numeric address and a port: 127.0.0.1:9501 or [::1]:9501"))
        };
        let path = |rest: &str| match rest {
            "" => Err(error("the path is missing: unix:///run/app.sock")),
            rest => Ok(PathBuf::from(rest)),
        };
        match text.split_once("://") {
            Some(("tcp", rest)) => inet(rest).map(Self::Tcp),
            Some(("udp", rest)) => inet(rest).map(Self::Udp),
            Some(("unix", rest)) => path(rest).map(Self::Unix),
            Some(("unixgram", rest)) => path(rest).map(Self::UnixDatagram),
            Some(("fd", "")) => Err(error("the name is missing: fd://web, or a number: fd://3")),
            Some(("fd", rest)) => Ok(Self::Inherited(rest.to_owned())),
            _ => Err(error("it begins with tcp://, udp://, unix://, unixgram:// or fd://")),
        }
    }
}

/// How a socket is opened.
#[derive(Debug, Clone)]
pub struct ListenOptions {
    /// Connections that wait to be accepted, default 511 (as nginx and Redis); the kernel caps it at
    /// `net.core.somaxconn`. Not for datagrams.
    pub backlog: i32,
    /// `SO_REUSEPORT` (`socket(7)`), default off: several sockets of one user may have the same address,
    /// and the kernel deals connections or datagrams among them. TCP and UDP only.
    pub reuse_port: bool,
    /// With [`reuse_port`](Self::reuse_port): whether nobody else may have the address before this one, default off.
    /// Who opens the first of several sockets asks for it, and notices a stranger that would share the port.
    pub first: bool,
    /// For an IPv6 address, whether IPv4 is kept out (`IPV6_V6ONLY`, `ipv6(7)`), default on: what listens on
    /// `[::]` is then the same on each system, whatever `net.ipv6.bindv6only` says.
    pub ipv6_only: bool,
    /// What is set on a TCP socket.
    pub tcp: TcpOptions,
    /// What is set on a Unix socket.
    pub unix: UnixOptions,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self {
            backlog: 511,
            reuse_port: false,
            first: false,
            ipv6_only: true,
            tcp: TcpOptions::default(),
            unix: UnixOptions::default(),
        }
    }
}

/// Why a socket could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("listen on {address}: {problem}")]
pub struct ListenError {
    address: Address,
    problem: String,
    source: io::Error,
}

impl ListenError {
    /// The address.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The kernel's answer.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    fn new(address: &Address, error: Errno) -> Self {
        let unix = matches!(address, Address::Unix(_) | Address::UnixDatagram(_));
        let problem = match error {
            Errno::ACCESS if unix => "permission denied (needs write permission on the directory)".to_owned(),
            Errno::ACCESS => "permission denied (needs CAP_NET_BIND_SERVICE or a lower \
                              net.ipv4.ip_unprivileged_port_start)"
                .to_owned(),
            Errno::ADDRINUSE => {
                let list = match address {
                    Address::Tcp(_) => "ss -ltnp",
                    Address::Udp(_) => "ss -lunp",
                    _ => "ss -lxp",
                };
                format!("address in use (another process listens there: see `{list}`)")
            }
            Errno::ADDRNOTAVAIL => {
                "no interface of this machine has that address (see `ip address`)".to_owned()
            }
            Errno::EXIST => "the path exists and is no socket: remove it, or choose another".to_owned(),
            Errno::NOENT => "no such directory".to_owned(),
            Errno::NAMETOOLONG | Errno::INVAL if unix => {
                "the path is too long for a socket (at most 107 bytes)".to_owned()
            }
            Errno::MFILE => "too many open files (raise `ulimit -n`)".to_owned(),
            error => io::Error::from(error).to_string(),
        };
        Self::with(address, problem, error)
    }

    fn with(address: &Address, problem: String, error: Errno) -> Self {
        Self { address: address.clone(), problem, source: error.into() }
    }

    /// The kernel does not take an option.
    fn refused(address: &Address, (what, error): Refused) -> Self {
        Self::with(address, format!("set {what}: {}", io::Error::from(error)), error)
    }
}

/// Why a socket could not be opened, and what was done to it if that does not go without saying.
enum Failure {
    Plain(Errno),
    Option(Refused),
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        Self::Plain(error)
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        Self::Option(refused)
    }
}

/// Opens a socket that listens (or, for datagrams, is bound) on `address`: nonblocking and close-on-exec.
///
/// For TCP, `SO_REUSEADDR` lets a restarted server have its port back while old connections are in TIME_WAIT.
/// A Unix socket whose file was left behind by a server that is gone is replaced; one that somebody listens
/// on is an error, and so is a file of another kind. Nobody can connect to it before its file has the mode and the owner
/// that [`UnixOptions`] say.
///
/// # Errors
///
/// [`ListenError`], which names the address and what to do. [`Address::Inherited`] is nothing that can be opened.
pub fn listen(address: &Address, options: &ListenOptions) -> Result<OwnedFd, ListenError> {
    open(address, options).map_err(|failure| match failure {
        Failure::Plain(error) => ListenError::new(address, error),
        Failure::Option(refused) => ListenError::refused(address, refused),
    })
}

fn open(address: &Address, options: &ListenOptions) -> Result<OwnedFd, Failure> {
    let kind = if address.is_datagram() { SocketType::DGRAM } else { SocketType::STREAM };
    let (family, name) = match address {
        Address::Tcp(at) | Address::Udp(at) => {
            let family = if at.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
            (family, SocketAddrAny::from(*at))
        }
        Address::Unix(path) | Address::UnixDatagram(path) => {
            (AddressFamily::UNIX, SocketAddrUnix::new(path.as_path())?.into())
        }
        Address::Inherited(_) => return Err(Errno::OPNOTSUPP.into()),
    };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    match address {
        Address::Tcp(at) | Address::Udp(at) => {
            if matches!(address, Address::Tcp(_)) {
                sockopt::set_socket_reuseaddr(&socket, true)?;
            }
            if options.reuse_port && !options.first {
                sockopt::set_socket_reuseport(&socket, true)?;
            }
            if at.is_ipv6() {
                sockopt::set_ipv6_v6only(&socket, options.ipv6_only)?;
            }
        }
        Address::Unix(path) | Address::UnixDatagram(path) => {
            remove_stale(path, kind)?;
            options.unix.restrict(&socket)?;
        }
        Address::Inherited(_) => {}
    }
    bind(&socket, &name)?;
    match address {
        Address::Tcp(_) => options.tcp.set(&socket)?,
        Address::Unix(path) | Address::UnixDatagram(path) => options.unix.set(path)?,
        _ => {}
    }
    if options.reuse_port && options.first && matches!(address, Address::Tcp(_) | Address::Udp(_)) {
        // Only now: all of those who share it are asked when one more wants to.
        sockopt::set_socket_reuseport(&socket, true)?;
    }
    if !address.is_datagram() {
        start_listening(&socket, options.backlog)?;
    }
    Ok(socket)
}

/// Removes the file of a Unix socket that nobody listens on.
fn remove_stale(path: &Path, kind: SocketType) -> Result<(), Errno> {
    match fs::symlink_metadata(path) {
        Ok(file) if file.file_type().is_socket() => {}
        Ok(_) => return Err(Errno::EXIST),
        // Nothing there, or bind will tell better.
        Err(_) => return Ok(()),
    }
    let probe = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    match connect(&probe, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED) => {
            let removed = fs::remove_file(path);
            removed.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::ADDRINUSE))
        }
        // Gone since we looked.
        Err(Errno::NOENT) => Ok(()),
        // Somebody has it: a listener that answers, whose backlog is full (EAGAIN), or that has a socket of
        // another type (EPROTOTYPE).
        _ => Err(Errno::ADDRINUSE),
    }
}

/// The address that a socket opened with [`listen`] really has: port 0 of `address` becomes the port that
/// the kernel chose.
///
/// # Errors
///
/// [`ListenError`] if `socket` is no socket.
pub fn local_address(socket: impl AsFd, address: &Address) -> Result<Address, ListenError> {
    let name = |at: &SocketAddr| -> Result<SocketAddr, ListenError> {
        let name = getsockname(&socket).map_err(|error| ListenError::new(address, error))?;
        // Another family means that the address is not this socket's; the caller's word stands then.
        Ok(name.try_into().unwrap_or(*at))
    };
    Ok(match address {
        Address::Tcp(at) => Address::Tcp(name(at)?),
        Address::Udp(at) => Address::Udp(name(at)?),
        Address::Unix(_) | Address::UnixDatagram(_) | Address::Inherited(_) => address.clone(),
    })
}

/// Takes a stream socket that somebody else has opened, and that listens: makes it nonblocking and close-on-exec, and sets
/// `options` if it is a TCP socket. Returns where it listens; `address` is what it is called by.
///
/// # Errors
///
/// [`ListenError`], if it is no socket, of another kind, or does not listen.
pub fn inherit(socket: &OwnedFd, address: &Address, options: &TcpOptions) -> Result<Address, ListenError> {
    let wrong = |problem: &str, error| ListenError::with(address, problem.into(), error);
    let failed = |error| match error {
        Errno::NOTSOCK => wrong("the descriptor is no socket", error),
        error => ListenError::new(address, error),
    };
    if sockopt::socket_type(socket).map_err(failed)? != SocketType::STREAM {
        return Err(wrong("the descriptor is a socket for datagrams, not for streams", Errno::PROTOTYPE));
    }
    if !sockopt::socket_acceptconn(socket).map_err(failed)? {
        return Err(wrong("the socket does not listen (does its unit have Accept=yes?)", Errno::INVAL));
    }
    let name = getsockname(socket).map_err(failed)?;
    let place = match name.address_family() {
        AddressFamily::UNIX => Address::Unix(unix_name(name)),
        _ => {
            let at = SocketAddr::try_from(name)
                .map_err(|_| wrong("the socket is neither of TCP nor a Unix socket", Errno::AFNOSUPPORT))?;
            options.set(socket).map_err(|refused| ListenError::refused(address, refused))?;
            Address::Tcp(at)
        }
    };
    fcntl_setfd(socket, FdFlags::CLOEXEC).map_err(failed)?;
    ioctl_fionbio(socket, true).map_err(failed)?;
    Ok(place)
}

/// The path of a Unix socket; `@name` if it is not in the file system.
fn unix_name(name: SocketAddrAny) -> PathBuf {
    let Ok(name) = SocketAddrUnix::try_from(name) else { return PathBuf::new() };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match (name.path_bytes(), name.abstract_name()) {
        (Some(path), _) => PathBuf::from(std::ffi::OsStr::from_bytes(path)),
        (None, Some(name)) => PathBuf::from(format!("@{}", text(name))),
        (None, None) => PathBuf::new(),
    }
}
