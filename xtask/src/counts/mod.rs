//! `counts`: the instructions that hot paths take, held against what is checked in.
//!
//! A clock says something else on every run of a shared machine; callgrind counts the same every time. It is driven
//! directly, not by gungraun, whose runner every fresh machine would have to compile in exactly the right version: the
//! difference of n and 2n operations leaves start-up out, and that takes one option of callgrind's and one line of its
//! output.

mod book;
mod callgrind;
mod conditions;
mod judge;

use crate::Verdict;
use crate::cluster::Tally;
use anyhow::{Result, bail, ensure};
use book::Book;
use callgrind::Program;
use conditions::Conditions;

pub(crate) const HELP: &str = "\
cargo xtask counts [OPTIONS] [NAME]...

Counts the instructions per operation of the hot paths (ring, framers, dispatch, sessions, timers, ...) with valgrind's
callgrind, and compares with counts/counts.toml. Exit code 0 when none takes more than its tolerance allows. With
another compiler, processor, C library or valgrind than those of the file nothing can be compared: it says so, and
passes.

  NAME      Only the one of this name, or all whose names contain it
  --list    Name the operations, and run none
  --bless   Write what was counted into the file (tolerances stay as they are)

Where the instructions of NAME go, with `-` for `/` in it:
  callgrind_annotate --threshold=100 target/counts/callgrind/NAME.3
";

#[derive(Default)]
struct Options {
    list: bool,
    bless: bool,
    names: Vec<String>,
}

pub(crate) fn main(mut args: lexopt::Parser) -> Verdict {
    use lexopt::prelude::*;
    let mut options = Options::default();
    while let Some(arg) = args.next()? {
        match arg {
            Long("help") | Short('h') => {
                print!("{HELP}");
                return Ok(true);
            }
            Long("list") => options.list = true,
            Long("bless") => options.bless = true,
            Value(name) => options.names.push(name.string()?),
            other => bail!(other.unexpected()),
        }
    }
    if options.list {
        choose(Program::build()?.list()?, &options.names)?.iter().for_each(|name| println!("{name}"));
        return Ok(true);
    }
    if options.bless {
        return bless(&options.names);
    }
    Ok(compare(&options.names)?.failed == 0)
}

/// Compares everything. For `cargo xtask test`.
pub(crate) fn run_everything() -> Result<Tally> {
    compare(&[])
}

fn compare(names: &[String]) -> Result<Tally> {
    let (here, book) = (Conditions::here()?, Book::read()?);
    if let Some(differences) = book.conditions.differences(&here) {
        println!("note: counts are not compared: {differences}");
        return Ok(Tally::default());
    }
    let rows = judge::rows(&count(&Program::build()?, names)?, &book.operations, names.is_empty());
    print!("{}", judge::table(&rows));
    let failed = rows.iter().filter(|row| row.judgement.fails()).count();
    Ok(Tally { passed: rows.len() - failed, failed })
}

fn bless(names: &[String]) -> Verdict {
    let (here, mut book) = (Conditions::here()?, Book::read()?);
    if let Some(differences) = book.conditions.differences(&here)
        && !names.is_empty()
    {
        bail!("one file cannot hold counts of different conditions, so bless all of them: {differences}");
    }
    let counted = count(&Program::build()?, names)?;
    print!("{}", judge::table(&judge::rows(&counted, &book.operations, names.is_empty())));
    book.conditions = here;
    book.bless(&counted, names.is_empty());
    book.write()?;
    Ok(true)
}

fn count(program: &Program, names: &[String]) -> Result<Vec<(String, f64)>> {
    let chosen = choose(program.list()?, names)?;
    chosen.into_iter().map(|name| program.count(&name).map(|counted| (name, counted))).collect()
}

/// Those that are asked for by their names or a part of them; all if nothing is asked for.
fn choose(all: Vec<String>, names: &[String]) -> Result<Vec<String>> {
    let asked = |operation: &String, name: &String| {
        // A whole name means that one, even where it is part of others.
        operation == name || !all.contains(name) && operation.contains(name.as_str())
    };
    for name in names {
        ensure!(
            all.iter().any(|operation| asked(operation, name)),
            "no operation {name:?}; --list names them"
        );
    }
    let chosen =
        all.iter().filter(|operation| names.is_empty() || names.iter().any(|name| asked(operation, name)));
    Ok(chosen.cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_parts_of_names_choose() {
        let chosen = |names: &[&str]| {
            let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
            choose(owned(&["ring/one", "ring/one-4096", "wire/reply"]), &owned(names)).ok()
        };
        let some = |names: &[&str]| Some(names.iter().map(|&name| name.to_owned()).collect());
        assert_eq!(chosen(&[]), some(&["ring/one", "ring/one-4096", "wire/reply"]));
        assert_eq!(chosen(&["ring/one"]), some(&["ring/one"]), "a whole name is that one");
        assert_eq!(chosen(&["reply", "ring"]), some(&["ring/one", "ring/one-4096", "wire/reply"]));
        assert_eq!(chosen(&["ring", "framer"]), None);
    }
}
