//! A peer: an echo server on tokio's multi-threaded runtime, as one would write it.

use anyhow::Result;
use bytes::{Buf, BytesMut};
use std::io;
use swoole_bench::peer::{self, Options, READ_SIZE};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> Result<()> {
    let Some(options) = peer::options()? else { return Ok(()) };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(options.threads).enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let listener = TcpListener::bind(options.listen).await?;
        peer::say_ready(listener.local_addr()?);
        tokio::select! {
            // On a worker thread of the runtime, so that a connection need not move there.
            accepting = tokio::spawn(accept(listener, options)) => accepting??,
            _ = terminate.recv() => {}
        }
        Ok(())
    })
}

async fn accept(listener: TcpListener, options: Options) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            if let Err(error) = echo(stream, options).await {
                eprintln!("tokio_echo: {error}");
            }
        });
    }
}

async fn echo(mut stream: TcpStream, options: Options) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(READ_SIZE);
    loop {
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        let (whole, missing) = options.whole(&buffer)?;
        if whole > 0 {
            stream.write_all(&buffer[..whole]).await?;
            buffer.advance(whole);
        }
        buffer.reserve(missing.max(READ_SIZE.saturating_sub(buffer.len())));
    }
}
