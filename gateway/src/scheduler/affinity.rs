//! Where a conversation's context lies: which worker had its beginning, or its session, before.
//!
//! Pure and bounded. What a worker remembered dies with its epoch, because another epoch is another home. Nothing of a
//! conversation is kept, only hashes, and those of one key's conversations never meet another's.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hasher as _},
};

use wire::{
    Reason,
    openai::{Message, Part, Role},
};

/// A text is cut into blocks of so many bytes, about a quarter as many tokens.
const BLOCK: usize = 1024;
/// The most places of a conversation that are remembered; what is beyond them does not count.
const MOST_MARKS: usize = 64;
/// The most places of all conversations that are remembered, twice.
const HALF: usize = 32 * 1024;

/// A request's context: what earlier requests may have left in a worker's cache.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Context {
    session: Option<u64>,
    /// Hashes of its beginnings, the shortest first.
    marks: Vec<u64>,
    /// The first of them that is worth going back for.
    worth: usize,
}

/// The worker that has a request's context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Home {
    /// As [`Member::home`](crate::registry::members::Member::home) says it.
    pub worker: u64,
    /// The session or the conversation's beginning.
    pub by: Reason,
}

impl Context {
    /// The context of a conversation: its beginnings after each message and each block.
    ///
    /// A conversation that goes on is worth going back for however short it is; a first message only if a block of
    /// it or more was there before.
    pub fn of_conversation(scope: &str, tools: Option<&str>, messages: &[Message]) -> Self {
        let mut marker = Marker::new(scope);
        marker.text(tools.unwrap_or_default());
        let mut begun = None;
        for message in messages {
            if message.role == Role::Assistant && begun.is_none() {
                begun = marker.marks.len().checked_sub(1);
            }
            marker.text(message.role.as_str());
            for part in message.content.parts() {
                match part {
                    Part::Text(text) => marker.text(text),
                    Part::Image { url } => marker.text(url),
                    Part::Other(kind) => marker.text(kind),
                }
            }
            for call in &message.tool_calls {
                marker.text(&call.name);
                marker.text(&call.arguments);
            }
            marker.mark();
        }
        let worth = begun.into_iter().chain(marker.first_block).min();
        marker.context(worth)
    }

    /// The context of a text to continue: its blocks.
    pub fn of_text(scope: &str, text: &str) -> Self {
        let mut marker = Marker::new(scope);
        marker.text(text);
        let worth = marker.first_block;
        marker.context(worth)
    }

    /// The same, in a session that the client names.
    #[must_use]
    pub fn in_session(mut self, scope: &str, name: Option<&str>) -> Self {
        self.session = name.filter(|name| !name.is_empty()).map(|name| {
            let mut hasher = DefaultHasher::new();
            hasher.write(b"session");
            hasher.write(scope.as_bytes());
            hasher.write_u8(0);
            hasher.write(name.as_bytes());
            hasher.finish()
        });
        self
    }
}

/// Hashes a conversation as it is read, and marks its beginnings.
struct Marker {
    hasher: DefaultHasher,
    bytes: usize,
    marks: Vec<u64>,
    first_block: Option<usize>,
}

impl Marker {
    fn new(scope: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        hasher.write(scope.as_bytes());
        Self {
            hasher,
            bytes: 0,
            marks: Vec::new(),
            first_block: None,
        }
    }

    fn text(&mut self, text: &str) {
        let mut rest = text.as_bytes();
        while !rest.is_empty() && self.marks.len() < MOST_MARKS {
            let (block, after) = rest.split_at(rest.len().min(BLOCK - self.bytes % BLOCK));
            self.hasher.write(block);
            self.bytes += block.len();
            rest = after;
            if self.bytes.is_multiple_of(BLOCK) {
                self.first_block.get_or_insert(self.marks.len());
                self.mark();
            }
        }
        self.hasher.write_u8(0xff);
    }

    fn mark(&mut self) {
        if self.marks.len() < MOST_MARKS {
            self.marks.push(self.hasher.finish());
        }
    }

    fn context(self, worth: Option<usize>) -> Context {
        Context {
            session: None,
            worth: worth.unwrap_or(self.marks.len()),
            marks: self.marks,
        }
    }
}

/// Which worker had what; of more than it holds, what was used longest ago is forgotten first.
#[derive(Debug, Default)]
pub struct Memory {
    young: HashMap<u64, u64>,
    old: HashMap<u64, u64>,
}

impl Memory {
    /// The worker that had the session, else the longest beginning of the conversation.
    pub fn find(&self, context: &Context) -> Option<Home> {
        let of = |mark: u64| self.young.get(&mark).or_else(|| self.old.get(&mark)).copied();
        let home = |worker, by| Home { worker, by };
        let session = context.session.and_then(of).map(|worker| home(worker, Reason::Session));
        session.or_else(|| {
            let worth = context.marks.get(context.worth..).unwrap_or_default();
            let worker = worth.iter().rev().find_map(|mark| of(*mark));
            worker.map(|worker| home(worker, Reason::Prefix))
        })
    }

    /// A worker gets a request, and with it its context.
    pub fn keep(&mut self, context: &Context, worker: u64) {
        for mark in context.session.iter().chain(&context.marks) {
            if self.young.len() >= HALF && !self.young.contains_key(mark) {
                self.old = std::mem::take(&mut self.young);
            }
            self.young.insert(*mark, worker);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(role: Role, text: &str) -> Message {
        Message {
            role,
            content: text.to_owned().into(),
            ..Message::default()
        }
    }

    fn chat(turns: &[&str]) -> Context {
        let roles = [Role::System, Role::User, Role::Assistant].into_iter();
        let roles = roles.chain([Role::User, Role::Assistant].into_iter().cycle());
        let messages: Vec<Message> = turns.iter().zip(roles).map(|(text, role)| say(role, text)).collect();
        Context::of_conversation("key", None, &messages)
    }

    fn found(memory: &Memory, context: &Context) -> Option<(u64, Reason)> {
        memory.find(context).map(|home| (home.worker, home.by))
    }

    #[test]
    fn a_conversation_goes_back_to_where_it_began() {
        let mut memory = Memory::default();
        memory.keep(&chat(&["be kind", "hello"]), 1);
        memory.keep(&chat(&["be kind", "good day"]), 2);
        assert_eq!(
            found(&memory, &chat(&["be kind", "hello", "hi", "how are you?"])),
            Some((1, Reason::Prefix))
        );
        assert_eq!(
            found(&memory, &chat(&["be kind", "good day", "hi", "how are you?"])),
            Some((2, Reason::Prefix))
        );
        assert_eq!(
            found(&memory, &chat(&["be kind", "bye", "oh", "yes"])),
            None,
            "a short beginning is shared by all"
        );
    }

    #[test]
    fn a_first_message_goes_where_a_block_of_it_was() {
        let mut memory = Memory::default();
        let long = "x".repeat(3 * BLOCK);
        memory.keep(&chat(&["be kind", "hello"]), 1);
        assert_eq!(
            found(&memory, &chat(&["be kind", "hello"])),
            None,
            "too short to be worth it"
        );
        memory.keep(&chat(&[&long, "hello"]), 2);
        assert_eq!(
            found(&memory, &chat(&[&long, "something else"])),
            Some((2, Reason::Prefix))
        );
        memory.keep(&Context::of_text("key", &long), 3);
        assert_eq!(
            found(&memory, &Context::of_text("key", &format!("{long}y"))),
            Some((3, Reason::Prefix))
        );
        assert_eq!(found(&memory, &Context::of_text("key", &long[..BLOCK - 1])), None);
    }

    #[test]
    fn a_named_session_counts_more_than_the_words() {
        let mut memory = Memory::default();
        let named = |name| chat(&["be kind", "hello", "hi", "well"]).in_session("key", Some(name));
        memory.keep(&named("a"), 1);
        memory.keep(&named("b"), 2);
        assert_eq!(found(&memory, &named("a")), Some((1, Reason::Session)));
        assert_eq!(found(&memory, &named("c")), Some((2, Reason::Prefix)));
        assert_eq!(found(&memory, &named("")), Some((2, Reason::Prefix)));
    }

    #[test]
    fn one_keys_conversations_are_not_anothers() {
        let mut memory = Memory::default();
        let long = "x".repeat(2 * BLOCK);
        memory.keep(&Context::of_text("key", &long).in_session("key", Some("s")), 1);
        let others = Context::of_text("other", &long).in_session("other", Some("s"));
        assert_eq!(found(&memory, &others), None);
    }

    #[test]
    fn the_memory_is_bounded_and_forgets_what_is_oldest() {
        let mut memory = Memory::default();
        let session = |n: usize| Context::default().in_session("key", Some(&n.to_string()));
        for n in 0..5 * HALF {
            memory.keep(&session(n), 1);
            memory.keep(&session(0), 2);
        }
        assert!(memory.young.len() + memory.old.len() <= 2 * HALF);
        assert_eq!(found(&memory, &session(0)), Some((2, Reason::Session)));
        assert_eq!(found(&memory, &session(1)), None);
        let huge = Context::of_text("key", &"x".repeat(1 << 20));
        assert_eq!(huge.marks.len(), MOST_MARKS);
    }
}
