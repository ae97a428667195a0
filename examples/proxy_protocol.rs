//! Tells who comes by a proxy from where they come. The proxy says it in a header of the PROXY protocol, before all else.
//!
//! ```text
//! $ cargo run --release --example proxy_protocol &
//! $ curl --haproxy-protocol http://127.0.0.1:9507/          # curl plays the proxy
//! you are 127.0.0.1:40312
//! $ printf 'PROXY TCP4 192.0.2.1 198.51.100.7 56324 80\r\nGET / HTTP/1.0\r\n\r\n' | nc -N 127.0.0.1 9507
//! HTTP/1.0 200 OK
//! ...
//! you are 192.0.2.1:56324
//! ```
//!
//! Only who is of `proxy_trusted` is believed, here this machine. Whoever else connects, or sends no header, is closed,
//! and the log says why. Behind HAProxy: `server app 127.0.0.1:9507 send-proxy-v2`; behind nginx: `proxy_protocol on;` in a
//! `stream` server.

use std::process::ExitCode;

use swoole_server::config::{Config, Framing, Sources};
use swoole_server::{Error, Handler, Result, Server, Session, Worker};

const LISTEN: &str = "tcp://127.0.0.1:9507?proxy_protocol=any&proxy_trusted=127.0.0.0/8";

struct Mirror;

impl Handler for Mirror {
    fn on_receive(&mut self, worker: &mut Worker, client: Session, _: &[u8]) -> Result<()> {
        let peer = worker.session(client)?.peer;
        let text = peer.map_or("you are nobody\n".into(), |peer| format!("you are {peer}\n"));
        let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", text.len());
        worker.send(client, (head + &text).as_bytes())?;
        worker.close(client)
    }
}

fn run() -> Result<()> {
    let mut defaults = Config::default();
    defaults.listen.push(LISTEN.parse().map_err(Error::other)?);
    // The head of a request ends with an empty line.
    (defaults.framing, defaults.package_eof) = (Framing::Eof, b"\r\n\r\n".to_vec());
    Server::new(Sources::new(defaults).load_process()?).run(Mirror)
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("proxy_protocol: {error}");
            ExitCode::FAILURE
        }
    }
}
