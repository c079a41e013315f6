//! What becomes of parameters, and what a model is asked for.

use super::*;

#[test]
fn what_has_no_effect_is_named_and_what_would_change_the_answer_is_refused() {
    let judge = |extra: Value, engine| {
        let text = body(extra);
        let facts = ModelFacts {
            engine,
            ..ModelFacts::default()
        };
        let mut faults = Faults::default();
        let ignored = parameters::judge(Kind::Chat, &facts, &Body::read(&text).unwrap(), &mut faults);
        (ignored, named(&faults))
    };
    let asked = json!({"user": "u", "store": null, "x_new": 1, "mirostat": 2, "typical_p": 1, "min_tokens": 0, "temperature": 0.5});
    for engine in [EngineName::Mistral, EngineName::Scripted] {
        let (mut ignored, faults) = judge(asked.clone(), Some(engine));
        ignored.sort();
        assert_eq!(
            (ignored, faults),
            (
                vec!["user".to_owned(), "x_new".to_owned()],
                vec!["mirostat?".to_owned()]
            )
        );
    }
    assert_eq!(judge(asked, None), (Vec::new(), Vec::new()));
}

#[test]
fn each_refused_parameter_is_taken_with_its_own_neutral_values_and_no_others() {
    let refused = |kind, name: &str, value: &str| {
        let facts = ModelFacts {
            engine: Some(EngineName::Mistral),
            ..ModelFacts::default()
        };
        let (text, mut faults) = (format!("{{\"{name}\": {value} }}"), Faults::default());
        let ignored = parameters::judge(kind, &facts, &Body::read(text.as_bytes()).unwrap(), &mut faults);
        assert!(ignored.is_empty(), "{name}");
        named(&faults) == [format!("{name}?")]
    };
    let same = |one: &str, other: &str| {
        let number = |text: &str| {
            text.parse::<f64>()
                .map_or(text.replace(' ', ""), |number| number.to_string())
        };
        number(one) == number(other)
    };
    for kind in [Kind::Chat, Kind::Completions, Kind::Embeddings] {
        for row in parameters::table(kind).filter(|row| row.mistral == parameters::Support::Refused) {
            for value in [
                "false",
                "true",
                "0",
                "0.0",
                "1",
                "1.00",
                "-1",
                "-1.0",
                "\"\"",
                "\"x\"",
                "[]",
                "[ ]",
                "[\"x\"]",
                "{}",
                "{ }",
                "[ \"text\" ]",
                "\"none\"",
            ] {
                let neutral = row.neutral.iter().any(|neutral| same(neutral, value));
                assert_eq!(refused(kind, row.name, value), !neutral, "{}: {value}", row.name);
            }
            assert!(!refused(kind, row.name, "null"));
        }
    }
    for (name, neutral, asks) in [
        ("skip_special_tokens", "true", "false"),
        ("add_generation_prompt", "true", "false"),
        ("spaces_between_special_tokens", "true", "false"),
        ("length_penalty", "1.00", "0"),
        ("best_of", "1", "0"),
        ("num_predict", "-1", "0"),
        ("modalities", "[ \"text\" ]", "[\"text\", \"audio\"]"),
        ("functions", "[ ]", "[{}]"),
        ("web_search_options", "null", "{}"),
        ("prompt_logprobs", "null", "0"),
    ] {
        assert!(!refused(Kind::Chat, name, neutral), "{name}: {neutral}");
        assert!(refused(Kind::Chat, name, asks), "{name}: {asks}");
    }
}

#[test]
fn what_vendors_brought_has_the_ranges_of_whoever_answers() {
    for (name, value) in [
        ("top_k", json!(-2)),
        ("min_p", json!(2)),
        ("repetition_penalty", json!(0)),
        ("repeat_penalty", json!(0)),
        ("enable_thinking", json!("auto")),
        ("chat_template_kwargs", json!("x")),
    ] {
        assert_eq!(faults(json!({ name: value })), [format!("{name}?")]);
    }
    assert_eq!(
        faults(json!({"chat_template_kwargs": {"thinking": "high"}})),
        ["chat_template_kwargs.thinking?"]
    );
    assert_eq!(faults(json!({"temperature": 3})), ["temperature"]);
    let custom = json!({"id": "a", "type": "custom", "custom": {"name": "f", "input": "x"}});
    let past =
        json!([{"role": "assistant", "tool_calls": [custom]}, {"role": "tool", "tool_call_id": "a", "content": ""}]);
    assert_eq!(faults(json!({ "messages": past })), ["messages[0].tool_calls[0].type?"]);
}

#[test]
fn the_table_names_each_parameter_once_and_says_what_to_do_instead() {
    for kind in [Kind::Chat, Kind::Completions, Kind::Embeddings] {
        let mut seen = std::collections::HashSet::new();
        for row in parameters::table(kind) {
            assert!(seen.insert(row.name), "{} comes twice", row.name);
            assert_eq!(
                row.mistral == parameters::Support::Refused,
                !row.instead.is_empty(),
                "{}",
                row.name
            );
            assert!(parameters::markdown(kind).contains(&format!("| `{}` |", row.name)));
        }
    }
}

#[test]
fn a_model_is_asked_only_for_what_it_can_do() {
    let image = |url: &str| json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]});
    let chat = |extra: Value, can: Capabilities| {
        let facts = ModelFacts {
            capabilities: Some(can),
            ..ModelFacts::default()
        };
        let mut faults = Faults::default();
        ability::check_chat(&read(extra), &"m".parse().unwrap(), &facts, &mut faults);
        named(&faults)
    };
    let (blind, seeing) = (
        Capabilities::default(),
        Capabilities {
            vision: true,
            ..Capabilities::default()
        },
    );
    let none: [&str; 0] = [];
    assert_eq!(chat(image("data:image/png;base64,AA=="), seeing), none);
    assert_eq!(
        chat(image("data:image/png;base64,AA=="), blind),
        ["messages[0].content[0].type?"]
    );
    assert_eq!(
        chat(image("https://example.org/x.png"), seeing),
        ["messages[0].content[0].image_url.url?"]
    );
    assert_eq!(
        chat(
            json!({"tools": [function("f")], "response_format": {"type": "json_object"}}),
            blind
        ),
        ["tools?", "response_format?"]
    );
    let mut faults = Faults::default();
    let embedding = ModelFacts {
        capabilities: Some(Capabilities {
            embeddings: true,
            ..Capabilities::default()
        }),
        ..ModelFacts::default()
    };
    ability::check_kind(Kind::Embeddings, &"m".parse().unwrap(), &embedding, &mut faults);
    assert!(faults.is_empty());
    ability::check_kind(Kind::Chat, &"m".parse().unwrap(), &embedding, &mut faults);
    assert!(
        faults.param() == Some("model") && faults.to_string().contains("`m`"),
        "{faults}"
    );
}

#[test]
fn thinking_is_switched_where_the_model_can() {
    let asked = json!({"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": false}});
    let judge = |engine, thinking| {
        let facts = ModelFacts {
            engine: Some(engine),
            capabilities: Some(Capabilities {
                thinking,
                ..Capabilities::default()
            }),
            ..ModelFacts::default()
        };
        let (text, mut faults) = (body(asked.clone()), Faults::default());
        let ignored = parameters::judge(Kind::Chat, &facts, &Body::read(&text).unwrap(), &mut faults);
        assert!(faults.is_empty(), "{faults}");
        ignored
    };
    assert_eq!(judge(EngineName::Mistral, true), [""; 0]);
    let both = ["chat_template_kwargs", "reasoning_effort"];
    for (engine, thinking) in [(EngineName::Mistral, false), (EngineName::Scripted, true)] {
        let mut ignored = judge(engine, thinking);
        ignored.sort();
        assert_eq!(ignored, both);
    }
}

#[test]
fn workers_of_one_model_can_together_what_one_of_them_can() {
    let facts = |context_length, capabilities| ModelFacts {
        context_length,
        capabilities,
        ..ModelFacts::default()
    };
    let (sees, calls) = (
        Capabilities {
            vision: true,
            ..Capabilities::default()
        },
        Capabilities {
            tools: true,
            ..Capabilities::default()
        },
    );
    let all = [
        facts(Some(5), Some(sees)),
        facts(None, None),
        facts(Some(7), Some(calls)),
    ];
    let both = Capabilities { vision: true, ..calls };
    assert_eq!(ability::together(&all), facts(Some(7), Some(both)));
    assert_eq!(ability::together(&all[1..2]), ModelFacts::default());
}
