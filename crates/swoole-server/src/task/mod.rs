//! Tasks: slow work that workers hand to task workers, and get the result of.
//!
//! ```text
//!     worker:  Worker::task ──> slot ──┐      shared memory      ┌──> on_task   :task worker
//!                                      ├──> queue of the asker ──┤
//!     worker:  on_finish <── mark <── slot <────── result ───────┘
//! ```
//!
//! Task workers, user processes, the manager and the master may ask, too, and get no result: what they ask is one-way.
//!
//! How a task worker learns of a task is `task_ipc_mode`: by the queue in that memory, or by a letter that goes through a
//! socket or a System V message queue ([`courier`]). The slot is the same, so back pressure, results, retries and counts are.
//!
//! | file | what |
//! |---|---|
//! | `mod` | what users see of a task: its name, its end |
//! | `payload`, `typed` | what it is made of: bytes, or with types |
//! | `store` | where tasks are: memory that all processes share |
//! | `spill` | what is too large for it: `attic`, other memory, or files |
//! | `courier` | letters: by socket, or by message queue, which a later server and other programs can use |
//! | `asker` | the end of who asks: ask, collect, wait; `choice`, of whom |
//! | `life` | a task worker, from the fork to the exit |
//! | `hand` | what it has in hand, for the next server to tell |
//! | `worker` | what a callback may do there; `timers`, what comes by itself |
//! | `mail` | what comes to it by post, and tasks that nobody of this server has asked for |
//! | `producer` | asks from another program |
//! | `office` | the manager's part: what a dead task worker was at |

pub(crate) mod asker;
pub(crate) mod attic;
mod choice;
pub(crate) mod courier;
mod hand;
mod life;
mod mail;
mod office;
mod payload;
mod producer;
pub(crate) mod spill;
pub(crate) mod store;
mod timers;
#[cfg(feature = "typed")]
pub mod typed;
mod worker;

use std::fmt;
use std::time::Duration;

pub(crate) use asker::{Asker, Finished};
pub(crate) use life::run;
pub(crate) use office::Tasks;
pub use payload::Payload;
pub use producer::TaskQueue;
pub use worker::TaskWorker;

/// Names one task: who has asked, which process of its slot that was, and which of its tasks it is. Never used again within
/// a server's life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TaskId {
    pub(crate) asker: u16,
    pub(crate) generation: u32,
    pub(crate) number: u64,
}

impl TaskId {
    /// The asker of who is none of the server's.
    pub(crate) const FOREIGN: u16 = u16::MAX;

    /// Whether nobody of this server has asked for it: another program, or an earlier server with the same
    /// `message_queue_key`. Then it has no asker's number; the task worker that has taken it up counts it.
    pub fn is_foreign(&self) -> bool {
        self.asker == TaskId::FOREIGN
    }

    /// Whose task it is: workers have the first numbers, from 0, task workers the next, then user processes; then comes the
    /// manager, then the master. 65,535 if it [is foreign](TaskId::is_foreign).
    pub fn asker(&self) -> u16 {
        self.asker
    }

    /// Which process of that slot has asked, from 1.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Which of that process's tasks it is, from 1.
    pub fn number(&self) -> u64 {
        self.number
    }
}

/// `ASKER.GENERATION.NUMBER`; `foreign` for an asker that is none of the server's.
impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_foreign() {
            return write!(f, "foreign.{}.{}", self.generation, self.number);
        }
        write!(f, "{}.{}.{}", self.asker, self.generation, self.number)
    }
}

/// Why a task has no result.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// [`on_task`](crate::Handler::on_task) has returned this error.
    #[error("it failed: {0}")]
    Failed(String),
    /// The task workers that had begun it died, as many as may: `task_retries` and one.
    #[error("the task worker that had begun it died")]
    Lost,
    /// The time to wait for it was over. One that nobody had begun was taken back, and will not be; the result of another
    /// one is thrown away when it comes.
    #[error("there was no result in time")]
    TimedOut,
    /// The result, or the task itself, was too large for memory, and the file that held it could not be read.
    #[error("its file could not be read: {0}")]
    File(String),
    /// There is a result, and it is none of such a task's ([`Payload::output`]).
    #[error("its result cannot be read: {0}")]
    Undecodable(String),
}

/// The end of a task: its result, or why there is none.
pub type TaskResult<T = Vec<u8>> = std::result::Result<T, TaskError>;

/// What becomes of a task that a task worker died on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum TaskFate {
    /// Another task worker begins it again (`task_retries`).
    Retried,
    /// It is lost, and its worker learns of it: [`TaskError::Lost`].
    Lost,
}

/// A task that a task worker had in hand when it died.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct TaskInHand {
    /// Which task.
    pub id: TaskId,
    /// Bytes of its payload.
    pub size: u64,
    /// How many task workers have begun it, this one included.
    pub attempt: u32,
    /// How long this one had been at it, till its end was dealt with.
    pub age: Duration,
    /// What becomes of it.
    pub fate: TaskFate,
}

impl fmt::Display for TaskInHand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TaskInHand { id, size, attempt, age, fate } = self;
        let fate = match fate {
            TaskFate::Retried => "it is begun again",
            TaskFate::Lost => "it is lost",
        };
        write!(f, "task {id} ({size} bytes) was in hand for {age:.1?}, attempt {attempt}: {fate}")
    }
}

/// Counts of all tasks since the start, and how many there are now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct TaskStats {
    /// Tasks that wait for a task worker now.
    pub queued: u64,
    /// Tasks that a task worker is at now.
    pub running: u64,
    /// How long the oldest one that waits has waited; zero if none does.
    pub oldest: Duration,
    /// Tasks with a result that their worker has got.
    pub done: u64,
    /// Tasks that failed with an error of `on_task`.
    pub failed: u64,
    /// Tasks that were given up because task workers died on them.
    pub lost: u64,
    /// Times that a task was begun again because a task worker had died on it.
    pub retried: u64,
    /// Results for a worker process that was gone.
    pub orphaned: u64,
    /// Tasks that nobody waited for any longer: taken back, or answered too late.
    pub expired: u64,
    /// Tasks that were refused because `task_queue_max` of their worker's were under way.
    pub refused: u64,
}

/// Now, in nanoseconds of the clock that is the same in every process.
pub(crate) fn now() -> u64 {
    crate::board::monotonic().as_nanos() as u64
}
