//! `lint`: the tools' rules, and the project's own.

mod rules;
mod source;
mod tools;

use crate::Verdict;
use anyhow::{Result, bail};
use source::Tree;

pub(crate) const HELP: &str = "\
cargo xtask lint

Formatting, clippy and docs without a warning, dependencies (cargo-deny, cargo-machete; installed when missing), and the
project's own rules: file size, layering of the crates, where unsafe may stand, no paths of somebody's machine.
Exit code 0 when every rule is kept.
";

/// What a rule found: nothing, or one line for each place that breaks it.
type Findings = Result<Vec<String>>;

type Rule = (&'static str, fn(&Tree) -> Findings);

const RULES: &[Rule] = &[
    ("file size", |tree| Ok(rules::file_size(tree))),
    ("crate layering", |tree| Ok(rules::layering(tree))),
    ("unsafe fence", |tree| Ok(rules::unsafe_fence(tree))),
    ("machine paths", |tree| Ok(rules::machine_paths(tree))),
    ("cargo fmt", |_| tools::formatting()),
    ("cargo clippy", |_| tools::clippy()),
    ("cargo doc", |_| tools::docs()),
    ("cargo machete", |_| tools::unused_dependencies()),
    ("cargo deny", |_| tools::dependencies()),
    ("cargo deny advisories", |_| tools::advisories()),
];

pub(crate) fn main(mut args: lexopt::Parser) -> Verdict {
    match args.next()? {
        None => {}
        Some(lexopt::Arg::Long("help") | lexopt::Arg::Short('h')) => {
            print!("{HELP}");
            return Ok(true);
        }
        Some(other) => bail!(other.unexpected()),
    }
    let tree = Tree::of_repository()?;
    let mut broken = 0;
    for (name, rule) in RULES {
        let findings = rule(&tree)?;
        println!("{} {name}", if findings.is_empty() { "ok     " } else { "BROKEN " });
        for finding in &findings {
            println!("    {finding}");
        }
        broken += usize::from(!findings.is_empty());
    }
    println!("lint: {} rules kept, {broken} broken", RULES.len() - broken);
    Ok(broken == 0)
}
