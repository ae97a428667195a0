//! What a scenario is, on which combinations it runs, and what it is given.

use super::bed::Launch;
use super::log::Log;
use anyhow::{Result, bail};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// One value of each dimension of the matrix: which event backend, and what lies between the processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Setup {
    pub(super) backend: &'static str,
    pub(super) ipc: &'static str,
}

pub(super) const BACKENDS: [&str; 2] = ["epoll", "io_uring"];
pub(super) const IPCS: [&str; 2] = ["ring", "socketpair"];

/// On which combinations a scenario tells something new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Matrix {
    /// Each backend with each kind of channel.
    Full,
    /// No channel takes part: each backend, with the first channel that the command line leaves.
    Backends,
    /// What is tested lies above both: the first combination that the command line leaves.
    Once,
}

impl Matrix {
    /// The combinations to run when the command line allows these values.
    pub(super) fn setups(self, backends: &[&'static str], ipcs: &[&'static str]) -> Vec<Setup> {
        let all = backends.iter().flat_map(|&backend| ipcs.iter().map(move |&ipc| Setup { backend, ipc }));
        match self {
            Self::Full => all.collect(),
            Self::Backends => all.filter(|setup| Some(&setup.ipc) == ipcs.first()).collect(),
            Self::Once => all.take(1).collect(),
        }
    }
}

pub(super) struct Scenario {
    pub(super) name: &'static str,
    /// One line for `--list`.
    pub(super) about: &'static str,
    pub(super) matrix: Matrix,
    /// When the watchdog ends it.
    pub(super) limit: Duration,
    pub(super) run: fn(&Cx) -> Result<()>,
}

/// A scenario on the full matrix, with the usual time limit.
pub(super) const fn full(name: &'static str, about: &'static str, run: fn(&Cx) -> Result<()>) -> Scenario {
    Scenario { name, about, matrix: Matrix::Full, limit: Duration::from_secs(60), run }
}

/// A scenario of what has no channel between processes.
pub(super) const fn backends(
    name: &'static str,
    about: &'static str,
    run: fn(&Cx) -> Result<()>,
) -> Scenario {
    Scenario { name, about, matrix: Matrix::Backends, limit: Duration::from_secs(60), run }
}

/// A scenario that one combination settles.
pub(super) const fn once(name: &'static str, about: &'static str, run: fn(&Cx) -> Result<()>) -> Scenario {
    Scenario { name, about, matrix: Matrix::Once, limit: Duration::from_secs(60), run }
}

/// What a run of a scenario is given.
pub(super) struct Cx {
    pub(super) setup: Setup,
    pub(super) seed: u64,
    /// An empty directory of its own, removed afterwards.
    pub(super) dir: PathBuf,
    /// Where the examples lie that were built.
    pub(super) examples: PathBuf,
    /// The output of every process that was started, for the report of a failure.
    pub(super) logs: Mutex<Vec<Arc<Log>>>,
}

impl Cx {
    /// Random numbers that the seed repeats.
    pub(super) fn rng(&self) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.seed)
    }

    /// A program from `examples/`, without any flag.
    pub(super) fn example(&self, name: &str) -> Launch<'_> {
        Launch::new(self, self.examples.join(name))
    }

    /// The testbed with the backend and channel of this run, but no address to listen on.
    pub(super) fn testbed_bare(&self) -> Launch<'_> {
        self.example("testbed").flag("backend", self.setup.backend).flag("ipc", self.setup.ipc)
    }

    /// The testbed on a free TCP port of the loopback.
    pub(super) fn testbed(&self) -> Launch<'_> {
        self.testbed_bare().flag("listen", "tcp://127.0.0.1:0")
    }

    pub(super) fn keep(&self, log: &Arc<Log>) {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(log));
    }
}

/// The value among those known that the command line names.
pub(super) fn choose(what: &str, known: &[&'static str], value: &str) -> Result<&'static str> {
    match known.iter().find(|known| **known == value) {
        Some(known) => Ok(known),
        None => bail!("{what} {value:?} is none of {known:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_matrix_obeys_the_command_line() {
        assert_eq!(Matrix::Full.setups(&BACKENDS, &IPCS).len(), 4);
        assert_eq!(Matrix::Once.setups(&BACKENDS, &IPCS), [Setup { backend: "epoll", ipc: "ring" }]);
        let backends = Matrix::Backends.setups(&BACKENDS, &["socketpair"]);
        assert!(backends.len() == 2 && backends[0].backend != backends[1].backend);
        let only = Matrix::Full.setups(&["io_uring"], &IPCS);
        assert!(only.len() == 2 && only.iter().all(|setup| setup.backend == "io_uring"));
    }

    #[test]
    fn unknown_values_are_refused() {
        assert_eq!(choose("--ipc", &IPCS, "ring").unwrap(), "ring");
        assert!(choose("--ipc", &IPCS, "pipe").unwrap_err().to_string().contains("socketpair"));
    }
}
