//! Bytes between processes: shared-memory rings, socketpairs and SysV message queues.
