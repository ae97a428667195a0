//! A server whose handlers run in crash-isolated worker processes.
//!
//! You write a [`Handler`]; [`Server`] runs it as a family of processes:
//!
//! ```text
//! master ──fork──> manager ──fork──> worker 0 .. n-1
//!   owns every       forks and         runs your
//!   connection       replaces          handlers
//! ```
//!
//! The master accepts clients, cuts their streams into packets, and hands each packet to a worker through shared
//! memory; replies come back the same way. So a worker may block, leak, panic or crash: its connections stay, its
//! unread packets wait for its successor, and one connection at most is closed: the one whose packet it died on, and not
//! even that with `on_crash = retry`. A manager that dies is replaced without anybody's notice. New code is a reload (`SIGUSR1`): workers are replaced one after the other, and no
//! client notices.
//!
//! ```no_run
//! use swoole_server::{Handler, Result, Server, Session, Worker};
//!
//! struct Echo;
//!
//! impl Handler for Echo {
//!     fn on_receive(&mut self, worker: &mut Worker, client: Session, packet: &[u8]) -> Result<()> {
//!         worker.send(client, packet)
//!     }
//! }
//!
//! fn main() -> Result<()> {
//!     Server::listen("tcp://127.0.0.1:9501")?.run(Echo)
//! }
//! ```
//!
//! Try it with `nc 127.0.0.1 9501`; `kill -9` a worker; `kill -USR1` the master; stop it with Ctrl-C.
//!
//! That is Process mode. [`Base mode`](config::Mode::Base) runs the same handler without a master: each worker accepts,
//! reads and answers its own clients in one thread. A worker that dies takes its clients along there, and only those; one
//! that retires hands them over to its successor.
//!
//! # Where to go on
//!
//! | | |
//! |---|---|
//! | [`Handler`] | all callbacks, where each runs and in which order |
//! | [`Ports`] | a handler of its own for each address |
//! | [`Worker`] | what a callback can do: send bytes and files, close, pause, ask about sessions, set timers, reload |
//! | [`Handler::on_packet`], [`Worker::send_to`] | datagrams: UDP, and unix datagram sockets |
//! | [`TaskWorker`], [`Worker::task`] | slow work elsewhere, and its result |
//! | `typed`, with the feature of that name | tasks and results with types instead of bytes |
//! | [`Audience`], [`Worker::broadcast`] | many clients at once, and topics that they are subscribed to |
//! | [`Peer`], [`Worker::send_message`] | messages between processes |
//! | [`Server::add_process`], [`UserProcess`] | a function of your own in a process of its own, kept alive beside the workers |
//! | [`Config::ssl_cert_file`] | TLS: the keys that begin with `ssl_`, at addresses of `tls://`, with the feature `tls` (a default one) |
//! | [`Config`] | every key, from code, a TOML file, the environment or flags |
//! | [`Server`] | starting, and the signals it understands |
//!
//! # State
//!
//! The handler's value is copied by every fork, and the copies share nothing. Open what a worker needs (a database
//! connection, a thread pool, an async runtime) in [`Handler::on_worker_start`], not before the server starts: a
//! process that has more than one thread cannot be forked safely, so the server refuses to start in it.
//!
//! # What a worker that was taken over can reach
//!
//! Handlers read what strangers send, so somebody may come to execute code of their own in a worker. By
//! [`user`](Config::user), [`group`](Config::group), [`chroot`](Config::chroot) and
//! [`worker_sandbox`](Config::worker_sandbox) workers and task workers give up what they need not have, after the server
//! has opened what it needs and before your first callback; whatever starts them, and one that cannot does not serve.
//! Master and manager stay who they are, and run none of your code for packets; what `on_start` and `on_manager_start` have
//! opened or read, later workers have from the fork: what they are not to have is better read in the master.
//!
//! | | `off`, no `user` | `user` | and `basic` | and `strict` |
//! |---|---|---|---|---|
//! | files of other users | with root's rights, if started so | no | no | no |
//! | files that its user may open | yes | yes | yes | those of the configuration |
//! | memory and descriptors of master and manager (`/proc`, ptrace(2), pidfd_getfd(2)) | yes | no | no | no |
//! | those of other workers | yes | no, unless they say so (`PR_SET_DUMPABLE`) | no | no |
//! | set-user-ID programs | yes | yes | no | no |
//! | new sockets; a server of its own | yes | yes | yes | those of the configuration; no |
//! | signals | all of its user | other workers | other workers | its own children |
//! | name spaces, modules, bpf(2), userfaultfd(2), io_uring | yes | by its user's rights | no, io_uring yes | no |
//!
//! In every case it has, and can do anything with:
//!
//! - in Process mode no listening and no client's socket; in Base mode its own listener and its own clients;
//! - its links to the reactors, by which it answers any session as a handler may, the chutes by which they get files, and
//!   the boxes of the post;
//! - the server's bells, which it may ring for nothing;
//! - in shared memory its own rows, rings and tasks, and large payloads and results of everybody's tasks. What else is mapped is read-only, which it may undo: the sessions'
//!   addresses and counters, the board, other workers' bells and, in task workers, all tasks. Nobody follows a pointer or
//!   believes a length that stands there, but it can make clients and tasks of others go astray, or the server stop;
//! - by the board it may ask for what any callback may: a reload, another worker's retirement, the server's stop.
//!
//! Some things are different then. A worker of another user dumps no core. A log file that was moved away
//! (`SIGHUP`) is opened by the manager, and workers are replaced in their turn to have the new one. Below another root
//! there are no `/proc`, no `/etc/resolv.conf` and no symbols for a panic's backtrace, unless you put them there; under
//! `strict`, what your program reads while it runs (certificates, time zones, name services) goes into
//! [`worker_sandbox_read`](Config::worker_sandbox_read), and `/proc`, too, where locks in shared memory are to tell a
//! dead owner from another process with its number.
//!
//! # What is promised
//!
//! - Packets of one connection are handled in order, and their replies leave in order, under the dispatch modes that
//!   promise it, of which the default is one ([`DispatchMode`](config::DispatchMode)). Its `on_connect` comes before all of
//!   them, and its `on_close` after, under every mode.
//! - All replies that a handler makes for a packet become visible together, when it returns. A worker killed before
//!   that has answered nothing, one killed after it has answered all. ([`Handler::on_receive`] has the fine print.)
//! - A stop answers every packet that has come, within `max_wait_time`; a worker that dies meanwhile is replaced.
//! - A client that shuts down its sending side (`printf ... | nc -N`) is answered first, then closed.
//! - A reply never reaches another connection than the one it was made for, and is never sent twice.
//! - A task ends once for the process that has asked for it, and for no other one: with its result, or with the reason why
//!   there is none.
//! - No client can make the server's memory grow beyond what the configuration says.

#![forbid(unsafe_code)]

mod affinity;
mod audience;
mod base;
mod board;
#[cfg(not(feature = "breakpoints"))]
mod breakpoint;
#[cfg(feature = "breakpoints")]
#[doc(hidden)]
pub mod breakpoint;
mod charter;
mod chute;
pub mod config;
mod confine;
mod control;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod counts;
mod crash;
mod datagram;
mod desk;
mod dispatch;
mod error;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod fuzz;
mod gate;
mod handler;
mod image;
mod link;
mod listeners;
mod listening;
mod log;
mod manager;
mod master;
mod measure;
mod pace;
mod plan;
mod ports;
mod post;
mod process;
mod rest;
mod seldom;
mod server;
mod session;
mod shared;
mod shed;
mod stats;
mod stop;
mod task;
mod tls;
mod wire;
mod worker;

pub use audience::Audience;
pub use config::Config;
pub use crash::{Fate, PacketInHand};
pub use datagram::DatagramClient;
pub use dispatch::{Choice, Dispatch};
pub use error::{Error, Result};
pub use handler::{Handler, Manager, Master, WorkerError, WorkerKind};
pub use ports::Ports;
pub use post::Peer;
pub use process::UserProcess;
pub use server::Server;
pub use session::{Session, SessionInfo};
pub use stats::{Stats, UserProcessStats, WorkerState, WorkerStats};
pub use swoole_protocol::PackageLength;
pub use swoole_reactor::DatagramPeer;
pub use swoole_supervisor::ExitStatus;
#[cfg(feature = "typed")]
pub use task::typed;
pub use task::{
    Payload, TaskError, TaskFate, TaskId, TaskInHand, TaskQueue, TaskResult, TaskStats, TaskWorker,
};
pub use tls::{ClientCertificate, TlsInfo};
pub use worker::{OpenReply, TimerId, Unfinished, Worker};
