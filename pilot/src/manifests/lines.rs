//! Finds where things stand in a YAML text, which the parser does not always tell.
//!
//! In: the text of a file or a document. Out: its documents or items with their first lines, or the line of a field.
//! Reads the indentation only: a field in flow style (`{a: 1}`) is given the line on which its block begins.

/// One YAML document of a file, or one item of a sequence.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Part<'a> {
    /// Lines of the text before this part.
    pub before: usize,
    /// The document, its `---` included; or the item, its dash included.
    pub text: &'a str,
}

/// Splits a file at its document markers, so that an error in one document does not hide the next.
pub(crate) fn documents(text: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let (mut start, mut before) = (0, 0);
    let mut offset = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        // YAML 1.2 §9.1.2: a marker stands at the beginning of a line, whatever is open there.
        let rest = line.trim_end_matches(['\n', '\r']).strip_prefix("---");
        let marker = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t']));
        if marker && offset > start {
            parts.push(Part { before, text: &text[start..offset] });
            (start, before) = (offset, number);
        }
        offset += line.len();
    }
    parts.push(Part { before, text: &text[start..] });
    parts
}

/// The items of the sequence at `path`, if it is in block style: found in one pass, as a List may have a hundred
/// thousand.
pub(crate) fn items<'a>(text: &'a str, path: &str) -> Vec<Part<'a>> {
    let key = line_of(text, path);
    let mut parts: Vec<Part<'a>> = Vec::new();
    let (mut column, mut start, mut end) = (None, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let offset = end;
        end += line.len();
        let Some(line) = Line::read(line.trim_end()).filter(|_| number > key) else { continue };
        let column = *column.get_or_insert(line.indent);
        if line.indent < column || (line.indent == column && !line.dash) {
            end = offset;
            break;
        }
        if line.indent == column {
            if let Some(last) = parts.last_mut() {
                last.text = &text[start..offset];
            }
            start = offset;
            parts.push(Part { before: number, text: &text[start..] });
        }
    }
    if let Some(last) = parts.last_mut() {
        last.text = &text[start..end];
    }
    parts
}

/// The value of `key` at the root of a document, if it stands there plainly: once, on a line of its own, as a word.
pub(crate) fn root_word<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let mut values = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let value = values.next()?.strip_prefix(' ')?.trim();
    let word = value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'/' | b'-'));
    (word && !value.is_empty() && values.next().is_none()).then_some(value)
}

/// A line with its dash and key taken apart.
struct Line<'a> {
    /// Columns before the first character.
    indent: usize,
    /// Columns before the key, which may follow a dash.
    key_indent: usize,
    dash: bool,
    rest: &'a str,
}

impl<'a> Line<'a> {
    fn read(line: &'a str) -> Option<Self> {
        let trimmed = line.trim_start_matches(' ');
        if trimmed.trim().is_empty() || trimmed.starts_with('#') || trimmed.starts_with("---") {
            return None;
        }
        let indent = line.len() - trimmed.len();
        let dash = trimmed == "-" || trimmed.starts_with("- ");
        let rest = if dash { trimmed[1..].trim_start_matches(' ') } else { trimmed };
        Some(Self { indent, key_indent: line.len() - rest.len(), dash, rest })
    }

    fn has_key(&self, key: &str) -> bool {
        let rest = self.rest.strip_prefix(['"', '\'']).unwrap_or(self.rest);
        rest.strip_prefix(key).is_some_and(|after| {
            let after = after.strip_prefix(['"', '\'']).unwrap_or(after);
            after == ":" || after.starts_with(": ") || after.trim_end() == ":"
        })
    }
}

/// The line (from 0, within `text`) of the field at `path`, such as `spec.ports[0].port`, or of the nearest block
/// above it that can be found.
pub(crate) fn line_of(text: &str, path: &str) -> usize {
    let lines: Vec<Option<Line<'_>>> = text.lines().map(Line::read).collect();
    let mut at = lines.iter().position(Option::is_some).unwrap_or(0);
    let (mut best, mut floor, mut on_dash) = (at, 0, false);
    for segment in segments(path) {
        let found = match segment {
            Segment::Key(key) => key_line(&lines, at, floor, on_dash, key),
            Segment::Index(index) => item_line(&lines, at, floor, index),
        };
        let Some((line, next_floor)) = found else { break };
        on_dash = matches!(segment, Segment::Index(_));
        // The children of a key stand on the lines after it; those of an item begin on its own line.
        at = if on_dash { line } else { line + 1 };
        (best, floor) = (line, next_floor);
    }
    best
}

enum Segment<'a> {
    Key(&'a str),
    Index(usize),
}

fn segments(path: &str) -> impl Iterator<Item = Segment<'_>> {
    path.split(['.', '[']).filter(|part| !part.is_empty()).map(|part| {
        match part.strip_suffix(']').and_then(|number| number.parse().ok()) {
            Some(index) => Segment::Index(index),
            None => Segment::Key(part),
        }
    })
}

/// The line of `key` among the siblings that begin at line `at`, and the least indentation of what is below it.
fn key_line(
    lines: &[Option<Line<'_>>],
    at: usize,
    floor: usize,
    on_dash: bool,
    key: &str,
) -> Option<(usize, usize)> {
    let mut column = None;
    for (number, line) in lines.iter().enumerate().skip(at) {
        let Some(line) = line else { continue };
        let first_of_item = on_dash && number == at;
        let indent = if first_of_item { line.key_indent } else { line.indent };
        if indent < floor || column.is_some_and(|column| indent < column) {
            return None;
        }
        let column = *column.get_or_insert(indent);
        if indent == column && (first_of_item || !line.dash) && line.has_key(key) {
            // A sequence may stand at the same column as its key.
            return Some((number, column));
        }
    }
    None
}

/// The line of the item `index` of the sequence that begins at line `at`.
fn item_line(
    lines: &[Option<Line<'_>>],
    at: usize,
    floor: usize,
    index: usize,
) -> Option<(usize, usize)> {
    let mut column = None;
    let mut seen = 0;
    for (number, line) in lines.iter().enumerate().skip(at) {
        let Some(line) = line else { continue };
        let column = *column.get_or_insert(line.indent);
        if line.indent < floor.max(column) || (line.indent == column && !line.dash) {
            return None;
        }
        if line.indent == column {
            if seen == index {
                return Some((number, line.key_indent));
            }
            seen += 1;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# a comment
kind: Service
metadata:
  name: web
spec:
  ports:
  - name: a
    port: 80
  -   name: b
      prt: 81
  selector:
    app: web
  nested:
    - - x
";

    #[test]
    fn a_field_is_found_by_its_path() {
        for (path, line) in [
            ("kind", 2),
            ("metadata.name", 4),
            ("spec", 5),
            ("spec.ports", 6),
            ("spec.ports[0]", 7),
            ("spec.ports[0].name", 7),
            ("spec.ports[0].port", 8),
            ("spec.ports[1].name", 9),
            ("spec.ports[1].prt", 10),
            ("spec.selector", 11),
            ("spec.selector.app", 12),
        ] {
            assert_eq!(line_of(TEXT, path) + 1, line, "{path}");
        }
    }

    #[test]
    fn a_field_that_is_not_there_gets_the_line_of_its_parent() {
        assert_eq!(line_of(TEXT, "metadata.namespace") + 1, 3);
        assert_eq!(line_of("spec: {a: {b: 1}}", "spec.a.b"), 0);
        assert_eq!(line_of("", "spec.a"), 0);
    }

    #[test]
    fn a_word_at_the_root_is_found_if_it_stands_there_plainly() {
        for (text, expected) in [
            ("kind: Pod", Some("Pod")),
            ("a: 1\nkind:   Pod \r\n", Some("Pod")),
            ("a:\n  kind: Pod", None),
            ("kind: Pod\nkind: Pod", None),
            ("{\nkind: Pod}", None),
            ("kind: |\n  Pod", None),
            ("kind: 'Pod'", None),
            ("kinds: Pod", None),
            ("kind:", None),
        ] {
            assert_eq!(root_word(text, "kind"), expected, "{text}");
        }
    }

    #[test]
    fn items_are_split_at_their_dashes_only() {
        let text =
            "kind: List\nitems:\n# c\n- a: 1\n  b:\n  - x\n  - y\n-\n  c: |\n    - z\nd: []\n- e";
        let split = |text, path| -> Vec<_> {
            items(text, path).into_iter().map(|part| (part.before, part.text)).collect()
        };
        assert_eq!(
            split(text, "items"),
            [(3, "- a: 1\n  b:\n  - x\n  - y\n"), (7, "-\n  c: |\n    - z\n")]
        );
        assert_eq!(split(text, "items[0].b"), [(5, "  - x\n"), (6, "  - y\n")]);
        assert_eq!(split("items:\n  - a\n  - b", "items"), [(1, "  - a\n"), (2, "  - b")]);
        assert_eq!(split("items: [a, b]\n", "items"), []);
        assert_eq!(split("{\n  \"items\": [\n    {}]}", "items"), []);
    }

    #[test]
    fn documents_are_split_at_markers_only() {
        let text = "a: 1\n---\nb: |\n  ---x\n--- # c\nc: 3\n---4\n";
        let parts = documents(text);
        let starts: Vec<_> = parts.iter().map(|part| part.before).collect();
        assert_eq!(starts, [0, 1, 4]);
        assert_eq!(parts[2].text, "--- # c\nc: 3\n---4\n");
    }
}
