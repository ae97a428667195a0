//! What the testbed has task workers do, and who waits for it.

use std::collections::HashMap;
use std::time::Duration;

use swoole_server::{Error, Result, Session, TaskError, TaskId, TaskResult, TaskWorker, Worker};

use super::command::Crash;

/// Who is told of which task.
#[derive(Default)]
pub(crate) struct Tasks {
    waiting: HashMap<TaskId, Session>,
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

    /// The line for whoever has asked.
    pub(crate) fn finished(&mut self, id: TaskId, result: TaskResult) -> Option<(Session, Vec<u8>)> {
        let client = self.waiting.remove(&id)?;
        Some((client, [format!("finish {id} ").as_bytes(), &told(result)].concat()))
    }
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

/// Does one, in the task worker.
pub(crate) fn work(worker: &mut TaskWorker, text: &[u8]) -> Result<Vec<u8>> {
    let word = text.split(|byte| *byte == b' ').next().unwrap_or_default();
    let rest = text.get(word.len() + 1..).unwrap_or_default();
    let number = || String::from_utf8_lossy(rest).parse::<u64>().unwrap_or_default();
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
        b"leave" => worker.retire(),
        _ => {}
    }
    Ok(text.to_ascii_uppercase())
}
