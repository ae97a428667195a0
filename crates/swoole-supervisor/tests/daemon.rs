//! The pid file between real processes, and a real daemon.

#![allow(clippy::unwrap_used, reason = "tests say what must hold by unwrapping it")]

#[path = "../../swoole-sys/tests/support/mod.rs"]
mod support;

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use rustix::pipe::pipe;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, getpid, getsid, kill_process, waitid, waitpid,
};
use swoole_supervisor::daemon::{DaemonError, PidFile, PidFileError, daemonize};
use swoole_sys::fds::wait_readable;
use swoole_sys::process::{Fork, become_subreaper, fork, run_child};

tests![
    a_pid_file_lives_as_long_as_its_owner_wants,
    a_pid_file_is_refused_while_its_owner_lives,
    a_pid_file_is_replaced_when_its_owner_was_killed,
    of_many_starters_one_gets_the_pid_file,
    a_pid_file_in_no_directory_is_an_error_with_a_name,
    a_daemon_has_no_terminal_and_writes_to_its_file,
    a_daemon_without_output_is_refused_in_the_foreground,
];

/// A directory of this test's own, which goes away with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("swoole-supervisor-{}", getpid().as_raw_pid()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("server.pid")
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn wait_forever() -> ! {
    loop {
        rustix::event::pause();
    }
}

/// Forks a process that makes the pid file, says so, and lives until it is killed.
fn holder(path: &Path) -> Pid {
    let (read, write) = pipe().unwrap();
    match fork().unwrap() {
        Fork::Child => run_child(|| {
            let _held = PidFile::create(path).unwrap();
            rustix::io::write(&write, b"!").unwrap();
            wait_forever()
        }),
        Fork::Parent(pid) => {
            drop(write);
            assert_eq!(rustix::io::read(&read, &mut [0; 1]), Ok(1));
            pid
        }
    }
}

fn wait_for(pid: Pid) -> Option<i32> {
    waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap().1.exit_status()
}

fn a_pid_file_lives_as_long_as_its_owner_wants() {
    let scratch = Scratch::new();
    let pid_file = PidFile::create(scratch.file()).unwrap();
    assert_eq!(fs::read_to_string(pid_file.path()).unwrap(), format!("{}\n", getpid().as_raw_pid()));
    assert_eq!(scratch.names(), ["server.pid"], "no draft is left");
    let copy = match fork().unwrap() {
        Fork::Parent(pid) => pid,
        Fork::Child => run_child(|| {
            drop(pid_file);
            0
        }),
    };
    assert_eq!(wait_for(copy), Some(0));
    assert_eq!(scratch.names(), ["server.pid"], "a copy in a child removes nothing");
    drop(pid_file);
    assert_eq!(scratch.names(), [""; 0]);

    let pid_file = PidFile::create(scratch.file()).unwrap();
    fs::remove_file(scratch.file()).unwrap();
    fs::write(scratch.file(), "somebody else's").unwrap();
    drop(pid_file);
    assert_eq!(scratch.names(), ["server.pid"], "what is not ours stays");
}

fn a_pid_file_is_refused_while_its_owner_lives() {
    let scratch = Scratch::new();
    let owner = holder(&scratch.file());
    match PidFile::create(scratch.file()) {
        Err(error @ PidFileError::Held { pid, .. }) => {
            assert_eq!(pid, Some(owner));
            assert!(error.to_string().contains(&format!("process {}", owner.as_raw_pid())), "{error}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(scratch.names(), ["server.pid"], "it is still there");
}

fn a_pid_file_is_replaced_when_its_owner_was_killed() {
    let scratch = Scratch::new();
    let owner = holder(&scratch.file());
    kill_process(owner, Signal::KILL).unwrap();
    wait_for(owner);
    assert_eq!(fs::read_to_string(scratch.file()).unwrap(), format!("{}\n", owner.as_raw_pid()), "stale");
    let mut reader = File::open(scratch.file()).unwrap();
    let _ours = PidFile::create(scratch.file()).unwrap();
    assert_eq!(fs::read_to_string(scratch.file()).unwrap(), format!("{}\n", getpid().as_raw_pid()));
    let mut old = String::new();
    std::io::Read::read_to_string(&mut reader, &mut old).unwrap();
    assert_eq!(old, format!("{}\n", owner.as_raw_pid()), "replaced as a whole, never emptied");
}

fn of_many_starters_one_gets_the_pid_file() {
    let scratch = Scratch::new();
    fs::write(scratch.file(), "99999999\n").unwrap();
    let (start, starts) = pipe().unwrap();
    let (quit, quits) = pipe().unwrap();
    let (verdict, verdicts) = pipe().unwrap();
    let starters: Vec<Pid> = (0..20)
        .map(|_| match fork().unwrap() {
            Fork::Parent(pid) => pid,
            Fork::Child => run_child(|| {
                // All of them get going at the same moment.
                wait_readable(&[start.as_raw_fd()], None).unwrap();
                let result = PidFile::create(scratch.file());
                let word: &[u8] = match &result {
                    Ok(_) => b"+",
                    Err(PidFileError::Held { .. }) => b"-",
                    Err(_) => b"?",
                };
                rustix::io::write(&verdicts, word).unwrap();
                wait_readable(&[quit.as_raw_fd()], None).unwrap();
                0
            }),
        })
        .collect();
    rustix::io::write(&starts, b"!").unwrap();
    let mut verdict = File::from(verdict);
    let mut words = [0; 20];
    std::io::Read::read_exact(&mut verdict, &mut words).unwrap();
    rustix::io::write(&quits, b"!").unwrap();
    for starter in starters {
        assert_eq!(wait_for(starter), Some(0));
    }
    words.sort_unstable();
    assert_eq!(str::from_utf8(&words).unwrap(), format!("+{}", "-".repeat(19)));
    assert_eq!(scratch.names(), [""; 0]);
}

fn a_pid_file_in_no_directory_is_an_error_with_a_name() {
    let error = PidFile::create("/no/such/directory/server.pid").unwrap_err().to_string();
    assert!(error.contains("/no/such/directory/server.pid") && error.contains("open"), "{error}");
}

fn a_daemon_has_no_terminal_and_writes_to_its_file() {
    let scratch = Scratch::new();
    let output = scratch.0.join("output");
    become_subreaper().unwrap();
    let caller = match fork().unwrap() {
        Fork::Parent(pid) => pid,
        Fork::Child => run_child(|| {
            daemonize(Some(&output)).unwrap();
            let leads_a_session = getsid(None).unwrap() == getpid();
            println!("{leads_a_session} {}", std::env::current_dir().unwrap().display());
            eprintln!("{}", fs::read_link("/proc/self/fd/0").unwrap().display());
            5
        }),
    };
    assert_eq!(wait_for(caller), Some(0), "the caller ends at once");
    // The daemon is an orphan now, handed to this process.
    let daemon = waitid(WaitId::All, WaitIdOptions::EXITED).unwrap().unwrap();
    assert_eq!(daemon.exit_status(), Some(5));
    assert_eq!(fs::read_to_string(&output).unwrap(), "false /\n/dev/null\n");
}

fn a_daemon_without_output_is_refused_in_the_foreground() {
    let me = getpid();
    match daemonize(Some(Path::new("/no/such/directory/output"))) {
        Err(error @ DaemonError::Output { .. }) => {
            assert!(error.to_string().contains("/no/such/directory/output"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(getpid(), me);
}
