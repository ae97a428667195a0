//! A server under test: its start, its process tree, its end.

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const START: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(30);
/// Between two attempts to connect to a server that does not listen yet.
const RETRY: Duration = Duration::from_micros(200);
/// How long an ended server's last words may take to arrive.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Of what a server says to standard error, the end is kept.
const COMPLAINT_LINES: usize = 3;

/// How a server shows that it is ready.
#[derive(Clone, Copy, Debug)]
pub enum Ready {
    /// By a line `ready ... listen=tcp://HOST:PORT...` on standard output.
    Line,
    /// By accepting connections there.
    Accepts(SocketAddr),
}

/// A running server. Killed with all its processes if it is dropped before [`stop`](Server::stop).
#[derive(Debug)]
pub struct Server {
    child: Child,
    address: SocketAddr,
    complaints: Arc<Mutex<VecDeque<String>>>,
    listening: JoinHandle<()>,
    stopped: bool,
}

impl Server {
    /// Starts a server and waits until it is ready.
    ///
    /// # Errors
    /// It cannot be started, or does not get ready within half a minute; with the end of what it said.
    pub fn start(command: &mut Command, ready: Ready) -> Result<Server> {
        match ready {
            Ready::Accepts(address) => {
                let mut server = Server::spawn(command, address)?;
                server.wait_accepting()?;
                Ok(server)
            }
            Ready::Line => {
                command.stdout(Stdio::piped());
                let mut server = Server::launch(command, ([0, 0, 0, 0], 0).into())?;
                let stdout = server.child.stdout.take().context("its standard output is a pipe")?;
                let (ready, is_ready) = mpsc::channel();
                thread::spawn(move || watch(stdout, &ready));
                server.address = server.wait_line(&is_ready)?;
                Ok(server)
            }
        }
    }

    /// Starts a server that will listen on `address`, and does not wait for it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(command: &mut Command, address: SocketAddr) -> Result<Server> {
        Server::launch(command.stdout(Stdio::null()), address)
    }

    fn launch(command: &mut Command, address: SocketAddr) -> Result<Server> {
        let mut child = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", command.get_program().display()))?;
        let stderr = child.stderr.take().context("its standard error is a pipe")?;
        let complaints = Arc::new(Mutex::new(VecDeque::new()));
        let listening = thread::spawn({
            let complaints = Arc::clone(&complaints);
            move || listen(stderr, &complaints)
        });
        Ok(Server { child, address, complaints, listening, stopped: false })
    }

    fn wait_line(&mut self, ready: &Receiver<Result<SocketAddr>>) -> Result<SocketAddr> {
        match ready.recv_timeout(START) {
            Ok(address) => address,
            Err(RecvTimeoutError::Timeout) => bail!("not ready after {START:?}{}", self.complaint()),
            Err(RecvTimeoutError::Disconnected) => {
                // It closed its output: it has ended, or is about to.
                let status = self.child.wait()?;
                bail!("ended with {status}{}", self.last_words())
            }
        }
    }

    /// Whether it is still there.
    ///
    /// # Errors
    /// It has ended; with the end of what it said.
    pub fn check(&mut self) -> Result<()> {
        let Some(status) = self.child.try_wait()? else { return Ok(()) };
        bail!("ended with {status}{}", self.last_words())
    }

    fn wait_accepting(&mut self) -> Result<()> {
        let deadline = Instant::now() + START;
        while TcpStream::connect(self.address).is_err() {
            self.check()?;
            ensure!(Instant::now() < deadline, "does not accept after {START:?}{}", self.complaint());
            thread::sleep(RETRY);
        }
        Ok(())
    }

    /// What it said in the end, of which some may be still on its way.
    fn last_words(&self) -> String {
        // Its pipe ends with the last process that has it, which may be a child that is left.
        let deadline = Instant::now() + LAST_WORDS;
        while !self.listening.is_finished() && Instant::now() < deadline {
            thread::sleep(RETRY);
        }
        self.complaint()
    }

    fn complaint(&self) -> String {
        let lines = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(|line| format!(": {line}")).collect()
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
            let tasks = match fs::read_dir(format!("/proc/{process}/task")) {
                // One below it has ended this very moment, as workers and managers may.
                Err(_) if process != self.child.id() => continue,
                tasks => tasks.with_context(|| format!("process {process} of the server has ended"))?,
            };
            for task in tasks {
                let children = fs::read_to_string(task?.path().join("children")).unwrap_or_default();
                for child in children.split_whitespace() {
                    found.push(child.parse()?);
                }
            }
        }
        Ok(found)
    }

    /// Ends it with SIGTERM, and gives how long that took.
    ///
    /// # Errors
    /// It fails, or one of its processes is left after half a minute.
    pub fn stop(mut self) -> Result<Duration> {
        let processes: Vec<(u32, OwnedFd)> =
            self.processes()?.into_iter().map(|id| Ok((id, watch_process(id)?))).collect::<Result<_>>()?;
        let begin = Instant::now();
        kill_process(pid(self.child.id())?, Signal::TERM)?;
        for (id, descriptor) in &processes {
            let left = (begin + STOP).saturating_duration_since(Instant::now());
            let mut polled = [PollFd::new(descriptor, PollFlags::IN)];
            let ended = poll(&mut polled, Some(&Timespec::try_from(left)?))?;
            ensure!(ended == 1, "process {id} of the server is left {STOP:?} after SIGTERM");
        }
        let status = self.child.wait()?;
        let took = begin.elapsed();
        self.stopped = true;
        // A peer that has no handler ends by the signal itself.
        let asked = status.signal() == Some(Signal::TERM.as_raw());
        ensure!(status.success() || asked, "the server ended with {status}{}", self.complaint());
        Ok(took)
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

/// An address on which nobody listens now, for a server that cannot say which port it got.
///
/// # Errors
/// No port is left.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Kills a process of a server.
///
/// # Errors
/// There is none.
pub fn kill(process: u32) -> Result<()> {
    Ok(kill_process(pid(process)?, Signal::KILL)?)
}

/// Asks a server, by its first process, to reload its workers.
///
/// # Errors
/// There is none.
pub fn reload(master: u32) -> Result<()> {
    Ok(kill_process(pid(master)?, Signal::USR1)?)
}

/// Reads all that the server prints, so that its pipe never fills, and tells the address from its ready line.
fn watch(stdout: impl Read, ready: &Sender<Result<SocketAddr>>) {
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        if line.starts_with("ready ") {
            // Nobody waits any more if this is a second ready line.
            let _ = ready.send(address_in(&line));
        }
    }
}

fn listen(stderr: impl Read, complaints: &Mutex<VecDeque<String>>) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        let mut lines = complaints.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == COMPLAINT_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }
}

fn address_in(ready: &str) -> Result<SocketAddr> {
    let Some(address) = ready.split(' ').find_map(|word| word.strip_prefix("listen=")).and_then(|list| {
        list.split(',')
            .find_map(|listen| ["tcp://", "tls://"].iter().find_map(|scheme| listen.strip_prefix(scheme)))
    }) else {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_the_first_tcp_one() {
        let line =
            "ready master=1 workers=2,3 listen=unix:///tmp/x,tcp://127.0.0.1:9501,tcp://127.0.0.1:9502";
        assert_eq!(address_in(line).unwrap(), "127.0.0.1:9501".parse().unwrap());
        assert!(address_in("ready listen=unix:///x").is_err());
    }

    #[test]
    fn a_server_that_does_not_start_says_why() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo no, not today >&2; exit 3"]);
        let error = format!("{:#}", Server::start(&mut command, Ready::Line).unwrap_err());
        assert!(error.contains("exit status: 3") && error.contains("no, not today"), "{error}");
    }

    #[test]
    fn the_tree_is_found_and_ended() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 60 & echo ready listen=tcp://127.0.0.1:1; exec sleep 60"]);
        let server = Server::start(&mut command, Ready::Line).unwrap();
        let processes = server.processes().unwrap();
        assert_eq!(processes.len(), 2);
        kill(processes[1]).unwrap();
        assert!(server.stop().unwrap() < STOP);
    }
}
