//! What a server tells of itself: [`Stats`].

use std::fmt::Write as _;

use crate::task::TaskStats;

/// The server's counters at one moment, the same from whichever process asks.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Stats {
    /// When the server started: milliseconds since the Unix epoch.
    pub start_time: u64,
    /// The master's process id.
    pub master_pid: i32,
    /// The manager's process id.
    pub manager_pid: i32,
    /// Reactors: threads of the master, or in Base mode the workers themselves.
    pub reactor_num: u16,
    /// Connections now.
    pub connection_num: u64,
    /// Connections accepted since the start.
    pub accept_count: u64,
    /// Connections closed since the start.
    pub close_count: u64,
    /// Packets handed to workers since the start.
    pub packet_count: u64,
    /// Packets that died with their worker since the start.
    pub lost_count: u64,
    /// Times that a packet was given to another worker because one had died on it, since the start.
    pub retry_count: u64,
    /// Connections that were closed because nothing came or went on them (`heartbeat_idle_time`, `max_idle_time`), since the
    /// start.
    pub idle_count: u64,
    /// Connections that were closed because a packet took too long to come (`package_max_time`), since the start.
    pub slow_count: u64,
    /// Clients that were closed as soon as they were accepted, because there were too many of their address
    /// (`max_connection_per_ip`), since the start. They are not among those accepted.
    pub refuse_count: u64,
    /// Packets that were shed (`max_queue`, `max_queue_time`), since the start.
    pub shed_count: u64,
    /// Connections closed since the start because they were not of a trusted proxy, or sent no PROXY header that can be read, or
    /// too late ([`proxy_protocol`](crate::Config::proxy_protocol)).
    pub bad_proxy_count: u64,
    /// Bytes received from clients since the start.
    pub received_bytes: u64,
    /// Bytes sent to clients since the start.
    pub sent_bytes: u64,
    /// Datagrams received since the start. What the kernel has thrown away before, because its buffer was full, it counts
    /// itself (`nstat UdpRcvbufErrors`).
    pub datagram_count: u64,
    /// Datagrams that the kernel has taken from the server to send since the start.
    pub datagram_sent_count: u64,
    /// Datagrams that were received and given to no worker since the start: its ring was full, or a function that dispatches
    /// wanted it so.
    pub datagram_dropped_count: u64,
    /// Datagrams that were longer than 64 KiB, and thrown away, since the start. Only a unix socket has such.
    pub datagram_truncated_count: u64,
    /// Datagrams that the server was to send and the kernel has not taken since the start: a full buffer, a unix client that
    /// does not read or is gone, an address that leads nowhere.
    pub datagram_unsent_count: u64,
    /// Workers, task workers and user processes forked after the first generation.
    pub respawn_count: u64,
    /// Each worker slot.
    pub workers: Vec<WorkerStats>,
    /// Each task worker slot.
    pub task_workers: Vec<WorkerStats>,
    /// Each user process, in the order in which the program has added them.
    pub user_processes: Vec<UserProcessStats>,
    /// Tasks of all workers.
    pub tasks: TaskStats,
}

/// Where a worker slot is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
#[repr(u64)]
pub enum WorkerState {
    /// Its process has not returned from `on_worker_start`, or is about to be forked; of a user process, its function has not
    /// begun.
    Starting = 0,
    /// Its process serves.
    Running = 1,
    /// Its process was asked to retire.
    Retiring = 2,
    /// Its processes have died in a row: the next one is forked after a pause.
    BackingOff = 3,
    /// It has failed to start `restart_intensity` times within `restart_period`, and is tried rarely.
    Failed = 4,
}

impl WorkerState {
    /// As the statistics write it: `starting`, `running`, `retiring`, `backoff`, `failed`.
    pub fn name(self) -> &'static str {
        match self {
            WorkerState::Starting => "starting",
            WorkerState::Running => "running",
            WorkerState::Retiring => "retiring",
            WorkerState::BackingOff => "backoff",
            WorkerState::Failed => "failed",
        }
    }
}

/// One worker slot's counters.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct WorkerStats {
    /// The slot, from 0.
    pub id: u16,
    /// The process in it now; 0 while there is none.
    pub pid: i32,
    /// Where the slot is in its life.
    pub state: WorkerState,
    /// Which process of this slot it is, from 1.
    pub generation: u32,
    /// Whether it waits for work.
    pub idle: bool,
    /// Packets, or tasks, that this process has handled.
    pub handled: u64,
}

/// What is known of one user process.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct UserProcessStats {
    /// The slot, from 0.
    pub id: u16,
    /// What the program calls it.
    pub name: String,
    /// The process in it now; 0 while there is none.
    pub pid: i32,
    /// Where the slot is in its life.
    pub state: WorkerState,
    /// Which process of this slot it is, from 1.
    pub generation: u32,
}

impl Stats {
    /// One line of JSON (RFC 8259): numbers, and lists of one object for each worker, task worker and user process.
    pub fn to_json(&self) -> String {
        let mut json = String::from("{");
        for (name, value) in [
            ("start_time", self.start_time),
            ("master_pid", self.master_pid as u64),
            ("manager_pid", self.manager_pid as u64),
            ("reactor_num", u64::from(self.reactor_num)),
            ("worker_num", self.workers.len() as u64),
            ("connection_num", self.connection_num),
            ("accept_count", self.accept_count),
            ("close_count", self.close_count),
            ("packet_count", self.packet_count),
            ("lost_count", self.lost_count),
            ("retry_count", self.retry_count),
            ("idle_count", self.idle_count),
            ("slow_count", self.slow_count),
            ("refuse_count", self.refuse_count),
            ("shed_count", self.shed_count),
            ("bad_proxy_count", self.bad_proxy_count),
            ("received_bytes", self.received_bytes),
            ("sent_bytes", self.sent_bytes),
            ("datagram_count", self.datagram_count),
            ("datagram_sent_count", self.datagram_sent_count),
            ("datagram_dropped_count", self.datagram_dropped_count),
            ("datagram_truncated_count", self.datagram_truncated_count),
            ("datagram_unsent_count", self.datagram_unsent_count),
            ("respawn_count", self.respawn_count),
            ("task_worker_num", self.task_workers.len() as u64),
            ("user_process_num", self.user_processes.len() as u64),
            ("task_queued", self.tasks.queued),
            ("task_running", self.tasks.running),
            ("task_oldest_ms", self.tasks.oldest.as_millis() as u64),
            ("task_done", self.tasks.done),
            ("task_failed", self.tasks.failed),
            ("task_lost", self.tasks.lost),
            ("task_retried", self.tasks.retried),
            ("task_orphaned", self.tasks.orphaned),
            ("task_expired", self.tasks.expired),
            ("task_refused", self.tasks.refused),
        ] {
            let _ = write!(json, "\"{name}\":{value},");
        }
        for (name, workers) in [("workers", &self.workers), ("task_workers", &self.task_workers)] {
            let _ = write!(json, "\"{name}\":[");
            for (index, worker) in workers.iter().enumerate() {
                let comma = if index == 0 { "" } else { "," };
                let WorkerStats { id, pid, state, generation, idle, handled } = worker;
                let state = state.name();
                let _ = write!(
                    json,
                    "{comma}{{\"id\":{id},\"pid\":{pid},\"state\":\"{state}\",\"generation\":{generation},\"idle\":{idle},\"handled\":{handled}}}"
                );
            }
            json.push_str("],");
        }
        json.push_str("\"user_processes\":[");
        for (index, process) in self.user_processes.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let UserProcessStats { id, name, pid, state, generation } = process;
            // No name has a character that JSON would want escaped.
            let state = state.name();
            let _ = write!(
                json,
                "{comma}{{\"id\":{id},\"name\":\"{name}\",\"pid\":{pid},\"state\":\"{state}\",\"generation\":{generation}}}"
            );
        }
        json.push_str("]}");
        json
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::Board;
    use crate::config::Config;

    #[test]
    fn statistics_are_one_line_of_json() {
        let board = Board::create(3, 1, 1).unwrap();
        board.enter(0, 1);
        board.set_worker_pid(0, 41);
        board.set_worker_state(0, WorkerState::Running);
        let config = Config { worker_num: 2, user_processes: vec!["metrics".into()], ..Config::default() };
        let json = board.stats(&config).to_json();
        assert!(json.starts_with("{\"start_time\":0,"), "{json}");
        assert!(
            json.ends_with(
                "\"workers\":[{\"id\":0,\"pid\":41,\"state\":\"running\",\"generation\":1,\"idle\":true,\"handled\":0},\
             {\"id\":1,\"pid\":0,\"state\":\"starting\",\"generation\":0,\"idle\":false,\"handled\":0}],\"task_workers\":[],\
             \"user_processes\":[{\"id\":0,\"name\":\"metrics\",\"pid\":0,\"state\":\"starting\",\"generation\":0}]}"
            ),
            "{json}"
        );
        assert!(!json.contains('\n'));
    }
}
