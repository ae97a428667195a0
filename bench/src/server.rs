//! A server under test: its start, its process tree, the CPU time of that tree, its end.

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

const START: Duration = Duration::from_secs(10);
const STOP: Duration = Duration::from_secs(10);

/// A running server. Killed with all its processes if it is dropped before [`stop`](Server::stop).
#[derive(Debug)]
pub struct Server {
    child: Child,
    address: SocketAddr,
    stopped: bool,
}

impl Server {
    /// Starts a server and waits for the line `ready ... listen=tcp://HOST:PORT...` on its standard output.
    ///
    /// # Errors
    /// It cannot be started, or does not get ready within ten seconds.
    pub fn start(command: &mut Command) -> Result<Server> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{command:?}"))?;
        let stdout = child.stdout.take().context("its standard output is a pipe")?;
        let mut server = Server { child, address: ([0, 0, 0, 0], 0).into(), stopped: false };
        let (ready, is_ready) = mpsc::channel();
        thread::spawn(move || watch(stdout, &ready));
        server.address =
            is_ready.recv_timeout(START).with_context(|| format!("not ready: {command:?}"))??;
        Ok(server)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process and all descendants.
    ///
    /// # Errors
    /// `/proc` cannot be read, or the server has ended.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let mut found = vec![self.child.id()];
        let mut next = 0;
        while let Some(&process) = found.get(next) {
            next += 1;
            let tasks = fs::read_dir(format!("/proc/{process}/task"))
                .with_context(|| format!("process {process} of the server has ended"))?;
            for task in tasks {
                let children = fs::read_to_string(task?.path().join("children"))?;
                for child in children.split_whitespace() {
                    found.push(child.parse()?);
                }
            }
        }
        Ok(found)
    }

    /// Ends it with SIGTERM.
    ///
    /// # Errors
    /// It does not exit with success, or one of its processes is left after ten seconds.
    pub fn stop(mut self) -> Result<()> {
        let processes: Vec<(u32, OwnedFd)> =
            self.processes()?.into_iter().map(|id| Ok((id, watch_process(id)?))).collect::<Result<_>>()?;
        kill_process(pid(self.child.id())?, Signal::TERM)?;
        let deadline = Instant::now() + STOP;
        for (id, descriptor) in &processes {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut polled = [PollFd::new(descriptor, PollFlags::IN)];
            let ended = poll(&mut polled, Some(&Timespec::try_from(left)?))?;
            ensure!(ended == 1, "process {id} of the server is left {STOP:?} after SIGTERM");
        }
        let status = self.child.wait()?;
        self.stopped = true;
        ensure!(status.success(), "the server ended with {status}");
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.stopped {
            return;
        }
        for process in self.processes().unwrap_or_default() {
            // Those that have ended meanwhile need no signal.
            let _ = pid(process).map(|pid| kill_process(pid, Signal::KILL));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU time that processes have used so far, in user and system mode, with all their threads.
///
/// # Errors
/// One of them has ended.
pub fn cpu_time(processes: &[u32]) -> Result<Duration> {
    let mut ticks = 0;
    for process in processes {
        let stat = fs::read_to_string(format!("/proc/{process}/stat"))
            .with_context(|| format!("process {process} of the server has ended under load"))?;
        // The second field is the name in parentheses, and may hold anything; utime and stime are fields 14 and 15.
        let (_, after_name) = stat.rsplit_once(") ").context("/proc/PID/stat has a name")?;
        for field in after_name.split(' ').skip(11).take(2) {
            ticks += field.parse::<u64>()?;
        }
    }
    Ok(Duration::from_secs(ticks) / u32::try_from(rustix::param::clock_ticks_per_second())?)
}

/// Reads all that the server prints, so that its pipe never fills, and tells the address from its ready line.
fn watch(stdout: ChildStdout, ready: &Sender<Result<SocketAddr>>) {
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        if line.starts_with("ready ") {
            // Nobody waits any more if this is a second ready line.
            let _ = ready.send(address_in(&line));
        }
    }
}

fn address_in(ready: &str) -> Result<SocketAddr> {
    let Some(address) = ready
        .split(' ')
        .find_map(|word| word.strip_prefix("listen="))
        .and_then(|list| list.split(',').find_map(|listen| listen.strip_prefix("tcp://")))
    else {
        bail!("no listen=tcp://HOST:PORT in {ready:?}");
    };
    Ok(address.parse()?)
}

fn pid(id: u32) -> Result<Pid> {
    Pid::from_raw(id.try_into()?).context("a process has no id 0")
}

fn watch_process(id: u32) -> Result<OwnedFd> {
    pidfd_open(pid(id)?, PidfdFlags::empty()).with_context(|| format!("process {id} of the server has ended"))
}
