//! Puts tasks into the queue of a server that runs, or will.
//!
//! ```console
//! $ cargo run --release --example testbed -- --task-ipc-mode msgqueue_preemptive --message-queue-key 0x5377 \
//!       --task-worker-num 2 --listen tcp://127.0.0.1:9501 &
//! $ cargo run --release --example task_producer -- 0x5377 /tmp "say hello" "say again"
//! ```
//!
//! The second argument is the server's `task_tmpdir`, the others are tasks, or `-` for what comes on standard input; after
//! `--to N`, for task worker N. The same in Python, without any package:
//!
//! ```python
//! import ctypes, struct
//!
//! libc = ctypes.CDLL(None, use_errno=True)
//! queue = libc.msgget(0x5377, 0o1600)  # IPC_CREAT, for this user
//! payload = b"say hello from Python"
//! header = struct.pack("<4sHHQQQIHHQ", b"SWTK", 1, 0, 0, 0, 0, 0, 0, 0, len(payload))
//! message = struct.pack("l", 1) + header + payload  # type 1: whoever is free
//! assert libc.msgsnd(queue, message, len(message) - struct.calcsize("l"), 0) == 0
//! ```

use std::io::Read as _;

use swoole_server::{Result, TaskQueue};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(key), Some(task_tmpdir)) = (args.next(), args.next()) else {
        return Err("task_producer KEY TASK_TMPDIR [--to N] [TASK|-]...".into());
    };
    let key = match key.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16)?,
        None => key.parse()?,
    };
    let queue = TaskQueue::open(key, task_tmpdir)?;
    let mut to = None;
    while let Some(arg) = args.next() {
        let mut payload = arg.into_bytes();
        match &payload[..] {
            b"--to" => {
                to = args.next().map(|id| id.parse()).transpose()?;
                continue;
            }
            b"-" => {
                payload.clear();
                std::io::stdin().read_to_end(&mut payload)?;
            }
            _ => {}
        }
        match to {
            Some(task_worker) => queue.push_to(task_worker, &payload)?,
            None => queue.push(&payload)?,
        }
    }
    Ok(())
}
