//! A server that does what each packet tells it to: to explore the system with `nc`, and for tests and benchmarks.
//!
//! ```text
//! $ cargo run --release --example testbed -- --worker-num 2 &
//! ready master=100 manager=101 workers=102,103 tasks= listen=tcp://127.0.0.1:9501
//! $ nc 127.0.0.1 9501
//! whoami
//! worker=0 pid=102 generation=1 handled=1
//! crash segv
//! on_worker_error worker=0 pid=102 status=signal:11 requests=1
//! ```
//!
//! [`command`] lists the packets, `--help` the flags. Each callback of a process's life prints one line to stdout.
//! With `--framing eof` (the default) and `line` packets are commands; with `raw`, `length` and `varint` nothing is parsed, and
//! every packet is echoed as it came. `--package-length-func hex4` is for packets behind four hexadecimal digits. Each address
//! may have its own: `--listen 'tcp://127.0.0.1:9502?framing=varint'`.

#[path = "testbed/attempt.rs"]
mod attempt;
#[path = "testbed/command.rs"]
mod command;
#[path = "testbed/datagrams.rs"]
mod datagrams;
#[path = "testbed/death.rs"]
mod death;
#[path = "testbed/flags.rs"]
mod flags;
#[path = "testbed/framing.rs"]
mod framing;
#[path = "testbed/later.rs"]
mod later;
#[path = "testbed/messages.rs"]
mod messages;
#[path = "testbed/processes.rs"]
mod processes;
#[path = "testbed/sessions.rs"]
mod sessions;
#[path = "testbed/tasks.rs"]
mod tasks;
#[path = "testbed/wishes.rs"]
mod wishes;

use std::hint::spin_loop;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use command::{Command, Crash, Part};
use death::{crash, die_at};
use flags::Flags;
use framing::Speeches;
use later::Later;
use messages::Messages;
use swoole_server::config::{DispatchMode, Listen};
use swoole_server::{
    Audience, DatagramClient, Error, ExitStatus, Handler, Manager, Master, Peer, Result, Server, Session,
    TaskFate, TaskId, TaskResult, TaskWorker, TimerId, Unfinished, Worker, WorkerError, WorkerKind,
};
use tasks::{Means, Tasks, Timed};

struct Testbed {
    speeches: Speeches,
    line_end: Vec<u8>,
    /// The last large line that was sent.
    big: Vec<u8>,
    /// This worker panics at its start, always or in this generation.
    crash_on_start: Option<Life>,
    /// This one never returns from its start.
    hang_on_start: Option<Life>,
    /// What clients are told when the server stops.
    goodbye: Option<String>,
    later: Later,
    tasks: Tasks,
    messages: Messages,
    /// Whether the manager tells worker 0 and all clients of each reload.
    tell_reloads: bool,
    timed: Timed,
    /// How long each takes to start.
    start_time: Duration,
    /// Whether manager and master, and workers that stop, have something for task workers.
    ask_on_start: bool,
    /// How long a connect takes whose time is told, with those of all packets and closes.
    connect_time: Option<Duration>,
}

/// Bytes of a large line that is kept for the next.
const BIG_KEPT: usize = 4 << 20;

/// A worker, and which process of its slot; `None` for any.
type Life = (u16, Option<u32>);

/// One line to stdout with one write, so that lines of different processes never mix.
fn say(line: String) -> Result<()> {
    Ok(std::io::stdout().write_all((line + "\n").as_bytes())?)
}

fn join<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(",")
}

impl Handler for Testbed {
    fn on_start(&mut self, master: &mut Master) -> Result<()> {
        say(format!("on_start master={}", master.master_pid()))
    }

    fn on_ready(&mut self, master: &mut Master) -> Result<()> {
        let processes = match &master.user_process_pids()[..] {
            [] => String::new(),
            pids => format!(" processes={}", join(pids)),
        };
        say(format!(
            "ready master={} manager={} workers={} tasks={} listen={}{processes}",
            master.master_pid(),
            master.manager_pid(),
            join(master.worker_pids()),
            join(master.task_worker_pids()),
            join(master.addresses().iter().map(Listen::url)),
        ))?;
        if self.ask_on_start { master.ask(b"say master").map(drop) } else { Ok(()) }
    }

    fn on_before_shutdown(&mut self, master: &mut Master) -> Result<()> {
        say(format!("on_before_shutdown master={}", master.master_pid()))
    }

    fn on_shutdown(&mut self, master: &mut Master) -> Result<()> {
        say(format!("on_shutdown master={}", master.master_pid()))
    }

    fn on_manager_start(&mut self, manager: &mut Manager) -> Result<()> {
        say(format!("on_manager_start manager={}", manager.manager_pid()))?;
        if self.ask_on_start { manager.ask(b"say manager").map(drop) } else { Ok(()) }
    }

    fn on_manager_stop(&mut self, manager: &mut Manager) -> Result<()> {
        say(format!("on_manager_stop manager={}", manager.manager_pid()))
    }

    fn on_worker_error(&mut self, _: &mut Manager, error: &WorkerError) -> Result<()> {
        let status = match error.status {
            ExitStatus::Signaled { signal, .. } => format!("signal:{signal}"),
            other => other.to_string(),
        };
        let WorkerError { kind, worker, pid, .. } = error;
        match kind {
            WorkerKind::TaskWorker => {
                let fates = error.tasks.iter().map(|task| match task.fate {
                    TaskFate::Retried => format!("retried:{}", task.id),
                    _ => format!("lost:{}", task.id),
                });
                let tasks = join(fates);
                say(format!("on_worker_error task={worker} pid={pid} status={status} tasks={tasks}"))
            }
            WorkerKind::UserProcess => {
                let name = error.name.as_deref().unwrap_or_default();
                say(format!("on_worker_error process={name} pid={pid} status={status}"))
            }
            _ => {
                let lost = error.lost().count();
                say(format!("on_worker_error worker={worker} pid={pid} status={status} requests={lost}"))
            }
        }
    }

    fn on_before_reload(&mut self, manager: &mut Manager) -> Result<()> {
        say(format!("on_before_reload manager={}", manager.manager_pid()))
    }

    fn on_after_reload(&mut self, manager: &mut Manager) -> Result<()> {
        if self.tell_reloads {
            manager.send_message(Peer::Worker(0), b"reloaded")?;
            for session in manager.sessions().collect::<Vec<_>>() {
                manager.send(session, &[b"reloaded", &self.line_end[..]].concat())?;
            }
        }
        say(format!("on_after_reload manager={}", manager.manager_pid()))
    }

    fn on_worker_start(&mut self, worker: &mut Worker) -> Result<()> {
        let (id, pid, generation) = (worker.id(), worker.pid(), worker.generation());
        let is_this = |life: Option<Life>| {
            life.is_some_and(|(who, when)| who == id && when.is_none_or(|when| when == generation))
        };
        if is_this(self.crash_on_start) {
            panic!("--crash-on-start {id}");
        }
        while is_this(self.hang_on_start) {
            std::thread::park();
        }
        std::thread::sleep(self.start_time);
        say(format!("on_worker_start worker={id} pid={pid} generation={generation}"))
    }

    fn on_worker_exit(&mut self, worker: &mut Worker) -> Result<()> {
        let Unfinished { timers, ticks, replies, .. } = worker.unfinished();
        let (id, pid, replies) = (worker.id(), worker.pid(), replies.len());
        say(format!("on_worker_exit worker={id} pid={pid} timers={timers} ticks={ticks} replies={replies}"))
    }

    fn on_worker_stop(&mut self, worker: &mut Worker) -> Result<()> {
        say(format!("on_worker_stop worker={} pid={}", worker.id(), worker.pid()))?;
        if self.ask_on_start {
            worker.task(b"say worker")?;
        }
        match self.goodbye.take().filter(|_| worker.is_stopping()) {
            Some(text) => {
                let own: Vec<Session> = worker.own_sessions().collect();
                self.send_to_all(worker, &own, text.as_bytes()).map(drop)
            }
            None => Ok(()),
        }
    }

    fn on_timer(&mut self, worker: &mut Worker, timer: TimerId) -> Result<()> {
        match self.later.due(worker, timer) {
            Some((session, line)) => self.send_line(worker, session, &line),
            None => Ok(()),
        }
    }

    fn on_task_worker_start(&mut self, worker: &mut TaskWorker) -> Result<()> {
        let (id, pid, generation) = (worker.id(), worker.pid(), worker.generation());
        std::thread::sleep(self.start_time);
        say(format!("on_worker_start task={id} pid={pid} generation={generation}"))
    }

    fn on_task_worker_stop(&mut self, worker: &mut TaskWorker) -> Result<()> {
        say(format!("on_worker_stop task={} pid={}", worker.id(), worker.pid()))
    }

    fn on_task(&mut self, worker: &mut TaskWorker, _: TaskId, payload: &[u8]) -> Result<Vec<u8>> {
        self.timed.work(
            worker,
            payload,
            &mut Means { messages: &mut self.messages, line_end: &self.line_end },
        )
    }

    fn on_pipe_message(&mut self, worker: &mut Worker, from: Peer, message: &[u8]) -> Result<()> {
        self.messages.came(worker, (from, message), &self.line_end)
    }

    fn on_task_worker_pipe_message(
        &mut self,
        worker: &mut TaskWorker,
        from: Peer,
        message: &[u8],
    ) -> Result<()> {
        self.messages.came(worker, (from, message), &self.line_end)
    }

    fn on_task_worker_timer(&mut self, worker: &mut TaskWorker, timer: TimerId) -> Result<()> {
        self.timed.due(worker, timer, &mut Means { messages: &mut self.messages, line_end: &self.line_end })
    }

    fn on_task_worker_exit(&mut self, worker: &mut TaskWorker) -> Result<()> {
        let Unfinished { timers, ticks, .. } = worker.unfinished();
        worker.clear_ticks();
        say(format!("on_worker_exit task={} pid={} timers={timers} ticks={ticks}", worker.id(), worker.pid()))
    }

    fn on_finish(&mut self, worker: &mut Worker, task: TaskId, result: TaskResult) -> Result<()> {
        match self.tasks.finished(worker, task, result)? {
            Some((session, line)) => self.send_line(worker, session, &line),
            None => Ok(()),
        }
    }

    fn on_connect(&mut self, worker: &mut Worker, client: Session) -> Result<()> {
        let Some(time) = self.connect_time else { return Ok(()) };
        std::thread::sleep(time);
        say(format!("on_connect worker={} session={client}", worker.id()))
    }

    fn on_buffer_full(&mut self, worker: &mut Worker, client: Session) -> Result<()> {
        say(format!("on_buffer_full worker={} session={client}", worker.id()))
    }

    fn on_buffer_empty(&mut self, worker: &mut Worker, client: Session) -> Result<()> {
        say(format!("on_buffer_empty worker={} session={client}", worker.id()))
    }

    fn on_close(&mut self, worker: &mut Worker, client: Session) -> Result<()> {
        if self.connect_time.is_none() {
            return Ok(());
        }
        say(format!("on_close worker={} session={client}", worker.id()))
    }

    fn on_packet(&mut self, worker: &mut Worker, from: &DatagramClient, packet: &[u8]) -> Result<()> {
        self.take_datagram(worker, from, packet)
    }

    fn on_receive(&mut self, worker: &mut Worker, client: Session, packet: &[u8]) -> Result<()> {
        if self.connect_time.is_none() {
            return self.receive(worker, client, packet);
        }
        say(format!("on_receive worker={} session={client}", worker.id()))?;
        let received = self.receive(worker, client, packet);
        say(format!("received worker={} session={client}", worker.id()))?;
        received
    }
}

impl Testbed {
    fn receive(&mut self, worker: &mut Worker, client: Session, packet: &[u8]) -> Result<()> {
        if self.speeches.echo(worker, client, packet)? {
            return Ok(());
        }
        let reply = match Command::parse(packet) {
            Ok(Command::Big(bytes)) => self.send_big(worker, client, bytes).map(|()| None),
            Ok(command) => self.obey(worker, client, command),
            Err(complaint) => Err(Error::from(complaint)),
        };
        let reply = match reply {
            Ok(Some(reply)) => reply,
            Ok(None) => return Ok(()),
            Err(Error::NoSuchSession(_)) => b"error: no such session".to_vec(),
            Err(error) => format!("error: {error}").into_bytes(),
        };
        match self.send_line(worker, client, &reply) {
            Err(error @ Error::ReplyTooLong { .. }) => {
                self.send_line(worker, client, format!("error: {error}").as_bytes())
            }
            sent => sent,
        }
    }

    /// Does what a client wants, and gives the reply if there is one.
    fn obey(
        &mut self,
        worker: &mut Worker,
        client: Session,
        command: Command<'_>,
    ) -> Result<Option<Vec<u8>>> {
        let ok = || Ok(Some(b"ok".to_vec()));
        let text = |text: String| Ok(Some(text.into_bytes()));
        match command {
            Command::Echo(text) => Ok(Some(text.to_vec())),
            Command::Whoami => {
                let (id, pid, generation) = (worker.id(), worker.pid(), worker.generation());
                text(format!("worker={id} pid={pid} generation={generation} handled={}", worker.handled()))
            }
            Command::Session(session) => text(sessions::describe(worker, session.unwrap_or(client))?),
            Command::Tls(session) => text(sessions::tls(worker.tls(session.unwrap_or(client))?)),
            Command::Sessions(after, count) => text(join(worker.sessions_after(after, count))),
            Command::SendFile(to, Part { path, offset, length }) => {
                worker.send_file(to.unwrap_or(client), path, offset, length)?;
                if to.is_some() { ok() } else { Ok(None) }
            }
            Command::Measure(what, session) => sessions::measure(worker, what, session.unwrap_or(client)),
            Command::Bind(uid, session) => worker.bind(session.unwrap_or(client), uid).and_then(|()| ok()),
            Command::Unbind => worker.unbind(client).and_then(|()| ok()),
            Command::Send(session, line) => self.send_line(worker, session, line).and_then(|()| ok()),
            Command::SendTo(to, bytes) => worker.send_to(&to, bytes).and_then(|()| ok()),
            Command::Broadcast(line) => {
                let others = worker.sessions().filter(|session| *session != client).count();
                worker.broadcast(Audience::all().except(client), &[line, &self.line_end].concat())?;
                text(format!("sent {others}"))
            }
            Command::SendAll(line) => {
                let others: Vec<Session> = worker.sessions().filter(|session| *session != client).collect();
                text(format!("sent {}", self.send_to_all(worker, &others, line)?))
            }
            Command::Subscribe(topic) => worker.subscribe(client, topic).and_then(|()| ok()),
            Command::Unsubscribe(topic) => worker.unsubscribe(client, topic).and_then(|()| ok()),
            Command::Publish(topic, line) => {
                let audience = Audience::topic(topic).except(client);
                worker.broadcast(audience, &[line, &self.line_end].concat()).and_then(|()| ok())
            }
            Command::Close(None) => worker.close(client).map(|()| None),
            Command::Close(Some(session)) => worker.close(session).and_then(|()| ok()),
            Command::Sleep(ms) => {
                std::thread::sleep(Duration::from_millis(ms));
                text(format!("slept {ms}"))
            }
            Command::Nap(us) => {
                std::thread::sleep(Duration::from_micros(us));
                text(format!("napped {us}"))
            }
            Command::Spin(ms) => {
                let start = Instant::now();
                while start.elapsed() < Duration::from_millis(ms) {
                    spin_loop();
                }
                text(format!("spun {ms}"))
            }
            Command::Crash(how) => crash(how),
            Command::DieAt(point) => die_at(point).and_then(|()| ok()),
            Command::Hold => Ok(None),
            Command::Spawn(ms) => {
                let sleep =
                    std::process::Command::new("sleep").arg(format!("{:.3}", ms as f64 / 1000.0)).spawn();
                text(format!("pid={}", sleep?.id()))
            }
            Command::After(ms, line) => {
                let timer = self.later.after(worker, client, ms, line)?;
                text(format!("timer {timer}"))
            }
            Command::Tick(ms, times, line) => {
                let timer = self.later.tick(worker, client, (ms, times), line)?;
                text(format!("timer {timer}"))
            }
            Command::Clear(timer) if self.later.clear(worker, TimerId::from_number(timer)) => ok(),
            Command::Clear(_) => Err("no such timer".into()),
            Command::Reply(ms, line) => self.later.reply(worker, client, ms, line).map(|()| None),
            Command::Forget => {
                self.later.forget(worker, client);
                ok()
            }
            Command::Task(to, line) => {
                let id = self.tasks.ask(worker, client, to, line)?;
                text(format!("task {id}"))
            }
            Command::TaskLoad(in_flight, ms, bytes) => {
                self.tasks.load(worker, client, (in_flight, ms, bytes)).map(|()| None)
            }
            Command::TaskWaits(ms, bytes) => tasks::wait_on(worker, ms, bytes).map(Some),
            Command::TaskWait(ms, line) => tasks::wait(worker, ms, line).map(Some),
            Command::TaskAll(ms, lines) => tasks::wait_all(worker, ms, lines).map(Some),
            Command::Message(to, message) => worker.send_message(to, message).and_then(|()| ok()),
            Command::Messages(to, count, bytes) => {
                text(format!("sent {}", self.messages.flood(worker, to, count, bytes)?))
            }
            // By datagram.
            Command::Big(bytes) => Ok(Some(vec![b'x'; bytes])),
            Command::Try(what) => text(attempt::attempt(what)?),
            Command::Leak(bytes) => {
                // Written to, or the kernel would not have to give it.
                std::mem::forget(std::hint::black_box(vec![b'x'; bytes]));
                text(format!("leaked {bytes}"))
            }
            Command::Sum(bytes) => text(format!("{:08x}", command::crc32(bytes))),
            Command::Stats => text(worker.stats().to_json()),
            Command::Reload => worker.reload().and_then(|()| ok()),
            Command::ReloadTasks => worker.reload_task_workers().and_then(|()| ok()),
            Command::Shutdown => worker.shutdown().and_then(|()| ok()),
            Command::Stop(which) => worker.retire(which).and_then(|()| ok()),
        }
    }

    fn send_line(&self, worker: &mut Worker, session: Session, line: &[u8]) -> Result<()> {
        worker.send(session, &[line, &self.line_end].concat())
    }

    /// Sends a line of so many bytes, which is made once for all that are alike: fresh memory costs more than to send it.
    fn send_big(&mut self, worker: &mut Worker, client: Session, bytes: usize) -> Result<()> {
        if self.big.len() != bytes + self.line_end.len() {
            self.big = Vec::with_capacity(bytes + self.line_end.len());
            self.big.resize(bytes, b'x');
            self.big.extend_from_slice(&self.line_end);
        }
        let sent = worker.send(client, &self.big);
        if self.big.len() > BIG_KEPT {
            self.big = Vec::new();
        }
        sent
    }

    /// Sends a line to these sessions; how many got it.
    fn send_to_all(&self, worker: &mut Worker, sessions: &[Session], line: &[u8]) -> Result<usize> {
        let mut sent = 0;
        for session in sessions {
            match self.send_line(worker, *session, line) {
                Ok(()) => sent += 1,
                // It has left in the meantime.
                Err(Error::NoSuchSession(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(sent)
    }
}

/// `ID` or `ID:GENERATION` of a worker.
fn parse_life(text: &str) -> std::result::Result<Life, std::num::ParseIntError> {
    match text.split_once(':') {
        Some((id, generation)) => Ok((id.parse()?, Some(generation.parse()?))),
        None => Ok((text.parse()?, None)),
    }
}

fn run() -> Result<()> {
    let (config, flags) = flags::load()?;
    let Flags { crash_on_start, hang_on_start, start_time, connect_time, .. } = flags;
    let Flags { goodbye, user_processes, spawn_thread, ask_on_start, tell_reloads, .. } = flags;
    let life = |flag: &str, life: Option<String>| {
        let life = life.as_deref().map(parse_life).transpose();
        life.map_err(|_| Error::from(format!("flag --{flag}: must be ID or ID:GENERATION")))
    };
    let crash_on_start = life("crash-on-start", crash_on_start)?;
    let hang_on_start = life("hang-on-start", hang_on_start)?;
    let start_time = start_time.as_deref().unwrap_or("0").parse().map(Duration::from_millis);
    let start_time =
        start_time.map_err(|_| Error::from("flag --start-time: must be milliseconds".to_owned()))?;
    let connect_time = connect_time.as_deref().map(str::parse).transpose();
    let connect_time =
        connect_time.map_err(|_| Error::from("flag --connect-time: must be milliseconds".to_owned()))?;
    if spawn_thread {
        std::thread::spawn(std::thread::park);
    }
    let testbed = Testbed {
        speeches: Speeches::new(&config),
        line_end: framing::line_end(&config),
        big: Vec::new(),
        crash_on_start,
        hang_on_start,
        goodbye,
        later: Later::default(),
        tasks: Tasks::default(),
        messages: Messages::default(),
        tell_reloads,
        timed: Timed::default(),
        start_time,
        ask_on_start,
        connect_time: connect_time.map(Duration::from_millis),
    };
    let server = match config.dispatch_mode {
        DispatchMode::Custom => Server::new(config).dispatch(wishes::choose),
        _ => Server::new(config),
    };
    let server = server.package_length_func("hex4", framing::hex4);
    let server = server.reload_config(|| flags::load().map(|(config, _)| config));
    processes::add_all(server, user_processes)?.run(testbed)
}

pub(crate) fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("testbed: {error}");
            ExitCode::FAILURE
        }
    }
}
