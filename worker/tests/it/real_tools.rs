//! Calls, schemas, choices and texts by the real engine: a model of 135 million weights does what the grammar makes it.

use serde_json::{Value, json};

use super::{
    completions::{ask as text, logprobs as logprobs_of, said},
    real_model::{ask, real},
    tools::{beyond_grammars, check_weather, now, weather},
    worker::with,
};

fn calling(content: &str, more: Value) -> Value {
    with(
        with(ask(content), json!({"tools": [weather(), now()], "max_tokens": 150})),
        more,
    )
}

#[tokio::test]
async fn a_required_call_fits_its_schema_whatever_the_model_would_rather_say() {
    let worker = real(&[]).await;
    let must = json!({"tool_choice": "required", "parallel_tool_calls": false});
    let answer = worker.ask(&calling("How is the weather in Paris?", must)).await;
    let said = answer.choice(0);
    assert_eq!(
        (said.finish.as_str(), said.calls.len(), said.text.as_str()),
        ("tool_calls", 1, "")
    );
    match said.calls[0].name.as_str() {
        "get_weather" => check_weather(&said.calls[0].arguments),
        other => assert_eq!((other, said.calls[0].arguments.as_str()), ("now", "{}")),
    }

    for seed in 1..4 {
        let named = json!({"type": "function", "function": {"name": "get_weather"}});
        let more = json!({"tool_choice": named, "temperature": 1.5, "seed": seed, "parallel_tool_calls": false});
        let answer = worker.ask(&calling("Tell me a joke about nothing.", more)).await;
        let said = answer.choice(0);
        assert_eq!(
            (said.finish.as_str(), said.text.as_str()),
            ("tool_calls", ""),
            "{}",
            answer.body()
        );
        assert_eq!(said.calls[0].name, "get_weather");
        check_weather(&said.calls[0].arguments);
    }
}

#[tokio::test]
async fn a_model_that_need_not_call_answers_in_words_and_reads_results() {
    let worker = real(&[]).await;
    let answer = worker
        .ask(&calling("Hello, who are you?", json!({"max_tokens": 12})))
        .await;
    assert!(
        answer.choice(0).calls.is_empty() && !answer.choice(0).text.is_empty(),
        "{}",
        answer.body()
    );

    let call = json!({"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}});
    let past = json!([
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "It is half past nine."},
    ]);
    let answer = worker
        .ask(&calling("", json!({"messages": past, "max_tokens": 12})))
        .await;
    assert!(!answer.choice(0).text.is_empty(), "{}", answer.body());
}

#[tokio::test]
async fn a_schema_with_references_and_alternatives_is_kept_to() {
    let worker = real(&[]).await;
    let schema = weather()["function"]["parameters"].clone();
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}});
    let answer = worker
        .ask(&with(
            ask("A city, please."),
            json!({"response_format": format, "max_tokens": 60}),
        ))
        .await;
    check_weather(&answer.text());
    let endless = json!({"response_format": {"type": "json_object"}, "max_tokens": 8});
    let cut = worker
        .ask(&with(ask("Describe the whole world in JSON."), endless))
        .await;
    assert!(cut.text().starts_with('{'));
    assert_eq!((cut.finish().as_str(), cut.usage()[1]), ("length", 8));
}

#[tokio::test]
async fn a_schema_that_no_grammar_keeps_is_kept_as_far_as_can_be() {
    let worker = real(&[]).await;
    let buy = json!({"type": "function", "function": {"name": "buy", "parameters": beyond_grammars()}});
    let more = json!({"tools": [buy], "tool_choice": "required", "parallel_tool_calls": false, "max_tokens": 24});
    let answer = worker.ask(&with(ask("Buy a pen for two euros."), more)).await;
    let call = &answer.choice(0).calls[0];
    assert_eq!(
        (call.name.as_str(), call.arguments.get(..10)),
        ("buy", Some("{\"price\": "))
    );
}

#[tokio::test]
async fn a_token_that_the_model_does_not_have_is_not_biased() {
    let worker = real(&[]).await;
    let refused = worker
        .ask(&with(ask("Hello"), json!({"logit_bias": {"99999999": 100}})))
        .await;
    let error = refused.json()["error"].clone();
    assert_eq!(
        (refused.status.as_u16(), &error["param"]),
        (400, &json!("logit_bias")),
        "{error}"
    );
    assert!(error["message"].as_str().unwrap().contains("99999999"), "{error}");
}

#[tokio::test]
async fn several_choices_differ_and_repeat() {
    let worker = real(&[]).await;
    let three = with(
        ask("Tell me a story."),
        json!({"n": 3, "temperature": 1.5, "seed": 7, "max_tokens": 8}),
    );
    let answer = worker.ask(&three).await;
    let texts: Vec<String> = (0..3).map(|i| answer.choice(i).text).collect();
    assert!(texts[0] != texts[1] && texts[1] != texts[2], "{texts:?}");
    let [prompt, completion, _] = answer.usage();
    assert_eq!(completion, 24);
    let alone = worker.ask(&with(three, json!({"n": 1}))).await;
    assert_eq!((alone.text(), alone.usage()[0]), (texts[0].clone(), prompt));
}

#[tokio::test]
async fn a_text_goes_on_as_it_stands() {
    let worker = real(&[]).await;
    let more = json!({"max_tokens": 3, "temperature": 0, "logprobs": 1});
    let body = text(json!("The capital of France is"), more);
    let post = async |body: Value| worker.post("/v1/completions", &body).await;
    let answer = post(body.clone()).await;
    let (goes_on, finish) = said(&answer, 1).remove(0);
    assert!(goes_on.contains("Paris"), "{goes_on}");
    assert_eq!((answer.usage()[0], finish.as_str()), (5, "length"), "no template");
    let logprobs = logprobs_of(&answer);
    let tokens: String = logprobs["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| token.as_str().unwrap())
        .collect();
    assert_eq!(goes_on, tokens);
    assert_eq!(logprobs["text_offset"][0], 0);
    let top = logprobs["top_logprobs"][0].as_object().unwrap();
    assert_eq!(
        top.values().next(),
        Some(&logprobs["token_logprobs"][0]),
        "greedy takes the likeliest"
    );

    let echoed = post(with(body.clone(), json!({"echo": true, "logprobs": null}))).await;
    let whole_text = format!("The capital of France is{goes_on}");
    assert_eq!(said(&echoed, 1)[0].0, whole_text);

    // What it continues with is as likely in an echo as it was when it was said.
    let all = with(
        body.clone(),
        json!({"prompt": whole_text, "echo": true, "max_tokens": 0}),
    );
    let all = post(all).await;
    let weighed = logprobs_of(&all);
    assert_eq!(
        (&said(&all, 1)[0].0, &weighed["token_logprobs"][0]),
        (&whole_text, &Value::Null)
    );
    assert_eq!(
        weighed["tokens"].as_array().unwrap()[5..],
        logprobs["tokens"].as_array().unwrap()[..]
    );
    for at in 0..3 {
        let (then, now) = (&logprobs["token_logprobs"][at], &weighed["token_logprobs"][5 + at]);
        assert!(
            (then.as_f64().unwrap() - now.as_f64().unwrap()).abs() < 0.01,
            "{then} {now}"
        );
    }
    assert_eq!(all.usage()[1], 0);

    // 504, 3575, 282, 4649, 314 are the five tokens of the prompt.
    let ids = with(
        body,
        json!({"prompt": [[504, 3575, 282, 4649, 314], [504]], "echo": true, "logprobs": null}),
    );
    let ids = said(&post(ids).await, 2);
    assert_eq!(ids[0].0, whole_text);
    assert!(ids[1].0.starts_with("The"), "{ids:?}");
    let strange = post(text(json!([999_999]), json!({}))).await;
    assert_eq!(
        (strange.status.as_u16(), strange.json()["error"]["param"].as_str()),
        (400, Some("prompt"))
    );
}

#[tokio::test]
async fn a_model_that_chats_makes_no_embeddings() {
    let worker = real(&[]).await;
    let refused = worker
        .post("/v1/embeddings", &json!({"model": "m", "input": "x"}))
        .await;
    let message = refused.json()["error"]["message"].as_str().unwrap().to_owned();
    assert_eq!(refused.status.as_u16(), 400);
    assert!(message.contains("`m` answers in words"), "{message}");
}

#[tokio::test]
async fn a_text_in_which_the_model_loses_itself_comes_to_an_end() {
    let worker = real(&[]).await;
    let texts = json!({"to": {"type": "string"}, "subject": {"type": "string"}, "body": {"type": "string"}});
    let mail = json!({"type": "function", "function": {"name": "send_email", "description": "Send an email",
        "parameters": {"type": "object", "properties": texts, "required": ["to", "subject", "body"]}}});
    let more = json!({"tools": [mail], "tool_choice": {"type": "function", "function": {"name": "send_email"}},
        "parallel_tool_calls": false, "max_tokens": 400});
    let answer = worker.ask(&calling("Write Bob a mail about lunch", more)).await;
    let said = answer.choice(0);
    assert_eq!(said.finish, "tool_calls", "{said:?}");
    let arguments: Value = serde_json::from_str(&said.calls[0].arguments).unwrap();
    assert!(
        ["to", "subject", "body"].iter().all(|key| arguments[key].is_string()),
        "{arguments}"
    );
}
