//! Payloads and results that are too large for a slot: in memory ([`Attic`]), as far as there is room, and in files.
//!
//! A file is known by the use of the slot that it belongs to, so no path stands in memory that others write. The asker
//! removes both when it collects, its successor what was left; a server that ends removes all of its own, and one that
//! starts those of servers that are dead. A server is known by its process id and the inode of its shared memory.
//!
//! With a `message_queue_key`, payloads are to outlive their server: their names begin otherwise, with the key and the
//! number of the server, and nobody removes them but who has the task. A message queue without a key is removed like a file:
//! an empty one remembers it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::num::NonZeroI32;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{Gid, Mode, OFlags, Uid, fchown};
use rustix::process::{Pid, test_kill_process};

use super::attic::Attic;
use super::{courier, hand};

/// What the names of all such files begin with, before the server's process id.
const PREFIX: &str = "swoole-task-";
/// What a file's name ends with that remembers a message queue, of which it has the key.
const QUEUE: &str = ".queue";
/// What the name of a file ends with in which a task worker notes what it has in hand.
const HAND: &str = ".hand";
/// What the name of a payload's file ends with.
const PAYLOAD: &str = ".payload";

/// What lies there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Part {
    Payload,
    Result,
}

/// What is too large, of one server.
#[derive(Clone, Debug)]
pub(crate) struct Spill {
    attic: Option<Attic>,
    dir: Arc<Path>,
    /// What it is called in a process that has another root.
    inside: Arc<OnceLock<PathBuf>>,
    /// Who is to read and remove what anybody writes.
    owner: Option<(Option<Uid>, Gid)>,
    server: i32,
    /// What the names of this server's files begin with.
    prefix: Arc<str>,
    kept: Option<Kept>,
}

/// What the names of payloads begin with that are to outlive the server: those of any server with that key, and its own.
#[derive(Clone, Debug)]
struct Kept {
    key: Arc<str>,
    server: Arc<str>,
}

/// What the names of all payloads begin with that outlive servers of this key.
pub(super) fn kept_prefix(key: u32) -> String {
    format!("swoole-queue-{key:08x}-")
}

/// The name of a payload that another program has put there; `part` while it is being written.
pub(super) fn foreign_name(key: u32, unique: u64, part: bool) -> String {
    let pid = std::process::id();
    // The next server removes those whose writer is dead.
    if part {
        format!("{PREFIX}{pid}-{unique:016x}.part")
    } else {
        format!("{}{unique:016x}{PAYLOAD}", kept_prefix(key))
    }
}

impl Spill {
    /// That of the server with this process id and this memory.
    pub(crate) fn new(dir: &Path, server: i32, memory: u64) -> Spill {
        let prefix = format!("{PREFIX}{server}-{memory}-").into();
        Spill {
            attic: None,
            dir: dir.into(),
            inside: Arc::default(),
            owner: None,
            server,
            prefix,
            kept: None,
        }
    }

    /// What need not outlive the server lies there, as far as there is room.
    pub(crate) fn with_attic(self, attic: Option<Attic>) -> Spill {
        Spill { attic, ..self }
    }

    /// Where there may be something that is in no file.
    pub(crate) fn attic(&self) -> Option<&Attic> {
        self.attic.as_ref()
    }

    fn attic_of(&self, part: Part) -> Option<&Attic> {
        self.attic().filter(|_| self.kept.is_none() || part == Part::Result)
    }

    /// The same, if workers and task workers are others than master and manager, who ask for tasks, too.
    pub(crate) fn owned_by(self, owner: Option<(Option<Uid>, Gid)>) -> Spill {
        Spill { owner, ..self }
    }

    /// In this process, the directory is known by this name from now on. It is not to be moved twice.
    pub(crate) fn move_to(&self, inside: PathBuf) {
        let _ = self.inside.set(inside);
    }

    /// What this process knows the directory by.
    fn dir(&self) -> &Path {
        self.inside.get().map_or(&*self.dir, |inside| inside)
    }

    /// Payloads are to outlive the server of this number, for the next one of that key.
    pub(crate) fn keeping(self, key: u32, server: u64) -> Spill {
        let key = kept_prefix(key);
        Spill { kept: Some(Kept { server: format!("{key}{server:016x}-").into(), key: key.into() }), ..self }
    }

    fn path(&self, asker: u16, slot: u16, ticket: u64, part: Part) -> PathBuf {
        self.dir().join(self.name(asker, slot, ticket, part))
    }

    /// What the file is called.
    pub(crate) fn name(&self, asker: u16, slot: u16, ticket: u64, part: Part) -> String {
        let prefix = match (&self.kept, part) {
            (Some(kept), Part::Payload) => &kept.server,
            _ => &self.prefix,
        };
        let part = match part {
            Part::Payload => PAYLOAD,
            Part::Result => ".result",
        };
        format!("{prefix}{asker}-{slot}-{ticket}{part}")
    }

    /// Whether a name is that of a payload that any server of this key may take.
    fn is_claimable(&self, name: &str) -> bool {
        let Some(Kept { key, server }) = &self.kept else { return false };
        name.starts_with(&**key)
            && !name.starts_with(&**server)
            && name.ends_with(PAYLOAD)
            && !name.contains('/')
    }

    /// Where a task worker notes what it has in hand, for the next server of this key.
    pub(super) fn hand(&self, task_worker: u16) -> Option<PathBuf> {
        Some(self.dir().join(format!("{}{task_worker}{HAND}", self.kept.as_ref()?.server)))
    }

    /// What task workers of earlier servers of this key have had in hand when all were killed; once.
    pub(super) fn take_hands(&self) -> Vec<Vec<u8>> {
        let Some(Kept { key, .. }) = &self.kept else { return Vec::new() };
        let mut hands = Vec::new();
        self.remove_where(|name| {
            let is_hand = name.starts_with(&**key) && name.ends_with(HAND);
            if is_hand {
                hands.extend(read_some(&self.dir.join(name), hand::LEN));
            }
            is_hand
        });
        hands
    }

    /// Payloads that earlier servers of this key have left, or other programs have put there: tasks to be done.
    pub(crate) fn left(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.dir()) else { return Vec::new() };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| self.is_claimable(name)).collect()
    }

    /// Makes such a file the payload of this use of a slot, if nobody else has done so with it. Its length.
    pub(crate) fn claim(&self, name: &str, asker: u16, slot: u16, ticket: u64) -> io::Result<usize> {
        if !self.is_claimable(name) {
            return Err(io::Error::other("it has not the name of a task's file"));
        }
        let path = self.path(asker, slot, ticket, Part::Payload);
        fs::rename(self.dir().join(name), &path).map_err(|error| named(&self.dir().join(name), &error))?;
        Ok(fs::metadata(path)?.len() as usize)
    }

    /// Removes the own payloads that were to outlive the server, but for those of tasks that are still to be done. How many
    /// of these there are.
    pub(crate) fn sweep_kept(&self, is_unfinished: impl Fn(u16, u16, u64) -> bool) -> usize {
        let Some(kept) = &self.kept else { return 0 };
        let is_left = |name: &str| {
            let name = name.strip_prefix(&*kept.server)?.strip_suffix(PAYLOAD)?;
            let mut parts = name.split('-');
            let (asker, slot) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
            is_unfinished(asker, slot, parts.next()?.parse().ok()?).then_some(())
        };
        self.remove_where(|name| name.starts_with(&*kept.server) && is_left(name).is_none());
        let Ok(entries) = fs::read_dir(self.dir()) else { return 0 };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name.starts_with(&*kept.server)).count()
    }

    /// Has the message queue of this key removed with the files of this server.
    pub(crate) fn remember_queue(&self, key: NonZeroI32) -> io::Result<()> {
        let path = self.path_of_queue(key);
        File::create(&path).map(drop).map_err(|error| named(&path, &error))
    }

    /// It is not this server's.
    pub(crate) fn forget_queue(&self, key: NonZeroI32) {
        let _ = fs::remove_file(self.path_of_queue(key));
    }

    fn path_of_queue(&self, key: NonZeroI32) -> PathBuf {
        self.dir().join(format!("{}{}{QUEUE}", self.prefix, key.get().cast_unsigned()))
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
        if self.attic_of(part).is_some_and(|attic| attic.write((asker, slot), ticket, part, bytes)) {
            return Ok(());
        }
        let path = self.path(asker, slot, ticket, part);
        let fill = |mut file: File| {
            if let Some((uid, gid)) = self.owner {
                fchown(&file, uid, Some(gid))?;
            }
            file.write_all(bytes)
        };
        let written = create_anew(&path).and_then(fill).map_err(|error| named(&path, &error));
        if written.is_err() {
            let _ = fs::remove_file(&path);
        }
        written
    }

    /// What was written, of which nobody has changed the length.
    pub(crate) fn read(
        &self,
        asker: u16,
        slot: u16,
        ticket: u64,
        part: Part,
        len: usize,
        bytes: &mut Vec<u8>,
    ) -> io::Result<()> {
        if let Some(attic) = self.attic_of(part)
            && attic.read((asker, slot), ticket, part, len, bytes)?
        {
            return Ok(());
        }
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

    /// Puts it away, while the slot is still that use's. By its asker, who [rests](Spill::rest).
    pub(crate) fn remove(&self, asker: u16, slot: u16, ticket: u64, part: Part) {
        self.put_away(asker, slot, ticket, part, true);
    }

    /// The same by anybody else.
    pub(crate) fn give_back(&self, asker: u16, slot: u16, ticket: u64, part: Part) {
        self.put_away(asker, slot, ticket, part, false);
    }

    fn put_away(&self, asker: u16, slot: u16, ticket: u64, part: Part, keeps: bool) {
        let is_there = |attic: &Attic| attic.remove((asker, slot), ticket, part, keeps);
        if !self.attic_of(part).is_some_and(is_there) {
            // It may never have come to be.
            let _ = fs::remove_file(self.path(asker, slot, ticket, part));
        }
    }

    /// An asker has nothing under way, and had something that was too large.
    pub(crate) fn rest(&self, asker: u16) {
        self.attic().into_iter().for_each(|attic| attic.rest(asker));
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
            let is_own = name.starts_with(&*self.prefix);
            !is_own && server.and_then(|server| server.parse().ok()).is_some_and(is_dead)
        });
    }

    fn remove_where(&self, mut wanted: impl FnMut(&str) -> bool) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            if let Some(name) = entry.file_name().to_str().filter(|name| wanted(name)) {
                let queue = name.strip_suffix(QUEUE).and_then(|name| name.rsplit('-').next());
                let key = queue.and_then(|key| key.parse().ok()).map(u32::cast_signed);
                key.and_then(NonZeroI32::new).into_iter().for_each(courier::remove);
                // Somebody else's, or gone by now.
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// A new file for its owner alone. What a dead process has left under that name is replaced; whatever else it is, nobody writes
/// to it.
pub(super) fn create_anew(path: &Path) -> io::Result<File> {
    let open = || OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
    open().or_else(|error| match error.kind() {
        ErrorKind::AlreadyExists => fs::remove_file(path).and_then(|()| open()),
        _ => Err(error),
    })
}

/// The first bytes of a file, whoever has put what there.
fn read_some(path: &Path, len: u64) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut bytes = Vec::new();
    File::from(rustix::fs::open(path, flags, Mode::empty())?).take(len).read_to_end(&mut bytes)?;
    Ok(bytes)
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
        // And a message queue.
        let queue = courier::MessageQueue::create(2, &dead).unwrap();
        let of_own = courier::MessageQueue::create(2, &own).unwrap();
        fs::write(dir.join("swoole-task-of-somebody-else"), "").unwrap();
        let count = || fs::read_dir(&dir).unwrap().count();
        own.sweep_dead();
        assert_eq!(count(), 4, "what is none, and what is in use: a result and queues");
        for lane in 0..2 {
            assert!(of_own.send(lane, b"x").is_ok());
            assert!(queue.send(lane, b"x").is_err(), "it is gone");
        }
        own.write(1, 2, 4, Part::Result, b"").unwrap();
        own.remove(1, 2, 4, Part::Result);
        own.sweep();
        assert_eq!(count(), 1);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_outlives_its_server_is_claimed_once() {
        let dir = std::env::temp_dir().join(format!("swoole-spill-kept-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let pid = std::process::id().cast_signed();
        let (first, other) =
            (Spill::new(&dir, pid, 1).keeping(7, 11), Spill::new(&dir, pid, 1).keeping(8, 11));
        for ticket in 1..4 {
            first.write(0, 1, ticket, Part::Payload, &[7; 10]).unwrap();
        }
        first.write(0, 1, 1, Part::Result, b"this goes").unwrap();
        first.sweep();
        assert_eq!(first.sweep_kept(|asker, slot, ticket| (asker, slot, ticket) != (0, 1, 3)), 2);
        assert!(first.left().is_empty() && other.left().is_empty(), "its own are not left over");
        let next = Spill::new(&dir, pid, 2).keeping(7, 12);
        next.sweep_dead();
        let mut left = next.left();
        left.sort();
        assert_eq!(left, [1, 2].map(|ticket| first.name(0, 1, ticket, Part::Payload)));
        assert_eq!(next.claim(&left[0], 4, 5, 6).unwrap(), 10);
        assert!(next.claim(&left[0], 4, 5, 6).is_err(), "once");
        let mut bytes = Vec::new();
        next.read(4, 5, 6, Part::Payload, 10, &mut bytes).unwrap();
        assert_eq!(bytes, [7; 10]);
        for name in ["../etc/passwd", "swoole-queue-00000007-/../x.payload", "swoole-task-1-1-x.payload"] {
            assert!(next.claim(name, 4, 5, 6).is_err(), "{name}");
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}
