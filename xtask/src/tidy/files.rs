//! Rules of single files: length, name, where `unsafe` may be.
//!
//! In: sources. Out: a line for each that breaks a rule.

use std::path::Path;

use super::Source;

/// A file answers one question; at this length it answers several.
const MOST_LINES: usize = 600;

/// Names that say nothing about the question that a file answers.
const BANNED_NAMES: [&str; 8] =
    ["util", "utils", "common", "helper", "helpers", "manager", "misc", "shared"];

/// Where `unsafe` may be: kernel programs, and system calls.
const UNSAFE_PLACES: [&str; 3] = ["ebpf/", "ztunnel/src/sys.rs", "ztunnel/src/sys/"];

pub(super) fn check(sources: &[Source]) -> Vec<String> {
    let rust = sources.iter().filter(|source| source.path.extension().is_some_and(|is| is == "rs"));
    rust.flat_map(|source| {
        let path = source.path.display();
        let length = source.text.lines().count();
        let long = (length > MOST_LINES)
            .then(|| format!("{path}: {length} lines, at most {MOST_LINES}: split it by question"));
        let named = banned_name(&source.path)
            .map(|name| format!("{path}: `{name}` says nothing: name the question it answers"));
        let allowed = UNSAFE_PLACES.iter().any(|place| source.path.starts_with(place));
        let unsafes =
            source.text.lines().enumerate().filter(|(_, line)| !allowed && has_unsafe(line));
        let unsafes = unsafes
            .map(|(at, _)| format!("{path}:{}: unsafe belongs into ztunnel's sys", at + 1))
            .collect::<Vec<_>>();
        long.into_iter().chain(named).chain(unsafes)
    })
    .collect()
}

/// The part of the path below `src` that is banned, if any.
fn banned_name(path: &Path) -> Option<String> {
    let stem = path.with_extension("");
    let parts = stem.iter().map(|part| part.to_string_lossy().into_owned());
    let mut below = parts.skip_while(|part| !matches!(part.as_str(), "src" | "tests" | "benches"));
    below.find(|part| BANNED_NAMES.contains(&part.as_str()))
}

/// Whether the line has the keyword outside of comments and strings.
fn has_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let outside_strings = code.split('"').step_by(2);
    let word = |c: char| c.is_alphanumeric() || c == '_';
    outside_strings.flat_map(|code| code.split(|c| !word(c))).any(|token| token == "unsafe")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_one(path: &str, text: &str) -> Vec<String> {
        check(&[Source { path: path.into(), text: text.into() }])
    }

    #[test]
    fn a_file_above_the_limit_is_named_with_its_length() {
        assert_eq!(check_one("mesh/src/a.rs", &"\n".repeat(600)), [] as [&str; 0]);
        assert_eq!(
            check_one("mesh/src/a.rs", &"\n".repeat(601)),
            ["mesh/src/a.rs: 601 lines, at most 600: split it by question"]
        );
    }

    #[test]
    fn names_that_say_nothing_are_refused_below_src_only() {
        assert_eq!(check_one("ebpf/common/src/lib.rs", ""), [] as [&str; 0]);
        for path in ["mesh/src/util.rs", "mesh/src/helpers/mod.rs", "tests/tests/common/mod.rs"] {
            assert_eq!(check_one(path, "").len(), 1, "{path}");
        }
    }

    #[test]
    fn the_keyword_is_found_in_code_and_in_its_places_allowed() {
        let code = "let a = unsafe { b() };";
        assert_eq!(
            check_one("mesh/src/a.rs", &format!("\n{code}")),
            ["mesh/src/a.rs:2: unsafe belongs into ztunnel's sys"]
        );
        assert_eq!(check_one("ztunnel/src/sys.rs", code), [] as [&str; 0]);
        assert_eq!(check_one("ztunnel/src/sys/bpf.rs", code), [] as [&str; 0]);
        assert_eq!(check_one("ebpf/src/maps.rs", code), [] as [&str; 0]);
        for text in ["// unsafe is not here", "#![forbid(unsafe_code)]", "say(\"unsafe\")"] {
            assert_eq!(check_one("mesh/src/a.rs", text), [] as [&str; 0], "{text}");
        }
    }
}
