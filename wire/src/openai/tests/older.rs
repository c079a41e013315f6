//! Completions and embeddings.

use super::*;

#[test]
fn prompts_come_in_four_forms() {
    let prompts =
        |prompt: Value| CompletionRequest::read(json!({"model": "m", "prompt": prompt}).to_string().as_bytes());
    let text = |text: &str| Input::Text(text.into());
    assert_eq!(prompts(json!("a")).unwrap().prompts, [text("a")]);
    assert_eq!(prompts(json!("")).unwrap().prompts, [text("")]);
    assert_eq!(prompts(json!(["a", "b"])).unwrap().prompts, [text("a"), text("b")]);
    assert_eq!(prompts(json!([1, 2.0])).unwrap().prompts, [Input::Tokens(vec![1, 2])]);
    assert_eq!(
        prompts(json!([[1], [2, 3]])).unwrap().prompts,
        [Input::Tokens(vec![1]), Input::Tokens(vec![2, 3])]
    );
    for (bad, param) in [
        (json!(null), "prompt"),
        (json!(7), "prompt"),
        (json!({}), "prompt"),
        (json!([]), "prompt"),
        (json!([[]]), "prompt[0]"),
        (json!([1, "a"]), "prompt[1]"),
        (json!(["a", 1]), "prompt[1]"),
        (json!([[1], [-1]]), "prompt[1][0]"),
        (json!([1, 4_294_967_296_u64]), "prompt[1]"),
        (json!(vec!["a"; 129]), "prompt"),
    ] {
        assert_eq!(prompts(bad.clone()).unwrap_err().param(), Some(param), "{bad}");
    }
}

#[test]
fn completions_keep_their_own_rules() {
    let read = |extra: Value| {
        let mut body = json!({"model": "m", "prompt": "a"});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        CompletionRequest::read(body.to_string().as_bytes())
    };
    let usual = read(json!({"suffix": "", "best_of": 1, "user": "u"})).unwrap();
    assert_eq!(
        (usual.max_tokens, usual.n, usual.echo, usual.logprobs),
        (16, 1, false, None)
    );
    assert_eq!(read(json!({"max_tokens": 0, "echo": true})).unwrap().max_tokens, 0);
    assert_eq!(
        read(json!({"n": 3, "best_of": 3, "logprobs": 5})).unwrap().logprobs,
        Some(5)
    );
    for (bad, param) in [
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"logprobs": 6}), "logprobs"),
        (json!({"logprobs": true}), "logprobs"),
        (json!({"best_of": 2}), "best_of?"),
        (json!({"prompt": vec!["a"; 65], "n": 2}), "n"),
        (json!({"echo": 1}), "echo"),
        (json!({"stop": [""]}), "stop"),
    ] {
        assert_eq!(named(&read(bad.clone()).unwrap_err()), [param], "{bad}");
    }
}

#[test]
fn embeddings_keep_their_own_rules() {
    let read = |body: Value| EmbeddingRequest::read(body.to_string().as_bytes());
    let request =
        read(json!({"model": "m", "input": ["a", "b"], "dimensions": 8, "encoding_format": "base64"})).unwrap();
    assert_eq!(
        (request.inputs.len(), request.dimensions, request.encoding),
        (2, Some(8), Encoding::Base64)
    );
    for (bad, param) in [
        (json!({"input": "a"}), "model"),
        (json!({"model": "m"}), "input"),
        (json!({"model": "m", "input": ""}), "input"),
        (json!({"model": "m", "input": ["a", ""]}), "input[1]"),
        (json!({"model": "m", "input": vec!["a"; 2049]}), "input"),
        (json!({"model": "m", "input": "a", "dimensions": 0}), "dimensions"),
        (
            json!({"model": "m", "input": "a", "encoding_format": "hex"}),
            "encoding_format",
        ),
    ] {
        assert_eq!(read(bad.clone()).unwrap_err().param(), Some(param), "{bad}");
    }
}
