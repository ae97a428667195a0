//! `scaling`: how the cost of a small request grows with workers, with reactors and with connections.

use super::under_load::Shape;
use super::{Plan, Planned};
use crate::Protocol;
use crate::options::{Options, or};
use crate::report::Point;
use crate::subject::{Chosen, Subject};
use anyhow::Result;

const VARIANTS: &[&str] = &["base-epoll", "ring-epoll"];
const WORKERS: &[usize] = &[1, 2, 4, 8];
const REACTORS: &[usize] = &[1, 2, 4];
const CONNECTIONS: &[usize] = &[64, 256, 1000, 4000, 10_000];

pub(super) fn plan(options: &Options) -> Result<Plan> {
    let Chosen { subjects, skipped } = Chosen::from(options, VARIANTS, &["tokio"])?;
    let shape = Shape {
        protocol: Protocol::Raw,
        size: 128,
        depth: 1,
        connections: 64,
        rate: None,
        workers: 2,
        reactors: 2,
        seconds: options.seconds,
    };
    let cell = |axis, at: usize, shape: Shape, subjects: &[Subject]| {
        let mut entries: Vec<_> = subjects.iter().map(|subject| shape.entry(subject)).collect();
        // Medians of many points, not system calls, make a curve.
        entries.iter_mut().for_each(|entry| entry.count = None);
        Planned { title: format!("{at} {axis}"), point: Some(Point { axis, at: at as f64 }), entries }
    };
    let mut cells = Vec::new();
    for &workers in WORKERS {
        cells.push(cell("workers", workers, Shape { workers, ..shape }, &subjects));
    }
    let with_reactors: Vec<Subject> =
        subjects.iter().filter(|subject| subject.has_reactors()).cloned().collect();
    for &reactors in if with_reactors.is_empty() { &[] } else { REACTORS } {
        cells.push(cell("reactors", reactors, Shape { reactors, ..shape }, &with_reactors));
    }
    for connections in or(&options.connections, CONNECTIONS) {
        cells.push(cell("connections", connections, Shape { connections, ..shape }, &subjects));
    }
    Ok(Plan { cells, skipped })
}
