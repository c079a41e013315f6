//! One request on its way through the engine: from the choices of its tokens to the events of its answer.
//!
//! It knows the engine only by two channels: the choices made for this request, and the engine's own responses, of
//! which only errors matter. When the choices end, the engine has let go of the request.

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;

use super::{
    Candidate, Event, FinishReason, TokenLogprob,
    sampling::Sampled,
    text::{Answer, Detokenizer},
};

/// Text of several tokens in a row, without marks.
type Decode = dyn Fn(&[u32]) -> String + Send + Sync;

/// Bytes of a single token.
type Bytes = dyn Fn(u32) -> Vec<u8> + Send + Sync;

/// What a token says.
pub struct Vocabulary {
    /// Text of several tokens in a row.
    pub decode: Box<Decode>,
    /// Bytes of a single token.
    pub bytes: Box<Bytes>,
    /// The tokens that end an answer.
    pub ends: Vec<u32>,
}

/// A choice for a position. Where a grammar refuses it, a second one for the same position follows.
#[derive(Debug)]
pub struct Choice {
    /// How many tokens come before it.
    pub position: usize,
    /// What was chosen.
    pub sampled: Sampled,
}

/// One request on its way; `R` is the engine's response.
pub struct Run<R> {
    vocabulary: Arc<Vocabulary>,
    detokenizer: Detokenizer,
    answer: Answer,
    chosen: mpsc::UnboundedReceiver<Choice>,
    /// Dropped to cancel.
    responses: Option<mpsc::Receiver<R>>,
    reason: fn(R) -> Option<String>,
    wants: Wants,
    /// With a grammar, a choice is final only when the next position's is made.
    unsure: Option<Choice>,
    over: bool,
}

/// What is particular about a request.
#[derive(Debug, Clone, Copy)]
pub struct Wants {
    /// The client wants log-probabilities.
    pub logprobs: bool,
    /// A grammar may refuse choices.
    pub grammar: bool,
}

impl<R> Run<R> {
    /// Follows a request by its two channels; `reason` says what went wrong, if a response says that something did.
    pub fn new(
        vocabulary: Arc<Vocabulary>,
        answer: Answer,
        chosen: mpsc::UnboundedReceiver<Choice>,
        responses: mpsc::Receiver<R>,
        reason: fn(R) -> Option<String>,
        wants: Wants,
    ) -> Self {
        let detokenizer = Detokenizer::default();
        let responses = Some(responses);
        Self {
            vocabulary,
            detokenizer,
            answer,
            chosen,
            responses,
            reason,
            wants,
            unsure: None,
            over: false,
        }
    }

    /// The next events; none after the last.
    pub async fn next(&mut self) -> Option<Vec<Event>> {
        let mut events = Vec::new();
        while events.is_empty() && !self.over {
            tokio::select! {
                biased;
                choice = self.chosen.recv() => self.on_choice(choice, &mut events),
                response = heard(&mut self.responses) => self.on_response(response, &mut events),
            }
            if self.over {
                self.settle().await;
                return Some(events);
            }
        }
        (!events.is_empty()).then_some(events)
    }

    fn on_choice(&mut self, choice: Option<Choice>, events: &mut Vec<Event>) {
        let is_gone = choice.is_none();
        let sure = if self.wants.grammar {
            let position = choice.as_ref().map(|choice| choice.position);
            let before = std::mem::replace(&mut self.unsure, choice);
            before.filter(|before| position != Some(before.position))
        } else {
            choice
        };
        if let Some(choice) = sure {
            self.take(&choice.sampled, events);
        }
        if is_gone && !self.over {
            self.over = true;
            let told = self
                .responses
                .as_mut()
                .and_then(|responses| std::iter::from_fn(|| responses.try_recv().ok()).find_map(self.reason));
            events.push(Event::Failed(
                told.unwrap_or_else(|| "it lost the generation".to_owned()),
            ));
        }
    }

    fn on_response(&mut self, response: Option<R>, events: &mut Vec<Event>) {
        match response.map(self.reason) {
            None => self.responses = None,
            Some(None) => {}
            Some(Some(reason)) => {
                self.over = true;
                events.push(Event::Failed(reason));
            }
        }
    }

    fn take(&mut self, sampled: &Sampled, events: &mut Vec<Event>) {
        let Vocabulary { decode, bytes, ends } = &*self.vocabulary;
        if ends.contains(&sampled.token) {
            self.answer
                .end(&self.detokenizer.finish(decode), FinishReason::Stop, events);
            self.over = true;
            return;
        }
        let mut text = self.detokenizer.push(sampled.token, decode);
        if self.answer.is_last() {
            text.push_str(&self.detokenizer.finish(decode));
        }
        let candidate = |token, logprob| Candidate {
            bytes: bytes(token),
            logprob,
        };
        let logprob = self.wants.logprobs.then(|| TokenLogprob {
            token: candidate(sampled.token, sampled.logprob),
            top: sampled
                .top
                .iter()
                .map(|&(token, logprob)| candidate(token, logprob))
                .collect(),
        });
        self.over = self.answer.push(&text, logprob, events);
    }

    /// Waits until the engine has let go of the request, so that whoever reads the end finds the slot free.
    async fn settle(&mut self) {
        self.responses = None;
        let gone = async { while self.chosen.recv().await.is_some() {} };
        let _ = tokio::time::timeout(Duration::from_secs(2), gone).await;
    }
}

/// The engine's next word; never, once it has closed.
async fn heard<R>(responses: &mut Option<mpsc::Receiver<R>>) -> Option<R> {
    match responses {
        Some(responses) => responses.recv().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::engine::Usage;

    /// A run whose tokens are ASCII letters and whose end is `.`, and the two ends an engine holds.
    fn run(
        budget: u32,
        wants: Wants,
    ) -> (
        Run<&'static str>,
        mpsc::UnboundedSender<Choice>,
        mpsc::Sender<&'static str>,
    ) {
        let text = |ids: &[u32]| ids.iter().filter_map(|&id| char::from_u32(id)).collect::<String>();
        let vocabulary = Vocabulary {
            decode: Box::new(text),
            bytes: Box::new(move |id| text(&[id]).into_bytes()),
            ends: vec!['.'.into()],
        };
        let (choices, chosen) = mpsc::unbounded_channel();
        let (response, responses) = mpsc::channel(9);
        let answer = Answer::new(7, budget, Vec::new());
        let reason = |word: &'static str| word.strip_prefix("error: ").map(str::to_owned);
        (
            Run::new(Arc::new(vocabulary), answer, chosen, responses, reason, wants),
            choices,
            response,
        )
    }

    const PLAIN: Wants = Wants {
        logprobs: false,
        grammar: false,
    };

    fn choice(position: usize, token: char) -> Choice {
        let sampled = Sampled {
            token: token.into(),
            logprob: -1.0,
            top: Vec::new(),
        };
        Choice { position, sampled }
    }

    async fn all(mut run: Run<&'static str>) -> (String, Event) {
        let mut events = Vec::new();
        while let Some(more) = run.next().await {
            events.extend(more);
        }
        let last = events.pop().unwrap();
        let text = events.into_iter().map(|event| match event {
            Event::Delta(delta) => delta.text,
            other => panic!("{other:?} in the middle"),
        });
        (text.collect(), last)
    }

    fn finish(reason: FinishReason, completion: u32) -> Event {
        Event::Finish {
            reason,
            usage: Usage { prompt: 7, completion },
        }
    }

    #[tokio::test]
    async fn an_end_mark_ends_the_answer_and_is_not_counted() {
        let (run, choices, _response) = run(9, PLAIN);
        for (position, token) in "hi.".chars().enumerate() {
            choices.send(choice(position, token)).unwrap();
        }
        drop(choices);
        assert_eq!(all(run).await, ("hi".to_owned(), finish(FinishReason::Stop, 2)));
    }

    #[tokio::test]
    async fn a_choice_that_the_grammar_refuses_never_shows() {
        let (run, choices, _response) = run(3, Wants { grammar: true, ..PLAIN });
        for (position, token) in [(0, 'x'), (0, 'a'), (1, 'b'), (2, '.'), (2, 'c')] {
            choices.send(choice(position, token)).unwrap();
        }
        drop(choices);
        assert_eq!(all(run).await, ("abc".to_owned(), finish(FinishReason::Length, 3)));
    }

    #[tokio::test]
    async fn a_generation_that_the_engine_loses_is_a_failure() {
        let (run, choices, response) = run(9, PLAIN);
        choices.send(choice(0, 'a')).unwrap();
        drop((choices, response));
        assert_eq!(
            all(run).await,
            ("a".to_owned(), Event::Failed("it lost the generation".to_owned()))
        );
    }

    #[tokio::test]
    async fn an_error_of_the_engine_comes_after_what_was_generated_before() {
        let (run, choices, response) = run(9, PLAIN);
        response.send("a chunk").await.unwrap();
        response.send("error: out of memory").await.unwrap();
        choices.send(choice(0, 'a')).unwrap();
        drop(choices);
        assert_eq!(
            all(run).await,
            ("a".to_owned(), Event::Failed("out of memory".to_owned()))
        );
    }

    #[tokio::test]
    async fn the_end_waits_until_the_engine_has_let_go() {
        let (mut run, choices, response) = run(1, PLAIN);
        choices.send(choice(0, 'a')).unwrap();
        let letting_go = async {
            response.closed().await;
            drop(choices);
        };
        let (events, ()) = tokio::join!(run.next(), letting_go);
        assert_eq!(events.unwrap().last(), Some(&finish(FinishReason::Length, 1)));
    }
}
