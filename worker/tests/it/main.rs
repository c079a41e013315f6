//! Real `hive-worker` processes over real HTTP, against a small gateway that lives in the test.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod answers;
mod busy;
mod completions;
mod doors;
mod embeddings;
mod faults;
mod gateway;
mod joining;
mod leaving;
#[cfg(feature = "engine")]
mod model;
#[cfg(feature = "engine")]
mod real_embeddings;
#[cfg(feature = "engine")]
mod real_images;
#[cfg(feature = "engine")]
mod real_model;
#[cfg(feature = "engine")]
mod real_safetensors;
#[cfg(feature = "engine")]
mod real_tools;
#[cfg(feature = "engine")]
mod seeing;
#[cfg(feature = "engine")]
mod tiny;
mod tools;
mod worker;
