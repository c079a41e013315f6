//! Functions, which of them is called, and the form of an answer.

use super::*;

#[test]
fn functions_are_read_with_their_schemas() {
    let schema = json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}, "b": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
        "required": ["a", "b"], "additionalProperties": false, "$defs": {"A": {"enum": ["x"], "type": "string"}}});
    let request = read(json!({"tools": [
        {"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": schema, "strict": true}},
        {"function": {"name": "no-arguments"}},
    ]}));
    assert_eq!(request.tools[0].parameters, schema);
    assert!(request.tools[0].strict && !request.tools[1].strict && request.parallel_tool_calls);
    assert_eq!(request.tools[1].parameters["type"], "object");
    assert_eq!(request.callable().count(), 2);
    let tool = |tool: Value| faults(json!({ "tools": [tool] }));
    let parameters =
        |parameters: Value| tool(json!({"type": "function", "function": {"name": "f", "parameters": parameters}}));
    for (got, param) in [
        (faults(json!({"tools": {}})), "tools"),
        (faults(json!({"tools": vec![function("f"); 129]})), "tools"),
        (
            faults(json!({"tools": [function("f"), function("f")]})),
            "tools[1].function.name",
        ),
        (tool(json!(1)), "tools[0].type"),
        (tool(json!({"type": "function"})), "tools[0].function"),
        (tool(json!({"type": "function", "name": "flat"})), "tools[0].function"),
        (
            tool(json!({"type": "function", "function": {"name": "a b"}})),
            "tools[0].function.name",
        ),
        (
            tool(json!({"type": "function", "function": {"name": "x".repeat(65)}})),
            "tools[0].function.name",
        ),
        (tool(json!({"type": "web_search"})), "tools[0].type?"),
        (
            tool(json!({"type": "custom", "custom": {"name": "f"}})),
            "tools[0].type?",
        ),
        (parameters(json!([])), "tools[0].function.parameters"),
        (
            parameters(json!({"type": "string"})),
            "tools[0].function.parameters.type",
        ),
        (
            parameters(json!({"properties": {"a": {"type": "text"}}})),
            "tools[0].function.parameters.properties.a.type",
        ),
        (
            parameters(json!({"required": "a"})),
            "tools[0].function.parameters.required",
        ),
        (
            parameters(json!({"$ref": "#/nowhere"})),
            "tools[0].function.parameters.$ref",
        ),
        (
            parameters(json!({"$ref": "http://x"})),
            "tools[0].function.parameters.$ref",
        ),
        (
            parameters(json!({"description": "x".repeat(65536)})),
            "tools[0].function.parameters",
        ),
    ] {
        assert_eq!(got, [param]);
    }
}

#[test]
fn a_tool_is_chosen_in_every_form() {
    let choose = |choice: Value| {
        let request = read(json!({"tools": [function("f"), function("g")], "tool_choice": choice}));
        let callable: Vec<_> = request.callable().map(|tool| tool.name.clone()).collect();
        (request.tool_choice, callable.join(" "))
    };
    assert_eq!(choose(json!(null)), (ToolChoice::Auto, "f g".into()));
    assert_eq!(choose(json!("auto")), (ToolChoice::Auto, "f g".into()));
    assert_eq!(choose(json!("none")), (ToolChoice::None, String::new()));
    assert_eq!(choose(json!("required")), (ToolChoice::Required, "f g".into()));
    assert_eq!(choose(json!("any")), (ToolChoice::Required, "f g".into()));
    assert_eq!(choose(function("g")), (ToolChoice::Function("g".into()), "g".into()));
    let allowed =
        |mode: &str| json!({"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [function("g")]}});
    assert_eq!(choose(allowed("auto")), (ToolChoice::Auto, "g".into()));
    assert_eq!(choose(allowed("required")), (ToolChoice::Required, "g".into()));
    for (choice, param) in [
        (json!("maybe"), "tool_choice"),
        (json!(7), "tool_choice"),
        (json!({"type": "tool"}), "tool_choice.type"),
        (json!({"type": "function"}), "tool_choice.function.name"),
        (function("absent"), "tool_choice"),
        (allowed("always"), "tool_choice.allowed_tools.mode"),
        (
            json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}),
            "tool_choice.allowed_tools.tools",
        ),
        (
            json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [function("absent")]}}),
            "tool_choice",
        ),
        (json!({"type": "custom", "custom": {"name": "f"}}), "tool_choice.type?"),
    ] {
        assert_eq!(
            faults(json!({"tools": [function("f")], "tool_choice": choice})),
            [param],
            "{choice}"
        );
    }
    assert_eq!(faults(json!({"tool_choice": "required"})), ["tool_choice"]);
    assert_eq!(
        faults(json!({"tools": [], "tool_choice": function("f")})),
        ["tool_choice"]
    );
    assert_eq!(faults(json!({"tools": [], "tool_choice": "required"})), ["tool_choice"]);
    assert_eq!(read(json!({"tool_choice": "auto"})).tool_choice, ToolChoice::Auto);
}

#[test]
fn a_form_is_asked_for_in_every_form() {
    let format = |format: Value| read(json!({ "response_format": format })).format;
    assert_eq!(format(json!({"type": "text"})), Format::Text);
    assert_eq!(format(json!({"type": "json_object"})), Format::Json);
    let schema = json!({"type": "object"});
    let read = format(
        json!({"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": schema, "description": "d"}}),
    );
    let wanted = Format::Schema {
        schema: schema.clone(),
        strict: true,
    };
    assert_eq!(read, wanted);
    assert!(matches!(
        format(json!({"type": "json_object", "schema": schema})),
        Format::Schema { .. }
    ));
    for (bad, param) in [
        (json!("json"), "response_format"),
        (json!({"type": "xml"}), "response_format.type"),
        (json!({"type": "regex", "regex": "a"}), "response_format.type?"),
        (json!({"type": "json_schema"}), "response_format.json_schema"),
        (
            json!({"type": "json_schema", "json_schema": {"name": "n"}}),
            "response_format.json_schema.schema",
        ),
        (
            json!({"type": "json_schema", "json_schema": {"schema": {"type": "strin"}}}),
            "response_format.json_schema.schema.type",
        ),
        (
            json!({"type": "json_schema", "json_schema": {"schema": {"anyOf": []}}}),
            "response_format.json_schema.schema.anyOf",
        ),
        (
            json!({"type": "json_schema", "json_schema": {"schema": {}, "strict": "yes"}}),
            "response_format.json_schema.strict",
        ),
    ] {
        assert_eq!(faults(json!({ "response_format": bad })), [param], "{bad}");
    }
}
