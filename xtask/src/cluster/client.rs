//! A plain blocking client of the testbed. Every wait has a deadline.

use super::log::field;
use super::proc;
use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SendFlags, SocketType, sockopt};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a client waits for the server to take or give a byte.
const TIMEOUT: Duration = Duration::from_secs(20);

/// An address as flags and the ready line write it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Address {
    Tcp(SocketAddr),
    /// TCP, and TLS over it.
    Tls(SocketAddr),
    Unix(PathBuf),
    /// A scheme that no scenario connects to.
    Other(String),
}

impl Address {
    pub(super) fn parse(text: &str) -> Result<Self> {
        Ok(match text.split_once("://") {
            Some(("tcp", address)) => {
                Self::Tcp(address.parse().with_context(|| format!("address {text:?}"))?)
            }
            Some(("tls", address)) => {
                Self::Tls(address.parse().with_context(|| format!("address {text:?}"))?)
            }
            Some(("unix", path)) => Self::Unix(path.into()),
            Some(_) => Self::Other(text.to_owned()),
            None => bail!("address {text:?} has no scheme"),
        })
    }
}

pub(super) enum Stream {
    Tcp(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
    Unix(UnixStream),
}

impl Stream {
    fn open(address: &Address) -> Result<Self> {
        let stream = match address {
            // What a client of TLS says first is up to it.
            Address::Tcp(address) | Address::Tls(address) => {
                let stream = TcpStream::connect_timeout(address, TIMEOUT)?;
                stream.set_nodelay(true)?;
                Self::Tcp(stream)
            }
            Address::Unix(path) => Self::Unix(UnixStream::connect(path)?),
            Address::Other(text) => bail!("no client for {text}"),
        };
        stream.set_timeout(TIMEOUT)?;
        Ok(stream)
    }

    fn set_timeout(&self, timeout: Duration) -> std::io::Result<()> {
        match self {
            Self::Tcp(stream) => {
                stream.set_read_timeout(Some(timeout))?;
                stream.set_write_timeout(Some(timeout))
            }
            Self::Tls(stream) => {
                stream.sock.set_read_timeout(Some(timeout))?;
                stream.sock.set_write_timeout(Some(timeout))
            }
            Self::Unix(stream) => {
                stream.set_read_timeout(Some(timeout))?;
                stream.set_write_timeout(Some(timeout))
            }
        }
    }

    fn try_clone(&self) -> std::io::Result<Self> {
        Ok(match self {
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
            Self::Tls(_) => return Err(ErrorKind::Unsupported.into()),
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
        })
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Tls(stream) => stream.sock.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            // As a socket does: what was taken goes out.
            Self::Tls(stream) => {
                let count = stream.write(bytes)?;
                stream.flush()?;
                Ok(count)
            }
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The server has closed the connection, in order or not.
#[derive(Debug)]
pub(super) struct Closed {
    /// How much of an unfinished reply had come.
    partial: usize,
}

impl Closed {
    /// Whether all that came were whole replies.
    pub(super) fn is_clean(&self) -> bool {
        self.partial == 0
    }
}

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.partial {
            0 => f.write_str("the connection closed instead of a reply"),
            partial => write!(f, "the connection closed in the middle of a reply, after {partial} bytes"),
        }
    }
}

impl std::error::Error for Closed {}

/// As much of a packet or line as a message can do with.
fn start_of(text: &str) -> String {
    text.chars().take(100).collect()
}

fn is_close(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

pub(super) struct Client {
    stream: BufReader<Stream>,
}

impl Client {
    pub(super) fn connect(address: &Address) -> Result<Self> {
        let stream = Stream::open(address).with_context(|| format!("connect to {address:?}"))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Connects, and shakes hands with the server, whose name is `name`.
    pub(super) fn connect_tls(address: &Address, config: &Arc<ClientConfig>, name: &str) -> Result<Self> {
        let Stream::Tcp(mut socket) = Stream::open(address)? else { bail!("no TLS at {address:?}") };
        let mut connection = ClientConnection::new(Arc::clone(config), name.to_owned().try_into()?)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut socket).context("shake hands")?;
        }
        let stream = Stream::Tls(Box::new(StreamOwned::new(connection, socket)));
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// The last word of TLS: no more packets come; replies may still be read.
    pub(super) fn say_goodbye(&mut self) -> Result<()> {
        let Stream::Tls(stream) = self.stream.get_mut() else { bail!("this client does without TLS") };
        stream.conn.send_close_notify();
        stream.flush().context("say goodbye")
    }

    /// What it reads and writes by.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.stream.get_ref().as_fd()
    }

    /// What is known of TLS.
    pub(super) fn tls(&mut self) -> Result<&mut ClientConnection> {
        match self.stream.get_mut() {
            Stream::Tls(stream) => Ok(&mut stream.conn),
            _ => bail!("this client does without TLS"),
        }
    }

    /// Connects as one of the thousands: few bytes are buffered, and it leaves with an abort, not with an entry in the
    /// kernel's table of connections that lasts a minute and slows down every later look at that table.
    pub(super) fn connect_small(address: &Address) -> Result<Self> {
        let stream = Stream::open(address).with_context(|| format!("connect to {address:?}"))?;
        sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
        Ok(Self { stream: BufReader::with_capacity(256, stream) })
    }

    /// Connects with kernel buffers of so many bytes, or the least that the kernel has, and reads without any of its own.
    pub(super) fn connect_narrow(address: &Address, bytes: usize) -> Result<Self> {
        let Address::Tcp(to) = address else { bail!("no narrow client for {address:?}") };
        let family = if to.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
        let socket = rustix::net::socket(family, SocketType::STREAM, None)?;
        // Before it connects: what it offers then is what it gets.
        sockopt::set_socket_recv_buffer_size(&socket, bytes)?;
        sockopt::set_socket_send_buffer_size(&socket, bytes)?;
        rustix::net::connect(&socket, to).with_context(|| format!("connect to {address:?}"))?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        let stream = Stream::Tcp(stream);
        stream.set_timeout(TIMEOUT)?;
        Ok(Self { stream: BufReader::with_capacity(1, stream) })
    }

    /// Connects from this address of the loopback, and leaves with an abort.
    pub(super) fn connect_from(address: &Address, from: Ipv4Addr) -> Result<Self> {
        let Address::Tcp(to) = address else { bail!("no address to come from for {address:?}") };
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
        rustix::net::bind(&socket, &SocketAddr::from((from, 0)))?;
        rustix::net::connect(&socket, to).with_context(|| format!("connect to {address:?} from {from}"))?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
        let stream = Stream::Tcp(stream);
        stream.set_timeout(TIMEOUT)?;
        Ok(Self { stream: BufReader::with_capacity(256, stream) })
    }

    /// Connects with these bytes, which go with the SYN where kernel and server have it so (`MSG_FASTOPEN`, `tcp(7)`).
    pub(super) fn connect_saying(address: &Address, bytes: &[u8]) -> Result<Self> {
        // The library has no name for it.
        const FASTOPEN: SendFlags = SendFlags::from_bits_retain(0x2000_0000);
        let Address::Tcp(to) = address else { bail!("no fast way to {address:?}") };
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
        let sent = rustix::net::sendto(&socket, bytes, FASTOPEN, to).context("connect with bytes")?;
        ensure!(sent == bytes.len(), "{sent} of {} bytes went out", bytes.len());
        let stream = Stream::Tcp(TcpStream::from(socket));
        stream.set_timeout(TIMEOUT)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// A second handle for writing while this one reads.
    pub(super) fn writer(&self) -> Result<Stream> {
        Ok(self.stream.get_ref().try_clone()?)
    }

    /// The client's own port.
    pub(super) fn port(&self) -> Result<u16> {
        match self.stream.get_ref() {
            Stream::Tcp(stream) => Ok(stream.local_addr()?.port()),
            Stream::Tls(stream) => Ok(stream.sock.local_addr()?.port()),
            Stream::Unix(_) => bail!("a unix socket has no port"),
        }
    }

    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        match self.stream.get_mut().write_all(bytes) {
            Ok(()) => Ok(()),
            Err(error) if is_close(&error) => Err(Closed { partial: 0 }.into()),
            Err(error) => Err(error).with_context(|| format!("send {} bytes", bytes.len())),
        }
    }

    /// Sends a packet of the line protocol in one write.
    pub(super) fn tell(&mut self, packet: &str) -> Result<()> {
        self.send(format!("{packet}\n").as_bytes())
    }

    /// Sends several packets in one write, so that the server reads them together.
    pub(super) fn tell_all(&mut self, packets: &[&str]) -> Result<()> {
        self.send(packets.iter().map(|packet| format!("{packet}\n")).collect::<String>().as_bytes())
    }

    /// The next reply line, without its end.
    pub(super) fn line(&mut self) -> Result<String> {
        Ok(String::from_utf8(self.bytes_line()?)?)
    }

    fn bytes_line(&mut self) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        match self.stream.read_until(b'\n', &mut line) {
            Ok(_) if line.ends_with(b"\n") => {
                line.pop();
                Ok(line)
            }
            Ok(_) => Err(Closed { partial: line.len() }.into()),
            Err(error) if is_close(&error) => Err(Closed { partial: line.len() }.into()),
            Err(error) => Err(error).with_context(|| format!("read a reply, after {} bytes", line.len())),
        }
    }

    /// Whether bytes of a reply have come.
    pub(super) fn has_reply(&self) -> Result<bool> {
        let mut files = [PollFd::new(self.stream.get_ref(), PollFlags::IN)];
        let ready = rustix::event::poll(&mut files, Some(&Timespec::default()))?;
        Ok(ready > 0 || !self.stream.buffer().is_empty())
    }

    /// Sends a packet and reads its reply.
    pub(super) fn ask(&mut self, packet: &str) -> Result<String> {
        let start = start_of(packet);
        self.tell(packet).with_context(|| format!("ask {start:?}"))?;
        self.line().with_context(|| format!("reply to {start:?}"))
    }

    /// Sends a packet and compares its reply.
    pub(super) fn expect(&mut self, packet: &str, reply: &str) -> Result<()> {
        let got = self.ask(packet)?;
        ensure!(
            got == reply,
            "{:?} got {:?} instead of {:?}",
            start_of(packet),
            start_of(&got),
            start_of(reply)
        );
        Ok(())
    }

    /// Sends a packet that makes two processes send a line to this client: which of them is first is open.
    pub(super) fn expect_both(&mut self, packet: &str, replies: [&str; 2]) -> Result<()> {
        self.tell(packet)?;
        let got = [self.line()?, self.line()?];
        let [one, other] = replies;
        let fits = got == [one, other] || got == [other, one];
        ensure!(fits, "{:?} got {got:?} instead of {replies:?}", start_of(packet));
        Ok(())
    }

    /// Reads the next reply and compares it.
    pub(super) fn expect_line(&mut self, reply: &str) -> Result<()> {
        let got = self.line()?;
        ensure!(got == reply, "got {:?} instead of {:?}", start_of(&got), start_of(reply));
        Ok(())
    }

    /// Reads exactly this many bytes.
    pub(super) fn exactly(&mut self, count: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).with_context(|| format!("read {count} bytes"))?;
        Ok(bytes)
    }

    /// A field of the reply to `whoami` or `session`, as a number.
    pub(super) fn ask_field<T: std::str::FromStr>(&mut self, packet: &str, key: &str) -> Result<T> {
        let reply = self.ask(packet)?;
        let value = field(&reply, key).and_then(|value| value.parse().ok());
        value.ok_or_else(|| anyhow!("no {key}= in the reply to {packet:?}: {reply:?}"))
    }

    /// The id of the worker that answers.
    pub(super) fn worker(&mut self) -> Result<u32> {
        self.ask_field("whoami", "worker")
    }

    /// The client's session as `send` and `close` take it.
    pub(super) fn session(&mut self) -> Result<String> {
        self.ask_field("session", "session")
    }

    /// Reads what is left until the server closes, which it must do in time. An abort counts as a close.
    pub(super) fn drain(&mut self, within: Duration) -> Result<Vec<u8>> {
        let deadline = Instant::now() + within;
        let mut rest = Vec::new();
        let mut chunk = [0; 65536];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(
                !left.is_zero(),
                "the connection is still open after {within:?} ({} more bytes came)",
                rest.len()
            );
            self.stream.get_ref().set_timeout(left)?;
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(rest),
                Ok(count) => rest.extend_from_slice(&chunk[..count]),
                Err(error) if is_close(&error) => return Ok(rest),
                // A read with a time limit ends early when the whole machine's scenarios stand still for a while.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error).context("read until the close"),
            }
        }
    }

    /// The server closes this connection, and nothing comes before.
    pub(super) fn expect_close(&mut self) -> Result<()> {
        let rest = self.drain(TIMEOUT)?;
        ensure!(rest.is_empty(), "instead of a close came {:?}", String::from_utf8_lossy(&rest));
        Ok(())
    }

    /// Says that no more packets come; replies may still be read.
    pub(super) fn finish(&self) -> Result<()> {
        match self.stream.get_ref() {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write)?,
            Stream::Tls(stream) => stream.sock.shutdown(Shutdown::Write)?,
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write)?,
        }
        Ok(())
    }

    /// Waits until the server's program has read every byte that was sent: nothing waits in its socket. Or until it has closed
    /// the connection, as it may when it has read something that it dies of: then there is no more to wait for.
    pub(super) fn wait_read(&self, server_port: u16) -> Result<()> {
        let port = self.port()?;
        proc::until("the server to read what was sent", TIMEOUT, || {
            let rows = proc::tcp_rows();
            let ours = |row: &&proc::TcpRow| (row.local_port, row.remote_port) == (server_port, port);
            let received = |row: &proc::TcpRow| row.established && row.unread == 0;
            // What the client's kernel has not got rid of yet shows as unsent on the other row.
            let is_read = rows.iter().find(ours).is_some_and(received);
            let own = |row: &&proc::TcpRow| (row.local_port, row.remote_port) == (port, server_port);
            let is_closed = !rows.iter().find(own).is_some_and(|row| row.established);
            (is_read || is_closed).then_some(())
        })
    }

    /// Sends as much of this as goes without waiting; how much of it has arrived when the server's kernel takes no more.
    pub(super) fn fill(&mut self, bytes: &[u8], server_port: u16) -> Result<usize> {
        // Looks without a change: a window opens bit by bit.
        const SAME: usize = 20;
        let port = self.port()?;
        let (mut sent, mut before, mut same) = (0, 0, 0);
        proc::until("the server's kernel to take no more", TIMEOUT, || {
            let stream = self.stream.get_ref();
            while let Ok(count @ 1..) = rustix::net::send(stream, &bytes[sent..], SendFlags::DONTWAIT) {
                sent += count;
            }
            let rows = proc::tcp_rows();
            let ours = |row: &&proc::TcpRow| (row.local_port, row.remote_port) == (port, server_port);
            let arrived = sent.saturating_sub(rows.iter().find(ours)?.unsent as usize);
            same = if std::mem::replace(&mut before, arrived) == arrived { same + 1 } else { 0 };
            (same == SAME).then_some(arrived)
        })
    }

    /// Waits until the server's kernel has every byte that was sent, whether or not its program has read any.
    pub(super) fn wait_arrived(&self, server_port: u16) -> Result<()> {
        let port = self.port()?;
        proc::until("what was sent to arrive", TIMEOUT, || {
            let rows = proc::tcp_rows();
            let ours = |row: &&proc::TcpRow| (row.local_port, row.remote_port) == (port, server_port);
            rows.iter().find(ours).is_some_and(|row| row.unsent == 0).then_some(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn addresses_of_every_scheme() {
        assert_eq!(Address::parse("tcp://[::1]:80").unwrap(), Address::Tcp("[::1]:80".parse().unwrap()));
        assert_eq!(Address::parse("unix:///a/b").unwrap(), Address::Unix("/a/b".into()));
        assert_eq!(Address::parse("udp://1.2.3.4:5").unwrap(), Address::Other("udp://1.2.3.4:5".into()));
        assert!(Address::parse("localhost").is_err());
    }

    #[test]
    fn replies_and_closes_are_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Tcp(listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"worker=4 pid=1\nhalf").unwrap();
            let mut asked = [0; 7];
            stream.read_exact(&mut asked).unwrap();
            asked
        });
        let mut client = Client::connect(&address).unwrap();
        assert_eq!(client.worker().unwrap(), 4);
        assert_eq!(&server.join().unwrap(), b"whoami\n");
        assert!(client.line().unwrap_err().to_string().contains("middle"));
        client.expect_close().unwrap();
    }
}
