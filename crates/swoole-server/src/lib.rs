//! A server whose handlers run in crash-isolated worker processes.
