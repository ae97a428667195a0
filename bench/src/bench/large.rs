//! `large`: packets of up to 64 MiB with length framing, on few connections.

use super::under_load::Shape;
use super::{Plan, Planned};
use crate::Protocol;
use crate::options::{Options, or};
use crate::subject::Chosen;
use anyhow::Result;

const VARIANTS: &[&str] = &["base-epoll", "ring-epoll", "socketpair-epoll"];

pub(super) fn plan(options: &Options) -> Result<Plan> {
    let Chosen { subjects, skipped } = Chosen::from(options, VARIANTS, &["tokio"])?;
    let mut cells = Vec::new();
    for size in or(&options.sizes, &[64 << 10, 1 << 20, 16 << 20, 64 << 20]) {
        for connections in or(&options.connections, &[4]) {
            let shape = Shape {
                protocol: Protocol::Length,
                size,
                depth: 1,
                connections,
                rate: options.rate,
                workers: 2,
                reactors: 2,
                seconds: options.seconds,
            };
            let entries = subjects.iter().map(|subject| shape.entry(subject)).collect();
            cells.push(Planned { title: shape.title(), point: None, entries });
        }
    }
    Ok(Plan { cells, skipped })
}
