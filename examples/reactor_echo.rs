//! An echo server on the bare reactor: one thread, one loop, no framework.
//!
//!     cargo run --release --example reactor_echo -- --backend io_uring tcp://127.0.0.1:9501
//!
//! A client that does not read what it gets back is not read from either, until it does.

use std::time::Duration;

use swoole_reactor::listener::{self, Address, ListenOptions};
use swoole_reactor::{Backend, Close, Error, Event, Options, Reactor, Token};

/// Bytes queued for one client before it is read from no more.
const QUEUED_MAX: usize = 1 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut backend, mut address) = (Backend::Auto, "tcp://127.0.0.1:9501".parse::<Address>()?);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--backend" => backend = args.next().ok_or("--backend takes auto, epoll or io_uring")?.parse()?,
            _ => address = arg.parse()?,
        }
    }
    let mut reactor = Reactor::new(Options { backend, ..Options::default() })?;
    let socket = listener::listen(&address, &ListenOptions::default())?;
    println!("echo on {}, {}", listener::local_address(&socket, &address)?, reactor.choice());
    let listener = reactor.accept(socket)?;
    loop {
        let mut result = Ok(());
        reactor.turn(None, |reactor, event| {
            if let Err(error) = handle(reactor, event, listener) {
                result = Err(error);
            }
        })?;
        result?;
    }
}

fn handle(reactor: &mut Reactor, event: Event<'_>, listener: Token) -> Result<(), Error> {
    match event {
        Event::Accepted { socket, .. } => {
            let token = reactor.stream(socket)?;
            reactor.receive(token)?;
        }
        Event::Data { token, bytes } => {
            reactor.send(token, bytes.to_vec())?;
            if reactor.queued(token) > QUEUED_MAX {
                reactor.pause(token);
            }
        }
        Event::Sent { token } => reactor.receive(token)?,
        Event::Eof { token } => reactor.close(token, Close::AfterSend),
        Event::Failed { token, .. } => reactor.close(token, Close::Now),
        Event::AcceptFailed { error, .. } => {
            eprintln!("accept: {error}; next try in a second");
            reactor.timer(Duration::from_secs(1));
        }
        Event::Timer { .. } => reactor.resume_accept(listener),
        _ => {}
    }
    Ok(())
}
