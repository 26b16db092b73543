//! Decodes one YAML document, or one object of an API server, into one typed resource.
//!
//! In: a document and its file, or an object. Out: [`Resource`]s (a List has several) and the problems found. Every unknown field
//! is reported; a value of the wrong type ends its own document only.

use std::{collections::HashMap, path::Path, sync::Arc, thread};

use k8s_openapi::{api, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::Deserialize;
use serde_yaml_ng::Value;
use twox_hash::XxHash64;

use super::{
    Kind, Labels, Meta, Object, Place, Problem, Resource, Severity, core, custom,
    decode::{decode, decode_error},
    kinds::{self, Verdict},
    lines::{self, Part},
    security, security_check, stand_in,
};

/// The namespace of an object that names none, as for `kubectl apply`.
pub(crate) const DEFAULT_NAMESPACE: &str = "default";

/// What the other modules say about one object: collects problems with its file, line and name.
pub(crate) struct Report<'a> {
    file: &'a Arc<Path>,
    /// Lines of the file before the text.
    pub(super) before: usize,
    /// The text of the document or of the List's item, to find the lines of fields in. An object of an API server has
    /// none.
    text: Option<&'a str>,
    /// What comes before the path of a field: an item of a List has one.
    prefix: &'static str,
    pub(super) object: String,
    pub(super) problems: &'a mut Vec<Problem>,
}

impl Report<'_> {
    /// Records a reason why the folder cannot be served.
    pub(crate) fn error(&mut self, field: &str, reason: impl Into<String>) {
        self.push(Severity::Error, field, reason.into());
    }

    /// Records something that is served but probably not meant.
    pub(crate) fn warning(&mut self, field: &str, reason: impl Into<String>) {
        self.push(Severity::Warning, field, reason.into());
    }

    fn push(&mut self, severity: Severity, field: &str, reason: String) {
        let place = self.place(field);
        let object = self.object.clone();
        self.problems.push(Problem { place, severity, object, field: field.into(), reason });
    }

    pub(super) fn place(&self, field: &str) -> Place {
        let line = self.text.map_or(0, |text| {
            self.before + lines::line_of(text, &format!("{}{field}", self.prefix)) + 1
        });
        Place { file: Arc::clone(self.file), line }
    }
}

/// The fields that tell what a document is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    api_version: Option<String>,
    kind: Option<String>,
    metadata: Option<HeaderMetadata>,
    /// Of a List.
    items: Option<Vec<Value>>,
}

#[derive(Deserialize)]
struct HeaderMetadata {
    namespace: Option<String>,
    name: Option<String>,
}

/// Documents that are worth a thread of their own.
const DOCUMENTS_PER_THREAD: usize = 1000;

/// Decodes everything in the text of one file, on several cores if it is large. Of `earlier`, what the file held before,
/// the documents that stand where they stood are taken over: who has the same object knows that nothing changed.
///
/// A file without a document is what a program leaves for a moment that truncates a file before it writes it: what
/// stood there has not been withdrawn.
pub(super) fn read(
    file: &Arc<Path>,
    text: &str,
    earlier: Option<&Found>,
    problems: &mut Vec<Problem>,
) -> Found {
    let parts = lines::documents(text);
    let mut found = Found::default();
    if read_all_parts(file, &parts, earlier, problems, &mut found) == 0 {
        found.unknown = true;
        problems.push(Problem {
            place: Place { file: Arc::clone(file), line: 1 },
            severity: Severity::Error,
            object: String::new(),
            field: String::new(),
            reason: "empty: remove the file if that is meant".to_owned(),
        });
    }
    found
}

/// What a text holds.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// What can be taken as it is.
    pub resources: Vec<Resource>,
    /// Those that are documents by themselves, by the hash of their text and its place.
    pub documents: HashMap<u64, Resource>,
    /// What cannot.
    pub refused: Vec<Refused>,
    /// Whether there is something of which not even the name is known.
    pub unknown: bool,
}

/// A resource that is refused, by its name.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    kind: Kind,
    namespace: String,
    name: String,
    /// What counts in its place if it was never good.
    pub stand_in: Option<Resource>,
}

impl Refused {
    /// Whether it is this resource.
    pub(super) fn is(&self, resource: &Resource) -> bool {
        let meta = resource.meta();
        self.kind == resource.kind() && self.namespace == *meta.namespace && self.name == *meta.name
    }
}

/// The resources of one file that can be taken.
#[cfg(test)]
pub(crate) fn read_file(
    file: &Arc<Path>,
    text: &str,
    problems: &mut Vec<Problem>,
) -> Vec<Resource> {
    read(file, text, None, problems).resources
}

/// Says how many documents there are.
fn read_all_parts(
    file: &Arc<Path>,
    parts: &[Part<'_>],
    earlier: Option<&Found>,
    problems: &mut Vec<Problem>,
    found: &mut Found,
) -> usize {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let share = parts.len().div_ceil(threads).max(DOCUMENTS_PER_THREAD);
    if parts.len() <= share {
        return read_parts(file, parts, earlier, problems, found);
    }
    let mut documents = 0;
    thread::scope(|scope| {
        let workers: Vec<_> = parts
            .chunks(share)
            .map(|parts| {
                scope.spawn(|| {
                    let (mut problems, mut found) = (Vec::new(), Found::default());
                    let documents = read_parts(file, parts, earlier, &mut problems, &mut found);
                    (problems, found, documents)
                })
            })
            .collect();
        for worker in workers {
            let read = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            problems.extend(read.0);
            found.resources.extend(read.1.resources);
            found.documents.extend(read.1.documents);
            found.refused.extend(read.1.refused);
            found.unknown |= read.1.unknown;
            documents += read.2;
        }
    });
    documents
}

fn read_parts(
    file: &Arc<Path>,
    parts: &[Part<'_>],
    earlier: Option<&Found>,
    problems: &mut Vec<Problem>,
    found: &mut Found,
) -> usize {
    let mut documents = 0;
    for part in parts {
        let place = document_hash(part);
        if let Some(same) = earlier.and_then(|earlier| earlier.documents.get(&place)) {
            documents += 1;
            found.resources.push(same.clone());
            found.documents.insert(place, same.clone());
            continue;
        }
        let good = problems.len();
        let mut report = Report {
            file,
            before: part.before,
            text: Some(part.text),
            prefix: "",
            object: String::new(),
            problems,
        };
        let read = plain_kind(part.text)
            .and_then(|kind| read_kind(kind, Source::Text(part.text), &mut report));
        match read {
            Some(resource) if report.problems.len() == good => {
                documents += 1;
                found.documents.insert(place, resource.clone());
                found.resources.push(resource);
            }
            // Whatever is wrong is said by the careful way, which knows the object's name from the start.
            Some(_) | None => {
                report.problems.truncate(good);
                report.object.clear();
                documents += usize::from(read_document(Source::Text(part.text), report, found));
            }
        }
    }
    documents
}

/// The hash of a document's text and the line it begins in.
fn document_hash(part: &Part<'_>) -> u64 {
    XxHash64::oneshot(u64::try_from(part.before).unwrap_or(u64::MAX), part.text.as_bytes())
}

/// Decodes an object of an API server. `server` is where it is said to stand.
///
/// A newer server knows fields of Kubernetes's own kinds that are unknown here, and means nothing by them that counts
/// in a mesh; those of all other kinds say what the mesh is to do, and are errors as in a file.
pub(crate) fn read_object(
    kind: Kind,
    mut value: serde_json::Value,
    server: &Arc<Path>,
    problems: &mut Vec<Problem>,
) -> Option<Resource> {
    // The items of a list come without.
    if let Some(fields) = value.as_object_mut() {
        fields.entry("apiVersion").or_insert_with(|| kind.versions()[0].into());
        fields.entry("kind").or_insert_with(|| kind.name().into());
    }
    let of = |field: &str| value.pointer(field).and_then(serde_json::Value::as_str);
    let parts: Vec<_> = of("/metadata/namespace").into_iter().chain(of("/metadata/name")).collect();
    let object = format!("{} {}", kind.name(), parts.join("/"));
    let known = problems.len();
    let mut report = Report { file: server, before: 0, text: None, prefix: "", object, problems };
    let resource = read_kind(kind, Source::Object(value), &mut report);
    if kind.is_builtin() {
        let is_newer = |problem: &Problem| problem.reason == UNKNOWN;
        let found = problems.split_off(known);
        problems.extend(found.into_iter().filter(|problem| !is_newer(problem)));
    }
    let is_error = |problem: &Problem| problem.severity == Severity::Error;
    resource.filter(|_| !problems[known..].iter().any(is_error))
}

/// The reason why a field that nobody knows is refused.
pub(super) const UNKNOWN: &str = "unknown field";

/// The kind of a document that says so plainly: nearly all do, and need not be parsed twice.
fn plain_kind(text: &str) -> Option<Kind> {
    match kinds::judge(lines::root_word(text, "apiVersion")?, lines::root_word(text, "kind")?) {
        Verdict::Served(kind) => Some(kind),
        Verdict::NotServed | Verdict::Wrong(_) => None,
    }
}

/// Where a document's fields come from.
pub(super) enum Source<'a> {
    Text(&'a str),
    /// An item of a List.
    Item(Value),
    /// What an API server says of an object.
    Object(serde_json::Value),
}

impl Source<'_> {
    /// The object as plain data; null if it is none.
    fn value(&self) -> serde_json::Value {
        match self {
            Self::Text(text) => serde_yaml_ng::from_str(text).unwrap_or_default(),
            Self::Item(value) => serde_json::to_value(value).unwrap_or_default(),
            Self::Object(value) => value.clone(),
        }
    }

    fn header(&self) -> Result<Option<Header>, serde_yaml_ng::Error> {
        match self {
            Self::Text(text) => serde_yaml_ng::from_str(text),
            Self::Item(value) => Header::deserialize(value).map(Some),
            // Its kind is known: nobody asks.
            Self::Object(_) => Ok(None),
        }
    }
}

/// Says whether there is a document at all.
fn read_document(source: Source<'_>, mut report: Report<'_>, found: &mut Found) -> bool {
    match source.header() {
        Ok(Some(header)) => read_headed(header, source, report, found),
        // Nothing between two markers but comments.
        Ok(None) => return false,
        Err(error) => {
            found.unknown = true;
            decode_error(&mut report, "", &error);
        }
    }
    true
}

fn read_headed(header: Header, source: Source<'_>, mut report: Report<'_>, found: &mut Found) {
    let kind = header.kind.unwrap_or_default();
    let HeaderMetadata { namespace, name } =
        header.metadata.unwrap_or(HeaderMetadata { namespace: None, name: None });
    let parts: Vec<_> = namespace.iter().chain(&name).map(String::as_str).collect();
    report.object = format!("{kind} {}", parts.join("/")).trim().to_owned();
    let Some(api_version) = header.api_version else {
        found.unknown = true;
        return report.error("apiVersion", "missing");
    };
    if kind.is_empty() {
        found.unknown = true;
        return report.error("kind", "missing");
    }
    if let Some(items) = header.items.filter(|_| kind.ends_with("List")) {
        return read_list(items, report, found);
    }
    match kinds::judge(&api_version, &kind) {
        Verdict::Served(served) => {
            if let (None, Some(name), true) = (&namespace, &name, served.is_namespaced()) {
                report.object = format!("{kind} {DEFAULT_NAMESPACE}/{name}");
            }
            read_served(served, namespace, name, source, &mut report, found);
        }
        Verdict::NotServed => {
            report.warning(
                "kind",
                format!("{api_version} {kind} is not served by this version: ignored"),
            );
        }
        Verdict::Wrong(reason) => {
            found.unknown = true;
            report.error("kind", reason);
        }
    }
}

/// Takes a resource, or refuses it alone.
fn read_served(
    kind: Kind,
    namespace: Option<String>,
    name: Option<String>,
    source: Source<'_>,
    report: &mut Report<'_>,
    found: &mut Found,
) {
    let good = report.problems.len();
    // Parsed a second time where that may be needed: policies are few.
    let object = if kind.is_closing() { source.value() } else { serde_json::Value::Null };
    let read = read_kind(kind, source, report);
    let refused = report.problems[good..].iter().any(|problem| problem.severity == Severity::Error);
    match (read, name) {
        (Some(resource), _) if !refused => found.resources.push(resource),
        (_, None) => found.unknown = true,
        (_, Some(name)) => {
            let namespace = match namespace {
                Some(namespace) if kind.is_namespaced() => namespace,
                None if kind.is_namespaced() => DEFAULT_NAMESPACE.to_owned(),
                Some(_) | None => String::new(),
            };
            let stand_in = stand_in::stand_in(kind, &namespace, &name, &object, report.file);
            found.refused.push(Refused { kind, namespace, name, stand_in });
        }
    }
}

fn read_list(items: Vec<Value>, report: Report<'_>, found: &mut Found) {
    let path = format!("{}items", report.prefix);
    let text = report.text.unwrap_or_default();
    let mut parts = lines::items(text, &path);
    if parts.len() != items.len() {
        // In flow style, as in JSON, every item is said to stand where the sequence begins.
        let before = lines::line_of(text, &path);
        parts = items.iter().map(|_| Part { before, text: "" }).collect();
    }
    for (item, part) in items.into_iter().zip(parts) {
        let report = Report {
            file: report.file,
            before: report.before + part.before,
            text: Some(part.text),
            // The item is the only one of its text.
            prefix: "[0].",
            object: String::new(),
            problems: &mut *report.problems,
        };
        read_document(Source::Item(item), report, found);
    }
}

fn read_kind(kind: Kind, source: Source<'_>, report: &mut Report<'_>) -> Option<Resource> {
    use api::{core::v1, discovery::v1 as discovery};
    #[expect(clippy::wildcard_enum_match_arm, reason = "custom::read lists the others")]
    match kind {
        Kind::Namespace => {
            let raw: v1::Namespace = decode(source, report)?;
            let meta = cluster_meta("Namespace", &raw.metadata, report)?;
            Some(Resource::Namespace(object(meta, core::namespace(raw, report))))
        }
        Kind::Node => {
            let raw: v1::Node = decode(source, report)?;
            let meta = cluster_meta("Node", &raw.metadata, report)?;
            Some(Resource::Node(object(meta, core::node(raw))))
        }
        Kind::Pod => {
            let raw: v1::Pod = decode(source, report)?;
            let meta = meta("Pod", &raw.metadata, report)?;
            Some(Resource::Pod(object(meta, core::pod(raw, report)?)))
        }
        Kind::Service => {
            let raw: v1::Service = decode(source, report)?;
            let meta = meta("Service", &raw.metadata, report)?;
            Some(Resource::Service(object(meta, core::service(raw, report)?)))
        }
        Kind::ServiceAccount => {
            let raw: v1::ServiceAccount = decode(source, report)?;
            Some(Resource::ServiceAccount(object(
                meta("ServiceAccount", &raw.metadata, report)?,
                (),
            )))
        }
        Kind::ConfigMap => {
            let raw: v1::ConfigMap = decode(source, report)?;
            let meta = meta("ConfigMap", &raw.metadata, report)?;
            Some(Resource::ConfigMap(object(meta, core::config_map(raw))))
        }
        Kind::Secret => {
            let raw: v1::Secret = decode(source, report)?;
            let meta = meta("Secret", &raw.metadata, report)?;
            Some(Resource::Secret(object(meta, core::secret(raw))))
        }
        Kind::EndpointSlice => {
            let raw: discovery::EndpointSlice = decode(source, report)?;
            let meta = meta("EndpointSlice", &raw.metadata, report)?;
            Some(Resource::EndpointSlice(object(meta, core::endpoint_slice(raw, report)?)))
        }
        Kind::AuthorizationPolicy => {
            let raw: security::Document<security::AuthorizationPolicy> = decode(source, report)?;
            let meta = meta("AuthorizationPolicy", &raw.metadata, report)?;
            let mut policy = raw.spec;
            policy.dry_run = security::dry_run(&raw.metadata, report);
            security_check::authorization_policy(&policy, report);
            Some(Resource::AuthorizationPolicy(object(meta, policy)))
        }
        Kind::PeerAuthentication => {
            let raw: security::Document<security::PeerAuthentication> = decode(source, report)?;
            let meta = meta("PeerAuthentication", &raw.metadata, report)?;
            security_check::peer_authentication(&raw.spec, report);
            Some(Resource::PeerAuthentication(object(meta, raw.spec)))
        }
        other => custom::read(other, source, report),
    }
}

pub(super) fn object<T>(meta: Meta, spec: T) -> Arc<Object<T>> {
    Arc::new(Object { meta, spec })
}

pub(super) fn meta(kind: &'static str, raw: &ObjectMeta, report: &mut Report<'_>) -> Option<Meta> {
    let namespace = raw.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    if !is_dns_name(namespace) || namespace.contains('.') {
        report.error("metadata.namespace", format!("`{namespace}` is no DNS label"));
        return None;
    }
    named(kind, namespace, raw, report)
}

pub(super) fn cluster_meta(
    kind: &'static str,
    raw: &ObjectMeta,
    report: &mut Report<'_>,
) -> Option<Meta> {
    if let Some(namespace) = &raw.namespace {
        report
            .error("metadata.namespace", format!("a {kind} has no namespace, found `{namespace}`"));
    }
    named(kind, "", raw, report)
}

fn named(
    kind: &'static str,
    namespace: &str,
    raw: &ObjectMeta,
    report: &mut Report<'_>,
) -> Option<Meta> {
    let Some(name) = raw.name.as_deref().filter(|name| !name.is_empty()) else {
        report.error("metadata.name", "missing");
        return None;
    };
    if !is_dns_name(name) {
        report.error("metadata.name", format!("`{name}` is no DNS name"));
        return None;
    }
    let created = raw.creation_timestamp.as_ref().map(|time| time.0.to_string());
    let meta = Meta {
        kind,
        namespace: namespace.into(),
        name: name.into(),
        created: created.unwrap_or_default().into(),
        generation: raw.generation.unwrap_or_default(),
        labels: raw.labels.clone().unwrap_or_default(),
        annotations: mesh_annotations(raw),
        place: report.place(""),
    };
    report.object = meta.title();
    Some(meta)
}

/// Other annotations can be long, and nothing here reads them.
fn mesh_annotations(metadata: &ObjectMeta) -> Labels {
    let all = metadata.annotations.iter().flatten();
    all.filter(|(key, _)| key.contains("istio.io/") || key.contains("gateway.networking.k8s.io/"))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// RFC 1123: what Kubernetes allows as a name. It becomes part of host names, file names and identities.
pub(crate) fn is_dns_name(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|label| {
            let edges = label.as_bytes().first().zip(label.as_bytes().last());
            label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && edges.is_some_and(|(first, last)| *first != b'-' && *last != b'-')
        })
}
