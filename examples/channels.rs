//! A parent and its forked child talk over each kind of channel: `cargo run --example channels`
//!
//! The child counts letters. Whatever carries the words, the two loops are the same.

use std::error::Error;
use std::time::Duration;

use rustix::process::{Pid, WaitOptions, waitpid};
use swoole_ipc::socketpair::Kind;
use swoole_ipc::{Receive, Transmit, msgqueue, ring, socketpair};
use swoole_sys::process::{Fork, fork, run_child};

/// Nothing here takes long; an example must not hang either.
const LIMIT: Option<Duration> = Some(Duration::from_secs(10));

fn main() -> Result<(), Box<dyn Error>> {
    // All channels exist before the fork; then each process drops the halves that it does not use.
    let ((to_child, requests), (replies, from_child)) =
        (ring::channel("there", 64 << 10)?, ring::channel("back", 64 << 10)?);
    converse("shared-memory ring", (to_child, from_child), (replies, requests))?;

    let ((to_child, requests), (replies, from_child)) =
        (socketpair::pair(Kind::SeqPacket)?, socketpair::pair(Kind::SeqPacket)?);
    converse("socketpair", (to_child, from_child), (replies, requests))?;

    let ((to_child, requests), (replies, from_child)) =
        (msgqueue::channel("there")?, msgqueue::channel("back")?);
    converse("message queue", (to_child, from_child), (replies, requests))?;
    Ok(())
}

fn converse<S: Transmit, R: Receive>(
    channel: &str,
    parent: (S, R),
    child: (S, R),
) -> Result<(), Box<dyn Error>> {
    let child_pid = match fork()? {
        Fork::Child => run_child(move || {
            drop(parent);
            count_letters(child.0, child.1)
        }),
        Fork::Parent(pid) => pid,
    };
    drop(child);
    let (mut sender, mut receiver) = parent;

    let long = "o".repeat(1 << 20);
    let mut reply = Vec::new();
    for word in ["swoole", "", &long] {
        sender.send(word.as_bytes(), LIMIT)?;
        receiver.recv(&mut reply, LIMIT)?;
        println!(
            "{channel}: process {} counts {} letters",
            child_pid.as_raw_pid(),
            String::from_utf8_lossy(&reply)
        );
    }
    // The child's next receive says that nobody is there any more: that is how it ends.
    drop(sender);
    report(channel, child_pid)
}

/// The life of the child: a number for each word, until nobody sends any more.
fn count_letters(mut replies: impl Transmit, mut requests: impl Receive) -> i32 {
    let mut word = Vec::new();
    loop {
        match requests.recv(&mut word, LIMIT) {
            Ok(()) => {}
            Err(swoole_ipc::Error::PeerGone) => return 0,
            Err(error) => {
                eprintln!("{error}");
                return 1;
            }
        }
        if let Err(error) = replies.send(word.len().to_string().as_bytes(), LIMIT) {
            eprintln!("{error}");
            return 1;
        }
    }
}

fn report(channel: &str, child: Pid) -> Result<(), Box<dyn Error>> {
    let code = waitpid(Some(child), WaitOptions::empty())?.and_then(|(_, status)| status.exit_status());
    match code {
        Some(0) => println!("{channel}: the child saw the end and left"),
        other => return Err(format!("{channel}: the child ended with {other:?}").into()),
    }
    Ok(())
}
