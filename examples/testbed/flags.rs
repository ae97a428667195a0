//! What the command line, the environment and a file say.

use swoole_server::config::{Config, Framing, Sources};
use swoole_server::{Error, Result};

/// What flags ask for beside the configuration.
#[derive(Default)]
pub(crate) struct Flags {
    pub(crate) goodbye: Option<String>,
    pub(crate) crash_on_start: Option<String>,
    pub(crate) hang_on_start: Option<String>,
    pub(crate) start_time: Option<String>,
    pub(crate) connect_time: Option<String>,
    pub(crate) user_processes: Option<String>,
    pub(crate) spawn_thread: bool,
    pub(crate) ask_on_start: bool,
    pub(crate) tell_reloads: bool,
}

/// The configuration as flags, environment and file have it now.
pub(crate) fn load() -> Result<(Config, Flags)> {
    let mut defaults = Config::default();
    defaults.listen = vec!["tcp://127.0.0.1:9501".parse().map_err(Error::other)?];
    defaults.framing = Framing::Eof;
    defaults.package_eof = b"\n".to_vec();

    let mut flags = Flags::default();
    let config = Sources::new(defaults)
        .option(
            "crash-on-start",
            "ID[:GENERATION]",
            "this worker panics whenever it starts, or the first, second, ... time",
            &mut flags.crash_on_start,
        )
        .option(
            "hang-on-start",
            "ID[:GENERATION]",
            "this worker never gets done with its start",
            &mut flags.hang_on_start,
        )
        .option(
            "start-time",
            "MS",
            "each worker and task worker takes so long to start; default 0",
            &mut flags.start_time,
        )
        .option(
            "processes",
            "NAME[:WHAT],...|@FILE",
            "user processes, and what they do: wait, poll, spin, ask, hang, return, fail, or die as by `crash WHAT`",
            &mut flags.user_processes,
        )
        .option("goodbye", "TEXT", "what clients are told when the server stops", &mut flags.goodbye)
        .option(
            "connect-time",
            "MS",
            "each connect takes so long, and it and all packets and closes are told",
            &mut flags.connect_time,
        )
        .switch(
            "ask-on-start",
            "manager and master have a task worker say something, and each worker as it stops",
            &mut flags.ask_on_start,
        )
        .switch(
            "tell-reloads",
            "the manager tells worker 0, and all clients, of each reload",
            &mut flags.tell_reloads,
        )
        .switch(
            "spawn-thread",
            "a thread is started before the server, which refuses that",
            &mut flags.spawn_thread,
        )
        .load_process()?;
    Ok((config, flags))
}
