//! One service on three ports, each with a framing of its own: it greets whoever says a name.
//!
//! ```text
//! $ cargo run --release --example multi_port &
//! $ echo world | nc -N 127.0.0.1 9504              # for people: lines
//! hello, world
//! $ printf '\x05world' | nc -N 127.0.0.1 9505      # for programs: behind a varint, as protobuf delimits messages
//! $ printf '5:world,' | nc -N 127.0.0.1 9506       # netstrings, whose length a function of ours tells
//! 12:hello, world,
//! ```
//!
//! The options stand behind each address, so `--listen`, `SWOOLE_LISTEN` or a file of yours may say otherwise; the order
//! is what the handler goes by.

use std::process::ExitCode;

use swoole_protocol::Framing;
use swoole_server::config::{Config, Sources};
use swoole_server::{Error, Handler, PackageLength, Result, Server, Session, Worker};

const LISTEN: [&str; 3] = [
    "tcp://127.0.0.1:9504?framing=line&package_max_length=1K",
    "tcp://127.0.0.1:9505?framing=varint",
    "tcp://127.0.0.1:9506?framing=length&package_length_func=netstring",
];

struct Greeter;

impl Handler for Greeter {
    fn on_receive(&mut self, worker: &mut Worker, client: Session, packet: &[u8]) -> Result<()> {
        let port = worker.session(client)?.listener;
        let mut reply = Vec::new();
        match port {
            0 => Framing::Line.encode(&greeting(packet), &mut reply).map_err(Error::other)?,
            1 => Framing::Varint.encode(&greeting(packet), &mut reply).map_err(Error::other)?,
            // The packet is the whole netstring.
            _ => {
                let colon = packet.iter().position(|byte| *byte == b':').unwrap_or_default();
                let text = greeting(&packet[colon + 1..packet.len() - 1]);
                reply = [format!("{}:", text.len()).as_bytes(), &text, b","].concat();
            }
        }
        worker.send(client, &reply)
    }
}

fn greeting(name: &[u8]) -> Vec<u8> {
    [b"hello, ", name].concat()
}

/// `5:hello,`: decimal digits, a colon, so many bytes, a comma. It runs where packets are cut, before any worker sees one.
fn netstring(begin: &[u8]) -> PackageLength {
    const DIGITS_MAX: usize = 9;
    let digits = begin.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if !(1..=DIGITS_MAX).contains(&digits) {
        return PackageLength::Malformed("a netstring begins with 1 to 9 digits");
    }
    let value = begin[..digits].iter().fold(0, |value, digit| 10 * value + usize::from(digit - b'0'));
    match begin.get(digits) {
        None => PackageLength::More,
        Some(b':') => PackageLength::Bytes(digits + 1 + value + 1),
        Some(_) => PackageLength::Malformed("a netstring has a colon behind its digits"),
    }
}

fn run() -> Result<()> {
    let mut defaults = Config::default();
    for listen in LISTEN {
        defaults.listen.push(listen.parse().map_err(Error::other)?);
    }
    let config = Sources::new(defaults).load_process()?;
    Server::new(config).package_length_func("netstring", netstring).run(Greeter)
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("multi_port: {error}");
            ExitCode::FAILURE
        }
    }
}
