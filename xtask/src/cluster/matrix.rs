//! What a scenario is, on which combinations it runs, and what it is given.

use super::bed::Launch;
use super::log::Log;
use anyhow::{Result, bail};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// One value of each dimension of the matrix: which processes there are, which event backend they use, and what lies
/// between them, which in Base mode is nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Setup {
    pub(super) mode: &'static str,
    pub(super) backend: &'static str,
    pub(super) ipc: Option<&'static str>,
}

impl Setup {
    pub(super) fn is_base(self) -> bool {
        self.mode == BASE
    }
}

const PROCESS: &str = "process";
const BASE: &str = "base";

pub(super) const MODES: [&str; 2] = [PROCESS, BASE];
pub(super) const BACKENDS: [&str; 2] = ["epoll", "io_uring"];
pub(super) const IPCS: [&str; 2] = ["ring", "socketpair"];

/// The values that the command line allows, of which it leaves at least one each.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) modes: Vec<&'static str>,
    pub(super) backends: Vec<&'static str>,
    pub(super) ipcs: Vec<&'static str>,
}

/// On which combinations a scenario tells something new, in each of its modes.
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
    fn setups(self, mode: &'static str, choice: &Choice) -> Vec<Setup> {
        let no_channel = self != Self::Full || mode == BASE;
        let backends = if self == Self::Once { &choice.backends[..1] } else { &choice.backends };
        let ipcs = if no_channel { &choice.ipcs[..1] } else { &choice.ipcs };
        let setup = |backend, ipc| Setup { mode, backend, ipc: (mode != BASE).then_some(ipc) };
        backends.iter().flat_map(|backend| ipcs.iter().map(move |ipc| setup(*backend, *ipc))).collect()
    }
}

/// How files begin that the sanitizer writes, one for each process.
const ASAN_REPORT: &str = "asan";

pub(super) struct Scenario {
    pub(super) name: &'static str,
    /// One line for `--list`.
    pub(super) about: &'static str,
    pub(super) matrix: Matrix,
    /// The modes in which it makes sense.
    pub(super) modes: &'static [&'static str],
    /// When the watchdog ends it.
    pub(super) limit: Duration,
    pub(super) run: fn(&Cx) -> Result<()>,
}

impl Scenario {
    const fn new(
        matrix: Matrix,
        name: &'static str,
        about: &'static str,
        run: fn(&Cx) -> Result<()>,
    ) -> Self {
        Self { name, about, matrix, modes: &MODES, limit: Duration::from_secs(60), run }
    }

    /// Only in Process mode: it is about what only that has, or about what the mode does not matter to.
    pub(super) const fn in_process(self) -> Self {
        Self { modes: &[PROCESS], ..self }
    }

    /// Only in Base mode.
    pub(super) const fn in_base(self) -> Self {
        Self { modes: &[BASE], ..self }
    }

    /// The combinations to run when the command line allows these values.
    pub(super) fn setups(&self, choice: &Choice) -> Vec<Setup> {
        let modes = choice.modes.iter().filter(|mode| self.modes.contains(mode));
        modes.flat_map(|mode| self.matrix.setups(mode, choice)).collect()
    }
}

/// A scenario on the full matrix, with the usual time limit.
pub(super) const fn full(name: &'static str, about: &'static str, run: fn(&Cx) -> Result<()>) -> Scenario {
    Scenario::new(Matrix::Full, name, about, run)
}

/// A scenario of what has no channel between processes.
pub(super) const fn backends(
    name: &'static str,
    about: &'static str,
    run: fn(&Cx) -> Result<()>,
) -> Scenario {
    Scenario::new(Matrix::Backends, name, about, run)
}

/// A scenario that one combination settles.
pub(super) const fn once(name: &'static str, about: &'static str, run: fn(&Cx) -> Result<()>) -> Scenario {
    Scenario::new(Matrix::Once, name, about, run)
}

/// How long and how hard it storms in `vortex`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storm {
    pub(super) length: Duration,
    pub(super) clients: u32,
}

impl Default for Storm {
    /// As part of all scenarios.
    fn default() -> Self {
        Self { length: Duration::from_secs(20), clients: 16 }
    }
}

/// What a run of a scenario is given.
pub(super) struct Cx {
    pub(super) setup: Setup,
    pub(super) seed: u64,
    pub(super) storm: Storm,
    /// An empty directory of its own, removed afterwards.
    pub(super) dir: PathBuf,
    /// Where the examples lie that were built, and whether a sanitizer looks at them.
    pub(super) examples: PathBuf,
    pub(super) asan: bool,
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
        let launch = Launch::new(self, self.examples.join(name));
        if !self.asan {
            return launch;
        }
        // A worker that is to die of a signal dies of it. What a process of several is left with at its end is no leak: most
        // end by a kill or without destructors.
        let reports = self.dir.join(ASAN_REPORT);
        let options = format!("log_path={}:detect_leaks=0:handle_segv=0", reports.display());
        launch.env("ASAN_OPTIONS", &options)
    }

    /// What the sanitizer has to say of any process, which is nothing.
    pub(super) fn check_asan(&self) -> Result<()> {
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(ASAN_REPORT)) {
                bail!("{}", String::from_utf8_lossy(&std::fs::read(path)?));
            }
        }
        Ok(())
    }

    /// The testbed with the mode, backend and channel of this run, but no address to listen on.
    pub(super) fn testbed_bare(&self) -> Launch<'_> {
        self.set_up(self.example("testbed"))
    }

    /// The testbed whose workers die where `die_at` says, on a free TCP port of the loopback.
    pub(super) fn testbed_breakpoints(&self) -> Launch<'_> {
        self.set_up(self.example("testbed_breakpoints")).flag("listen", "tcp://127.0.0.1:0")
    }

    fn set_up<'a>(&self, launch: Launch<'a>) -> Launch<'a> {
        let Setup { mode, backend, ipc } = self.setup;
        let launch = launch.flag("mode", mode).flag("backend", backend);
        ipc.into_iter().fold(launch, |launch, ipc| launch.flag("ipc", ipc))
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

    fn nothing(_: &Cx) -> Result<()> {
        Ok(())
    }

    #[test]
    fn the_matrix_obeys_the_command_line() {
        let everything = || Choice { modes: MODES.into(), backends: BACKENDS.into(), ipcs: IPCS.into() };
        let (full, once) = (full("a", "", nothing), once("b", "", nothing).in_process());
        assert_eq!(full.setups(&everything()).len(), 4 + 2);
        let first = Setup { mode: "process", backend: "epoll", ipc: Some("ring") };
        assert_eq!(once.setups(&everything()), [first]);
        let base = Choice { modes: vec!["base"], ..everything() };
        assert!(once.setups(&base).is_empty());
        assert!(full.setups(&base).iter().all(|setup| setup.is_base() && setup.ipc.is_none()));
        let backends = backends("c", "", nothing).in_process();
        let backends = backends.setups(&Choice { ipcs: vec!["socketpair"], ..everything() });
        assert!(backends.len() == 2 && backends[0].backend != backends[1].backend);
        let only = full.setups(&Choice { backends: vec!["io_uring"], ..everything() });
        assert!(only.len() == 3 && only.iter().all(|setup| setup.backend == "io_uring"));
    }

    #[test]
    fn unknown_values_are_refused() {
        assert_eq!(choose("--ipc", &IPCS, "ring").unwrap(), "ring");
        assert!(choose("--ipc", &IPCS, "pipe").unwrap_err().to_string().contains("socketpair"));
    }
}
