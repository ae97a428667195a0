//! What is set on TCP sockets, seen by what the kernel does with the connections.

use crate::cluster::bed::{Bed, PATIENCE};
use crate::cluster::client::{Address, Client};
use crate::cluster::matrix::{Cx, Scenario, backends};
use crate::cluster::proc;
use crate::cluster::wire::{NEAR, Wire};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::net::SocketAddr;
use std::process::Command;

pub(super) static ALL: &[Scenario] = &[
    backends(
        "tcp_vanished",
        "open_tcp_keepalive, tcp_keep..., tcp_user_timeout: whose clients vanished are given up, when it says so",
        vanished,
    ),
    backends(
        "tcp_nodelay",
        "open_tcp_nodelay: a small piece waits for nothing, or for the one before it",
        nodelay,
    ),
    backends("tcp_fastopen", "tcp_fastopen: a client that was here before is read with its SYN", fastopen),
];

/// A client at the far end, which is not answered any more once the wire is cut.
struct Guest {
    _client: Client,
    session: String,
    port: u16,
}

impl Guest {
    /// Of the server's address with this number.
    fn new(wire: &Wire, bed: &Bed, number: usize) -> Result<Self> {
        let port = port_of(bed, number)?;
        let address = Address::Tcp(SocketAddr::new(NEAR.parse()?, port));
        let mut client = wire.far(|| Client::connect(&address))?;
        Ok(Self { session: client.session()?, _client: client, port })
    }

    fn send(&self, control: &mut Client, text: &str) -> Result<()> {
        control.expect(&format!("send {} {text}", self.session), "ok")
    }
}

fn port_of(bed: &Bed, number: usize) -> Result<u16> {
    match bed.ready.listen.get(number) {
        Some(Address::Tcp(address)) => Ok(address.port()),
        other => anyhow::bail!("{other:?} has no port"),
    }
}

fn start(cx: &Cx, options: &[&str]) -> Result<Bed> {
    let launch = cx.testbed_bare().flag("worker-num", 1).flag("reactor-num", 1);
    // What each address says for itself wins.
    let launch = launch.word("--open-tcp-keepalive").flag("tcp-keepcount", 1);
    let launch = launch.flag("tcp-keepidle", 1).flag("tcp-keepinterval", 1);
    let listen = |options: &&str| format!("tcp://0.0.0.0:0?{options}");
    options.iter().map(listen).fold(launch, |launch, listen| launch.flag("listen", listen)).start()
}

/// A connection from the near end.
fn control(bed: &Bed) -> Result<Client> {
    Client::connect(&Address::Tcp(SocketAddr::new(NEAR.parse()?, port_of(bed, 0)?)))
}

fn vanished(cx: &Cx) -> Result<()> {
    // Each of those that stay would be gone before the last one if its option were not heeded.
    const OPTIONS: [(&str, bool); 7] = [
        ("open_tcp_keepalive=false", true),
        ("tcp_keepidle=3600", true),
        ("tcp_keepinterval=3600", true),
        ("tcp_keepcount=127", true),
        ("open_tcp_keepalive=false&tcp_user_timeout=0", true),
        ("open_tcp_keepalive=false&tcp_user_timeout=500", false),
        ("tcp_keepcount=2", false),
    ];
    let Some(wire) = Wire::lay()? else { return Ok(()) };
    let bed = start(cx, &OPTIONS.map(|(options, _)| options))?;
    let mut control = control(&bed)?;
    let guests: Vec<Guest> =
        (0..OPTIONS.len()).map(|number| Guest::new(&wire, &bed, number)).collect::<Result<_>>()?;
    wire.cut()?;
    let told = |(options, _): &(&str, bool)| options.contains("user_timeout");
    for (guest, _) in guests.iter().zip(OPTIONS).filter(|(_, options)| told(options)) {
        guest.send(&mut control, "anybody there?")?;
    }
    let mut is_known = |guest: &Guest| -> Result<bool> {
        let reply = control.ask(&format!("send {} here?", guest.session))?;
        ensure!(reply == "ok" || reply.starts_with("error: no such session"), "{reply:?}");
        Ok(reply == "ok")
    };
    for (guest, (options, _)) in guests.iter().zip(OPTIONS).filter(|(_, (_, stays))| !stays) {
        // What is sent to it would keep its connection from being asked.
        let ended = || (!connected(guest.port).ok()?).then_some(());
        proc::until(&format!("the end of the client of {options}"), PATIENCE, ended)?;
        let forgotten = || (!is_known(guest).ok()?).then_some(());
        proc::until(&format!("the server to forget the client of {options}"), PATIENCE, forgotten)?;
    }
    for (guest, (options, _)) in guests.iter().zip(OPTIONS).filter(|(_, (_, stays))| *stays) {
        ensure!(is_known(guest)?, "the client of {options} was given up");
    }
    drop(guests);
    bed.stop()?;
    Ok(())
}

/// What `ss` tells of the server's connections at this port, in the network of this thread.
fn state(port: u16) -> Result<String> {
    let mut ss = Command::new("ss");
    let output = ss.args(["-tinH", "state", "connected", &format!("( sport = :{port} )")]).output();
    let output = output.context("start ss (iproute2)")?;
    ensure!(output.status.success(), "ss: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

fn connected(port: u16) -> Result<bool> {
    Ok(!state(port)?.is_empty())
}

fn nodelay(cx: &Cx) -> Result<()> {
    let Some(wire) = Wire::lay()? else { return Ok(()) };
    wire.delay_repeats()?;
    let bed = start(cx, &["backlog=8", "open_tcp_nodelay=false", "tcp_keepidle=3600"])?;
    // At an address that nobody is looked at.
    let mut control = control(&bed)?;
    let guests = [1, 2].map(|number| Guest::new(&wire, &bed, number));
    let [late, at_once] = guests;
    let (late, at_once) = (late?, at_once?);
    wire.cut()?;
    for (guest, second) in [(&late, "notsent:"), (&at_once, "unacked:2")] {
        guest.send(&mut control, "first")?;
        wait_state(guest, "unacked:1")?;
        guest.send(&mut control, "second")?;
        wait_state(guest, second)?;
    }
    ensure!(!state(at_once.port)?.contains("notsent:"), "the second piece waits: {}", state(at_once.port)?);
    drop((late, at_once));
    bed.stop()?;
    Ok(())
}

fn wait_state(guest: &Guest, part: &str) -> Result<()> {
    let has = || state(guest.port).ok()?.contains(part).then_some(());
    let waited = proc::until(part, PATIENCE, has);
    waited.with_context(|| format!("the connection: {}", state(guest.port).unwrap_or_default()))
}

/// How many clients were read with their SYN so far.
fn opened_fast() -> Result<u64> {
    let text = fs::read_to_string("/proc/thread-self/net/netstat")?;
    let mut rows = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (rows.next().context("no names")?, rows.next().context("no values")?);
    let mut columns = names.split(' ').zip(values.split(' '));
    let (_, count) = columns.find(|(name, _)| *name == "TCPFastOpenPassive").context("no such count")?;
    Ok(count.parse()?)
}

fn fastopen(cx: &Cx) -> Result<()> {
    let Some(wire) = Wire::lay()? else { return Ok(()) };
    // Clients may (1), and servers (2).
    fs::write("/proc/sys/net/ipv4/tcp_fastopen", "3")?;
    let bed = start(cx, &["tcp_fastopen=0", "tcp_fastopen=16"])?;
    for (number, expected) in [(0, 0), (1, 2)] {
        let address = Address::Tcp(SocketAddr::new(NEAR.parse()?, port_of(&bed, number)?));
        let before = opened_fast()?;
        // The first one gets the cookie that the others show.
        for _ in 0..3 {
            let mut client = Client::connect_saying(&address, b"echo hello\n")?;
            client.expect_line("hello")?;
            client.expect("echo again", "again")?;
        }
        let count = opened_fast()? - before;
        ensure!(count == expected, "address {number}: {count} of 3 were read with their SYN");
    }
    drop(wire);
    bed.stop()?;
    Ok(())
}
