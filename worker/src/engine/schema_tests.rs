//! What of a schema is kept, byte by byte, and which schemas are refused.

#![allow(clippy::unwrap_used)]

use wire::openai::Tool;

use super::*;
use crate::engine::{
    EngineError, Request, Tools,
    tools::{
        Dialect,
        tests::{ask, fits, grounds, tool, weather},
    },
};

/// Asks for JSON by a schema that is not strict.
fn about(value: Value) -> Request {
    Request {
        schema: Some(Schema { value, strict: false }),
        ..Request::default()
    }
}

/// Asks for a call whose arguments are by a schema that is not strict.
fn calling(parameters: Value) -> Request {
    let tools = Tools {
        list: vec![(0, tool("f", parameters))],
        must: true,
        parallel: false,
    };
    ask(Some(tools), None)
}

/// Whether a text is a whole answer, and a call's whole arguments, by a schema that is not strict.
fn takes(schema: &Value, text: &str) -> bool {
    let said = fits(Dialect::Hermes, &about(schema.clone()), text);
    let call = format!("<tool_call>\n{{\"name\": \"f\", \"arguments\": {text}}}\n</tool_call>");
    assert_eq!(
        said,
        fits(Dialect::Hermes, &calling(schema.clone()), &call),
        "{text} by {schema}"
    );
    said
}

/// The field at fault, if the request is refused.
fn refused(request: &Request) -> Option<String> {
    match grounds(Dialect::Hermes).guide(request).err() {
        None => None,
        Some(EngineError::Invalid { param, .. }) => Some(param),
        other => panic!("{other:?}"),
    }
}

#[test]
fn json_has_no_white_space_to_get_lost_in_and_no_uninvited_keys() {
    let person = json!({"$defs": {"Pet": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}},
        "type": "object", "properties": {"pets": {"type": "array", "items": {"$ref": "#/$defs/Pet"}},
            "age": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": null}},
        "required": ["pets", "age"], "title": "Person"});
    let request = ask(None, Some(person));
    let takes = |text: &str| fits(Dialect::Hermes, &request, text);
    assert!(takes(r#"{"pets": [{"name": "a"}, {"name": ""}], "age": null}"#) && takes(r#"{"pets": [], "age": 7}"#));
    assert!(!takes("{\n\"pets\": [], \"age\": 7}") && !takes(r#"{"pets": [], "age": 7, "x": 1}"#));
    assert!(!takes(r#"{"pets": [{"name": "a", "x": 1}], "age": 7}"#) && !takes(r#"{"pets": []}"#));
    let object = ask(None, Some(json!({"type": "object"})));
    assert!(fits(Dialect::Hermes, &object, r#"{"any": [1, {"a": null}]}"#) && !fits(Dialect::Hermes, &object, "[1]"));
    assert!(fits(Dialect::Hermes, &ask(None, Some(json!(true))), "[1]"), "any JSON");
}

#[test]
fn keys_come_in_the_order_of_the_schema() {
    let schema: Value = serde_json::from_str(
        r#"{"type": "object", "properties": {"why": {"type": "string"}, "answer": {"type": "boolean"}}, "required": ["answer", "why"]}"#,
    )
    .unwrap();
    assert!(takes(&schema, r#"{"why": "", "answer": true}"#));
    assert!(!takes(&schema, r#"{"answer": true, "why": ""}"#));
}

#[test]
fn a_strict_schema_that_cannot_be_kept_is_refused_with_its_place() {
    let bad = tool(
        "bad",
        json!({"type": "object", "properties": {"x": {"type": "nonsense"}}}),
    );
    let list = vec![(0, weather()), (4, Tool { strict: true, ..bad })];
    let tools = Tools {
        list,
        ..Tools::default()
    };
    assert_eq!(
        refused(&ask(Some(tools), None)).as_deref(),
        Some("tools[4].function.parameters")
    );
    let place = Some("response_format.json_schema.schema");
    assert_eq!(
        refused(&ask(None, Some(json!({"$ref": "#/$defs/none"})))).as_deref(),
        place
    );
    for beyond in BEYOND {
        let x: Value = serde_json::from_str(beyond).unwrap();
        let schema = json!({"type": "object", "properties": { "x": x }});
        assert_eq!(refused(&ask(None, Some(schema.clone()))).as_deref(), place, "{beyond}");
        assert!(takes(&schema, "{}"), "{beyond}");
    }
}

/// What no grammar keeps.
const BEYOND: [&str; 14] = [
    r#"{"type": "array", "items": {"type": "string"}, "uniqueItems": true}"#,
    r#"{"type": "array", "contains": {"type": "integer"}}"#,
    r#"{"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "number"}}"#,
    r#"{"type": "string", "format": "path"}"#,
    r#"{"type": "string", "format": "int64", "minLength": 1}"#,
    r#"{"not": {"type": "string"}}"#,
    r#"{"type": "object", "if": {"required": ["a"]}, "then": {"required": ["b"]}}"#,
    r#"{"type": "string", "pattern": "^(?!^[-+.]*$)[+-]?0*\\d*\\.?\\d*$"}"#,
    r#"{"type": "string", "format": "email", "pattern": "^(?!\\.)(?!.*\\.\\.)[a-z.]+@[a-z.]+$"}"#,
    r#"{"type": "string", "pattern": "("}"#,
    r#"{"type": "string", "pattern": "(a)\\1"}"#,
    r#"{"type": "object", "properties": {"a": {}, "b": {}}, "minProperties": 1, "maxProperties": 2}"#,
    r#"{"type": "object", "patternProperties": {"^(?!x)": {"type": "integer"}}}"#,
    r#"{"type": "object", "patternProperties": {"a": {"type": "integer"}, "b": {"type": "string"}}}"#,
];

#[test]
fn of_a_schema_that_is_not_strict_the_rest_is_kept() {
    let amount = json!({"type": "object", "properties": {
        // As pydantic 2.12 writes a Decimal.
        "amount": {"anyOf": [{"type": "number"}, {"type": "string", "pattern": "^(?!^[-+.]*$)[+-]?0*\\d*\\.?\\d*$"}]},
        "mail": {"type": "string", "format": "email", "pattern": "^(?!\\.)"},
        "code": {"type": "string", "format": "cuid2", "pattern": "^[0-9a-z]+$"},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": true, "maxItems": 2},
    }, "required": ["amount", "mail", "code", "tags"]});
    let text = |sum: &str, mail: &str, code: &str, tags: &str| {
        takes(
            &amount,
            &format!(r#"{{"amount": {sum}, "mail": "{mail}", "code": "{code}", "tags": {tags}}}"#),
        )
    };
    assert!(text("1.5", "a@b.c", "x1", "[]") && text("\"1.5\"", "a@b.c", "x1", r#"["a", "a"]"#));
    assert!(!text("true", "a@b.c", "x1", "[]"), "the alternatives");
    assert!(
        !text("1", "nobody", "x1", "[]"),
        "the format beside a pattern that is none"
    );
    assert!(
        !text("1", "a@b.c", "X!", "[]"),
        "the pattern beside a format that is unknown"
    );
    assert!(!text("1", "a@b.c", "x1", r#"["c"]"#) && !text("1", "a@b.c", "x1", r#"["a", "b", "a"]"#));
    assert!(!takes(&amount, r#"{"amount": 1}"#), "what is required");
}

#[test]
fn a_schema_that_nothing_matches_still_gets_an_answer_of_its_type() {
    let closed = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a", "b"], "additionalProperties": false});
    assert!(
        takes(&closed, r#"{"a": 1}"#) && !takes(&closed, "{}"),
        "what it forbids is not asked for"
    );
    let several = json!({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "minProperties": 2,
        "additionalProperties": false});
    assert!(takes(&several, r#"{"a": 1, "b": 2}"#) && !takes(&several, r#"{"a": "1"}"#));
    let never = json!({"type": "object", "properties": {"a": {"type": "string", "enum": [1]}}, "required": ["a"]});
    assert!(takes(&never, r#"{"a": 1}"#));
    let lengths = json!({"type": "object", "properties": {"a": {"type": "string", "minLength": 3, "maxLength": 2}}, "required": ["a"]});
    assert!(takes(&lengths, r#"{"a": "xy"}"#) && !takes(&lengths, "{}"));
}

#[test]
fn what_must_come_is_never_closed_out() {
    let beyond = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a", "b"]});
    assert!(takes(&beyond, r#"{"a": 1, "b": [2]}"#) && !takes(&beyond, r#"{"a": 1}"#));
    let inner = json!({"type": "object", "properties": {"o": beyond}, "required": []});
    assert!(takes(&inner, r#"{"o": {"a": 1, "b": 2}}"#) && takes(&inner, "{}"));
    let a = json!({"a": {"type": "integer"}});
    let b = json!({"properties": {"b": {"type": "integer"}}, "required": ["b"]});
    let both = r#"{"a": 1, "b": 2}"#;
    assert!(takes(
        &json!({"type": "object", "properties": a, "required": ["a"], "anyOf": [b]}),
        both
    ));
    assert!(takes(
        &json!({"type": "object", "properties": a, "required": ["a"], "allOf": [b]}),
        both
    ));
    let laid = json!({"type": "object", "properties": {"o": {"$ref": "#/$defs/A", "properties": b["properties"], "required": ["a", "b"]}},
        "$defs": {"A": {"type": "object", "properties": a}}, "required": ["o"]});
    assert!(takes(&laid, &format!(r#"{{"o": {both}}}"#)));
    let more = json!({"type": "object", "properties": a, "minProperties": 2});
    assert!(takes(&more, r#"{"a": 1, "b": 2, "c": 3}"#));
}

#[test]
fn a_reference_leads_where_it_says_however_it_is_spelled() {
    let name = |key: &str, reference: &str| {
        let schema = json!({"$defs": {key: {"type": "object", "properties": {"n": {"type": "integer"}, "of": {"$ref": reference}}, "required": ["n"]}},
            "type": "object", "properties": {"p": {"$ref": reference}}, "required": ["p"]});
        assert!(takes(&schema, r#"{"p": {"n": 1, "of": {"n": 2}}}"#), "{reference}");
        assert!(!takes(&schema, r#"{"p": {"n": 1, "of": {"n": "2"}}}"#), "{reference}");
        assert!(!takes(&schema, r#"{"p": {"n": 1, "x": 2}}"#), "{reference} is closed");
    };
    name("Pet", "#/$defs/Pet");
    name("a/b", "#/$defs/a~1b");
    name("a~b", "#/$defs/a~0b");
    name("Page<Pet>", "#/$defs/Page%3CPet%3E");
    name("my pet", "#/%24defs/my%20pet");
    name("100%", "#/$defs/100%");
    let place = json!({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"$ref": "#/properties/a"}}});
    assert!(takes(&place, r#"{"a": 1, "b": 2}"#) && !takes(&place, r#"{"b": "x"}"#));
    // As pydantic writes a model that holds itself.
    let node =
        json!({"properties": {"children": {"items": {"$ref": "#/$defs/Node"}, "type": "array"}}, "type": "object"});
    let tree = json!({"$defs": {"Node": node}, "$ref": "#/$defs/Node"});
    assert!(takes(&tree, r#"{"children": [{"children": []}, {}]}"#) && !takes(&tree, r#"{"children": [1]}"#));
    let list = json!({"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}});
    assert!(takes(&list, r#"{"next": {"next": null}}"#));
}

#[test]
fn arguments_are_an_object_even_if_their_schema_says_nothing() {
    let call = |arguments: &str| format!("<tool_call>\n{{\"name\": \"f\", \"arguments\": {arguments}}}\n</tool_call>");
    assert!(fits(Dialect::Hermes, &calling(json!({})), &call(r#"{"a": [1]}"#)));
    assert!(!fits(Dialect::Hermes, &calling(json!({})), &call("\"a\"")));
}

#[test]
fn of_very_many_bad_patterns_none_is_kept_and_nobody_refused() {
    let many: Map<String, Value> = (0..300)
        .map(|i| {
            (
                format!("k{i}"),
                json!({"type": "string", "pattern": format!("(?={i})")}),
            )
        })
        .collect();
    assert!(takes(
        &json!({"type": "object", "properties": many}),
        r#"{"k7": "x", "k299": ""}"#
    ));
}
