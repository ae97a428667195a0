//! A blocking client that sends datagrams. Every wait has a deadline.

use super::bed::Bed;
use super::client::Address;
use super::log::field;
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a client waits for an answer that must come.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Longer than any datagram.
const BUFFER: usize = 70_000;

enum Socket {
    Udp(UdpSocket),
    Unix(UnixDatagram),
}

pub(super) struct Sender {
    socket: Socket,
    /// The file of its own name, which it puts away.
    file: Option<PathBuf>,
}

impl Drop for Sender {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            // What is left in spite of that, the scenario is told of.
            let _ = std::fs::remove_file(file);
        }
    }
}

/// The first address of the server's with this scheme, `udp` or `unixgram`, as it is written behind that.
pub(super) fn address_of(bed: &Bed, scheme: &str) -> Result<String> {
    let rest = |address: &Address| match address {
        Address::Other(text) => text.strip_prefix(&format!("{scheme}://")).map(str::to_owned),
        _ => None,
    };
    bed.ready.listen.iter().find_map(rest).with_context(|| format!("no {scheme} address"))
}

impl Sender {
    /// To the server's first UDP address.
    pub(super) fn connect(bed: &Bed) -> Result<Self> {
        Self::udp(&address_of(bed, "udp")?)
    }

    pub(super) fn udp(address: &str) -> Result<Self> {
        let address: SocketAddr = address.parse()?;
        let own: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::LOCALHOST, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::LOCALHOST, 0).into(),
        };
        let socket = UdpSocket::bind(own)?;
        socket.connect(address)?;
        Self::new(Socket::Udp(socket))
    }

    /// To this unix socket, from one with its own path, or from one that has no name.
    pub(super) fn unix(address: impl AsRef<Path>, own: Option<&Path>) -> Result<Self> {
        let socket = match own {
            Some(own) => UnixDatagram::bind(own)?,
            None => UnixDatagram::unbound()?,
        };
        let mut sender = Self::of_unix(socket, address)?;
        sender.file = own.map(Path::to_owned);
        Ok(sender)
    }

    pub(super) fn of_unix(socket: UnixDatagram, address: impl AsRef<Path>) -> Result<Self> {
        socket.connect(address)?;
        Self::new(Socket::Unix(socket))
    }

    fn new(socket: Socket) -> Result<Self> {
        let sender = Self { socket, file: None };
        sender.set_timeout(TIMEOUT)?;
        Ok(sender)
    }

    fn set_timeout(&self, timeout: Duration) -> Result<()> {
        match &self.socket {
            Socket::Udp(socket) => socket.set_read_timeout(Some(timeout))?,
            Socket::Unix(socket) => {
                socket.set_read_timeout(Some(timeout))?;
                socket.set_write_timeout(Some(TIMEOUT))?;
            }
        }
        Ok(())
    }

    /// Its own address, as `session` and `sendto` write it.
    pub(super) fn name(&self) -> Result<String> {
        match &self.socket {
            Socket::Udp(socket) => Ok(socket.local_addr()?.to_string()),
            Socket::Unix(socket) => {
                let address = socket.local_addr()?;
                Ok(address.as_pathname().context("it has no path")?.display().to_string())
            }
        }
    }

    pub(super) fn send(&self, bytes: &[u8]) -> Result<()> {
        let sent = match &self.socket {
            Socket::Udp(socket) => socket.send(bytes),
            Socket::Unix(socket) => socket.send(bytes),
        };
        let sent = sent.with_context(|| format!("send {} bytes", bytes.len()))?;
        ensure!(sent == bytes.len(), "{sent} of {} bytes were sent", bytes.len());
        Ok(())
    }

    /// The next datagram, if one comes in this time.
    pub(super) fn receive_within(&self, within: Duration) -> Result<Option<Vec<u8>>> {
        self.set_timeout(within)?;
        let mut buffer = vec![0; BUFFER];
        let received = match &self.socket {
            Socket::Udp(socket) => socket.recv(&mut buffer),
            Socket::Unix(socket) => socket.recv(&mut buffer),
        };
        match received {
            Ok(count) => {
                buffer.truncate(count);
                Ok(Some(buffer))
            }
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error).context("receive a datagram"),
        }
    }

    pub(super) fn receive(&self) -> Result<Vec<u8>> {
        self.receive_within(TIMEOUT)?.ok_or_else(|| anyhow!("no datagram came within {TIMEOUT:?}"))
    }

    /// Sends a packet and reads the answer.
    pub(super) fn ask(&self, packet: &str) -> Result<String> {
        let start: String = packet.chars().take(40).collect();
        self.send(packet.as_bytes()).with_context(|| format!("ask {start:?}"))?;
        let answer = self.receive().with_context(|| format!("answer to {start:?}"))?;
        Ok(String::from_utf8(answer)?)
    }

    pub(super) fn expect(&self, packet: &str, answer: &str) -> Result<()> {
        let got = self.ask(packet)?;
        ensure!(got == answer, "{packet:?} got {got:?} instead of {answer:?}");
        Ok(())
    }

    /// Receives one, and compares it.
    pub(super) fn expect_answer(&self, answer: &str) -> Result<()> {
        let got = String::from_utf8(self.receive()?)?;
        ensure!(got == answer, "got {got:?} instead of {answer:?}");
        Ok(())
    }

    /// The worker that answers, to this packet.
    pub(super) fn worker_by(&self, packet: &str) -> Result<u32> {
        let answer = self.ask(packet)?;
        let worker = field(&answer, "worker").and_then(|worker| worker.parse().ok());
        worker.ok_or_else(|| anyhow!("no worker= in the answer to {packet:?}: {answer:?}"))
    }

    pub(super) fn worker(&self) -> Result<u32> {
        self.worker_by("whoami")
    }

    /// One whose datagrams go to this worker, where that follows from its address.
    pub(super) fn of_worker(bed: &Bed, worker: u32) -> Result<Self> {
        // They stay, so that each has another port.
        let mut others = Vec::new();
        while others.len() < 256 {
            let sender = Self::connect(bed)?;
            if sender.worker()? == worker {
                return Ok(sender);
            }
            others.push(sender);
        }
        bail!("of 256 senders, none came to worker {worker}")
    }
}
