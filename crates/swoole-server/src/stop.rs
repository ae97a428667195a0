//! How a stop takes in who had connected before it, in either mode.

use std::time::Duration;

/// For how long at most: who comes later than that has not connected before.
pub(crate) const LAST_CALL: Duration = Duration::from_millis(100);
/// So many turns in a row without anything new are enough. The first may end early, because of a signal.
pub(crate) const QUIET_TURNS: u32 = 2;
/// How long the second one may take.
pub(crate) const QUIET: Duration = Duration::from_millis(1);
