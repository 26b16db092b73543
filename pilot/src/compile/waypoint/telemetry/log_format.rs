//! The formats of access logs.

use proto::{
    envoy::envoy::config::core::v3::{
        DataSource, JsonFormatOptions, SubstitutionFormatString, data_source::Specifier,
        substitution_format_string::Format,
    },
    google::{ListValue, Struct, Value, value::Kind},
};

use crate::compile::{
    MeshConfig,
    mesh_config::{AccessLogEncoding, LogFormat},
};

/// What stands in a line unless somebody says otherwise.
const FIELDS: [(&str, &str); 24] = [
    ("start_time", "%START_TIME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("route_name", "%ROUTE_NAME%"),
];

/// The same as one line of text.
pub(super) fn default_text() -> String {
    let mut text = String::new();
    for (i, (name, command)) in FIELDS.iter().enumerate() {
        let before = if i == 0 { "" } else { " " };
        let part = match *name {
            "start_time" => format!("[{command}]"),
            // The request line is quoted as one.
            "method" => format!("\"{command}"),
            "protocol" => format!("{command}\""),
            "upstream_transport_failure_reason"
            | "x_forwarded_for"
            | "user_agent"
            | "request_id"
            | "authority"
            | "upstream_host" => format!("\"{command}\""),
            _ => (*command).to_owned(),
        };
        text.push_str(before);
        text.push_str(&part);
    }
    text.push('\n');
    text
}

/// A provider's own format.
pub(super) fn of_provider(
    format: Option<&LogFormat>,
    omit_empty_values: bool,
) -> SubstitutionFormatString {
    let mut written = match format {
        Some(LogFormat { labels: Some(labels), .. }) if !labels.is_empty() => {
            let fields = labels.iter().map(|(name, value)| (name.clone(), json(value)));
            object(Struct { fields: fields.collect() })
        }
        Some(LogFormat { text: Some(line), .. }) if !line.is_empty() => text(line),
        Some(_) | None => text(&default_text()),
    };
    written.omit_empty_values = omit_empty_values;
    written
}

/// The mesh's format.
pub(super) fn of_mesh(config: &MeshConfig) -> SubstitutionFormatString {
    let format = config.access_log_format.as_str();
    match config.access_log_encoding {
        AccessLogEncoding::Text if format.is_empty() => text(&default_text()),
        AccessLogEncoding::Text => text(format),
        AccessLogEncoding::Json => {
            // One that is no object is refused when it is read.
            let own = serde_json::from_str::<serde_json::Map<_, _>>(format).ok();
            let fields = match own {
                Some(own) => own.iter().map(|(name, value)| (name.clone(), json(value))).collect(),
                None => FIELDS
                    .iter()
                    .map(|(name, command)| ((*name).to_owned(), json(&(*command).into())))
                    .collect(),
            };
            object(Struct { fields })
        }
    }
}

/// One line for each request.
fn text(line: &str) -> SubstitutionFormatString {
    let end = if line.ends_with('\n') { "" } else { "\n" };
    let source = DataSource {
        specifier: Some(Specifier::InlineString(format!("{line}{end}"))),
        ..DataSource::default()
    };
    SubstitutionFormatString {
        format: Some(Format::TextFormatSource(source)),
        ..SubstitutionFormatString::default()
    }
}

fn object(format: Struct) -> SubstitutionFormatString {
    SubstitutionFormatString {
        format: Some(Format::JsonFormat(format)),
        json_format_options: Some(JsonFormatOptions::default()),
        ..SubstitutionFormatString::default()
    }
}

fn json(value: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match value {
        Json::Null => Kind::NullValue(0),
        Json::Bool(is) => Kind::BoolValue(*is),
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Json::String(text) => Kind::StringValue(text.clone()),
        Json::Array(values) => {
            Kind::ListValue(ListValue { values: values.iter().map(json).collect() })
        }
        Json::Object(members) => {
            let fields = members.iter().map(|(name, value)| (name.clone(), json(value)));
            Kind::StructValue(Struct { fields: fields.collect() })
        }
    };
    Value { kind: Some(kind) }
}
