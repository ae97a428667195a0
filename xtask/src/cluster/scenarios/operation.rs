//! What operators rely on: PID file, log, daemon, unix sockets.

use crate::cluster::bed::PATIENCE;
use crate::cluster::client::{Address, Client};
use crate::cluster::matrix::{Cx, Scenario, full, once};
use crate::cluster::proc;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::fs;
use std::net::TcpListener;
use std::time::Duration;

pub(super) static ALL: &[Scenario] = &[
    full(
        "unix_listener",
        "a unix socket serves beside TCP, and its file goes with the server",
        unix_listener,
    ),
    once("pid_file", "the PID file names the master, goes with it, and keeps a second server out", pid_file),
    once(
        "stale_pid_file",
        "the PID file and socket of a server that was killed do not keep the next one out",
        stale_files,
    ),
    once("daemonize", "the daemon has left its starter, and stops by its PID file", daemonize),
    once("log_file", "the log file tells of every role, as much as its level allows", log_file),
];

fn unix_listener(cx: &Cx) -> Result<()> {
    let path = cx.dir.join("s");
    let bed = cx.testbed().flag("listen", format!("unix://{}", path.display())).start()?;
    ensure!(bed.ready.listen.len() == 2, "two listeners, but the ready line has {:?}", bed.ready.listen);
    let mut local = Client::connect(&Address::Unix(path.clone()))?;
    let mut remote = bed.connect()?;
    local.expect("echo local", "local")?;
    remote.expect("echo remote", "remote")?;
    local.expect("broadcast from here", "sent 1")?;
    remote.expect_line("from here")?;
    bed.stop()?;
    ensure!(!path.exists(), "{} is still there", path.display());
    Ok(())
}

fn pid_file(cx: &Cx) -> Result<()> {
    let path = cx.dir.join("server.pid");
    let bed = cx.testbed().flag("pid-file", path.display()).start()?;
    let text = fs::read_to_string(&path).context("read the PID file")?;
    ensure!(
        text.trim() == bed.ready.master.to_string(),
        "the PID file has {text:?}, master is {}",
        bed.ready.master
    );
    cx.testbed().flag("pid-file", path.display()).refused(&["pid file", &bed.ready.master.to_string()])?;
    ensure!(fs::read_to_string(&path)? == text, "the server that was refused has changed the PID file");
    bed.connect()?.expect("echo unharmed", "unharmed")?;
    bed.stop()?;
    ensure!(!path.exists(), "the PID file is still there");
    Ok(())
}

fn stale_files(cx: &Cx) -> Result<()> {
    let (pid, socket) = (cx.dir.join("server.pid"), cx.dir.join("s"));
    let launch = || {
        let listen = format!("unix://{}", socket.display());
        cx.testbed_bare().flag("listen", listen).flag("pid-file", pid.display())
    };
    let mut bed = launch().start()?;
    bed.signal_master(Signal::KILL)?;
    bed.wait_gone(Duration::from_secs(2))?;
    ensure!(pid.exists() && socket.exists(), "a killed master has removed its files?");
    let bed = launch().start()?;
    bed.connect()?.expect("echo again", "again")?;
    bed.stop()?;
    Ok(())
}

fn daemonize(cx: &Cx) -> Result<()> {
    let (pid_path, log_path) = (cx.dir.join("server.pid"), cx.dir.join("server.log"));
    // Nobody tells us the port of a daemon: take one that is free.
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let launch =
        cx.testbed_bare().flag("listen", format!("tcp://{address}")).flag("pid-file", pid_path.display());
    let mut starter = launch.flag("log-file", log_path.display()).word("--daemonize").spawn()?;
    let status = starter.wait_exit(PATIENCE)?;
    ensure!(status.code() == Some(0), "the starter ended with {status}");
    let pid =
        proc::until("the PID file", PATIENCE, || fs::read_to_string(&pid_path).ok()?.trim().parse().ok())?;
    ensure!(pid != starter.pid(), "the daemon is the process that was started");
    let mut client =
        proc::until("the daemon to listen", PATIENCE, || Client::connect(&Address::Tcp(address)).ok())?;
    client.expect("echo from a daemon", "from a daemon")?;
    let own = proc::stat(rustix::process::getpid().as_raw_nonzero().get()).context("own stat")?.session;
    let session = proc::stat(pid).context("the daemon's stat")?.session;
    ensure!(session != own, "the daemon is in the session of its starter");
    for stream in 0..3 {
        let target = fs::read_link(format!("/proc/{pid}/fd/{stream}")).unwrap_or_default();
        ensure!(
            !target.to_string_lossy().starts_with("pipe:"),
            "the daemon holds its starter's stream {stream}"
        );
    }
    starter.log.wait_end(Duration::from_secs(2))?;
    let family = proc::descendants(pid);
    proc::signal(pid, Signal::TERM)?;
    proc::until("the daemon's end", PATIENCE, || {
        proc::reap_orphans();
        (!proc::alive(pid) && !family.iter().any(|pid| proc::alive(*pid))).then_some(())
    })?;
    ensure!(!pid_path.exists(), "the PID file is still there");
    ensure!(fs::metadata(&log_path)?.len() > 0, "the daemon's log file is empty");
    Ok(())
}

fn log_file(cx: &Cx) -> Result<()> {
    let run = |name: &str, level: &str| -> Result<String> {
        let path = cx.dir.join(name);
        let bed = cx.testbed().flag("log-file", path.display()).flag("log-level", level).start()?;
        bed.connect()?.tell("crash panic")?;
        bed.log.wait_count("on_worker_error", 1, PATIENCE)?;
        bed.signal_master(Signal::USR1)?;
        bed.log.wait_count("on_after_reload", 1, PATIENCE)?;
        let pids = [('#', bed.ready.master), ('$', bed.ready.manager)];
        bed.stop()?;
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        for (mark, pid) in pids {
            let marked = text.contains(&format!("{mark}{pid}"));
            ensure!(marked || level != "debug", "no line of {mark}{pid} in the log:\n{text}");
        }
        Ok(text)
    };
    let (verbose, quiet) = (run("verbose.log", "debug")?, run("quiet.log", "error")?);
    ensure!(verbose.lines().any(|line| line.contains(" *")), "no line of a worker in the log:\n{verbose}");
    let (many, few) = (verbose.lines().count(), quiet.lines().count());
    ensure!(many > few + 3, "level debug wrote {many} lines, level error {few}:\n{quiet}");
    Ok(())
}
