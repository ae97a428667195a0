//! Socket options of TCP that rustix lacks (`tcp(7)`).

use std::os::fd::{AsFd, AsRawFd as _};

use rustix::io::Result;

/// Has a listening socket tell of a connection only when its client has sent something, or after about so many seconds
/// (`TCP_DEFER_ACCEPT`; the kernel counts retransmissions, so it rounds up). 0: at once.
///
/// # Errors
///
/// `ENOTSOCK`, or `ENOPROTOOPT` and the like on what is not TCP.
pub fn set_tcp_defer_accept(socket: impl AsFd, seconds: u32) -> Result<()> {
    set(socket, libc::TCP_DEFER_ACCEPT, seconds)
}

/// What [`set_tcp_defer_accept`] has set, as the kernel has rounded it.
///
/// # Errors
///
/// As there.
pub fn tcp_defer_accept(socket: impl AsFd) -> Result<u32> {
    get(socket, libc::TCP_DEFER_ACCEPT)
}

/// How many clients may at one time send their first bytes with their SYN and not have finished the handshake
/// (`TCP_FASTOPEN`, RFC 7413). 0: none. Before or after `listen(2)`. The kernel does it for servers only if
/// `net.ipv4.tcp_fastopen` has 2 in it.
///
/// # Errors
///
/// As for [`set_tcp_defer_accept`].
pub fn set_tcp_fastopen(socket: impl AsFd, queue: u32) -> Result<()> {
    set(socket, libc::TCP_FASTOPEN, queue)
}

/// What [`set_tcp_fastopen`] has set, as the kernel has bounded it (`net.core.somaxconn`).
///
/// # Errors
///
/// As there.
pub fn tcp_fastopen(socket: impl AsFd) -> Result<u32> {
    get(socket, libc::TCP_FASTOPEN)
}

fn set(socket: impl AsFd, option: libc::c_int, value: u32) -> Result<()> {
    let value = libc::c_int::try_from(value).unwrap_or(libc::c_int::MAX);
    let (fd, length) = (socket.as_fd().as_raw_fd(), size_of_val(&value) as libc::socklen_t);
    // SAFETY: the value is an int of this frame, of the length that is given, and is only read.
    let returned =
        unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, option, std::ptr::from_ref(&value).cast(), length) };
    crate::check(returned).map(drop)
}

fn get(socket: impl AsFd, option: libc::c_int) -> Result<u32> {
    let mut value: libc::c_int = 0;
    let (fd, mut length) = (socket.as_fd().as_raw_fd(), size_of_val(&value) as libc::socklen_t);
    // SAFETY: value and length are of this frame, and the kernel writes no more than the length says.
    let returned = unsafe {
        libc::getsockopt(fd, libc::IPPROTO_TCP, option, std::ptr::from_mut(&mut value).cast(), &mut length)
    };
    crate::check(returned)?;
    Ok(value.cast_unsigned())
}
