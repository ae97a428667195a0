//! `echo`: requests on connections that stay open.

use super::under_load::Shape;
use super::{Plan, Planned};
use crate::Protocol;
use crate::options::{Options, or};
use crate::subject::{Chosen, Program};
use anyhow::Result;

const VARIANTS: &[&str] = &["base-epoll", "ring-epoll", "socketpair-epoll", "base-uring", "ring-uring"];
const PEERS: &[&str] = &["bare", "bare-yield", "tokio", "monoio", "redis"];
/// Redis is there for its name, where its command is much like an echo.
const REDIS_SIZE: usize = 128;

pub(super) fn plan(options: &Options) -> Result<Plan> {
    let Chosen { subjects, skipped } = Chosen::from(options, VARIANTS, PEERS)?;
    let mut cells = Vec::new();
    for protocol in or(&options.framings, &[Protocol::Raw, Protocol::Length]) {
        for size in or(&options.sizes, &[128, 4 << 10, 64 << 10]) {
            for depth in or(&options.depths, &[1, 16]) {
                for connections in or(&options.connections, &[64]) {
                    let rate = options.rate;
                    let seconds = options.seconds;
                    let shape =
                        Shape { protocol, size, depth, connections, rate, workers: 2, reactors: 2, seconds };
                    let serves = |program| {
                        program != Program::Redis || (size, protocol) == (REDIS_SIZE, Protocol::Raw)
                    };
                    let entries = subjects.iter().filter(|subject| serves(subject.program));
                    cells.push(Planned {
                        title: shape.title(),
                        point: None,
                        entries: entries.map(|subject| shape.entry(subject)).collect(),
                    });
                }
            }
        }
    }
    Ok(Plan { cells, skipped })
}
