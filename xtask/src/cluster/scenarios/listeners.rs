//! What is set on a listening socket, as it is seen from outside; and sockets that the program is given.

use crate::cluster::bed::{Launch, PATIENCE};
use crate::cluster::client::{Address, Client};
use crate::cluster::log::Source;
use crate::cluster::matrix::{Cx, Scenario, backends, once};
use crate::cluster::proc;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;

pub(super) static ALL: &[Scenario] = &[
    backends("listen_dual_stack", "ipv6_only: one address for IPv6 and, if that is wanted, IPv4", dual_stack),
    backends("listen_deferred", "tcp_defer_accept: who has said nothing is not accepted", deferred),
    once(
        "listen_unix_file",
        "unix_mode, unix_user, unix_group: who may connect, whatever the umask",
        unix_file,
    ),
    once("listen_reuse_port", "reuse_port: two servers on one port, if both say so", reuse_port),
    once(
        "listen_refused",
        "options that an address cannot have are refused, and the address is named",
        refused,
    ),
    backends(
        "inherited",
        "a socket that was given is served, by workers old and new, and left as it was",
        inherited,
    ),
    backends("inherited_unix", "a unix socket that was given stays when the server ends", inherited_unix),
    once(
        "inherited_refused",
        "descriptors that are not there, or are no sockets that listen, are refused",
        no_heir,
    ),
];

fn at(ip: impl Into<IpAddr>, port: u16) -> Address {
    Address::Tcp(SocketAddr::new(ip.into(), port))
}

fn dual_stack(cx: &Cx) -> Result<()> {
    let launch = cx.testbed_bare().flag("worker-num", 2).flag("reactor-num", 2);
    let bed = launch.flag("listen", "tcp://[::]:0?ipv6_only=false").flag("listen", "tcp://[::]:0").start()?;
    let ports: Vec<u16> = bed
        .ready
        .listen
        .iter()
        .filter_map(|listen| match listen {
            Address::Tcp(address) => Some(address.port()),
            _ => None,
        })
        .collect();
    let [both, only] = ports[..] else { anyhow::bail!("listens on {:?}", bed.ready.listen) };
    for _ in 0..4 {
        let mut four = Client::connect(&at(Ipv4Addr::LOCALHOST, both))?;
        let peer: String = four.ask_field("session", "peer")?;
        ensure!(peer == format!("127.0.0.1:{}", four.port()?), "an IPv4 client is taken for {peer}");
        for port in [both, only] {
            let mut six = Client::connect(&at(Ipv6Addr::LOCALHOST, port))?;
            let peer: String = six.ask_field("session", "peer")?;
            ensure!(peer == format!("[::1]:{}", six.port()?), "an IPv6 client is taken for {peer}");
        }
    }
    ensure!(Client::connect(&at(Ipv4Addr::LOCALHOST, only)).is_err(), "IPv4 comes in by an address of IPv6");
    bed.stop()?;
    Ok(())
}

fn deferred(cx: &Cx) -> Result<()> {
    let launch = cx.testbed_bare().flag("worker-num", 1).flag("reactor-num", 1);
    let bed = launch
        .flag("listen", "tcp://127.0.0.1:0?tcp_defer_accept=60")
        .flag("listen", "tcp://127.0.0.1:0")
        .start()?;
    let [deferred, plain] = &bed.ready.listen[..] else { anyhow::bail!("two addresses") };
    let mut silent = (0..3).map(|_| Client::connect(deferred)).collect::<Result<Vec<_>>>()?;
    let mut client = Client::connect(plain)?;
    // Behind those in the accept queue, if they were there.
    let stats = client.ask("stats")?;
    ensure!(stats.contains("\"accept_count\":1,"), "somebody who has said nothing was accepted: {stats}");
    for silent in &mut silent {
        silent.expect("echo late", "late")?;
    }
    let stats = client.ask("stats")?;
    ensure!(stats.contains("\"accept_count\":4,"), "{stats}");
    bed.stop()?;
    Ok(())
}

fn unix_file(cx: &Cx) -> Result<()> {
    let root = rustix::process::geteuid().is_root();
    let own = fs::metadata(&cx.dir)?;
    let (user, group) = if root { (65_534, 65_533) } else { (own.uid(), own.gid()) };
    for (umask, mode) in [("077", 0o666), ("000", 0o600), ("022", 0o660)] {
        let path = cx.dir.join("app.sock");
        let listen =
            format!("unix://{}?unix_mode={mode:o}&unix_user={user}&unix_group={group}", path.display());
        let launch = cx.testbed_bare().flag("listen", listen).flag("worker-num", 1);
        let bed = launch.through(&["sh", "-c", &format!("umask {umask} && exec \"$0\" \"$@\"")]).start()?;
        let file = fs::symlink_metadata(&path)?;
        let is = file.permissions().mode() & 0o7777;
        ensure!(is == mode, "umask {umask}: mode {is:o} instead of {mode:o}");
        ensure!((file.uid(), file.gid()) == (user, group), "it is of {}:{}", file.uid(), file.gid());
        bed.connect()?.expect("echo in", "in")?;
        bed.stop()?;
        ensure!(!path.exists(), "the file is left");
    }
    Ok(())
}

fn reuse_port(cx: &Cx) -> Result<()> {
    let launch = |listen: &str| cx.testbed_bare().flag("worker-num", 2).flag("listen", listen);
    let first = launch("tcp://127.0.0.1:0?reuse_port=true").start()?;
    let port = first.port()?;
    let shared = format!("tcp://127.0.0.1:{port}?reuse_port=true");
    launch(&format!("tcp://127.0.0.1:{port}")).refused(&[&port.to_string(), "address in use"])?;
    let second = launch(&shared).start()?;
    // The kernel deals by the client's port: soon both have had one.
    let mut pids = std::collections::BTreeSet::new();
    proc::until("clients of both servers", PATIENCE, || {
        let mut client = first.connect().ok()?;
        let pid: i32 = client.ask_field("whoami", "pid").ok()?;
        pids.insert(first.ready.workers.contains(&pid));
        (pids.len() == 2).then_some(())
    })?;
    first.stop()?;
    for _ in 0..20 {
        let pid: i32 = second.connect()?.ask_field("whoami", "pid")?;
        ensure!(second.ready.workers.contains(&pid), "an unknown worker {pid} answers");
    }
    second.stop()?;
    Ok(())
}

fn refused(cx: &Cx) -> Result<()> {
    for (listen, complaint) in [
        ("tcp://127.0.0.1:0?unix_mode=660", "unix_mode = 660: is for a unix socket"),
        ("unix:///tmp/a?tcp_keepidle=5", "tcp_keepidle = 5: is for TCP"),
        ("tcp://127.0.0.1:0?tcp_keepcount=128", "tcp_keepcount = 128: must be 1..=127"),
        ("tcp://127.0.0.1:0?proxy_protocol=v1", "needs proxy_trusted"),
        ("unix:///tmp/a?unix_user=nobody-of-that-name", "there is none of that name"),
    ] {
        cx.testbed_bare().flag("listen", listen).refused(&[listen, complaint])?;
    }
    Ok(())
}

/// Starts it with its standard input as descriptor 3, which is named `web`, and 4, named `spare`.
pub(super) fn given(launch: Launch<'_>, socket: OwnedFd) -> Launch<'_> {
    let script =
        "exec 3<&0 4<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=web:spare exec \"$0\" \"$@\"";
    launch.stdin(socket).through(&["sh", "-c", script])
}

fn inherited(cx: &Cx) -> Result<()> {
    let socket = TcpListener::bind("127.0.0.1:0")?;
    let port = socket.local_addr()?.port();
    let launch = || cx.testbed_bare().flag("listen", "fd://web?package_max_length=100").flag("worker-num", 2);
    // Whoever comes while there is no server waits for it.
    let mut early = Client::connect(&at(Ipv4Addr::LOCALHOST, port))?;
    for round in 0..2 {
        let bed = given(launch(), OwnedFd::from(socket.try_clone()?)).start()?;
        ensure!(bed.port()? == port, "it says that it listens on {:?}", bed.ready.listen);
        early.expect("echo early", "early")?;
        let mut clients = (0..8).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
        clients.iter_mut().try_for_each(|client| client.expect("echo in", "in"))?;
        bed.log.wait_line(Source::Stderr, &["descriptor 4", "spare", "closed"], PATIENCE)?;
        // What the server starts must not take the socket for its own.
        let child: i32 = early.ask_field("spawn 20000", "pid")?;
        let environment = fs::read(format!("/proc/{child}/environ"))?;
        let has_variable = environment.windows(7).any(|window| window == b"LISTEN_");
        ensure!(!has_variable, "a child's environment: {}", String::from_utf8_lossy(&environment));
        proc::signal(child, Signal::KILL)?;
        let mut other = bed.connect()?;
        other.send(&[b'x'; 200])?;
        other.expect_close().context("the limit of the address")?;
        if !bed.is_base() {
            // A manager that is executed anew has no business with the socket.
            let manager = bed.replace_manager()?;
            let inode =
                proc::tcp_rows().into_iter().find(|row| row.local_port == port && row.remote_port == 0);
            let inode = inode.context("nobody listens")?.inode;
            ensure!(!proc::socket_inodes(manager)?.contains(&inode), "the new manager has the socket");
            bed.connect()?.expect("echo in", "in")?;
        }
        bed.signal_master(Signal::USR1)?;
        bed.log.wait_count("on_after_reload", 1, PATIENCE)?;
        bed.connect()?.expect("echo in", "in")?;
        clients.iter_mut().try_for_each(|client| client.expect("echo still", "still"))?;
        drop((clients, other));
        bed.stop().with_context(|| format!("round {round}"))?;
        early =
            Client::connect(&at(Ipv4Addr::LOCALHOST, port)).context("connect while there is no server")?;
    }
    Ok(())
}

fn inherited_unix(cx: &Cx) -> Result<()> {
    let path = cx.dir.join("given.sock");
    let socket = UnixListener::bind(&path)?;
    for name in ["web", "3"] {
        let launch = cx.testbed_bare().flag("listen", format!("fd://{name}")).flag("worker-num", 2);
        let bed = given(launch, OwnedFd::from(socket.try_clone()?)).start()?;
        ensure!(bed.ready.listen == [Address::Unix(path.clone())], "listens on {:?}", bed.ready.listen);
        let mut clients = (0..8).map(|_| bed.connect()).collect::<Result<Vec<_>>>()?;
        clients.iter_mut().try_for_each(|client| client.expect("echo in", "in"))?;
        bed.stop()?;
        ensure!(path.exists(), "the file of whoever has opened the socket is gone");
    }
    Ok(fs::remove_file(path)?)
}

fn no_heir(cx: &Cx) -> Result<()> {
    let launch = |name: &str| cx.testbed_bare().flag("listen", format!("fd://{name}"));
    launch("web").refused(&["listen = fd://web", "no such descriptor", "none"])?;
    let socket = || Ok::<_, std::io::Error>(OwnedFd::from(TcpListener::bind("127.0.0.1:0")?));
    given(launch("admin"), socket()?).refused(&["listen = fd://admin", "3 (\"web\"), 4 (\"spare\")"])?;
    let file = OwnedFd::from(fs::File::open("/dev/null")?);
    given(launch("web"), file).refused(&["listen on fd://web", "no socket"])?;
    // The variables are for somebody else.
    let launch = launch("web").env("LISTEN_PID", "1").env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "web");
    launch.refused(&["listen = fd://web", "no such descriptor"])
}
