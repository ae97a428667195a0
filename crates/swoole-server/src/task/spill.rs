//! Files for payloads and results that are too large for the shared memory.
//!
//! A file is known by the use of the slot that it belongs to, so no path stands in memory that others write. The asker
//! removes both when it collects, its successor what was left; a server that ends removes all of its own, and one that
//! starts those of servers that are dead. A server is known by its process id and the inode of its shared memory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{Gid, Uid, fchown};
use rustix::process::{Pid, test_kill_process};

/// What the names of all such files begin with, before the server's process id.
const PREFIX: &str = "swoole-task-";

/// What a file holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Part {
    Payload,
    Result,
}

/// The files of one server.
#[derive(Clone, Debug)]
pub(crate) struct Spill {
    dir: Arc<Path>,
    /// What it is called in a process that has another root.
    inside: Arc<OnceLock<PathBuf>>,
    /// Who is to read and remove what anybody writes.
    owner: Option<(Option<Uid>, Gid)>,
    server: i32,
    /// What the names of this server's files begin with.
    prefix: Arc<str>,
}

impl Spill {
    /// Those of the server with this process id and this memory.
    pub(crate) fn new(dir: &Path, server: i32, memory: u64) -> Spill {
        let prefix = format!("{PREFIX}{server}-{memory}-").into();
        Spill { dir: dir.into(), inside: Arc::default(), owner: None, server, prefix }
    }

    /// The same, if workers and task workers are others than master and manager, who ask for tasks, too.
    pub(crate) fn owned_by(self, owner: Option<(Option<Uid>, Gid)>) -> Spill {
        Spill { owner, ..self }
    }

    /// In this process, the directory is known by this name from now on. It is not to be moved twice.
    pub(crate) fn move_to(&self, inside: PathBuf) {
        let _ = self.inside.set(inside);
    }

    fn path(&self, asker: u16, slot: u16, ticket: u64, part: Part) -> PathBuf {
        let part = match part {
            Part::Payload => "payload",
            Part::Result => "result",
        };
        self.inside
            .get()
            .map_or(&*self.dir, |inside| inside)
            .join(format!("{}{asker}-{slot}-{ticket}.{part}", self.prefix))
    }

    /// Writes what the use `ticket` of a slot cannot hold. What a dead process has left under that name is replaced.
    pub(crate) fn write(
        &self,
        asker: u16,
        slot: u16,
        ticket: u64,
        part: Part,
        bytes: &[u8],
    ) -> io::Result<()> {
        let path = self.path(asker, slot, ticket, part);
        let open = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let written = open().or_else(|error| match error.kind() {
            ErrorKind::AlreadyExists => fs::remove_file(&path).and_then(|()| open()),
            _ => Err(error),
        });
        let fill = |mut file: File| {
            if let Some((uid, gid)) = self.owner {
                fchown(&file, uid, Some(gid))?;
            }
            file.write_all(bytes)
        };
        let written = written.and_then(fill).map_err(|error| named(&path, &error));
        if written.is_err() {
            let _ = fs::remove_file(&path);
        }
        written
    }

    /// What stands in such a file, of which nobody has changed the length.
    pub(crate) fn read(
        &self,
        asker: u16,
        slot: u16,
        ticket: u64,
        part: Part,
        len: usize,
        bytes: &mut Vec<u8>,
    ) -> io::Result<()> {
        let path = self.path(asker, slot, ticket, part);
        bytes.clear();
        let read = File::open(&path).and_then(|file| {
            let found = file.metadata()?.len();
            if found != len as u64 {
                return Err(io::Error::other(format!("{found} bytes instead of {len}")));
            }
            file.take(len as u64).read_to_end(bytes)
        });
        read.map(drop).map_err(|error| named(&path, &error))
    }

    pub(crate) fn remove(&self, asker: u16, slot: u16, ticket: u64, part: Part) {
        // It may never have come to be.
        let _ = fs::remove_file(self.path(asker, slot, ticket, part));
    }

    /// Removes all files of this server.
    pub(crate) fn sweep(&self) {
        self.remove_where(|name| name.starts_with(&*self.prefix));
    }

    /// Removes the files of servers that are gone. For a server that starts: nobody else has its process id.
    pub(crate) fn sweep_dead(&self) {
        let is_dead = |pid: i32| match Pid::from_raw(pid) {
            _ if pid == self.server => true,
            Some(pid) => test_kill_process(pid) == Err(rustix::io::Errno::SRCH),
            None => false,
        };
        self.remove_where(|name| {
            let server = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
            server.and_then(|server| server.parse().ok()).is_some_and(is_dead)
        });
    }

    fn remove_where(&self, wanted: impl Fn(&str) -> bool) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            if entry.file_name().to_str().is_some_and(&wanted) {
                // Somebody else's, or gone by now.
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_theirs_who_read_them() {
        use std::os::unix::fs::MetadataExt as _;

        let dir = std::env::temp_dir().join(format!("swoole-spill-owner-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        // Only root can give files away.
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        let other = if uid.is_root() { (Uid::from_raw(4711), Gid::from_raw(4712)) } else { (uid, gid) };
        let spill = Spill::new(&dir, 1, 7).owned_by(Some((Some(other.0), other.1)));
        spill.write(1, 2, 3, Part::Payload, b"large").unwrap();
        let file = fs::metadata(spill.path(1, 2, 3, Part::Payload)).unwrap();
        assert_eq!(
            (file.uid(), file.gid(), file.mode() & 0o777),
            (other.0.as_raw(), other.1.as_raw(), 0o600)
        );
        // A clone that was made before learns of the other name, too.
        let clone = spill.clone();
        spill.move_to("/elsewhere".into());
        assert!(clone.path(1, 2, 3, Part::Payload).starts_with("/elsewhere"));
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn files_come_and_go() {
        let dir = std::env::temp_dir().join(format!("swoole-spill-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let own = Spill::new(&dir, std::process::id().cast_signed(), 7);
        let large = vec![7; 100_000];
        // What is there under that name is a dead process's.
        for _ in 0..2 {
            own.write(1, 2, 3, Part::Payload, &large).unwrap();
        }
        let mut bytes = Vec::new();
        own.read(1, 2, 3, Part::Payload, large.len(), &mut bytes).unwrap();
        assert_eq!(bytes, large);
        let error = own.read(1, 2, 3, Part::Payload, 5, &mut bytes).unwrap_err().to_string();
        assert!(error.contains("1-2-3.payload: 100000 bytes instead of 5"), "{error}");
        assert_eq!(own.read(1, 2, 3, Part::Result, 5, &mut bytes).unwrap_err().kind(), ErrorKind::NotFound);
        // No process has such a number.
        let dead = Spill::new(&dir, i32::MAX, 7);
        dead.write(0, 0, 1, Part::Result, b"left").unwrap();
        // Its number is another one's now.
        let dead = Spill::new(&dir, std::process::id().cast_signed(), 6);
        dead.write(0, 0, 1, Part::Result, b"left").unwrap();
        fs::write(dir.join("swoole-task-of-somebody-else"), "").unwrap();
        let count = || fs::read_dir(&dir).unwrap().count();
        own.sweep_dead();
        assert_eq!(count(), 1, "what is none");
        own.write(1, 2, 4, Part::Result, b"").unwrap();
        own.remove(1, 2, 4, Part::Result);
        own.sweep();
        assert_eq!(count(), 1);
        fs::remove_dir_all(&dir).unwrap();
    }
}
