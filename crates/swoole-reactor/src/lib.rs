//! Sockets, timers and signals on io_uring or epoll behind one completion-shaped API.
//!
//! You ask a [`Reactor`] for something (accept, receive, send, close, a datagram, a timer, a watched
//! descriptor) and each [`turn`](Reactor::turn) hands you the [`Event`]s that came of it. There are no
//! callbacks to register, no global, no thread: a loop around `turn` is the whole program, and its state is
//! yours. What you asked about is named by a [`Token`], which is never reused.
//!
//! An echo server:
//!
//! ```
//! use std::io::{Read, Write};
//!
//! use swoole_reactor::listener::{self, Address, ListenOptions};
//! use swoole_reactor::{Close, Event, Options, Reactor};
//!
//! let mut reactor = Reactor::new(Options::default())?;
//!
//! let address: Address = "tcp://127.0.0.1:0".parse()?;
//! let socket = listener::listen(&address, &ListenOptions::default())?;
//! let Address::Tcp(address) = listener::local_address(&socket, &address)? else { unreachable!() };
//! reactor.accept(socket)?;
//!
//! let client = std::thread::spawn(move || -> std::io::Result<String> {
//!     let mut stream = std::net::TcpStream::connect(address)?;
//!     stream.write_all(b"hello")?;
//!     stream.shutdown(std::net::Shutdown::Write)?;
//!     let mut reply = String::new();
//!     stream.read_to_string(&mut reply)?;
//!     Ok(reply)
//! });
//!
//! let mut served = false;
//! while !served {
//!     reactor.turn(None, |reactor, event| match event {
//!         Event::Accepted { socket, .. } => {
//!             let token = reactor.stream(socket).expect("there is room");
//!             reactor.receive(token).expect("it was just adopted");
//!         }
//!         Event::Data { token, bytes } => reactor.send(token, bytes.to_vec()).expect("it is open"),
//!         Event::Eof { token } => reactor.close(token, Close::AfterSend),
//!         Event::Failed { token, .. } => reactor.close(token, Close::Now),
//!         Event::Closed { .. } => served = true,
//!         _ => {}
//!     })?;
//! }
//! assert_eq!(client.join().unwrap()?, "hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What holds
//!
//! - **Order.** Bytes of one stream arrive and leave in order, without gap or repetition, over any sequence
//!   of [`pause`](Reactor::pause) and [`receive`](Reactor::receive).
//! - **Back-pressure.** [`queued`](Reactor::queued) says what a peer has not taken; [`Event::Sent`] says
//!   when it has taken all. A paused stream lets its peer's window fill.
//! - **Fairness.** [`Options::budget`] bounds what one source gets in one turn.
//! - **One end.** Each source that is closed has exactly one [`Event::Closed`], and nothing after it.
//! - **Idle is free.** With nothing to do and no timer, the wait has no timeout.
//! - **One process, one thread.** A reactor is made after a fork, in the thread that turns it. In a forked
//!   child an inherited one refuses to work ([`Error::Forked`]) instead of stealing its parent's events.
//!
//! # Backends
//!
//! [`Backend::Epoll`] turns readiness into completions. [`Backend::IoUring`] uses multishot operations and
//! provided buffers; from Linux 6.12 on it is what [`Backend::Auto`], the default, chooses. Both pass the same
//! tests, and [`Reactor::choice`] says which one runs and why.

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod counts;
mod datagram;
mod driver;
mod error;
mod event;
mod fork;
pub mod listener;
mod options;
mod reactor;
mod stream;
mod timer;
mod token;
mod waker;

pub use datagram::DatagramPeer;
pub use error::Error;
pub use event::{Detached, Event, Interest, Trigger};
pub use options::{Backend, Choice, Options, UnknownBackend};
pub use reactor::Reactor;
pub use stream::{Close, FileRange};
pub use timer::TimerId;
pub use token::Token;
pub use waker::Waker;

pub use swoole_sys::signal::{SignalInfo, SignalSet};
