//! Refused credentials as a few records with counts: a stranger who tries a million keys writes no million lines.
//!
//! Pure: time is an argument. The first refusal of a kind is told at once, the rest of its window in one record.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::record::{Actor, Event, Kind, Object, Outcome};

/// How long refusals of one kind are counted together, in milliseconds.
pub const WINDOW_MS: i64 = 10_000;
/// Kinds that are told apart at once; beyond them, only the code is.
const KINDS: usize = 1024;

/// One refused request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Denial {
    /// The stable code of the error.
    pub code: String,
    /// The route as the router spells it.
    pub route: String,
    /// The key's public id, if the key was known.
    pub key_id: Option<String>,
    /// Keyed pseudonym of the address.
    pub net: Option<String>,
}

/// What is being counted.
#[derive(Debug, Default)]
pub struct Fold {
    windows: HashMap<Denial, Window>,
}

#[derive(Debug)]
struct Window {
    opened: i64,
    count: u64,
    from: i64,
    to: i64,
}

impl Fold {
    /// Counts a refusal; the record of it, if it is the first of its kind in a while.
    pub fn see(&mut self, mut denial: Denial, now: i64) -> Option<Event> {
        if self.windows.len() >= KINDS && !self.windows.contains_key(&denial) {
            denial = Denial {
                code: denial.code,
                route: String::new(),
                key_id: None,
                net: None,
            };
        }
        if let Some(window) = self.windows.get_mut(&denial) {
            if window.count == 0 {
                window.from = now;
            }
            window.count += 1;
            window.to = now;
            return None;
        }
        let event = event(&denial, 1, now, now);
        let window = Window {
            opened: now,
            count: 0,
            from: now,
            to: now,
        };
        self.windows.insert(denial, window);
        Some(event)
    }

    /// The records of all windows that are over by now.
    pub fn due(&mut self, now: i64) -> Vec<Event> {
        let over = |window: &Window| now.saturating_sub(window.opened) >= WINDOW_MS;
        let ended: Vec<_> = self.windows.extract_if(|_, window| over(window)).collect();
        let counted = ended.into_iter().filter(|(_, window)| window.count > 0);
        let mut events: Vec<_> = counted
            .map(|(denial, window)| event(&denial, window.count, window.from, window.to))
            .collect();
        events.sort_by_key(|event| event.from);
        events
    }

    /// Whether anything is being counted.
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }
}

fn event(denial: &Denial, count: u64, from: i64, to: i64) -> Event {
    let mut event = Event::now(Kind::AuthFail);
    event.at_ms = to;
    event.actor = denial.key_id.clone().map(|key_id| Actor {
        key_id: Some(key_id),
        psub: None,
    });
    event.net = denial.net.clone();
    event.object = Some(Object {
        route: Some(denial.route.clone()).filter(|route| !route.is_empty()),
        ..Object::default()
    });
    event.outcome = Some(Outcome {
        state: "denied".into(),
        code: Some(denial.code.clone()),
    });
    (event.count, event.from, event.to) = (Some(count), Some(from), Some(to));
    event
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denial(net: &str) -> Denial {
        Denial {
            code: "invalid_api_key".into(),
            route: "/v1/models".into(),
            key_id: None,
            net: Some(net.into()),
        }
    }

    #[test]
    fn the_first_is_told_at_once_and_the_rest_of_the_window_together() {
        let mut fold = Fold::default();
        assert_eq!(fold.see(denial("a"), 5).unwrap().count, Some(1));
        for at in 6..106 {
            assert_eq!(fold.see(denial("a"), at), None);
        }
        assert_eq!(fold.due(5 + WINDOW_MS - 1), []);
        let events = fold.due(5 + WINDOW_MS);
        assert_eq!(events.len(), 1);
        assert_eq!(
            (events[0].count, events[0].from, events[0].to),
            (Some(100), Some(6), Some(105))
        );
        assert!(fold.is_empty());
        assert_eq!(fold.see(denial("a"), 20_000).unwrap().count, Some(1));
        assert_eq!(
            fold.due(40_000),
            [],
            "a window without a second refusal says nothing more"
        );
    }

    #[test]
    fn a_flood_from_everywhere_stays_small_and_is_counted_whole() {
        let mut fold = Fold::default();
        let mut events: Vec<_> = (0..100_000)
            .filter_map(|n| fold.see(denial(&n.to_string()), 0))
            .collect();
        assert!(events.len() <= KINDS + 1, "{}", events.len());
        events.extend(fold.due(WINDOW_MS));
        assert_eq!(events.iter().filter_map(|event| event.count).sum::<u64>(), 100_000);
    }
}
