//! Models that see, as small as can be: a Gemma 3 and a Qwen3-VL with made-up weights, which read byte by byte.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::tiny::{write_json, write_weights};

/// Numbers for each token.
const WIDTH: usize = 16;
const HEAD: usize = 8;
const INNER: usize = 32;
/// Numbers for each part of an image.
const EYE: usize = 8;
/// The first token after those for the 256 bytes; it ends a text.
const END: usize = 256;
/// What both families hold at most, in tokens.
pub const CONTEXT: usize = 1024;

/// A family of models that see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Each image is a square of 8 pixels, and 4 tokens.
    Gemma,
    /// An image has a token for each 8 × 8 of its pixels, and at least 4.
    Qwen,
}

impl Family {
    fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Gemma => &["<start_of_image>", "<image_soft_token>", "<end_of_image>"],
            Self::Qwen => &[
                "<|image_pad|>",
                "<|vision_start|>",
                "<|vision_end|>",
                "<|video_pad|>",
                "<|placeholder|>",
            ],
        }
    }

    /// The mark that the chat template writes for an image.
    pub fn mark(self) -> &'static str {
        self.marks()[0]
    }

    /// What surrounds an image's own tokens: line ends and marks.
    pub fn around(self) -> u64 {
        match self {
            Self::Gemma => 6,
            Self::Qwen => 2,
        }
    }

    /// Writes the model into `folder`.
    pub fn write(self, folder: &Path) {
        let tokens = END + 1 + self.marks().len();
        write_tokenizer(folder, self.marks());
        let image = match self {
            Self::Gemma => "<start_of_image>",
            Self::Qwen => "<|vision_start|><|image_pad|><|vision_end|>",
        };
        let template = format!(
            "{{% for message in messages %}}{{% if message['content'] is string %}}{{{{ message['content'] }}}}\
             {{% else %}}{{% for part in message['content'] %}}{{% if part['type'] == 'image' %}}{image}\
             {{% else %}}{{{{ part['text'] }}}}{{% endif %}}{{% endfor %}}{{% endif %}}{{% endfor %}}"
        );
        let settings =
            json!({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "chat_template": template});
        write_json(folder, "tokenizer_config.json", &settings);
        match self {
            Self::Gemma => write_gemma(folder, tokens),
            Self::Qwen => write_qwen(folder, tokens),
        }
    }
}

/// Every byte is a token, and so is every mark.
fn write_tokenizer(folder: &Path, marks: &[&str]) {
    // As GPT-2 writes bytes: those that can be seen as they are, the others from 256 on.
    let mut others = 256..;
    let written = |byte: u8| match byte {
        33..=126 | 161..=172 | 174..=255 => char::from(byte),
        _ => char::from_u32(others.next().unwrap()).unwrap(),
    };
    let bytes: Map<String, Value> = (0..=255)
        .map(written)
        .zip(0..)
        .map(|(c, id)| (c.to_string(), Value::from(id)))
        .collect();
    let added = ["<|end|>"].iter().chain(marks).zip(END..).map(|(mark, id)| {
        json!({"id": id, "content": mark, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    });
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    write_json(
        folder,
        "tokenizer.json",
        &json!({"version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
            "added_tokens": added.collect::<Vec<_>>(), "pre_tokenizer": byte_level, "decoder": byte_level,
            "model": {"type": "BPE", "vocab": bytes, "merges": []}}),
    );
}

fn write_gemma(folder: &Path, tokens: usize) {
    write_json(
        folder,
        "config.json",
        &json!({"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "torch_dtype": "float32",
            "image_token_index": END + 2, "mm_tokens_per_image": 4,
            "text_config": {"vocab_size": tokens, "hidden_size": WIDTH, "head_dim": HEAD, "intermediate_size": INNER,
                "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 16,
                "sliding_window_pattern": 2, "query_pre_attn_scalar": HEAD, "max_position_embeddings": CONTEXT},
            "vision_config": {"hidden_size": EYE, "intermediate_size": INNER, "num_hidden_layers": 1,
                "num_attention_heads": 2, "image_size": 8, "patch_size": 2}}),
    );
    write_json(
        folder,
        "preprocessor_config.json",
        &json!({"do_resize": true, "size": {"height": 8, "width": 8}, "do_rescale": true, "rescale_factor": 1.0 / 255.0,
            "do_normalize": true, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 2,
            "image_seq_length": 4}),
    );
    write_json(folder, "processor_config.json", &json!({"image_seq_length": 4}));
    let mut weights = Vec::new();
    let mut of = |part: &str, shape: &[usize]| weights.push((part.to_owned(), shape.to_vec()));
    let tower = "vision_tower.vision_model";
    of("multi_modal_projector.mm_input_projection_weight", &[EYE, WIDTH]);
    of("multi_modal_projector.mm_soft_emb_norm.weight", &[EYE]);
    of(&format!("{tower}.embeddings.patch_embedding.weight"), &[EYE, 3, 2, 2]);
    of(&format!("{tower}.embeddings.patch_embedding.bias"), &[EYE]);
    of(&format!("{tower}.embeddings.position_embedding.weight"), &[16, EYE]);
    for norm in [
        "post_layernorm",
        "encoder.layers.0.layer_norm1",
        "encoder.layers.0.layer_norm2",
    ] {
        of(&format!("{tower}.{norm}.weight"), &[EYE]);
        of(&format!("{tower}.{norm}.bias"), &[EYE]);
    }
    for part in ["q_proj", "k_proj", "v_proj", "out_proj"] {
        of(
            &format!("{tower}.encoder.layers.0.self_attn.{part}.weight"),
            &[EYE, EYE],
        );
        of(&format!("{tower}.encoder.layers.0.self_attn.{part}.bias"), &[EYE]);
    }
    for (part, [to, from]) in [("fc1", [INNER, EYE]), ("fc2", [EYE, INNER])] {
        of(&format!("{tower}.encoder.layers.0.mlp.{part}.weight"), &[to, from]);
        of(&format!("{tower}.encoder.layers.0.mlp.{part}.bias"), &[to]);
    }
    let more = ["pre_feedforward_layernorm", "post_feedforward_layernorm"];
    weights.extend(language("language_model.model.", tokens, &more));
    write_weights(folder, weights);
}

fn write_qwen(folder: &Path, tokens: usize) {
    write_json(
        folder,
        "config.json",
        &json!({"architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl", "torch_dtype": "float32",
            "image_token_id": END + 1, "vision_start_token_id": END + 2, "vision_end_token_id": END + 3,
            "video_token_id": END + 4, "tie_word_embeddings": true,
            "text_config": {"vocab_size": tokens, "hidden_size": WIDTH, "head_dim": HEAD, "intermediate_size": INNER,
                "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_act": "silu",
                "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
                "rope_scaling": {"mrope_section": [2, 1, 1]}},
            "vision_config": {"depth": 1, "hidden_size": EYE, "out_hidden_size": WIDTH, "intermediate_size": INNER,
                "num_heads": 1, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
                "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}}),
    );
    write_json(
        folder,
        "preprocessor_config.json",
        &json!({"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2,
            "size": {"shortest_edge": 256, "longest_edge": 4096},
            "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}),
    );
    let mut weights = Vec::new();
    let mut of = |part: &str, shape: &[usize]| weights.push((format!("model.visual.{part}"), shape.to_vec()));
    of("patch_embed.proj.weight", &[EYE, 3, 2, 4, 4]);
    of("patch_embed.proj.bias", &[EYE]);
    of("pos_embed.weight", &[16, EYE]);
    let four = 4 * EYE;
    for (norm, width) in [
        ("blocks.0.norm1", EYE),
        ("blocks.0.norm2", EYE),
        ("merger.norm", EYE),
        ("deepstack_merger_list.0.norm", four),
    ] {
        of(&format!("{norm}.weight"), &[width]);
        of(&format!("{norm}.bias"), &[width]);
    }
    for (part, [to, from]) in [
        ("blocks.0.attn.qkv", [3 * EYE, EYE]),
        ("blocks.0.attn.proj", [EYE, EYE]),
        ("blocks.0.mlp.linear_fc1", [INNER, EYE]),
        ("blocks.0.mlp.linear_fc2", [EYE, INNER]),
        ("merger.linear_fc1", [four, four]),
        ("merger.linear_fc2", [WIDTH, four]),
        ("deepstack_merger_list.0.linear_fc1", [four, four]),
        ("deepstack_merger_list.0.linear_fc2", [WIDTH, four]),
    ] {
        of(&format!("{part}.weight"), &[to, from]);
        of(&format!("{part}.bias"), &[to]);
    }
    weights.extend(language("model.language_model.", tokens, &[]));
    write_weights(folder, weights);
}

/// Names and shapes of the part that speaks, with `more` norms in each layer.
fn language(prefix: &str, tokens: usize, more: &[&str]) -> Vec<(String, Vec<usize>)> {
    let mut all = vec![
        (format!("{prefix}embed_tokens.weight"), vec![tokens, WIDTH]),
        (format!("{prefix}norm.weight"), vec![WIDTH]),
    ];
    let parts: [(&str, &[usize]); 11] = [
        ("input_layernorm", &[WIDTH]),
        ("post_attention_layernorm", &[WIDTH]),
        ("self_attn.q_norm", &[HEAD]),
        ("self_attn.k_norm", &[HEAD]),
        ("self_attn.q_proj", &[2 * HEAD, WIDTH]),
        ("self_attn.k_proj", &[HEAD, WIDTH]),
        ("self_attn.v_proj", &[HEAD, WIDTH]),
        ("self_attn.o_proj", &[WIDTH, 2 * HEAD]),
        ("mlp.gate_proj", &[INNER, WIDTH]),
        ("mlp.up_proj", &[INNER, WIDTH]),
        ("mlp.down_proj", &[WIDTH, INNER]),
    ];
    for layer in 0..2 {
        let norms = more.iter().map(|norm| (*norm, [WIDTH].as_slice()));
        let parts = parts.into_iter().chain(norms);
        all.extend(parts.map(|(name, shape)| (format!("{prefix}layers.{layer}.{name}.weight"), shape.to_vec())));
    }
    all
}
