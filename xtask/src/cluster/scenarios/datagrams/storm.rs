//! Many senders at once, while workers die and are replaced.

use super::{launch, stat};
use crate::cluster::bed::{Bed, PATIENCE};
use crate::cluster::client::Client;
use crate::cluster::datagram::{Sender, address_of};
use crate::cluster::log::Source;
use crate::cluster::matrix::Cx;
use crate::cluster::proc;
use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Datagrams of one sender under way: so few that the kernel's buffers hold those of all.
const WINDOW: usize = 4;
/// One that is not answered in this time makes room for another one, and may still be answered.
const OVERDUE: Duration = Duration::from_secs(1);
/// When nothing has come for so long, nothing comes any more.
const QUIET: Duration = Duration::from_secs(4);

/// Senders, each with a thread of its own.
struct Crowd {
    threads: Vec<JoinHandle<Result<(u64, u64)>>>,
    answered: Arc<AtomicU64>,
    enough: Arc<AtomicBool>,
}

impl Crowd {
    fn start(bed: &Bed, senders: usize) -> Result<Self> {
        let address = address_of(bed, "udp")?;
        let (answered, enough) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let threads = (0..senders).map(|id| {
            let (address, answered, enough) = (address.clone(), Arc::clone(&answered), Arc::clone(&enough));
            std::thread::spawn(move || send_on(&Sender::udp(&address)?, id, &answered, &enough))
        });
        Ok(Self { threads: threads.collect(), answered: Arc::clone(&answered), enough })
    }

    /// Waits until so many more datagrams are answered.
    fn wait(&self, more: u64) -> Result<()> {
        let until = self.answered.load(Ordering::Relaxed) + more;
        let come = || (self.answered.load(Ordering::Relaxed) >= until).then_some(());
        proc::until(&format!("{more} more answers"), PATIENCE, come)
    }

    /// Waits until nothing comes any more: how many were sent, and answered.
    fn end(self) -> Result<(u64, u64)> {
        self.enough.store(true, Ordering::Relaxed);
        let mut sum = (0, 0);
        for thread in self.threads {
            let (sent, answered) = thread.join().map_err(|_| anyhow!("a sender panicked"))??;
            sum = (sum.0 + sent, sum.1 + answered);
        }
        Ok(sum)
    }
}

/// Sends and receives until it is enough; how many were sent, and answered. An answer must be to a datagram of this sender
/// that has none yet.
fn send_on(sender: &Sender, id: usize, total: &AtomicU64, enough: &AtomicBool) -> Result<(u64, u64)> {
    let (mut sent, mut answered) = (0_u64, 0_u64);
    let mut pending: BTreeMap<u64, Instant> = BTreeMap::new();
    let mut last = Instant::now();
    loop {
        let is_over = enough.load(Ordering::Relaxed);
        let under_way = pending.values().filter(|since| since.elapsed() < OVERDUE).count();
        for _ in under_way..if is_over { 0 } else { WINDOW } {
            let filling = "z".repeat(sent as usize * 37 % 900);
            sender.send(format!("echo {id} {sent} {filling}").as_bytes())?;
            pending.insert(sent, Instant::now());
            sent += 1;
        }
        if is_over && (pending.is_empty() || last.elapsed() > QUIET) {
            return Ok((sent, answered));
        }
        let Some(answer) = sender.receive_within(Duration::from_millis(100))? else { continue };
        last = Instant::now();
        let answer = String::from_utf8(answer)?;
        let mut words = answer.split(' ');
        let (whose, number) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        ensure!(whose == id.to_string(), "sender {id} got {answer:?}");
        let number: u64 = number.parse().with_context(|| format!("sender {id} got {answer:?}"))?;
        let filling = words.next().unwrap_or_default();
        ensure!(filling.len() == number as usize * 37 % 900, "sender {id} got {answer:?}");
        ensure!(pending.remove(&number).is_some(), "sender {id} got an answer twice: {answer:?}");
        answered += 1;
        total.fetch_add(1, Ordering::Relaxed);
    }
}

/// Kills workers one after another while they are busy.
fn kill_some(cx: &Cx, bed: &Bed, crowd: &Crowd) -> Result<()> {
    let mut rng = cx.rng();
    for _ in 0..6 {
        crowd.wait(rng.u64(100..300))?;
        let worker = rng.u32(0..2);
        let before = bed.lives().get(&worker).context("no such worker")?.pid;
        proc::signal(before, Signal::KILL)?;
        bed.wait_successor(worker, before)?;
    }
    crowd.wait(100)
}

pub(super) fn senders(cx: &Cx) -> Result<()> {
    let bed = launch(cx).flag("worker-num", 2).flag("reactor-num", 2).start()?;
    let mut client = bed.connect()?;
    let warm = Sender::connect(&bed)?;
    (0..100).try_for_each(|_| warm.expect("echo warm", "warm"))?;
    let before = bed.private_memory()?;
    for round in 0..10 {
        let senders = (0..100).map(|_| Sender::connect(&bed)).collect::<Result<Vec<_>>>()?;
        for (sender, number) in senders.iter().zip(0..) {
            sender.send(format!("echo {round}-{number}").as_bytes())?;
        }
        for (sender, number) in senders.iter().zip(0..) {
            sender.expect_answer(&format!("{round}-{number}"))?;
        }
    }
    let grown = bed.private_memory()?.saturating_sub(before);
    ensure!(grown < 4 << 20, "memory has grown by {grown} bytes");
    let (received, sent) = (stat(&mut client, "datagram_count")?, stat(&mut client, "datagram_sent_count")?);
    ensure!((received, sent) == (1100, 1100), "{received} received, {sent} sent");
    bed.stop()?;
    Ok(())
}

/// How many datagrams the server says it has not answered.
fn counted(client: &mut Client) -> Result<u64> {
    let keys = ["lost_count", "datagram_dropped_count", "datagram_unsent_count"];
    keys.into_iter().map(|key| stat(client, key)).sum()
}

pub(super) fn kills(cx: &Cx) -> Result<()> {
    let bed = launch(cx).flag("worker-num", 2).flag("reactor-num", 2).start()?;
    let crowd = Crowd::start(&bed, 6)?;
    kill_some(cx, &bed, &crowd)?;
    let (sent, answered) = crowd.end()?;
    let counted = counted(&mut bed.connect()?)?;
    let missing = sent - answered;
    // In Base mode a worker that dies has a datagram and its answer for moments in which nobody else knows of them.
    let fits = if bed.is_base() { missing <= 6 && counted <= 6 } else { missing == counted && missing <= 6 };
    ensure!(fits, "of {sent} datagrams {missing} were not answered, and {counted} are counted");
    bed.stop()?;
    Ok(())
}

pub(super) fn retry(cx: &Cx) -> Result<()> {
    let launch = launch(cx).flag("worker-num", 2).flag("reactor-num", 2);
    let bed = launch.flag("on-crash", "retry").flag("crash-retries", 20).start()?;
    let crowd = Crowd::start(&bed, 6)?;
    kill_some(cx, &bed, &crowd)?;
    let (sent, answered) = crowd.end()?;
    let counted = counted(&mut bed.connect()?)?;
    ensure!((sent, counted) == (answered, 0), "{answered} of {sent} were answered, {counted} are counted");
    // The packet that kills whoever has it is given up, and nobody gets anything for it.
    let sender = Sender::connect(&bed)?;
    sender.send(b"crash exit 7")?;
    bed.log.wait_line(Source::Stderr, &["poison", "a datagram of 12 bytes", "listener 1"], PATIENCE)?;
    sender.expect("echo still there", "still there")?;
    bed.stop()?;
    Ok(())
}

pub(super) fn reloads(cx: &Cx) -> Result<()> {
    let bed = launch(cx).flag("worker-num", 2).flag("reactor-num", 2).start()?;
    let crowd = Crowd::start(&bed, 6)?;
    for round in 1..=4 {
        crowd.wait(200)?;
        bed.signal_master(Signal::USR1)?;
        bed.log.wait_count("on_after_reload", round, PATIENCE)?;
    }
    crowd.wait(200)?;
    let (sent, answered) = crowd.end()?;
    let counted = counted(&mut bed.connect()?)?;
    ensure!((sent, counted) == (answered, 0), "{answered} of {sent} were answered, {counted} are counted");
    bed.stop()?;
    Ok(())
}
