//! What a server leaves behind on the machine.

use super::proc;
use anyhow::{Result, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What outlives a process that does not clean up.
pub(super) struct Leavings {
    queues: BTreeSet<String>,
    shared_memory: BTreeSet<String>,
}

impl Leavings {
    pub(super) fn look() -> Self {
        let queues = fs::read_to_string("/proc/sysvipc/msg").unwrap_or_default();
        let id = |line: &str| line.split_whitespace().nth(1).map(str::to_owned);
        Self { queues: queues.lines().skip(1).filter_map(id).collect(), shared_memory: names("/dev/shm") }
    }

    /// Nothing may be there that was not there before. The last exits may take a moment.
    pub(super) fn compare(&self, dir: &Path) -> Result<()> {
        let waited = proc::until("a clean machine", Duration::from_secs(2), || {
            proc::reap_orphans();
            self.new_since(dir).is_empty().then_some(())
        });
        let left = self.new_since(dir);
        ensure!(waited.is_ok(), "left behind: {}", left.join(", "));
        Ok(())
    }

    pub(super) fn new_since(&self, dir: &Path) -> Vec<String> {
        let now = Self::look();
        let mut left = Vec::new();
        for pid in proc::descendants(proc::own_pid()) {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            left.push(format!("process {pid} ({})", name.trim()));
        }
        left.extend(now.queues.difference(&self.queues).map(|id| format!("SysV queue {id}")));
        left.extend(now.shared_memory.difference(&self.shared_memory).map(|name| format!("/dev/shm/{name}")));
        left.extend(sockets_in(dir).into_iter().map(|path| format!("socket {}", path.display())));
        left
    }
}

fn names(dir: &str) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(dir) else { return BTreeSet::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn sockets_in(dir: &Path) -> Vec<PathBuf> {
    use std::os::unix::fs::FileTypeExt;
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let is_socket = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_socket());
    entries.flatten().filter(is_socket).map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_file_left_behind_is_found() {
        let dir = std::env::temp_dir().join(format!("swoole-runner-test-{}", proc::own_pid()));
        fs::create_dir_all(&dir).unwrap();
        let before = Leavings::look();
        fs::write(dir.join("plain"), "").unwrap();
        assert!(sockets_in(&dir).is_empty());
        let _listener = std::os::unix::net::UnixListener::bind(dir.join("s")).unwrap();
        // Not by `compare`, which reaps the children of whatever test runs beside this one.
        let left = before.new_since(&dir);
        fs::remove_dir_all(&dir).unwrap();
        assert!(left.iter().any(|what| what.starts_with("socket ")), "{left:?}");
    }
}
