//! A Redis server on a unix socket, and a client that pipelines.

use super::rows::{Key, Operation, key};
use crate::subject::installed;
use anyhow::{Context, Result, bail, ensure};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

const START: Duration = Duration::from_secs(10);
/// Of a string.
const VALUE: [u8; 24] = [b'n'; 24];
const FILL: usize = 1000;

pub(super) struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    pub(super) fn start() -> Result<Server> {
        let socket = env::temp_dir().join(format!("swoole-bench-{}.sock", std::process::id()));
        let mut command = Command::new(installed("redis-server").context("redis-server is not installed")?);
        command.args([
            "--port",
            "0",
            "--save",
            "",
            "--appendonly",
            "no",
            "--daemonize",
            "no",
            "--unixsocket",
        ]);
        command.arg(&socket).stdin(Stdio::null()).stdout(Stdio::null());
        let server = Server { child: command.spawn().context("start redis-server")?, socket };
        let begin = Instant::now();
        while server.connect().is_err() {
            ensure!(begin.elapsed() < START, "redis-server is not ready after {START:?}");
            thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn connect(&self) -> Result<Client> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(START))?;
        Ok(Client { stream, request: Vec::new(), reply: vec![0; 64 << 10] })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.socket);
    }
}

pub(super) struct Client {
    stream: UnixStream,
    request: Vec<u8>,
    reply: Vec<u8>,
}

impl Client {
    /// Hashes of a number and a string, as rows are.
    pub(super) fn fill(&mut self, rows: usize) -> Result<()> {
        for first in (0..rows).step_by(FILL) {
            self.batch(Operation::Set, (first..rows.min(first + FILL)).map(key))?;
        }
        Ok(())
    }

    /// Asks for all of it at once, and waits for as many answers.
    pub(super) fn batch(&mut self, operation: Operation, keys: impl Iterator<Item = Key>) -> Result<()> {
        self.request.clear();
        let mut lines = 0;
        for key in keys {
            let (words, answer): (&[&[u8]], _) = match operation {
                // A number of values, then a length and a value for each.
                Operation::Get => (&[b"HMGET", &key, b"uid", b"name"], 5),
                Operation::Incr => (&[b"HINCRBY", &key, b"uid", b"1"], 1),
                Operation::Set => (&[b"HSET", &key, b"uid", b"0", b"name", &VALUE], 1),
            };
            write!(self.request, "*{}\r\n", words.len())?;
            for word in words {
                write!(self.request, "${}\r\n", word.len())?;
                self.request.extend_from_slice(word);
                self.request.extend_from_slice(b"\r\n");
            }
            lines += answer;
        }
        self.stream.write_all(&self.request)?;
        while lines > 0 {
            let len = self.stream.read(&mut self.reply)?;
            ensure!(len > 0, "redis-server has closed the connection");
            if let Some(error) =
                self.reply[..len].split(|&byte| byte == b'\n').find(|line| line.starts_with(b"-"))
            {
                bail!("redis-server says {}", String::from_utf8_lossy(error));
            }
            let came = self.reply[..len].iter().filter(|&&byte| byte == b'\n').count();
            ensure!(came <= lines, "redis-server says more than it was asked");
            lines -= came;
        }
        Ok(())
    }
}
