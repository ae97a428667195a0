//! Asks from another program, by the message queue of a server that runs, or will.

use std::fs;
use std::num::NonZeroI32;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::courier::{Letter, MessageQueue};
use super::spill;
use crate::error::{Error, Result};

/// The task queue of a server with a `message_queue_key`, for programs that are no part of it. What is pushed waits there for
/// the server, also for one that is yet to start, and is done as a task whose [`TaskId::is_foreign`](crate::TaskId::is_foreign).
/// Its end nobody is told.
///
/// A program in another language puts messages into the System V message queue of that key: of type 1 for whoever is free,
/// or 2 and the number of a task worker. The server looks for them ten times a second while it is idle. A message has a
/// header of 48 bytes and the payload, 8 KiB in all at most (`kernel.msgmax`):
///
#[doc = "```text"]
#[doc = include_str!("courier/letter.txt")]
#[doc = "```"]
///
/// ```no_run
/// let queue = swoole_server::TaskQueue::open(0x5377, "/var/spool/app")?;
/// queue.push(b"make a thumbnail of 4711")?;
/// # Ok::<(), swoole_server::Error>(())
/// ```
#[derive(Debug)]
pub struct TaskQueue {
    queue: MessageQueue,
    key: u32,
    task_tmpdir: PathBuf,
}

impl TaskQueue {
    /// The queue of this `message_queue_key`, made if there is none. Larger payloads go through `task_tmpdir`, which must be
    /// that of the server.
    ///
    /// # Errors
    ///
    /// [`Error::Setup`] if the key is 0, the queue is another user's, or there are as many queues as may be.
    pub fn open(key: u32, task_tmpdir: impl AsRef<Path>) -> Result<TaskQueue> {
        let Some(signed) = NonZeroI32::new(key.cast_signed()) else {
            return Err(Error::setup("open a queue for tasks", "0 is no message_queue_key"));
        };
        let queue = MessageQueue::open(signed)?;
        Ok(TaskQueue { queue, key, task_tmpdir: task_tmpdir.as_ref().into() })
    }

    /// A task for whoever is free. Does not wait.
    ///
    /// # Errors
    ///
    /// [`Error::MessageQueueFull`] if there is no room now: `kernel.msgmnb` bounds it; [`Error::Setup`] if the queue was
    /// removed, or a larger payload cannot be written to a file.
    pub fn push(&self, payload: &[u8]) -> Result<()> {
        self.push_into(0, payload)
    }

    /// A task for this task worker, from 0. One that the server does not have leaves it to the next server that does.
    ///
    /// # Errors
    ///
    /// As [`push`](TaskQueue::push).
    pub fn push_to(&self, task_worker: u16, payload: &[u8]) -> Result<()> {
        self.push_into(usize::from(task_worker) + 1, payload)
    }

    fn push_into(&self, queue: usize, payload: &[u8]) -> Result<()> {
        if payload.len() <= self.queue.payload_max() {
            return self.send(queue, false, payload.len(), payload);
        }
        let failed = |error| Error::setup(format!("keep a task of {} bytes", payload.len()), error);
        let unique = getrandom::u64().map_err(|error| Error::setup("name a task", error))?;
        let part = self.task_tmpdir.join(spill::foreign_name(self.key, unique, true));
        let name = spill::foreign_name(self.key, unique, false);
        let path = self.task_tmpdir.join(&name);
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part);
        let written = file
            .and_then(|mut file| std::io::Write::write_all(&mut file, payload))
            .and_then(|()| fs::rename(&part, &path));
        if let Err(error) = written {
            let _ = fs::remove_file(&part);
            return Err(failed(error));
        }
        let sent = self.send(queue, true, payload.len(), name.as_bytes());
        if sent.is_err() {
            let _ = fs::remove_file(&path);
        }
        sent
    }

    fn send(&self, queue: usize, in_file: bool, len: usize, rest: &[u8]) -> Result<()> {
        let message = [&Letter::foreign(len, in_file).header(), rest].concat();
        match self.queue.send(queue, &message) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::MessageQueueFull { key: self.key }),
            Err(error) => Err(Error::setup("send a task", std::io::Error::from(error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pushed_can_be_read() {
        let dir = std::env::temp_dir().join(format!("swoole-producer-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let key = std::process::id() | 0x4000_0000;
        let queue = TaskQueue::open(key, &dir).unwrap();
        let mut buffer = vec![0; 8192];
        for len in [0, 1, queue.queue.payload_max(), queue.queue.payload_max() + 1, 1 << 20] {
            let payload = vec![7; len];
            queue.push_to(2, &payload).unwrap();
            assert_eq!(queue.queue.receive(0, &mut buffer), Ok(None), "it is for number 2");
            let got = queue.queue.receive(3, &mut buffer).unwrap().unwrap();
            let (letter, rest) = Letter::read(&buffer[..got]).unwrap();
            assert_eq!((letter.server, letter.len), (0, len));
            let found = if letter.in_file {
                fs::read(dir.join(str::from_utf8(rest).unwrap())).unwrap()
            } else {
                rest.to_vec()
            };
            assert!(found == payload, "{len}");
        }
        let large = vec![0; queue.queue.payload_max()];
        let full = std::iter::repeat_with(|| queue.push(&large)).take(10_000).find_map(Result::err);
        assert!(matches!(full, Some(Error::MessageQueueFull { .. })), "{full:?}");
        super::super::courier::remove(queue.queue.key());
        assert!(queue.push(b"").unwrap_err().to_string().contains("send a task"));
        assert!(TaskQueue::open(0, &dir).is_err());
        fs::remove_dir_all(&dir).unwrap();
    }
}
