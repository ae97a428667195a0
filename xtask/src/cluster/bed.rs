//! Starts a server, knows its processes, and stops it: the test bed of a scenario.

use super::client::{Address, Client};
use super::log::{Log, Source, field};
use super::matrix::Cx;
use super::proc;
use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long something may take that usually takes milliseconds, on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A program about to be started.
pub(super) struct Launch<'a> {
    cx: &'a Cx,
    words: Vec<String>,
    envs: Vec<(String, String)>,
    stdin: Option<OwnedFd>,
}

impl<'a> Launch<'a> {
    pub(super) fn new(cx: &'a Cx, program: PathBuf) -> Self {
        Self { cx, words: vec![program.to_string_lossy().into_owned()], envs: Vec::new(), stdin: None }
    }

    /// Gives it this as its standard input.
    pub(super) fn stdin(self, stdin: OwnedFd) -> Self {
        Self { stdin: Some(stdin), ..self }
    }

    /// Appends `--name value`.
    pub(super) fn flag(mut self, name: &str, value: impl Display) -> Self {
        self.words.extend([format!("--{name}"), value.to_string()]);
        self
    }

    /// Appends a single word, such as a flag without a value.
    pub(super) fn word(mut self, word: &str) -> Self {
        self.words.push(word.to_owned());
        self
    }

    pub(super) fn env(mut self, name: &str, value: &str) -> Self {
        self.envs.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Lets another program start this one: `prefix PROGRAM ARGS...`.
    pub(super) fn through(mut self, prefix: &[&str]) -> Self {
        self.words.splice(0..0, prefix.iter().map(|word| (*word).to_owned()));
        self
    }

    /// Starts it under a limit of the shell's `ulimit`.
    pub(super) fn ulimit(self, limit: &str) -> Self {
        self.through(&["sh", "-c", &format!("ulimit {limit} && exec \"$0\" \"$@\"")])
    }

    pub(super) fn spawn(self) -> Result<Process> {
        let log = Log::new(self.words.join(" "));
        self.cx.keep(&log);
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]).envs(self.envs).current_dir(&self.cx.dir);
        command
            .stdin(self.stdin.map_or_else(Stdio::null, Stdio::from))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // Such variables configure the server: a developer's own must not change what is tested.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SWOOLE_")) {
            command.env_remove(name);
        }
        let mut child = command.spawn().with_context(|| format!("start {}", self.words[0]))?;
        log.follow(Source::Stdout, child.stdout.take().context("stdout is piped")?);
        log.follow(Source::Stderr, child.stderr.take().context("stderr is piped")?);
        Ok(Process { child, log, ended: None })
    }

    /// Starts it and waits for its ready line.
    pub(super) fn start(self) -> Result<Bed> {
        let process = self.spawn()?;
        let line = process.log.wait_line(Source::Stdout, &["ready master="], PATIENCE)?;
        Ok(Bed { ready: Ready::parse(&line.text)?, process, stops: AtomicBool::new(false) })
    }

    /// Starts what must refuse to: it ends by itself with an exit code other than 0, no ready line, no panic, and with a
    /// line on stderr that has all `parts` in it.
    pub(super) fn refused(self, parts: &[&str]) -> Result<()> {
        let mut process = self.spawn()?;
        let status = process.wait_exit(PATIENCE)?;
        process.log.wait_end(Duration::from_secs(2))?;
        let code = status.code().ok_or_else(|| anyhow!("ended by a signal instead of an error: {status}"))?;
        ensure!(code != 0, "exit code 0, although it could not start");
        let stdout = process.log.texts(Source::Stdout);
        ensure!(!stdout.iter().any(|line| line.starts_with("ready")), "said to be ready: {stdout:?}");
        let stderr = process.log.texts(Source::Stderr);
        ensure!(!stderr.iter().any(|line| line.contains("panicked")), "panicked: {stderr:?}");
        let named = stderr.iter().filter(|line| super::log::has_all(line, parts)).count();
        ensure!(named == 1, "expected one line on stderr with {parts:?}, found {named} in {stderr:?}");
        Ok(())
    }
}

/// A program that runs. Dropping it kills it and all below it.
pub(super) struct Process {
    child: Child,
    pub(super) log: Arc<Log>,
    ended: Option<ExitStatus>,
}

impl Process {
    pub(super) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Waits for the process that was started, not for its children.
    pub(super) fn wait_exit(&mut self, within: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.ended {
            return Ok(status);
        }
        let child = &mut self.child;
        let status = proc::until("the server's exit", within, || child.try_wait().transpose())??;
        self.ended = Some(status);
        Ok(status)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended.is_none() {
            // Errors mean that it has ended in the meantime.
            let family = proc::descendants(self.pid());
            let _ = self.child.kill();
            let _ = self.child.wait();
            for pid in family {
                let _ = proc::signal(pid, Signal::KILL);
            }
        }
    }
}

/// The processes and addresses that the ready line names.
#[derive(Debug, PartialEq)]
pub(super) struct Ready {
    pub(super) master: i32,
    pub(super) manager: i32,
    pub(super) workers: Vec<i32>,
    pub(super) listen: Vec<Address>,
}

impl Ready {
    fn parse(line: &str) -> Result<Self> {
        let field = |key| field(line, key).ok_or_else(|| anyhow!("no {key}= in {line:?}"));
        let list = |key| -> Result<Vec<&str>> {
            Ok(field(key)?.split(',').filter(|item| !item.is_empty()).collect())
        };
        Ok(Self {
            master: field("master")?.parse()?,
            manager: field("manager")?.parse()?,
            workers: list("workers")?.into_iter().map(str::parse).collect::<Result<_, _>>()?,
            listen: list("listen")?.into_iter().map(Address::parse).collect::<Result<_>>()?,
        })
    }
}

/// One life of a worker, as its start line tells it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Life {
    pub(super) pid: i32,
    pub(super) generation: u64,
}

/// A server that is ready.
pub(super) struct Bed {
    process: Process,
    pub(super) ready: Ready,
    /// It was asked to stop. Asked again when it has, it would die of that.
    stops: AtomicBool,
}

impl Deref for Bed {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl Bed {
    pub(super) fn address(&self) -> Result<&Address> {
        self.ready.listen.first().context("the server listens nowhere")
    }

    pub(super) fn port(&self) -> Result<u16> {
        match self.address()? {
            Address::Tcp(address) | Address::Tls(address) => Ok(address.port()),
            other => bail!("{other:?} has no port"),
        }
    }

    pub(super) fn connect(&self) -> Result<Client> {
        Client::connect(self.address()?)
    }

    /// A client whose packets go to the given worker, under dispatch by connection.
    pub(super) fn connect_to_worker(&self, worker: u32) -> Result<Client> {
        // They stay: the place of one that leaves may be the next one's, and its worker as well.
        let mut others = Vec::new();
        while others.len() < 256 {
            let mut client = self.connect()?;
            if client.worker()? == worker {
                return Ok(client);
            }
            others.push(client);
        }
        bail!("of 256 connections, none went to worker {worker}")
    }

    /// Sends a packet that puts a worker to sleep, and waits until one is. No other may sleep already.
    pub(super) fn occupy(&self, client: &mut Client, sleep_ms: u64) -> Result<()> {
        client.tell(&format!("sleep {sleep_ms}"))?;
        let asleep = || self.lives().values().any(|life| proc::sleeps(life.pid));
        proc::until("the worker to sleep", PATIENCE, || asleep().then_some(()))
    }

    /// Whether it is in Base mode, where the process that was started is the manager.
    pub(super) fn is_base(&self) -> bool {
        self.ready.master == self.ready.manager
    }

    /// The manager of the moment, which is not always the first one; none while there is none.
    pub(super) fn manager(&self) -> Option<i32> {
        let mut children = proc::children(self.ready.master).into_iter();
        children.find(|pid| proc::title(*pid) == "swoole: manager")
    }

    /// The workers of the moment, whoever their parent is.
    pub(super) fn workers(&self) -> Vec<i32> {
        let family = proc::descendants(self.ready.master).into_iter();
        family.filter(|pid| proc::title(*pid).starts_with("swoole: worker")).collect()
    }

    /// Kills the manager, and waits for the one after it to have called the user back.
    pub(super) fn replace_manager(&self) -> Result<i32> {
        let before = self.manager().context("there is no manager")?;
        proc::signal(before, Signal::KILL)?;
        self.wait_manager(before)
    }

    /// Waits for another manager than this one to have called the user back.
    pub(super) fn wait_manager(&self, before: i32) -> Result<i32> {
        self.log.wait("another manager", PATIENCE, |lines| {
            let started = lines.iter().rev().find(|line| line.text.starts_with("on_manager_start "))?;
            field(&started.text, "manager")?.parse().ok().filter(|pid| *pid != before)
        })
    }

    /// The processes that hold the clients' connections: the master, or in Base mode the workers.
    pub(super) fn holders(&self) -> Vec<i32> {
        if self.is_base() {
            self.lives().values().map(|life| life.pid).collect()
        } else {
            vec![self.ready.master]
        }
    }

    /// Private memory of the processes that hold the clients' connections, beside the shared memory that exists from the
    /// start.
    pub(super) fn private_memory(&self) -> Result<u64> {
        self.holders().into_iter().map(|pid| proc::memory(pid, "RssAnon")).sum()
    }

    /// Waits until all that this client has sent is accepted: the server has read it, or in Base mode, where a worker
    /// that is busy reads nothing, has it in its socket.
    pub(super) fn wait_accepted(&self, client: &Client) -> Result<()> {
        let port = self.port()?;
        if self.is_base() { client.wait_arrived(port) } else { client.wait_read(port) }
    }

    /// The latest life of each worker, by the lines that workers print as they start.
    pub(super) fn lives(&self) -> BTreeMap<u32, Life> {
        let mut lives = BTreeMap::new();
        for line in self.log.texts(Source::Stdout) {
            if let Some((worker, life)) = parse_life(&line) {
                lives.insert(worker, life);
            }
        }
        lives
    }

    /// How many lines of stdout start like this so far.
    pub(super) fn count(&self, prefix: &str) -> usize {
        self.log.texts(Source::Stdout).iter().filter(|line| line.starts_with(prefix)).count()
    }

    /// The lines that tell of workers that died.
    pub(super) fn worker_errors(&self) -> Vec<String> {
        let lines = self.log.texts(Source::Stdout);
        lines.into_iter().filter(|line| line.starts_with("on_worker_error")).collect()
    }

    /// Waits until a worker has a life other than `before`.
    pub(super) fn wait_successor(&self, worker: u32, before: i32) -> Result<Life> {
        let what = format!("a successor of worker {worker}, pid {before}");
        self.log.wait(&what, PATIENCE, |lines| {
            let life =
                lines.iter().rev().filter_map(|line| parse_life(&line.text)).find(|(id, _)| *id == worker);
            life.map(|(_, life)| life).filter(|life| life.pid != before)
        })
    }

    /// Waits until the manager reports the death of this process, and returns the status it gives.
    pub(super) fn wait_error(&self, pid: i32) -> Result<String> {
        let pid = format!("pid={pid} ");
        let line = self.log.wait_line(Source::Stdout, &["on_worker_error", &pid], PATIENCE)?;
        Ok(field(&line.text, "status").unwrap_or_default().to_owned())
    }

    pub(super) fn signal_master(&self, signal: Signal) -> Result<()> {
        self.stops.fetch_or(signal == Signal::TERM, Ordering::Relaxed);
        proc::signal(self.ready.master, signal)
    }

    /// Waits for the exit of the master and, right behind it, of everybody else.
    pub(super) fn wait_gone(&mut self, within: Duration) -> Result<ExitStatus> {
        let mut others = proc::descendants(self.ready.master);
        others.extend(&self.ready.workers);
        others.push(self.ready.manager);
        let status = self.process.wait_exit(within)?;
        proc::until("the end of the master's children", Duration::from_secs(1), || {
            (!others.iter().any(|pid| proc::alive(*pid))).then_some(())
        })?;
        self.log.wait_end(Duration::from_secs(1))?;
        Ok(status)
    }

    /// Stops the server as an operator does, which must end in exit code 0 and nothing left. Returns how long it took.
    pub(super) fn stop(mut self) -> Result<Duration> {
        let start = Instant::now();
        if !self.stops.load(Ordering::Relaxed) {
            self.signal_master(Signal::TERM)?;
        }
        let status = self.wait_gone(PATIENCE)?;
        ensure!(
            status.code() == Some(0),
            "stopped with {status} instead of exit code 0 ({:?})",
            status.signal()
        );
        Ok(start.elapsed())
    }
}

fn parse_life(line: &str) -> Option<(u32, Life)> {
    let rest = line.strip_prefix("on_worker_start ")?;
    let life =
        Life { pid: field(rest, "pid")?.parse().ok()?, generation: field(rest, "generation")?.parse().ok()? };
    Some((field(rest, "worker")?.parse().ok()?, life))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line() {
        let line = "ready master=1 manager=2 workers=3,4 tasks= listen=tcp://127.0.0.1:9501,unix:///tmp/s";
        let ready = Ready::parse(line).unwrap();
        assert_eq!((ready.master, ready.manager, ready.workers), (1, 2, vec![3, 4]));
        let expected = [Address::Tcp("127.0.0.1:9501".parse().unwrap()), Address::Unix("/tmp/s".into())];
        assert_eq!(ready.listen, expected);
        assert!(Ready::parse("ready master=1").unwrap_err().to_string().contains("manager"));
    }

    #[test]
    fn a_start_line_names_a_life() {
        let life = parse_life("on_worker_start worker=1 pid=9 generation=3").unwrap();
        assert_eq!(life, (1, Life { pid: 9, generation: 3 }));
        assert_eq!(parse_life("on_worker_start task=1 pid=9 generation=3"), None);
        assert_eq!(parse_life("on_worker_stop worker=1 pid=9"), None);
    }
}
