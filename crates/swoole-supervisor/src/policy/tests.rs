//! The state machine without processes.
