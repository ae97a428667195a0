//! The benches. Each is a function from the options to a [`Plan`]: cells, with an entry for each subject. The one
//! runner measures every entry in every round, in an order that is random anew each time, so that what changes on the
//! machine in the meantime meets all of them.

mod beside;
mod broadcast;
mod connections;
mod echo;
mod fairness;
mod fork;
mod idle;
mod ipc;
mod large;
mod reload;
mod respawn;
mod scaling;
mod slow;
mod start;
mod table;
mod tasks;
mod tls;
mod under_load;

use crate::account::Usage;
use crate::options::Options;
use crate::report::{Cell, Point, Report, Row};
use crate::sample::{CPU, MEMORY, P50, P99, P999, SWITCHES, Sample};
use anyhow::{Result, bail};

/// A bench.
#[derive(Debug)]
pub struct Bench {
    /// What the command line calls it.
    pub name: &'static str,
    /// What it measures, in a line.
    pub about: &'static str,
    plan: fn(&Options) -> Result<Plan>,
}

/// All of them.
pub const BENCHES: &[Bench] = &[
    Bench { name: "echo", about: "requests on open connections: sizes, depths, framings", plan: echo::plan },
    Bench { name: "large", about: "large packets with length framing", plan: large::plan },
    Bench { name: "connections", about: "connect, one request, close", plan: connections::plan },
    Bench { name: "idle", about: "10,000 idle connections beside 64 active ones", plan: idle::plan },
    Bench { name: "scaling", about: "cost by workers, reactors and connections", plan: scaling::plan },
    Bench { name: "ipc", about: "channels and doorbells between two processes", plan: ipc::plan },
    Bench {
        name: "respawn",
        about: "kill -9 of a worker to its successor's first reply",
        plan: respawn::plan,
    },
    Bench {
        name: "reload",
        about: "latencies under a fixed rate, with a reload every second and without",
        plan: reload::plan,
    },
    Bench {
        name: "tasks",
        about: "tasks there and back: 64 in flight, and one at a time",
        plan: tasks::plan,
    },
    Bench {
        name: "fairness",
        about: "latencies by dispatch rule, where requests take between 0.1 and 50 ms",
        plan: fairness::plan,
    },
    Bench {
        name: "broadcast",
        about: "from one worker to 10,000 connections, against a loop of sends",
        plan: broadcast::plan,
    },
    Bench {
        name: "slow",
        about: "1,000 connections beside one that does not read, and without it",
        plan: slow::plan,
    },
    Bench { name: "tls", about: "handshakes and large replies over TLS 1.3", plan: tls::plan },
    Bench { name: "fork", about: "fork from a small and from a 500 MB process", plan: fork::plan },
    Bench {
        name: "start",
        about: "start to first reply, SIGTERM to exit, 2 and 64 workers",
        plan: start::plan,
    },
    Bench {
        name: "table",
        about: "a million rows that processes share: read, count, write",
        plan: table::plan,
    },
];

/// What is to be measured.
#[derive(Default)]
struct Plan {
    cells: Vec<Planned>,
    skipped: Vec<String>,
}

/// A cell that is to be measured.
struct Planned {
    title: String,
    point: Option<Point>,
    entries: Vec<Entry>,
}

/// A subject in a cell: how it is measured once.
struct Entry {
    name: String,
    measure: Box<dyn Fn() -> Result<Sample>>,
    /// What is found out once, in a run of its own: system calls.
    count: Option<Box<dyn Fn() -> Result<Counted>>>,
}

/// System calls, as metrics and by name.
struct Counted {
    sample: Sample,
    calls: Vec<(String, f64)>,
}

impl Entry {
    fn new(name: impl Into<String>, measure: impl Fn() -> Result<Sample> + 'static) -> Entry {
        Entry { name: name.into(), measure: Box::new(measure), count: None }
    }

    fn counting(mut self, count: impl Fn() -> Result<Counted> + 'static) -> Entry {
        self.count = Some(Box::new(count));
        self
    }
}

impl Bench {
    /// The benches of these names; all, if there is none.
    ///
    /// # Errors
    /// A name is unknown.
    pub fn named(names: &[String]) -> Result<Vec<&'static Bench>> {
        for name in names {
            if BENCHES.iter().all(|bench| bench.name != name) {
                bail!("no bench named {name:?}; --list names them");
            }
        }
        let wanted = |bench: &&Bench| names.is_empty() || names.iter().any(|name| name == bench.name);
        Ok(BENCHES.iter().filter(wanted).collect())
    }

    /// Measures, and tells `progress` what it is about to measure.
    ///
    /// # Errors
    /// The options name something that is not there. Whatever else goes wrong stands in the report.
    pub fn run(&self, options: &Options, progress: impl Fn(&str)) -> Result<Report> {
        let plan = (self.plan)(options)?;
        let count = plan.cells.len();
        let cells = plan.cells.into_iter().enumerate().map(|(index, cell)| {
            progress(&format!("{} {} of {count}: {}", self.name, index + 1, cell.title));
            cell.run(options.runs, |what| progress(&format!("    {what}")))
        });
        let cells = cells.collect();
        Ok(Report { bench: self.name, about: self.about, cells, skipped: plan.skipped })
    }
}

impl Planned {
    fn run(self, runs: usize, progress: impl Fn(&str)) -> Cell {
        let new = |entry: &Entry| Row { name: entry.name.clone(), ..Row::default() };
        let mut rows: Vec<Row> = self.entries.iter().map(new).collect();
        let mut order: Vec<usize> = (0..rows.len()).collect();
        for round in 1..=runs {
            fastrand::shuffle(&mut order);
            for &index in &order {
                let (entry, row) = (&self.entries[index], &mut rows[index]);
                if row.failure.is_some() {
                    continue;
                }
                progress(&format!("round {round} of {runs}: {}", entry.name));
                match (entry.measure)() {
                    Ok(sample) => row.runs.push(sample),
                    Err(error) => row.failure = Some(format!("{error:#}")),
                }
            }
        }
        for (entry, row) in self.entries.iter().zip(&mut rows).filter(|(_, row)| row.failure.is_none()) {
            let Some(count) = &entry.count else { continue };
            progress(&format!("system calls: {}", entry.name));
            match count() {
                Ok(counted) => {
                    row.runs.push(counted.sample);
                    row.calls = counted.calls;
                }
                // The measurements stand without it.
                Err(error) => progress(&format!("system calls of {} not counted: {error:#}", entry.name)),
            }
        }
        Cell { title: self.title, point: self.point, rows }
    }
}

/// What it took to serve so many, with the latencies at p50, p99 and p99.9 in microseconds.
fn costs(used: &Usage, memory_kib: u64, served: f64, [p50, p99, p999]: [f64; 3]) -> Sample {
    vec![
        (&CPU, used.cpu.as_secs_f64() * 1e6 / served),
        (&P50, p50),
        (&P99, p99),
        (&P999, p999),
        (&SWITCHES, used.switches as f64 / served),
        (&MEMORY, memory_kib as f64 / 1024.0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::CPU;
    use std::cell::Cell as Counter;
    use std::rc::Rc;

    #[test]
    fn all_are_measured_in_every_round_until_they_fail() {
        let tries = Rc::new(Counter::new(0));
        let failing = Rc::clone(&tries);
        let cell = Planned {
            title: "a cell".into(),
            point: None,
            entries: vec![
                Entry::new("good", || Ok(vec![(&CPU, 1.0)])),
                Entry::new("bad", move || {
                    failing.set(failing.get() + 1);
                    bail!("no")
                }),
            ],
        };
        let cell = cell.run(3, |_| {});
        assert_eq!((cell.rows[0].runs.len(), cell.rows[1].failure.as_deref()), (3, Some("no")));
        assert_eq!(tries.get(), 1);
    }

    #[test]
    fn benches_are_found_by_name() {
        assert_eq!(Bench::named(&[]).unwrap().len(), BENCHES.len());
        assert_eq!(Bench::named(&["ipc".into()]).unwrap()[0].name, "ipc");
        assert!(Bench::named(&["speed".into()]).is_err());
    }
}
