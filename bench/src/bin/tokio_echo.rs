//! The rival: an echo server on tokio's multi-threaded runtime, as one would write it.

use anyhow::{Result, bail};
use bytes::{Buf, BytesMut};
use lexopt::prelude::*;
use std::io;
use swoole_bench::Framing;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

const HELP: &str = "\
tokio_echo [--listen tcp://127.0.0.1:0] [--threads 2] [--framing raw|length]

Echoes what it reads (raw), or whole packets with a 4-byte length before them (length, the default). Prints
`ready listen=tcp://HOST:PORT`, and ends on SIGTERM.";
const HEADER: usize = 4;
const PACKET_MAX: usize = 2 * 1024 * 1024;
const READ_SIZE: usize = 64 * 1024;

fn main() -> Result<()> {
    let (mut listen, mut threads, mut framing) = ("127.0.0.1:0".to_owned(), 2, Framing::Length);
    let mut args = lexopt::Parser::from_env();
    while let Some(arg) = args.next()? {
        match arg {
            Long("listen") => match args.value()?.string()?.strip_prefix("tcp://") {
                Some(address) => listen = address.to_owned(),
                None => bail!("--listen takes tcp://HOST:PORT"),
            },
            Long("threads") => threads = args.value()?.parse()?,
            Long("framing") => framing = args.value()?.parse()?,
            Long("help") | Short('h') => {
                println!("{HELP}");
                return Ok(());
            }
            other => return Err(other.unexpected().into()),
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let listener = TcpListener::bind(&listen).await?;
        println!("ready listen=tcp://{}", listener.local_addr()?);
        tokio::select! {
            // On a worker thread of the runtime, so that a connection need not move there.
            accepting = tokio::spawn(accept(listener, framing)) => accepting??,
            _ = terminate.recv() => {}
        }
        Ok(())
    })
}

async fn accept(listener: TcpListener, framing: Framing) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            if let Err(error) = echo(stream, framing).await {
                eprintln!("tokio_echo: {error}");
            }
        });
    }
}

async fn echo(mut stream: TcpStream, framing: Framing) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(READ_SIZE);
    loop {
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        let (whole, missing) = match framing {
            Framing::Raw => (buffer.len(), 0),
            Framing::Length => whole_packets(&buffer)?,
        };
        if whole > 0 {
            stream.write_all(&buffer[..whole]).await?;
            buffer.advance(whole);
        }
        buffer.reserve(missing.max(READ_SIZE - buffer.len().min(READ_SIZE)).max(1));
    }
}

/// How many bytes at the front are whole packets, and how many the packet behind them lacks.
fn whole_packets(buffer: &[u8]) -> io::Result<(usize, usize)> {
    let mut whole = 0;
    while let Some(&header) = buffer[whole..].first_chunk::<HEADER>() {
        let total = HEADER + u32::from_be_bytes(header) as usize;
        if total > PACKET_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("packet of {total} bytes")));
        }
        let there = buffer.len() - whole;
        if there < total {
            return Ok((whole, total - there));
        }
        whole += total;
    }
    Ok((whole, HEADER))
}
