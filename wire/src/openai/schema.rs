//! Whether a JSON schema is one: the form of its keywords and where its references lead.
//!
//! Whether a grammar can be made of it is the engine's to say.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Faults, body::shown};

/// The largest schema, in bytes of JSON.
const LARGEST: usize = 64 * 1024;
/// The most places that references lead to for which it is looked at whether they lead out again.
const MOST_TARGETS: usize = 256;
/// What `type` may say.
const TYPES: [&str; 7] = ["object", "array", "string", "number", "integer", "boolean", "null"];

/// Looks at the schema of a function's arguments, which are always an object.
pub(super) fn check_object(at: &str, schema: &Value, faults: &mut Faults) {
    match schema {
        Value::Object(fields) if fields.get("type").is_none_or(|kind| kind == "object") => check(at, schema, faults),
        Value::Object(_) => faults.invalid(format!("{at}.type"), "must be `object`: arguments have names"),
        _ => faults.invalid(at, "must be a JSON schema of an object"),
    }
}

/// Looks at any schema.
pub(super) fn check(at: &str, schema: &Value, faults: &mut Faults) {
    if schema.to_string().len() > LARGEST {
        let rule = format!("is a schema of more than {} KiB; send a smaller one", LARGEST / 1024);
        faults.invalid(at, rule);
    } else {
        look(at, schema, schema, faults);
        if !has_an_end(schema) {
            faults.invalid(at, "leads back to itself on every way: no value of it has an end");
        }
    }
}

fn look(at: &str, schema: &Value, root: &Value, faults: &mut Faults) {
    let fields = match schema {
        Value::Object(fields) => fields,
        Value::Bool(_) => return,
        _ => return faults.invalid(at, "must be a JSON schema: an object, true or false"),
    };
    for (keyword, value) in fields {
        let at = || format!("{at}.{}", shown(keyword));
        match keyword.as_str() {
            "type" if !is_type(value) => {
                faults.invalid(at(), format!("must be one of {}, or a list of them", TYPES.join(", ")));
            }
            "properties" | "$defs" | "definitions" | "patternProperties" => match value {
                Value::Object(schemas) => {
                    for (name, schema) in schemas {
                        look(&format!("{}.{}", at(), shown(name)), schema, root, faults);
                    }
                }
                _ => faults.invalid(at(), "must be an object of schemas"),
            },
            "anyOf" | "oneOf" | "allOf" | "prefixItems" => match value {
                Value::Array(schemas) if !schemas.is_empty() => {
                    for (i, schema) in schemas.iter().enumerate() {
                        look(&format!("{}[{i}]", at()), schema, root, faults);
                    }
                }
                _ => faults.invalid(at(), "must be a list of schemas"),
            },
            // Older drafts have a list of schemas under `items`.
            "items" | "additionalProperties" | "not" if !value.is_array() => look(&at(), value, root, faults),
            "required" if !is_list_of_strings(value) => faults.invalid(at(), "must be a list of names"),
            "enum" if value.as_array().is_none_or(Vec::is_empty) => faults.invalid(at(), "must be a list of values"),
            "$ref" => match value.as_str().filter(|target| target.starts_with('#')) {
                Some(target) if pointer(root, target).is_some() => {}
                Some(_) => faults.invalid(at(), "leads to nothing in this schema"),
                None => faults.invalid(at(), "must lead to a place in this schema, such as #/$defs/name"),
            },
            _ => {}
        }
    }
}

/// Whether references lead out again somewhere, so that a value can end.
fn has_an_end(root: &Value) -> bool {
    let mut targets = BTreeSet::new();
    gather(root, &mut targets);
    if targets.len() > MOST_TARGETS {
        return true;
    }
    // The least fixed point: at first it is known of none.
    let mut ending = BTreeSet::new();
    while !ends(root, &ending) {
        let leads_out = |target: &&str| {
            let schema = pointer(root, target).and_then(|place| root.pointer(&place));
            !ending.contains(target) && schema.is_none_or(|schema| ends(schema, &ending))
        };
        let more: Vec<&str> = targets.iter().copied().filter(leads_out).collect();
        if more.is_empty() {
            return false;
        }
        ending.extend(more);
    }
    true
}

/// Where the references in `value` lead.
fn gather<'a>(value: &'a Value, targets: &mut BTreeSet<&'a str>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| gather(value, targets)),
        Value::Object(fields) => {
            targets.extend(fields.get("$ref").and_then(Value::as_str));
            fields.values().for_each(|value| gather(value, targets));
        }
        _ => {}
    }
}

/// Whether a value of the schema can end, if values of these references can.
fn ends(schema: &Value, ending: &BTreeSet<&str>) -> bool {
    let Value::Object(fields) = schema else { return true };
    let list = |key| fields.get(key).and_then(Value::as_array);
    let only = |kind: &str| fields.get("type").is_some_and(|named| named == kind);
    let property = |name: &Value| fields.get("properties")?.get(name.as_str()?);
    let required = list("required").filter(|_| only("object"));
    let items = fields
        .get("items")
        .filter(|_| only("array") && list("prefixItems").is_none());
    let is_filled = fields.get("minItems").and_then(Value::as_u64).unwrap_or(0) > 0;
    fields
        .get("$ref")
        .and_then(Value::as_str)
        .is_none_or(|target| ending.contains(target))
        && list("allOf").is_none_or(|parts| parts.iter().all(|part| ends(part, ending)))
        && ["anyOf", "oneOf"]
            .into_iter()
            .all(|key| list(key).is_none_or(|parts| parts.is_empty() || parts.iter().any(|part| ends(part, ending))))
        && required.is_none_or(|names| names.iter().filter_map(property).all(|part| ends(part, ending)))
        && items.is_none_or(|part| !is_filled || ends(part, ending))
}

/// The JSON pointer of the place in `root` to which a reference such as `#/$defs/name` leads, if it leads to one; also of
/// a reference that is encoded as URLs are.
pub fn pointer(root: &Value, reference: &str) -> Option<String> {
    let raw = reference.strip_prefix('#')?;
    [raw.to_owned(), decoded(raw)]
        .into_iter()
        .find(|pointer| root.pointer(pointer).is_some())
}

/// Text with `%20` and its like as the characters they stand for; what stands for none stays.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let digits = after
            .get(..2)
            .filter(|digits| *first == b'%' && digits.iter().all(u8::is_ascii_hexdigit));
        let code = digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[2..] } else { after };
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

fn is_type(value: &Value) -> bool {
    let one = |value: &Value| value.as_str().is_some_and(|name| TYPES.contains(&name));
    match value {
        Value::Array(names) => !names.is_empty() && names.iter().all(one),
        other => one(other),
    }
}

fn is_list_of_strings(value: &Value) -> bool {
    value.as_array().is_some_and(|names| names.iter().all(Value::is_string))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn is_sound(schema: &Value) -> bool {
        let mut faults = Faults::default();
        check("schema", schema, &mut faults);
        faults.is_empty()
    }

    #[test]
    fn a_schema_that_never_ends_is_none() {
        for endless in [
            json!({"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}}),
            json!({"$ref": "#"}),
            json!({"type": "object", "properties": {"v": {"$ref": "#"}}, "required": ["v"]}),
            json!({"anyOf": [{"$ref": "#"}, {"allOf": [{"$ref": "#/$defs/B"}]}], "$defs": {"B": {"$ref": "#"}}}),
            json!({"type": "array", "items": {"$ref": "#"}, "minItems": 1}),
        ] {
            assert!(!is_sound(&endless), "{endless}");
        }
        for list in [
            json!({"type": "object", "properties": {"v": {"$ref": "#"}}, "required": []}),
            json!({"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["next"]}),
            json!({"type": "array", "items": {"$ref": "#"}}),
            json!({"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"type": "string"}}}),
        ] {
            assert!(is_sound(&list), "{list}");
        }
    }
}
