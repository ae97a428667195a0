//! Datagram sockets: the address of a peer, and the two system calls, which are the same with each driver.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketAddrAny, SocketAddrUnix, recvfrom, sendto};

/// Who sent a datagram, or to whom one goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DatagramPeer {
    /// A UDP socket.
    Inet(SocketAddr),
    /// A Unix datagram socket bound to a path.
    Unix(PathBuf),
    /// A Unix datagram socket bound to a name in the abstract namespace, without its leading zero.
    Abstract(Vec<u8>),
    /// A Unix datagram socket that is bound to nothing: it cannot be answered.
    Unnamed,
}

impl DatagramPeer {
    fn new(address: Option<SocketAddrAny>) -> Self {
        let Some(address) = address else { return Self::Unnamed };
        if let Ok(inet) = SocketAddr::try_from(address.clone()) {
            return Self::Inet(inet);
        }
        let Ok(unix) = SocketAddrUnix::try_from(address) else { return Self::Unnamed };
        if let Some(path) = unix.path() {
            Self::Unix(PathBuf::from(std::ffi::OsString::from_vec(path.to_bytes().to_vec())))
        } else if let Some(name) = unix.abstract_name() {
            Self::Abstract(name.to_vec())
        } else {
            Self::Unnamed
        }
    }
}

/// One datagram, as it stands in the buffer that was given.
pub(crate) struct Received {
    pub(crate) length: usize,
    pub(crate) truncated: bool,
    pub(crate) peer: DatagramPeer,
}

/// The next datagram; `None` when there is none.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Option<Received>, Errno> {
    let size = buffer.len();
    loop {
        // With TRUNC the length is that of the datagram, also where the buffer is shorter.
        match recvfrom(socket, &mut *buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
            Ok((_, length, address)) => {
                return Ok(Some(Received {
                    length: length.min(size),
                    truncated: length > size,
                    peer: DatagramPeer::new(address),
                }));
            }
            Err(Errno::AGAIN) => return Ok(None),
            // On a UDP socket, an ICMP answer to an earlier datagram of ours: it concerns one peer, not the
            // socket, and is reported once.
            Err(Errno::INTR | Errno::CONNREFUSED | Errno::HOSTUNREACH | Errno::NETUNREACH) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Sends one datagram now.
pub(crate) fn send_to(socket: BorrowedFd<'_>, peer: &DatagramPeer, bytes: &[u8]) -> Result<(), Errno> {
    let address: SocketAddrAny = match peer {
        DatagramPeer::Inet(address) => (*address).into(),
        DatagramPeer::Unix(path) => SocketAddrUnix::new(path.as_path())?.into(),
        DatagramPeer::Abstract(name) => SocketAddrUnix::new_abstract_name(name)?.into(),
        DatagramPeer::Unnamed => return Err(Errno::DESTADDRREQ),
    };
    loop {
        match sendto(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL, &address) {
            Err(Errno::INTR) => {}
            other => return other.map(drop),
        }
    }
}

impl std::fmt::Display for DatagramPeer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
            Self::Abstract(name) => write!(f, "@{}", OsStr::from_bytes(name).display()),
            Self::Unnamed => f.write_str("an unnamed socket"),
        }
    }
}
