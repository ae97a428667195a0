//! Numbers with their names: what a measurement gives.

/// What a number means and how it is shown.
#[derive(Debug)]
pub struct Metric {
    /// Its name in JSON.
    pub key: &'static str,
    /// Its name in tables and charts, with the unit.
    pub title: &'static str,
    /// Digits behind the point.
    pub digits: usize,
    /// Whether it is compared between subjects, and drawn; all others are told beside it.
    pub compared: bool,
}

/// Every metric once, in the order of measuring.
pub type Sample = Vec<(&'static Metric, f64)>;

const fn compared(key: &'static str, title: &'static str, digits: usize) -> Metric {
    Metric { key, title, digits, compared: true }
}

const fn told(key: &'static str, title: &'static str, digits: usize) -> Metric {
    Metric { key, title, digits, compared: false }
}

/// Requests that were answered.
pub static REQUESTS: Metric = compared("requests_per_second", "requests/s", 0);
/// Connections that were served.
pub static CONNECTIONS: Metric = compared("connections_per_second", "connections/s", 0);
/// Payload there and back.
pub static MIB: Metric = compared("mib_per_second", "MiB/s", 0);
/// CPU time of all processes of the server.
pub static CPU: Metric = compared("cpu_us_per_request", "CPU us/req", 2);
/// Median latency.
pub static P50: Metric = told("p50_us", "p50 us", 0);
/// Its 99th percentile.
pub static P99: Metric = told("p99_us", "p99 us", 0);
/// Its 99.9th percentile.
pub static P999: Metric = told("p999_us", "p99.9 us", 0);
/// The 99th percentile of what a latency has in it besides the request itself.
pub static WAIT_P99: Metric = told("wait_p99_us", "wait p99 us", 0);
/// Context switches of all threads of the server.
pub static SWITCHES: Metric = told("switches_per_request", "switches/req", 3);
/// PSS of all processes of the server while its connections are open.
pub static MEMORY: Metric = told("memory_mib", "MiB", 1);
/// All system calls.
pub static CALLS: Metric = told("calls_per_request", "calls/req", 2);
/// Those between processes and threads.
pub static CALLS_IPC: Metric = told("ipc_calls_per_request", "ipc", 3);
/// `sched_yield`.
pub static CALLS_YIELD: Metric = told("yield_calls_per_request", "yield", 3);
/// `epoll_wait`, `io_uring_enter`.
pub static CALLS_WAIT: Metric = told("wait_calls_per_request", "wait", 3);
/// Memory that an idle connection costs.
pub static CONNECTION_MEMORY: Metric = compared("kib_per_connection", "KiB/connection", 2);
/// CPU time per second with nothing to do.
pub static IDLE_CPU: Metric = compared("idle_cpu_ms_per_second", "idle CPU ms/s", 3);
/// From the start of the program to the first reply.
pub static START: Metric = compared("start_ms", "first reply ms", 2);
/// Reloads of all workers meanwhile.
pub static RELOADS: Metric = told("reloads", "reloads", 0);
/// From SIGTERM to the end of the last process.
pub static STOP: Metric = compared("stop_ms", "SIGTERM to exit ms", 2);
/// From SIGKILL of a worker to its successor's first reply.
pub static RESPAWN: Metric = compared("respawn_ms", "next reply ms", 2);
/// The longest of a run.
pub static RESPAWN_MAX: Metric = told("respawn_max_ms", "longest ms", 2);
/// A message there and a message back.
pub static ROUND_TRIP: Metric = compared("round_trip_us", "round trip us", 2);
/// CPU time of both sides for that.
pub static ROUND_TRIP_CPU: Metric = compared("cpu_us_per_round_trip", "CPU us/round trip", 2);
/// Messages one way.
pub static MESSAGES: Metric = compared("messages_per_second", "messages/s", 0);
/// CPU time of both sides for one.
pub static MESSAGE_CPU: Metric = compared("cpu_us_per_message", "CPU us/message", 3);
/// Tasks that were done.
pub static TASKS: Metric = compared("tasks_per_second", "tasks/s", 0);
/// CPU time of all processes of the server for one.
pub static TASK_CPU: Metric = compared("cpu_us_per_task", "CPU us/task", 2);
/// From the request for a broadcast to the last byte at the last client.
pub static BROADCAST: Metric = compared("last_byte_ms", "last byte ms", 2);
/// CPU time of all processes of the server for one broadcast.
pub static BROADCAST_CPU: Metric = compared("cpu_ms_per_broadcast", "CPU ms", 2);
/// The same, for each of its receivers.
pub static BROADCAST_EACH: Metric = told("cpu_us_per_receiver", "CPU us/receiver", 2);
/// The call by which a process is made.
pub static FORK_CALL: Metric = compared("call_us", "call us", 0);
/// From that call to the child's first word.
pub static FORK_FIRST: Metric = compared("first_word_us", "child's first word us", 0);
/// What the parent pays for its first writes to pages that it shares with the child.
pub static FORK_TOUCH: Metric = told("touch_us", "1000 pages written us", 0);
/// Operations of all processes together.
pub static OPERATIONS: Metric = compared("operations_per_second", "operations/s", 0);
/// CPU time of all processes, also of a server.
pub static OPERATION_CPU: Metric = compared("cpu_ns_per_operation", "CPU ns/operation", 0);
/// What the rows have made the process that holds them larger.
pub static ROW_MEMORY: Metric = told("bytes_per_row", "bytes/row", 0);
