//! What clients may ask: one reader for each kind of OpenAI's requests, used by the gateway (which checks) and by the
//! worker (which answers), so that nothing is read by two different rules.
//!
//! Lenient where clients are sloppy and nothing is lost (unknown fields, null for absent, `16.0`), strict where the
//! answer would be wrong, and all faults of a request are told at once. It never judges what only a model can:
//! whether a prompt fits, or a grammar can be made of a schema.

pub mod ability;
mod body;
mod chat;
mod completion;
mod embedding;
mod faults;
mod format;
mod input;
mod messages;
pub mod parameters;
mod reading;
mod sampling;
pub mod schema;
mod stop;
#[cfg(test)]
mod tests;
mod thinking;
mod tools;

pub use body::Body;
pub use chat::ChatRequest;
pub use completion::CompletionRequest;
pub use embedding::{EmbeddingRequest, Encoding};
pub use faults::{Fault, FaultKind, Faults};
pub use format::Format;
pub use input::Input;
pub use messages::{Content, Message, Part, Role, media};
pub use sampling::Sampling;
pub use stop::{Stops, ends_like};
pub use thinking::{Effort, Thinking};
pub use tools::{Tool, ToolCall, ToolChoice};
