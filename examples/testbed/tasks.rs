//! What the testbed has task workers do, and who waits for it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use swoole_server::{
    Audience, Error, Result, Session, TaskError, TaskId, TaskResult, TaskWorker, TimerId, Worker,
};

use super::command::{Command, Crash, split_word};
use super::messages::{self, Messages};

/// Who is told of which task.
#[derive(Default)]
pub(crate) struct Tasks {
    waiting: HashMap<TaskId, Session>,
    load: Option<Load>,
}

/// Tasks without end, for a benchmark.
struct Load {
    client: Session,
    payload: Vec<u8>,
    begun: Instant,
    time: Duration,
    in_flight: usize,
    done: u64,
}

impl Tasks {
    pub(crate) fn ask(
        &mut self,
        worker: &mut Worker,
        client: Session,
        to: Option<u16>,
        text: &[u8],
    ) -> Result<TaskId> {
        let id = match to {
            None => worker.task(text)?,
            Some(task_worker) => worker.task_to(task_worker, text)?,
        };
        self.waiting.insert(id, client);
        Ok(id)
    }

    /// Keeps so many in flight for so long.
    pub(crate) fn load(
        &mut self,
        worker: &mut Worker,
        client: Session,
        (in_flight, ms, bytes): (usize, u64, usize),
    ) -> Result<()> {
        let payload = vec![b'x'; bytes];
        for _ in 0..in_flight {
            worker.task(&payload)?;
        }
        let time = Duration::from_millis(ms);
        self.load = Some(Load { client, payload, begun: Instant::now(), time, in_flight, done: 0 });
        Ok(())
    }

    /// The line for whoever has asked.
    pub(crate) fn finished(
        &mut self,
        worker: &mut Worker,
        id: TaskId,
        result: TaskResult,
    ) -> Result<Option<(Session, Vec<u8>)>> {
        if let Some(client) = self.waiting.remove(&id) {
            return Ok(Some((client, [format!("finish {id} ").as_bytes(), &told(result)].concat())));
        }
        let Some(load) = &mut self.load else { return Ok(None) };
        result.map_err(Error::Task)?;
        load.done += 1;
        let took = load.begun.elapsed();
        if took < load.time {
            worker.task(&load.payload)?;
            return Ok(None);
        }
        load.in_flight -= 1;
        if load.in_flight > 0 {
            return Ok(None);
        }
        let line = format!("tasks={} us={}", load.done, took.as_micros());
        let client = load.client;
        self.load = None;
        Ok(Some((client, line.into_bytes())))
    }
}

/// Waits for one after the other, for so long.
pub(crate) fn wait_on(worker: &mut Worker, ms: u64, bytes: usize) -> Result<Vec<u8>> {
    let (payload, begun, mut took) = (vec![b'x'; bytes], Instant::now(), Vec::new());
    while begun.elapsed() < Duration::from_millis(ms) {
        let asked = Instant::now();
        worker.task_wait(&payload, Duration::from_secs(10))?;
        took.push(asked.elapsed().as_nanos() as u64);
    }
    let us = begun.elapsed().as_micros();
    took.sort_unstable();
    let at = |percent: usize| took.get(took.len() * percent / 100).copied().unwrap_or_default();
    Ok(format!("tasks={} us={us} p50={} p99={}", took.len(), at(50), at(99)).into_bytes())
}

/// Waits for one.
pub(crate) fn wait(worker: &mut Worker, ms: u64, text: &[u8]) -> Result<Vec<u8>> {
    match worker.task_wait(text, Duration::from_millis(ms)) {
        Ok(result) => Ok([b"result ", &result[..]].concat()),
        Err(Error::Task(TaskError::TimedOut)) => Err("timeout".into()),
        Err(error) => Err(error),
    }
}

/// Waits for several, between which stands a `|`.
pub(crate) fn wait_all(worker: &mut Worker, ms: u64, texts: &[u8]) -> Result<Vec<u8>> {
    let texts: Vec<&[u8]> = texts.split(|byte| *byte == b'|').collect();
    let results = worker.task_wait_all(&texts, Duration::from_millis(ms))?;
    let results: Vec<Vec<u8>> = results.into_iter().map(told).collect();
    Ok([b"results ", &results.join(&b'|')[..]].concat())
}

fn told(result: TaskResult) -> Vec<u8> {
    match result {
        Ok(result) => result,
        Err(TaskError::TimedOut) => b"error: timeout".to_vec(),
        Err(error) => format!("error: {error}").into_bytes(),
    }
}

/// What a task may need.
pub(crate) struct Means<'a> {
    pub(crate) messages: &'a mut Messages,
    pub(crate) line_end: &'a [u8],
}

/// What a task worker has promised to do later: the text, and how many times.
#[derive(Default)]
pub(crate) struct Timed(HashMap<TimerId, (Vec<u8>, u64)>);

impl Timed {
    /// Sets or clears a timer, if that is the task.
    pub(crate) fn work(
        &mut self,
        worker: &mut TaskWorker,
        text: &[u8],
        means: &mut Means<'_>,
    ) -> Result<Vec<u8>> {
        // Most tasks are none of these, and are not to pay for a complaint about that.
        if !matches!(split_word(text).0, b"after" | b"tick" | b"clear") {
            return work(worker, text, means);
        }
        let (timer, promise) = match Command::parse(text) {
            Ok(Command::After(ms, text)) => (worker.after(Duration::from_millis(ms))?, (text.into(), 1)),
            Ok(Command::Tick(ms, times, text)) => {
                (worker.tick(Duration::from_millis(ms))?, (text.into(), times))
            }
            Ok(Command::Clear(timer)) => {
                let timer = TimerId::from_number(timer);
                self.0.remove(&timer);
                return if worker.clear(timer) { Ok(b"ok".into()) } else { Err("no such timer".into()) };
            }
            _ => return work(worker, text, means),
        };
        self.0.insert(timer, promise);
        Ok(format!("timer {timer}").into_bytes())
    }

    /// Does what was promised.
    pub(crate) fn due(
        &mut self,
        worker: &mut TaskWorker,
        timer: TimerId,
        means: &mut Means<'_>,
    ) -> Result<()> {
        let Some((text, times)) = self.0.get_mut(&timer) else { return Ok(()) };
        let text = text.clone();
        *times = times.saturating_sub(1);
        if *times == 0 {
            self.0.remove(&timer);
            worker.clear(timer);
        }
        super::say(format!("timer task={} {timer} {}", worker.id(), String::from_utf8_lossy(&text)))?;
        work(worker, &text, means).map(drop)
    }
}

/// Does one, in the task worker.
fn work(worker: &mut TaskWorker, text: &[u8], means: &mut Means<'_>) -> Result<Vec<u8>> {
    let word = text.split(|byte| *byte == b' ').next().unwrap_or_default();
    let rest = text.get(word.len() + 1..).unwrap_or_default();
    let number = || String::from_utf8_lossy(rest).parse::<u64>().unwrap_or_default();
    let is_foreign = worker.task().is_some_and(|task| task.is_foreign());
    match word {
        b"sleep" => std::thread::sleep(Duration::from_millis(number())),
        b"crash" => return super::crash(Crash::parse(rest)?),
        b"fail" => return Err(String::from_utf8_lossy(rest).into_owned().into()),
        b"early" => {
            worker.finish(&rest.to_ascii_uppercase())?;
            std::thread::sleep(Duration::from_millis(100));
        }
        b"big" => return Ok(vec![b'X'; number() as usize]),
        b"whoami" => {
            let (id, pid, generation) = (worker.id(), worker.pid(), worker.generation());
            return Ok(format!("task={id} pid={pid} generation={generation}").into_bytes());
        }
        b"die_at" => super::die_at(&String::from_utf8_lossy(rest))?,
        b"ask" => drop(worker.ask(rest)?),
        b"asks" => {
            let (times, text) = split_word(rest);
            for _ in 0..String::from_utf8_lossy(times).parse::<u64>().unwrap_or_default() {
                worker.ask(text)?;
            }
        }
        b"say" => super::say(format!("said by={} {}", worker.id(), String::from_utf8_lossy(rest)))?,
        b"note" => {
            let (name, body) = super::command::split_word(rest);
            let (name, len, sum) = (String::from_utf8_lossy(name), body.len(), super::command::crc32(body));
            super::say(format!("noted {name} len={len} sum={sum:08x} foreign={is_foreign}"))?;
        }
        b"sum" => return Ok(format!("{} {:08x}", rest.len(), super::command::crc32(rest)).into_bytes()),
        b"leave" => worker.retire(),
        b"message" | b"messages" => {
            let (to, rest) = split_word(rest);
            let to = messages::parse_peer(to).ok_or("message TO TEXT, messages TO N BYTES")?;
            if word == b"message" {
                worker.send_message(to, rest)?;
            } else {
                let (count, bytes) = split_word(rest);
                let number = |text| String::from_utf8_lossy(text).parse::<usize>().unwrap_or_default();
                let sent = means.messages.flood(worker, to, number(count) as u64, number(bytes))?;
                return Ok(format!("sent {sent}").into_bytes());
            }
        }
        b"sendto" => {
            let (to, text) = super::datagrams::parse(rest).ok_or("sendto LISTENER ADDRESS TEXT")?;
            worker.send_to(&to, text)?;
        }
        b"broadcast" => worker.broadcast(Audience::all(), &[rest, means.line_end].concat())?,
        b"publish" => {
            let (topic, text) = split_word(rest);
            worker.publish(topic, &[text, means.line_end].concat())?;
        }
        b"send" | b"close" | b"exists" | b"tls" => {
            let (session, text) = split_word(rest);
            let session = String::from_utf8_lossy(session).parse().map_err(Error::other)?;
            match word {
                b"send" => worker.send(session, &[text, means.line_end].concat())?,
                b"close" => worker.close(session)?,
                b"tls" => return Ok(super::sessions::tls(worker.tls(session)?).into_bytes()),
                _ => return Ok(worker.exists(session).to_string().into_bytes()),
            }
        }
        _ => {}
    }
    Ok(text.to_ascii_uppercase())
}
