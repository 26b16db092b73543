//! Arrows: which crate uses which, and which module of a crate uses which.
//!
//! In: ARCHITECTURE.md and the sources. Out: a line for each arrow that is not listed there, and for each listed
//! one that does not exist.
//!
//! They are the items of the section whose heading has the word "arrows", with `→` for "is used by". An end is a
//! crate, or `crate::module`; modules are checked in those crates of which at least one module is listed.
//!
//! ```text
//! - `proto` → `mesh`, `pilot`
//! - `mesh::identity` → `mesh::hbone`
//! ```

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use super::Source;

/// From what is used to what uses it.
type Arrow = (String, String);

pub(super) fn check(architecture: &str, sources: &[Source]) -> Result<Vec<String>> {
    let listed = listed(architecture);
    ensure!(
        !listed.is_empty(),
        "ARCHITECTURE.md lists no arrows: in a section of that name, items like \"- `proto` → `mesh`\""
    );
    let mut found = crates(sources);
    let with_modules: BTreeSet<_> = listed
        .iter()
        .flat_map(|(used, user)| [used, user])
        .filter_map(|end| end.split_once("::"))
        .map(|(name, _)| name.to_owned())
        .collect();
    for name in with_modules {
        found.extend(modules(&name, sources));
    }
    let unlisted = found
        .difference(&listed)
        .map(|(used, user)| format!("{used} → {user} is not among the arrows of ARCHITECTURE.md"));
    let absent = listed.difference(&found).map(|(used, user)| {
        format!("{used} → {user} is listed in ARCHITECTURE.md and does not exist")
    });
    Ok(unlisted.chain(absent).collect())
}

fn listed(architecture: &str) -> BTreeSet<Arrow> {
    let mut lines = architecture.lines();
    let is_heading = |line: &&str| line.starts_with('#') && line.to_lowercase().contains("arrows");
    if lines.find(is_heading).is_none() {
        return BTreeSet::new();
    }
    let section = lines.take_while(|line| !line.starts_with('#'));
    let items = section.filter_map(|line| line.strip_prefix("- ")?.split_once('→'));
    let end = |text: &str| text.trim().trim_matches('`').to_owned();
    let arrows =
        items.flat_map(|(used, users)| users.split(',').map(move |user| (end(used), end(user))));
    arrows.collect()
}

/// Arrows between the crates of the workspace, development dependencies included. Crates with a workspace of their own
/// (the kernel programs, the fuzz targets) are built apart and used by none.
fn crates(sources: &[Source]) -> BTreeSet<Arrow> {
    let manifests = sources.iter().filter(|source| source.path.ends_with("Cargo.toml"));
    let manifests =
        manifests.filter(|source| !source.text.lines().any(|line| line == "[workspace]"));
    let manifests: Vec<_> =
        manifests.filter_map(|source| Some((name(&source.text)?, &source.text))).collect();
    let names: BTreeSet<_> = manifests.iter().map(|(name, _)| name.as_str()).collect();
    let arrows = manifests.iter().flat_map(|(user, manifest)| {
        let ours = dependencies(manifest).filter(|used| names.contains(used));
        ours.map(move |used| (used.to_owned(), user.clone()))
    });
    arrows.collect()
}

fn name(manifest: &str) -> Option<String> {
    let mut lines = manifest.lines().skip_while(|line| line.trim() != "[package]").skip(1);
    let line = lines.find(|line| line.starts_with("name"))?;
    Some(line.split('"').nth(1)?.to_owned())
}

fn dependencies(manifest: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    manifest.lines().filter_map(move |line| {
        if let Some(section) = line.strip_prefix('[') {
            // Also of a target: "[target.'cfg(unix)'.dependencies]". Those of the workspace only name versions.
            inside = section.trim_end_matches(']').ends_with("dependencies")
                && !section.starts_with("workspace");
            return None;
        }
        let name = line.split(['.', '=', ' ']).next()?;
        (inside && !name.is_empty() && !name.starts_with('#')).then_some(name)
    })
}

/// Arrows between the modules at the root of a crate: one names another by `crate::`.
fn modules(name: &str, sources: &[Source]) -> BTreeSet<Arrow> {
    let root = format!("{name}/src");
    let of_crate: Vec<_> = sources
        .iter()
        .filter_map(|source| {
            let first = source.path.strip_prefix(&root).ok()?.iter().next()?.to_str()?;
            let module = first.trim_end_matches(".rs");
            (!matches!(module, "lib" | "main" | "bin")).then_some((module, source))
        })
        .collect();
    let names: BTreeSet<_> = of_crate.iter().map(|(module, _)| *module).collect();
    let mut arrows = BTreeSet::new();
    for (user, source) in &of_crate {
        let code = source.text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let code: String = code.flat_map(|line| [line, "\n"]).collect();
        for used in code.split("crate::").skip(1).flat_map(roots) {
            if used != *user && names.contains(used) {
                arrows.insert((format!("{name}::{used}"), format!("{name}::{user}")));
            }
        }
    }
    arrows
}

/// What `crate::` is followed by: one name, or those that begin the entries of a group in braces.
fn roots(rest: &str) -> Vec<&str> {
    let word = |text: &'_ str| text.find(|c: char| !c.is_alphanumeric() && c != '_');
    let Some(group) = rest.strip_prefix('{') else {
        return vec![&rest[..word(rest).unwrap_or(rest.len())]];
    };
    let (mut depth, mut entry, mut found) = (0_usize, true, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => entry = true,
            _ if entry && !c.is_whitespace() => {
                let name = &group[at..];
                found.push(&name[..word(name).unwrap_or(name.len())]);
                entry = false;
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_names_the_roots_of_its_entries() {
        assert_eq!(roots("store::Store;"), ["store"]);
        let group =
            "{\n    hbone::{Abort, Ended},\n    identity::Spiffe,\n    policy,\n};\nuse std::io;";
        assert_eq!(roots(group), ["hbone", "identity", "policy"]);
    }

    const ARCHITECTURE: &str = "
# Map
## The arrows
Read → as is used by.

- `proto` → `mesh`, `pilot`
- `mesh::store` → `mesh::policy`

## More
- `mesh` → `elsewhere`
";

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.into(), text: text.into() }
    }

    fn tree(mesh: &str, store: &str) -> Vec<Source> {
        vec![
            source("proto/Cargo.toml", "[package]\nname = \"proto\"\n"),
            source("mesh/Cargo.toml", mesh),
            source(
                "apart/Cargo.toml",
                "[package]\nname = \"apart\"\n[workspace]\n[dependencies]\nproto.path = \"../proto\"\n",
            ),
            source(
                "pilot/Cargo.toml",
                "[package]\nname = \"pilot\"\n[dependencies]\nproto.workspace = true\n",
            ),
            source("mesh/src/store/mod.rs", store),
            source(
                "mesh/src/policy.rs",
                "// crate::xds is not here\nuse crate::store::Snapshot;\n",
            ),
            source("mesh/src/xds.rs", ""),
        ]
    }

    const MESH: &str = "[package]\nname = \"mesh\"\n[dependencies]\nproto = { path = \"../proto\" }\nserde = \"1\"\n";

    #[test]
    fn a_tree_with_exactly_the_arrows_listed_passes() {
        assert_eq!(check(ARCHITECTURE, &tree(MESH, "")).unwrap(), [] as [&str; 0]);
    }

    #[test]
    fn an_arrow_that_is_not_listed_is_refused() {
        let mesh = format!("{MESH}[dev-dependencies]\npilot.workspace = true\n");
        assert_eq!(
            check(ARCHITECTURE, &tree(&mesh, "use crate::xds::Client;")).unwrap(),
            [
                "mesh::xds → mesh::store is not among the arrows of ARCHITECTURE.md",
                "pilot → mesh is not among the arrows of ARCHITECTURE.md",
            ]
        );
    }

    #[test]
    fn a_listed_arrow_that_does_not_exist_is_refused() {
        let mesh = "[package]\nname = \"mesh\"\n[dependencies]\nserde = \"1\"\n";
        assert_eq!(
            check(ARCHITECTURE, &tree(mesh, "")).unwrap(),
            ["proto → mesh is listed in ARCHITECTURE.md and does not exist"]
        );
    }

    #[test]
    fn a_page_without_arrows_is_an_error() {
        assert!(check("# Map\n", &[]).is_err());
    }
}
