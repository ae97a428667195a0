//! Two networks of their own with a wire between them, on whose far end a client can vanish without a word.

use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};

/// The server's end.
pub(super) const NEAR: &str = "10.9.0.1";
/// The end that can vanish.
pub(super) const FAR: &str = "10.9.0.2";

/// This thread is in the near network, and so is whatever it starts, until this is dropped.
pub(super) struct Wire {
    before: OwnedFd,
    near: Network,
    far: Network,
}

/// A network, which there is as long as this is (`network_namespaces(7)`).
struct Network {
    /// Waits for the end of its input, so that there is somebody in it.
    holder: Child,
    file: OwnedFd,
}

impl Network {
    fn new() -> Result<Option<Self>> {
        let begin = "ip link set lo up && echo up && exec cat";
        let mut command = Command::new("unshare");
        command.args(["--net", "--", "sh", "-c", begin]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = command.stderr(Stdio::null()).spawn().context("start unshare (util-linux)")?;
        let mut said = [0; 3];
        let begun = holder.stdout.take().context("stdout is piped")?.read_exact(&mut said);
        if begun.is_err() {
            holder.wait()?;
            return Ok(None);
        }
        let file = File::open(format!("/proc/{}/ns/net", holder.id()))?.into();
        Ok(Some(Self { holder, file }))
    }

    fn enter(&self) -> Result<()> {
        enter(self.file.as_fd())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The end of its input is its end.
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

fn enter(network: std::os::fd::BorrowedFd<'_>) -> Result<()> {
    move_into_link_name_space(network, Some(LinkNameSpaceType::Network)).context("enter a network")
}

/// Runs `ip` with these words in the network of this thread.
fn ip(words: &str) -> Result<()> {
    let output = Command::new("ip").args(words.split(' ')).output().context("start ip (iproute2)")?;
    ensure!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

impl Wire {
    /// `None`, and a word about it, where this process may not have networks of its own.
    pub(super) fn lay() -> Result<Option<Self>> {
        let (Some(near), Some(far)) = (Network::new()?, Network::new()?) else {
            println!("        note: skipped, only root may have a network with clients that vanish");
            return Ok(None);
        };
        let wire = Self { before: File::open("/proc/thread-self/ns/net")?.into(), near, far };
        wire.near.enter()?;
        ip(&format!("link add near type veth peer name far netns {}", wire.far.holder.id()))?;
        ip(&format!("address add {NEAR}/24 dev near"))?;
        ip("link set near up")?;
        wire.far(|| {
            ip(&format!("address add {FAR}/24 dev far"))?;
            ip("link set far up")
        })?;
        Ok(Some(wire))
    }

    /// From now on, what was not acknowledged is sent again so late that nothing of that falls into a scenario's looks.
    pub(super) fn delay_repeats(&self) -> Result<()> {
        ip(&format!("route change 10.9.0.0/24 dev near src {NEAR} rto_min 30s"))
    }

    /// Does this in the far network: a socket that is made there stays there.
    pub(super) fn far<T>(&self, action: impl FnOnce() -> Result<T>) -> Result<T> {
        self.far.enter()?;
        let result = action();
        self.near.enter()?;
        result
    }

    /// From now on, whatever comes to [`FAR`] is lost, and nobody is told.
    pub(super) fn cut(&self) -> Result<()> {
        self.far(|| ip(&format!("route replace blackhole {FAR} table local")))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // The thread of a scenario ends with it anyway.
        let _ = enter(self.before.as_fd());
    }
}
