//! Measurements that fork. A process that does so must have one thread, which the driver has not; so these run in a
//! program of their own, `probe`, that prints one line of JSON.

pub mod bell;
pub mod channel;
pub mod fork;
mod pair;

use crate::calls::beside_this;
use crate::sample::{Metric, Sample};
use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value};
use std::process::Command;

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
    let output = Command::new(beside_this("probe")?).args(args).output().context("probe")?;
    ensure!(output.status.success(), "probe: {}", String::from_utf8_lossy(&output.stderr).trim());
    let map: Map<String, Value> = serde_json::from_slice(&output.stdout).context("what probe printed")?;
    let value = |metric: &&'static Metric| {
        let value = map.get(metric.key).and_then(Value::as_f64);
        Ok((*metric, value.with_context(|| format!("probe has not measured {}", metric.key))?))
    };
    metrics.iter().map(value).collect()
}
