//! An attached server's embeddings, in the encoding that was asked for: some know only one, and clients decode blindly.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Map, Value, json};
use wire::{ModelName, openai::Encoding};

/// An answer with embeddings as a client may see it: OpenAI's keys, and one vector for each of `count` texts, in their
/// order.
pub fn embeddings(answer: Value, model: &ModelName, encoding: Encoding, count: usize) -> Result<Value, String> {
    let Value::Object(mut answer) = answer else {
        return Err("it answered what is no object".into());
    };
    let Some(Value::Array(data)) = answer.remove("data") else {
        return Err("it answered without `data`".into());
    };
    let mut mended = Vec::with_capacity(data.len());
    for (place, entry) in data.into_iter().enumerate() {
        let Value::Object(mut entry) = entry else {
            return Err("an entry of its `data` is no object".into());
        };
        let vector = entry.remove("embedding").unwrap_or_default();
        let vector = encoded(vector, encoding).ok_or("an entry of its `data` has no vector of numbers")?;
        let index = entry.get("index").and_then(Value::as_u64).unwrap_or(place as u64);
        mended.push((index, vector));
    }
    // Clients take the vectors as they come for the texts as they went.
    mended.sort_by_key(|(index, _)| *index);
    if !mended.iter().map(|(index, _)| *index).eq(0..count as u64) {
        return Err(format!(
            "it answered {} vectors, not one for each of {count} texts",
            mended.len()
        ));
    }
    let mended: Vec<Value> = mended
        .into_iter()
        .map(|(index, vector)| json!({"object": "embedding", "index": index, "embedding": vector}))
        .collect();
    let mut list = Map::new();
    list.insert("object".into(), "list".into());
    list.insert("data".into(), mended.into());
    list.insert("model".into(), model.as_str().into());
    let prompt = answer
        .get("usage")
        .and_then(|usage| usage.get("prompt_tokens")?.as_u64());
    // OpenAI's document requires it; a server that counts nothing has counted nothing.
    let prompt = prompt.unwrap_or(0);
    list.insert("usage".into(), json!({"prompt_tokens": prompt, "total_tokens": prompt}));
    Ok(list.into())
}

/// A vector as a list of numbers, or as base64 of little-endian floats.
fn encoded(vector: Value, encoding: Encoding) -> Option<Value> {
    match (vector, encoding) {
        (Value::Array(numbers), Encoding::Float) => numbers.iter().all(Value::is_number).then(|| numbers.into()),
        (Value::Array(numbers), Encoding::Base64) => {
            #[expect(clippy::cast_possible_truncation, reason = "base64 holds 32 bits of each")]
            let floats = numbers
                .iter()
                .map(|number| Some((number.as_f64()? as f32).to_le_bytes()));
            let bytes: Option<Vec<[u8; 4]>> = floats.collect();
            Some(BASE64_STANDARD.encode(bytes?.concat()).into())
        }
        (Value::String(text), Encoding::Base64) => Some(text.into()),
        (Value::String(text), Encoding::Float) => {
            let bytes = BASE64_STANDARD.decode(text).ok()?;
            let floats = bytes
                .chunks(4)
                .map(|four| Some(f32::from_le_bytes(four.try_into().ok()?)));
            floats.collect()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mend(answer: Value, encoding: Encoding) -> Result<Value, String> {
        let count = answer["data"].as_array().map_or(0, Vec::len);
        embeddings(answer, &"asked".parse().unwrap(), encoding, count)
    }

    #[test]
    fn embeddings_get_their_places_and_the_name_that_was_asked_for() {
        let answer = json!({"id": "e", "data": [{"embedding": [1.0]}, {"embedding": [2.0], "index": 1, "x": 1}],
            "model": "theirs", "usage": {"prompt_tokens": 4, "completion_tokens": 0}});
        assert_eq!(
            mend(answer, Encoding::Float).unwrap(),
            json!({"object": "list", "model": "asked", "data": [
                {"object": "embedding", "index": 0, "embedding": [1.0]},
                {"object": "embedding", "index": 1, "embedding": [2.0]}],
                "usage": {"prompt_tokens": 4, "total_tokens": 4}})
        );
        for bad in [
            json!({"data": [{"embedding": [1.0], "index": 1}, {"embedding": [2.0], "index": 1}]}),
            json!({"data": [{"embedding": [1.0], "index": 1}]}),
            json!({"error": "x"}),
            json!([]),
            json!({"data": [{"embedding": ["x"]}]}),
            json!({"data": [7]}),
        ] {
            assert!(mend(bad.clone(), Encoding::Float).is_err(), "{bad}");
            assert!(mend(bad.clone(), Encoding::Base64).is_err(), "{bad}");
        }
    }

    #[test]
    fn vectors_come_in_the_order_of_their_texts_and_none_is_missing() {
        let answer = json!({"data": [{"embedding": [2.0], "index": 1}, {"embedding": [1.0], "index": 0}]});
        let list = mend(answer.clone(), Encoding::Float).unwrap();
        assert_eq!(
            (&list["data"][0]["embedding"], &list["data"][1]["index"]),
            (&json!([1.0]), &json!(1))
        );
        assert_eq!(list["usage"], json!({"prompt_tokens": 0, "total_tokens": 0}));
        assert!(embeddings(answer, &"m".parse().unwrap(), Encoding::Float, 3).is_err());
    }

    #[test]
    fn a_vector_comes_in_the_encoding_that_was_asked_for() {
        for vector in [json!([1.0, -2.5]), json!("AACAPwAAIMA=")] {
            let told = |encoding| {
                let answer = json!({"data": [{"embedding": vector}]});
                mend(answer, encoding).unwrap()["data"][0]["embedding"].take()
            };
            assert_eq!(told(Encoding::Float), json!([1.0, -2.5]));
            assert_eq!(told(Encoding::Base64), json!("AACAPwAAIMA="));
        }
        for bad in ["?", "AACAPwA="] {
            assert!(
                mend(json!({"data": [{"embedding": bad}]}), Encoding::Float).is_err(),
                "{bad}"
            );
        }
    }
}
