//! The system calls a process-model server needs and rustix lacks.
