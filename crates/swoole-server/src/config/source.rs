//! Where values come from: defaults, a TOML file, the environment and flags, merged key by key.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use lexopt::Arg;
use toml::{Spanned, Table, Value};

use super::keys::{self, KEYS, Key, Kind};
use super::{Config, ConfigError, Origin};

/// Reads a [`Config`] for a program that has defaults or flags of its own.
///
/// ```
/// use swoole_server::config::{Config, Framing, Sources};
///
/// let mut defaults = Config::default();
/// defaults.framing = Framing::Eof;
/// defaults.listen.push("tcp://127.0.0.1:9501".parse()?);
///
/// let (mut greeting, mut quiet) = (None, false);
/// let config = Sources::new(defaults)
///     .option("greeting", "TEXT", "what a client is told first", &mut greeting)
///     .switch("quiet", "tells clients nothing", &mut quiet)
///     .load(["--greeting=hello", "--worker-num", "2"].map(Into::into), [])?;
/// assert_eq!((config.worker_num, config.framing), (2, Framing::Eof));
/// assert_eq!((greeting.as_deref(), quiet), (Some("hello"), false));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Sources<'a> {
    defaults: Config,
    extras: Vec<Extra<'a>>,
    /// What the configuration comes to is wanted, and no server.
    explains: bool,
}

/// A flag of the program's own.
struct Extra<'a> {
    name: &'static str,
    placeholder: &'static str,
    help: &'static str,
    target: Target<'a>,
}

enum Target<'a> {
    Switch(&'a mut bool),
    Option(&'a mut Option<String>),
}

/// A value, and where it stands.
type Given = (&'static Key, Value, Origin);

impl<'a> Sources<'a> {
    /// Sources over these defaults.
    pub fn new(defaults: Config) -> Sources<'a> {
        Sources { defaults, extras: Vec::new(), explains: false }
    }

    /// A flag `--name PLACEHOLDER` of the program's own; its value goes to `target`. The configuration's keys win over
    /// a flag of the same name.
    #[must_use]
    pub fn option(
        mut self,
        name: &'static str,
        placeholder: &'static str,
        help: &'static str,
        target: &'a mut Option<String>,
    ) -> Self {
        self.extras.push(Extra { name, placeholder, help, target: Target::Option(target) });
        self
    }

    /// A flag `--name` of the program's own, without a value; `target` becomes true when it is given.
    #[must_use]
    pub fn switch(mut self, name: &'static str, help: &'static str, target: &'a mut bool) -> Self {
        self.extras.push(Extra { name, placeholder: "", help, target: Target::Switch(target) });
        self
    }

    /// Loads from this process's flags and environment; `--help` prints all keys to stdout and ends the process, as
    /// `--explain` does with [`Config::explain`].
    ///
    /// # Errors
    /// As [`load`](Sources::load).
    pub fn load_process(self) -> Result<Config, ConfigError> {
        match self.load(std::env::args_os().skip(1), std::env::vars_os()) {
            Err(ConfigError::Help(text)) => {
                // A reader that has seen enough is no fault.
                let _ = std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes());
                std::process::exit(0)
            }
            loaded => loaded,
        }
    }

    /// Loads from these flags (without the program's name) and these variables, and validates the result.
    ///
    /// Variables whose names are not `SWOOLE_` and a key are ignored: platforms set some of their own.
    ///
    /// # Errors
    /// [`ConfigError`], with where the value stands; [`ConfigError::Help`] for `--help` and `--explain`.
    pub fn load(
        mut self,
        args: impl IntoIterator<Item = OsString>,
        env: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Config, ConfigError> {
        let (file, flags) = self.read_flags(args)?;
        let mut given = match file {
            Some(path) => read_file(&path)?,
            None => Vec::new(),
        };
        given.extend(read_env(env)?);
        given.extend(flags);

        let mut table = Table::try_from(&self.defaults).map_err(unreadable)?;
        let mut origins = BTreeMap::new();
        for (key, value, origin) in given {
            table.insert(key.name.into(), value);
            origins.insert(key.name, origin);
        }
        let config: Config = table.try_into().map_err(unreadable)?;
        let located = |error: ConfigError| error.located(|key| origins.get(key).cloned());
        config.validate().map_err(located)?;
        if self.explains {
            return Err(ConfigError::Help(config.explain().map_err(located)?));
        }
        Ok(config)
    }

    /// The text of `--help`.
    pub fn help(&self) -> String {
        let defaults = Table::try_from(&self.defaults).unwrap_or_default();
        let keys = KEYS.iter().map(|key| key.help(defaults.get(key.name)));
        let extras = self
            .extras
            .iter()
            .map(|extra| keys::help_line(&format!("--{} {}", extra.name, extra.placeholder), extra.help));
        let mut text = String::from(
            "Each key is a flag (--worker-num 4), a variable (SWOOLE_WORKER_NUM=4) and a key of the TOML file\n\
             (worker_num = 4). A flag wins over a variable, which wins over the file. Sizes are bytes, or as 512K, \
             2M, 1G.\n\n",
        );
        text += &keys::help_line("--config FILE", "reads keys from this TOML file");
        text +=
            &keys::help_line("--explain", "prints how much memory the server may take, and why, and ends");
        text.extend(keys.chain(extras));
        text
    }

    /// What the flags give, and the file that `--config` names.
    fn read_flags(
        &mut self,
        args: impl IntoIterator<Item = OsString>,
    ) -> Result<(Option<PathBuf>, Vec<Given>), ConfigError> {
        let mut parser = lexopt::Parser::from_args(args);
        let mut file = None;
        let mut given = Vec::new();
        let mut lists = BTreeMap::<&str, Vec<Value>>::new();
        while let Some(arg) = parser.next().map_err(unexpected)? {
            let name = match arg {
                Arg::Short('h') | Arg::Long("help") => return Err(ConfigError::Help(self.help())),
                Arg::Long(name) => name.to_owned(),
                Arg::Short(letter) => return Err(ConfigError::Argument { argument: format!("-{letter}") }),
                Arg::Value(value) => {
                    return Err(ConfigError::Argument { argument: value.to_string_lossy().into() });
                }
            };
            let origin = Origin::Flag(format!("--{name}"));
            if name == "explain" {
                self.explains = true;
            } else if name == "config" {
                file = Some(flag_value(&mut parser, &origin)?.into());
            } else if let Some(key) = keys::find(&name.replace('-', "_")) {
                let text = match key.kind {
                    Kind::Switch => parser.optional_value().unwrap_or_else(|| "true".into()),
                    _ => flag_value(&mut parser, &origin)?,
                };
                let mut value = checked(key, key.read(utf8(&text, &origin)?), &origin)?;
                if key.is_list() {
                    let list = lists.entry(key.name).or_default();
                    list.push(value);
                    value = Value::Array(list.clone());
                }
                given.push((key, value, origin));
            } else if let Some(extra) = self.extras.iter_mut().find(|extra| extra.name == name) {
                match &mut extra.target {
                    Target::Switch(target) => **target = true,
                    Target::Option(target) => {
                        let value = flag_value(&mut parser, &origin)?;
                        **target = Some(utf8(&value, &origin)?.into());
                    }
                }
            } else {
                return Err(ConfigError::UnknownKey { origin, key: name });
            }
        }
        Ok((file, given))
    }
}

/// The value of the flag that was just read.
fn flag_value(parser: &mut lexopt::Parser, origin: &Origin) -> Result<OsString, ConfigError> {
    parser.value().map_err(|_| malformed(origin, "needs a value"))
}

fn read_file(path: &Path) -> Result<Vec<Given>, ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::File { path: path.into(), source })?;
    let at = |offset: usize| {
        let line = 1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count();
        Origin::File { path: path.into(), line }
    };
    let table: BTreeMap<String, Spanned<Value>> =
        toml::from_str(&text).map_err(|error| ConfigError::Syntax {
            origin: at(error.span().map_or(0, |span| span.start)),
            message: error.message().into(),
        })?;
    let read = |(name, value): (String, Spanned<Value>)| {
        let origin = at(value.span().start);
        let Some(key) = keys::find(&name) else {
            return Err(ConfigError::UnknownKey { origin, key: name });
        };
        Ok((key, checked(key, value.into_inner(), &origin)?, origin))
    };
    table.into_iter().map(read).collect()
}

fn read_env(env: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Vec<Given>, ConfigError> {
    let mut given = Vec::new();
    for (name, text) in env {
        let Some(key) = name.to_str().and_then(variable_key) else { continue };
        let origin = Origin::Environment(name.to_string_lossy().into());
        let text = utf8(&text, &origin)?;
        let value = if key.is_list() {
            Value::Array(text.split(',').map(|one| key.read(one.trim())).collect())
        } else {
            key.read(text)
        };
        given.push((key, checked(key, value, &origin)?, origin));
    }
    Ok(given)
}

/// The key that a variable of this name sets.
fn variable_key(name: &str) -> Option<&'static Key> {
    let name = name.strip_prefix("SWOOLE_")?;
    let lower = name.to_ascii_lowercase();
    if lower.to_ascii_uppercase() == name { keys::find(&lower) } else { None }
}

/// `value`, if it can be a value of `key` by its type. Ranges are checked for all sources at once, later.
fn checked(key: &'static Key, value: Value, origin: &Origin) -> Result<Value, ConfigError> {
    let alone = Table::from_iter([(key.name.to_owned(), value.clone())]);
    let Err(error) = alone.try_into::<Config>() else { return Ok(value) };
    Err(match key.kind {
        // The error says which address, and what is wrong with it.
        Kind::Listen => malformed(origin, &format!("{}: {}", key.name, error.message())),
        _ => ConfigError::Value {
            origin: origin.clone(),
            key: key.name,
            value: keys::show(&value),
            reason: format!("must be {}", key.expected()),
        },
    })
}

fn utf8<'t>(text: &'t OsStr, origin: &Origin) -> Result<&'t str, ConfigError> {
    text.to_str().ok_or_else(|| malformed(origin, "must be UTF-8"))
}

fn malformed(origin: &Origin, reason: &str) -> ConfigError {
    ConfigError::Malformed { origin: origin.clone(), reason: reason.into() }
}

/// Only `--switch=value` for a switch of the program's own gets here.
fn unexpected(error: lexopt::Error) -> ConfigError {
    match error {
        lexopt::Error::UnexpectedValue { option, .. } => malformed(&Origin::Flag(option), "takes no value"),
        other => ConfigError::Argument { argument: other.to_string() },
    }
}

/// A path of the program's own defaults that is not UTF-8: all values given as text have been checked one by one.
fn unreadable(error: impl std::fmt::Display) -> ConfigError {
    malformed(&Origin::Program, &format!("the defaults cannot be read: {error}"))
}
