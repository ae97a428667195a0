//! `socat`, which nobody here has written, on every kind of socket.

use super::tls;
use crate::cluster::bed::Bed;
use crate::cluster::client::Address;
use crate::cluster::datagram::address_of;
use crate::cluster::matrix::{Cx, Scenario, backends};
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

pub(super) static ALL: &[Scenario] = &[backends(
    "socat",
    "socat is served on each kind of socket: TCP and UDP of both families, unix of both types, TLS, behind a proxy",
    socat,
)];

/// One that has an address of the server's on one side, and is spoken to from here on the other.
struct Socat {
    child: Child,
    title: String,
}

impl Socat {
    /// `linger`: how many seconds it waits for what comes after the last word.
    fn new(linger: &str, address: &str) -> Result<Self> {
        let mut command = Command::new("timeout");
        command.args(["30", "socat", "-t", linger, "-", address]);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start socat")?;
        Ok(Self { child, title: format!("socat - {address}") })
    }

    fn tell(&mut self, packet: &str) -> Result<()> {
        let stdin = self.child.stdin.as_mut().context("stdin is piped")?;
        stdin.write_all(packet.as_bytes()).with_context(|| format!("tell {}", self.title))
    }

    fn exactly(&mut self, count: usize) -> Result<String> {
        let mut bytes = vec![0; count];
        let stdout = self.child.stdout.as_mut().context("stdout is piped")?;
        stdout.read_exact(&mut bytes).with_context(|| format!("{count} bytes of {}", self.title))?;
        Ok(String::from_utf8(bytes)?)
    }

    fn expect(&mut self, packet: &str, reply: &str) -> Result<()> {
        self.tell(packet)?;
        let got = self.exactly(reply.len())?;
        ensure!(got == reply, "{}: {packet:?} got {got:?} instead of {reply:?}", self.title);
        Ok(())
    }

    /// No more is said; all that still comes, when it has ended well.
    fn finish(mut self) -> Result<String> {
        drop(self.child.stdin.take());
        let mut rest = String::new();
        self.child.stdout.as_mut().context("stdout is piped")?.read_to_string(&mut rest)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "{} ended with {status}", self.title);
        Ok(rest)
    }
}

impl Drop for Socat {
    fn drop(&mut self) {
        // `timeout` ends what it has started when it ends by this.
        let _ = crate::cluster::proc::signal(self.child.id().cast_signed(), rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

fn is_installed() -> Result<bool> {
    match Command::new("socat").arg("-V").stdout(Stdio::null()).status() {
        Ok(status) => Ok(status.success()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).context("start socat"),
    }
}

/// The n-th address of those that are spoken to over TCP, with or without TLS.
fn tcp(bed: &Bed, number: usize) -> Result<SocketAddr> {
    let mut addresses = bed.ready.listen.iter().filter_map(|listen| match listen {
        Address::Tcp(address) | Address::Tls(address) => Some(*address),
        _ => None,
    });
    addresses.nth(number).ok_or_else(|| anyhow!("no address {number} of TCP in {:?}", bed.ready.listen))
}

fn socat(cx: &Cx) -> Result<()> {
    if !is_installed()? {
        println!("        note: skipped, socat is not installed");
        return Ok(());
    }
    let (authority, own) = tls::localhost(cx)?;
    let at = |name: &str| cx.dir.join(name).display().to_string();
    let (stream, datagram) = (at("stream.sock"), at("datagram.sock"));
    let bed = tls::testbed(cx, &own)
        .flag("listen", "tcp://127.0.0.1:0")
        .flag("listen", "tcp://[::1]:0")
        .flag("listen", "tcp://127.0.0.1:0?proxy_protocol=v1&proxy_trusted=127.0.0.0/8")
        .flag("listen", "udp://127.0.0.1:0")
        .flag("listen", "udp://[::1]:0")
        .flag("listen", format!("unix://{stream}"))
        .flag("listen", format!("unixgram://{datagram}"))
        .start()?;
    let [over_tls, four, six, proxied] = [0, 1, 2, 3].map(|number| tcp(&bed, number));
    let (over_tls, four, six, proxied) = (over_tls?, four?, six?, proxied?);
    let trust = format!("cafile={},commonname=localhost", authority.file.display());
    let header = "PROXY TCP4 192.0.2.1 198.51.100.7 56324 80\r\n";
    for (address, first, peer) in [
        (format!("TCP4:{four}"), "", "127.0.0.1:"),
        (format!("TCP6:{six}"), "", "[::1]:"),
        (format!("UNIX-CONNECT:{stream}"), "", "unix"),
        (format!("UNIX-CLIENT:{stream}"), "", "unix"),
        (format!("OPENSSL:{over_tls},verify=0"), "", "127.0.0.1:"),
        (format!("OPENSSL:{over_tls},{trust}"), "", "127.0.0.1:"),
        (format!("TCP4:{proxied}"), header, "192.0.2.1:56324 "),
    ] {
        speak(&address, first, peer)?;
    }
    let udp = [address_of(&bed, "udp")?, nth_udp(&bed, 1)?];
    for (address, peer) in [
        (format!("UDP4:{}", udp[0]), "127.0.0.1:".to_owned()),
        (format!("UDP6:{}", udp[1]), "[::1]:".to_owned()),
        (format!("UNIX-SENDTO:{datagram},bind={}", at("one.sock")), at("one.sock")),
        (format!("UNIX-CLIENT:{datagram},bind={}", at("two.sock")), at("two.sock")),
    ] {
        exchange(&address, &peer)?;
        // Some versions leave the file of their own name.
        let _ = std::fs::remove_file(peer);
    }
    bed.stop()?;
    Ok(())
}

fn nth_udp(bed: &Bed, number: usize) -> Result<String> {
    let rest = |address: &Address| match address {
        Address::Other(text) => text.strip_prefix("udp://").map(str::to_owned),
        _ => None,
    };
    let Some(address) = bed.ready.listen.iter().filter_map(rest).nth(number) else {
        bail!("no address {number} of UDP in {:?}", bed.ready.listen)
    };
    Ok(address)
}

/// Packets and replies of a stream.
fn speak(address: &str, first: &str, peer: &str) -> Result<()> {
    const LARGE: usize = 300_000;
    let mut socat = Socat::new("20", address)?;
    socat.expect(&format!("{first}echo hello\n"), "hello\n")?;
    let reply = socat.tell(&format!("big {LARGE}\n")).and_then(|()| socat.exactly(LARGE + 1))?;
    ensure!(
        reply.bytes().filter(|byte| *byte == b'x').count() == LARGE,
        "{address}: a large reply is damaged"
    );
    // It is answered, though that is its last word.
    socat.tell("session\necho last\n")?;
    let rest = socat.finish()?;
    let told = format!(" peer={peer}");
    ensure!(rest.starts_with("session=") && rest.ends_with("\nlast\n"), "{address}: {rest:?}");
    ensure!(rest.contains(&told), "{address}: no{told} in {rest:?}");
    Ok(())
}

/// Datagrams and answers.
fn exchange(address: &str, peer: &str) -> Result<()> {
    let mut socat = Socat::new("0.1", address)?;
    for text in ["hello", "again"] {
        socat.expect(&format!("echo {text}"), text)?;
    }
    let told = format!("peer={peer}");
    socat.tell("session")?;
    let begin = socat.exactly(told.len() + 1)?;
    let rest = socat.finish()?;
    ensure!(format!("{begin}{rest}").contains(&told), "{address}: no {told} in {begin}{rest}");
    Ok(())
}
