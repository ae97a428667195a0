//! The table of all keys, which is made by hand in its last column only.

use std::fmt::Write as _;

use super::super::keys::{KEYS, Key, Kind, show};
use super::*;

const FILE: &str = "src/config/options.md";

/// What differs from machine to machine.
fn default_of(key: &Key, defaults: &toml::Table) -> String {
    match key.name {
        "worker_num" => "cores".into(),
        "reactor_num" => "cores, at most 8".into(),
        "task_tmpdir" => "`TMPDIR`, or /tmp".into(),
        name => match defaults.get(name) {
            None => String::new(),
            Some(toml::Value::Array(none)) if none.is_empty() => String::new(),
            Some(toml::Value::String(none)) if none.is_empty() => String::new(),
            Some(toml::Value::Float(seconds)) => seconds.to_string(),
            Some(value) => format!("`{}`", show(value)),
        },
    }
}

fn row_of(key: &Key, defaults: &toml::Table) -> String {
    let range = match key.kind {
        Kind::Count(_, max) if max == i64::MAX as u64 => "0 and more".into(),
        Kind::Size(..) => key.expected(),
        _ => key.expected().replace('|', "\\|"),
    };
    format!("| `{}` | {} | {range} |", key.name, default_of(key, defaults))
}

/// `SWOOLE_BLESS=1` writes what is missing, and leaves the scenarios to be named.
#[test]
fn every_key_stands_in_the_table_with_its_scenarios() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE);
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    let head: String =
        text.lines().take_while(|line| !line.starts_with("| `")).map(|line| format!("{line}\n")).collect();
    let defaults = toml::Table::try_from(Config::default()).unwrap();
    let mut wanted = head;
    for key in KEYS {
        let start = format!("| `{}` |", key.name);
        let known = text.lines().find(|line| line.starts_with(&start));
        let scenarios = known.and_then(|line| line.rsplit('|').nth(1)).unwrap_or(" ");
        writeln!(wanted, "{}{scenarios}|", row_of(key, &defaults)).unwrap();
    }
    if std::env::var_os("SWOOLE_BLESS").is_some() {
        std::fs::write(&file, &wanted).unwrap();
    }
    assert_eq!(text, wanted, "{FILE} is not what SWOOLE_BLESS=1 makes of it");
    let empty: Vec<&str> = text.lines().filter(|line| line.ends_with("| |")).collect();
    assert!(empty.is_empty(), "no scenario shows them: {empty:?}");
}
