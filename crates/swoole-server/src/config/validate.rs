//! The one place that says what is allowed, and what follows from several keys together.

use std::fmt;
use std::ops::Range;

use rustix::process::{Resource, getrlimit};

use super::keys::{self, Kind};
use super::listen;
use super::value::size;
use super::{
    Backend, Config, ConfigError, DispatchMode, Ipc, KIB, Listen, Mode, OnCrash, SandboxConnect, TaskIpcMode,
    WorkerSandbox,
};
use crate::post::Peer;

/// Bytes of the smallest ring.
const RING_MIN: usize = 16 * KIB;

/// Descriptors of a process that are no clients: standard streams, listeners, and some for the user's program.
const DESCRIPTORS_RESERVED: u64 = 128;

/// Descriptors that the master has for each worker, task worker and reactor: doorbells, post boxes, control sockets, event
/// queues.
const DESCRIPTORS_PER_PEER: u64 = 8;

/// Descriptors that the master has for each pair of worker and reactor which socketpairs join.
const DESCRIPTORS_PER_SOCKETPAIR: u64 = 4;

/// Completes "on_crash".
const CLOSE_IN_BASE: &str = "must be close in Base mode, where a worker's connections go with it";

impl Config {
    /// Checks every key, and the keys that bound each other.
    ///
    /// # Errors
    /// The first key that is wrong, with its value and what would be right.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.check_listen()?;
        self.check_supported()?;
        check_count("worker_num", self.worker_num.into())?;
        check_count("reactor_num", self.reactor_num.into())?;
        self.check_tasks()?;
        check_count("dispatch_key_offset", self.dispatch_key_offset as u64)?;
        check_count("dispatch_key_length", self.dispatch_key_length as u64)?;
        check_count("max_timer", self.max_timer as u64)?;
        check_count("max_subscription", self.max_subscription as u64)?;
        check_count("max_connection", self.max_connection as u64)?;
        self.check_sockets()?;
        self.check_proxies()?;
        check_count("busy_poll", self.busy_poll.into())?;
        check_count("crash_retries", self.crash_retries.into())?;
        check_size("socket_buffer_size", self.socket_buffer_size)?;
        self.check_watermarks()?;
        check_seconds("request_slow_time", self.request_slow_time.as_secs_f64())?;
        check_seconds("request_terminate_time", self.request_terminate_time.as_secs_f64())?;
        check_seconds("worker_start_timeout", self.worker_start_timeout.as_secs_f64())?;
        check_count("restart_intensity", self.restart_intensity.into())?;
        check_seconds("restart_period", self.restart_period.as_secs_f64())?;
        check_size("max_memory", self.max_memory)?;
        check_count("reload_parallel", self.reload_parallel.into())?;
        check_seconds("max_wait_time", self.max_wait_time.as_secs_f64())?;
        self.check_rings()?;
        self.check_limits()?;
        self.check_confinement()?;
        self.check_framings()?;
        self.check_tls()
    }

    /// What can be said without looking up accounts and rights.
    fn check_confinement(&self) -> Result<(), ConfigError> {
        for (key, name) in [("user", &self.user), ("group", &self.group)] {
            if name.as_ref().is_some_and(|name| name.is_empty() || name.contains('\0')) {
                return Err(wrong(key, name.as_deref().unwrap_or_default().escape_debug()));
            }
        }
        if let Some(root) = self.chroot.as_ref().filter(|root| !root.is_dir()) {
            return Err(wrong("chroot", root.display()));
        }
        let has_queue = matches!(self.task_ipc_mode, TaskIpcMode::Msgqueue | TaskIpcMode::MsgqueuePreemptive);
        if has_queue && (self.user.is_some() || self.group.is_some()) {
            let expected =
                "must be ring or unix with user or group: a message queue is of who starts the server";
            return Err(ConfigError::value("task_ipc_mode", self.task_ipc_mode, expected));
        }
        if self.worker_sandbox == WorkerSandbox::Strict {
            if self.mode == Mode::Base && self.backend == Backend::IoUring {
                let expected = "must be auto or epoll for worker_sandbox = strict in Base mode: \
                                an io_uring in a worker knows nothing of seccomp";
                return Err(ConfigError::value("backend", self.backend, expected));
            }
            let lists = [
                ("worker_sandbox_read", &self.worker_sandbox_read),
                ("worker_sandbox_write", &self.worker_sandbox_write),
            ];
            for (key, paths) in lists {
                if let Some(path) = paths.iter().find(|path| !path.exists()) {
                    return Err(wrong(key, path.display()));
                }
            }
            return Ok(());
        }
        // Who writes them down believes in them.
        let needs = |key, value: &dyn fmt::Display| {
            Err(ConfigError::value(key, value, "has no effect without worker_sandbox = strict"))
        };
        match (&self.worker_sandbox_read[..], &self.worker_sandbox_write[..], self.worker_sandbox_connect) {
            ([path, ..], ..) => needs("worker_sandbox_read", &path.display()),
            (_, [path, ..], _) => needs("worker_sandbox_write", &path.display()),
            (_, _, SandboxConnect::None) => Ok(()),
            (.., connect) => needs("worker_sandbox_connect", &connect),
        }
    }

    fn check_listen(&self) -> Result<(), ConfigError> {
        if self.listen.is_empty() {
            return Err(ConfigError::value("listen", "[]", "must hold an address, as tcp://127.0.0.1:9501"));
        }
        for address in &self.listen {
            if address.to_string().parse::<Listen>().as_ref() != Ok(address) {
                let expected = "must be one that can be read back: UTF-8, and no `?` in a path";
                return Err(ConfigError::value("listen", address, expected));
            }
            if address.name.as_ref().is_some_and(|name| !listen::is_name(name)) {
                return Err(ConfigError::value("listen", address, format!("name must be {}", listen::NAME)));
            }
            address.socket.check(address)?;
            let delays = address.enable_delay_receive.unwrap_or(self.enable_delay_receive);
            if delays && (address.tls || self.proxy_rule(address).is_some()) {
                let expected = "must be false where clients speak TLS, or a proxy's header comes first: what comes with \
                                that is read";
                return Err(ConfigError::value("enable_delay_receive", true, expected));
            }
            if address.address.is_datagram() && address.has_framing() {
                let expected = "must have no framing: a datagram is a packet";
                return Err(ConfigError::value("listen", address, expected));
            }
            if let Some(retries) = address.crash_retries
                && check_count("crash_retries", retries.into()).is_err()
            {
                let expected = format!("crash_retries must be {}", expected("crash_retries"));
                return Err(ConfigError::value("listen", address, expected));
            }
            if self.mode == Mode::Base && address.on_crash.is_some_and(|policy| policy != OnCrash::Close) {
                return Err(ConfigError::value("listen", address, format!("on_crash {CLOSE_IN_BASE}")));
            }
        }
        Ok(())
    }

    fn check_supported(&self) -> Result<(), ConfigError> {
        if self.mode == Mode::Base && self.on_crash != OnCrash::Close {
            return Err(ConfigError::value("on_crash", self.on_crash, CLOSE_IN_BASE));
        }
        Ok(())
    }

    fn check_tasks(&self) -> Result<(), ConfigError> {
        check_count("task_worker_num", self.task_worker_num.into())?;
        check_count("task_queue_max", self.task_queue_max as u64)?;
        check_seconds("task_queue_wait", self.task_queue_wait.as_secs_f64())?;
        check_size("task_buffer_size", self.task_buffer_size)?;
        check_count("task_retries", self.task_retries.into())?;
        // Where there are none, it does not matter.
        if self.task_worker_num > 0 && !self.task_tmpdir.is_dir() {
            return Err(wrong("task_tmpdir", self.task_tmpdir.display()));
        }
        let has_queue = matches!(self.task_ipc_mode, TaskIpcMode::Msgqueue | TaskIpcMode::MsgqueuePreemptive);
        if self.message_queue_key != 0 && !has_queue {
            let expected = format!(
                "needs task_ipc_mode = msgqueue or msgqueue_preemptive; {} has no queue that outlives the server",
                self.task_ipc_mode
            );
            return Err(ConfigError::value("message_queue_key", self.message_queue_key, expected));
        }
        Ok(())
    }

    fn check_watermarks(&self) -> Result<(), ConfigError> {
        let (high, max) = (self.high_watermark(), self.socket_buffer_size);
        if high > max {
            let expected = format!("must be at most socket_buffer_size = {}", size::format(max));
            return Err(ConfigError::value("buffer_high_watermark", size::format(high), expected));
        }
        if self.buffer_low_watermark >= high {
            let expected = format!("must be less than buffer_high_watermark = {}", size::format(high));
            let low = size::format(self.buffer_low_watermark);
            return Err(ConfigError::value("buffer_low_watermark", low, expected));
        }
        Ok(())
    }

    /// Bytes that wait for a client when its worker is told.
    pub(crate) fn high_watermark(&self) -> usize {
        match self.buffer_high_watermark {
            0 => self.socket_buffer_size / 5 * 4,
            high => high,
        }
    }

    fn check_rings(&self) -> Result<(), ConfigError> {
        check_size("ring_size", self.ring_size)?;
        if !self.ring_size.is_power_of_two() {
            let expected = format!("must be a power of two, {}", expected("ring_size"));
            return Err(ConfigError::value("ring_size", size::format(self.ring_size), expected));
        }
        check_size("ring_memory_max", self.ring_memory_max)?;
        let least = self.rings() * RING_MIN;
        if self.ipc == Ipc::Ring && self.ring_memory_max < least {
            let expected = format!(
                "must be at least {} for worker_num = {} and reactor_num = {}",
                size::format(least),
                self.worker_num,
                self.reactor_num
            );
            return Err(ConfigError::value("ring_memory_max", size::format(self.ring_memory_max), expected));
        }
        Ok(())
    }

    /// Slots of one asker: one more than it may use itself, where task workers take up what nobody of the server has asked.
    pub(crate) fn task_slots(&self) -> usize {
        if self.message_queue_key == 0 { self.task_queue_max } else { self.task_queue_max.min(65_534) + 1 }
    }

    /// Whether there is a function to dispatch by, where one is needed.
    pub(crate) fn check_custom(&self, is_there: bool) -> Result<(), ConfigError> {
        let is_needed = self.mode == Mode::Process && self.dispatch_mode == DispatchMode::Custom;
        if is_needed && !is_there {
            let expected = "needs a function, which only the program can give: Server::dispatch";
            return Err(ConfigError::value("dispatch_mode", self.dispatch_mode, expected));
        }
        Ok(())
    }

    /// Where in a packet its key stands, as far as the packet goes.
    pub(crate) fn dispatch_key(&self) -> Range<usize> {
        let (start, length) = (self.dispatch_key_offset, self.dispatch_key_length);
        start..if length == 0 { usize::MAX } else { start + length }
    }

    /// Whether packets of one connection may go to several workers.
    pub(crate) fn scatters(&self) -> bool {
        self.mode == Mode::Process && !self.dispatch_mode.is_by_connection()
    }

    /// Places for processes that work: first the workers', then the task workers', then the user processes'.
    pub(crate) fn seats(&self) -> u16 {
        self.seat_of_user_process(self.user_process_num())
    }

    pub(crate) fn user_process_num(&self) -> u16 {
        self.user_processes.len() as u16
    }

    pub(crate) fn seat_of_user_process(&self, id: u16) -> u16 {
        self.worker_num + self.task_worker_num + id
    }

    pub(crate) fn seat_of_task_worker(&self, id: u16) -> u16 {
        self.worker_num + id
    }

    /// Who may ask for tasks: all of those, in that order, then the manager, then the master.
    pub(crate) fn askers(&self) -> u16 {
        self.seats() + 2
    }

    pub(crate) fn asker_of_manager(&self) -> u16 {
        self.seats()
    }

    pub(crate) fn asker_of_master(&self) -> u16 {
        self.seats() + 1
    }

    /// How many post boxes there are: one for each seat, and one for each reactor that is not a worker, with a chute.
    pub(crate) fn boxes(&self) -> usize {
        let reactors = if self.mode == Mode::Base { 0 } else { self.reactors() };
        usize::from(self.seats()) + reactors + self.chutes()
    }

    /// How many reactors get files from workers by a chute of their own.
    pub(crate) fn chutes(&self) -> usize {
        if self.mode == Mode::Base { 0 } else { self.reactors() }
    }

    pub(crate) fn box_of_reactor(&self, reactor: u16) -> u16 {
        if self.mode == Mode::Base { reactor } else { self.seats() + reactor }
    }

    /// Whose box this is.
    pub(crate) fn name_of_box(&self, number: u16) -> String {
        match Peer::of_seat(number, self) {
            Some(peer) => peer.to_string(),
            None => format!("reactor {}", number - self.seats()),
        }
    }

    /// How many reactors there are: threads of the master, or in Base mode the workers themselves.
    pub(crate) fn reactors(&self) -> usize {
        usize::from(if self.mode == Mode::Base { self.worker_num } else { self.reactor_num.into() })
    }

    /// The reactor that has the socket of this listener, where datagrams come to. In Base mode, where each worker has one,
    /// the worker that sends for those who have none.
    pub(crate) fn reactor_of_listener(&self, listener: u16) -> u16 {
        (usize::from(listener) % self.reactors().max(1)) as u16
    }

    /// How many rings there are: one for each reactor, worker and direction.
    fn rings(&self) -> usize {
        if self.mode == Mode::Base {
            return 0;
        }
        2 * usize::from(self.reactor_num) * usize::from(self.worker_num)
    }

    /// Bytes of one ring: `ring_size`, or the largest power of two with which all rings stay within
    /// `ring_memory_max`.
    pub fn ring_bytes(&self) -> usize {
        let share = self.ring_memory_max / self.rings().max(1);
        share.checked_ilog2().map_or(0, |log| 1 << log).min(self.ring_size).max(RING_MIN)
    }

    /// How many packets at most a worker handles beyond `max_request`.
    pub fn request_grace(&self) -> u64 {
        self.max_request_grace.unwrap_or(grace_of(self.max_request))
    }

    /// How many tasks at most a task worker handles beyond `task_max_request`.
    pub fn task_request_grace(&self) -> u64 {
        grace_of(self.task_max_request)
    }

    /// How many clients the server can have: `max_connection`, or less if the limit of open files
    /// (`RLIMIT_NOFILE`, getrlimit(2)) leaves no room for so many, which is logged. In Base mode each worker takes an
    /// equal share of them.
    ///
    /// # Errors
    /// If that limit does not even suffice for the server itself.
    pub fn connection_limit(&self) -> Result<usize, ConfigError> {
        let (workers, reactors) = (u64::from(self.worker_num), self.reactors() as u64);
        let peers = u64::from(self.seats()) + reactors;
        let links = if self.mode == Mode::Process { workers * reactors } else { 0 };
        let lanes = if self.ipc == Ipc::SocketPair { DESCRIPTORS_PER_SOCKETPAIR * links } else { 0 };
        let reserve = DESCRIPTORS_RESERVED + DESCRIPTORS_PER_PEER * peers + lanes;
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        if files <= reserve {
            let expected = format!(
                "the server itself needs {reserve} open files and may have {files}; raise the limit with `ulimit -n` \
                 or LimitNOFILE=, or lower worker_num or reactor_num"
            );
            return Err(ConfigError::value("max_connection", self.max_connection, expected));
        }
        // Who has the clients: the master, or each worker its own.
        let holders = if self.mode == Mode::Base { workers } else { 1 };
        let room = usize::try_from((files - reserve).saturating_mul(holders)).unwrap_or(usize::MAX);
        let limit = room.min(self.max_connection);
        if limit < self.max_connection {
            // Nobody has asked for the default.
            let asked = self.max_connection != Config::default().max_connection;
            let say = |text: String| if asked { tracing::warn!("{text}") } else { tracing::debug!("{text}") };
            say(format!(
                "max_connection = {} is lowered to {limit}: the limit of open files is {files}, of which the \
                 server needs {reserve}; raise it with `ulimit -n` or LimitNOFILE=",
                self.max_connection
            ));
        }
        Ok(limit)
    }
}

fn grace_of(limit: u64) -> u64 {
    if limit > 10 { limit / 2 } else { 0 }
}

fn expected(key: &str) -> String {
    keys::find(key).map(keys::Key::expected).unwrap_or_default()
}

pub(super) fn wrong(key: &'static str, value: impl fmt::Display) -> ConfigError {
    ConfigError::value(key, value, format!("must be {}", expected(key)))
}

pub(super) fn check_count(key: &'static str, value: u64) -> Result<(), ConfigError> {
    match keys::find(key).map(|key| &key.kind) {
        Some(Kind::Count(min, max)) if (*min..=*max).contains(&value) => Ok(()),
        _ => Err(wrong(key, value)),
    }
}

pub(super) fn check_size(key: &'static str, value: usize) -> Result<(), ConfigError> {
    match keys::find(key).map(|key| &key.kind) {
        Some(Kind::Size(min, max)) if (*min..=*max).contains(&value) => Ok(()),
        _ => Err(wrong(key, size::format(value))),
    }
}

pub(super) fn check_seconds(key: &'static str, value: f64) -> Result<(), ConfigError> {
    match keys::find(key).map(|key| &key.kind) {
        Some(Kind::Seconds(min, max)) if (*min..=*max).contains(&value) => Ok(()),
        _ => Err(wrong(key, value)),
    }
}
