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
    /// How task workers learn of tasks.
    pub(super) task_ipc: &'static str,
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
pub(super) const TASK_IPCS: [&str; 4] = ["ring", "unix", "msgqueue", "msgqueue_preemptive"];

/// The values that the command line allows, of which it leaves at least one each.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) modes: Vec<&'static str>,
    pub(super) backends: Vec<&'static str>,
    pub(super) ipcs: Vec<&'static str>,
    /// None for those that the scenario is about.
    pub(super) task_ipcs: Vec<&'static str>,
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
        let task_ipc = TASK_IPCS[0];
        let setup = |backend, ipc| Setup { mode, backend, ipc: (mode != BASE).then_some(ipc), task_ipc };
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
    /// The ways of tasks on which it tells something new: the first on all combinations, each other one on one.
    task_ipcs: &'static [&'static str],
    /// Whether it would disturb others beside it, or they it.
    pub(super) alone: bool,
    /// Whether it runs only if its whole name is given.
    pub(super) by_name: bool,
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
        let limit = Duration::from_secs(60);
        let (modes, task_ipcs) = (&MODES, &["ring"]);
        Self { name, about, matrix, modes, task_ipcs, alone: false, by_name: false, limit, run }
    }

    /// Only in Process mode: it is about what only that has, or about what the mode does not matter to.
    pub(super) const fn in_process(self) -> Self {
        Self { modes: &[PROCESS], ..self }
    }

    /// Not beside others: it takes all of something that the machine has once, or measures it, or has little time.
    pub(super) const fn alone(self) -> Self {
        Self { alone: true, ..self }
    }

    /// Only if its whole name is given: it takes so much time.
    pub(super) const fn by_name(self, limit: Duration) -> Self {
        Self { by_name: true, limit, ..self }
    }

    /// On every way of tasks.
    pub(super) const fn by_post(self) -> Self {
        Self { task_ipcs: &TASK_IPCS, ..self }
    }

    /// Only in Process mode, and where tasks go by message queues.
    pub(super) const fn in_queues(self) -> Self {
        let [_, _, queues @ ..] = &TASK_IPCS;
        Self { task_ipcs: queues, ..self.in_process() }
    }

    /// Only in Base mode.
    pub(super) const fn in_base(self) -> Self {
        Self { modes: &[BASE], ..self }
    }

    /// The combinations to run when the command line allows these values.
    pub(super) fn setups(&self, choice: &Choice) -> Vec<Setup> {
        let modes = choice.modes.iter().filter(|mode| self.modes.contains(mode));
        let setups: Vec<Setup> = modes.flat_map(|mode| self.matrix.setups(mode, choice)).collect();
        let by = |setups: &[Setup], task_ipc| -> Vec<Setup> {
            setups.iter().map(|setup| Setup { task_ipc, ..*setup }).collect()
        };
        if !choice.task_ipcs.is_empty() {
            // What says nothing of one of them may be tried on any.
            let fits =
                |task_ipc: &&&str| self.task_ipcs.iter().any(|known| known == *task_ipc || *known == "ring");
            let chosen = choice.task_ipcs.iter().filter(fits);
            return chosen.flat_map(|task_ipc| by(&setups, task_ipc)).collect();
        }
        let [first, others @ ..] = self.task_ipcs else { return setups };
        let others = others.iter().flat_map(|task_ipc| by(&setups[..setups.len().min(1)], task_ipc));
        by(&setups, first).into_iter().chain(others).collect()
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
        let Setup { mode, backend, ipc, task_ipc } = self.setup;
        let launch = launch.flag("mode", mode).flag("backend", backend).flag("task-ipc-mode", task_ipc);
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
        let everything = || Choice {
            modes: MODES.into(),
            backends: BACKENDS.into(),
            ipcs: IPCS.into(),
            task_ipcs: Vec::new(),
        };
        let (full, lone) = (full("a", "", nothing), once("b", "", nothing).in_process());
        assert_eq!(full.setups(&everything()).len(), 4 + 2);
        let first = Setup { mode: "process", backend: "epoll", ipc: Some("ring"), task_ipc: "ring" };
        assert_eq!(lone.setups(&everything()), [first]);
        let by_post = once("d", "", nothing).in_process().by_post().setups(&everything());
        assert_eq!(by_post.iter().map(|setup| setup.task_ipc).collect::<Vec<_>>(), TASK_IPCS);
        let chosen = full.setups(&Choice { task_ipcs: vec!["unix"], ..everything() });
        assert!(chosen.len() == 6 && chosen.iter().all(|setup| setup.task_ipc == "unix"));
        let base = Choice { modes: vec!["base"], ..everything() };
        assert!(lone.setups(&base).is_empty());
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
