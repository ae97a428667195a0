//! The project's own rules, each a function from the repository's files to what breaks it.

use super::source::{File, Tree, code_of, is_word};

/// A file that needs more lines of code than this has two jobs.
const CODE_LINES_MAX: usize = 500;

/// Where unsafe code may stand, and for what.
const UNSAFE_ALLOWED: &[(&str, &str)] = &[
    ("crates/swoole-sys/", "the system calls that rustix lacks"),
    ("crates/swoole-ipc/src/memory", "mapping memory that processes share"),
    ("crates/swoole-ipc/src/words", "atomics in that memory"),
    ("crates/swoole-ipc/src/ring", "reading and writing records in it"),
    ("crates/swoole-ipc/src/model.rs", "the model checks of all that"),
    ("crates/swoole-reactor/src/driver/uring", "queues that the kernel shares"),
    ("crates/swoole-reactor/src/fork.rs", "a page that fork wipes"),
    ("examples/testbed/attempt.rs", "system calls that a sandbox refuses"),
];

/// Crates that promise by an attribute that the compiler holds them to.
const UNSAFE_FORBIDDEN: &[&str] =
    &["swoole-supervisor", "swoole-protocol", "swoole-server", "swoole-table", "swoole-table-derive"];

/// Which of its siblings a crate may depend on. A crate that is not listed may depend on all.
const MAY_DEPEND_ON: &[(&str, &[&str])] = &[
    ("swoole-sys", &[]),
    ("swoole-ipc", &["swoole-sys"]),
    ("swoole-reactor", &["swoole-sys"]),
    ("swoole-supervisor", &["swoole-sys"]),
    ("swoole-protocol", &["swoole-sys"]),
    ("swoole-table", &["swoole-sys", "swoole-ipc", "swoole-table-derive"]),
    ("swoole-table-derive", &[]),
];

/// No source file has more than [`CODE_LINES_MAX`] lines of code; integration tests may be as long as they like.
pub(super) fn file_size(tree: &Tree) -> Vec<String> {
    let too_long = |file: &File| {
        let lines = code_of(&file.text).lines().filter(|line| !line.trim().is_empty()).count();
        let exempt = file.path.split('/').any(|part| part == "tests");
        (lines > CODE_LINES_MAX && !exempt).then(|| {
            format!("{}: {lines} lines of code; split it, {CODE_LINES_MAX} are enough for one job", file.path)
        })
    };
    tree.rust().filter_map(too_long).collect()
}

/// The lower crates know only what is below them.
pub(super) fn layering(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    for (krate, allowed) in MAY_DEPEND_ON {
        let path = format!("crates/{krate}/Cargo.toml");
        let Some(manifest) = tree.files.iter().find(|file| file.path == path) else {
            findings.push(format!("{path}: missing, but the layering has a rule for it"));
            continue;
        };
        for dependency in dependencies(&manifest.text).filter(|name| name.starts_with("swoole-")) {
            if !allowed.contains(&dependency) {
                findings.push(format!("{path}: depends on {dependency}; allowed are {allowed:?}"));
            }
        }
    }
    findings
}

/// The names of a manifest's dependencies of every kind.
fn dependencies(manifest: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    manifest.lines().filter_map(move |line| {
        let line = line.trim();
        if let Some(section) = line.strip_prefix('[') {
            let section = section.trim_end_matches(']');
            inside = section.ends_with("dependencies");
            // `[dependencies.name]` is a dependency by itself.
            let (table, name) = section.rsplit_once('.')?;
            return table.ends_with("dependencies").then_some(name);
        }
        let name = line.split(['=', '.', ' ']).next()?.trim_matches('"');
        (inside && !name.is_empty() && !name.starts_with('#')).then_some(name)
    })
}

/// Unsafe code stands where the table allows it, and the crates that need none forbid it.
pub(super) fn unsafe_fence(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    let mut used = vec![false; UNSAFE_ALLOWED.len()];
    for file in tree.rust() {
        for (number, line) in code_of(&file.text).lines().enumerate() {
            if !line.split(|c| !is_word(c)).any(|word| word == "unsafe") {
                continue;
            }
            match UNSAFE_ALLOWED.iter().position(|(prefix, _)| file.path.starts_with(prefix)) {
                Some(index) => used[index] = true,
                None => findings.push(format!("{}:{}: unsafe code outside its fence", file.path, number + 1)),
            }
        }
    }
    let stale = UNSAFE_ALLOWED.iter().zip(used).filter(|(_, used)| !used);
    findings.extend(
        stale.map(|((prefix, _), _)| format!("{prefix}: no unsafe code there: take it off the table")),
    );
    for krate in UNSAFE_FORBIDDEN {
        let path = format!("crates/{krate}/src/lib.rs");
        let forbids =
            |file: &File| file.path == path && code_of(&file.text).contains("#![forbid(unsafe_code)]");
        if !tree.files.iter().any(forbids) {
            findings.push(format!("{path}: no #![forbid(unsafe_code)]"));
        }
    }
    findings
}

/// Nothing names a directory that only one machine has. The parts are joined here so that this file passes too.
const MACHINE_PATHS: &[&str] =
    &[concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/Use", "rs/")];

pub(super) fn machine_paths(tree: &Tree) -> Vec<String> {
    let mut findings = Vec::new();
    for file in &tree.files {
        for (number, line) in file.text.lines().enumerate() {
            if let Some(path) = MACHINE_PATHS.iter().find(|path| names_path(line, path)) {
                findings.push(format!("{}:{}: a path of somebody's machine: {path}", file.path, number + 1));
            }
        }
    }
    findings
}

/// Whether the path starts somewhere in the line, not in the middle of another path or address.
fn names_path(line: &str, path: &str) -> bool {
    let starts = |at: usize| !line[..at].ends_with(|c: char| is_word(c) || matches!(c, '.' | '-' | '/'));
    line.match_indices(path).any(|(at, _)| starts(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> Tree {
        let file = |(path, text): &(&str, &str)| File { path: (*path).to_owned(), text: (*text).to_owned() };
        Tree { files: files.iter().map(file).collect() }
    }

    #[test]
    fn size_counts_code_only() {
        let (code, comments) = ("let x = 1;\n".repeat(501), "// why\n\n".repeat(501));
        assert!(
            file_size(&tree(&[("a.rs", &comments), ("b/tests/long.rs", &code), ("c.txt", &code)])).is_empty()
        );
        let findings = file_size(&tree(&[("a.rs", &code)]));
        assert!(findings.len() == 1 && findings[0].contains("501"), "{findings:?}");
    }

    #[test]
    fn dependencies_of_every_spelling() {
        let manifest = "[package]\nname = \"swoole-ipc\"\n[dependencies]\na.workspace = true\n# swoole-x\n\n\
            b = \"1\"\n[dev-dependencies.c]\npath = \"x\"\n[target.'cfg(unix)'.dependencies]\nd={}\n[lints]\ne = 1\n";
        assert_eq!(dependencies(manifest).collect::<Vec<_>>(), ["a", "b", "c", "d"]);
    }

    #[test]
    fn siblings_are_found() {
        let manifests: Vec<(String, &str)> = MAY_DEPEND_ON
            .iter()
            .map(|(krate, _)| (format!("crates/{krate}/Cargo.toml"), "[dependencies]\nlibc = \"0\"\n"))
            .collect();
        let mut files: Vec<(&str, &str)> =
            manifests.iter().map(|(path, text)| (path.as_str(), *text)).collect();
        assert!(layering(&tree(&files)).is_empty());
        files[1].1 = "[dev-dependencies]\nswoole-reactor.workspace = true\nswoole-sys.workspace = true\n";
        let findings = layering(&tree(&files));
        assert!(findings.len() == 1 && findings[0].contains("swoole-reactor"), "{findings:?}");
        files.remove(0);
        assert_eq!(layering(&tree(&files)).len(), 2);
    }

    #[test]
    fn unsafe_outside_the_fence_is_found() {
        let forbid = "#![forbid(unsafe_code)]\n// unsafe\nfn f() { \"unsafe\"; }\n";
        let forbidding = UNSAFE_FORBIDDEN.iter().map(|krate| (format!("crates/{krate}/src/lib.rs"), forbid));
        let allowed = UNSAFE_ALLOWED.iter().map(|(prefix, _)| (format!("{prefix}/x.rs"), "unsafe fn f() {}"));
        let paths: Vec<(String, &str)> = forbidding.chain(allowed).collect();
        let mut files: Vec<(&str, &str)> = paths.iter().map(|(path, text)| (path.as_str(), *text)).collect();
        assert_eq!(unsafe_fence(&tree(&files)), Vec::<String>::new());
        files.push(("examples/a.rs", "fn f() {\n    unsafe { g() }\n}"));
        files[0].1 = "// #![forbid(unsafe_code)]";
        files[UNSAFE_FORBIDDEN.len()].1 = "fn f() {}";
        let findings = unsafe_fence(&tree(&files));
        assert!(findings.len() == 3 && findings[0].starts_with("examples/a.rs:2"), "{findings:?}");
        assert!(findings[1].contains("off the table"), "{findings:?}");
    }

    #[test]
    fn only_paths_at_their_start_are_a_machines() {
        let machine = format!("see {}somebody/x", MACHINE_PATHS[2]);
        let findings =
            machine_paths(&tree(&[("README.md", &machine), ("b.md", "https://a.b/home/x ./work/y")]));
        assert!(findings.len() == 1 && findings[0].starts_with("README.md:1"), "{findings:?}");
    }
}
