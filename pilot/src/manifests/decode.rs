//! Decodes YAML or JSON strictly, and says where what is wrong stands.
//!
//! In: a document, an item of a List or an object of an API server. Out: the type asked for, or a [`Problem`] with the
//! field's path and line.

use serde::{Deserializer, de::DeserializeOwned};

use super::{
    Problem, Severity,
    document::{Report, Source, UNKNOWN},
};

/// Decodes strictly: every field that `T` does not have is an error.
pub(super) fn decode<T: DeserializeOwned>(
    source: Source<'_>,
    report: &mut Report<'_>,
) -> Option<T> {
    match source {
        Source::Text(text) => decode_from(serde_yaml_ng::Deserializer::from_str(text), report),
        Source::Item(value) => decode_from(value, report),
        Source::Object(value) => decode_from(value, report),
    }
}

/// What went wrong, of either format.
pub(super) trait DecodeError: serde::de::Error {
    /// The line, from 1, of the text that was read.
    fn line(&self) -> Option<usize>;
}

impl DecodeError for serde_yaml_ng::Error {
    fn line(&self) -> Option<usize> {
        self.location().map(|location| location.line())
    }
}

impl DecodeError for serde_json::Error {
    fn line(&self) -> Option<usize> {
        None
    }
}

fn decode_from<'de, T, D>(deserializer: D, report: &mut Report<'_>) -> Option<T>
where
    T: DeserializeOwned,
    D: Deserializer<'de, Error: DecodeError>,
{
    let mut unknown = Vec::new();
    let mut ignored = |path: serde_ignored::Path<'_>| unknown.push(field_path(&path));
    let deserializer = serde_ignored::Deserializer::new(deserializer, &mut ignored);
    let decoded = serde_path_to_error::deserialize(deserializer);
    for field in unknown {
        report.error(&field, UNKNOWN);
    }
    match decoded {
        Ok(decoded) => Some(decoded),
        Err(error) => {
            let path = error.path().to_string();
            decode_error(report, if path == "." { "" } else { &path }, error.inner());
            None
        }
    }
}

/// `serde_ignored` writes `spec.ports.0.port` and a `?` for every `Option` it passes.
fn field_path(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", field_path(parent)),
        Path::Map { parent, key } => match field_path(parent) {
            parent if parent.is_empty() => key.clone(),
            parent => format!("{parent}.{key}"),
        },
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => field_path(parent),
    }
}

/// Takes the parser's message apart: it holds the field and the position, which stand elsewhere in a [`Problem`].
pub(super) fn decode_error(report: &mut Report<'_>, field: &str, error: &impl DecodeError) {
    let message = error.to_string();
    let message = message.strip_prefix(&format!("{field}: ")).unwrap_or(&message);
    let reason = match message.rfind(" at line ") {
        Some(end) => &message[..end],
        None => message,
    };
    let mut place = report.place(field);
    if let Some(line) = error.line() {
        place.line = report.before + line;
    }
    report.problems.push(Problem {
        place,
        severity: Severity::Error,
        object: report.object.clone(),
        field: field.into(),
        reason: reason.into(),
    });
}
