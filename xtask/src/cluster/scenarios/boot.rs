//! Starts that fail, and workers that fail to start.

use crate::cluster::bed::{Launch, PATIENCE};
use crate::cluster::log::Source;
use crate::cluster::matrix::{Cx, Scenario, full, once};
use crate::cluster::proc;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

pub(super) static ALL: &[Scenario] = &[
    full(
        "crash_on_start",
        "a worker that never starts is retried ever slower, the others serve",
        crash_on_start,
    )
    .in_process()
    // It measures pauses.
    .alone(),
    full(
        "worker_start_timeout",
        "a successor that does not get done with its start is killed, the reload stops, the others serve",
        worker_start_timeout,
    ),
    full(
        "restart_intensity",
        "a worker that fails to start again and again is a failed one, and the statistics say so",
        restart_intensity,
    )
    .in_process(),
    once("restart_period", "but not when its failures are too far apart", restart_period).in_process(),
    once("start_with_threads", "a process with two threads is refused", start_with_threads).in_process(),
    once("start_port_taken", "a taken port is named", start_port_taken).in_process(),
    once("start_port_privileged", "a privileged port is named", start_port_privileged).in_process(),
    once(
        "start_worker_num",
        "no workers, and absurdly many, are refused with the valid range",
        start_worker_num,
    )
    .in_process(),
    once("start_bad_config", "unknown keys and impossible values are named", start_bad_config).in_process(),
    once("start_pid_dir_missing", "a PID file whose directory is missing is named", start_pid_dir_missing)
        .in_process(),
    once("start_memory_short", "address space too small for the shared memory is said", start_memory_short)
        .in_process(),
    once("start_file_size_short", "a file size limit below the shared memory is said", start_file_size_short)
        .in_process(),
    full("start_descriptors_short", "too few descriptors are said", start_descriptors_short),
];

fn crash_on_start(cx: &Cx) -> Result<()> {
    let bed =
        cx.testbed().flag("worker-num", 3).flag("crash-on-start", 1).flag("dispatch-mode", "idle").start()?;
    let mut client = bed.connect()?;
    let start = Instant::now();
    let lines = bed.log.wait_count("on_worker_error worker=1 ", 5, PATIENCE)?;
    client.expect("echo the others serve", "the others serve")?;
    ensure!(
        bed.log.wait_line(Source::Stderr, &["worker 1", "back-off"], PATIENCE).is_ok(),
        "no back-off in the log"
    );
    // Five starts that failed at once have to be further and further apart.
    let gaps: Vec<Duration> = lines.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
    ensure!(
        gaps[3] > gaps[1] && gaps[3] >= Duration::from_millis(100),
        "no growing pauses between starts: {gaps:?}"
    );
    let count = bed.worker_errors().len();
    ensure!(count < 30, "{count} starts in {:?} are no back-off", start.elapsed());
    for round in 0..20 {
        client.expect(&format!("echo {round}"), &round.to_string())?;
        let worker = client.worker()?;
        ensure!(worker != 1, "worker 1 answered, which never started");
    }
    bed.stop()?;
    Ok(())
}

fn worker_start_timeout(cx: &Cx) -> Result<()> {
    let launch = cx.testbed().flag("worker-num", 2).flag("hang-on-start", "0:2");
    let bed = launch.flag("worker-start-timeout", 0.4).start()?;
    let (mut hanging, mut other) = (bed.connect_to_worker(0)?, bed.connect_to_worker(1)?);
    let before = bed.lives();
    bed.signal_master(Signal::USR1)?;
    bed.log.wait_line(Source::Stderr, &["worker 0", "worker_start_timeout"], PATIENCE)?;
    bed.log.wait_line(Source::Stderr, &["reload aborted", "1 slots keep"], PATIENCE)?;
    // The next one starts, and nobody's connection was lost.
    hanging.expect("echo again", "again")?;
    let generation: u32 = hanging.ask_field("whoami", "generation")?;
    ensure!(generation == 3, "generation {generation}");
    let pid: i32 = other.ask_field("whoami", "pid")?;
    ensure!(pid == before[&1].pid, "worker 1 was replaced all the same");
    bed.stop()?;
    Ok(())
}

fn restart_intensity(cx: &Cx) -> Result<()> {
    let launch = cx.testbed().flag("worker-num", 2).flag("crash-on-start", 1).flag("dispatch-mode", "idle");
    let bed = launch.flag("restart-intensity", 3).start()?;
    let mut client = bed.connect_to_worker(0)?;
    let mut seen = Vec::new();
    proc::until("worker 1 to be a failed one", PATIENCE, || {
        let stats = client.ask("stats").ok()?;
        let state =
            stats.split("\"id\":1,").nth(1)?.split("\"state\":\"").nth(1)?.split('"').next()?.to_owned();
        let failed = state == "failed";
        seen.push(state);
        failed.then_some(())
    })?;
    ensure!(client.ask("stats")?.contains("\"state\":\"running\""), "worker 0 does not run");
    bed.log.wait_line(Source::Stderr, &["worker 1 keeps failing (3 times"], PATIENCE)?;
    let known = ["starting", "running", "backoff", "failed"];
    ensure!(seen.iter().all(|state| known.contains(&state.as_str())), "{seen:?}");
    bed.stop()?;
    Ok(())
}

fn restart_period(cx: &Cx) -> Result<()> {
    let launch = cx.testbed().flag("worker-num", 2).flag("crash-on-start", 1).flag("dispatch-mode", "idle");
    let bed = launch.flag("restart-intensity", 7).flag("restart-period", 1).start()?;
    // They are further and further apart: the first seven take 1.5 s, and another comes 1.6 s later.
    bed.log.wait_count("on_worker_error worker=1", 8, PATIENCE)?;
    let failing = bed.log.texts(Source::Stderr).into_iter().find(|line| line.contains("keeps failing"));
    ensure!(failing.is_none(), "of seven deaths, the first is too long ago: {failing:?}");
    bed.stop()?;
    Ok(())
}

fn start_with_threads(cx: &Cx) -> Result<()> {
    cx.testbed().word("--spawn-thread").refused(&["2 threads"])
}

fn start_port_taken(cx: &Cx) -> Result<()> {
    let holder = TcpListener::bind("127.0.0.1:0")?;
    let address = format!("tcp://{}", holder.local_addr()?);
    cx.testbed_bare().flag("listen", &address).refused(&[&address, "in use"])
}

fn start_port_privileged(cx: &Cx) -> Result<()> {
    // An unprivileged user can read neither a home directory nor our scratch directory.
    let program = cx.dir.join("testbed");
    fs::copy(cx.examples.join("testbed"), &program)?;
    let start = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")?;
    ensure!(
        start.trim() != "0",
        "this machine has no privileged port: sysctl net.ipv4.ip_unprivileged_port_start is 0"
    );
    let port = start.trim().parse::<u16>()? - 1;
    for path in [cx.dir.as_path(), cx.dir.parent().context("the directory lies in another")?] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    let launch = Launch::new(cx, program).flag("listen", format!("tcp://127.0.0.1:{port}"));
    let launch = if rustix::process::getuid().is_root() {
        launch.through(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"])
    } else {
        launch
    };
    launch.refused(&[&format!("127.0.0.1:{port}"), "permission"])
}

fn start_worker_num(cx: &Cx) -> Result<()> {
    for absurd in ["0", "100000", "-1", "many"] {
        cx.testbed().flag("worker-num", absurd).refused(&["worker_num", absurd])?;
    }
    Ok(())
}

fn start_bad_config(cx: &Cx) -> Result<()> {
    let file = cx.dir.join("bad.toml");
    fs::write(&file, "worker_mun = 3\n")?;
    cx.testbed().flag("config", file.display()).refused(&["worker_mun"])?;
    cx.testbed().flag("config", "/no/such/file.toml").refused(&["/no/such/file.toml"])?;
    cx.testbed().flag("no-such-flag", 1).refused(&["no-such-flag"])?;
    cx.testbed().env("SWOOLE_WORKER_NUM", "lots").refused(&["SWOOLE_WORKER_NUM", "lots"])?;
    cx.testbed_bare().flag("listen", "tcp://nonsense").refused(&["nonsense"])?;
    cx.testbed().flag("package-max-length", 0).refused(&["package_max_length", "0"])
}

fn start_pid_dir_missing(cx: &Cx) -> Result<()> {
    let file = cx.dir.join("no-such-directory/server.pid");
    let file = file.display().to_string();
    cx.testbed().flag("pid-file", &file).refused(&["pid file", &file])
}

/// Rings for 64 workers, which need more shared memory than anything else.
fn many_rings(cx: &Cx) -> Launch<'_> {
    let launch = cx.example("testbed").flag("backend", cx.setup.backend).flag("ipc", "ring");
    launch.flag("listen", "tcp://127.0.0.1:0").flag("worker-num", 64)
}

fn start_memory_short(cx: &Cx) -> Result<()> {
    // 40 MB of address space hold the program, but not the rings.
    many_rings(cx).ulimit("-v 40000").refused(&["memory"])
}

fn start_file_size_short(cx: &Cx) -> Result<()> {
    // The limit counts blocks of 512 or 1024 bytes, and exceeding it sends SIGXFSZ, whose default is death.
    many_rings(cx).ulimit("-f 8").refused(&["file", "large"])
}

fn start_descriptors_short(cx: &Cx) -> Result<()> {
    cx.testbed().flag("worker-num", 64).ulimit("-n 24").refused(&["testbed:", "open files", "ulimit -n"])
}
