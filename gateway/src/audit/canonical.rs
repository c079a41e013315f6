//! RFC 8785 (JSON Canonicalization Scheme) for what records hold: one value, one spelling, one hash.
//!
//! It knows no fractions: a record has none, and the rules for them would be most of the standard.

use serde_json::Value;

/// The largest integer that every JSON reader keeps exact, 2⁵³ − 1 (RFC 7493).
const LARGEST: u64 = (1 << 53) - 1;

/// A number that has no exact spelling in every reader.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no integer within ±(2^53 - 1); write it as a string")]
pub struct Inexact(String);

/// The canonical text: keys in the order of their UTF-16 code units, no white space.
pub fn to_string(value: &Value) -> Result<String, Inexact> {
    let mut out = String::with_capacity(512);
    write(value, &mut out)?;
    Ok(out)
}

/// Whether a line is spelled as [`to_string`] spells it.
pub fn is_canonical(line: &[u8]) -> bool {
    let value = serde_json::from_slice::<Value>(line).ok();
    let text = value.and_then(|value| to_string(&value).ok());
    text.is_some_and(|text| text.as_bytes() == line)
}

fn write(value: &Value, out: &mut String) -> Result<(), Inexact> {
    match value {
        Value::Number(number) => {
            let exact = number
                .as_i64()
                .map(i64::unsigned_abs)
                .or_else(|| number.as_u64())
                .is_some_and(|size| size <= LARGEST);
            if !exact {
                return Err(Inexact(number.to_string()));
            }
            out.push_str(&number.to_string());
        }
        Value::Array(items) => {
            out.push('[');
            for (place, item) in items.iter().enumerate() {
                if place > 0 {
                    out.push(',');
                }
                write(item, out)?;
            }
            out.push(']');
        }
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
            out.push('{');
            for (place, (name, field)) in fields.into_iter().enumerate() {
                if place > 0 {
                    out.push(',');
                }
                string(name, out);
                out.push(':');
                write(field, out)?;
            }
            out.push('}');
        }
        Value::String(text) => string(text, out),
        Value::Null => out.push_str("null"),
        Value::Bool(truth) => out.push_str(if *truth { "true" } else { "false" }),
    }
    Ok(())
}

/// `serde_json` escapes exactly what section 3.2.2.2 escapes, in the same spelling.
fn string(text: &str, out: &mut String) {
    out.push_str(&Value::from(text).to_string());
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_are_sorted_by_utf_16_and_only_controls_are_escaped() {
        // The example of RFC 8785, section 3.2.3: U+FB33 comes after the surrogates of U+1F600.
        let value = json!({"\u{20ac}": 1, "\r": 2, "\u{fb33}": 3, "1": 4, "\u{1f600}": 5, "\u{80}": 6, "\u{f6}": 7});
        assert_eq!(
            to_string(&value).unwrap(),
            "{\"\\r\":2,\"1\":4,\"\u{80}\":6,\"\u{f6}\":7,\"\u{20ac}\":1,\"\u{1f600}\":5,\"\u{fb33}\":3}"
        );
        let text = json!("\u{20ac}$\u{f}\nA'B\"\\\"/\u{1b}");
        assert_eq!(
            to_string(&text).unwrap(),
            "\"\u{20ac}$\\u000f\\nA'B\\\"\\\\\\\"/\\u001b\""
        );
    }

    #[test]
    fn the_order_in_which_a_value_was_made_does_not_matter() {
        let one: Value = serde_json::from_str(r#" {"b": [1, {"z": null, "a": true}], "a": -3} "#).unwrap();
        assert_eq!(to_string(&one).unwrap(), r#"{"a":-3,"b":[1,{"a":true,"z":null}]}"#);
    }

    #[test]
    fn a_number_that_readers_would_round_is_refused() {
        assert!(to_string(&json!(9_007_199_254_740_991_i64)).is_ok());
        for number in [json!(9_007_199_254_740_992_i64), json!(0.5), json!(u64::MAX)] {
            assert!(to_string(&number).is_err(), "{number}");
        }
    }
}
