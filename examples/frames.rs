//! Cuts standard input into packets and prints one a line, with the framing of a server port.
//!
//!     printf 'one\ntwo\n' | cargo run --example frames -- eof
//!     printf '\0\0\0\3abc' | cargo run --example frames -- length N 0 4

use std::error::Error;
use std::io::{Read, Write};
use std::process::ExitCode;
use swoole_protocol::{Cut, EofOptions, Framing, LengthOptions};

const PACKAGE_MAX_LENGTH: usize = 2 * 1024 * 1024;

fn framing(args: &[String]) -> Result<Framing, Box<dyn Error>> {
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["raw"] => Ok(Framing::Raw),
        ["eof"] => Ok(Framing::Eof(EofOptions::new(b"\n", true)?)),
        ["eof", eof] => Ok(Framing::Eof(EofOptions::new(eof.as_bytes(), true)?)),
        ["length", kind, length_offset, body_offset] => Ok(Framing::Length(LengthOptions::new(
            kind.parse()?,
            length_offset.parse()?,
            body_offset.parse()?,
        )?)),
        ["varint"] => Ok(Framing::Varint),
        ["line"] => Ok(Framing::Line),
        _ => {
            Err("usage: frames raw | eof [EOF] | length TYPE LENGTH_OFFSET BODY_OFFSET | varint | line"
                .into())
        }
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match framing(&args).and_then(print_packets) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("frames: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print_packets(framing: Framing) -> Result<(), Box<dyn Error>> {
    let mut framer = framing.framer(PACKAGE_MAX_LENGTH);
    let (mut stdin, mut stdout) = (std::io::stdin(), std::io::stdout());
    let (mut buffer, mut chunk) = (Vec::new(), [0; 64 * 1024]);
    loop {
        let read = stdin.read(&mut chunk)?;
        buffer.extend_from_slice(&chunk[..read]);
        let mut begin = 0;
        while let Cut::Packet { len, payload } = framer.cut(&buffer[begin..])? {
            writeln!(stdout, "{:?}", String::from_utf8_lossy(&buffer[begin..][payload]))?;
            begin += len;
        }
        buffer.drain(..begin);
        match (read, buffer.len()) {
            (0, 0) => return Ok(()),
            (0, left) => return Err(format!("the input ends {left} bytes into a packet").into()),
            _ => {}
        }
    }
}
