//! Where the user's code is called in a worker, and what becomes of its errors and panics.

use std::backtrace::Backtrace;
use std::sync::Arc;

use super::drain::Cause;
use super::{TimerId, Worker};
use crate::datagram::{self, DatagramClient};
use crate::error::{Error, Result};
use crate::handler::Handler;
use crate::post::Peer;
use crate::session::Session;
use crate::task::Finished;
use crate::wire::RequestKind;

/// Calls the callback for one message. An error of it costs its session the connection.
pub(crate) fn message<H: Handler>(
    handler: &mut H,
    worker: &mut Worker<'_>,
    kind: RequestKind,
    session: Session,
    payload: &[u8],
) {
    let result = match kind {
        RequestKind::Packet => {
            worker.duty.count();
            handler.on_receive(worker, session, payload)
        }
        RequestKind::Datagram => return encoded_datagram(handler, worker, session, payload),
        // A batch has come to its packets by now.
        RequestKind::Batch => Ok(()),
        RequestKind::Shed => shed(worker, session),
        RequestKind::Connect => handler.on_connect(worker, session),
        RequestKind::Close => handler.on_close(worker, session),
        RequestKind::BufferFull => handler.on_buffer_full(worker, session),
        RequestKind::BufferEmpty => handler.on_buffer_empty(worker, session),
    };
    worker.publish_tasks();
    if let Err(error) = result {
        fail(worker, session, &error);
    }
}

/// A packet that is not handled is answered, or costs its connection.
fn shed(worker: &mut Worker<'_>, session: Session) -> Result<()> {
    let shared = Arc::clone(&worker.duty.shared);
    shared.board.count_shed(worker.duty.id);
    match shared.listening().sheds.of(|| shared.sessions.listener(session)).reply() {
        Some(busy) => worker.send(session, busy),
        None => worker.close(session),
    }
}

/// The same for a datagram, which has no session.
pub(crate) fn datagram<H: Handler>(
    handler: &mut H,
    worker: &mut Worker<'_>,
    from: &DatagramClient,
    bytes: &[u8],
) {
    worker.duty.count();
    let result = handler.on_packet(worker, from, bytes);
    worker.publish_tasks();
    match result {
        Ok(()) => {}
        Err(error) if error.is_departure() => tracing::debug!("a datagram of {from}: {error}"),
        Err(error) => tracing::warn!("a datagram of {from}: {error}"),
    }
}

/// One that has come from a reactor.
fn encoded_datagram<H: Handler>(handler: &mut H, worker: &mut Worker<'_>, listener: Session, payload: &[u8]) {
    match (listener.listener(), datagram::decode(payload)) {
        (Some(listener), Some((peer, bytes))) => {
            datagram(handler, worker, &DatagramClient::new(listener, peer), bytes);
        }
        _ => tracing::error!("a datagram that a reactor has sent is malformed ({} bytes)", payload.len()),
    }
}

pub(crate) fn start<H: Handler>(handler: &mut H, worker: &mut Worker<'_>) -> Result<()> {
    let result = handler.on_worker_start(worker);
    worker.publish_tasks();
    result.map_err(|error| Error::Start(format!("on_worker_start: {error}")))
}

pub(crate) fn stop<H: Handler>(handler: &mut H, worker: &mut Worker<'_>) -> Result<()> {
    let result = handler.on_worker_stop(worker);
    worker.publish_tasks();
    result.map_err(|error| Error::Start(format!("on_worker_stop: {error}")))
}

/// Calls the user back for another reason than a message.
pub(crate) fn own<H: Handler>(handler: &mut H, worker: &mut Worker<'_>, cause: Cause) {
    match cause {
        Cause::Timer(id) => timer(handler, worker, id),
        Cause::Finished(finished) => finish(handler, worker, finished),
        Cause::Message(from, bytes) => pipe_message(handler, worker, from, &bytes),
        Cause::Exit => exit(handler, worker),
    }
    worker.publish_tasks();
}

fn finish<H: Handler>(handler: &mut H, worker: &mut Worker<'_>, Finished { id, result }: Finished) {
    match handler.on_finish(worker, id, result) {
        Ok(()) => {}
        Err(error) if error.is_departure() => tracing::debug!("task {id}: {error}"),
        Err(error) => tracing::warn!("task {id}: {error}"),
    }
}

fn pipe_message<H: Handler>(handler: &mut H, worker: &mut Worker<'_>, from: Peer, bytes: &[u8]) {
    log_message_error(from, handler.on_pipe_message(worker, from, bytes));
}

/// An error of a callback for a message costs nobody anything.
pub(crate) fn log_message_error(from: Peer, result: Result<()>) {
    match result {
        Ok(()) => {}
        Err(error) if error.is_departure() => tracing::debug!("a message from {from}: {error}"),
        Err(error) => tracing::warn!("a message from {from}: {error}"),
    }
}

fn exit<H: Handler>(handler: &mut H, worker: &mut Worker<'_>) {
    if let Err(error) = handler.on_worker_exit(worker) {
        tracing::warn!("on_worker_exit: {error}");
    }
}

fn timer<H: Handler>(handler: &mut H, worker: &mut Worker<'_>, timer: TimerId) {
    match handler.on_timer(worker, timer) {
        Ok(()) => {}
        Err(error) if error.is_departure() => tracing::debug!("timer {timer}: {error}"),
        Err(error) => tracing::warn!("timer {timer}: {error}"),
    }
}

/// That the peer has just left is no news.
fn fail(worker: &mut Worker<'_>, session: Session, error: &Error) {
    if error.is_departure() {
        tracing::debug!(%session, "{error}");
        return;
    }
    tracing::warn!(%session, "callback failed, its connection is closed: {error}");
    if let Err(error) = worker.close(session) {
        tracing::debug!(%session, "{error}");
    }
}

/// The panic's message and backtrace belong in the log, not on a stream that may lead nowhere.
pub(crate) fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = Backtrace::force_capture().to_string();
        tracing::error!("{panic}\n{}", of_the_user(&backtrace));
    }));
}

/// The frames between the panic's machinery and this file, which calls the user's code; all of them if they cannot be
/// told apart.
fn of_the_user(backtrace: &str) -> &str {
    let frames = || {
        let (_, below) = backtrace.split_once("rust_begin_unwind")?;
        let (_, below) = below.split_once("panic_fmt")?;
        let (frames, _) = below.split_once(file!())?;
        let (_, frames) = frames.split_once("\n")?;
        // The last of these frames is this file's own.
        let (frames, _) = frames.rsplit_once("\n")?;
        Some(frames.rsplit_once("\n")?.0)
    };
    frames().unwrap_or(backtrace)
}
