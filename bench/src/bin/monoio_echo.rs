//! A peer: an echo server on monoio, one io_uring and one listener per thread, as one would write it.

use anyhow::{Context, Result, ensure};
use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::{ListenerOpts, TcpListener, TcpStream};
use std::io;
use std::sync::mpsc;
use std::thread;
use swoole_bench::Protocol;
use swoole_bench::peer::{self, Options, READ_SIZE};

fn main() -> Result<()> {
    let Some(mut options) = peer::options()? else { return Ok(()) };
    ensure!(
        options.protocol == Protocol::Raw || options.packet_max <= u32::MAX as usize,
        "--packet-max is too large"
    );
    let (bound, is_bound) = mpsc::channel();
    let mut threads = Vec::new();
    for _ in 0..options.threads {
        let bound = bound.clone();
        threads.push(thread::spawn(move || serve(options, &bound)));
        // All listen on the port that the first got.
        options.listen = is_bound.recv().context("a thread could not listen")?;
    }
    peer::say_ready(options.listen);
    for thread in threads {
        thread.join().ok().context("a thread panicked")??;
    }
    Ok(())
}

fn serve(options: Options, bound: &mpsc::Sender<std::net::SocketAddr>) -> Result<()> {
    let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().build()?;
    runtime.block_on(async {
        let listening = ListenerOpts::new().reuse_port(true);
        let listener = TcpListener::bind_with_config(options.listen, &listening)?;
        bound.send(listener.local_addr()?)?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            monoio::spawn(async move {
                if let Err(error) = echo(stream, options).await {
                    eprintln!("monoio_echo: {error}");
                }
            });
        }
    })
}

async fn echo(mut stream: TcpStream, options: Options) -> io::Result<()> {
    let (mut pending, mut buffer) = (Vec::new(), Vec::with_capacity(READ_SIZE));
    loop {
        let (read, filled) = stream.read(buffer).await;
        buffer = filled;
        if read? == 0 {
            return Ok(());
        }
        if options.protocol == Protocol::Raw {
            let (written, used) = stream.write_all(buffer).await;
            written?;
            buffer = used;
        } else {
            pending.extend_from_slice(&buffer);
            let (whole, _) = options.whole(&pending)?;
            if whole > 0 {
                let rest = pending.split_off(whole);
                let (written, _) = stream.write_all(pending).await;
                written?;
                pending = rest;
            }
        }
        buffer.clear();
    }
}
