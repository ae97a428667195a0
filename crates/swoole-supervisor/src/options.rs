//! How a supervisor treats its processes.

use std::time::Duration;

use crate::{Backoff, ReloadMode};

/// How a supervisor treats its processes.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// How long a process may take to retire before it is killed; also how long a stop by signal may take.
    /// Default 3 s.
    pub max_wait: Duration,
    /// How long a process may take from its fork until it is ready; one that takes longer is killed, and counts as one that
    /// could not start. Default `None`: for ever. A slot's first process is waited for in any case.
    pub start_timeout: Option<Duration>,
    /// How a reload goes about it unless it is asked for in another way. Default [`ReloadMode::Rolling`].
    pub reload_mode: ReloadMode,
    /// How many processes of a group may be out of service at once because they are replaced by a rolling reload or
    /// [recycled](crate::Control::recycle): the next one retires when a successor of one before it is ready. At least 1;
    /// default 1. More than there are slots is all of them.
    pub reload_parallel: u16,
    /// The wait before a process that died is replaced.
    pub backoff: Backoff,
    /// A process that has been ready for this long clears its slot's record of deaths. Default 10 s.
    pub stable_after: Duration,
    /// This many deaths before they were ready, within [`restart_period`](Self::restart_period), make a slot a failing one, which is
    /// tried again only every [`Backoff::max`]. At least 1; default 10.
    pub restart_intensity: u32,
    /// See [`restart_intensity`](Self::restart_intensity). Default 60 s.
    pub restart_period: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_wait: Duration::from_secs(3),
            start_timeout: None,
            reload_mode: ReloadMode::default(),
            reload_parallel: 1,
            backoff: Backoff::default(),
            stable_after: Duration::from_secs(10),
            restart_intensity: 10,
            restart_period: Duration::from_secs(60),
        }
    }
}

/// A value in [`Options`], or a list of groups, that makes no sense.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// [`Options::restart_intensity`] is 0.
    #[error("restart_intensity is 0, so a slot would be failing before it starts; give 1 or more")]
    RestartIntensity,
    /// [`Options::reload_parallel`] is 0.
    #[error("reload_parallel is 0, so a reload could never begin; give 1 or more")]
    ReloadParallel,
    /// [`Backoff::first`] is above [`Backoff::max`].
    #[error("backoff.first ({first:?}) is longer than backoff.max ({max:?}); give at most that")]
    Backoff {
        /// What was given as the first wait.
        first: Duration,
        /// What was given as the longest.
        max: Duration,
    },
    /// [`Backoff::jitter`] is outside 0.0 to 1.0.
    #[error("backoff.jitter is {0}; give a part from 0.0 to 1.0")]
    Jitter(f64),
    /// There are more groups than a [`SlotId`](crate::SlotId) can name.
    #[error("{0} groups; give at most 65535")]
    Groups(usize),
}

impl Options {
    pub(crate) fn validate(&self) -> Result<(), OptionsError> {
        let Backoff { first, max, jitter, .. } = self.backoff;
        if self.restart_intensity == 0 {
            Err(OptionsError::RestartIntensity)
        } else if self.reload_parallel == 0 {
            Err(OptionsError::ReloadParallel)
        } else if first > max {
            Err(OptionsError::Backoff { first, max })
        } else if !(0.0..=1.0).contains(&jitter) {
            Err(OptionsError::Jitter(jitter))
        } else {
            Ok(())
        }
    }
}
