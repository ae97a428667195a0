//! The worker process: user code, one thread.
//!
//! | file | what |
//! |---|---|
//! | `mod` | [`Worker`]: what a callback may do, in either mode |
//! | `callbacks` | where the user's code is called |
//! | `timers` | what comes by itself |
//! | `tasks` | what it asks of task workers |
//! | `groups` | what it does for many clients at once |
//! | `messages` | what it writes to other processes |
//! | `unfinished` | what a callback leaves to later ones, and `drain`, how a worker that is to leave waits for it |
//! | `lookout` | signals, bells, and whether the manager is there |
//! | `life` | Process mode, from the fork to the exit: start, serve, retire |

pub(crate) mod callbacks;
pub(crate) mod drain;
mod groups;
mod life;
mod lookout;
mod messages;
mod tasks;
mod timers;
mod unfinished;

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use rustix::process::{Signal, getpid};
use swoole_reactor::FileRange;

use crate::base::Till;
use crate::board::{Phase, Request};
use crate::chute::{self, Ticket};
use crate::config::Config;
use crate::datagram::DatagramClient;
use crate::error::{Error, Result};
use crate::handler::common;
use crate::link::Outlets;
use crate::log::{Identity, Role};
use crate::measure::Measure;
use crate::post::Post;
use crate::post::role::clients;
use crate::session::Session;
use crate::shared::Shared;
use crate::task::{Asker, Finished};

pub(crate) use life::{LEAVE_WAIT, run};
pub(crate) use lookout::Lookout;
pub use timers::TimerId;
pub(crate) use timers::{Timers, timed};
pub(crate) use unfinished::OpenReplies;
pub use unfinished::{OpenReply, Unfinished};

/// The signals that a worker takes as they come, instead of being hit by them. Ctrl-C reaches the whole process group,
/// but it is the master that is asked to stop.
pub(crate) const SIGNALS: [Signal; 6] =
    [Signal::TERM, Signal::INT, Signal::QUIT, Signal::HUP, Signal::USR1, Signal::USR2];

/// By which the manager asks a worker where it is at. One that has not got there yet ignores it.
pub(crate) const STACK_SIGNAL: Signal = Signal::URG;

/// A worker process, as its callbacks see it.
pub struct Worker<'a> {
    pub(crate) duty: &'a mut Duty,
    pub(crate) way: Way<'a>,
}

/// Who a worker is, and how far it has come.
pub(crate) struct Duty {
    pub(crate) id: u16,
    pub(crate) generation: u32,
    pub(crate) handled: u64,
    /// Packets after which it is due to be replaced.
    request_limit: u64,
    /// It takes no more packets.
    pub(crate) retiring: bool,
    /// Whoever comes next takes them.
    pub(crate) has_heir: bool,
    pub(crate) timers: Timers,
    replies: OpenReplies,
    /// Files that it has sent.
    files: u64,
    /// Its end of the tasks; `None` where there are no task workers.
    pub(crate) tasks: Option<Asker>,
    pub(crate) post: Post,
    pub(crate) shared: Arc<Shared>,
}

/// How what it sends gets to clients.
pub(crate) enum Way<'a> {
    /// Process mode: to the reactors that own them.
    Links(&'a mut Outlets),
    /// Base mode: it is their reactor itself.
    Own(Till<'a>),
}

impl Duty {
    pub(crate) fn new(id: u16, generation: u32, shared: &Arc<Shared>) -> Result<Duty> {
        let Config { max_request, .. } = shared.config;
        let request_limit = request_limit("max_request", max_request, shared.config.request_grace())?;
        let tasks = Asker::open(shared, id, generation);
        let post = Post::open(shared, id, generation)?;
        let shared = Arc::clone(shared);
        Ok(Duty {
            id,
            generation,
            handled: 0,
            request_limit,
            retiring: false,
            has_heir: true,
            timers: Timers::default(),
            replies: OpenReplies::default(),
            files: 0,
            tasks,
            post,
            shared,
        })
    }

    #[inline]
    fn count(&mut self) {
        self.handled += 1;
        self.shared.board.set_handled(self.id, self.handled);
        if self.handled == self.request_limit {
            self.shared.tell_due(self.id, self.generation);
        }
    }

    /// Whether something has come to be that the user is to be told of: a timer is due, a task is over, a message is there.
    pub(crate) fn has_news(&self) -> bool {
        self.timers.is_due() || self.post.has_mail() || self.tasks.as_ref().is_some_and(Asker::has_news)
    }

    /// The next task that is over.
    fn next_finished(&mut self) -> Option<Finished> {
        self.tasks.as_mut().and_then(Asker::next_finished)
    }

    /// How many such things the user was told of.
    fn news_told(&self) -> u64 {
        self.timers.taken() + self.tasks.as_ref().map_or(0, Asker::told) + self.post.taken()
    }
}

/// What this key limits, and some more so that processes which started together do not retire together. The seed is drawn
/// here, after the fork: one drawn before it would be the same in every process.
pub(crate) fn request_limit(key: &str, limit: u64, grace: u64) -> Result<u64> {
    match limit {
        0 => Ok(u64::MAX),
        limit if grace == 0 => Ok(limit),
        limit => {
            let random =
                getrandom::u64().map_err(|error| Error::setup(format!("draw the jitter of {key}"), error))?;
            Ok(limit.saturating_add(random % grace + 1))
        }
    }
}

/// The first things that a worker process does, in either mode.
pub(crate) fn introduce(id: u16, shared: &Shared) {
    shared.placement.pin_worker(id);
    crate::log::set_identity(Identity { role: Role::Worker, id: u32::from(id) });
    // A title is a comfort, not a need.
    let _ = swoole_sys::title::set(&format!("swoole: worker {id}"));
    if !shared.config.request_slow_time.is_zero()
        && let Err(error) = shared.board.write_stack_on(id, STACK_SIGNAL)
    {
        tracing::error!("request_slow_time: this worker will not tell its stack: {error}");
    }
    callbacks::log_panics();
}

/// The exit code of a process of this kind whose life went like this.
pub(crate) fn exit_code(kind: &str, id: u16, life: Result<()>) -> i32 {
    match life {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!("{kind} {id}: {error}");
            1
        }
    }
}

common!(Worker<'_>, Worker);
clients!(Worker<'_>);

impl Worker<'_> {
    /// This worker's slot, from 0. A successor has the same.
    pub fn id(&self) -> u16 {
        self.duty.id
    }

    /// This process's id.
    pub fn pid(&self) -> i32 {
        getpid().as_raw_pid()
    }

    /// Which process of its slot this is, from 1.
    pub fn generation(&self) -> u32 {
        self.duty.generation
    }

    /// Whether the whole server stops: who leaves now has no successor.
    pub fn is_stopping(&self) -> bool {
        self.shared().board.phase() == Phase::Stopping
    }

    /// Packets that this process has begun to handle, the present one included.
    pub fn handled(&self) -> u64 {
        self.duty.handled
    }

    /// Sends `bytes` to a client, whichever reactor or worker it belongs to, after all that this worker has sent to
    /// it before. They leave when the callback returns, or at [`flush`](Worker::flush).
    ///
    /// Does not wait for the client: what it does not take is kept for it, up to `socket_buffer_size`; a client that
    /// falls further behind is closed.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchSession`] if the client has left. [`Error::ReplyTooLong`] if `bytes` alone exceed
    /// `socket_buffer_size`. [`Error::PeerFull`] in Base mode, if it is another worker's client, and that worker has not
    /// taken what this one has sent before. [`Error::Uncommitted`] under `on_crash = retry`, if this callback has sent
    /// too much already. Nothing was sent then.
    #[inline]
    pub fn send(&mut self, session: Session, bytes: &[u8]) -> Result<()> {
        self.shared().check_reply(session, bytes.len())?;
        let reactor = self.reactor(session)?;
        match &mut self.way {
            Way::Links(outlets) => return outlets.to(reactor).send(session, bytes),
            Way::Own(till) if till.id() == reactor => till.send(session, bytes),
            Way::Own(_) => self.duty.post.sender.send(reactor, session, bytes)?,
        }
        Ok(())
    }

    /// Sends a datagram, by the socket of the listener that `to` names: an answer to the client that
    /// [`on_packet`](crate::Handler::on_packet) was given, or one to any other address. It leaves when the callback returns,
    /// or at [`flush`](Worker::flush). Datagrams of this worker by one listener leave in their order.
    ///
    /// At most 65,507 bytes, which may be none. Nobody waits for who does not read: a datagram that the kernel does not
    /// take at once, as of a unix client whose buffer is full, is lost, and
    /// [counted](crate::Stats::datagram_unsent_count). Until the server is ready, and in Base mode in
    /// [`on_worker_start`](crate::Handler::on_worker_start), nothing can be sent. Swoole: `sendto`.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchListener`] if that listener takes no datagrams; [`Error::DatagramTooLong`]; [`Error::Unnamed`] for a
    /// unix client that is bound to no name; [`Error::Unreachable`] for an address of another family than the listener's;
    /// [`Error::Uncommitted`] under `on_crash = retry`, if this callback has sent too much already. Nothing was sent then.
    pub fn send_to(&mut self, to: &DatagramClient, bytes: &[u8]) -> Result<()> {
        let datagram = crate::datagram::answer(self.shared().listening().addresses(), to, bytes)?;
        let (listener, reactor) =
            (Session::of_listener(to.listener), self.shared().config.reactor_of_listener(to.listener));
        match &mut self.way {
            Way::Links(outlets) => return outlets.to(reactor).send_to(listener, &datagram),
            // Each worker has a socket of its own there.
            Way::Own(till) => till.send_to(listener, datagram),
        }
        Ok(())
    }

    /// Closes a client's connection, after what was sent to it before has gone out.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchSession`] if it is gone already; [`Error::PeerFull`] as for [`send`](Worker::send).
    pub fn close(&mut self, session: Session) -> Result<()> {
        let reactor = self.reactor(session)?;
        match &mut self.way {
            Way::Links(outlets) => return outlets.to(reactor).close(session),
            Way::Own(till) if till.id() == reactor => till.close(session),
            Way::Own(_) => self.duty.post.sender.close(reactor, session)?,
        }
        Ok(())
    }

    /// Binds a client's session to a user, whose number is the program's own; 0 is nobody ([`unbind`](Worker::unbind)). It
    /// shows in [`SessionInfo::uid`](crate::SessionInfo::uid), and lasts until it is bound otherwise, or is closed. Like a
    /// reply it takes effect when the callback returns, or at [`flush`](Worker::flush), and not if the worker dies before:
    /// who asks in the same callback does not see it yet.
    ///
    /// With `dispatch_mode = uid` the packets that a reactor deals from then on go to worker `uid % worker_num`; the first
    /// one waits for those that others have still. In Base mode and under every other rule it only shows. Swoole: `bind()`,
    /// there for once.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchSession`] if it is gone already; [`Error::PeerFull`] as for [`send`](Worker::send).
    pub fn bind(&mut self, session: Session, uid: u64) -> Result<()> {
        let reactor = self.reactor(session)?;
        match &mut self.way {
            Way::Links(outlets) => return outlets.to(reactor).bind(session, uid),
            Way::Own(till) if till.id() == reactor => till.bind(session, uid),
            Way::Own(_) => self.duty.post.sender.bind(reactor, session, uid)?,
        }
        Ok(())
    }

    /// Binds a client's session to nobody.
    ///
    /// # Errors
    ///
    /// As for [`bind`](Worker::bind).
    pub fn unbind(&mut self, session: Session) -> Result<()> {
        self.bind(session, 0)
    }

    /// Reads nothing more from a client: what it sends waits in its kernel and ours, and slows it down, whatever becomes of
    /// this worker, until it is [resumed](Worker::resume). Packets that were read before may still come. It can be sent to and
    /// closed as ever, and a stop or a reload does not wait for what it has not been read of. That it hangs up shows when it is
    /// sent to, or resumed. Takes effect like a reply: when the callback returns, or at [`flush`](Worker::flush), and not if
    /// the worker dies before. Swoole: `pause()`.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchSession`] if it is gone already; [`Error::PeerFull`] as for [`send`](Worker::send).
    pub fn pause(&mut self, session: Session) -> Result<()> {
        self.measure(session, Measure::Pause)
    }

    /// Reads from a client again after [`pause`](Worker::pause); nothing happens if that has not been. Swoole: `resume()`.
    ///
    /// # Errors
    ///
    /// As for [`pause`](Worker::pause).
    pub fn resume(&mut self, session: Session) -> Result<()> {
        self.measure(session, Measure::Resume)
    }

    /// Reads from a client for the first time, where [`enable_delay_receive`](crate::Config::enable_delay_receive) has it
    /// wait for that. The same as [`resume`](Worker::resume). Swoole: `confirm()`.
    ///
    /// # Errors
    ///
    /// As for [`pause`](Worker::pause).
    pub fn confirm(&mut self, session: Session) -> Result<()> {
        self.resume(session)
    }

    /// Exempts a client from limits on how long it may be silent, or does not any more. Shows in
    /// [`SessionInfo::protected`](crate::SessionInfo::protected), and takes effect like a reply. Swoole: `protect()`.
    ///
    /// # Errors
    ///
    /// As for [`pause`](Worker::pause).
    pub fn protect(&mut self, session: Session, on: bool) -> Result<()> {
        self.measure(session, Measure::Protect(on))
    }

    /// Closes a client's connection at once, with a reset on TCP: what waits for it is dropped, also what this worker has sent to it
    /// before. Takes effect like a reply. Swoole: `close($fd, true)`.
    ///
    /// # Errors
    ///
    /// As for [`close`](Worker::close).
    pub fn reset(&mut self, session: Session) -> Result<()> {
        self.measure(session, Measure::Reset)
    }

    /// Sends `length` bytes of a file from `offset` on to a client, in their place among all that this worker sends to it; with
    /// length 0, all to the end. The file is opened here, with this worker's rights, and its bytes go from the kernel's
    /// cache to the client without passing through a process: they count against no memory, and against
    /// `socket_buffer_size` neither. As for [`send`](Worker::send) nothing is sent if the worker dies before the callback
    /// returns, or flushes.
    ///
    /// What the file holds when it is sent is sent; if it has become shorter by then, the connection is closed, and the log
    /// says so. While a reactor waits for the disk, its other clients wait, too. Swoole: `sendfile()`.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchSession`] if the client has left. [`Error::SendFile`] if the file cannot be opened or is no regular one, or
    /// these bytes are not in it; if so many files of this worker are under way that the kernel, or the reactor, takes no
    /// more; if the client speaks TLS; in Base mode, if it is another worker's client. [`Error::Uncommitted`] as for [`send`](Worker::send). Nothing was
    /// sent then.
    pub fn send_file(
        &mut self,
        session: Session,
        path: impl AsRef<Path>,
        offset: u64,
        length: u64,
    ) -> Result<()> {
        self.reactor(session)?;
        let range = chute::open_path(session, path.as_ref(), offset, length)?;
        self.send_range(session, range)
    }

    /// As [`send_file`](Worker::send_file), of a file that is open for reading. Where that stands in it does not matter, and
    /// it may be closed afterwards.
    ///
    /// # Errors
    ///
    /// As for [`send_file`](Worker::send_file).
    pub fn send_open_file(
        &mut self,
        session: Session,
        file: impl AsFd,
        offset: u64,
        length: u64,
    ) -> Result<()> {
        self.reactor(session)?;
        let range = chute::of_open(session, file.as_fd(), offset, length)?;
        self.send_range(session, range)
    }

    fn send_range(&mut self, session: Session, range: Option<FileRange>) -> Result<()> {
        let reactor = self.reactor(session)?;
        let Some(range) = range else { return Ok(()) };
        let Duty { id, files, shared, .. } = &mut *self.duty;
        let (listener, listening) = (shared.sessions.listener(session), shared.listening());
        if listener.and_then(|listener| listening.address(listener)).is_some_and(|listen| listen.tls) {
            return Err(chute::over_tls(session));
        }
        match &mut self.way {
            Way::Links(outlets) => {
                *files += 1;
                let name = Ticket::name(*id, *files);
                let ticket = Ticket { name, offset: range.offset, length: range.length };
                let put = || chute::put(shared, reactor, session, name, &range.file);
                return outlets.to(reactor).send_file(session, ticket, put);
            }
            Way::Own(till) if till.id() == reactor => till.send_file(session, range),
            Way::Own(_) => return Err(chute::elsewhere(session)),
        }
        Ok(())
    }

    fn measure(&mut self, session: Session, measure: Measure) -> Result<()> {
        let reactor = self.reactor(session)?;
        match &mut self.way {
            Way::Links(outlets) => return outlets.to(reactor).measure(session, measure),
            Way::Own(till) if till.id() == reactor => till.measure(session, measure),
            Way::Own(_) => self.duty.post.sender.measure(reactor, session, measure)?,
        }
        Ok(())
    }

    /// Lets out what this callback has sent, to clients and to other processes, and asked of task workers, so far, before it returns. If the worker dies later in the same callback,
    /// this much has been sent all the same. Waits for a reactor that has no room at the moment, for no client.
    ///
    /// # Errors
    ///
    /// [`Error::Link`] if the link to a reactor is broken: the worker is of no use then, so return it.
    /// [`Error::Uncommitted`] under `on_crash = retry`, in a callback that belongs to a client.
    pub fn flush(&mut self) -> Result<()> {
        match &mut self.way {
            Way::Links(outlets) => outlets.flush()?,
            Way::Own(till) => till.flush(),
        }
        self.duty.post.sender.pump();
        self.publish_tasks();
        Ok(())
    }

    /// This worker's share of all sessions, if all workers do something to all of them, as to tell them that the server stops
    /// ([`on_worker_stop`](crate::Handler::on_worker_stop)): each is in the share of one worker. In Base mode those are its
    /// own clients; in Process mode, where any worker can send to any client, they need not be those that it hears of.
    pub fn own_sessions(&self) -> impl Iterator<Item = Session> + '_ {
        let (shared, id) = (self.shared(), self.duty.id);
        self.sessions().filter(move |session| match self.way {
            Way::Own(_) => shared.sessions.reactor(*session) == id,
            Way::Links(_) => shared.sessions.share(*session, shared.config.worker_num) == id,
        })
    }

    /// Lets a worker retire and be replaced: this one (`None`), after the present callback, or another one.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchWorker`] if there is no such slot; another error if there is no process in it at the moment.
    pub fn retire(&mut self, worker: Option<u16>) -> Result<()> {
        let worker_num = self.shared().config.worker_num;
        match worker {
            Some(worker) if worker >= worker_num => Err(Error::NoSuchWorker { worker, worker_num }),
            Some(worker) if worker != self.duty.id => {
                let pid = self.shared().board.worker_pid(worker);
                crate::handler::ask(self.shared(), self.seat(), Request::Retire(worker), (pid, Signal::TERM))
            }
            _ => {
                self.duty.retiring = true;
                Ok(())
            }
        }
    }

    /// The reactor of a session that is connected.
    #[inline]
    fn reactor(&self, session: Session) -> Result<u16> {
        self.shared().sessions.owner(session)
    }

    fn seat(&self) -> Option<u16> {
        Some(self.duty.id)
    }

    #[inline]
    fn shared(&self) -> &Arc<Shared> {
        &self.duty.shared
    }
}
