//! A timer that the supervisor can wait for.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// A timerfd_create(2) on the monotonic clock: readable when it has run out, until it is [heard](Timer::hear).
#[derive(Debug)]
pub(crate) struct Timer(OwnedFd);

impl Timer {
    /// Runs out once.
    pub(crate) fn once(after: Duration) -> rustix::io::Result<Timer> {
        Timer::new(after, Duration::ZERO)
    }

    /// Runs out again and again.
    pub(crate) fn every(period: Duration) -> rustix::io::Result<Timer> {
        Timer::new(period, period)
    }

    fn new(after: Duration, period: Duration) -> rustix::io::Result<Timer> {
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        // With zero it would never run out.
        let value = timespec(after.max(Duration::from_nanos(1)));
        let value = Itimerspec { it_interval: timespec(period), it_value: value };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &value)?;
        Ok(Timer(timer))
    }

    pub(crate) fn is(&self, fd: RawFd) -> bool {
        self.0.as_raw_fd() == fd
    }

    /// How often it has run out does not matter.
    pub(crate) fn hear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    fn runs_out(timer: &Timer, within: Duration) -> bool {
        poll(&mut [PollFd::new(timer, PollFlags::IN)], Some(&timespec(within))).unwrap() > 0
    }

    #[test]
    fn runs_out_once_or_again_and_again() {
        let long = Duration::from_secs(20);
        let timer = Timer::once(Duration::ZERO).unwrap();
        assert!(runs_out(&timer, long) && timer.is(timer.as_fd().as_raw_fd()));
        timer.hear();
        timer.hear();
        assert!(!runs_out(&timer, Duration::ZERO), "it was heard, and does not come again");
        let timer = Timer::every(Duration::from_millis(1)).unwrap();
        for _ in 0..3 {
            assert!(runs_out(&timer, long));
            timer.hear();
        }
    }
}
