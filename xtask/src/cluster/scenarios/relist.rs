//! Addresses that a reload adds and removes.

use super::listeners::given;
use crate::cluster::bed::{Bed, Launch, PATIENCE};
use crate::cluster::client::{Address, Client};
use crate::cluster::datagram::Sender;
use crate::cluster::load::Load;
use crate::cluster::log::Source;
use crate::cluster::matrix::{Cx, Scenario, backends, once};
use crate::cluster::proc;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

pub(super) static ALL: &[Scenario] = &[
    backends(
        "relist",
        "a reload adds addresses of every kind and removes them; sessions go on",
        add_and_remove,
    ),
    backends(
        "relist_under_load",
        "addresses come and go under load: nobody is lost who has connected before",
        under_load,
    ),
    backends(
        "relist_options",
        "an address gets other options, and keeps its socket and whoever waits in it",
        options,
    ),
    once(
        "relist_refused",
        "addresses that cannot be had leave all as they are, and the reload goes on",
        refused,
    ),
    once(
        "relist_manager_dies",
        "new addresses are known to the workers of the manager after this one",
        manager_dies,
    )
    .in_process(),
    once("relist_inherited", "a socket that was given is left as it was found", inherited),
    once("relist_aborted", "clients of a new address wait until a reload has succeeded", aborted)
        .in_process(),
];

/// A server with a configuration file, and what is in it.
pub(super) struct Site {
    pub(super) bed: Bed,
    file: PathBuf,
    reloads: usize,
}

impl Site {
    pub(super) fn start(cx: &Cx, listen: &[&str], flags: &[(&str, &str)]) -> Result<Self> {
        Self::start_with(cx, listen, |launch| {
            flags.iter().fold(launch, |launch, (name, value)| launch.flag(name, value))
        })
    }

    fn start_with<'a>(
        cx: &'a Cx,
        listen: &[&str],
        prepare: impl FnOnce(Launch<'a>) -> Launch<'a>,
    ) -> Result<Self> {
        let file = cx.dir.join("server.toml");
        fs::write(&file, text(listen))?;
        let launch = cx.testbed_bare().flag("config", file.display()).flag("worker-num", 2);
        let bed = prepare(launch).start()?;
        Ok(Self { bed, file, reloads: 0 })
    }

    /// Reloads with these addresses, and waits for the end of that.
    pub(super) fn list(&mut self, listen: &[&str]) -> Result<()> {
        fs::write(&self.file, text(listen))?;
        self.reload()
    }

    fn reload(&mut self) -> Result<()> {
        self.bed.signal_master(Signal::USR1)?;
        self.reloads += 1;
        self.wait_for("Server has reloaded", self.reloads)?;
        Ok(())
    }

    /// Waits for so many lines of the log with this.
    fn wait_for(&self, part: &str, count: usize) -> Result<Vec<String>> {
        proc::until(&format!("{count} lines with {part:?}"), PATIENCE, || {
            let lines = self.bed.log.texts(Source::Stderr);
            let lines: Vec<String> = lines.into_iter().filter(|line| line.contains(part)).collect();
            (lines.len() >= count).then_some(lines)
        })
    }

    /// The address that has been added as the `count`th one.
    pub(super) fn added(&self, count: usize) -> Result<String> {
        let lines = self.wait_for(", too", count)?;
        let (_, url) = lines[count - 1].split_once("is ready on ").context("an address")?;
        Ok(url.strip_suffix(", too").unwrap_or(url).to_owned())
    }
}

fn text(listen: &[&str]) -> String {
    format!("listen = {listen:?}\n")
}

fn add_and_remove(cx: &Cx) -> Result<()> {
    let first = "tcp://127.0.0.1:0";
    let path = cx.dir.join("second.sock");
    let unix = format!("unix://{}", path.display());
    let mut site = Site::start(cx, &[first], &[])?;
    let mut old = site.bed.connect()?;
    let listener: u32 = old.ask_field("session", "listener")?;
    ensure!(listener == 0, "{listener}");
    let lines = "tcp://127.0.0.1:0?framing=line&name=lines";
    site.list(&[first, lines, &unix, "udp://127.0.0.1:0"])?;

    let (tcp, udp) = (site.added(1)?, site.added(3)?);
    ensure!(site.added(2)? == unix, "{}", site.added(2)?);
    let mut new = Client::connect(&Address::parse(&tcp)?)?;
    new.tell("echo by a line\r")?;
    new.expect_line("by a line")?;
    let listener: u32 = new.ask_field("session", "listener")?;
    ensure!(listener == 1, "{listener}");
    let mut near = Client::connect(&Address::Unix(path.clone()))?;
    near.expect("echo near", "near")?;
    let udp = Sender::udp(udp.strip_prefix("udp://").context("an address of UDP")?)?;
    udp.expect("echo one", "one")?;
    old.expect("echo as ever", "as ever")?;
    // The same once more: nothing happens to anybody.
    site.reload()?;
    new.expect("echo on", "on")?;
    ensure!(site.bed.log.texts(Source::Stderr).iter().all(|line| !line.contains("Server leaves")));

    let address = site.bed.address()?.clone();
    site.list(&[lines])?;
    site.wait_for("Server leaves", 3)?;
    ensure!(!path.exists(), "the file of a socket that is closed is left");
    proc::until("an address that is removed to be closed", PATIENCE, || {
        Client::connect(&address).is_err().then_some(())
    })?;
    for (client, what) in [(&mut old, "first"), (&mut new, "lines"), (&mut near, "near")] {
        client.expect(&format!("echo {what}"), what)?;
    }
    ensure!(udp.ask("echo two").is_err(), "a socket of UDP that is removed answers");
    // And back, as it was.
    site.list(&[lines, &unix])?;
    proc::until("the unix socket to be back", PATIENCE, || {
        Client::connect(&Address::Unix(path.clone())).ok()
    })?
    .expect("echo again", "again")?;
    site.bed.stop()?;
    ensure!(!path.exists(), "the file of a socket that was added is left");
    Ok(())
}

fn under_load(cx: &Cx) -> Result<()> {
    let first = "tcp://127.0.0.1:0";
    // A port that is free, and known.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let second = format!("tcp://127.0.0.1:{port}");
    let address = Address::parse(&second)?;
    let mut site = Site::start(cx, &[first], &[])?;
    let load = Load::start(site.bed.address()?, 4)?;
    for round in 1..=4 {
        site.list(&[first, &second])?;
        let added = proc::until("the new address", PATIENCE, || Client::connect(&address).ok());
        added?.expect("echo in", "in")?;
        // They have connected when it is removed: each of them is served.
        let mut clients = (0..20).map(|_| Client::connect(&address)).collect::<Result<Vec<_>>>()?;
        fs::write(&site.file, text(&[first]))?;
        site.bed.signal_master(Signal::USR1)?;
        for client in &mut clients {
            client.expect("echo still in", "still in").with_context(|| format!("round {round}"))?;
        }
        site.reloads += 1;
        site.wait_for("Server has reloaded", site.reloads)?;
        proc::until("the address to be closed", PATIENCE, || {
            Client::connect(&address).is_err().then_some(())
        })?;
        for client in &mut clients {
            client.expect("echo ever after", "ever after")?;
        }
    }
    load.finish_unharmed()?;
    site.bed.stop()?;
    Ok(())
}

fn options(cx: &Cx) -> Result<()> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let plain = format!("tcp://127.0.0.1:{port}");
    let mut site = Site::start(cx, &[&plain], &[])?;
    let mut old = site.bed.connect()?;
    // Who waits in the backlog comes in by the new options.
    old.expect("echo here", "here")?;
    let load = Load::start(site.bed.address()?, 2)?;
    let crlf = format!("{plain}?package_eof=\\r\\n&name=crlf&backlog=33");
    site.list(&[&crlf])?;
    let mut new = proc::until("the new options", PATIENCE, || {
        // A worker of Base mode that is not replaced yet goes by the old ones.
        let mut client = site.bed.connect().ok()?;
        client.tell("whoami\nmore\r").ok()?;
        (!client.line().ok()?.starts_with("worker=")).then_some(client)
    })?;
    new.tell("echo by two bytes\r")?;
    new.expect_line("by two bytes")?;
    old.expect("echo by one", "by one")?;
    let listeners = [old.ask_field::<u32>("session", "listener")?, {
        new.tell("session\r")?;
        let line = new.line()?;
        crate::cluster::log::field(&line, "listener").context("a listener")?.parse()?
    }];
    ensure!(listeners == [0, 1], "{listeners:?}");
    let out = std::process::Command::new("ss").args(["-Hltn", &format!("sport = :{port}")]).output();
    let out = out.context("run ss (iproute2)")?;
    let queues = String::from_utf8(out.stdout)?;
    ensure!(queues.lines().all(|line| line.split_whitespace().nth(2) == Some("33")), "backlog: {queues}");
    // Back again: the number of before.
    site.list(&[&plain])?;
    proc::until("the old options", PATIENCE, || {
        let mut client = site.bed.connect().ok()?;
        (client.ask_field::<u32>("session", "listener").ok()? == 0).then_some(())
    })?;
    load.finish_unharmed()?;
    site.bed.stop()?;
    Ok(())
}

fn refused(cx: &Cx) -> Result<()> {
    let first = "tcp://127.0.0.1:0";
    let mut site = Site::start(cx, &[first], &[])?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let taken = format!("tcp://{}", taken.local_addr()?);
    let path = cx.dir.join("other.sock");
    let unix = format!("unix://{}", path.display());
    let cases = [
        (&[first, &unix, &taken][..], "address in use"),
        (&[first, "tcp://127.0.0.1:0?max_queue=no"], "max_queue"),
        (&[first, "tls://127.0.0.1:0"], "ssl_cert_file"),
        (&[first, "fd://web"], "at its start only"),
        (&[], "must hold an address"),
    ];
    for (number, (listen, reason)) in cases.into_iter().enumerate() {
        let pids = site.bed.workers();
        site.list(listen)?;
        let lines = site.wait_for("addresses stay as they are", number + 1)?;
        ensure!(lines[number].contains(reason), "{}: {:?}", reason, lines[number]);
        ensure!(!path.exists(), "a socket that came to nothing is left");
        site.bed.connect()?.expect("echo in", "in")?;
        ensure!(site.bed.workers().iter().all(|pid| !pids.contains(pid)), "no new workers");
    }
    fs::write(&site.file, format!("{}max_request = 7\nlog_level = \"debug\"\n", text(&[first])))?;
    site.reload()?;
    let lines = site.wait_for("a reload takes nothing of it but listen", 1)?;
    ensure!(lines[0].contains("differs in") && lines[0].contains("max_request"), "{lines:?}");
    site.bed.stop()?;
    Ok(())
}

fn manager_dies(cx: &Cx) -> Result<()> {
    let first = "tcp://127.0.0.1:0";
    let lines = "tcp://127.0.0.1:0?framing=line&name=lines&on_crash=close";
    let mut site = Site::start(cx, &[first], &[])?;
    site.list(&[first, lines])?;
    let address = Address::parse(&site.added(1)?)?;
    let mut client = Client::connect(&address)?;
    client.expect("echo before", "before")?;
    site.bed.replace_manager()?;
    // Workers that this one forks.
    site.reload()?;
    client.expect("echo after", "after")?;
    let mut other = Client::connect(&address)?;
    other.tell("echo new\r")?;
    other.expect_line("new")?;
    // It dies when it was asked to reload, or before it heard of the address.
    let second = "tcp://127.0.0.1:0?name=second";
    fs::write(&site.file, text(&[first, lines, second]))?;
    let manager = site.bed.manager().context("there is no manager")?;
    site.bed.signal_master(Signal::USR1)?;
    proc::signal(manager, Signal::KILL)?;
    site.bed.wait_manager(manager)?;
    Client::connect(&Address::parse(&site.added(2)?)?)?.expect("echo second", "second")?;
    site.bed.stop()?;
    Ok(())
}

fn inherited(cx: &Cx) -> Result<()> {
    let path = cx.dir.join("given.sock");
    let socket = UnixListener::bind(&path)?;
    let first = "tcp://127.0.0.1:0";
    let mut site = Site::start_with(cx, &[first, "fd://web"], |launch| given(launch, socket.into()))?;
    let mut client = Client::connect(&Address::Unix(path.clone()))?;
    client.expect("echo in", "in")?;
    site.list(&[first])?;
    proc::until("the socket to be closed", PATIENCE, || {
        Client::connect(&Address::Unix(path.clone())).is_err().then_some(())
    })?;
    ensure!(path.exists(), "the file of whoever has opened the socket is gone");
    client.expect("echo on", "on")?;
    site.bed.stop()?;
    Ok(fs::remove_file(path)?)
}

fn aborted(cx: &Cx) -> Result<()> {
    let first = "tcp://127.0.0.1:0";
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let second = format!("tcp://127.0.0.1:{port}");
    let mut site = Site::start(cx, &[first], &[("crash-on-start", "0:2"), ("reload-parallel", "1")])?;
    fs::write(&site.file, text(&[first, &second]))?;
    site.bed.signal_master(Signal::USR1)?;
    site.wait_for("reload aborted", 1)?;
    let mut early = Client::connect(&Address::parse(&second)?)?;
    early.tell("echo at last")?;
    // The one that has come in place of that which could not start.
    proc::until("a worker that starts", PATIENCE, || {
        let mut client = site.bed.connect_to_worker(0).ok()?;
        client.expect("echo in", "in").ok()
    })?;
    ensure!(!early.has_reply()?, "served by workers that do not know the address");
    site.reload()?;
    early.expect_line("at last")?;
    site.bed.stop()?;
    Ok(())
}
