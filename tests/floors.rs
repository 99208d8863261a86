//! The library's floors, checked in its source: a file imports only from its own floor and those below, and stays short.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// From the ground up; what shares a line may import each other.
const FLOORS: [&[&str]; 14] = [
    &["error", "digest", "id", "limits", "observe"],
    &["sys"],
    &["format"],
    &["tar"],
    &["codec"],
    &["chunk"],
    &["store"],
    &["tree"],
    &["layer"],
    &["snapshot"],
    &["image"],
    &["upkeep"],
    &["internals", "fuzzing"],
    &["lib"],
];

/// Most lines of a file, its own tests left out.
const LINES: usize = 500;

struct File {
    path: PathBuf,
    /// The part of the library it belongs to.
    part: String,
    /// Without the test module at its end.
    source: String,
}

fn rust_files(dir: &Path, out: &mut Vec<PathBuf>) {
    for found in fs::read_dir(dir).expect("a source directory") {
        let path = found.expect("a source directory").path();
        if path.is_dir() {
            rust_files(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// Tests may import what they like, and be as long as they like.
fn is_test(path: &Path) -> bool {
    let name = path.file_stem().expect("a name").to_string_lossy();
    name.ends_with("tests") || path.components().any(|c| c.as_os_str() == "tests")
}

/// Modules that their parents declare for tests only, as `dir/name`.
fn test_modules(files: &[(PathBuf, String)]) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for (path, source) in files {
        let dir = match path.file_stem().expect("a name").to_str() {
            Some("mod" | "lib") => path.parent().expect("a directory").to_owned(),
            _ => path.with_extension(""),
        };
        let mut lines = source.lines().peekable();
        while let Some(line) = lines.next() {
            let next = lines.peek().copied().unwrap_or_default();
            let module = next.trim_start_matches("pub(crate) ").strip_prefix("mod ").and_then(|m| m.strip_suffix(';'));
            if let (true, Some(module)) = (line.trim() == "#[cfg(test)]", module) {
                found.insert(dir.join(module));
            }
        }
    }
    found
}

fn library() -> Vec<File> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    rust_files(&src, &mut paths);
    let read = |path: PathBuf| {
        let source = fs::read_to_string(&path).expect("a source file");
        (path.strip_prefix(&src).expect("below src").to_owned(), source)
    };
    let files: Vec<_> = paths.into_iter().map(read).collect();
    let only_tests = test_modules(&files);
    let production =
        files.into_iter().filter(|(path, _)| !is_test(path) && !only_tests.contains(&path.with_extension("")));
    let file = |(path, source): (PathBuf, String)| {
        let first = path.iter().next().expect("a component");
        let part = Path::new(first).file_stem().expect("a name").to_string_lossy().into_owned();
        let source = source.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned();
        File { path, part, source }
    };
    production.map(file).collect()
}

fn floor(part: &str) -> usize {
    let floor = FLOORS.iter().position(|parts| parts.contains(&part));
    floor.unwrap_or_else(|| panic!("'{part}' is on no floor: put it into FLOORS, where it belongs"))
}

/// What the root re-exports, by name: `crate::Digest` is `digest`.
fn re_exports(files: &[File]) -> BTreeMap<String, String> {
    let lib = files.iter().find(|f| f.part == "lib").expect("lib.rs");
    let mut names = BTreeMap::new();
    for statement in lib.source.split(';').filter_map(|s| s.trim().strip_prefix("pub use ")) {
        let (part, list) = statement.split_once("::").expect("a path");
        let list = list.rsplit("::").next().expect("names").trim_matches(['{', '}']);
        for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            names.insert(name.to_owned(), part.to_owned());
        }
    }
    names
}

/// The first component of every path that begins with `crate::`, comments left out.
fn imports(source: &str) -> Vec<String> {
    let code: String = source.lines().map(|l| l.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        match rest.strip_prefix('{') {
            // `use crate::{a::X, b::Y}`: names at the outer level.
            Some(group) => {
                let mut depth = 0;
                let mut item = String::new();
                for c in group.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => found.push(word(std::mem::take(&mut item).trim())),
                        _ => {}
                    }
                    if c != ',' || depth > 0 {
                        item.push(c);
                    }
                }
                found.push(word(item.trim()));
            }
            None => found.push(word(rest)),
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

#[test]
fn imports_go_down() {
    let files = library();
    let exported = re_exports(&files);
    let mut wrong = Vec::new();
    for file in &files {
        for name in imports(&file.source) {
            let part = exported.get(&name).unwrap_or(&name);
            if *part != file.part && floor(part) > floor(&file.part) {
                wrong.push(format!("{} imports {name}, which is above it", file.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn parts_of_one_floor_do_not_go_in_circles() {
    let files = library();
    let exported = re_exports(&files);
    let mut below: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for file in files.iter().filter(|f| floor(&f.part) == 0) {
        let parts = imports(&file.source).into_iter().map(|name| exported.get(&name).cloned().unwrap_or(name));
        below.entry(&file.part).or_default().extend(parts.filter(|part| *part != file.part));
    }
    while !below.is_empty() {
        let free: Vec<_> = below.iter().filter(|(_, b)| b.is_empty()).map(|(part, _)| (*part).to_owned()).collect();
        assert!(!free.is_empty(), "a circle among {below:?}");
        below.retain(|part, _| !free.iter().any(|f| f == part));
        below.values_mut().for_each(|b| b.retain(|part| !free.contains(part)));
    }
}

#[test]
fn files_stay_short() {
    let long = library().into_iter().map(|f| (f.source.lines().count(), f.path)).filter(|(lines, _)| *lines > LINES);
    assert_eq!(long.collect::<Vec<_>>(), []);
}

/// The test sees what there is: every floor that has source has imports from it looked at.
#[test]
fn reads_the_source() {
    let files = library();
    let parts: BTreeSet<_> = files.iter().map(|f| f.part.as_str()).collect();
    assert!(["error", "sys", "format", "tar", "codec", "store", "layer", "image"].iter().all(|p| parts.contains(p)));
    assert_eq!(imports("use crate::{a::{X, Y}, b, c::Z};\ncrate::d::e() // crate::f"), ["a", "b", "c", "d"]);
    assert_eq!(re_exports(&files).get("LayerInfo").map(String::as_str), Some("store"));
}
