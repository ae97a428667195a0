//! Slow work in task workers, with progress: how many primes are there below a number?
//!
//! ```text
//! $ cargo run --release --example tasks &
//! $ nc 127.0.0.1 9502
//! 1000000
//! 1 of 8
//! ...
//! 8 of 8
//! 78498 primes below 1000000
//! ```
//!
//! The worker cuts the work into parts, and answers other clients while the task workers count. Kill one of those
//! (`pkill -9 -f 'swoole: task worker'`): another one begins its part again, because `task_retries` says so.

use std::collections::HashMap;

use swoole_server::config::{Config, Framing, Sources};
use swoole_server::{
    Error, Handler, OpenReply, Result, Server, Session, TaskId, TaskResult, TaskWorker, Worker,
};

/// Tasks for one number.
const PARTS: u64 = 8;

#[derive(Default)]
struct Primes {
    jobs: HashMap<u64, Job>,
    /// Which job each task is a part of.
    tasks: HashMap<TaskId, u64>,
    /// Jobs so far.
    begun: u64,
}

/// What one client wants to know.
struct Job {
    /// Who is told. A worker that is to leave waits for as long as this is kept.
    reply: OpenReply,
    below: u64,
    done: u64,
    primes: u64,
}

impl Handler for Primes {
    fn on_receive(&mut self, worker: &mut Worker, client: Session, packet: &[u8]) -> Result<()> {
        let Some(below) = std::str::from_utf8(packet).ok().and_then(|text| text.trim().parse::<u64>().ok())
        else {
            return worker.send(client, b"a number, please\n");
        };
        self.begun += 1;
        let cut = |part: u64| (u128::from(below) * u128::from(part) / u128::from(PARTS)) as u64;
        for part in 0..PARTS {
            let range = [cut(part), cut(part + 1)].map(u64::to_le_bytes);
            let task = worker.task(range.as_flattened())?;
            self.tasks.insert(task, self.begun);
        }
        let reply = worker.open_reply(client);
        self.jobs.insert(self.begun, Job { reply, below, done: 0, primes: 0 });
        Ok(())
    }

    /// In a task worker: `payload` is where a part begins and ends.
    fn on_task(&mut self, _: &mut TaskWorker, _: TaskId, payload: &[u8]) -> Result<Vec<u8>> {
        let numbers = payload.as_chunks().0;
        let &[from, to] = numbers else { return Err("a part has a begin and an end".into()) };
        let primes = (u64::from_le_bytes(from)..u64::from_le_bytes(to)).filter(|number| is_prime(*number));
        Ok(primes.count().to_le_bytes().into())
    }

    /// In the worker that has asked.
    fn on_finish(&mut self, worker: &mut Worker, task: TaskId, result: TaskResult) -> Result<()> {
        let Some(id) = self.tasks.remove(&task) else { return Ok(()) };
        // One that has failed before.
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(()) };
        let client = job.reply.session();
        match result {
            Ok(count) => {
                let count: [u8; 8] = count.try_into().map_err(|_| "not a number")?;
                job.primes += u64::from_le_bytes(count);
                job.done += 1;
                worker.send(client, format!("{} of {PARTS}\n", job.done).as_bytes())?;
                if job.done == PARTS {
                    let line = format!("{} primes below {}\n", job.primes, job.below);
                    self.jobs.remove(&id);
                    worker.send(client, line.as_bytes())?;
                }
                Ok(())
            }
            Err(error) => {
                self.jobs.remove(&id);
                worker.send(client, format!("sorry: {error}\n").as_bytes())
            }
        }
    }
}

fn is_prime(number: u64) -> bool {
    number >= 2
        && (2..)
            .take_while(|divisor| divisor * divisor <= number)
            .all(|divisor| !number.is_multiple_of(divisor))
}

fn main() -> Result<()> {
    let mut defaults = Config::default();
    defaults.listen.push("tcp://127.0.0.1:9502".parse().map_err(Error::other)?);
    defaults.framing = Framing::Eof;
    defaults.package_eof = b"\n".to_vec();
    defaults.task_worker_num = 2;
    defaults.task_retries = 3;
    Server::new(Sources::new(defaults).load_process()?).run(Primes::default())
}
