//! From a client's JSON schema to the one that a grammar keeps.
//!
//! A strict schema is kept to the letter or refused. Of any other as much is kept as a grammar can, so that what comes is
//! never further from it than it must be, and nobody is turned away for a keyword. It never makes grammars (`grammar` does).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use wire::openai::schema::pointer;

use super::request::Schema;

/// The most parts of one schema that are tried by themselves; further ones go untried.
const MOST_TRIES: usize = 32;

/// Keywords that are tried together, by the type they belong to; the first are the first to go.
const GROUPS: [(&str, &[&str]); 4] = [
    ("string", &["pattern", "format", "minLength", "maxLength"]),
    (
        "number",
        &[
            "multipleOf",
            "minimum",
            "maximum",
            "exclusiveMinimum",
            "exclusiveMaximum",
        ],
    ),
    ("array", &["minItems", "maxItems"]),
    ("object", &["patternProperties", "minProperties", "maxProperties"]),
];

/// Keywords that make room for properties which `properties` does not name.
const OPEN: [&str; 9] = [
    "additionalProperties",
    "patternProperties",
    "unevaluatedProperties",
    "minProperties",
    "if",
    "then",
    "else",
    "dependentSchemas",
    "dependencies",
];

/// The schema as the grammar should read it: what `keeps` takes. Free white space, in which small models lose themselves,
/// is none of it, and objects that list their properties have no others, unless they say so (what fits the narrower schema
/// fits the wider one). The error says what of a strict schema cannot be kept.
pub fn keepable(schema: &Schema, keeps: impl Fn(&Value) -> Result<(), String>) -> Result<Value, String> {
    let mut value = schema.value.clone();
    if !value.is_object() {
        value = json!({});
    }
    straighten(&mut value);
    close(&mut value);
    let whole = styled(value.clone(), schema.strict);
    let error = match keeps(&whole) {
        Ok(()) => return Ok(whole),
        Err(error) => error,
    };
    if schema.strict {
        return Err(format!("{error}; without `strict` it is kept as far as can be"));
    }
    relax(&mut value, |part| keeps(&styled(part, false)).is_ok());
    let relaxed = styled(value, false);
    if keeps(&relaxed).is_ok() {
        return Ok(relaxed);
    }
    let bare = schema
        .value
        .get("type")
        .map_or(json!({}), |kind| json!({ "type": kind }));
    let bare = styled(bare, false);
    keeps(&bare).map(|()| bare).map_err(|_| error)
}

/// With what the grammar must know beside the schema.
fn styled(mut schema: Value, strict: bool) -> Value {
    schema["x-guidance"] = json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": ",
        "coerce_one_of": true, "lenient": !strict});
    schema
}

/// Makes every reference lead to a definition by its plain name: grammars know neither `%20` nor `~1`.
fn straighten(root: &mut Value) {
    let original = root.clone();
    let mut moved: BTreeMap<String, Value> = BTreeMap::new();
    let redirect = |keys: &mut Map<String, Value>, found: &mut Vec<String>| {
        let Some(target) = keys.get("$ref").and_then(Value::as_str) else {
            return;
        };
        let Some(target) = pointer(&original, target).filter(|target| !target.is_empty()) else {
            return;
        };
        let plain = target
            .strip_prefix("/$defs/")
            .or_else(|| target.strip_prefix("/definitions/"));
        let reference = if plain.is_some_and(|name| !name.contains(['/', '~'])) {
            format!("#{target}")
        } else {
            let name = target.replace('/', "|");
            found.push(target);
            format!("#/$defs/{name}")
        };
        keys.insert("$ref".to_owned(), reference.into());
    };
    let mut found = Vec::new();
    walk(root, &mut |keys| redirect(keys, &mut found));
    while let Some(target) = found.pop() {
        if moved.contains_key(&target) {
            continue;
        }
        if let Some(mut schema) = original.pointer(&target).cloned() {
            walk(&mut schema, &mut |keys| redirect(keys, &mut found));
            moved.insert(target, schema);
        }
    }
    for (target, schema) in moved {
        root["$defs"][target.replace('/', "|")] = schema;
    }
}

/// Closes the object schemas that leave it open whether they allow more properties than they name. Where schemas are laid
/// over one another, what one does not name another may: none is closed then.
fn close(root: &mut Value) {
    let mut overlaid = false;
    walk(root, &mut |keys| {
        let has = |names: &[&str]| names.iter().any(|name| keys.contains_key(*name));
        let of_its_own = has(&["properties", "required", "additionalProperties", "patternProperties"]);
        overlaid |= has(&["allOf"]) || (of_its_own && has(&["anyOf", "oneOf", "$ref"]));
    });
    if overlaid {
        return;
    }
    walk(root, &mut |keys| {
        let Some(Value::Object(properties)) = keys.get("properties") else {
            return;
        };
        let unnamed = names(keys).any(|name| !properties.contains_key(name));
        if !unnamed && !OPEN.iter().any(|key| keys.contains_key(*key)) {
            keys.insert("additionalProperties".to_owned(), Value::Bool(false));
        }
    });
}

/// Drops the keywords that no grammar keeps, each tried apart from the rest of its schema, and the duty to give a property
/// that must not be given.
fn relax(root: &mut Value, keeps: impl Fn(Value) -> bool) {
    let mut tries = 0;
    walk(root, &mut |keys| {
        for (kind, keywords) in GROUPS {
            let integer = kind == "number" && keys.get("type").is_some_and(|named| named == "integer");
            let kind = if integer { "integer" } else { kind };
            while let Some(first) = keywords.iter().find(|keyword| keys.contains_key(**keyword)) {
                let mut part = json!({ "type": kind });
                for keyword in keywords.iter().filter(|keyword| keys.contains_key(**keyword)) {
                    part[*keyword] = alone(&keys[*keyword]);
                }
                tries += 1;
                if tries <= MOST_TRIES && keeps(part) {
                    break;
                }
                keys.remove(*first);
            }
        }
        let closed = keys.get("additionalProperties") == Some(&Value::Bool(false));
        if let (true, false, Some(Value::Object(properties))) =
            (closed, keys.contains_key("patternProperties"), keys.get("properties"))
        {
            let given: Vec<String> = names(keys)
                .filter(|name| properties.contains_key(*name))
                .map(str::to_owned)
                .collect();
            keys.insert("required".to_owned(), json!(given));
            // Grammars count only the properties that must come and those without a name.
            keys.remove("minProperties");
        }
    });
}

/// A keyword's value without the schemas in it.
fn alone(value: &Value) -> Value {
    match value {
        Value::Object(schemas) => schemas.keys().map(|key| (key.clone(), Value::Bool(true))).collect(),
        other => other.clone(),
    }
}

/// The properties that an object must have.
fn names(keys: &Map<String, Value>) -> impl Iterator<Item = &str> {
    let required = keys.get("required").and_then(Value::as_array);
    required.into_iter().flatten().filter_map(Value::as_str)
}

/// Shows `visit` every schema in `schema`, itself first.
fn walk(schema: &mut Value, visit: &mut impl FnMut(&mut Map<String, Value>)) {
    let Value::Object(keys) = schema else { return };
    visit(keys);
    for (key, value) in keys {
        match (key.as_str(), value) {
            ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(schemas)) => {
                for schema in schemas.values_mut() {
                    walk(schema, visit);
                }
            }
            ("anyOf" | "oneOf" | "allOf" | "prefixItems" | "items", Value::Array(schemas)) => {
                for schema in schemas {
                    walk(schema, visit);
                }
            }
            ("items" | "additionalItems" | "additionalProperties", schema) => walk(schema, visit),
            _ => {}
        }
    }
}

#[cfg(test)]
#[path = "schema_tests.rs"]
mod tests;
