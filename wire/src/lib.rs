//! The types that cross a process boundary between Hive's own programs, and nothing else:
//! worker ↔ gateway, hivectl ↔ gateway, the small files under `$HIVE_HOME/run`, and model files: hivectl ↔ worker.
//!
//! It never does I/O, knows no clock and no async runtime. What is not serialised does not belong here. [`openai`] is
//! what clients send, as the gateway checks it and the worker takes it.

mod audit;
mod control;
mod keys;
mod names;
pub mod openai;
mod routing;
mod run;
mod tensors;
mod worker;

pub use audit::*;
pub use control::*;
pub use keys::*;
pub use names::*;
pub use routing::*;
pub use run::*;
pub use tensors::*;
pub use worker::*;
