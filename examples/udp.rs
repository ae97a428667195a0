//! Tells whoever asks by UDP, or by a unix socket, what time it is, and counts what each address has asked.
//!
//! ```text
//! $ cargo run --release --example udp &
//! $ echo | nc -u -w 1 127.0.0.1 9507
//! 1764376000, and it is the first time that 127.0.0.1 asks worker 2
//! ```
//!
//! With the default rule, datagrams of one sender's address and port go to one worker. Here they are dealt by the IP address
//! alone (`ip_hash`), so that the worker which counts an address's questions is always the same. `--listen`,
//! `SWOOLE_LISTEN` or a file of yours may name other addresses, as `unixgram:///tmp/time.sock`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use swoole_server::config::{Config, DispatchMode, Sources};
use swoole_server::{DatagramClient, Error, Handler, Result, Server, Session, Worker};

/// Addresses that are counted: anybody may forge as many as there are.
const COUNTED_MAX: usize = 10_000;

#[derive(Default)]
struct Clock {
    asked: HashMap<IpAddr, u64>,
}

impl Handler for Clock {
    fn on_packet(&mut self, worker: &mut Worker, from: &DatagramClient, _: &[u8]) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(Error::other)?.as_secs();
        let id = worker.id();
        let answer = match from.ip() {
            Some(ip) if self.asked.len() < COUNTED_MAX || self.asked.contains_key(&ip) => {
                let times = self.asked.entry(ip).or_default();
                *times += 1;
                match times {
                    1 => format!("{now}, and it is the first time that {ip} asks worker {id}\n"),
                    _ => format!("{now}, and {ip} has asked worker {id} {times} times\n"),
                }
            }
            _ => format!("{now}, says worker {id}\n"),
        };
        worker.send_to(from, answer.as_bytes())
    }

    /// Nobody connects, unless a `tcp://` address is added.
    fn on_receive(&mut self, worker: &mut Worker, client: Session, _: &[u8]) -> Result<()> {
        worker.close(client)
    }
}

fn run() -> Result<()> {
    let mut defaults = Config::default();
    defaults.dispatch_mode = DispatchMode::IpHash;
    defaults.listen.push("udp://127.0.0.1:9507".parse().map_err(Error::other)?);
    Server::new(Sources::new(defaults).load_process()?).run(Clock::default())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("udp: {error}");
            ExitCode::FAILURE
        }
    }
}
