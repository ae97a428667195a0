//! `slow`: what others notice of a client that asks for far more than it reads: latencies and memory beside those without it, in
//! an open loop.

use super::Plan;
use super::beside::{self, Beside};
use crate::account::memory_kib;
use crate::load;
use crate::options::Options;
use crate::sample::{MEMORY, Sample};
use crate::subject::Subject;
use anyhow::{Result, ensure};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

/// The slow one sends so much and reads so much, so often: it is closed at `socket_buffer_size` after some seconds.
const GULP: usize = 16 << 10;
const SIP: usize = 1024;
const EVERY: Duration = Duration::from_millis(10);

pub(super) fn plan(options: &Options) -> Result<Plan> {
    let about = "and one that does not read";
    Beside { connections: 1000, rate: 20_000.0, name: "slow reader", about, measure }.plan(options)
}

fn measure(subject: &Subject, options: &load::Options, is_slow: bool) -> Result<Sample> {
    let (server, mut load) = beside::start(subject, options)?;
    let address = server.address();
    let (summary, sent) =
        beside::run(&mut load, options, |is_over| if is_slow { drag(address, is_over) } else { Ok(0) })?;
    ensure!(!is_slow || sent > 256 << 10, "the slow reader has sent {sent} bytes only");
    let memory = memory_kib(&server.processes()?)?;
    drop(load);
    server.stop()?;
    let mut sample = beside::noticed(&summary);
    sample.push((&MEMORY, memory as f64 / 1024.0));
    Ok(sample)
}

/// Sends more than it reads; again from the beginning when it is closed for that. Bytes sent.
fn drag(address: SocketAddr, is_over: &Receiver<()>) -> Result<u64> {
    let (bytes, mut sip, mut sent) = (vec![b'z'; GULP], [0; SIP], 0);
    let connect = || -> Result<TcpStream> {
        let client = TcpStream::connect(address)?;
        client.set_nonblocking(true)?;
        Ok(client)
    };
    let mut client = connect()?;
    while is_over.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
        let mut is_closed = false;
        match client.write(&bytes) {
            Ok(count) => sent += count as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => is_closed = true,
        }
        match client.read(&mut sip) {
            Ok(1..) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            _ => is_closed = true,
        }
        if is_closed {
            client = connect()?;
        }
    }
    Ok(sent)
}
