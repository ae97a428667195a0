//! Want of descriptors in a process that runs.

use super::bed::{Bed, PATIENCE};
use super::client::Client;
use super::proc;
use anyhow::{Context, Result};
use std::collections::BTreeSet;

/// Clients that come while there is no descriptor more.
const NEWCOMERS: usize = 4;

/// A process may have no descriptor more than it has.
pub(super) struct Drought {
    before: Option<u64>,
    /// Nobody accepts them before the end.
    newcomers: Vec<Client>,
}

impl Drought {
    /// What `holder` closes meanwhile it may have again.
    pub(super) fn begin(bed: &Bed, holder: i32) -> Result<Self> {
        Self::limit(bed, holder, proc::lowest_free(holder)?)
    }

    /// The same, but what it closes is gone.
    pub(super) fn begin_severe(bed: &Bed, holder: i32) -> Result<Self> {
        // Only the standard streams have numbers below this.
        Self::limit(bed, holder, 3)
    }

    fn limit(bed: &Bed, holder: i32, count: u64) -> Result<Self> {
        let before = proc::limit_files(holder, Some(count))?;
        let newcomers = (0..NEWCOMERS).map(|_| bed.connect()).collect::<Result<_>>()?;
        Ok(Self { before, newcomers })
    }

    /// Those who came are served now.
    pub(super) fn end(self, bed: &Bed) -> Result<()> {
        let master = bed.ready.master;
        proc::limit_files(master, self.before)?;
        // Those whom it has forked meanwhile have its limit, and so have those whom they fork before it is theirs.
        let mut freed = BTreeSet::new();
        proc::until("no process to lack descriptors", PATIENCE, || {
            let family = proc::descendants(master).into_iter();
            let late: Vec<i32> = family.filter(|pid| freed.insert(*pid)).collect();
            // One may have ended this very moment.
            late.iter().for_each(|pid| _ = proc::limit_files(*pid, self.before));
            late.is_empty().then_some(())
        })?;
        for mut client in self.newcomers {
            client
                .expect("echo at last", "at last")
                .context("a client that came when there was no descriptor")?;
        }
        Ok(())
    }
}
