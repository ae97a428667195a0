//! What a process that runs the user's code gives up before it does: who it was, what it could see, what it could ask.
//!
//! [`check`] says before the first fork whether that will go; [`enter`] does it, in each worker, task worker and user
//! process, whoever has forked it:
//!
//! 1. all that the process needs is open; of landlock's rules, each holds the file that it is about;
//! 2. chroot, and the working directory is in it;
//! 3. groups, then gid, then uid: each is the right to change the one before; and root is not to be had again;
//! 4. no new privileges, which the last two need where root is gone;
//! 5. landlock, then seccomp, whose filter would not let all of the above pass.
//!
//! A process that cannot do one of them ends: none serves with less than was asked for.
//!
//! | file | what |
//! |---|---|
//! | `mod` | the order |
//! | `account` | who it becomes; names are looked up before the first fork, in a child no name service is asked |
//! | `territory` | files, addresses and signals: landlock(7) |
//! | `filter` | system calls: seccomp(2) |

mod account;
mod filter;
mod territory;

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{
    Signal, chdir, chroot, getpid, getppid, kill_process, parent_process_death_signal,
    set_parent_process_death_signal,
};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs};

use crate::config::{Config, ConfigError, Mode, WorkerSandbox};
use crate::error::{Error, Result};
use crate::shared::Shared;
pub(crate) use account::Account;
use territory::Territory;

/// Whether this configuration's confinement can be had here; who workers will be, if not who starts the server.
pub(crate) fn check(config: &Config) -> Result<Option<Account>> {
    let account = account::resolve(config)?;
    if let Some(root) = &config.chroot {
        let right = ("CAP_SYS_CHROOT", CapabilitySet::SYS_CHROOT);
        require("chroot", &root.display().to_string(), right)?;
        check_inside(config, root)?;
        if account.as_ref().is_none_or(Account::is_root) && rustix::process::geteuid().is_root() {
            tracing::warn!("chroot = {} without user: a process of root's gets out of it", root.display());
        }
    }
    if config.worker_sandbox != WorkerSandbox::Off {
        filter::check()?;
    }
    if config.worker_sandbox == WorkerSandbox::Strict {
        Territory::survey(config)?;
    }
    Ok(account)
}

/// What `auto` may not choose is not left to it.
pub(crate) fn needs_epoll(config: &Config) -> bool {
    config.mode == Mode::Base && config.worker_sandbox == WorkerSandbox::Strict
}

fn require(key: &'static str, value: &str, (name, right): (&str, CapabilitySet)) -> Result<()> {
    let has = capabilities(None).map_err(std::io::Error::from)?.effective;
    if has.contains(right) {
        return Ok(());
    }
    let expected =
        format!("needs the right to do that ({name}): start the server as root, or leave {key} out");
    Err(ConfigError::value(key, value, expected).into())
}

/// What workers are to find by a path must be below their root.
fn check_inside(config: &Config, root: &Path) -> Result<()> {
    let tmpdir = (config.task_worker_num > 0).then_some(("task_tmpdir", &config.task_tmpdir));
    let read = config.worker_sandbox_read.iter().map(|path| ("worker_sandbox_read", path));
    let write = config.worker_sandbox_write.iter().map(|path| ("worker_sandbox_write", path));
    for (key, path) in tmpdir.into_iter().chain(read).chain(write) {
        if inside(root, path)?.is_none() {
            let expected = format!("must lie in chroot = {}", root.display());
            return Err(ConfigError::value(key, path.display(), expected).into());
        }
    }
    Ok(())
}

/// The name by which `path` goes where `root` is the root; `None` if by none.
fn inside(root: &Path, path: &Path) -> Result<Option<PathBuf>> {
    let real = |path: &Path| {
        fs::canonicalize(path).map_err(|error| Error::setup(format!("find {}", path.display()), error))
    };
    let (root, path) = (real(root)?, real(path)?);
    Ok(path.strip_prefix(root).ok().map(|rest| Path::new("/").join(rest)))
}

/// Gives up what the configuration wants. For a process of the manager's, when it has opened all that it needs, and before
/// the user's first callback.
pub(crate) fn enter(shared: &Shared) -> Result<()> {
    let Shared { config, account, .. } = shared;
    let (is_off, is_strict) =
        (config.worker_sandbox == WorkerSandbox::Off, config.worker_sandbox == WorkerSandbox::Strict);
    if account.is_none() && config.chroot.is_none() && is_off {
        return Ok(());
    }
    let death = Death::note()?;
    let territory = if is_strict { Some(Territory::survey(config)?) } else { None };
    if let Some(root) = &config.chroot {
        move_into(root, shared)?;
    }
    if let Some(account) = account {
        account.assume()?;
    }
    if is_strict {
        drop_capabilities().map_err(|error| Error::setup("give up all capabilities", error))?;
    }
    death.restore()?;
    if is_off {
        return Ok(());
    }
    set_no_new_privs(true)
        .map_err(|error| Error::setup("forgo new privileges", std::io::Error::from(error)))?;
    if let Some(territory) = territory {
        territory.enter()?;
    }
    filter::install(config)
}

fn move_into(root: &Path, shared: &Shared) -> Result<()> {
    if shared.config.task_worker_num > 0 {
        let tmpdir = inside(root, &shared.config.task_tmpdir)?;
        shared.tasks.spill().move_to(tmpdir.ok_or("task_tmpdir has left chroot")?);
    }
    let moved = chroot(root).and_then(|()| chdir("/"));
    moved.map_err(|error| Error::setup(format!("chroot to {}", root.display()), std::io::Error::from(error)))
}

fn drop_capabilities() -> std::io::Result<()> {
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    Ok(set_capabilities(None, sets)?)
}

/// By which signal a process hears of its parent's death: the kernel forgets that when the process becomes another user.
struct Death {
    signal: Option<Signal>,
    parent: Option<rustix::process::Pid>,
}

impl Death {
    fn note() -> Result<Death> {
        let signal = parent_process_death_signal().map_err(std::io::Error::from)?;
        Ok(Death { signal, parent: getppid() })
    }

    fn restore(&self) -> Result<()> {
        set_parent_process_death_signal(self.signal).map_err(std::io::Error::from)?;
        // It may have died in between, and the kernel had nothing to send.
        if let Some(signal) = self.signal
            && getppid() != self.parent
        {
            kill_process(getpid(), signal).map_err(std::io::Error::from)?;
        }
        Ok(())
    }
}

/// The log file was moved away. A process that may not open the new one has itself replaced, in its turn: its successor has
/// that from the manager.
pub(crate) fn reopen_log(shared: &Shared, seat: u16) {
    let Shared { config, account, .. } = shared;
    if account.is_none() && config.chroot.is_none() && config.worker_sandbox != WorkerSandbox::Strict {
        crate::log::reopen_or_say();
    } else if config.log_file.is_some() {
        shared.tell_due(seat, shared.board.generation(seat));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_another_name_inside() {
        let root = std::env::temp_dir().join(format!("swoole-confine-{}", std::process::id()));
        fs::create_dir_all(root.join("a/b")).unwrap();
        std::os::unix::fs::symlink("a/b", root.join("link")).unwrap();
        let name = |path: &str| inside(&root, &root.join(path)).unwrap();
        assert_eq!(name("a/b"), Some("/a/b".into()));
        assert_eq!(name("link"), Some("/a/b".into()));
        assert_eq!(name(""), Some("/".into()));
        assert_eq!(name("a/../.."), None);
        assert!(inside(&root, &root.join("none")).is_err());
        fs::remove_dir_all(root).unwrap();
    }
}
