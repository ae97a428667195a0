//! `swoole-bench`: measures, prints tables, writes charts. `cargo xtask bench` builds what it needs and runs it.

use anyhow::{Context, Result};
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;
use std::{env, fs};
use swoole_bench::bench::{BENCHES, Bench};
use swoole_bench::machine::Machine;
use swoole_bench::options::{HELP, Options, Request};
use swoole_bench::report::Report;
use swoole_bench::table::Table;
use swoole_bench::{chart, page, subject};

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether all subjects could be measured.
fn run() -> Result<bool> {
    let args: Vec<String> = env::args().skip(1).collect();
    let options = match Options::parse(&args)? {
        Request::Run(options) => options,
        Request::Help => {
            print!("{HELP}");
            return Ok(true);
        }
        Request::List => {
            print!("{}", list());
            return Ok(true);
        }
    };
    let machine = Machine::this();
    let command = format!("cargo xtask bench {}", args.join(" "));
    println!("{}", machine.line());
    println!(
        "{} runs of {} s, in a random order each time; ± is half the range\n",
        options.runs, options.seconds
    );

    let directory = subject::output_directory()?;
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    let mut reports = Vec::new();
    for bench in Bench::named(&options.benches)? {
        let report = bench.run(&options, |what| eprintln!("{what}"))?;
        print!("{}", show(&report, options.markdown));
        let picture = chart::draw(&report);
        write(&directory.join(format!("{}.svg", report.bench)), &picture)?;
        reports.push((report, picture));
        // After each bench, because the next may take long.
        write(&directory.join("index.html"), &page::html(&machine, &command, &reports))?;
        if let Some(file) = &options.json {
            let reports = reports.iter().map(|(report, _)| report).collect();
            let all = All { machine: &machine, command: &command, reports };
            write(file, &serde_json::to_string_pretty(&all)?)?;
        }
    }
    println!("charts and tables: {}", directory.join("index.html").display());
    let mut rows = reports.iter().flat_map(|(report, _)| &report.cells).flat_map(|cell| &cell.rows);
    Ok(rows.all(|row| row.failure.is_none()))
}

/// What `--json` writes.
#[derive(Serialize)]
struct All<'a> {
    machine: &'a Machine,
    command: &'a str,
    reports: Vec<&'a Report>,
}

fn list() -> String {
    let mut text = String::from("benches:\n");
    for Bench { name, about, .. } in BENCHES {
        text += &format!("  {name:<18} {about}\n");
    }
    text + &subject::list()
}

fn show(report: &Report, markdown: bool) -> String {
    let mut text = String::new();
    for skipped in &report.skipped {
        text += &format!("skipped: {skipped}\n");
    }
    for cell in &report.cells {
        let (table, title) = (Table::of(cell), format!("{}: {}", report.bench, cell.title));
        text += &match markdown {
            true => format!("### {title}\n\n{}\n", table.to_markdown()),
            false => format!("{title}\n{}\n", table.to_text()),
        };
    }
    text
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
