#![no_main]

#[allow(dead_code, reason = "each target takes one property")]
#[path = "../../gateway/tests/it/garbage/properties.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| properties::events(bytes));
