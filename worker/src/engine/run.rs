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

impl Vocabulary {
    /// A token and its rivals in bytes.
    pub fn tell(&self, sampled: &Sampled) -> TokenLogprob {
        let candidate = |token, logprob| Candidate {
            bytes: (self.bytes)(token),
            logprob,
        };
        let rivals = sampled.top.iter().map(|&(token, logprob)| candidate(token, logprob));
        TokenLogprob {
            token: candidate(sampled.token, sampled.logprob),
            top: rivals.collect(),
        }
    }
}

/// A token that was chosen, or why none could be.
pub type Choice = Result<Chosen, String>;

/// A token that was chosen.
#[derive(Debug)]
pub struct Chosen {
    /// The token.
    pub sampled: Sampled,
    /// Nothing can follow it.
    pub is_last: bool,
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
    /// The client wants log-probabilities.
    logprobs: bool,
    over: bool,
}

impl<R> Run<R> {
    /// Follows a request by its two channels; `reason` says what went wrong, if a response says that something did.
    pub fn new(
        vocabulary: Arc<Vocabulary>,
        answer: Answer,
        chosen: mpsc::UnboundedReceiver<Choice>,
        responses: mpsc::Receiver<R>,
        reason: fn(R) -> Option<String>,
        logprobs: bool,
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
            logprobs,
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
        match choice {
            Some(Ok(chosen)) => self.take(&chosen, events),
            Some(Err(reason)) => self.fail(reason, events),
            None => {
                let told = self
                    .responses
                    .as_mut()
                    .and_then(|responses| std::iter::from_fn(|| responses.try_recv().ok()).find_map(self.reason));
                self.fail(told.unwrap_or_else(|| "it lost the generation".to_owned()), events);
            }
        }
    }

    fn on_response(&mut self, response: Option<R>, events: &mut Vec<Event>) {
        match response.map(self.reason) {
            None => self.responses = None,
            Some(None) => {}
            Some(Some(reason)) => self.fail(reason, events),
        }
    }

    fn fail(&mut self, reason: String, events: &mut Vec<Event>) {
        self.over = true;
        events.push(Event::Failed(reason));
    }

    fn take(&mut self, Chosen { sampled, is_last }: &Chosen, events: &mut Vec<Event>) {
        let Vocabulary { decode, ends, .. } = &*self.vocabulary;
        if ends.contains(&sampled.token) {
            self.answer
                .end(&self.detokenizer.finish(decode), FinishReason::Stop, events);
            self.over = true;
            return;
        }
        let mut text = self.detokenizer.push(sampled.token, decode);
        if *is_last || self.answer.is_last() {
            text.push_str(&self.detokenizer.finish(decode));
        }
        let logprob = self.logprobs.then(|| self.vocabulary.tell(sampled));
        self.over = self.answer.push(&text, logprob, *is_last, events);
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
    use crate::engine::{Delta, Usage, calls::Piece};

    /// A run whose tokens are ASCII letters and whose end is `.`, and the two ends an engine holds.
    fn run(
        budget: u32,
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
        let answer = Answer::new(7, budget, Vec::new(), None);
        let reason = |word: &'static str| word.strip_prefix("error: ").map(str::to_owned);
        (
            Run::new(Arc::new(vocabulary), answer, chosen, responses, reason, false),
            choices,
            response,
        )
    }

    #[allow(clippy::unnecessary_wraps)]
    fn choice(token: char) -> Choice {
        let sampled = Sampled {
            token: token.into(),
            logprob: -1.0,
            top: Vec::new(),
        };
        Ok(Chosen {
            sampled,
            is_last: false,
        })
    }

    async fn all(mut run: Run<&'static str>) -> (String, Event) {
        let mut events = Vec::new();
        while let Some(more) = run.next().await {
            events.extend(more);
        }
        let last = events.pop().unwrap();
        let text = events.into_iter().map(|event| match event {
            Event::Delta(Delta {
                piece: Piece::Text(text),
                ..
            }) => text,
            other => panic!("{other:?} in the middle"),
        });
        (text.collect(), last)
    }

    fn finish(reason: FinishReason, completion: u32) -> Event {
        Event::Finish {
            reason,
            usage: Usage {
                prompt: 7,
                completion,
                reasoning: 0,
            },
        }
    }

    #[tokio::test]
    async fn an_end_mark_ends_the_answer_and_is_not_counted() {
        let (run, choices, _response) = run(9);
        for token in "hi.".chars() {
            choices.send(choice(token)).unwrap();
        }
        drop(choices);
        assert_eq!(all(run).await, ("hi".to_owned(), finish(FinishReason::Stop, 2)));
    }

    #[tokio::test]
    async fn a_token_that_completes_a_grammar_ends_the_answer() {
        let (run, choices, _response) = run(9);
        let last = choice('b').map(|chosen| Chosen {
            is_last: true,
            ..chosen
        });
        for choice in [choice('a'), last] {
            choices.send(choice).unwrap();
        }
        drop(choices);
        assert_eq!(all(run).await, ("ab".to_owned(), finish(FinishReason::Stop, 2)));
    }

    #[tokio::test]
    async fn a_grammar_that_breaks_fails_the_answer() {
        let (run, choices, _response) = run(9);
        choices.send(Err("a dead end".to_owned())).unwrap();
        drop(choices);
        assert_eq!(all(run).await, (String::new(), Event::Failed("a dead end".to_owned())));
    }

    #[tokio::test]
    async fn a_generation_that_the_engine_loses_is_a_failure() {
        let (run, choices, response) = run(9);
        choices.send(choice('a')).unwrap();
        drop((choices, response));
        assert_eq!(
            all(run).await,
            ("a".to_owned(), Event::Failed("it lost the generation".to_owned()))
        );
    }

    #[tokio::test]
    async fn an_error_of_the_engine_comes_after_what_was_generated_before() {
        let (run, choices, response) = run(9);
        response.send("a chunk").await.unwrap();
        response.send("error: out of memory").await.unwrap();
        choices.send(choice('a')).unwrap();
        drop(choices);
        assert_eq!(
            all(run).await,
            ("a".to_owned(), Event::Failed("out of memory".to_owned()))
        );
    }

    #[tokio::test]
    async fn the_end_waits_until_the_engine_has_let_go() {
        let (mut run, choices, response) = run(1);
        choices.send(choice('a')).unwrap();
        let letting_go = async {
            response.closed().await;
            drop(choices);
        };
        let (events, ()) = tokio::join!(run.next(), letting_go);
        assert_eq!(events.unwrap().last(), Some(&finish(FinishReason::Length, 1)));
    }
}
