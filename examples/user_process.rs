//! A process of the program's own beside the workers: each second it writes down how the server does.
//!
//! ```text
//! $ cargo run --release --example user_process -- metrics.jsonl &
//! $ nc 127.0.0.1 9504
//! hello
//! hello
//! $ tail -f metrics.jsonl
//! {"at":1764359850,"connections":1,"packets":1,"packets_per_second":1,"respawns":0}
//! ```
//!
//! Workers never wait for the file. Kill the process (`pkill -9 -f 'swoole: process metrics'`): another one goes on, and
//! `respawns` counts. Stop the server: the last line is from when all workers had left.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use swoole_server::{Handler, Result, Server, Session, Stats, UserProcess, Worker};

/// How often a line is written.
const PERIOD: Duration = Duration::from_secs(1);

struct Echo;

impl Handler for Echo {
    fn on_receive(&mut self, worker: &mut Worker, client: Session, packet: &[u8]) -> Result<()> {
        worker.send(client, packet)
    }
}

/// What the process does until it is asked to leave.
fn collect(process: &mut UserProcess, file: &Path) -> Result<()> {
    // Opened here, not before the server starts: only this process is to have it.
    let mut file = OpenOptions::new().create(true).append(true).open(file)?;
    let mut last = process.stats();
    loop {
        let goes_on = process.wait(PERIOD)?;
        let stats = process.stats();
        file.write_all(line(&stats, &last).as_bytes())?;
        last = stats;
        if !goes_on {
            return Ok(());
        }
    }
}

fn line(stats: &Stats, last: &Stats) -> String {
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (connections, packets, respawns) = (stats.connection_num, stats.packet_count, stats.respawn_count);
    let recent = packets.saturating_sub(last.packet_count);
    format!(
        "{{\"at\":{at},\"connections\":{connections},\"packets\":{packets},\"packets_per_second\":{recent},\
         \"respawns\":{respawns}}}\n"
    )
}

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let file = PathBuf::from(arguments.next().unwrap_or_else(|| "metrics.jsonl".into()));
    let address = arguments.next().unwrap_or_else(|| "tcp://127.0.0.1:9504".into());
    Server::listen(&address.to_string_lossy())?
        .add_process("metrics", move |process| collect(process, &file))
        .run(Echo)
}
