//! Measurements that fork. A process that does so must have one thread, which the driver has not; so these run in a
//! program of their own, `probe`, that prints one line of JSON.

pub mod bell;
pub mod channel;
pub mod fork;
mod pair;
mod redis;
pub mod rows;

use crate::calls::beside_this;
use crate::sample::{Metric, Sample};
use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::{Map, Value};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Longer than any measurement may take, with all its limits.
const LIMIT: Duration = Duration::from_secs(700);

/// What `probe` prints of a sample.
pub fn to_json(sample: &Sample) -> String {
    let map: Map<String, Value> =
        sample.iter().map(|(metric, value)| (metric.key.to_owned(), (*value).into())).collect();
    Value::from(map).to_string()
}

/// Runs `probe` with these arguments, and takes these metrics from what it prints.
///
/// # Errors
/// It fails, or one of the metrics is missing.
pub fn run(args: &[String], metrics: &[&'static Metric]) -> Result<Sample> {
    let mut command = Command::new(beside_this("probe")?);
    command.args(args).env("RUST_BACKTRACE", "0").stdin(Stdio::null());
    let mut probe = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("probe")?;
    // What it prints fits into a pipe.
    if !ends_within(&probe, LIMIT)? {
        probe.kill()?;
        probe.wait()?;
        bail!("probe has not ended after {LIMIT:?}");
    }
    let output = probe.wait_with_output()?;
    ensure!(output.status.success(), "probe: {}", String::from_utf8_lossy(&output.stderr).trim());
    let map: Map<String, Value> = serde_json::from_slice(&output.stdout).context("what probe printed")?;
    let value = |metric: &&'static Metric| {
        let value = map.get(metric.key).and_then(Value::as_f64);
        Ok((*metric, value.with_context(|| format!("probe has not measured {}", metric.key))?))
    };
    metrics.iter().map(value).collect()
}

fn ends_within(process: &Child, limit: Duration) -> Result<bool> {
    let descriptor = pidfd_open(Pid::from_child(process), PidfdFlags::empty())?;
    let ended = poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&Timespec::try_from(limit)?))?;
    Ok(ended == 1)
}
