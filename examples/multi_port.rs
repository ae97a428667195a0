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
//! The options stand behind each address, so `--listen`, `SWOOLE_LISTEN` or a file of yours may say otherwise; the name
//! is what the handlers go by. With `--config FILE` a reload (`kill -USR1`) opens and closes ports as the file has them by then.

use std::process::ExitCode;

use swoole_protocol::Framing;
use swoole_server::config::{Config, Sources};
use swoole_server::{Error, Handler, PackageLength, Ports, Result, Server, Session, Worker};

const LISTEN: [&str; 3] = [
    "tcp://127.0.0.1:9504?framing=line&package_max_length=1K",
    "tcp://127.0.0.1:9505?framing=varint&name=programs",
    "tcp://127.0.0.1:9506?framing=length&package_length_func=netstring&name=netstrings",
];

/// Replies as it is asked: the packet is what stands in the frame.
struct Greeter(Framing);

impl Handler for Greeter {
    fn on_receive(&mut self, worker: &mut Worker, client: Session, packet: &[u8]) -> Result<()> {
        let mut reply = Vec::new();
        self.0.encode(&greeting(packet), &mut reply).map_err(Error::other)?;
        worker.send(client, &reply)
    }
}

/// The packet is the whole netstring.
struct Netstrings;

impl Handler for Netstrings {
    fn on_receive(&mut self, worker: &mut Worker, client: Session, packet: &[u8]) -> Result<()> {
        let colon = packet.iter().position(|byte| *byte == b':').unwrap_or_default();
        let text = greeting(&packet[colon + 1..packet.len() - 1]);
        worker.send(client, &[format!("{}:", text.len()).as_bytes(), &text, b","].concat())
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

fn config() -> Result<Config> {
    let mut defaults = Config::default();
    for listen in LISTEN {
        defaults.listen.push(listen.parse().map_err(Error::other)?);
    }
    Ok(Sources::new(defaults).load_process()?)
}

fn run() -> Result<()> {
    let ports = Ports::new(Greeter(Framing::Line))
        .port("programs", Greeter(Framing::Varint))
        .port("netstrings", Netstrings);
    let server = Server::new(config()?).package_length_func("netstring", netstring);
    server.reload_config(config).run(ports)
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
