//! The user's program: a [`Handler`], and what each of its callbacks may do where it runs.

use std::fmt;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use swoole_supervisor::ExitStatus;

use crate::board::Request;
use crate::crash::PacketInHand;
use crate::datagram::DatagramClient;
use crate::error::{Error, Result};
use crate::post::Peer;
use crate::post::Sender;
use crate::post::role::posts;
use crate::session::Session;
use crate::shared::Shared;
use crate::task::{Asker, TaskId, TaskInHand, TaskResult, TaskWorker};
use crate::worker::{TimerId, Worker};

/// A server's program. Its value is the state that forks copy.
///
/// The value that is given to [`Server::run`](crate::Server::run) is copied into the manager, and from there into
/// each worker when it is forked. Afterwards the copies know nothing of each other: what `on_start` writes stays
/// in the master, what `on_manager_start` writes is seen by workers that are forked later, what a worker writes is
/// lost with it. No callback runs before the whole first generation of processes exists.
///
/// Each callback gets the process that it runs in, as a type that can only do what is right there:
///
/// | process | type | callbacks |
/// |---|---|---|
/// | master | [`Master`] | `on_start`, `on_ready`, `on_before_shutdown`, `on_shutdown` |
/// | manager | [`Manager`] | `on_manager_start`, `on_manager_stop`, `on_worker_error`, `on_before_reload`, `on_after_reload` |
/// | worker | [`Worker`] | `on_worker_start`, `on_worker_exit`, `on_worker_stop`, `on_connect`, `on_receive`, `on_close`, `on_packet`, `on_buffer_full`, `on_buffer_empty`, `on_timer`, `on_finish`, `on_pipe_message` |
/// | task worker | [`TaskWorker`] | `on_task_worker_start`, `on_task_worker_exit`, `on_task_worker_stop`, `on_task`, `on_task_worker_timer`, `on_task_worker_pipe_message` |
/// | user process | [`UserProcess`](crate::UserProcess) | none: the function that [`Server::add_process`](crate::Server::add_process) was given |
///
/// In Base mode there is no master process: its callbacks run in the manager, once, in the same order among the others,
/// and on the same value as the manager's.
///
/// At the start they run in this order, each after the one before has returned: `on_start`, `on_manager_start`,
/// `on_worker_start` in all workers, `on_task_worker_start` in all task workers and the functions of all user processes side by
/// side, `on_ready`. At the end: `on_before_shutdown`, `on_worker_exit` where a
/// worker has something to finish, `on_worker_stop`; when all workers are gone, `on_task_worker_stop`; when all task workers are
/// gone, user processes are asked to leave; `on_manager_stop`, `on_shutdown`.
///
/// **Errors.** An error from `on_receive`, `on_connect`, `on_close`, `on_buffer_full` or `on_buffer_empty` is logged with its session, and closes it; it is
/// no crash. An error from a start callback stops that process from starting. Others are logged.
///
/// **Panics** end the worker, whose state may be broken: message and backtrace are logged, a successor takes its place,
/// and the packet that it worked on goes the way of [`on_crash`](crate::Config::on_crash): by default its connection is
/// closed. A panic in the master ends the server.
///
/// **A manager that dies** (Process mode) is replaced, too, and workers and clients do not notice: the master executes the
/// program once more, in the same directory, with the same arguments and environment. Its `main` begins anew, and
/// [`Server::run`](crate::Server::run) makes a manager of it there instead of starting a server: `on_manager_start` is
/// called again, on the handler that this `main` has made, and workers that are forked from then on see that. So what a
/// program does before it runs the server must be something that can be done twice, while the server runs. Configuration
/// and addresses are those of the running server. What a worker dies of while there is no manager, the next one is told; it
/// may be told again what the last one has heard already.
pub trait Handler {
    /// All processes exist. Runs in the master, before anything else, once.
    fn on_start(&mut self, master: &mut Master) -> Result<()> {
        let _ = master;
        Ok(())
    }

    /// Every worker and task worker of the first generation has started (or has failed to), the function of every user process
    /// has begun, and clients are accepted from now on.
    fn on_ready(&mut self, master: &mut Master) -> Result<()> {
        let _ = master;
        Ok(())
    }

    /// The server was asked to stop. The listening sockets are still open.
    fn on_before_shutdown(&mut self, master: &mut Master) -> Result<()> {
        let _ = master;
        Ok(())
    }

    /// All other processes are gone and all connections closed: the last callback.
    fn on_shutdown(&mut self, master: &mut Master) -> Result<()> {
        let _ = master;
        Ok(())
    }

    /// The manager begins; called again in the next one, if it dies. What is written here is seen by workers that are
    /// forked from now on. An error in the first manager ends the server, in a later one that manager: another try follows.
    fn on_manager_start(&mut self, manager: &mut Manager) -> Result<()> {
        let _ = manager;
        Ok(())
    }

    /// All workers are gone, and so will the manager be.
    fn on_manager_stop(&mut self, manager: &mut Manager) -> Result<()> {
        let _ = manager;
        Ok(())
    }

    /// A worker, a task worker or a user process has died: by a signal, by a panic, with an exit code other than 0, or while it
    /// had a packet in hand. Its successor is forked afterwards, and sees what is written here.
    fn on_worker_error(&mut self, manager: &mut Manager, error: &WorkerError) -> Result<()> {
        let _ = (manager, error);
        Ok(())
    }

    /// A reload begins: workers, or task workers, or both retire, and are replaced.
    fn on_before_reload(&mut self, manager: &mut Manager) -> Result<()> {
        let _ = manager;
        Ok(())
    }

    /// A reload is over: all of them are new. Not called for a reload that was given up.
    fn on_after_reload(&mut self, manager: &mut Manager) -> Result<()> {
        let _ = manager;
        Ok(())
    }

    /// A worker begins, before its first packet. A worker that fails here is replaced, with growing delays.
    fn on_worker_start(&mut self, worker: &mut Worker) -> Result<()> {
        let _ = worker;
        Ok(())
    }

    /// A worker is to leave in order (reload, `max_request`, `max_memory`, stop), takes no more packets, and has not finished what it has
    /// begun: [timers](Worker::after) are set, or [replies open](Worker::open_reply). Called at once, then after each timer,
    /// and every 100 ms, until nothing is left or the time is over: `max_wait_time`, less a quarter and half a second at
    /// most for what comes after. What is alive then, the log tells, and it ends with the worker. Packets that have come
    /// for this worker wait meanwhile, for its successor.
    ///
    /// The default forgets the ticks, which would never be done. Who has work of another kind, a thread or a child process,
    /// keeps a reply open or a timer set until that is done.
    ///
    /// Swoole: `WorkerExit`.
    fn on_worker_exit(&mut self, worker: &mut Worker) -> Result<()> {
        worker.clear_ticks();
        Ok(())
    }

    /// A worker retires in order: reload, `max_request`, `max_memory`, stop. Not called for one that dies. In a stop
    /// ([`Worker::is_stopping`]) this is the time to tell clients that the connection ends
    /// ([`Worker::own_sessions`]): what is sent here, they get.
    fn on_worker_stop(&mut self, worker: &mut Worker) -> Result<()> {
        let _ = worker;
        Ok(())
    }

    /// A client has connected. Always in the connection's home worker, and before any of its packets is handled, whoever
    /// gets those.
    fn on_connect(&mut self, worker: &mut Worker, session: Session) -> Result<()> {
        let _ = (worker, session);
        Ok(())
    }

    /// A packet has arrived: whole, as the framing cuts it. What is sent to clients of the packet's own reactor before
    /// this returns becomes visible together with the packet's end when it returns: all of it or nothing. What is sent
    /// to clients of other reactors becomes visible just before that. (More than 32 MiB of replies to one packet do not
    /// wait for its end; with `on_crash = retry`, where another worker may have to begin the packet again, they are an
    /// error.)
    ///
    /// This is what a server is for, so it has no default.
    fn on_receive(&mut self, worker: &mut Worker, session: Session, packet: &[u8]) -> Result<()>;

    /// As many bytes wait for a client as
    /// [`buffer_high_watermark`](crate::Config::buffer_high_watermark) says, because it reads more slowly than it is sent
    /// to: who goes on will have it closed at `socket_buffer_size`. Called in the connection's home worker, once until
    /// [`on_buffer_empty`](Handler::on_buffer_empty) has been; by then it may have changed again
    /// ([`SessionInfo::pending`](crate::SessionInfo::pending)). Swoole: `BufferFull`.
    fn on_buffer_full(&mut self, worker: &mut Worker, session: Session) -> Result<()> {
        let _ = (worker, session);
        Ok(())
    }

    /// What waited for a client when [`on_buffer_full`](Handler::on_buffer_full) was called has gone down to
    /// [`buffer_low_watermark`](crate::Config::buffer_low_watermark). Not called for one that is closed before. Swoole:
    /// `BufferEmpty`.
    fn on_buffer_empty(&mut self, worker: &mut Worker, session: Session) -> Result<()> {
        let _ = (worker, session);
        Ok(())
    }

    /// A datagram has arrived at a `udp://` or `unixgram://` address: whole, and maybe empty. It is answered by
    /// [`Worker::send_to`], with `from`; there is no session, no `on_connect` and no `on_close`. Otherwise it is a packet
    /// like others: the [rule](crate::config::DispatchMode) says which worker gets it (those of a connection go by the
    /// sender's address), what is sent becomes visible when this returns, and if the worker dies in here, `on_crash` says
    /// whether another one begins it again; under `close` it is dropped. But UDP promises nothing, and this server does not
    /// make up for that: what a worker's ring has no room for is dropped, and
    /// [counted](crate::Stats::datagram_dropped_count).
    ///
    /// An error is logged, and no more. The default is one.
    ///
    /// Swoole: `onPacket`.
    fn on_packet(&mut self, worker: &mut Worker, from: &DatagramClient, packet: &[u8]) -> Result<()> {
        let _ = (worker, from, packet);
        Err(Error::NoPacketHandler)
    }

    /// A timer that [`Worker::after`] or [`Worker::tick`] has set. Its replies become visible when this returns. An error
    /// is logged, and no more.
    fn on_timer(&mut self, worker: &mut Worker, timer: TimerId) -> Result<()> {
        let _ = (worker, timer);
        Ok(())
    }

    /// A task of this worker's is over: its result, or why there is none. Each is told of once, in the process that has
    /// asked, and in no other. Its replies become visible when this returns. An error is logged, and no more.
    fn on_finish(&mut self, worker: &mut Worker, task: TaskId, result: TaskResult) -> Result<()> {
        let _ = (worker, task, result);
        Ok(())
    }

    /// Another process, or this one, has [sent](Worker::send_message) this. Its replies become visible when this returns. An
    /// error is logged, and no more.
    fn on_pipe_message(&mut self, worker: &mut Worker, from: Peer, message: &[u8]) -> Result<()> {
        let _ = (worker, from, message);
        Ok(())
    }

    /// The same in a task worker, between two tasks.
    fn on_task_worker_pipe_message(
        &mut self,
        worker: &mut TaskWorker,
        from: Peer,
        message: &[u8],
    ) -> Result<()> {
        let _ = (worker, from, message);
        Ok(())
    }

    /// A task worker begins, before its first task. One that fails here is replaced, with growing delays.
    fn on_task_worker_start(&mut self, worker: &mut TaskWorker) -> Result<()> {
        let _ = worker;
        Ok(())
    }

    /// A timer that [`TaskWorker::after`] or [`TaskWorker::tick`] has set, between two tasks: a task that comes meanwhile
    /// waits, or another task worker takes it. An error is logged, and no more. If the process dies in here, no task is lost.
    fn on_task_worker_timer(&mut self, worker: &mut TaskWorker, timer: TimerId) -> Result<()> {
        let _ = (worker, timer);
        Ok(())
    }

    /// A task worker is to leave in order while [timers](TaskWorker::after) are set, and takes no more tasks, except in a stop,
    /// where nobody else would. As for workers ([`on_worker_exit`](Handler::on_worker_exit)): called at once, then after each
    /// timer, and every 100 ms, until no timer is left or the time is over.
    ///
    /// The default forgets the ticks, which would never be done.
    fn on_task_worker_exit(&mut self, worker: &mut TaskWorker) -> Result<()> {
        worker.clear_ticks();
        Ok(())
    }

    /// A task worker retires in order: reload, `task_max_request`, stop. Not called for one that dies. In a stop all tasks are
    /// done by then.
    fn on_task_worker_stop(&mut self, worker: &mut TaskWorker) -> Result<()> {
        let _ = worker;
        Ok(())
    }

    /// A task, in a task worker: the worker that has asked is told what this returns ([`on_finish`](Handler::on_finish), or
    /// [`Worker::task_wait`]). An error is logged, and told to it as [`TaskError::Failed`](crate::TaskError::Failed). A task
    /// worker does one task at a time, and may take any time for it.
    ///
    /// If it dies in here, by a panic or otherwise, the task is lost, or another task worker begins it again:
    /// [`task_retries`](crate::Config::task_retries).
    fn on_task(&mut self, worker: &mut TaskWorker, task: TaskId, payload: &[u8]) -> Result<Vec<u8>> {
        let _ = (worker, task, payload);
        Err(Error::NoTaskHandler)
    }

    /// A connection is gone, whoever closed it. Always in the connection's home worker, after its last packet, whoever
    /// got that.
    /// Connections that last until the server stops are closed after the workers have left: nobody hears of those.
    fn on_close(&mut self, worker: &mut Worker, session: Session) -> Result<()> {
        let _ = (worker, session);
        Ok(())
    }
}

/// How a worker died, for [`Handler::on_worker_error`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WorkerError {
    /// What it was.
    pub kind: WorkerKind,
    /// Its slot, from 0; workers, task workers and user processes are counted by themselves.
    pub worker: u16,
    /// What the program calls it, if it was a user process.
    pub name: Option<String>,
    /// Which process of the slot it was, from 1.
    pub generation: u32,
    /// Its process id, which may be somebody else's by now.
    pub pid: i32,
    /// How it ended.
    pub status: ExitStatus,
    /// The packets that it had in hand: at most one from each reactor, as a rule one in all.
    pub in_hand: Vec<PacketInHand>,
    /// The tasks that it had in hand, if it was a task worker: at most one.
    pub tasks: Vec<TaskInHand>,
}

/// What a process does that the manager replaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum WorkerKind {
    /// It handles packets.
    Worker,
    /// It does tasks.
    TaskWorker,
    /// It does what the program has added it for.
    UserProcess,
}

impl fmt::Display for WorkerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WorkerKind::Worker => "worker",
            WorkerKind::TaskWorker => "task worker",
            WorkerKind::UserProcess => "user process",
        })
    }
}

impl WorkerError {
    /// Those of them that nobody will handle any more.
    pub fn lost(&self) -> impl Iterator<Item = &PacketInHand> {
        self.in_hand.iter().filter(|packet| packet.is_lost())
    }
}

impl fmt::Display for WorkerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WorkerError { kind, worker, name, generation, pid, status, in_hand, tasks } = self;
        match name {
            Some(name) => write!(f, "{kind} {name}")?,
            None => write!(f, "{kind} {worker}")?,
        }
        write!(f, " (pid {pid}, generation {generation}) died: {status}")?;
        for packet in in_hand {
            write!(f, "; {packet}")?;
        }
        for task in tasks {
            write!(f, "; {task}")?;
        }
        Ok(())
    }
}

/// What every process may know and do.
macro_rules! common {
    ($role:ty, $name:ident) => {
        impl $role {
            /// The master's process id.
            pub fn master_pid(&self) -> i32 {
                self.shared().board.master_pid()
            }

            /// The manager's process id; 0 while there is none, because it has died and its successor is not there yet.
            pub fn manager_pid(&self) -> i32 {
                self.shared().board.manager_pid()
            }

            /// The workers' process ids, by slot; 0 where there is none at the moment.
            pub fn worker_pids(&self) -> Vec<i32> {
                (0..self.shared().config.worker_num)
                    .map(|worker| self.shared().board.worker_pid(worker))
                    .collect()
            }

            /// Where the server listens, with real port numbers, by the numbers that
            /// [`SessionInfo::listener`](crate::SessionInfo::listener) goes by. Those that a
            /// [reload](crate::Server::reload_config) has removed stay among them, since there may be clients who came by
            /// them; those that it has added come last, and are known to the processes that it has started, to manager and
            /// master.
            pub fn addresses(&self) -> std::sync::Arc<[crate::config::Listen]> {
                std::sync::Arc::clone(self.shared().listening().addresses())
            }

            /// The task workers' process ids, by slot; 0 where there is none at the moment.
            pub fn task_worker_pids(&self) -> Vec<i32> {
                let config = &self.shared().config;
                let seats = (0..config.task_worker_num).map(|id| config.seat_of_task_worker(id));
                seats.map(|seat| self.shared().board.worker_pid(seat)).collect()
            }

            /// The user processes' process ids, in the order in which the program has added them; 0 where there is none at
            /// the moment.
            pub fn user_process_pids(&self) -> Vec<i32> {
                let config = &self.shared().config;
                let seats = (0..config.user_process_num()).map(|id| config.seat_of_user_process(id));
                seats.map(|seat| self.shared().board.worker_pid(seat)).collect()
            }

            /// The server's counters.
            pub fn stats(&self) -> crate::stats::Stats {
                self.shared().stats()
            }

            /// Replaces all workers and task workers, as `SIGUSR1` does. Returns at once.
            ///
            /// # Errors
            ///
            /// If the master (in Base mode, the manager) is gone.
            pub fn reload(&self) -> Result<()> {
                self.ask_server(crate::board::Request::Reload, Signal::USR1)
            }

            /// Replaces all task workers, as `SIGUSR2` does. Returns at once.
            ///
            /// # Errors
            ///
            /// If the master (in Base mode, the manager) is gone.
            pub fn reload_task_workers(&self) -> Result<()> {
                self.ask_server(crate::board::Request::ReloadTaskWorkers, Signal::USR2)
            }

            /// Stops the server in order, as `SIGTERM` to the master does. Returns at once.
            ///
            /// # Errors
            ///
            /// If the master is gone.
            pub fn shutdown(&self) -> Result<()> {
                self.ask_server(crate::board::Request::Shutdown, Signal::TERM)
            }
        }

        impl $role {
            fn ask_server(&self, request: crate::board::Request, signal: Signal) -> Result<()> {
                let master = self.shared().board.master_pid();
                crate::handler::ask(self.shared(), self.seat(), request, (master, signal))
            }
        }

        impl std::fmt::Debug for $role {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    };
}
pub(crate) use common;

/// What those may ask of task workers who are told of nothing.
macro_rules! asks {
    ($role:ty) => {
        impl $role {
            /// Hands a task to whichever task worker is free, or will be first. It can be begun at once, as soon as there is
            /// a task worker that has started, and nobody is told of its end: only workers are
            /// ([`on_finish`](crate::Handler::on_finish)).
            ///
            /// # Errors
            ///
            /// As for [`Worker::task`](crate::Worker::task), but at once: here nobody waits for room.
            pub fn ask(&mut self, payload: &(impl crate::Payload + ?Sized)) -> Result<crate::TaskId> {
                self.asker()?.ask_one_way(None, &payload.encode()?)
            }

            /// As [`ask`](Self::ask), for the given task worker, from 0.
            ///
            /// # Errors
            ///
            /// As for [`Worker::task_to`](crate::Worker::task_to).
            pub fn ask_to(
                &mut self,
                task_worker: u16,
                payload: &(impl crate::Payload + ?Sized),
            ) -> Result<crate::TaskId> {
                self.asker()?.ask_one_way(Some(task_worker), &payload.encode()?)
            }
        }
    };
}
pub(crate) use asks;

/// The master process: owns the connections, runs no user logic but the callbacks of start and stop.
pub struct Master {
    pub(crate) shared: Arc<Shared>,
    /// What it asks of task workers, once it has.
    tasks: Option<Asker>,
}

common!(Master, Master);
asks!(Master);

impl Master {
    pub(crate) fn new(shared: Arc<Shared>) -> Master {
        Master { shared, tasks: None }
    }

    fn asker(&mut self) -> Result<&mut Asker> {
        let Master { shared, tasks } = self;
        if tasks.is_none() {
            *tasks = Asker::open(shared, shared.config.asker_of_master(), 1);
        }
        tasks.as_mut().ok_or(Error::NoTaskWorkers)
    }

    fn seat(&self) -> Option<u16> {
        None
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

/// The manager process: forks, reaps and replaces workers. Its callbacks should be short: while one runs, nobody
/// is replaced.
pub struct Manager {
    pub(crate) shared: Arc<Shared>,
    /// What it asks of task workers, once it has.
    tasks: Option<Asker>,
    post: Sender,
}

common!(Manager, Manager);
asks!(Manager);
posts!(Manager);

impl Manager {
    pub(crate) fn new(shared: Arc<Shared>) -> Result<Manager> {
        let post = Sender::open(&shared, shared.config.asker_of_manager(), generation(&shared))?;
        Ok(Manager { shared, tasks: None, post })
    }

    fn asker(&mut self) -> Result<&mut Asker> {
        let Manager { shared, tasks, .. } = self;
        if tasks.is_none() {
            *tasks = Asker::open(shared, shared.config.asker_of_manager(), generation(shared));
        }
        tasks.as_mut().ok_or(Error::NoTaskWorkers)
    }

    pub(crate) fn post(&mut self) -> &mut Sender {
        &mut self.post
    }

    fn seat(&self) -> Option<u16> {
        None
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

/// Which manager this one is, from 1.
fn generation(shared: &Shared) -> u32 {
    shared.board.reign() as u32 + 1
}

/// Signals a process; one that may not, because it is another user's or in a sandbox, asks the manager from its `seat`.
pub(crate) fn ask(
    shared: &Shared,
    seat: Option<u16>,
    request: Request,
    (pid, signal): (i32, Signal),
) -> Result<()> {
    // Pid 0 would be the whole process group.
    let pid = Pid::from_raw(pid).filter(|pid| pid.as_raw_pid() > 0).ok_or("there is no such process now")?;
    match (kill_process(pid, signal), seat) {
        (Err(Errno::PERM), Some(seat)) => shared.ask_manager(seat, request),
        (signaled, _) => Ok(signaled.map_err(std::io::Error::from)?),
    }
}
