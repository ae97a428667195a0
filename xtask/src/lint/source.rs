//! The repository's files, and what of a Rust file is code.

use crate::shell;
use anyhow::Result;
use std::process::Command;

pub(super) struct File {
    /// Relative to the repository's root.
    pub(super) path: String,
    pub(super) text: String,
}

/// Every text file of the repository.
pub(super) struct Tree {
    pub(super) files: Vec<File>,
}

impl Tree {
    /// What git tracks or would track; files that are no text are left out.
    pub(super) fn of_repository() -> Result<Self> {
        let mut git = Command::new("git");
        git.args(["ls-files", "--cached", "--others", "--exclude-standard"]).current_dir(shell::root());
        let mut files = Vec::new();
        for path in shell::output(&mut git)?.lines() {
            // A tracked file may be deleted in the working tree.
            if let Ok(text) = std::fs::read_to_string(shell::root().join(path)) {
                files.push(File { path: path.to_owned(), text });
            }
        }
        Ok(Self { files })
    }

    pub(super) fn rust(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|file| file.path.ends_with(".rs"))
    }
}

/// A Rust source with comments and the contents of literals left out. Lines stay lines.
pub(super) fn code_of(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(next) = rest.chars().next() {
        let skipped = skip_comment(rest).or_else(|| skip_literal(rest));
        if let Some(length) = skipped {
            code.extend(rest[..length].chars().filter(|c| *c == '\n'));
            code.push(' ');
            rest = &rest[length..];
        } else {
            // A whole word at once, so that the `r` of `for "` starts no raw string.
            let word = rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
            let length = word.max(next.len_utf8());
            code.push_str(&rest[..length]);
            rest = &rest[length..];
        }
    }
    code
}

pub(super) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The length of the comment that `source` starts with. Block comments nest.
fn skip_comment(source: &str) -> Option<usize> {
    if source.starts_with("//") {
        return Some(source.find('\n').unwrap_or(source.len()));
    }
    source.strip_prefix("/*")?;
    let (mut depth, mut at) = (0_usize, 0);
    loop {
        let rest = &source[at..];
        if rest.starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest.starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return Some(at);
            }
        } else {
            at += rest.chars().next().map_or(rest.len() + 1, char::len_utf8);
            if at >= source.len() {
                return Some(source.len());
            }
        }
    }
}

/// The length of the string or character that `source` starts with; `None` for lifetimes and everything else.
fn skip_literal(source: &str) -> Option<usize> {
    let prefixed = ["br", "cr", "r", "b", "c", ""].iter().find_map(|prefix| {
        let rest = source.strip_prefix(prefix)?;
        let hashes = rest.len() - rest.trim_start_matches('#').len();
        let raw = prefix.ends_with('r');
        (rest[hashes..].starts_with('"') && (raw || hashes == 0)).then_some((prefix.len(), hashes, raw))
    });
    if let Some((prefix, hashes, raw)) = prefixed {
        let start = prefix + hashes + 1;
        let body = &source[start..];
        let end = if raw {
            let mark = format!("\"{}", "#".repeat(hashes));
            body.find(&mark).map(|at| at + mark.len())
        } else {
            quoted(body, '"')
        };
        return Some(end.map_or(source.len(), |end| start + end));
    }
    let start = if source.starts_with("b'") { 2 } else { source.starts_with('\'').then_some(1)? };
    let body = &source[start..];
    let first = body.chars().next()?;
    // A lifetime has no closing quote right behind one character.
    let is_char = first == '\\' || body[first.len_utf8()..].starts_with('\'');
    if !is_char {
        return None;
    }
    Some(start + quoted(body, '\'')?)
}

/// The position behind the closing quote, past escapes.
fn quoted(body: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in body.char_indices() {
        if !escaped && c == quote {
            return Some(at + c.len_utf8());
        }
        escaped = !escaped && c == '\\';
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_no_code() {
        let cases = [
            ("a // unsafe\nb", "a  \nb"),
            ("a /* x /* unsafe */ y */ b", "a   b"),
            (r#"f("unsafe \" // still") g"#, "f( ) g"),
            (r###"f(r#"un"safe"#) g"###, "f( ) g"),
            (r"f('\'', '/', b'x') g", "f( ,  ,  ) g"),
            ("fn f<'a>(x: &'a str)", "fn f<'a>(x: &'a str)"),
            ("'ü' x", "  x"),
            ("for x in y", "for x in y"),
            ("\"never closed", " "),
            ("/* never closed", " "),
        ];
        for (source, expected) in cases {
            assert_eq!(code_of(source), expected, "{source:?}");
        }
    }

    #[test]
    fn lines_stay_lines() {
        let source = "a\n\"two\nlines\"\n/* and\ntwo */\nb";
        assert_eq!(code_of(source).lines().count(), source.lines().count());
    }
}
