//! From a configuration to a running family of processes.

use std::os::fd::{AsFd, AsRawFd as _, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, WaitOptions, getpid, getrlimit, pidfd_open, pidfd_send_signal,
    setrlimit, waitpid,
};
use swoole_protocol::{LengthFunc, PackageLength};
use swoole_reactor::Reactor;
use swoole_supervisor::daemon::{PidFile, daemonize};
use swoole_sys::process::{Fork, ForkError, become_subreaper, fork, run_child, thread_names};
use swoole_sys::signal::{SignalFd, SignalSet, block, set_mask};

use crate::base;
use crate::config::{Backend, Config, DispatchMode, Framings, Ipc, LengthFuncs, Listen, Mode};
use crate::confine;
use crate::control;
use crate::dispatch::{Choice, Custom, Dispatch};
use crate::error::{Error, Result};
use crate::handler::Handler;
use crate::image::{self, Image};
use crate::listeners;
use crate::listening::{Listening, Reread};
use crate::log::{self, Identity, Role};
use crate::manager;
use crate::master::{self, Listeners};
use crate::process::{Processes, UserProcess};
use crate::shared::{Links, Shared};
use crate::tls;

/// A server, ready to start.
///
/// ```no_run
/// use swoole_server::{Handler, Result, Server, Session, Worker};
///
/// struct Echo;
///
/// impl Handler for Echo {
///     fn on_receive(&mut self, worker: &mut Worker, client: Session, packet: &[u8]) -> Result<()> {
///         worker.send(client, packet)
///     }
/// }
///
/// fn main() -> Result<()> {
///     Server::listen("tcp://127.0.0.1:9501")?.worker_num(4).run(Echo)
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Server {
    config: Config,
    keep: Vec<RawFd>,
    processes: Processes,
    custom: Option<Custom>,
    length_funcs: LengthFuncs,
    reread: Option<Read>,
}

/// How a program reads its configuration anew.
#[derive(Clone)]
struct Read(Arc<dyn Fn() -> Result<Config> + Send + Sync>);

impl std::fmt::Debug for Read {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Read")
    }
}

impl Server {
    /// A server with all the defaults that listens on `address`: `tcp://127.0.0.1:9501`, `tcp://[::]:9501`,
    /// `unix:///run/app.sock`; for datagrams, `udp://127.0.0.1:9501`, `unixgram:///run/app.sock`.
    ///
    /// # Errors
    ///
    /// [`Error::Other`] if `address` is not an address.
    pub fn listen(address: &str) -> Result<Server> {
        let mut config = Config::default();
        config.listen.push(address.parse().map_err(Error::other)?);
        Ok(Server::new(config))
    }

    /// A server with this configuration.
    pub fn new(config: Config) -> Server {
        Server {
            config,
            keep: Vec::new(),
            processes: Processes::default(),
            custom: None,
            length_funcs: LengthFuncs::new(),
            reread: None,
        }
    }

    /// Sets [`Config::worker_num`].
    #[must_use]
    pub fn worker_num(mut self, workers: u16) -> Server {
        self.config.worker_num = workers;
        self
    }

    /// Sets [`Config::reactor_num`].
    #[must_use]
    pub fn reactor_num(mut self, reactors: u8) -> Server {
        self.config.reactor_num = reactors;
        self
    }

    /// Sets [`Config::backend`].
    #[must_use]
    pub fn backend(mut self, backend: Backend) -> Server {
        self.config.backend = backend;
        self
    }

    /// Sets [`Config::ipc`].
    #[must_use]
    pub fn ipc(mut self, ipc: Ipc) -> Server {
        self.config.ipc = ipc;
        self
    }

    /// Lets a function say which worker gets a packet, under [`DispatchMode::Custom`], which this sets; whoever sets
    /// [`Config::dispatch_mode`] to something else afterwards does without it. Swoole: `dispatch_func`.
    ///
    /// It is called by the reactor threads of the master, in several at once, for each packet of a stream and for nothing
    /// else, after the fork: what it captures is the master's, and no worker sees it change. It must not block, since all
    /// connections of its reactor wait for it. If it panics, that is logged and costs the connection whose packet it was. A
    /// packet that has to wait for room is asked about again when it goes on.
    ///
    /// ```no_run
    /// # use swoole_server::{Choice, Handler, Server};
    /// # fn example(handler: impl Handler) -> swoole_server::Result<()> {
    /// // The last worker is kept free for health checks.
    /// let server = Server::listen("tcp://127.0.0.1:9501")?.worker_num(4);
    /// let server = server.dispatch(|packet| match packet.packet {
    ///     b"health\n" => Choice::Worker(3),
    ///     _ => Choice::Worker(u64::from(packet.home % 3)),
    /// });
    /// server.run(handler)
    /// # }
    /// ```
    #[must_use]
    pub fn dispatch(mut self, function: impl Fn(&Dispatch<'_>) -> Choice + Send + Sync + 'static) -> Server {
        self.config.dispatch_mode = DispatchMode::Custom;
        self.custom = Some(Custom::new(function));
        self
    }

    /// Changes any key of the configuration.
    ///
    /// ```
    /// # use swoole_server::Server;
    /// let server = Server::listen("tcp://127.0.0.1:0")?.configure(|config| config.max_request = 10_000);
    /// # Ok::<(), swoole_server::Error>(())
    /// ```
    #[must_use]
    pub fn configure(mut self, change: impl FnOnce(&mut Config)) -> Server {
        change(&mut self.config);
        self
    }

    /// Gives a function that tells how long a packet is the name by which [`Config::package_length_func`], or that of an
    /// address, asks for it. It is in place of another one that has had the name.
    ///
    /// It runs where packets are cut: in the reactor threads, side by side, or in Base mode in the workers. All
    /// clients of a reactor wait for it, so it must not block; a panic in it closes the connection whose bytes it was shown,
    /// and no other. [`swoole_protocol::LengthFunc`] says what it is shown, and when.
    ///
    /// ```
    /// use swoole_server::{PackageLength, Server};
    ///
    /// /// A packet's first byte says how many follow it, but for 255, which says nothing.
    /// fn short(begin: &[u8]) -> PackageLength {
    ///     match begin.first() {
    ///         None => PackageLength::More,
    ///         Some(255) => PackageLength::Malformed("it begins with 255"),
    ///         Some(count) => PackageLength::Bytes(1 + usize::from(*count)),
    ///     }
    /// }
    ///
    /// let server = Server::listen("tcp://127.0.0.1:0?framing=length&package_length_func=short")?
    ///     .package_length_func("short", short);
    /// # Ok::<(), swoole_server::Error>(())
    /// ```
    #[must_use]
    pub fn package_length_func(mut self, name: &str, function: fn(&[u8]) -> PackageLength) -> Server {
        self.length_funcs.insert(name.into(), LengthFunc::new(function));
        self
    }

    /// Has each reload (`SIGUSR1`, [`reload`](crate::Worker::reload)) ask this function for the configuration anew, and open and
    /// close addresses so that [`Config::listen`] is what there is. Nothing else of it is taken; the log says which other
    /// keys differ, and that they hold from the next start on. Nor is anything taken if an address is wrong or cannot be had:
    /// the log says why, all of them stay as they are, and workers are replaced all the same.
    ///
    /// ```no_run
    /// use swoole_server::config::{Config, Sources};
    /// # use swoole_server::{Handler, Result, Server};
    ///
    /// fn config() -> Result<Config> {
    ///     // Flags, the environment, and the file that --config names, as it is now.
    ///     Ok(Sources::new(Config::default()).load_process()?)
    /// }
    ///
    /// # fn example(handler: impl Handler) -> Result<()> {
    /// Server::new(config()?).reload_config(config).run(handler)
    /// # }
    /// ```
    ///
    /// **An address that is gone** is closed when the reload begins. Who had connected before is let in; sessions that came in
    /// by it go on as they are.
    ///
    /// **A new address** is bound when the reload begins, and its clients wait in the `backlog` until the reload is over:
    /// none of them meets a worker that does not know the address. In Base mode they are served by each worker that has been
    /// replaced. If the reload is aborted, because a worker could not start, they wait for the next one.
    ///
    /// **An address with other options** than before keeps its socket, with all that wait in it, and has the new options for those
    /// who connect later; but not `ipv6_only`, `reuse_port`, `unix_mode`, `unix_user` and `unix_group`, which are settled with
    /// a socket, and no options of datagrams: for these, one reload removes the address and another one adds it. A descriptor
    /// `fd://NAME` can be removed, and not added: a program gets it when it is started.
    ///
    /// The function is called by the master's main thread (in Base mode, by the manager), which accepts nobody meanwhile. A
    /// daemon's working directory is `/` by then; in what the function returns, relative paths are meant from where the
    /// program was started. nginx: `nginx -s reload`. Swoole: none.
    #[must_use]
    pub fn reload_config(mut self, read: impl Fn() -> Result<Config> + Send + Sync + 'static) -> Server {
        self.reread = Some(Read(Arc::new(read)));
        self
    }

    /// Keeps a descriptor of the program's own open in every process. Manager and workers close all others that
    /// are open at the start, so that no secret and no socket gets where it is not needed; what a worker needs is
    /// better opened in `on_worker_start`.
    #[must_use]
    pub fn keep(mut self, descriptor: &impl AsFd) -> Server {
        self.keep.push(descriptor.as_fd().as_raw_fd());
        self
    }

    /// Adds a user process: a function that runs in a process of its own beside the workers, for as long as the server does.
    /// It has no clients. It may look at the server (`stats`, `worker_pids`), reload and stop it, and have task workers do
    /// something: see [`UserProcess`].
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// # use swoole_server::{Handler, Result, Server, Session, Worker};
    /// # struct Echo;
    /// # impl Handler for Echo {
    /// #     fn on_receive(&mut self, worker: &mut Worker, client: Session, packet: &[u8]) -> Result<()> {
    /// #         worker.send(client, packet)
    /// #     }
    /// # }
    ///
    /// # fn main() -> Result<()> {
    /// Server::listen("tcp://127.0.0.1:9501")?
    ///     .add_process("metrics", |process| {
    ///         while process.wait(Duration::from_secs(1))? {
    ///             println!("{}", process.stats().to_json());
    ///         }
    ///         Ok(())
    ///     })
    ///     .run(Echo)
    /// # }
    /// ```
    ///
    /// `name` is 1..=32 ASCII letters, digits, `-`, `_` and `.`, and there is one process of each name, 64 in all; what is wrong
    /// with it, [`run`](Server::run) says.
    ///
    /// **When it runs.** The function begins when all processes exist and `on_start` and `on_manager_start` have returned,
    /// beside `on_worker_start`; `on_ready` waits for that, and not for what it does. In a stop it is asked to leave after the
    /// last worker and the last task worker, which may need it, and is killed at the end of `max_wait_time`. A task that it
    /// asks for when no task worker is left is not done.
    ///
    /// **When it ends**, by returning, with an error, by a panic or a signal, the manager forks another process for it, which
    /// calls the function anew, on what it has captured as it was before the start. One that ran for at least 10 s has its
    /// successor at once; one that ends sooner the first time, then after 50 ms, and more and more slowly, after 5 s at most.
    /// An error and a death are told to [`on_worker_error`](Handler::on_worker_error); that it has returned, the log says. To
    /// replace it, send `SIGTERM` to it. A reload does not: it has no new code to bring. Nor does `max_memory`.
    ///
    /// **When the manager dies** (Process mode), it goes on. The next manager, for which the program's `main` runs again, calls
    /// the functions that this `main` has added; one that adds others, or in another order, is refused, and the log says so.
    ///
    /// Swoole: `addProcess`.
    #[must_use]
    pub fn add_process<F>(mut self, name: impl Into<String>, function: F) -> Server
    where
        F: Fn(&mut UserProcess) -> Result<()> + Send + Sync + 'static,
    {
        self.processes.add(name.into(), Arc::new(function));
        self
    }

    /// Runs the server until it is stopped by `SIGTERM`, `SIGINT` (a second one does not wait), or
    /// [`shutdown`](crate::Worker::shutdown).
    ///
    /// | signal to the master (in Base mode, the manager) | what happens |
    /// |---|---|
    /// | `SIGTERM`, `SIGINT`, `SIGQUIT` | stop in order: every packet that came is answered, within `max_wait_time` |
    /// | `SIGINT` while it stops | stop at once: what is not answered yet is lost |
    /// | `SIGUSR2` | reload of the task workers alone |
    /// | `SIGUSR1` | reload: certificates, addresses ([`reload_config`](Server::reload_config)), new workers and task workers, no user processes, as [`Config::reload_mode`] and [`Config::reload_parallel`] say; no connection notices |
    /// | `SIGHUP` | the log file is opened anew, in all processes |
    ///
    /// # Errors
    ///
    /// Whatever keeps the server from starting, with nothing left running: a value in the configuration, an address
    /// that cannot be had, a process that has more than one thread (forks would copy locks that nobody opens again).
    /// [`Error::ManagerDied`] if its manager died while it started.
    ///
    /// # A new manager
    ///
    /// In a program that its own server has executed to replace a manager which had died, this does not return: see
    /// [`Handler`]. That is so if the variable `SWOOLE_MANAGER_OF` names the parent process, and a socket that this process
    /// has; if the parent is gone by then, it is an error.
    ///
    /// # What it does to the process
    ///
    /// `SIGXFSZ` is ignored in all processes of the server, and so in programs that a callback executes: a log that has
    /// come to the limit of file sizes (`RLIMIT_FSIZE`) is not to end them.
    ///
    /// Children that a callback of the master starts must be waited for in that callback: whoever ends later is reaped by
    /// the master, as what workers leave behind is.
    pub fn run<H: Handler>(self, handler: H) -> Result<()> {
        let Server { mut config, keep, processes, custom, length_funcs, reread } = self;
        if let Some(channel) = image::summons()? {
            run_child(|| manager::take_over(handler, keep, processes, channel));
        }
        let image = Image::capture();
        processes.check()?;
        config.user_processes = processes.names();
        config.validate()?;
        config.check_custom(custom.is_some())?;
        let framings = config.framings(&length_funcs)?;
        let dir = std::env::current_dir()?;
        config.make_absolute(&dir)?;
        let reread = reread.map(|read| Reread { read: read.0, functions: length_funcs, dir });
        tls::check(&config)?;
        log::init(config.log_level, config.log_file.as_deref())
            .map_err(|error| Error::setup("open the log", error))?;
        refuse_threads()?;
        raise_descriptor_limit();
        // Said here, where somebody sees it: a daemon has no terminal.
        confine::check(&config)?;
        if confine::needs_epoll(&config) {
            config.backend = Backend::Epoll;
        }
        let choice = try_backend(config.backend)?;
        let listeners = listeners::open(&config)?;
        if config.daemonize {
            daemonize(config.log_file.as_deref())
                .map_err(|error| Error::setup("go to the background", error))?;
        }
        // From here on there is something to put away: a signal ends the server in order.
        let mask = block(&SignalSet::from(master::SIGNALS)).map_err(std::io::Error::from)?;
        // A limit of file sizes is to be an error, not the end: of the shared memory now, of the log at any time.
        swoole_sys::signal::ignore(Signal::XFSZ).map_err(std::io::Error::from)?;
        // Those that there are in the end.
        let mut open = config.listen.clone();
        let own = (keep, processes, custom, reread);
        let result = start(config, own, (listeners, framings, &mut open), (&choice, image), handler);
        open.iter().for_each(listeners::put_away);
        swoole_sys::signal::default(Signal::XFSZ).map_err(std::io::Error::from)?;
        forget_signals();
        set_mask(&mask).map_err(std::io::Error::from)?;
        result
    }
}

/// Who has asked again for a stop that is over by now does not end the program in another way than it ends itself.
fn forget_signals() {
    if let Ok(signals) = SignalFd::new(&SignalSet::from(master::SIGNALS)) {
        while let Ok(Some(_)) = signals.read() {}
    }
}

/// Makes what every process shares, and runs the server.
fn start<H: Handler>(
    config: Config,
    (keep, processes, custom, reread): (Vec<RawFd>, Processes, Option<Custom>, Option<Reread>),
    (listeners, framings, open): (Listeners, Framings, &mut Vec<Listen>),
    (choice, image): (&str, Image),
    handler: H,
) -> Result<()> {
    let mode = config.mode;
    let pid_file = config.pid_file.as_deref().map(PidFile::create).transpose();
    let pid_file = pid_file.map_err(|error| Error::setup("start the server", error))?;

    log::set_identity(Identity { role: Role::Master, id: 0 });
    let addresses = listeners.iter().map(|(_, listen)| listen.clone()).collect();
    let listening = Listening::new(&config, addresses, framings);
    let (mut shared, links, hold) = Shared::create(config, listening, keep)?;
    shared.processes = processes;
    shared.rereads = reread.is_some();
    shared.rule.custom = custom;
    if shared.config.task_worker_num > 0 {
        shared.tasks.spill().sweep_dead();
        shared.tasks.tell_lost();
    }
    let started_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    shared.board.set_server(getpid().as_raw_pid(), started_at.as_millis() as u64);
    let shared = Arc::new(shared);
    let shared_by_all = Arc::clone(&shared);
    let result = match mode {
        Mode::Process => {
            tracing::info!("{choice}; ipc {}, ring_size {}", shared.config.ipc, shared.config.ring_bytes());
            start_master(handler, shared, links, (listeners, image, reread), (pid_file, hold))
        }
        Mode::Base => {
            tracing::info!("{choice}; base mode");
            let stalls = base::open_stalls(&shared.config, &listeners)?;
            shared.tls.load(&shared.listening())?;
            drop(listeners);
            let result = base::run(handler, shared, stalls, reread);
            drop((pid_file, hold));
            result
        }
    };
    *open = shared_by_all.listening().open().cloned().collect();
    result
}

/// Forks the manager, and runs the master; `own` is what only the master has.
fn start_master<H: Handler>(
    handler: H,
    shared: Arc<Shared>,
    links: Links,
    (listeners, image, reread): (Listeners, Image, Option<Reread>),
    own: (Option<PidFile>, OwnedFd),
) -> Result<()> {
    let (to_manager, to_master) = control::pair()?;
    // Before there is anybody whom a lack of memory would have to be explained to.
    let lanes = links.open_all()?;
    let master = getpid();
    // Workers that lose their manager become children of this process.
    become_subreaper().map_err(std::io::Error::from)?;
    match fork()? {
        Fork::Child => run_child(|| {
            // Each worker opens its own, and need not have all copied at its fork.
            drop(lanes);
            // They are closed there as numbers; closing them twice could hit somebody else's.
            std::mem::forget((listeners, own, to_manager));
            manager::run(handler, shared, links, to_master, master)
        }),
        Fork::Parent(manager) => {
            // A title is a comfort, not a need.
            let _ = swoole_sys::title::set("swoole: master");
            // So that each side notices when the other one is gone.
            drop(to_master);
            // Only now, when there is no process any more that could have the keys without need.
            let loaded = shared.tls.load(&shared.listening());
            let result = loaded.and_then(|()| {
                master::run(
                    handler,
                    Arc::clone(&shared),
                    (links, lanes, image),
                    (listeners, reread),
                    to_manager,
                    manager,
                )
            });
            drop(own);
            // There may have been no manager at the end.
            shared.tasks.put_away();
            if result.is_err() {
                end(Pid::from_raw(shared.board.manager_pid()).unwrap_or(manager));
            }
            result
        }
    }
}

/// After a failure: if the manager still lives, it ends now that the master's side is gone, or is ended.
fn end(manager: Pid) {
    let Ok(process) = pidfd_open(manager, PidfdFlags::empty()) else { return };
    let within = Timespec { tv_sec: 2, tv_nsec: 0 };
    let _ = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&within));
    // In vain if it has ended; its workers notice by the lifeline.
    let _ = pidfd_send_signal(&process, Signal::KILL);
    let _ = waitpid(Some(manager), WaitOptions::empty());
}

fn refuse_threads() -> Result<()> {
    let names = thread_names()?;
    if names.len() == 1 { Ok(()) } else { Err(ForkError::Threads { count: names.len(), names }.into()) }
}

/// Every client is a descriptor: as many as this process may have without asking for more rights.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum {
        // Not to be had is not to be helped: connection_limit goes by what there is.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
}

/// Finds out before anything is started whether the backend works; what it tried is gone before the first fork.
fn try_backend(backend: Backend) -> Result<String> {
    let options = swoole_reactor::Options { backend, ..Default::default() };
    let reactor = Reactor::new(options).map_err(|error| Error::setup(format!("backend {backend}"), error))?;
    Ok(reactor.choice().to_string())
}
