//! `response_format`: the form an answer must have.

use serde_json::{Map, Value};

use super::{body::shown, reading::Reading, schema};

/// The form an answer must have.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Format {
    /// Any text.
    #[default]
    Text,
    /// A JSON object.
    Json,
    /// JSON that matches a schema.
    Schema {
        /// The schema: an object, or true for any JSON.
        schema: Value,
        /// Whether the answer must match it to the letter, or only as far as a grammar can be made of it.
        strict: bool,
    },
}

pub(super) fn read(reading: &mut Reading<'_>) -> Format {
    let format = match reading.body.value("response_format") {
        None => return Format::Text,
        Some(Value::Object(format)) => format,
        Some(_) => {
            let rule = "must be an object such as {\"type\": \"json_object\"}";
            reading.faults.invalid("response_format", rule);
            return Format::Text;
        }
    };
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Format::Text,
        // llama.cpp's form of a schema.
        Some("json_object") if format.get("schema").is_some_and(Value::is_object) => {
            read_schema(reading, "response_format", &format)
        }
        Some("json_object") => Format::Json,
        Some("json_schema") => {
            if let Some(Value::Object(inner)) = format.get("json_schema") {
                read_schema(reading, "response_format.json_schema", inner)
            } else {
                let rule = "must be an object with `name` and `schema`";
                reading.faults.invalid("response_format.json_schema", rule);
                Format::Text
            }
        }
        Some(other @ ("grammar" | "regex" | "structural_tag")) => {
            let rule = format!(
                "is `{}`; the models here take text, json_object or json_schema",
                shown(other)
            );
            reading.faults.unsupported("response_format.type", rule);
            Format::Text
        }
        _ => {
            let rule = "must be text, json_object or json_schema";
            reading.faults.invalid("response_format.type", rule);
            Format::Text
        }
    }
}

fn read_schema(reading: &mut Reading<'_>, at: &str, fields: &Map<String, Value>) -> Format {
    let faults = &mut reading.faults;
    for key in ["name", "description"] {
        if fields.get(key).is_some_and(|text| !text.is_null() && !text.is_string()) {
            faults.invalid(format!("{at}.{key}"), "must be a string");
        }
    }
    let strict = match fields.get("strict") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(strict)) => *strict,
        Some(_) => {
            faults.invalid(format!("{at}.strict"), "must be true or false");
            false
        }
    };
    let schema = if let Some(schema @ (Value::Object(_) | Value::Bool(true))) = fields.get("schema") {
        schema::check(&format!("{at}.schema"), schema, faults);
        schema.clone()
    } else {
        faults.invalid(format!("{at}.schema"), "must be a JSON schema");
        return Format::Text;
    };
    Format::Schema { schema, strict }
}
