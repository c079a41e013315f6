//! A Qwen3 of two layers, whose weights and words are made up here: as safetensors, in a folder as the hub has them.

use std::path::Path;

use serde_json::{Map, Value, json};

/// Numbers for each token.
pub const WIDTH: usize = 16;
const HEAD: usize = 8;
const INNER: usize = 32;
/// All it can say; the first one ends a text.
pub const WORDS: [&str; 8] = ["<|endoftext|>", "[UNK]", "hello", "world", "good", "bye", "x", "y"];

/// Names, which all begin with `prefix`, and shapes of the weights.
fn weights(prefix: &str) -> Vec<(String, Vec<usize>)> {
    let mut all = vec![
        (format!("{prefix}embed_tokens.weight"), vec![WORDS.len(), WIDTH]),
        (format!("{prefix}norm.weight"), vec![WIDTH]),
    ];
    for layer in 0..2 {
        let parts: [(&str, &[usize]); 11] = [
            ("input_layernorm", &[WIDTH]),
            ("post_attention_layernorm", &[WIDTH]),
            ("self_attn.q_norm", &[HEAD]),
            ("self_attn.k_norm", &[HEAD]),
            ("self_attn.q_proj", &[WIDTH, WIDTH]),
            ("self_attn.k_proj", &[HEAD, WIDTH]),
            ("self_attn.v_proj", &[HEAD, WIDTH]),
            ("self_attn.o_proj", &[WIDTH, WIDTH]),
            ("mlp.gate_proj", &[INNER, WIDTH]),
            ("mlp.up_proj", &[INNER, WIDTH]),
            ("mlp.down_proj", &[WIDTH, INNER]),
        ];
        all.extend(parts.map(|(name, shape)| (format!("{prefix}layers.{layer}.{name}.weight"), shape.to_vec())));
    }
    all
}

/// The one safetensors file of a folder: the length of its head, the head, and numbers between -0.5 and 0.5 that look like chance.
pub fn write_weights(folder: &Path, weights: Vec<(String, Vec<usize>)>) {
    let (mut head, mut data) = (Map::new(), Vec::new());
    let mut state = 1_u32;
    for (name, shape) in weights {
        let start = data.len();
        for _ in 0..shape.iter().product() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let number = f32::from(u16::try_from(state >> 16).unwrap()) / 65_536.0 - 0.5;
            data.extend(number.to_le_bytes());
        }
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
        head.insert(name, entry);
    }
    let head = Value::from(head).to_string();
    let mut file = (head.len() as u64).to_le_bytes().to_vec();
    file.extend(head.bytes());
    file.extend(data);
    std::fs::write(folder.join("model.safetensors"), file).unwrap();
}

/// Writes the model into `folder`; its weights' names begin with `prefix`.
pub fn write_model(folder: &Path, prefix: &str) {
    let write = |name: &str, content: Value| write_json(folder, name, &content);
    write(
        "config.json",
        json!({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "torch_dtype": "float32",
            "vocab_size": WORDS.len(), "hidden_size": WIDTH, "head_dim": HEAD, "intermediate_size": INNER,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_act": "silu",
            "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "sliding_window": null,
            "max_window_layers": 2, "use_sliding_window": false, "tie_word_embeddings": true}),
    );
    let end = WORDS[0];
    let (a, b) = (
        json!({"Sequence": {"id": "A", "type_id": 0}}),
        json!({"Sequence": {"id": "B", "type_id": 0}}),
    );
    let mark = json!({"SpecialToken": {"id": end, "type_id": 0}});
    let vocabulary: Map<String, Value> = WORDS
        .iter()
        .zip(0..)
        .map(|(word, id)| ((*word).to_owned(), Value::from(id)))
        .collect();
    write(
        "tokenizer.json",
        json!({"version": "1.0", "truncation": null, "padding": null, "normalizer": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "added_tokens": [{"id": 0, "content": end, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true}],
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": {"type": "TemplateProcessing", "single": [a, mark], "pair": [a, b, mark],
                "special_tokens": {end: {"id": end, "ids": [0], "tokens": [end]}}},
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": WORDS[1]}}),
    );
    write_weights(folder, weights(prefix));
}

/// Writes a file of JSON.
pub fn write_json(folder: &Path, name: &str, content: &Value) {
    std::fs::write(folder.join(name), content.to_string()).unwrap();
}
