//! Texts and token ids, alone or in lists: what completions continue and embeddings embed.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::{Faults, reading::Reading};

/// One prompt, or one thing to embed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Text.
    Text(String),
    /// The model's own token ids.
    Tokens(Vec<u32>),
}

/// Reads a text, a list of texts, a list of token ids, or a list of such lists; at most `most` of them.
pub(super) fn read(reading: &mut Reading<'_>, name: &str, most: usize) -> Vec<Input> {
    let Some(raw) = reading.body.raw(name) else {
        reading
            .faults
            .invalid(name, "is missing; send a string, or a list of strings or token ids");
        return Vec::new();
    };
    // Any JSON can be read as a node.
    let node = serde_json::from_str(raw).unwrap_or(Node::Other);
    let inputs = sort(node, name, &mut reading.faults);
    if inputs.len() > most {
        reading
            .faults
            .invalid(name, format!("has more than {most} entries; send fewer"));
    }
    inputs
}

fn sort(node: Node, name: &str, faults: &mut Faults) -> Vec<Input> {
    let list = match node {
        Node::Text(text) => return vec![Input::Text(text)],
        Node::List(list) => list,
        Node::Token(_) | Node::Other => {
            faults.invalid(name, "must be a string, or a list of strings or token ids");
            return Vec::new();
        }
    };
    if list.is_empty() {
        faults.invalid(name, "is empty; send at least one");
        return Vec::new();
    }
    if matches!(list[0], Node::Token(_)) {
        return tokens(list, name, faults).into_iter().collect();
    }
    let mut inputs = Vec::with_capacity(list.len());
    for (i, node) in list.into_iter().enumerate() {
        match node {
            Node::Text(text) => inputs.push(Input::Text(text)),
            Node::List(list) => inputs.extend(tokens(list, &format!("{name}[{i}]"), faults)),
            Node::Token(_) | Node::Other => {
                faults.invalid(format!("{name}[{i}]"), "must be a string or a list of token ids");
            }
        }
    }
    inputs
}

fn tokens(list: Vec<Node>, at: &str, faults: &mut Faults) -> Option<Input> {
    if list.is_empty() {
        faults.invalid(at, "is empty; send at least one token id");
        return None;
    }
    let mut ids = Vec::with_capacity(list.len());
    for (i, node) in list.into_iter().enumerate() {
        let Node::Token(id) = node else {
            faults.invalid(
                format!("{at}[{i}]"),
                "must be a token id, a whole number from 0 to 4294967295",
            );
            return None;
        };
        ids.push(id);
    }
    Some(Input::Tokens(ids))
}

/// What such a field may hold, so deep and no deeper.
enum Node {
    Text(String),
    Token(u32),
    List(Vec<Node>),
    Other,
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Look;
        impl<'de> Visitor<'de> for Look {
            type Value = Node;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }
            fn visit_str<E>(self, text: &str) -> Result<Node, E> {
                Ok(Node::Text(text.to_owned()))
            }
            fn visit_u64<E>(self, id: u64) -> Result<Node, E> {
                Ok(u32::try_from(id).map_or(Node::Other, Node::Token))
            }
            fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
                Ok(Node::Other)
            }
            fn visit_f64<E>(self, id: f64) -> Result<Node, E> {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "only whole ones in range are taken"
                )]
                let whole = (id.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&id)).then_some(id as u32);
                Ok(whole.map_or(Node::Other, Node::Token))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
                Ok(Node::Other)
            }
            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Other)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
                let mut nodes = Vec::new();
                while let Some(node) = list.next_element()? {
                    nodes.push(node);
                }
                Ok(Node::List(nodes))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Node::Other)
            }
        }
        deserializer.deserialize_any(Look)
    }
}
