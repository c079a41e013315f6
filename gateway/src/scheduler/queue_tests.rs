//! Whose turn it is.

use super::*;
use Priority::{High, Low, Normal};

/// Waiters are numbers in the order they came.
fn queue(waiting: &[(Priority, &str, u64)]) -> (FairQueue<usize>, Vec<Ticket>) {
    let mut queue = FairQueue::default();
    let push = |(number, (priority, key, tokens)): (usize, &(Priority, &str, u64))| {
        let wish = Wish {
            tokens: *tokens,
            ..Wish::default()
        };
        queue.push(number as u64, *priority, key, wish, number)
    };
    let tickets = waiting.iter().enumerate().map(push).collect();
    (queue, tickets)
}

fn served(queue: &mut FairQueue<usize>, slots: usize) -> Vec<usize> {
    (0..slots)
        .map_while(|_| queue.serve(|_| Some(())).map(|(waiter, ())| waiter.asker))
        .collect()
}

#[test]
fn keys_take_turns_however_many_requests_one_of_them_has() {
    let greedy = (Normal, "greedy", 10);
    let (mut queue, _) = queue(&[greedy, greedy, greedy, (Normal, "modest", 10), (Normal, "other", 10)]);
    assert_eq!(served(&mut queue, 1), [0]);
    assert_eq!(served(&mut queue, 1), [3]);
    assert_eq!(served(&mut queue, 9), [4, 1, 2]);
    assert!(queue.is_empty());
}

#[test]
fn turns_are_counted_in_tokens() {
    let long = (Normal, "long", 1000);
    let short = (Normal, "short", 100);
    let (mut queue, _) = queue(&[
        long, long, short, short, short, short, short, short, short, short, short, short, short,
    ]);
    assert_eq!(served(&mut queue, 13), [2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 11, 12, 1]);
}

#[test]
fn a_key_that_comes_later_has_saved_nothing_and_owes_nothing() {
    let (mut queue, _) = queue(&[(Normal, "a", 50), (Normal, "a", 50), (Normal, "a", 50)]);
    assert_eq!(served(&mut queue, 2), [0, 1]);
    let wish = Wish {
        tokens: 50,
        ..Wish::default()
    };
    queue.push(3, Normal, "b", wish.clone(), 3);
    queue.push(4, Normal, "b", wish, 4);
    assert_eq!(served(&mut queue, 3), [2, 3, 4]);
}

#[test]
fn higher_priorities_go_first_and_lower_ones_still_get_somewhere() {
    let mut waiting = vec![(High, "h", 1); 40];
    waiting.extend([(Normal, "n", 1); 4]);
    waiting.extend([(Low, "l", 1); 4]);
    let (mut queue, _) = queue(&waiting);
    let order = served(&mut queue, 48);
    let class = |number: &usize| match number {
        0..40 => 'h',
        40..44 => 'n',
        _ => 'l',
    };
    let order: String = order.iter().map(class).collect();
    assert_eq!(order, "hhhhhhhhnlhhhhhhhnlhhhhhhhnlhhhhhhhnlhhhhhhhhhhh");
}

#[test]
fn a_full_queue_is_shared_between_keys() {
    let greedy = (Normal, "greedy", 1);
    let (mut queue, _) = queue(&[greedy, greedy, greedy, greedy]);
    assert_eq!(queue.make_room(Normal, "greedy", 4), None, "not against itself");
    for (key, gives_up) in [("a", Some(3)), ("b", Some(2))] {
        assert_eq!(queue.make_room(Normal, key, 4), gives_up, "the latest of who has most");
        queue.push(9, Normal, key, Wish::default(), 9);
    }
    assert_eq!(queue.make_room(Normal, "a", 4), None, "two against one is no reason");
    assert_eq!(queue.make_room(Normal, "c", 4), Some(1));
    queue.push(9, Normal, "c", Wish::default(), 9);
    assert_eq!(queue.make_room(Normal, "d", 4), None, "all have one");
    assert_eq!(queue.len(), 4);
}

#[test]
fn one_who_had_a_slot_before_goes_first_and_keeps_its_place() {
    let (mut queue, _) = queue(&[(Normal, "a", 1), (Normal, "a", 1)]);
    let again = Wish {
        again: true,
        ..Wish::default()
    };
    queue.push(2, Normal, "a", again.clone(), 2);
    queue.push(3, Normal, "b", again, 3);
    assert_eq!(queue.make_room(Normal, "c", 4), Some(1));
    assert_eq!(queue.make_room(High, "h", 4), Some(0));
    assert_eq!(queue.make_room(High, "h", 4), None, "only those are left");
    assert_eq!(served(&mut queue, 9), [2, 3]);
}

#[test]
fn a_full_queue_has_a_place_for_each_priority() {
    let (mut queue, _) = queue(&[(Normal, "a", 1), (Normal, "b", 1), (Low, "c", 1), (Low, "c", 1)]);
    assert_eq!(queue.make_room(High, "h", 4), Some(3), "lower ones give way");
    queue.push(4, High, "h", Wish::default(), 4);
    assert_eq!(queue.make_room(High, "i", 4), Some(1), "but keep one place");
    queue.push(5, High, "i", Wish::default(), 5);
    assert_eq!(queue.make_room(High, "j", 4), None);
    queue.remove(&Ticket {
        class: 2,
        key: "c".into(),
        number: 2,
    });
    queue.push(6, High, "j", Wish::default(), 6);
    assert_eq!(queue.make_room(Low, "l", 4), Some(6), "one place is owed to it");
}

#[test]
fn a_place_given_up_is_nobodys() {
    let (mut queue, tickets) = queue(&[(Normal, "a", 1), (Normal, "b", 1), (Normal, "a", 1)]);
    queue.remove(&tickets[0]);
    queue.remove(&tickets[0]);
    assert_eq!(queue.len(), 2);
    assert_eq!(served(&mut queue, 9).len(), 2);
    queue.remove(&tickets[1]);
    assert!(queue.is_empty());
}

#[test]
fn whom_nothing_is_found_for_is_passed_by_and_keeps_its_turn() {
    let (mut queue, _) = queue(&[(Normal, "a", 1), (Normal, "b", 2), (Normal, "c", 3)]);
    assert!(queue.serve(|_| None::<()>).is_none());
    let only_b = queue.serve(|wish| (wish.tokens == 2).then_some(())).unwrap();
    assert_eq!(only_b.0.asker, 1);
    assert_eq!(served(&mut queue, 9), [0, 2]);
}

#[test]
fn one_behind_whom_nothing_is_found_for_does_not_wait_for_him() {
    let (mut queue, tickets) = queue(&[(Normal, "a", 1), (Normal, "a", 2)]);
    let second = queue.serve(|wish| (wish.tokens == 2).then_some(())).unwrap();
    assert_eq!(second.0.asker, 1);
    assert_eq!(queue.position(&tickets[0]), Some(1));
}

#[test]
fn a_position_counts_who_comes_before() {
    let greedy = (Normal, "greedy", 1);
    let (queue, tickets) = queue(&[
        greedy,
        greedy,
        greedy,
        (Normal, "modest", 1),
        (High, "h", 1),
        (Low, "l", 1),
    ]);
    let positions: Vec<_> = tickets.iter().map(|ticket| queue.position(ticket).unwrap()).collect();
    assert_eq!(positions, [3, 4, 5, 3, 1, 6]);
}
