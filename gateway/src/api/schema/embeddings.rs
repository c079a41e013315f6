//! The shapes of `/v1/embeddings`.

use serde::Serialize;
use utoipa::ToSchema;

use super::completions::Prompt;

/// Texts to turn into vectors.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"model": "embeddinggemma-300m", "input": ["Why is the sky blue?", "Rayleigh scattering"], "encoding_format": "float"}))]
pub struct EmbeddingRequest {
    /// A model that makes embeddings.
    pub model: String,
    /// What to embed, at most 2048 texts, none of them empty.
    pub input: Prompt,
    /// The first so many dimensions only.
    #[schema(minimum = 1, nullable)]
    pub dimensions: Option<u32>,
    /// `float`, or `base64` of little-endian 32-bit floats.
    #[schema(nullable, pattern = "^(float|base64)$")]
    pub encoding_format: Option<String>,
}

/// Vectors in the order of the texts.
#[derive(Debug, Serialize, ToSchema)]
pub struct EmbeddingList {
    /// `list`.
    pub object: String,
    /// The vectors.
    pub data: Vec<Embedding>,
    /// The model that made them.
    pub model: String,
    /// Token counts.
    pub usage: EmbeddingUsage,
}

/// One vector.
#[derive(Debug, Serialize, ToSchema)]
pub struct Embedding {
    /// `embedding`.
    pub object: String,
    /// The place of its text.
    pub index: u32,
    /// The vector.
    pub embedding: Vector,
}

/// A vector in either form.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Vector {
    /// Numbers.
    Numbers(Vec<f32>),
    /// Base64.
    Base64(String),
}

/// Token counts.
#[derive(Debug, Serialize, ToSchema)]
pub struct EmbeddingUsage {
    /// Tokens of all texts; 0 where an attached server counts none.
    pub prompt_tokens: u64,
    /// The same.
    pub total_tokens: u64,
}
