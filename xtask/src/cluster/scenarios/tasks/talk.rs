//! Clients of task scenarios.

use crate::cluster::bed::{Bed, PATIENCE};
use crate::cluster::client::Client;
use crate::cluster::proc;
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeSet, VecDeque};

/// A client for whom ends of tasks may come before other replies.
pub(super) struct Talk {
    pub(super) client: Client,
    ended: VecDeque<String>,
}

impl Talk {
    pub(super) fn begin(bed: &Bed) -> Result<Self> {
        Ok(Self { client: bed.connect()?, ended: VecDeque::new() })
    }

    pub(super) fn reply(&mut self, packet: &str) -> Result<String> {
        self.client.tell(packet)?;
        loop {
            let line = self.client.line()?;
            if !line.starts_with("finish ") {
                return Ok(line);
            }
            self.ended.push_back(line);
        }
    }

    pub(super) fn expect(&mut self, packet: &str, reply: &str) -> Result<()> {
        let got = self.reply(packet)?;
        ensure!(got == reply, "{packet:?} got {got:?} instead of {reply:?}");
        Ok(())
    }

    /// Asks for a task by this packet: its id.
    pub(super) fn ask(&mut self, packet: &str) -> Result<String> {
        let told = self.reply(packet)?;
        let id = told.strip_prefix("task ").with_context(|| format!("{packet:?}: {told:?}"))?;
        Ok(id.to_owned())
    }

    /// The next end of a task.
    pub(super) fn end(&mut self) -> Result<String> {
        match self.ended.pop_front() {
            Some(line) => Ok(line),
            None => self.client.line(),
        }
    }

    pub(super) fn expect_end(&mut self, id: &str, result: &str) -> Result<()> {
        let (got, wanted) = (self.end()?, format!("finish {id} {result}"));
        ensure!(got == wanted, "got {got:?} instead of {wanted:?}");
        Ok(())
    }

    /// The next ends, in whatever order.
    pub(super) fn expect_ends(&mut self, wanted: impl IntoIterator<Item = (String, String)>) -> Result<()> {
        let wanted: BTreeSet<String> =
            wanted.into_iter().map(|(id, result)| format!("finish {id} {result}")).collect();
        let got = wanted.iter().map(|_| self.end()).collect::<Result<BTreeSet<_>>>()?;
        ensure!(got == wanted, "got {got:?} instead of {wanted:?}");
        Ok(())
    }

    pub(super) fn stat(&mut self, name: &str) -> Result<u64> {
        let json = self.reply("stats")?;
        let key = format!("\"{name}\":");
        let rest = json.split_once(&key).with_context(|| format!("no {name} in {json}"))?.1;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Ok(digits.parse()?)
    }

    /// Until no task is under way.
    pub(super) fn wait_idle(&mut self) -> Result<()> {
        proc::until("all tasks to end", PATIENCE, || {
            let under_way = [self.stat("task_queued"), self.stat("task_running")];
            under_way.iter().all(|count| matches!(count, Ok(0))).then_some(())
        })
    }
}
