//! The command line.

use crate::Protocol;
use anyhow::{Context, Result, bail, ensure};
use lexopt::prelude::*;
use std::ffi::OsString;
use std::path::PathBuf;

/// What `--help` prints; `cargo xtask help bench` has the same.
pub const HELP: &str = include_str!("help.txt");

/// What to measure, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Benches by name; none: all.
    pub benches: Vec<String>,
    /// Peers by name; none: those that each bench has by itself.
    pub against: Vec<String>,
    /// Variants of our server by name; none: those that each bench has by itself.
    pub only: Vec<String>,
    /// Variants of our server by name and flags, measured besides.
    pub variants: Vec<(String, String)>,
    /// How often each subject is measured.
    pub runs: usize,
    /// How long, each time.
    pub seconds: f64,
    /// Payload bytes, instead of the bench's own.
    pub sizes: Vec<usize>,
    /// Requests under way per connection, instead of the bench's own.
    pub depths: Vec<usize>,
    /// Connections, instead of the bench's own.
    pub connections: Vec<usize>,
    /// Framings, instead of the bench's own.
    pub framings: Vec<Protocol>,
    /// Requests per second of an open loop; `None`: closed loop.
    pub rate: Option<f64>,
    /// Where all raw runs go.
    pub json: Option<PathBuf>,
    /// Whether tables are Markdown.
    pub markdown: bool,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Request {
    /// To measure.
    Run(Box<Options>),
    /// To print [`HELP`].
    Help,
    /// To name benches and subjects.
    List,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            benches: Vec::new(),
            against: Vec::new(),
            only: Vec::new(),
            variants: Vec::new(),
            runs: 5,
            seconds: 3.0,
            sizes: Vec::new(),
            depths: Vec::new(),
            connections: Vec::new(),
            framings: Vec::new(),
            rate: None,
            json: None,
            markdown: false,
        }
    }
}

impl Options {
    /// Reads a command line, without the program's name.
    ///
    /// # Errors
    /// It has an unknown flag or a value that makes no sense.
    pub fn parse(args: impl IntoIterator<Item = impl Into<OsString>>) -> Result<Request> {
        let mut options = Options::default();
        let mut parser = lexopt::Parser::from_args(args);
        while let Some(arg) = parser.next()? {
            match arg {
                Value(name) => options.benches.push(name.string()?),
                Long("against") => options.against.push(parser.value()?.string()?),
                Long("only") => options.only.push(parser.value()?.string()?),
                Long("variant") => options.variants.push(variant(&parser.value()?.string()?)?),
                Long("runs") => options.runs = parser.value()?.parse()?,
                Long("secs") => options.seconds = parser.value()?.parse()?,
                Long("size") => options.sizes.push(parser.value()?.parse_with(size)?),
                Long("depth") => options.depths.push(parser.value()?.parse()?),
                Long("connections") => options.connections.push(parser.value()?.parse()?),
                Long("framing") => options.framings.push(parser.value()?.parse()?),
                Long("rate") => options.rate = Some(parser.value()?.parse()?),
                Long("json") => options.json = Some(parser.value()?.into()),
                Long("markdown") => options.markdown = true,
                Long("list") => return Ok(Request::List),
                Long("help") | Short('h') => return Ok(Request::Help),
                other => bail!(other.unexpected()),
            }
        }
        options.check()?;
        Ok(Request::Run(Box::new(options)))
    }

    fn check(&self) -> Result<()> {
        ensure!(self.runs > 0, "--runs is 0");
        ensure!((0.1..=600.0).contains(&self.seconds), "--secs must be 0.1..=600");
        ensure!(self.rate.is_none_or(|rate| (1.0..=1e7).contains(&rate)), "--rate must be 1..=10000000");
        let zero = [&self.sizes, &self.depths, &self.connections].iter().any(|list| list.contains(&0));
        ensure!(!zero, "--size, --depth and --connections must not be 0");
        ensure!(!self.framings.contains(&Protocol::Redis), "--framing must be raw or length");
        Ok(())
    }
}

/// The values of a flag, or what a bench takes without it.
pub fn or<T: Clone>(given: &[T], own: &[T]) -> Vec<T> {
    if given.is_empty() { own.to_vec() } else { given.to_vec() }
}

fn variant(text: &str) -> Result<(String, String)> {
    let (name, flags) = text.split_once('=').context("--variant takes NAME=FLAGS")?;
    ensure!(
        !name.is_empty() && !name.starts_with('-'),
        "--variant takes NAME=FLAGS, for example big=--ring-size=4MiB"
    );
    Ok((name.to_owned(), flags.to_owned()))
}

/// Bytes: a number, with K or M behind it for KiB and MiB.
fn size(text: &str) -> Result<usize> {
    let (digits, unit) = match text.strip_suffix(['K', 'M']) {
        Some(digits) if text.ends_with('K') => (digits, 1 << 10),
        Some(digits) => (digits, 1 << 20),
        None => (text, 1),
    };
    let number: usize =
        digits.parse().with_context(|| format!("{text:?} is no size: give bytes, or 4K, 1M"))?;
    number.checked_mul(unit).context("too large")
}

/// A size as a person would write it.
pub fn show_size(bytes: usize) -> String {
    match bytes {
        _ if bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        _ if bytes >= 1 << 10 && bytes.is_multiple_of(1 << 10) => format!("{} KiB", bytes >> 10),
        _ => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options> {
        match Options::parse(line.split_whitespace())? {
            Request::Run(options) => Ok(*options),
            other => bail!("{other:?}"),
        }
    }

    #[test]
    fn a_cell_on_the_command_line() {
        let options =
            parse("echo --size 128 --size 64K --depth 1 --framing raw --against tokio --runs 2").unwrap();
        assert_eq!((options.benches.as_slice(), options.runs), (&["echo".to_owned()][..], 2));
        assert_eq!((options.sizes.as_slice(), options.depths.as_slice()), (&[128, 65536][..], &[1][..]));
        assert_eq!(options.framings, [Protocol::Raw]);
        let options = parse("--variant=big=--ring-size=4MiB").unwrap();
        assert_eq!(options.variants, [("big".to_owned(), "--ring-size=4MiB".to_owned())]);
    }

    #[test]
    fn nonsense_is_refused() {
        for line in
            ["--runs 0", "--secs 0", "--size x", "--framing redis", "--variant --x", "--rate 0", "--what"]
        {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn sizes_are_read_and_shown() {
        for (text, bytes, shown) in
            [("128", 128, "128 B"), ("4K", 4096, "4 KiB"), ("64M", 64 << 20, "64 MiB")]
        {
            assert_eq!((size(text).unwrap(), show_size(bytes).as_str()), (bytes, shown));
        }
    }
}
