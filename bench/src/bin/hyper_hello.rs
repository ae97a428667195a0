//! A peer: a hyper server on tokio's multi-threaded runtime that answers every request with a word.

use anyhow::Result;
use bytes::Bytes;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::io;
use swoole_bench::churn::HTTP_BODY;
use swoole_bench::peer;
use tokio::net::TcpListener;
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
            accepting = tokio::spawn(accept(listener)) => accepting??,
            _ = terminate.recv() => {}
        }
        Ok(())
    })
}

async fn accept(listener: TcpListener) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(hello));
            if let Err(error) = serving.await {
                eprintln!("hyper_hello: {error}");
            }
        });
    }
}

async fn hello(_: Request<hyper::body::Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::new(Bytes::from_static(HTTP_BODY.as_bytes()))))
}
