//! `tls`: handshakes, with and without a ticket, and large replies, over TLS 1.3 with a certificate of P-256. Clients are
//! rustls, in threads; nginx answers a `GET`, our own server echoes, or says as much as it is asked for.

use super::{Entry, Plan, Planned};
use crate::account::{Snapshot, Usage};
use crate::churn::{HTTP_BODY, HTTP_REQUEST};
use crate::options::{Options, or};
use crate::sample::{CONNECTIONS, CPU, MIB, Sample};
use crate::server::Server;
use crate::subject::{Chosen, Dialect, Setup, Subject};
use crate::tls::{self, Resumes};
use anyhow::{Context, Result, ensure};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

const VARIANTS: &[&str] = &["base-epoll", "ring-epoll", "base-uring", "ring-uring"];
const PEERS: &[&str] = &["nginx"];
/// Clients at a time.
const CLIENTS: &[usize] = &[8];
const SIZES: &[usize] = &[1 << 20];
const ECHO: &[u8] = &[b'e'; 128];
const WARM_UP: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn plan(options: &Options) -> Result<Plan> {
    let Chosen { subjects, skipped } = Chosen::from(options, VARIANTS, PEERS)?;
    let mut cells = Vec::new();
    let mut cell =
        |title: String, measure: fn(&Subject, usize, usize, f64) -> Result<Sample>, clients, size| {
            let seconds = options.seconds;
            let entry = |subject: Subject| {
                Entry::new(subject.label(), move || measure(&subject, clients, size, seconds))
            };
            let entries = subjects.iter().cloned().map(entry).collect();
            cells.push(Planned { title, point: None, entries });
        };
    for clients in or(&options.connections, CLIENTS) {
        let each = format!("a request each; {clients} at a time");
        cell(format!("full handshake, {each}"), full, clients, 0);
        cell(format!("resumption by a ticket, {each}"), resumed, clients, 0);
        for size in or(&options.sizes, SIZES) {
            let shown = crate::options::show_size(size);
            cell(format!("replies of {shown} on {clients} connections"), replies, clients, size);
        }
    }
    Ok(Plan { cells, skipped })
}

fn full(subject: &Subject, clients: usize, _: usize, seconds: f64) -> Result<Sample> {
    handshakes(subject, Resumes::Never, clients, seconds)
}

fn resumed(subject: &Subject, clients: usize, _: usize, seconds: f64) -> Result<Sample> {
    handshakes(subject, Resumes::Always, clients, seconds)
}

fn handshakes(subject: &Subject, resumes: Resumes, clients: usize, seconds: f64) -> Result<Sample> {
    let server = subject.start(&Setup { dialect: Dialect::Hello, tls: true, ..Setup::default() })?;
    let is_http = subject.speaks_http();
    let life = |config: &Arc<ClientConfig>, until: Instant| -> Result<u64> {
        let mut served = 0;
        while Instant::now() < until {
            let mut client = connect(server.address(), config)?;
            exchange(&mut client, is_http)?;
            let kind = client.conn.handshake_kind();
            let is_resumed = kind == Some(rustls::HandshakeKind::Resumed);
            // The first of a client has nothing to resume.
            ensure!(is_resumed == (resumes == Resumes::Always && served > 0), "{kind:?} after {served}");
            client.conn.send_close_notify();
            client.flush()?;
            served += 1;
        }
        Ok(served)
    };
    let (served, took, used) = measure(&server, resumes, clients, seconds, life)?;
    server.stop()?;
    let cpu = used.cpu.as_secs_f64() * 1e6 / served as f64;
    Ok(vec![(&CONNECTIONS, served as f64 / took), (&CPU, cpu)])
}

fn replies(subject: &Subject, clients: usize, size: usize, seconds: f64) -> Result<Sample> {
    let setup = Setup { dialect: Dialect::Commands, tls: true, packet_max: size, ..Setup::default() };
    let server = subject.start(&setup)?;
    let is_http = subject.speaks_http();
    let request = if is_http { tls::large_request(size)? } else { format!("big {size}\n").into_bytes() };
    let life = |config: &Arc<ClientConfig>, until: Instant| -> Result<u64> {
        let mut client = connect(server.address(), config)?;
        let (mut buffer, mut served) = (vec![0; 256 << 10], 0);
        while Instant::now() < until {
            client.write_all(&request)?;
            if is_http {
                read_head(&mut client)?;
            }
            // Ours ends its lines.
            let mut left = size + usize::from(!is_http);
            while left > 0 {
                let room = left.min(buffer.len());
                let read = client.read(&mut buffer[..room])?;
                ensure!(read > 0, "closed amid a reply");
                left -= read;
            }
            served += 1;
        }
        Ok(served)
    };
    let (served, took, used) = measure(&server, Resumes::Never, clients, seconds, life)?;
    server.stop()?;
    let mib = served as f64 * size as f64 / f64::from(1 << 20);
    Ok(vec![(&MIB, mib / took), (&CPU, used.cpu.as_secs_f64() * 1e6 / served as f64)])
}

/// Runs clients in threads, each with a memory of tickets of its own: what they have been served, in how many seconds, and
/// what that has cost the server.
fn measure(
    server: &Server,
    resumes: Resumes,
    clients: usize,
    seconds: f64,
    life: impl Fn(&Arc<ClientConfig>, Instant) -> Result<u64> + Sync,
) -> Result<(u64, f64, Usage)> {
    // Workers may be there only when somebody is served.
    life(&tls::client(resumes)?, Instant::now() + WARM_UP)?;
    let configs = (0..clients).map(|_| tls::client(resumes)).collect::<Result<Vec<_>>>()?;
    let processes = server.processes()?;
    let before = Snapshot::take(&processes)?;
    let begun = Instant::now();
    let until = begun + Duration::from_secs_f64(seconds);
    let served = thread::scope(|scope| -> Result<u64> {
        let life = &life;
        let clients: Vec<_> = configs.iter().map(|config| scope.spawn(move || life(config, until))).collect();
        let mut sum = 0;
        for client in clients {
            sum += client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        Ok(sum)
    })?;
    let took = begun.elapsed().as_secs_f64();
    ensure!(served > 0, "nobody was served");
    Ok((served, took, Snapshot::take(&processes)?.since(&before)))
}

type Client = StreamOwned<ClientConnection, TcpStream>;

fn connect(address: SocketAddr, config: &Arc<ClientConfig>) -> Result<Client> {
    let socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let connection = ClientConnection::new(Arc::clone(config), "localhost".try_into()?)?;
    Ok(StreamOwned::new(connection, socket))
}

/// One small request and its reply.
fn exchange(client: &mut Client, is_http: bool) -> Result<()> {
    client.write_all(if is_http { HTTP_REQUEST } else { ECHO })?;
    if is_http {
        read_head(client)?;
    }
    let mut reply = vec![0; if is_http { HTTP_BODY.len() } else { ECHO.len() }];
    client.read_exact(&mut reply).context("read a reply")?;
    ensure!(reply == if is_http { HTTP_BODY.as_bytes() } else { ECHO }, "another reply");
    Ok(())
}

/// Reads the head of an HTTP reply and nothing more.
fn read_head(client: &mut Client) -> Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).context("read the head of a reply")?;
        head.extend(byte);
    }
    ensure!(head.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&head));
    Ok(())
}
