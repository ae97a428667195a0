//! Sends every client what it sends, over TLS. A certificate to try it with, which no client knows:
//!
//! ```text
//! openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=localhost \
//!     -addext subjectAltName=DNS:localhost -keyout key.pem -out cert.pem
//! cargo run --release --example tls_echo -- cert.pem key.pem
//! openssl s_client -connect localhost:9443 -CAfile cert.pem
//! ```
//!
//! With other files in their place, `kill -USR1` the master: who connects then is shown the new certificate.

use swoole_server::{Error, Handler, Result, Server, Session, Worker};

struct Echo;

impl Handler for Echo {
    fn on_connect(&mut self, worker: &mut Worker, client: Session) -> Result<()> {
        // After the handshake: nobody hears of clients that do not come so far.
        let Some(tls) = worker.tls(client)? else { return Err(Error::other("a client without TLS")) };
        let name = tls.server_name.as_deref().unwrap_or("nobody");
        worker.send(client, format!("{name} greets you by {}, {}\n", tls.protocol, tls.cipher).as_bytes())
    }

    fn on_receive(&mut self, worker: &mut Worker, client: Session, packet: &[u8]) -> Result<()> {
        worker.send(client, packet)
    }
}

fn main() -> Result<()> {
    let mut files = std::env::args_os().skip(1);
    let (Some(cert), Some(key)) = (files.next(), files.next()) else {
        return Err(Error::other("usage: tls_echo CERT_FILE KEY_FILE"));
    };
    let server = Server::listen("tls://127.0.0.1:9443")?.configure(|config| {
        (config.ssl_cert_file, config.ssl_key_file) = (Some(cert.into()), Some(key.into()));
    });
    server.run(Echo)
}
