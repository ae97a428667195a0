//! Sans-I/O packet framing: raw, eof and length.
