//! Slots, places and turns, with no network and no worker.

use std::pin::pin;

use futures_util::poll;
use wire::WorkerKind;

use super::{trace::Subject, *};
use crate::registry::members::Member;

fn dispatcher(places_per_slot: u32, wait: Duration) -> Arc<Dispatcher> {
    let limits = Limits {
        silence: Duration::from_secs(15),
        stall: Duration::from_secs(120),
    };
    Arc::new(Dispatcher::new(limits, QueueLimits { places_per_slot, wait }))
}

fn join(dispatcher: &Arc<Dispatcher>, id: &str, epoch: i64, slots: u32) {
    let target = Target {
        id: id.parse().unwrap(),
        epoch,
        kind: WorkerKind::Own,
        url: String::new(),
        bearer: None,
    };
    let member = Member::new(target, vec![model()], slots, Instant::now());
    dispatcher.apply(Event::Joined(Box::new(member))).unwrap();
}

fn model() -> ModelName {
    "m".parse().unwrap()
}

fn request(dispatcher: &Dispatcher, key: &str) -> Request {
    let subject = Subject {
        id: "req".into(),
        correlation: "req".into(),
        model: model(),
        priority: Priority::Normal,
        tokens: 10,
        labels: Labels::new(),
    };
    Request {
        key: key.into(),
        priority: Priority::Normal,
        tokens: 10,
        labels: Labels::new(),
        unfit: Vec::new(),
        context: Context::default(),
        trace: dispatcher.traces.follow(subject),
    }
}

async fn ask(dispatcher: &Arc<Dispatcher>, key: &str) -> Result<Lease, NoSlot> {
    let request = request(dispatcher, key);
    dispatcher
        .acquire(Ask {
            model: &model(),
            request: &request,
            tried: &[],
            again: false,
        })
        .await
}

fn in_flight(dispatcher: &Dispatcher) -> u32 {
    dispatcher.workers().iter().map(|w| w.in_flight).sum()
}

#[tokio::test(start_paused = true)]
async fn two_requests_and_one_free_slot_admit_one() {
    let dispatcher = dispatcher(0, Duration::from_secs(30));
    join(&dispatcher, "a", 1, 1);
    let lease = ask(&dispatcher, "k").await.unwrap();
    assert_eq!(
        ask(&dispatcher, "k").await.unwrap_err(),
        NoSlot::QueueFull { wait: None }
    );
    drop(lease);
    assert_eq!(in_flight(&dispatcher), 0);
    ask(&dispatcher, "k").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_freed_slot_goes_to_the_one_who_waits() {
    let dispatcher = dispatcher(4, Duration::from_secs(30));
    join(&dispatcher, "a", 1, 1);
    let lease = ask(&dispatcher, "k").await.unwrap();
    let waiting = tokio::spawn({
        let dispatcher = dispatcher.clone();
        async move { ask(&dispatcher, "k").await }
    });
    tokio::task::yield_now().await;
    drop(lease);
    let lease = waiting.await.unwrap().unwrap();
    assert_eq!(in_flight(&dispatcher), 1);
    drop(lease);
    assert_eq!(in_flight(&dispatcher), 0);
}

#[tokio::test]
async fn one_who_was_served_takes_no_place_from_one_who_came_later() {
    let dispatcher = dispatcher(4, Duration::from_secs(30));
    join(&dispatcher, "a", 1, 1);
    let lease = ask(&dispatcher, "k").await.unwrap();
    let mut first = pin!(ask(&dispatcher, "k"));
    assert!(poll!(&mut first).is_pending());
    // Its slot is there, but it does not know that yet when the next one comes.
    drop(lease);
    let mut second = pin!(ask(&dispatcher, "k"));
    assert!(poll!(&mut second).is_pending());
    let lease = first.await.unwrap();
    assert!(poll!(&mut second).is_pending(), "it waits on");
    drop(lease);
    second.await.unwrap();
}

#[tokio::test]
async fn one_whose_worker_failed_has_a_place_in_a_full_queue() {
    let dispatcher = dispatcher(1, Duration::from_secs(30));
    join(&dispatcher, "a", 1, 1);
    let lease = ask(&dispatcher, "k").await.unwrap();
    join(&dispatcher, "b", 2, 1);
    let _other = ask(&dispatcher, "k").await.unwrap();
    let mut waiting: Vec<_> = (0..2).map(|_| Box::pin(ask(&dispatcher, "k"))).collect();
    for asking in &mut waiting {
        assert!(poll!(asking).is_pending());
    }
    let request = request(&dispatcher, "k");
    let (model, tried) = (model(), ["b".parse().unwrap()]);
    let mut again = pin!(dispatcher.acquire(Ask {
        model: &model,
        request: &request,
        tried: &tried,
        again: true,
    }));
    assert!(poll!(&mut again).is_pending());
    drop(lease);
    assert_eq!(again.await.unwrap().target().id.as_str(), "a");
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_after_its_time_and_the_place_is_free_again() {
    let dispatcher = dispatcher(1, Duration::from_secs(30));
    join(&dispatcher, "a", 1, 1);
    let _lease = ask(&dispatcher, "k").await.unwrap();
    assert_eq!(
        ask(&dispatcher, "k").await.unwrap_err(),
        NoSlot::QueueTimeout { wait: None }
    );
    assert_eq!(
        ask(&dispatcher, "k").await.unwrap_err(),
        NoSlot::QueueTimeout { wait: None }
    );
}

#[tokio::test(start_paused = true)]
async fn one_who_stops_waiting_leaves_the_queue() {
    let dispatcher = dispatcher(1, Duration::from_secs(30));
    join(&dispatcher, "a", 1, 1);
    let lease = ask(&dispatcher, "k").await.unwrap();
    let asking = ask(&dispatcher, "k");
    assert!(tokio::time::timeout(Duration::from_secs(1), asking).await.is_err());
    drop(lease);
    assert_eq!(in_flight(&dispatcher), 0);
    ask(&dispatcher, "k").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_comes_back_owes_nothing_for_its_old_leases() {
    let dispatcher = dispatcher(1, Duration::from_secs(30));
    join(&dispatcher, "a", 1, 1);
    let old = ask(&dispatcher, "k").await.unwrap();
    join(&dispatcher, "a", 2, 1);
    let new = ask(&dispatcher, "k").await.unwrap();
    drop(old);
    assert_eq!(in_flight(&dispatcher), 1);
    assert_eq!(new.target().epoch, 2);
}

#[tokio::test(start_paused = true)]
async fn unknown_and_known_without_a_worker_are_two_errors() {
    let dispatcher = dispatcher(1, Duration::from_secs(30));
    assert_eq!(ask(&dispatcher, "k").await.unwrap_err(), NoSlot::UnknownModel);
    dispatcher.remember_model(model(), 0, wire::ModelFacts::default());
    assert_eq!(ask(&dispatcher, "k").await.unwrap_err(), NoSlot::NoWorker);
}

#[tokio::test(start_paused = true)]
async fn a_new_worker_serves_those_who_wait_for_a_busy_one() {
    let dispatcher = dispatcher(4, Duration::from_secs(30));
    join(&dispatcher, "a", 1, 1);
    let _lease = ask(&dispatcher, "k").await.unwrap();
    let waiting = tokio::spawn({
        let dispatcher = dispatcher.clone();
        async move { ask(&dispatcher, "k").await }
    });
    tokio::task::yield_now().await;
    join(&dispatcher, "b", 1, 1);
    assert_eq!(waiting.await.unwrap().unwrap().target().id.as_str(), "b");
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_worker_that_is_fit_holds_up_nobody_else() {
    let dispatcher = dispatcher(4, Duration::from_secs(30));
    join(&dispatcher, "small", 1, 1);
    let large = ModelFacts {
        context_length: Some(8192),
        ..ModelFacts::default()
    };
    let target = Target {
        id: "large".parse().unwrap(),
        epoch: 2,
        kind: WorkerKind::Own,
        url: String::new(),
        bearer: None,
    };
    let mut member = Member::new(target, vec![model()], 1, Instant::now());
    member.facts = large.clone();
    dispatcher.apply(Event::Joined(Box::new(member))).unwrap();
    assert_eq!(dispatcher.facts(&model()).len(), 2);
    assert_eq!(
        dispatcher.model(&model()).unwrap().facts,
        large,
        "as much as one of them can"
    );

    let long = async |key: &'static str| {
        let request = Request {
            unfit: vec![ModelFacts::default()],
            ..request(&dispatcher, key)
        };
        let (model, request) = (&model(), &request);
        dispatcher
            .acquire(Ask {
                model,
                request,
                tried: &[],
                again: false,
            })
            .await
    };
    let held = long("k").await.unwrap();
    assert_eq!(held.target().id.as_str(), "large");
    let (waiting, short) = tokio::join!(long("k"), async {
        tokio::task::yield_now().await;
        let short = ask(&dispatcher, "k2").await.unwrap();
        assert_eq!(short.target().id.as_str(), "small");
        drop(held);
        short
    });
    assert_eq!(waiting.unwrap().target().id.as_str(), "large");
    drop(short);
}
